//! A validator that votes for nothing but its own proposals, and those are two at once, or break a rule.

use std::{
    collections::{BTreeMap, VecDeque},
    time::UNIX_EPOCH,
};

use commonware_codec::{Decode as _, DecodeExt as _, Encode as _};
use commonware_consensus::{
    CertifiableBlock as _,
    simplex::{
        elector::{Config as _, Elector as _, RoundRobin, RoundRobinElector},
        types::{Certificate, Notarize, Proposal as Proposed, Vote},
    },
    types::{Epoch, Round, View},
};
use commonware_cryptography::{
    Digestible as _, Sha256,
    certificate::{Scheme as _, Verifier as _},
    ed25519::PublicKey,
};
use commonware_macros::select;
use commonware_p2p::{Receiver as _, Recipients, Sender as _};
use commonware_runtime::Clock;
use commonware_utils::ordered::Quorum as _;
use fog_node::consensus::{
    codec::{EngineBlock, EngineDigest, engine_key},
    fence::Fence,
    scheme::Scheme,
};
use ledger::{
    block::{Block, Header, VERSION},
    policy::ValidityPolicy,
    proof::ValidatorSet,
    transaction::SignedTransaction,
};
use record::{canonical::Digest, ids::NetworkId, signature::SigningKey};

use crate::{
    clinic::Clinic,
    wire::{Ear, Mouth, in_first_epoch, of_first_epoch},
};

/// Proposals of others that it remembers, to build on them.
const REMEMBERED_MAX: usize = 64;

/// What it proposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proposal {
    /// Two good blocks in one round, each to some of the others.
    Equivocate,
    /// A block whose nonce does not meet policy P.
    Unmined,
    /// A block whose root is not that of its transactions.
    WrongRoot,
    /// A block that skips a height.
    WrongHeight,
    /// A block that is not later than its parent.
    Early,
    /// A block in another validator's name.
    OtherLeader,
    /// A block of another network.
    OtherNetwork,
    /// A block with a commitment that its author did not sign.
    ForgedSignature,
    /// A block that orders again what its parent, or an earlier block, ordered.
    Twice,
    /// A good block with a commitment to a payload that nobody has.
    AbsentPayload,
}

/// What it knows.
pub(super) struct Leader {
    key: SigningKey,
    scheme: Scheme,
    policy: ValidityPolicy,
    others: Vec<PublicKey>,
    other_leader: record::signature::PublicKey,
    other_network: NetworkId,
    forged: SignedTransaction,
    absent: SignedTransaction,
    /// Blocks it has heard of, newest last.
    blocks: BTreeMap<EngineDigest, Block>,
    order: VecDeque<EngineDigest>,
    /// What the others build on: the newest block that two thirds voted for, and its view.
    tip: (View, EngineDigest),
    /// The last view it led.
    led: View,
}

impl Leader {
    pub(super) fn new(clinic: &Clinic, validator: usize, peers: Vec<PublicKey>) -> Self {
        let genesis = EngineBlock::new(Block::genesis(&clinic.genesis));
        let tip = (View::zero(), genesis.digest());
        let key = clinic.validators[validator].clone();
        let mut other = clinic.genesis.clone();
        other.name.push('!');
        Self {
            scheme: Scheme::signer(&ValidatorSet::of(&clinic.genesis), &key, Fence::open()),
            policy: clinic.genesis.policy.clone(),
            others: peers,
            other_leader: clinic.validators[(validator + 1) % clinic.validators.len()].public(),
            other_network: other.network(),
            forged: clinic.forged(),
            absent: clinic.bundle(u64::MAX).0,
            key,
            blocks: BTreeMap::from([(genesis.digest(), genesis.block().clone())]),
            order: VecDeque::new(),
            tip,
            led: View::zero(),
        }
        .without_me(validator)
    }

    fn without_me(mut self, validator: usize) -> Self {
        self.others.remove(validator);
        self
    }

    /// Lies whenever it is its turn, for ever.
    pub(super) async fn lead(mut self, clock: impl Clock, lie: Proposal, ends: [(Mouth, Ear); 7]) {
        let [votes, certificates, _resolver, _backfill, proposals, _mempool, _recall] = ends;
        let (mut votes, _) = votes;
        let (_, mut certificates) = certificates;
        let (mut proposals, mut heard) = proposals;
        loop {
            select! {
                certificate = certificates.recv() => {
                    let Ok((_, bytes)) = certificate else { return };
                    let Some(bytes) = in_first_epoch(bytes) else { continue };
                    let limits = self.scheme.certificate_codec_config();
                    let Ok(certificate) = Certificate::<Scheme, EngineDigest>::decode_cfg(bytes, &limits) else { continue };
                    for (block, to) in self.turn(&certificate, lie, &clock) {
                        let vote = self.vote(&block);
                        proposals.send(Recipients::Some(to.clone()), block.encode(), true);
                        votes.send(Recipients::Some(to), of_first_epoch(vote.encode()), true);
                    }
                },
                proposal = heard.recv() => {
                    let Ok((_, bytes)) = proposal else { return };
                    if let Ok(block) = EngineBlock::decode(bytes) {
                        self.remember(&block);
                    }
                },
            }
        }
    }

    fn remember(&mut self, block: &EngineBlock) {
        if self.blocks.insert(block.digest(), block.block().clone()).is_none() {
            self.order.push_back(block.digest());
        }
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.blocks.remove(&oldest);
        }
    }

    /// The blocks to propose, and to whom, if a certificate makes it the leader.
    fn turn(
        &mut self,
        certificate: &Certificate<Scheme, EngineDigest>,
        lie: Proposal,
        clock: &impl Clock,
    ) -> Vec<(EngineBlock, Vec<PublicKey>)> {
        let (view, voted) = match certificate {
            Certificate::Notarization(n) => (n.proposal.round.view(), Some(n.proposal.payload)),
            Certificate::Finalization(f) => (f.proposal.round.view(), Some(f.proposal.payload)),
            Certificate::Nullification(n) => (n.round.view(), None),
        };
        if let Some(payload) = voted.filter(|_| view > self.tip.0) {
            self.tip = (view, payload);
        }
        let round = Round::new(Epoch::zero(), view.next());
        let elector: RoundRobinElector<Scheme> = RoundRobin::<Sha256>::default().build(self.scheme.participants());
        let mine = self.scheme.participants().index(&engine_key(&self.key.public()));
        if round.view() <= self.led || Some(elector.elect(round, ())) != mine {
            return Vec::new();
        }
        let Some(parent) = self.blocks.get(&self.tip.1) else {
            return Vec::new();
        };
        self.led = round.view();
        let now = clock.current().duration_since(UNIX_EPOCH).unwrap_or_default();
        let header = Header {
            version: VERSION,
            network: parent.header.network,
            epoch: 0,
            view: round.view().get(),
            leader: self.key.public(),
            parent_view: self.tip.0.get(),
            height: parent.header.height.next(),
            parent: parent.header.digest(),
            timestamp_ms: (now.as_millis() as u64).max(parent.header.timestamp_ms + 1),
            transactions_root: Digest::ZERO,
            policy: parent.header.policy,
            next_validators: parent.header.next_validators,
            nonce: 0,
        };
        self.lies(lie, header, parent)
    }

    fn lies(&self, lie: Proposal, mut header: Header, parent: &Block) -> Vec<(EngineBlock, Vec<PublicKey>)> {
        let mut transactions = Vec::new();
        match lie {
            Proposal::Equivocate => {
                let (some, rest) = self.others.split_at(1);
                let first = self.mined(header.clone(), transactions.clone());
                header.timestamp_ms += 1;
                let second = self.mined(header, transactions);
                return vec![(first, some.to_vec()), (second, rest.to_vec())];
            }
            Proposal::Unmined | Proposal::WrongRoot => {}
            Proposal::WrongHeight => header.height = header.height.next(),
            Proposal::Early => header.timestamp_ms = parent.header.timestamp_ms,
            Proposal::OtherLeader => header.leader = self.other_leader,
            Proposal::OtherNetwork => header.network = self.other_network,
            Proposal::ForgedSignature => transactions.push(self.forged.clone()),
            Proposal::AbsentPayload => transactions.push(self.absent.clone()),
            Proposal::Twice => {
                let ordered = self
                    .blocks
                    .values()
                    .filter(|block| block.header.height <= parent.header.height);
                let ordered = ordered.max_by_key(|block| (!block.transactions.is_empty(), block.header.height));
                let again = ordered.and_then(|block| block.transactions.first().cloned());
                let Some(again) = again else { return Vec::new() };
                transactions.push(again);
            }
        }
        let mut block = self.mined(header, transactions).block().clone();
        match lie {
            Proposal::Unmined => {
                let enough = u32::from(self.policy.leading_zero_bits);
                while block.header.digest().leading_zero_bits() >= enough {
                    block.header.nonce += 1;
                }
            }
            Proposal::WrongRoot => block.transactions.push(self.absent.clone()),
            _ => {}
        }
        vec![(EngineBlock::new(block), self.others.clone())]
    }

    fn mined(&self, header: Header, transactions: Vec<SignedTransaction>) -> EngineBlock {
        let mut block = Block { header, transactions };
        block.header.transactions_root = block.transactions_root();
        block.header = self.policy.mine(block.header).0;
        EngineBlock::new(block)
    }

    /// The liar's own vote, without which nobody looks at a proposal. It names the round it leads, whatever the block says.
    fn vote(&self, block: &EngineBlock) -> Vote<Scheme, EngineDigest> {
        let round = block.context().round;
        let proposed = Proposed::new(round, self.tip.0, block.digest());
        Vote::Notarize(Notarize::sign(&self.scheme, proposed).expect("a validator signs"))
    }
}
