//! Wires simplex, marshal, broadcast and their stores: generic over runtime and network, so that the simulation runs the
//! same function as production.
//!
//! One engine for one epoch: the founding committee votes; a node outside it follows as an observer.

use std::{fmt, num::NonZeroU64, time::Duration};

use cid::Cid;
use commonware_broadcast::buffered;
use commonware_consensus::{
    Reporters,
    marshal::{
        self, Start,
        core::Actor as MarshalActor,
        resolver::p2p as backfill,
        standard::{Inline, Standard},
    },
    simplex::{self, Floor, ForwardPolicy, SkipBudget, SkipPolicy, elector::RoundRobin, scheme::ed25519::Scheme},
    types::{Epoch, FixedEpocher, ViewDelta},
};
use commonware_cryptography::{
    Digested, Digestible as _, Sha256,
    certificate::{ConstantProvider, Verifier as _},
    ed25519::PublicKey,
};
use commonware_p2p::{Blocker, Provider, Receiver, Sender};
use commonware_parallel::Sequential;
use commonware_runtime::{
    Clock, Handle, Metrics, Network, Spawner, Storage,
    buffer::paged::{CacheRef, page_size},
};
use commonware_storage::archive::immutable;
use commonware_utils::{NZDuration, NZU64, NZUsize};
use ledger::{
    block::{Block, Height},
    genesis::Genesis,
};
use rand_core::CryptoRng;
use record::signature::SigningKey;
use tokio::sync::{mpsc, oneshot};

use super::{
    Payloads,
    application::{Application, Patience, Rooms},
    codec::{EngineBlock, EngineDigest, engine_key},
    delivery::{self, Applier, Blocks, Votes},
    finalization, gossip, retention,
};

/// The largest committee that messages are sized for; all nodes must agree on it.
const COMMITTEE_MAX: u32 = 64;
/// Capacity of the engine's mailboxes, in messages.
const MAILBOX_MAX: usize = 1_024;
/// Blocks that are delivered and not yet acknowledged, at most.
const UNACKNOWLEDGED_MAX: usize = 16;
/// Missing blocks that are fetched at the same time when this node has fallen behind.
const REPAIRS_MAX: usize = 32;
/// Proposals kept per peer until they are final.
const PROPOSALS_MAX: usize = 16;
/// Views that stay at hand behind the last final one.
const VIEWS_KEPT: u64 = 64;
/// Memory for pages of the engine's stores: 4 KiB each.
const PAGES_MAX: usize = 4_096;
/// How long a peer may take to answer a request.
const FETCH_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause before an unanswered request is tried again.
const FETCH_PAUSE: Duration = Duration::from_millis(100);

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
        f.debug_list().entries(self.actors.iter().map(|(name, _)| name)).finish()
    }
}

impl Running {
    /// Watches one more actor.
    pub fn watch(&mut self, name: &'static str, handle: Handle<()>) {
        self.actors.push((name, handle));
    }

    /// Resolves with the reason when any actor has ended; none may.
    pub async fn stopped(self) -> String {
        let ends = self.actors.into_iter().map(|(name, handle)| Box::pin(async move { (name, handle.await) }));
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

/// Starts every actor of one validator.
///
/// # Errors
/// [`StoreError`].
pub async fn start<E, S, R, N, P>(
    context: E,
    settings: Settings<P>,
    channels: Channels<S, R>,
    network: N,
) -> Result<Running, StoreError>
where
    E: Runtime,
    S: Sender<PublicKey = PublicKey>,
    R: Receiver<PublicKey = PublicKey>,
    N: Blocker<PublicKey = PublicKey> + Provider<PublicKey = PublicKey>,
    P: Payloads,
{
    let scheme = finalization::scheme(&settings.genesis, &settings.key);
    let genesis = EngineBlock::new(Block::genesis(&settings.genesis));
    let genesis_digest = genesis.digest();
    let pages = CacheRef::new(page_size(4_096), NZUsize!(PAGES_MAX));
    let epocher = FixedEpocher::new(NonZeroU64::MAX);
    let me = settings.key.public();
    let prefix = &settings.partition;

    let certificates = archive(format!("{prefix}-certificates"), &pages, Scheme::certificate_codec_config_unbounded());
    let certificates = immutable::Archive::init(context.child("certificates"), certificates).await?;
    let blocks = archive(format!("{prefix}-blocks"), &pages, ());
    let blocks = immutable::Archive::init(context.child("blocks"), blocks).await?;
    let start = Start::Genesis(Digested::precomputed(genesis, genesis_digest));
    let marshal = marshal_config(scheme.clone(), epocher.clone(), start, pages.clone());
    let marshal = marshal::Config { partition_prefix: prefix.clone(), ..marshal };
    let (actor, mailbox, floor) = MarshalActor::init(context.child("marshal"), certificates, blocks, marshal).await;
    let acknowledged = Height(floor.processed().map_or(0, |processed| processed.height().get()));

    let resolver = backfill_config(engine_key(&me), network.clone());
    let resolver = backfill::init(context.child("backfill"), resolver, channels.backfill);
    let proposals = buffered_config(engine_key(&me), network.clone());
    let (buffer, buffer_mailbox) = buffered::Engine::new(context.child("broadcast"), proposals);

    let (delivered, deliveries) = mpsc::channel(UNACKNOWLEDGED_MAX);
    let mut actors = vec![
        ("broadcast", buffer.start(channels.proposals)),
        ("marshal", actor.start(Blocks(delivered), buffer_mailbox, resolver)),
    ];
    let (vote_sender, votes) = mpsc::channel(delivery::VOTES_MAX);
    let (retain, retained) = mpsc::channel(retention::WAITING_MAX);
    let applier = Applier {
        chain: settings.rooms.chain.clone(),
        mempool: settings.rooms.mempool.clone(),
        scheme: scheme.clone(),
        marshal: mailbox.clone(),
        retain,
    };
    let (failed, failure) = oneshot::channel();
    // It blocks on the disk with each block: a thread of its own, where the runtime has threads.
    actors.push((
        "delivery",
        context.child("delivery").dedicated().spawn(move |_| async move {
            if let Err(error) = applier.run(acknowledged, deliveries, votes).await {
                // Nobody waits for the reason only when the node is stopping already.
                let _ = failed.send(error);
            }
        }),
    ));
    actors.extend(mempool_actors(&context, &settings.rooms, retained, channels.mempool));

    let application = Application::new(settings.genesis, me, settings.rooms, settings.patience);
    let application = Inline::new(context.child("application"), application, mailbox, epocher);
    let simplex = simplex::Config {
        scheme,
        elector: RoundRobin::<Sha256>::default(),
        blocker: network,
        automaton: application.clone(),
        relay: application.clone(),
        reporter: Reporters::from((application, Votes(vote_sender))),
        track_historical_votes: false,
        strategy: Sequential,
        partition: format!("{}-votes", settings.partition),
        mailbox_size: NZUsize!(MAILBOX_MAX),
        epoch: Epoch::zero(),
        floor: Floor::Genesis(genesis_digest),
        replay_buffer: NZUsize!(1 << 20),
        write_buffer: NZUsize!(1 << 20),
        page_cache: pages,
        leader_timeout: settings.timeouts.leader,
        certification_timeout: settings.timeouts.certification,
        timeout_retry: settings.timeouts.certification,
        view_retention: ViewDelta::new(VIEWS_KEPT),
        skip: SkipPolicy::Enabled { timeout: settings.timeouts.absence, budget: SkipBudget::Participants },
        fetch_timeout: NZDuration!(FETCH_TIMEOUT),
        fetch_retry_delay: FETCH_PAUSE,
        forward: ForwardPolicy::SilentVoters,
    };
    let simplex = simplex::Engine::new(context.child("simplex"), simplex);
    actors.push(("simplex", simplex.start(channels.votes, channels.certificates, channels.resolver)));
    Ok(Running { actors, failure })
}

/// The tasks around the mempool and the vault.
fn mempool_actors<E, S, R, P>(
    context: &E,
    rooms: &Rooms<P>,
    retained: mpsc::Receiver<Cid>,
    (sender, receiver): (S, R),
) -> [(&'static str, Handle<()>); 3]
where
    E: Runtime,
    S: Sender<PublicKey = PublicKey>,
    R: Receiver<PublicKey = PublicKey>,
    P: Payloads,
{
    let (sending, receiving, payloads) = (rooms.clone(), rooms.clone(), rooms.payloads.clone());
    [
        ("gossip sender", context.child("gossip_out").spawn(move |clock| gossip::send(clock, sending, sender))),
        ("gossip receiver", context.child("gossip_in").spawn(move |clock| gossip::receive(clock, receiving, receiver))),
        ("retention", context.child("retention").spawn(move |clock| retention::retain(clock, payloads, retained))),
    ]
}

type MarshalConfig = marshal::Config<
    ConstantProvider<Scheme, Epoch>,
    FixedEpocher,
    Sequential,
    EngineBlock,
    Digested<EngineBlock>,
>;

fn marshal_config(
    scheme: Scheme,
    epocher: FixedEpocher,
    start: Start<Scheme, EngineDigest, Digested<EngineBlock>>,
    page_cache: CacheRef,
) -> MarshalConfig {
    marshal::Config {
        provider: ConstantProvider::new(scheme),
        epocher,
        start,
        partition_prefix: String::new(),
        mailbox_size: NZUsize!(MAILBOX_MAX),
        view_retention: ViewDelta::new(VIEWS_KEPT),
        prunable_items_per_section: NZU64!(64),
        page_cache,
        replay_buffer: NZUsize!(1 << 20),
        key_write_buffer: NZUsize!(1 << 16),
        value_write_buffer: NZUsize!(1 << 20),
        block_codec_config: (),
        max_repair: NZUsize!(REPAIRS_MAX),
        max_pending_acks: NZUsize!(UNACKNOWLEDGED_MAX),
        strategy: Sequential,
    }
}

fn backfill_config<N>(me: PublicKey, network: N) -> backfill::Config<PublicKey, N, N>
where
    N: Blocker<PublicKey = PublicKey> + Provider<PublicKey = PublicKey>,
{
    backfill::Config {
        public_key: me,
        peer_provider: network.clone(),
        blocker: network,
        mailbox_size: NZUsize!(MAILBOX_MAX),
        fetch_timeout: NZDuration!(FETCH_TIMEOUT),
        fetch_retry_delay: FETCH_PAUSE,
        priority_requests: false,
        priority_responses: false,
    }
}

fn buffered_config<N>(me: PublicKey, network: N) -> buffered::Config<PublicKey, (), N, Sequential>
where
    N: Provider<PublicKey = PublicKey>,
{
    buffered::Config {
        public_key: me,
        mailbox_size: NZUsize!(MAILBOX_MAX),
        deque_size: PROPOSALS_MAX,
        priority: false,
        codec_config: (),
        peer_provider: network,
        strategy: Sequential,
    }
}

/// Sizes measured with the engine on one machine: small tables that grow, write buffers of up to a megabyte.
fn archive<C>(prefix: String, page_cache: &CacheRef, codec_config: C) -> immutable::Config<C> {
    let partition = |part: &str| format!("{prefix}-{part}");
    immutable::Config {
        metadata_partition: partition("metadata"),
        freezer_table_partition: partition("table"),
        freezer_table_initial_size: 16_384,
        freezer_table_resize_frequency: 4,
        freezer_table_resize_chunk_size: 16_384,
        freezer_key_partition: partition("key"),
        freezer_key_page_cache: page_cache.clone(),
        freezer_value_partition: partition("value"),
        freezer_value_target_size: 1 << 28,
        freezer_value_compression: None,
        ordinal_partition: partition("ordinal"),
        items_per_section: NZU64!(65_536),
        codec_config,
        replay_buffer: NZUsize!(1 << 20),
        freezer_key_write_buffer: NZUsize!(1 << 16),
        freezer_value_write_buffer: NZUsize!(1 << 20),
        ordinal_write_buffer: NZUsize!(1 << 16),
    }
}
