//! One voting engine an epoch: the committee that the chain decided votes until the epoch's last block is final and applied,
//! then the next one begins on it. Nobody else is stopped by that.

use std::{future::pending, sync::Arc, time::Duration};

use commonware_consensus::{
    Reporters,
    simplex::{self, Floor, ForwardPolicy, elector::RoundRobin},
    types::{Epoch, Height, Round, View, ViewDelta},
};
use commonware_cryptography::{Sha256, ed25519::PublicKey};
use commonware_macros::select;
use commonware_p2p::{
    Blocker, Receiver, Sender,
    utils::mux::{Builder as _, MuxHandle, Muxer, SubReceiver, SubSender},
};
use commonware_parallel::Sequential;
use commonware_runtime::{Clock, Handle, buffer::paged::CacheRef};
use commonware_utils::{NZDuration, NZUsize, vec::NonEmptyVec};
use ledger::{block, policy::ValidityPolicy};
use tokio::sync::mpsc;

use super::{
    Payloads,
    ballot::Ballot,
    codec::engine_digest,
    delivery::{FinalVotes, Marshal, Votes},
    engine::{Runtime, Timeouts, config},
    fence::Fence,
    recall::Witness,
    schemes::Schemes,
    votes,
};
use crate::chain::{self, Chain};

/// In this time every part of an engine that was ended has ended.
const ENDED_AFTER: Duration = Duration::from_millis(250);
/// How often a channel is asked for that an engine before may still hold.
const REGISTER_TRIES: u32 = 100;

/// What the engines of all epochs have in common.
pub(super) struct Epochs<E: Runtime, B, P: Payloads> {
    pub(super) context: Arc<E>,
    pub(super) chain: Chain,
    pub(super) policy: ValidityPolicy,
    pub(super) schemes: Schemes,
    pub(super) fence: Fence,
    pub(super) marshal: Marshal,
    pub(super) ballot: Ballot<E, P>,
    pub(super) final_votes: mpsc::Sender<FinalVotes>,
    pub(super) witness: Witness,
    pub(super) blocker: B,
    pub(super) pages: CacheRef,
    pub(super) partition: String,
    pub(super) timeouts: Timeouts,
}

/// The three channels of the voting engines, each divided by epoch.
struct Divided<S: Sender> {
    votes: MuxHandle<S>,
    certificates: MuxHandle<S>,
    resolver: MuxHandle<S>,
}

impl<E: Runtime, B, P: Payloads> Epochs<E, B, P>
where
    B: Blocker<PublicKey = PublicKey>,
{
    /// Runs the engine of each epoch in turn; ends when one of them does, or with an error of the chain.
    pub(super) async fn run<S, R>(
        mut self,
        (votes, certificates, resolver): ((S, R), (S, R), (S, R)),
    ) -> Result<(), chain::Error>
    where
        S: Sender<PublicKey = PublicKey>,
        R: Receiver<PublicKey = PublicKey>,
    {
        let builder = Muxer::builder(self.context.child("votes_by_epoch"), votes.0, votes.1);
        let (muxer, votes, mut of_other_epochs) = builder.with_backup().build();
        muxer.start();
        let (muxer, certificates) = Muxer::new(
            self.context.child("certificates_by_epoch"),
            certificates.0,
            certificates.1,
        );
        muxer.start();
        let (muxer, resolver) = Muxer::new(self.context.child("resolver_by_epoch"), resolver.0, resolver.1);
        muxer.start();
        let mut channels = Divided {
            votes,
            certificates,
            resolver,
        };
        let mut heads = self.chain.watch();
        let mut epoch = self.epoch();
        let mut follows = self.fence.is_shut();
        let mut running = self.vote(epoch, &mut channels).await?;
        loop {
            let fence = self.fence.clone();
            let opened = async move {
                if follows {
                    fence.opened().await;
                } else {
                    pending().await
                }
            };
            select! {
                // An engine never ends by itself but when it cannot go on.
                _ = &mut running => return Ok(()),
                // The engine does not try again what it could not sign: who has followed begins anew, and votes where the
                // others are.
                () = opened => {
                    follows = false;
                    end(running).await;
                    // Its parts end each at their next turn; then nothing of it has the journal open.
                    self.context.sleep(ENDED_AFTER).await;
                    running = self.vote(epoch, &mut channels).await?;
                },
                changed = heads.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let next = self.epoch();
                    if next > epoch {
                        end(running).await;
                        let ended = epoch;
                        (epoch, follows) = (next, self.fence.is_shut());
                        running = self.vote(epoch, &mut channels).await?;
                        votes::forget(&*self.context, &self.partition, (ended, epoch)).await;
                    }
                },
                message = of_other_epochs.recv() => {
                    let Some((theirs, (from, _))) = message else { return Ok(()) };
                    // Somebody votes in a later epoch: it has the votes that close ours.
                    if theirs > epoch {
                        let last = Height::new(self.policy.last_of(epoch).0);
                        self.marshal.hint_finalized(last, NonEmptyVec::new(from));
                    }
                },
            }
        }
    }

    fn epoch(&self) -> u64 {
        self.chain.state().seats().epoch()
    }

    /// Starts the engine of an epoch on the last block of the one before.
    async fn vote<S>(&mut self, epoch: u64, channels: &mut Divided<S>) -> Result<Handle<()>, chain::Error>
    where
        S: Sender<PublicKey = PublicKey>,
    {
        let last_before = epoch
            .checked_sub(1)
            .map_or(block::Height(0), |before| self.policy.last_of(before));
        let Some(root) = self.chain.block_now(last_before)? else {
            return Err(chain::Error::Damaged(format!("block {last_before} is missing")));
        };
        let end = &root.block.header;
        self.fence.pass(Round::new(Epoch::new(end.epoch), View::new(end.view)));
        let scheme = self.schemes.at(Epoch::new(epoch));
        let scheme = scheme.expect("the committee of the state's own epoch is decided");
        tracing::info!(epoch, from = %last_before.next(), "an epoch begins");
        let simplex = simplex::Config {
            scheme: (*scheme).clone(),
            elector: RoundRobin::<Sha256>::default(),
            blocker: self.blocker.clone(),
            automaton: self.ballot.clone(),
            relay: self.ballot.clone(),
            reporter: Reporters::from((
                self.ballot.clone(),
                Reporters::from((Votes(self.final_votes.clone()), self.witness.clone())),
            )),
            track_historical_votes: false,
            strategy: Sequential,
            partition: votes::partition(&self.partition, epoch),
            mailbox_size: NZUsize!(config::MAILBOX_MAX),
            epoch: Epoch::new(epoch),
            floor: Floor::Genesis(engine_digest(&root.digest)),
            replay_buffer: NZUsize!(config::REPLAY_BYTES_MAX),
            write_buffer: NZUsize!(config::WRITE_BYTES_MAX),
            page_cache: self.pages.clone(),
            leader_timeout: self.timeouts.leader,
            certification_timeout: self.timeouts.certification,
            timeout_retry: self.timeouts.certification,
            view_retention: ViewDelta::new(config::VIEWS_KEPT),
            skip: config::skip(self.timeouts.absence),
            fetch_timeout: NZDuration!(config::FETCH_TIMEOUT),
            fetch_retry_delay: config::FETCH_PAUSE,
            forward: ForwardPolicy::SilentVoters,
        };
        let context = self.context.child("simplex").with_attribute("epoch", epoch);
        let votes = registered(&*self.context, &mut channels.votes, epoch).await;
        let certificates = registered(&*self.context, &mut channels.certificates, epoch).await;
        let resolver = registered(&*self.context, &mut channels.resolver, epoch).await;
        Ok(simplex::Engine::new(context, simplex).start(votes, certificates, resolver))
    }
}

/// Ends an engine; its parts end each at their next turn.
async fn end(running: Handle<()>) {
    running.abort();
    let _ = running.await;
}

/// The part of a channel that belongs to an epoch, as soon as an engine before has let go of it.
///
/// # Panics
/// If it does not within seconds: the node cannot vote then, and is better started again.
async fn registered<S: Sender>(
    clock: &impl Clock,
    channel: &mut MuxHandle<S>,
    epoch: u64,
) -> (SubSender<S>, SubReceiver<S::PublicKey>) {
    for _ in 1..REGISTER_TRIES {
        match channel.register(epoch).await {
            Ok(ends) => return ends,
            Err(_) => clock.sleep(ENDED_AFTER).await,
        }
    }
    let ends = channel.register(epoch).await;
    ends.expect("an engine lets go of its channels when it has ended")
}
