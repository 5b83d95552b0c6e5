//! Validators that lie, each in one way: one of four may, and nothing comes of it.

mod leader;
mod votes;

use commonware_runtime::{Spawner as _, Supervisor as _, deterministic::Context};
use fog_node::consensus::{fence::Fence, scheme::Scheme};
use ledger::proof::ValidatorSet;

use crate::{disks::Disks, world::World};

pub(crate) use leader::Proposal;
pub(crate) use votes::Answer;

/// One way to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Says nothing at all.
    Silence,
    /// Votes as it should not.
    Vote(Answer),
    /// Proposes what it should not.
    Propose(Proposal),
    /// Runs twice under one key: one self for some of the others, one for the rest.
    Twins,
    /// Runs twice under one key, and everybody hears both.
    LoudTwins,
    /// Follows the protocol, and changes a byte of every vote, certificate and proposal it sends.
    Garble,
    /// Follows the protocol, and changes a byte of every block and certificate it serves to who has fallen behind.
    ForgeHistory,
}

/// All of them.
pub(crate) const LIES: [Lie; 21] = [
    Lie::Silence,
    Lie::Vote(Answer::Contradict),
    Lie::Vote(Answer::NullifyAndFinalize),
    Lie::Vote(Answer::NullifyOnly),
    Lie::Vote(Answer::Impersonate),
    Lie::Vote(Answer::Replay),
    Lie::Vote(Answer::OtherEpoch),
    Lie::Propose(Proposal::Equivocate),
    Lie::Propose(Proposal::Unmined),
    Lie::Propose(Proposal::WrongRoot),
    Lie::Propose(Proposal::WrongHeight),
    Lie::Propose(Proposal::Early),
    Lie::Propose(Proposal::OtherLeader),
    Lie::Propose(Proposal::OtherNetwork),
    Lie::Propose(Proposal::ForgedSignature),
    Lie::Propose(Proposal::Twice),
    Lie::Propose(Proposal::AbsentPayload),
    Lie::Twins,
    Lie::LoudTwins,
    Lie::Garble,
    Lie::ForgeHistory,
];

/// The channels, in the order of the world, whose messages a garbler changes: votes, certificates and proposals.
const SAID: [usize; 3] = [0, 1, 4];
/// And those over which history is served: resolver and backfill.
const SERVED: [usize; 2] = [2, 3];

impl Lie {
    /// Whether every honest validator that hears it sees from one message, or two, that it is one, and shuts the liar out.
    pub(crate) const fn is_evident(self) -> bool {
        use Answer::{Contradict, Impersonate, NullifyAndFinalize, OtherEpoch};
        matches!(
            self,
            Self::Vote(Contradict | NullifyAndFinalize | Impersonate | OtherEpoch)
        )
    }

    /// Whether a block of the liar may become final all the same: some of its lies are well-formed blocks.
    pub(crate) const fn proposes_well(self) -> bool {
        !matches!(
            self,
            Self::Silence
                | Self::Vote(_)
                | Self::Propose(
                    Proposal::Unmined
                        | Proposal::WrongRoot
                        | Proposal::WrongHeight
                        | Proposal::Early
                        | Proposal::OtherLeader
                        | Proposal::OtherNetwork
                        | Proposal::ForgedSignature
                        | Proposal::Twice
                        | Proposal::AbsentPayload
                )
        )
    }

    /// Starts a validator that lies so; `spare` is the disk of its second self, if it has one.
    pub(crate) async fn start(
        self,
        context: &Context,
        world: &World,
        disks: &Disks,
        (validator, spare): (usize, usize),
    ) {
        let others: Vec<_> = (0..world.peers.len()).filter(|peer| *peer != validator).collect();
        let child = context.child("liar");
        match self {
            Self::Silence => {}
            Self::Vote(answer) => {
                let [votes, ..] = world.ends(validator).await;
                let (founders, key) = (
                    ValidatorSet::of(&disks.clinic.genesis),
                    &disks.clinic.validators[validator],
                );
                let scheme = Scheme::signer(&founders, key, Fence::open());
                child.spawn(move |_| votes::answer(answer, scheme, votes));
            }
            Self::Propose(proposal) => {
                let ends = world.ends(validator).await;
                let leader = leader::Leader::new(&disks.clinic, validator, world.peers.clone());
                child.spawn(move |clock| leader.lead(clock, proposal, ends));
            }
            Self::Twins => {
                let (first, second) = others.split_at(1);
                world
                    .start_twins(context, disks, (validator, spare), (first, second))
                    .await;
            }
            Self::LoudTwins => {
                world
                    .start_twins(context, disks, (validator, spare), (&others, &others))
                    .await;
            }
            Self::Garble | Self::ForgeHistory => {
                let mut ends = world.ends(validator).await;
                let bent: &[usize] = if self == Self::Garble { &SAID } else { &SERVED };
                for channel in bent {
                    let (mouth, _) = &mut ends[*channel];
                    *mouth = mouth.clone().garbling();
                }
                world.run(context, disks, (validator, validator), (ends, Fence::shut()));
            }
        }
    }
}
