//! The engine's vote journal, looked at before the engine opens it: what this node remembers of its own votes.

use commonware_consensus::{simplex::types::Artifact, types::Round};
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
    fence::Journal,
    scheme::Scheme,
};

/// The name of the journal of an epoch's votes.
pub(super) fn partition(prefix: &str, epoch: u64) -> String {
    format!("{prefix}-votes-{epoch}")
}

/// Reads the votes of the newest epoch that has any, from `epoch` backwards by one. A journal that does not hold what was
/// written is put out of the engine's way: what it held is asked of the others.
///
/// # Errors
/// The disk fails: that says nothing about the journal, which stays.
pub(super) async fn remembered<E: Runtime>(
    context: &E,
    prefix: &str,
    pages: &CacheRef,
    epoch: u64,
) -> Result<Journal, Error> {
    for epoch in [Some(epoch), epoch.checked_sub(1)].into_iter().flatten() {
        let partition = partition(prefix, epoch);
        match highest(context, partition.clone(), pages).await {
            Ok(Some(round)) => return Ok(Journal::Remembers(round)),
            Ok(None) => {}
            Err(error) if is_damage(&error) => {
                metrics::counter!("fog_consensus_journals_lost_total").increment(1);
                tracing::error!(%error, epoch, "the vote journal is damaged; this node votes again when the others have told it what it voted");
                context.remove(&partition, None).await?;
                return Ok(Journal::Blank);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Journal::Blank)
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

async fn highest<E: Runtime>(context: &E, partition: String, pages: &CacheRef) -> Result<Option<Round>, Error> {
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
    let mut highest = None;
    while let Some(record) = replay.next().await {
        let (_, _, _, artifact) = record?;
        let signed = match &artifact {
            Artifact::Notarize(vote) => Some(vote.round()),
            Artifact::Nullify(vote) => Some(vote.round()),
            Artifact::Finalize(vote) => Some(vote.round()),
            _ => None,
        };
        highest = highest.max(signed);
    }
    drop(replay.finish()?);
    Ok(highest)
}

/// Removes the journals that no start looks at any more.
pub(super) async fn forget<E: Runtime>(context: &E, prefix: &str, epoch: u64) {
    let Some(old) = epoch.checked_sub(2) else { return };
    match context.remove(&partition(prefix, old), None).await {
        Ok(()) | Err(commonware_runtime::Error::PartitionMissing(_)) => {}
        Err(error) => tracing::warn!(%error, epoch = old, "the vote journal of an old epoch cannot be removed"),
    }
}
