//! The engine's vote journal, looked at before the engine opens it: what this node remembers of its own votes.

use commonware_consensus::simplex::types::{Artifact, Certificate};
use commonware_cryptography::certificate::Verifier as _;
use commonware_runtime::{ReadOptions, buffer::paged::CacheRef};
use commonware_storage::journal::{
    Error,
    segmented::variable::{self, Journal as Records},
};
use commonware_utils::NZUsize;

use super::{
    codec::EngineDigest,
    engine::{Runtime, config},
    fence::{Cast, Journal},
    scheme::Scheme,
};

/// The name of the journal of an epoch's votes.
pub(super) fn partition(prefix: &str, epoch: u64) -> String {
    format!("{prefix}-votes-{epoch}")
}

/// What the journals of an epoch and the one before hold.
pub(super) struct Memory {
    /// This node's own last vote.
    pub(super) own: Journal,
    /// The quorums of others that were seen, the oldest first.
    pub(super) quorums: Vec<Certificate<Scheme, EngineDigest>>,
}

/// Reads the journals of an epoch and the one before. One that does not hold what was written is removed, out of the engine's
/// way, and the older one before it, so that no later start takes that for the whole: what they held is asked of the others.
///
/// # Errors
/// The disk fails: that says nothing about the journals, which stay.
pub(super) async fn read_back<E: Runtime>(
    context: &E,
    prefix: &str,
    pages: &CacheRef,
    epoch: u64,
) -> Result<Memory, Error> {
    let (mut own, mut quorums) = (None, Vec::new());
    for epoch in [epoch.checked_sub(1), Some(epoch)].into_iter().flatten() {
        match read(context, partition(prefix, epoch), pages, &mut quorums).await {
            Ok(voted) => own = own.max(voted),
            Err(error) if is_damage(&error) => {
                metrics::counter!("fog_consensus_journals_lost_total").increment(1);
                tracing::error!(%error, epoch, "the vote journal is damaged; this node votes again when the others have told it what it voted");
                for epoch in [epoch.checked_sub(1), Some(epoch)].into_iter().flatten() {
                    remove(context, prefix, epoch).await?;
                }
                own = None;
            }
            Err(error) => return Err(error),
        }
    }
    let own = own.map_or(Journal::Blank, Journal::Remembers);
    Ok(Memory { own, quorums })
}

async fn remove<E: Runtime>(context: &E, prefix: &str, epoch: u64) -> Result<(), commonware_runtime::Error> {
    match context.remove(&partition(prefix, epoch), None).await {
        Err(error) if !matches!(error, commonware_runtime::Error::PartitionMissing(_)) => Err(error),
        _ => Ok(()),
    }
}

/// Whether the file holds something else than what was written; a disk that fails is none.
const fn is_damage(error: &Error) -> bool {
    use commonware_runtime::Error as Disk;
    match error {
        Error::Runtime(disk) => matches!(
            disk,
            Disk::PartitionCorrupt(_)
                | Disk::BlobCorrupt(..)
                | Disk::BlobLayoutMismatch { .. }
                | Disk::BlobVersionMismatch { .. }
                | Disk::BlobInsufficientLength
                | Disk::InvalidChecksum
        ),
        _ => true,
    }
}

async fn read<E: Runtime>(
    context: &E,
    partition: String,
    pages: &CacheRef,
    quorums: &mut Vec<Certificate<Scheme, EngineDigest>>,
) -> Result<Option<Cast>, Error> {
    let records = variable::Config {
        partition,
        compression: None,
        codec_config: Scheme::certificate_codec_config_unbounded(),
        page_cache: pages.clone(),
        write_buffer: NZUsize!(config::WRITE_BYTES_MAX),
    };
    let records = Records::<_, Artifact<Scheme, EngineDigest>>::init(context.child("remembered"), records).await?;
    let mut replay = records
        .replay(0, 0, NZUsize!(config::REPLAY_BYTES_MAX), ReadOptions::DONT_CACHE)
        .await?;
    let mut last = None;
    while let Some(record) = replay.next().await {
        let (_, _, _, artifact) = record?;
        let (round, is_last) = match artifact {
            Artifact::Notarize(vote) => (vote.round(), false),
            Artifact::Nullify(vote) => (vote.round(), true),
            Artifact::Finalize(vote) => (vote.round(), true),
            Artifact::Notarization(quorum) => {
                quorums.push(Certificate::Notarization(quorum));
                continue;
            }
            Artifact::Nullification(quorum) => {
                quorums.push(Certificate::Nullification(quorum));
                continue;
            }
            Artifact::Finalization(quorum) => {
                quorums.push(Certificate::Finalization(quorum));
                continue;
            }
            Artifact::Certification(..) => continue,
        };
        last = last.max(Some(Cast { round, is_last }));
    }
    drop(replay.finish()?);
    Ok(last)
}

/// Removes the journals that no start looks at any more, when the epoch `next` has begun after `ended`.
pub(super) async fn forget<E: Runtime>(context: &E, prefix: &str, (ended, next): (u64, u64)) {
    for old in ended.saturating_sub(1)..=ended.min(next.saturating_sub(2)) {
        if let Err(error) = remove(context, prefix, old).await {
            tracing::warn!(%error, epoch = old, "the vote journal of an old epoch cannot be removed");
        }
    }
}
