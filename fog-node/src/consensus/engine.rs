//! Wires simplex, marshal, broadcast and their stores: generic over runtime and network, so that the simulation runs the
//! same function as production.
//!
//! One engine for one epoch: the founding committee votes.

mod config;

use std::{fmt, num::NonZeroU64, time::Duration};

use commonware_broadcast::buffered;
use commonware_consensus::{
    Reporters,
    marshal::{self, core::Actor as MarshalActor, resolver::p2p as backfill, standard::Standard},
    simplex::{self, Floor, ForwardPolicy, elector::RoundRobin},
    types::{Epoch, FixedEpocher, ViewDelta},
};
use commonware_cryptography::{Digested, Digestible as _, Sha256, certificate::Verifier as _, ed25519::PublicKey};
use commonware_p2p::{Blocker, Provider, Receiver, Sender};
use commonware_parallel::Sequential;
use commonware_runtime::{Clock, Handle, Metrics, Network, Spawner, Storage, buffer::paged::CacheRef};
use commonware_storage::archive::immutable;
use commonware_utils::{NZDuration, NZUsize};
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
    delivery::{self, Applier, Blocks, Delivery, FinalVotes, Marshal, Votes},
    gossip,
    scheme::Scheme,
};

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
    /// Prefix of its stores' names; simulated validators share one disk.
    pub partition: String,
}

/// The six channels between validators.
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
}

/// The runtime the engine needs: tokio in production, the deterministic one in simulations.
pub trait Runtime: Spawner + Metrics + CryptoRng + Clock + Storage + Network {}

impl<E: Spawner + Metrics + CryptoRng + Clock + Storage + Network> Runtime for E {}

/// The engine cannot open its stores.
#[derive(Debug, thiserror::Error)]
#[error("the engine's stores cannot be opened: {0}")]
pub struct StoreError(#[from] commonware_storage::archive::Error);

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
        simplex::max_payload_size::<Scheme, EngineDigest>(COMMITTEE_MAX),
        marshal::max_payload_size::<Standard<EngineBlock>, Scheme>(COMMITTEE_MAX, &()),
        gossip::MESSAGE_BYTES_MAX,
    ])
}

/// What several parts are built from.
struct Base {
    me: PublicKey,
    scheme: Scheme,
    genesis: Digested<EngineBlock>,
    epocher: FixedEpocher,
    pages: CacheRef,
    partition: String,
}

impl Base {
    fn of<P>(settings: &Settings<P>) -> Self {
        let genesis = EngineBlock::new(Block::genesis(&settings.genesis));
        let digest = genesis.digest();
        Self {
            me: engine_key(&settings.key.public()),
            scheme: Scheme::of(&settings.genesis, Some(&settings.key)),
            genesis: Digested::precomputed(genesis, digest),
            epocher: FixedEpocher::new(NonZeroU64::MAX),
            pages: config::pages(),
            partition: settings.partition.clone(),
        }
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
    let marshal = MarshalActor::init(context.child("marshal"), certificates, blocks, config::marshal(&base));
    let (actor, mailbox, floor) = marshal.await;
    let acknowledged = Height(floor.processed().map_or(0, |processed| processed.height().get()));
    let (delivered, deliveries) = mpsc::channel(config::UNACKNOWLEDGED_MAX);
    let marshal = actor.start(Blocks(delivered), proposals, resolver);

    let (vote_sender, votes) = mpsc::channel(delivery::VOTES_MAX);
    let applier = Applier {
        chain: settings.rooms.chain.clone(),
        mempool: settings.rooms.mempool.clone(),
        scheme: base.scheme.clone(),
        marshal: mailbox.clone(),
    };
    let (delivery, failure) = deliver(&context, applier, acknowledged, (deliveries, votes));
    let [sending, receiving] = gossip(&context, &settings.rooms, channels.mempool);

    let voting = (channels.votes, channels.certificates, channels.resolver);
    let simplex = vote(&context, base, settings, (mailbox, vote_sender, blocker), voting);
    let actors = vec![
        ("broadcast", broadcast),
        ("marshal", marshal),
        ("delivery", delivery),
        ("gossip sender", sending),
        ("gossip receiver", receiving),
        ("simplex", simplex),
    ];
    Ok(Running { actors, failure })
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

/// Starts the engine that votes, with our application as what it asks.
fn vote<E, S, R, B, P>(
    context: &E,
    base: Base,
    settings: Settings<P>,
    (marshal, final_votes, blocker): (Marshal, mpsc::Sender<FinalVotes>, B),
    (votes, certificates, resolver): ((S, R), (S, R), (S, R)),
) -> Handle<()>
where
    E: Runtime,
    S: Sender<PublicKey = PublicKey>,
    R: Receiver<PublicKey = PublicKey>,
    B: Blocker<PublicKey = PublicKey>,
    P: Payloads,
{
    let application = Application::new(
        settings.genesis,
        settings.key.public(),
        settings.rooms,
        settings.patience,
    );
    let ballot = Ballot::new(context, application, marshal, base.epocher);
    let simplex = simplex::Config {
        scheme: base.scheme,
        elector: RoundRobin::<Sha256>::default(),
        blocker,
        automaton: ballot.clone(),
        relay: ballot.clone(),
        reporter: Reporters::from((ballot, Votes(final_votes))),
        track_historical_votes: false,
        strategy: Sequential,
        partition: format!("{}-votes", base.partition),
        mailbox_size: NZUsize!(config::MAILBOX_MAX),
        epoch: Epoch::zero(),
        floor: Floor::Genesis(base.genesis.digest()),
        replay_buffer: NZUsize!(config::REPLAY_BYTES_MAX),
        write_buffer: NZUsize!(config::WRITE_BYTES_MAX),
        page_cache: base.pages,
        leader_timeout: settings.timeouts.leader,
        certification_timeout: settings.timeouts.certification,
        timeout_retry: settings.timeouts.certification,
        view_retention: ViewDelta::new(config::VIEWS_KEPT),
        skip: config::skip(settings.timeouts.absence),
        fetch_timeout: NZDuration!(config::FETCH_TIMEOUT),
        fetch_retry_delay: config::FETCH_PAUSE,
        forward: ForwardPolicy::SilentVoters,
    };
    simplex::Engine::new(context.child("simplex"), simplex).start(votes, certificates, resolver)
}
