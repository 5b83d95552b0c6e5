//! Wires simplex, marshal, broadcast and their stores: generic over runtime and network, so that the simulation runs the
//! same function as production.
//!
//! The voting itself is in `epochs`, one engine an epoch.

pub(super) mod config;

use std::{fmt, num::NonZeroU64, sync::Arc, time::Duration};

use commonware_broadcast::buffered;
use commonware_consensus::{
    marshal::{
        self, Start, core::Actor as MarshalActor, resolver::p2p as backfill, standard::Standard, store::Blocks as _,
    },
    simplex,
    types::{Epoch, FixedEpocher},
};
use commonware_cryptography::{Digested, Digestible as _, certificate::Verifier as _, ed25519::PublicKey};
use commonware_p2p::{Blocker, Provider, Receiver, Sender, utils::mux};
use commonware_runtime::{Clock, Handle, Metrics, Network, Spawner, Storage, buffer::paged::CacheRef};
use commonware_storage::archive::immutable;
use ledger::{
    block::{Block, Height},
    genesis::{Genesis, VALIDATORS_MAX},
};
use rand_core::CryptoRng;
use record::signature::SigningKey;
use tokio::sync::{mpsc, oneshot};

use super::{
    Payloads,
    application::{Application, Patience, Rooms},
    ballot::Ballot,
    codec::{EngineBlock, EngineDigest, engine_key},
    delivery::{self, Applier, Blocks, Delivery, FinalVotes, Marshal},
    epochs::Epochs,
    fence::Fence,
    finalization::in_engine_form,
    gossip,
    recall::{self, Asker, Witness},
    scheme::Scheme,
    schemes::Schemes,
    stores::Backed,
    votes::{self, Memory},
};
use crate::chain::{self, Chain};

/// The largest committee that messages are sized for; all nodes must agree on it.
const COMMITTEE_MAX: u32 = VALIDATORS_MAX as u32; // 64

/// When the engine gives up on a leader. Each of these is longer than the one before.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// A leader that has proposed nothing for this long is skipped.
    pub leader: Duration,
    /// A view without a quorum after this long is skipped.
    pub certification: Duration,
    /// A leader that was silent for this long is skipped at once.
    pub absence: Duration,
}

/// What one validator's engine is made of.
#[derive(Debug)]
pub struct Settings<P> {
    /// The network.
    pub genesis: Genesis,
    /// The key it votes with.
    pub key: SigningKey,
    /// The rooms it works with.
    pub rooms: Rooms<P>,
    /// How long it waits for what may still come.
    pub patience: Patience,
    /// How long it waits for others.
    pub timeouts: Timeouts,
    /// What it may sign; shut, if it is to find that out.
    pub fence: Fence,
    /// Prefix of its stores' names; simulated validators share one disk.
    pub partition: String,
}

/// The seven channels between validators.
#[derive(Debug)]
pub struct Channels<S, R> {
    /// Single votes.
    pub votes: (S, R),
    /// Quorums of votes.
    pub certificates: (S, R),
    /// Requests for missing quorums.
    pub resolver: (S, R),
    /// Requests for missing blocks.
    pub backfill: (S, R),
    /// Proposed blocks.
    pub proposals: (S, R),
    /// Waiting transactions.
    pub mempool: (S, R),
    /// What each has seen of the others' votes.
    pub recall: (S, R),
}

/// The runtime the engine needs: tokio in production, the deterministic one in simulations.
pub trait Runtime: Spawner + Metrics + CryptoRng + Clock + Storage + Network {}

impl<E: Spawner + Metrics + CryptoRng + Clock + Storage + Network> Runtime for E {}

/// The engine cannot open its stores.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// One of its own.
    #[error("the engine's stores cannot be opened: {0}")]
    Archive(#[from] commonware_storage::archive::Error),
    /// The journal of its votes.
    #[error("the vote journal cannot be read: {0}")]
    Votes(#[from] commonware_storage::journal::Error),
    /// The chain behind them.
    #[error(transparent)]
    Chain(#[from] chain::Error),
}

/// A running engine. It runs as long as none of its actors ends.
pub struct Running {
    actors: Vec<(&'static str, Handle<()>)>,
    failure: oneshot::Receiver<delivery::Error>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.actors.iter().map(|(name, _)| name))
            .finish()
    }
}

impl Running {
    /// Watches one more actor.
    pub fn watch(&mut self, name: &'static str, handle: Handle<()>) {
        self.actors.push((name, handle));
    }

    /// Resolves with the reason when any actor has ended; none may.
    pub async fn stopped(self) -> String {
        let ends = self
            .actors
            .into_iter()
            .map(|(name, handle)| Box::pin(async move { (name, handle.await) }));
        let ((name, end), ..) = futures::future::select_all(ends).await;
        let mut failure = self.failure;
        match (failure.try_recv(), end) {
            (Ok(error), _) => error.to_string(),
            (Err(_), Ok(())) => format!("the engine's {name} ended"),
            (Err(_), Err(error)) => format!("the engine's {name} ended: {error}"),
        }
    }
}

/// The largest message that any part sends.
#[must_use]
pub fn message_bytes_max() -> u32 {
    commonware_p2p::max_message_size(&[
        mux::prefixed(simplex::max_payload_size::<Scheme, EngineDigest>(COMMITTEE_MAX)),
        marshal::max_payload_size::<Standard<EngineBlock>, Scheme>(COMMITTEE_MAX, &()),
        gossip::MESSAGE_BYTES_MAX,
        recall::MESSAGE_BYTES_MAX as usize,
    ])
}

/// What several parts are built from.
struct Base {
    me: PublicKey,
    chain: Chain,
    schemes: Schemes,
    genesis: Digested<EngineBlock>,
    epocher: FixedEpocher,
    pages: CacheRef,
    partition: String,
}

impl Base {
    fn of<P>(settings: &Settings<P>) -> Self {
        let genesis = EngineBlock::new(Block::genesis(&settings.genesis));
        let digest = genesis.digest();
        let (chain, fence) = (settings.rooms.chain.clone(), settings.fence.clone());
        let blocks = NonZeroU64::new(settings.genesis.policy.epoch_blocks);
        Self {
            me: engine_key(&settings.key.public()),
            schemes: Schemes::new(chain.clone(), settings.key.clone(), fence),
            chain,
            genesis: Digested::precomputed(genesis, digest),
            epocher: FixedEpocher::new(blocks.expect("a checked policy has epochs of some blocks")),
            pages: config::pages(),
            partition: settings.partition.clone(),
        }
    }

    /// Where the engine begins that has stored nothing yet: at the newest block that the chain has votes on.
    fn start(&self) -> Result<Start<Scheme, EngineDigest, Digested<EngineBlock>>, chain::Error> {
        let mut height = self.chain.head().height;
        while height > Height(0) {
            if let Some(block) = self.chain.block_now(height)?
                && let Some(votes) = &block.finalization
                && let Some(scheme) = self.schemes.at(Epoch::new(block.block.header.epoch))
                && let Some(finalization) = in_engine_form(&scheme, &block.block.header, votes)
            {
                return Ok(Start::Floor(finalization));
            }
            height = Height(height.0 - 1);
        }
        Ok(Start::Genesis(self.genesis.clone()))
    }
}

/// Starts every actor of one validator. `blocker` shuts out a peer that sends what no honest one would; `members` says
/// who is connected.
///
/// # Errors
/// [`StoreError`].
pub async fn start<E, S, R, B, M, P>(
    context: E,
    settings: Settings<P>,
    channels: Channels<S, R>,
    blocker: B,
    members: M,
) -> Result<Running, StoreError>
where
    E: Runtime,
    S: Sender<PublicKey = PublicKey>,
    R: Receiver<PublicKey = PublicKey>,
    B: Blocker<PublicKey = PublicKey>,
    M: Provider<PublicKey = PublicKey>,
    P: Payloads,
{
    let base = Base::of(&settings);
    let resolver = config::backfill(&base, blocker.clone(), members.clone());
    let resolver = backfill::init(context.child("backfill"), resolver, channels.backfill);
    let (buffer, proposals) = buffered::Engine::new(context.child("broadcast"), config::proposals(&base, members));
    let broadcast = buffer.start(channels.proposals);

    let certificates = config::archive(&base, "certificates", Scheme::certificate_codec_config_unbounded());
    let certificates = immutable::Archive::init(context.child("certificates"), certificates).await?;
    let blocks = immutable::Archive::init(context.child("blocks"), config::archive(&base, "blocks", ())).await?;
    let blocks = Backed::new(blocks, base.chain.clone());
    let start = match blocks.last_index() {
        Some(_) => Start::Genesis(base.genesis.clone()),
        None => base.start()?,
    };
    let marshal = MarshalActor::init(
        context.child("marshal"),
        certificates,
        blocks,
        config::marshal(&base, start),
    );
    let (actor, mailbox, floor) = marshal.await;
    let acknowledged = Height(floor.processed().map_or(0, |processed| processed.height().get()));
    let (delivered, deliveries) = mpsc::channel(config::UNACKNOWLEDGED_MAX);
    let marshal = actor.start(Blocks(delivered), proposals, resolver);

    let (final_votes, votes) = mpsc::channel(delivery::VOTES_MAX);
    let applier = Applier {
        chain: base.chain.clone(),
        mempool: settings.rooms.mempool.clone(),
        schemes: base.schemes.clone(),
        marshal: mailbox.clone(),
    };
    let (delivery, failure) = deliver(&context, applier, acknowledged, (deliveries, votes));
    let [sending, receiving] = gossip(&context, &settings.rooms, channels.mempool);
    let (witness, recalling) = recall(&context, &base, &settings, channels.recall).await?;

    let voting = (channels.votes, channels.certificates, channels.resolver);
    let epochs = vote(
        &context,
        base,
        settings,
        (mailbox, final_votes, witness, blocker),
        voting,
    );
    let actors = vec![
        ("broadcast", broadcast),
        ("marshal", marshal),
        ("delivery", delivery),
        ("gossip sender", sending),
        ("gossip receiver", receiving),
        ("recall", recalling),
        ("voting", epochs),
    ];
    Ok(Running { actors, failure })
}

/// Looks at the vote journal, and starts the end of the recall channel that asks and answers.
async fn recall<E, S, R, P>(
    context: &E,
    base: &Base,
    settings: &Settings<P>,
    channel: (S, R),
) -> Result<(Witness, Handle<()>), StoreError>
where
    E: Runtime,
    S: Sender<PublicKey = PublicKey>,
    R: Receiver<PublicKey = PublicKey>,
{
    let epoch = base.chain.state().seats().epoch();
    // Read before anybody is answered: what the engine noted and the chain lacks is told, too.
    let Memory { own, quorums } = votes::read_back(context, &base.partition, &base.pages, epoch).await?;
    let witness = Witness::new(base.schemes.clone(), &base.chain, quorums);
    let asker = Asker {
        me: base.me.clone(),
        journal: own,
        schemes: base.schemes.clone(),
        chain: base.chain.clone(),
        fence: settings.fence.clone(),
    };
    let seen = witness.clone();
    let task = context
        .child("recall")
        .spawn(move |clock| recall::run(clock, asker, seen, channel));
    Ok((witness, task))
}

/// Starts the writer of the chain. It blocks on the disk with each block: a thread of its own, where there are threads.
fn deliver<E: Runtime>(
    context: &E,
    applier: Applier,
    acknowledged: Height,
    (deliveries, votes): (mpsc::Receiver<Delivery>, mpsc::Receiver<FinalVotes>),
) -> (Handle<()>, oneshot::Receiver<delivery::Error>) {
    let (failed, failure) = oneshot::channel();
    let task = context.child("delivery").dedicated().spawn(move |_| async move {
        if let Err(error) = applier.run(acknowledged, deliveries, votes).await {
            // Nobody waits for the reason only when the node is stopping already.
            let _ = failed.send(error);
        }
    });
    (task, failure)
}

/// Starts the two ends of the mempool's channel.
fn gossip<E, S, R, P>(context: &E, rooms: &Rooms<P>, (sender, receiver): (S, R)) -> [Handle<()>; 2]
where
    E: Runtime,
    S: Sender<PublicKey = PublicKey>,
    R: Receiver<PublicKey = PublicKey>,
    P: Payloads,
{
    let (sending, receiving) = (rooms.clone(), rooms.clone());
    [
        context
            .child("gossip_out")
            .spawn(move |clock| gossip::send(clock, sending, sender)),
        context
            .child("gossip_in")
            .spawn(move |clock| gossip::receive(clock, receiving, receiver)),
    ]
}

/// Starts the voting, with our application as what is asked.
fn vote<E, S, R, B, P>(
    context: &E,
    base: Base,
    settings: Settings<P>,
    (marshal, final_votes, witness, blocker): (Marshal, mpsc::Sender<FinalVotes>, Witness, B),
    channels: ((S, R), (S, R), (S, R)),
) -> Handle<()>
where
    E: Runtime,
    S: Sender<PublicKey = PublicKey>,
    R: Receiver<PublicKey = PublicKey>,
    B: Blocker<PublicKey = PublicKey>,
    P: Payloads,
{
    let (policy, me) = (settings.genesis.policy.clone(), settings.key.public());
    let application = Application::new(settings.genesis, me, settings.rooms, settings.patience);
    let epochs = Epochs {
        context: Arc::new(context.child("epochs")),
        ballot: Ballot::new(context, application, marshal.clone(), base.epocher),
        chain: base.chain,
        policy,
        schemes: base.schemes,
        fence: settings.fence,
        marshal,
        final_votes,
        witness,
        blocker,
        pages: base.pages,
        partition: base.partition,
        timeouts: settings.timeouts,
    };
    context.child("voting").spawn(move |_| async move {
        if let Err(error) = epochs.run(channels).await {
            tracing::error!(%error, "the chain cannot be read where an epoch begins");
        }
    })
}
