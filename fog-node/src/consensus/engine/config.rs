//! Sizes and limits of the engine's parts.

use std::time::Duration;

use commonware_broadcast::buffered;
use commonware_consensus::{
    marshal::{self, Start, resolver::p2p as backfill},
    simplex::{SkipBudget, SkipPolicy},
    types::{FixedEpocher, ViewDelta},
};
use commonware_cryptography::{Digested, ed25519::PublicKey};
use commonware_p2p::{Blocker, Provider};
use commonware_parallel::Sequential;
use commonware_runtime::buffer::paged::{CacheRef, page_size};
use commonware_storage::archive::immutable;
use commonware_utils::{NZDuration, NZU64, NZUsize};

use super::Base;
use crate::consensus::{
    codec::{EngineBlock, EngineDigest},
    scheme::Scheme,
    schemes::Schemes,
};

/// Capacity of the engine's mailboxes, in messages.
pub(in crate::consensus) const MAILBOX_MAX: usize = 1_024;
/// Blocks that are delivered and not yet acknowledged, at most.
pub(super) const UNACKNOWLEDGED_MAX: usize = 16;
/// Missing blocks that are fetched at the same time when this node has fallen behind.
const REPAIRS_MAX: usize = 32;
/// Proposals kept per peer until they are final.
const PROPOSALS_MAX: usize = 16;
/// Views that stay at hand behind the last final one.
pub(in crate::consensus) const VIEWS_KEPT: u64 = 64;
/// Memory for pages of the engine's stores: 4 KiB each.
const PAGES_MAX: usize = 4_096;
/// How long a peer may take to answer a request.
pub(in crate::consensus) const FETCH_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause before an unanswered request is tried again.
pub(in crate::consensus) const FETCH_PAUSE: Duration = Duration::from_millis(100);
/// Bytes read ahead when a store is opened.
pub(in crate::consensus) const REPLAY_BYTES_MAX: usize = 1 << 20;
/// Bytes of values collected before they are written.
pub(in crate::consensus) const WRITE_BYTES_MAX: usize = 1 << 20;
/// Bytes of keys collected before they are written.
const KEY_WRITE_BYTES_MAX: usize = 1 << 16;

/// The page cache that the engine's stores share.
pub(super) fn pages() -> CacheRef {
    CacheRef::new(page_size(4_096), NZUsize!(PAGES_MAX))
}

type MarshalConfig = marshal::Config<Schemes, FixedEpocher, Sequential, EngineBlock, Digested<EngineBlock>>;

pub(super) fn marshal(base: &Base, start: Start<Scheme, EngineDigest, Digested<EngineBlock>>) -> MarshalConfig {
    marshal::Config {
        provider: base.schemes.clone(),
        epocher: base.epocher.clone(),
        start,
        partition_prefix: base.partition.clone(),
        mailbox_size: NZUsize!(MAILBOX_MAX),
        view_retention: ViewDelta::new(VIEWS_KEPT),
        prunable_items_per_section: NZU64!(64),
        page_cache: base.pages.clone(),
        replay_buffer: NZUsize!(REPLAY_BYTES_MAX),
        key_write_buffer: NZUsize!(KEY_WRITE_BYTES_MAX),
        value_write_buffer: NZUsize!(WRITE_BYTES_MAX),
        block_codec_config: (),
        max_repair: NZUsize!(REPAIRS_MAX),
        max_pending_acks: NZUsize!(UNACKNOWLEDGED_MAX),
        strategy: Sequential,
    }
}

pub(super) fn backfill<B, M>(base: &Base, blocker: B, members: M) -> backfill::Config<PublicKey, M, B>
where
    B: Blocker<PublicKey = PublicKey>,
    M: Provider<PublicKey = PublicKey>,
{
    backfill::Config {
        public_key: base.me.clone(),
        peer_provider: members,
        blocker,
        mailbox_size: NZUsize!(MAILBOX_MAX),
        fetch_timeout: NZDuration!(FETCH_TIMEOUT),
        fetch_retry_delay: FETCH_PAUSE,
        priority_requests: false,
        priority_responses: false,
    }
}

pub(super) fn proposals<M>(base: &Base, members: M) -> buffered::Config<PublicKey, (), M, Sequential>
where
    M: Provider<PublicKey = PublicKey>,
{
    buffered::Config {
        public_key: base.me.clone(),
        mailbox_size: NZUsize!(MAILBOX_MAX),
        deque_size: PROPOSALS_MAX,
        priority: false,
        codec_config: (),
        peer_provider: members,
        strategy: Sequential,
    }
}

/// A leader that stays silent for long is skipped without waiting for it again.
pub(in crate::consensus) const fn skip(absence: Duration) -> SkipPolicy {
    SkipPolicy::Enabled {
        timeout: absence,
        budget: SkipBudget::Participants,
    }
}

/// Sizes that were measured with the engine: small tables that grow, write buffers of up to a megabyte.
pub(super) fn archive<C>(base: &Base, name: &str, codec_config: C) -> immutable::Config<C> {
    let partition = |part: &str| format!("{}-{name}-{part}", base.partition);
    immutable::Config {
        metadata_partition: partition("metadata"),
        freezer_table_partition: partition("table"),
        freezer_table_initial_size: 16_384,
        freezer_table_resize_frequency: 4,
        freezer_table_resize_chunk_size: 16_384,
        freezer_key_partition: partition("key"),
        freezer_key_page_cache: base.pages.clone(),
        freezer_value_partition: partition("value"),
        freezer_value_target_size: 1 << 28,
        freezer_value_compression: None,
        ordinal_partition: partition("ordinal"),
        items_per_section: NZU64!(65_536),
        codec_config,
        replay_buffer: NZUsize!(REPLAY_BYTES_MAX),
        freezer_key_write_buffer: NZUsize!(KEY_WRITE_BYTES_MAX),
        freezer_value_write_buffer: NZUsize!(WRITE_BYTES_MAX),
        ordinal_write_buffer: NZUsize!(KEY_WRITE_BYTES_MAX),
    }
}
