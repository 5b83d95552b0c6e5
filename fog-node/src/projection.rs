//! Follows the chain and projects what this node can open into the index; a bad bundle is recorded, never in the way.
//!
//! For each finalized height, in order: its applied commitments to keys of our keyring, their payloads, opened, compared
//! with what was committed, every device signature checked again, and all of it taken into the index in one step. The
//! index keeps the height, so a crash repeats at most the block it interrupted.

mod followed;
mod gaps;
mod sealed;
mod verify;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use ledger::{block::Height, transaction::Commitment};
use record::{bundle::SubjectSecret, ids::BundleId, reading::Reason};
use tokio::{sync::watch, task::JoinError, time::Instant};

use crate::{
    chain::{self, Chain, Head},
    index::{self, Index, Pending, Projected, Rejection, Reported, Row},
    keyring::Keyring,
    proofs,
    vault::{self, Vault},
};
pub use followed::Followed;
use sealed::Sealed;
pub use verify::{Difference, Mended};

/// Payloads of one block had and opened at a time, at most.
const BUNDLES_AT_A_TIME: usize = 8;
/// The payloads of a block are waited for this long; a bundle without one is then recorded as [`PAYLOAD_MISSING`].
const PAYLOADS_WAIT: Duration = Duration::from_secs(30);
/// The same, when they are tried again.
const PAYLOADS_WAIT_AGAIN: Duration = Duration::from_secs(5);
/// Pause after no peer had a payload; doubles.
const PAYLOAD_PAUSE: Duration = Duration::from_millis(250);
/// How often bundles that may yet be projected are tried again.
const REPAIR_EVERY: Duration = Duration::from_secs(15);
/// Bundles tried again in one go, at most.
const RETRY_BUNDLES_MAX: u32 = 32;
/// Without a new block the index is looked at this often: its rows may have to be counted, or are to be projected anew.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Pause after the index or the chain did not answer.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// Readings of blocks older than this tell nothing about how fast the system is: the node is catching up.
const LIVE: Duration = Duration::from_secs(60);

/// No peer has the payload: not yet, or not any more.
const PAYLOAD_MISSING: &str = "payload-missing";
/// The payload does not open with our key: sealed for another, or altered before it was committed.
const NOT_OPENED: &str = "not-opened";
/// Root or count of what was opened are not those that were committed.
const NOT_AS_COMMITTED: &str = "not-as-committed";

/// The bundle was not known when its block was projected.
const LEARNED_LATE: &str = "learned-late";

/// Reasons that may pass: the payload comes, the device is enrolled, the bundle is opened at last.
const PASSING: [&str; 3] = [PAYLOAD_MISSING, LEARNED_LATE, Reason::UnknownDevice.as_str()];
/// What no key of its device has signed: the key may be on its way to the chain, behind the device's first one.
const UNSIGNED: &str = Reason::WrongSignature.as_str();
/// All that is tried again.
const RETRYABLE: [&str; 4] = [PASSING[0], PASSING[1], PASSING[2], UNSIGNED];

/// Why a step could not be made; it is made again.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The chain cannot be read.
    #[error(transparent)]
    Chain(#[from] chain::Error),
    /// What an observer has proven cannot be read.
    #[error(transparent)]
    Proofs(#[from] proofs::Error),
    /// The index does not answer.
    #[error(transparent)]
    Index(#[from] index::Error),
    /// A payload cannot be had.
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// The chain was set back meanwhile.
    #[error("block {0} is final, but this node's chain does not have it")]
    NoBlock(Height),
    /// The node is stopping.
    #[error("opening a bundle was interrupted: {0}")]
    Interrupted(#[from] JoinError),
}

/// The projection's task.
#[derive(Clone, Debug)]
pub struct Projection<F = Chain> {
    chain: F,
    vault: Vault,
    index: Index,
    keyring: Keyring,
    payloads_wait: Duration,
    repair_every: Duration,
}

/// What a bundle gave.
#[derive(Default)]
struct Opened {
    rows: Vec<Row>,
    gaps: Vec<Reported>,
    rejections: Vec<Rejection>,
    /// When readings of devices with a set clock were measured, in milliseconds since 1970.
    measured_ms: Vec<i64>,
    /// Kept until the rows are in the index: what is erased waits for them, and finds all that there will be.
    in_hand: Vec<Arc<SubjectSecret>>,
}

impl<F: Followed> Projection<F> {
    /// A projection of the chain into the index, of what the keyring opens.
    #[must_use]
    pub const fn new(chain: F, vault: Vault, index: Index, keyring: Keyring) -> Self {
        Self {
            chain,
            vault,
            index,
            keyring,
            payloads_wait: PAYLOADS_WAIT,
            repair_every: REPAIR_EVERY,
        }
    }

    /// Runs until the chain is gone. A failing index or chain is tried again for as long as it takes: the chain goes on
    /// meanwhile, and the metrics tell how far behind the index is.
    pub async fn run(self) {
        tokio::select! {
            () = self.follow() => {}
            () = self.repair() => {}
        }
    }

    /// Projects the next block; gives its height, or `None` at the chain's head.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn advance(&self) -> Result<Option<Height>, Failure> {
        let after = self.index.projected().await?;
        let next = after.next();
        if next > self.chain.watch().borrow().height {
            return Ok(None);
        }
        self.project(after, next).await.map(|_| Some(next))
    }

    async fn follow(&self) {
        let mut heads = self.chain.watch();
        let mut is_failing = false;
        loop {
            match self.catch_up(&mut heads).await {
                Ok(()) => is_failing = false,
                Err(failure) => {
                    metrics::counter!("fog_projection_failures_total").increment(1);
                    if !is_failing {
                        tracing::warn!(%failure, "the projection waits; the index falls behind the chain");
                    }
                    is_failing = true;
                    tokio::time::sleep(FAILURE_PAUSE).await;
                    continue;
                }
            }
            if let Ok(Err(_)) = tokio::time::timeout(LOOK_EVERY, heads.changed()).await {
                return;
            }
        }
    }

    async fn catch_up(&self, heads: &mut watch::Receiver<Head>) -> Result<(), Failure> {
        self.index.ready().await?;
        let mut projected = self.index.projected().await?;
        loop {
            let head = heads.borrow_and_update().height;
            metrics::gauge!("fog_projection_height").set(projected.0 as f64);
            metrics::gauge!("fog_projection_lag_blocks").set(head.0.saturating_sub(projected.0) as f64);
            if projected >= head {
                return Ok(());
            }
            let next = self.chain.next(projected, head).await?;
            projected = if self.project(projected, next).await? {
                next
            } else {
                // It was put back, or another server has taken its place.
                self.index.projected().await?
            };
        }
    }

    async fn repair(&self) {
        loop {
            tokio::time::sleep(self.repair_every).await;
            if let Err(failure) = self.retry().await {
                tracing::warn!(%failure, "bundles that may yet be projected could not be tried again");
            }
        }
    }

    /// Whether the block was taken in: the index may be elsewhere than it was.
    async fn project(&self, after: Height, height: Height) -> Result<bool, Failure> {
        let commitments = self.ours(height).await?;
        let deadline = Instant::now() + self.payloads_wait;
        let opened: Vec<Opened> = stream::iter(commitments)
            .map(|commitment| self.open(commitment, height, deadline))
            .buffered(BUNDLES_AT_A_TIME)
            .try_collect()
            .await?;
        let mut all = Opened::default();
        for bundle in opened {
            all.rows.extend(bundle.rows);
            all.gaps.extend(bundle.gaps);
            all.rejections.extend(bundle.rejections);
            all.measured_ms.extend(bundle.measured_ms);
            all.in_hand.extend(bundle.in_hand);
        }
        let found = (all.rows.as_slice(), all.gaps.as_slice());
        let Some(projected) = self.index.project((after, height), found, &all.rejections).await? else {
            return Ok(false);
        };
        account(&projected, &all.rejections);
        if !all.measured_ms.is_empty() {
            self.observe_latency(height, &all.measured_ms).await?;
        }
        Ok(true)
    }

    /// Tries again bundles whose payload was missing, and bundles with a device, or a key of one, that was not on the chain then.
    async fn retry(&self) -> Result<(), Failure> {
        let pending = self.index.pending(&RETRYABLE, RETRY_BUNDLES_MAX).await?;
        let deadline = Instant::now() + PAYLOADS_WAIT_AGAIN;
        stream::iter(pending)
            .map(|pending| self.settle(pending, deadline))
            .buffer_unordered(BUNDLES_AT_A_TIME)
            .try_collect()
            .await
    }

    async fn settle(&self, Pending { bundle, height }: Pending, deadline: Instant) -> Result<(), Failure> {
        let commitment = self
            .ours(height)
            .await?
            .into_iter()
            .find(|commitment| commitment.bundle == bundle);
        let Some(commitment) = commitment else {
            // Its key is not here any more: there is nothing to settle.
            self.index.settle(bundle, (&[], &[]), &[]).await?;
            return Ok(());
        };
        let opened = self.open(commitment, height, deadline).await?;
        let found = (opened.rows.as_slice(), opened.gaps.as_slice());
        let settled = self.index.settle(bundle, found, &opened.rejections).await?;
        account(&settled, &[]);
        if opened.rejections.is_empty() {
            tracing::info!(%bundle, %height, "a bundle that could not be projected before now is");
        }
        Ok(())
    }

    async fn observe_latency(&self, height: Height, measured_ms: &[i64]) -> Result<(), Failure> {
        let proposed_ms = self.chain.timestamp_ms(height).await?;
        let now_ms = now_ms();
        let age = now_ms.saturating_sub(i64::try_from(proposed_ms).unwrap_or(i64::MAX));
        if u128::from(age.max(0).cast_unsigned()) <= LIVE.as_millis() {
            for measured_ms in measured_ms {
                let seconds = now_ms.saturating_sub(*measured_ms).max(0) as f64 / 1_000.0;
                metrics::histogram!("fog_projection_publish_to_visible_seconds").record(seconds);
            }
        }
        Ok(())
    }

    /// Notes a bundle of a block that was projected before the bundle was known; it is projected with the next heights.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn note_late(&self, bundle: BundleId, height: Height) -> Result<(), Failure> {
        let late = Rejection {
            bundle,
            entry: None,
            reason: LEARNED_LATE,
            height,
        };
        Ok(self.index.note(&[late]).await?)
    }

    /// The height up to which the chain is projected.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn projected(&self) -> Result<Height, Failure> {
        Ok(self.index.projected().await?)
    }

    /// How much is in the index.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn counts(&self) -> Result<index::Counts, Failure> {
        Ok(self.index.counts().await?)
    }

    /// Whether there are as many rows in the index as this node wrote, and no others.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn is_counted(&self) -> Result<bool, Failure> {
        match self.index.ready().await {
            Err(index::Error::Altered(_)) => Ok(false),
            counted => Ok(counted.map(|()| true)?),
        }
    }

    /// The commitments of a block that took effect and that we hold the key of.
    async fn ours(&self, height: Height) -> Result<Vec<Commitment>, Failure> {
        let mut commitments = self.chain.commitments(height).await?;
        commitments.retain(|commitment| self.keyring.secret(&commitment.key).is_some());
        Ok(commitments)
    }

    async fn open(&self, commitment: Commitment, height: Height, deadline: Instant) -> Result<Opened, Failure> {
        let (Some(secret), Some(subject)) = (
            self.keyring.secret(&commitment.key),
            self.keyring.subject_of(&commitment.key),
        ) else {
            return Ok(Opened::default());
        };
        let state = self.chain.state();
        // Its payload is erased, or is going to be, whether its private half is or not.
        if state.tombstone(&commitment.key).is_some() {
            return Ok(Opened::default());
        }
        let sealed = Sealed {
            network: state.network,
            commitment,
            subject,
            height,
        };
        let Some(payload) = self.payload(&sealed.commitment, deadline).await? else {
            return Ok(sealed.rejected(PAYLOAD_MISSING));
        };
        // A full bundle is a thousand signatures: too long for a thread that serves others.
        let in_hand = secret.clone();
        let opening = tokio::task::spawn_blocking(move || sealed.open(&payload, &in_hand, &state));
        Ok(Opened {
            in_hand: vec![secret],
            ..opening.await?
        })
    }

    /// The payload; none if no peer has it in time.
    async fn payload(&self, commitment: &Commitment, deadline: Instant) -> Result<Option<Bytes>, Failure> {
        // Not under the deadline: what is here is had even when the block's other payloads have used it up.
        match self.vault.local(&commitment.cid).await {
            Ok(Some(payload)) => return Ok(Some(payload)),
            // A store that cannot be asked now keeps nobody from asking the peers.
            Ok(None) | Err(vault::Error::Unavailable(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let mut pause = PAYLOAD_PAUSE;
        loop {
            match tokio::time::timeout_at(deadline, self.vault.get(&commitment.cid)).await {
                Ok(Ok(payload)) => return Ok(Some(payload)),
                Ok(Err(vault::Error::Absent(_))) => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Ok(None),
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
            pause *= 2;
        }
    }
}

fn account(projected: &Projected, rejections: &[Rejection]) {
    metrics::counter!("fog_projection_observations_total").increment(projected.inserted);
    metrics::counter!("fog_projection_duplicates_total").increment(projected.duplicates);
    // One line per bundle and reason: a bundle may hold a thousand readings of a device that lost its enrolment.
    let mut kinds: BTreeMap<_, u64> = BTreeMap::new();
    for rejection in rejections {
        *kinds.entry((rejection.bundle, rejection.reason)).or_default() += 1;
    }
    for ((bundle, reason), count) in kinds {
        metrics::counter!("fog_projection_rejections_total", "reason" => reason).increment(count);
        tracing::warn!(%bundle, reason, count, "a final bundle, or readings in it, could not be projected");
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis());
    i64::try_from(since).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        index::tests::{World, on_each_database, server::Server},
        keyring::{Holding, Passphrase},
    };
    use ledger::{
        admission::MatchedSubmission,
        block::{Block, FinalizedBlock},
        consent::{self, Permit},
        genesis::{Genesis, Organization, Role, Validator},
        policy::ValidityPolicy,
        possession::Possession,
        transaction::{
            Action, Author, DeviceEnrolment, Erasure, GatewayEnrolment, Rotation, SignedTransaction, Transaction,
        },
    };
    use record::{
        bundle::{Bundle, Category, Entry, SubjectKey, SubjectSecret},
        canonical::Digest,
        fhir::Patient,
        gaps::{GapReport, Missing, Range, SignedGapReport, Start},
        ids::{BootId, GatewayId, OrganizationId, SubjectId},
        reading::{Measured, MeasurementState, Reading, TimeQuality, VERSION},
        signature::SigningKey,
    };

    /// A network of one member, with a real chain, vault, index and keyring in a folder.
    struct Fog {
        dir: tempfile::TempDir,
        genesis: Genesis,
        key: SigningKey,
        device: SigningKey,
        subject_key: SubjectKey,
        projection: Projection,
    }

    fn member() -> OrganizationId {
        "hospital-a".parse().expect("good")
    }

    fn home() -> GatewayId {
        "home-1".parse().expect("good")
    }

    impl Fog {
        async fn new() -> Self {
            Self::on(&index::Config::default()).await
        }

        /// With its index there.
        async fn on(config: &index::Config) -> Self {
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            let dir = tempfile::tempdir().expect("a folder");
            let (key, device) = (SigningKey::random(), SigningKey::random());
            let genesis = Genesis {
                name: "test".to_owned(),
                founded_ms: 1_000,
                organizations: vec![Organization {
                    id: member(),
                    name: "A".to_owned(),
                    role: Role::Provider,
                    key: key.public(),
                }],
                validators: vec![Validator {
                    organization: member(),
                    key: key.public(),
                    tls: Digest::ZERO,
                    address: None,
                }],
                policy: ValidityPolicy::default(),
            };
            let (secret, subject_key) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
            let passphrase = Passphrase::new("correct horse battery".to_owned().into()).expect("long enough");
            let patient = Patient {
                id: SubjectId::random(),
                family: "F".to_owned(),
                given: "G".to_owned(),
                gender: "female".to_owned(),
                birth_date: "1957-11-14".to_owned(),
            };
            let holding = Holding {
                key: subject_key.clone(),
                secret,
                patient,
            };
            let keyring = Keyring::create(&dir.path().join("keyring"), &passphrase, vec![holding]).expect("creates");
            let chain = Chain::open(&chain::Config::default(), dir.path(), &genesis).expect("opens");
            let vault = Vault::open(&vault::Config::default(), dir.path(), reqwest::Client::new())
                .await
                .expect("opens");
            let index = Index::open(config, dir.path()).await.expect("opens");
            let projection = Projection {
                payloads_wait: Duration::from_millis(50),
                repair_every: Duration::from_millis(50),
                ..Projection::new(chain, vault, index, keyring)
            };
            Self {
                dir,
                genesis,
                key,
                device,
                subject_key,
                projection,
            }
        }

        fn sign(&self, author: Author, action: Action) -> SignedTransaction {
            Transaction {
                network: self.genesis.network(),
                author,
                sequence: 0,
                action,
            }
            .sign(&self.key)
        }

        fn announcement(&self) -> SignedTransaction {
            self.sign(
                Author::Organization(member()),
                Action::AnnounceKey(self.subject_key.clone()),
            )
        }

        fn gateway(&self) -> SignedTransaction {
            let enrolment = GatewayEnrolment {
                gateway: home(),
                key: self.key.public(),
                tls: Digest::ZERO,
            };
            self.sign(Author::Organization(member()), Action::EnrolGateway(enrolment))
        }

        fn device(&self) -> SignedTransaction {
            let device = "oximeter-1".parse().expect("good");
            let enrolment = DeviceEnrolment::of(&self.genesis.network(), (home(), device), &self.device);
            self.sign(Author::Organization(member()), Action::EnrolDevice(enrolment))
        }

        /// A payload with one reading per signer, and the gateway's commitment to it.
        fn bundle(&self, first_seq: u64, signers: &[&SigningKey]) -> (Bytes, SignedTransaction) {
            self.bundle_with(first_seq, signers, vec![])
        }

        /// What the gateway, or who signs in its place, says is missing of the device.
        fn report(&self, at_ms: i64, up_to: u64, signer: &SigningKey) -> SignedGapReport {
            let start = Start {
                boot: BootId { counter: 1, random: 2 },
                high_seq: 1_000,
                missing: vec![Range(1, up_to)],
            };
            let report = GapReport {
                v: record::gaps::VERSION,
                network: self.genesis.network(),
                gateway: home(),
                device: "oximeter-1".parse().expect("good"),
                at_ms,
                missing: Missing {
                    starts: vec![start],
                    more_ranges: 0,
                },
            };
            report.sign(signer)
        }

        /// What an answer says is missing: up to which number of the one device.
        async fn missing(&self) -> Option<u64> {
            let found = self
                .projection
                .index
                .gaps(&[self.permit()], Height(u64::MAX), 9)
                .await
                .expect("reads");
            assert!(found.len() <= 1, "one device, one report");
            found.first().map(|one| one.report.missing.starts[0].missing[0].1)
        }

        /// A payload with one reading per signer and these reports, and the gateway's commitment to it.
        fn bundle_with(
            &self,
            first_seq: u64,
            signers: &[&SigningKey],
            gaps: Vec<SignedGapReport>,
        ) -> (Bytes, SignedTransaction) {
            let entry = |(seq, signer): (u64, &&SigningKey)| {
                let reading = Reading {
                    v: VERSION,
                    device: "oximeter-1".parse().expect("good"),
                    boot: BootId { counter: 1, random: 2 },
                    seq,
                    up_ms: 1,
                    wall: Some(now_ms()),
                    time_quality: TimeQuality::Synced,
                    observations: vec![Measured {
                        code: "59408-5".to_owned(),
                        value: Some("97".parse().expect("decimal")),
                        samples: None,
                        unit: "%".to_owned(),
                        state: MeasurementState::Valid,
                    }],
                };
                Entry::new(now_ms(), reading.sign(signer))
            };
            let bundle = Bundle::new((first_seq..).zip(signers).map(entry).collect()).with_gaps(gaps);
            let author = (&self.genesis.network(), &home(), &self.key);
            let sealed = MatchedSubmission::seal(author, (&self.subject_key, &bundle), now_ms()).expect("seals");
            let (transaction, payload) = sealed.into_parts();
            (payload.into(), transaction)
        }

        async fn append(&self, transactions: Vec<SignedTransaction>) {
            let head = self.projection.chain.head();
            let mut block = Block {
                header: Block::genesis(&self.genesis).header,
                transactions,
            };
            block.header.height = head.height.next();
            block.header.parent = head.digest;
            block.header.timestamp_ms = head.timestamp_ms + 1;
            block.header.transactions_root = block.transactions_root();
            let digest = block.header.digest();
            let block = FinalizedBlock {
                block,
                digest,
                finalization: None,
            };
            self.projection.chain.append(block).await.expect("appends");
        }

        fn permit(&self) -> Permit {
            consent::authorize(&self.projection.chain.state(), &member(), &self.subject_key.id()).expect("custodian")
        }

        async fn visible(&self) -> u64 {
            let search = index::Search {
                height: Height(u64::MAX),
                ..index::Search::default()
            };
            self.projection
                .index
                .find(&[self.permit()], &search)
                .await
                .expect("finds")
                .total
        }

        async fn projected(&self, height: u64) {
            while self.projection.index.projected().await.expect("reads") < Height(height) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }

        async fn count(&self, done: impl Fn(&index::Counts) -> bool) -> index::Counts {
            loop {
                let counts = self.projection.index.counts().await.expect("counts");
                if done(&counts) {
                    return counts;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    async fn in_time<T>(work: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(20), work)
            .await
            .expect("in time")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_devices_signed_is_projected_and_what_they_did_not_is_recorded() {
        let fog = Fog::new().await;
        let (device, forger) = (fog.device.clone(), SigningKey::random());
        let (payload, commit) = fog.bundle(1, &[&device, &forger, &device]);
        fog.projection.vault.put(payload).await.expect("kept");
        fog.append(vec![fog.announcement(), fog.gateway(), fog.device()]).await;
        // The repetition is refused by the state and must not be projected twice.
        fog.append(vec![commit.clone(), commit]).await;
        let task = tokio::spawn(fog.projection.clone().run());
        in_time(fog.projected(2)).await;
        assert_eq!(fog.visible().await, 2);
        let counts = fog.count(|_| true).await;
        assert_eq!((counts.rejected, counts.duplicates), (1, 0));
        task.abort();
        let _ = task.await;
        // Without the index everything comes back from chain and vault, equal.
        let dir = fog.dir.path().join("rebuilt");
        std::fs::create_dir(&dir).expect("a folder");
        let index = Index::open(&index::Config::default(), &dir).await.expect("opens");
        let rebuilt = Fog {
            projection: Projection {
                index,
                ..fog.projection.clone()
            },
            ..fog
        };
        let task = tokio::spawn(rebuilt.projection.clone().run());
        in_time(rebuilt.projected(2)).await;
        assert_eq!((rebuilt.visible().await, rebuilt.count(|_| true).await), (2, counts));
        task.abort();
    }

    on_each_database!(
        rows_that_somebody_altered_are_found_and_put_right,
        the_newest_gap_report_holds_whatever_the_order_and_is_rebuilt_and_put_right,
        what_a_question_finds_is_mended_from_the_chain,
    );

    async fn what_a_question_finds_is_mended_from_the_chain(world: World) {
        let fog = Fog::on(&world.config).await;
        let device = fog.device.clone();
        fog.append(vec![fog.announcement(), fog.gateway(), fog.device()]).await;
        for seq in [1, 4, 7] {
            let (payload, commit) = fog.bundle(seq, &[&device, &device, &device]);
            fog.projection.vault.put(payload).await.expect("kept");
            fog.append(vec![commit]).await;
        }
        fog.projection.index.ready().await.expect("counts");
        while fog.projection.advance().await.expect("projects").is_some() {}
        let (index, permit) = (&fog.projection.index, [fog.permit()]);
        let asked = index::Search {
            count: 100,
            height: Height(u64::MAX),
            ..index::Search::default()
        };
        let good = index.find(&permit, &asked).await.expect("finds").rows;
        assert_eq!(good.len(), 9);
        let alterations = [
            (
                "UPDATE observation SET effective_ms = effective_ms - 86400000 WHERE seq = 5",
                1,
            ),
            ("DELETE FROM observation WHERE seq > 6", 3),
            ("DELETE FROM observation", 9),
            (
                "INSERT INTO observation SELECT 'g' || substr(id, 2), subject_key, subject, code, effective_ms, received_ms, \
              device, boot, seq + 100, ordinal, bundle, cid, entry, height, visible_from, tag FROM observation",
                9,
            ),
            ("UPDATE observation SET height = 77 WHERE seq = 2", 1),
            (
                "INSERT INTO observation SELECT '', subject_key, subject, code, effective_ms, received_ms, device, boot, seq + 100, \
                 ordinal, bundle, cid, entry, height, visible_from, tag FROM observation WHERE seq = 2",
                1,
            ),
            // How far it is cannot be told any more: everything is projected anew.
            ("UPDATE progress SET projected = 1", 0),
            ("DELETE FROM progress", 0),
        ];
        for (alteration, rows) in alterations {
            index.execute(alteration).await;
            let found = index.find(&permit, &asked).await;
            assert!(found.is_err(), "{alteration}: {found:?}");
            let mended = fog.projection.mend().await.expect("mends");
            assert_eq!((mended.rows, mended.anew), (rows, rows == 0), "{alteration}");
            index.ready().await.expect("counts");
            while fog.projection.advance().await.expect("projects").is_some() {}
            assert_eq!(
                index.find(&permit, &asked).await.expect("finds").rows,
                good,
                "{alteration}"
            );
        }
        // Altered while the node stood still: it does not know where, and looks everywhere.
        index.execute("DELETE FROM observation WHERE seq = 8").await;
        let index = Index::open(&world.config, fog.dir.path()).await.expect("opens");
        let fog = Fog {
            projection: Projection {
                index,
                ..fog.projection.clone()
            },
            ..fog
        };
        assert!(!fog.projection.is_counted().await.expect("looks"));
        assert_eq!(fog.projection.mend().await.expect("mends").rows, 1);
        assert_eq!(
            fog.projection.index.find(&permit, &asked).await.expect("finds").rows,
            good
        );
    }

    async fn rows_that_somebody_altered_are_found_and_put_right(world: World) {
        let fog = Fog::on(&world.config).await;
        let device = fog.device.clone();
        let (payload, commit) = fog.bundle(1, &[&device, &device, &device]);
        fog.projection.vault.put(payload).await.expect("kept");
        fog.append(vec![fog.announcement(), fog.gateway(), fog.device()]).await;
        fog.append(vec![commit]).await;
        let task = tokio::spawn(fog.projection.clone().run());
        in_time(fog.projected(2)).await;
        let (index, height) = (&fog.projection.index, Height(2));
        // In whatever order the database has them.
        let mut good = index.rows_at(height).await.expect("reads").0;
        good.sort_by_key(|row| row.entry);
        assert_eq!(
            (good.len(), fog.projection.verify(height).await.expect("verifies")),
            (3, 0)
        );
        let alterations = [
            "UPDATE observation SET code = '8867-4' WHERE seq = 1",
            "UPDATE observation SET effective_ms = effective_ms + 1 WHERE seq = 2",
            "DELETE FROM observation WHERE seq = 3",
            "UPDATE observation SET height = 1 WHERE seq = 1",
            "UPDATE observation SET subject_key = x'0000000000000000000000000000000000000000000000000000000000000000'",
            "UPDATE observation SET visible_from = 9000000000000000000",
            "UPDATE observation SET cid = 'nonsense' WHERE seq = 2",
        ];
        for alteration in alterations {
            index.execute(alteration).await;
            let found = fog.projection.verify(Height(1)).await.expect("verifies")
                + fog.projection.verify(height).await.expect("verifies");
            assert!(found > 0, "{alteration}");
            let (mut rows, unread) = index.rows_at(height).await.expect("reads");
            assert_eq!(unread, 0);
            rows.sort_by_key(|row| row.entry);
            assert_eq!(rows, good, "{alteration}");
            assert_eq!(fog.projection.verify(height).await.expect("verifies"), 0);
        }
        index.execute("INSERT INTO observation SELECT 'x' || id, subject_key, subject, code, effective_ms, received_ms, 'ghost-1', boot, seq, ordinal, bundle, cid, entry, 0, 0, tag FROM observation").await;
        assert_eq!(fog.projection.remove_strays(height).await.expect("removes"), 3);
        assert_eq!(fog.visible().await, 3);
        task.abort();
    }

    async fn the_newest_gap_report_holds_whatever_the_order_and_is_rebuilt_and_put_right(world: World) {
        let fog = Fog::on(&world.config).await;
        let (device, stranger) = (fog.device.clone(), SigningKey::random());
        fog.append(vec![fog.announcement(), fog.gateway(), fog.device()]).await;
        let reports = [(2_000, 20, &fog.key), (1_000, 10, &fog.key), (9_000, 90, &stranger)];
        for ((at_ms, up_to, signer), seq) in reports.into_iter().zip(1..) {
            let report = fog.report(at_ms, up_to, signer);
            let (payload, commit) = fog.bundle_with(seq, &[&device], vec![report]);
            fog.projection.vault.put(payload).await.expect("kept");
            fog.append(vec![commit]).await;
        }
        let task = tokio::spawn(fog.projection.clone().run());
        in_time(fog.projected(4)).await;
        assert_eq!((fog.missing().await, fog.count(|_| true).await.rejected), (Some(20), 1));
        let (index, height) = (&fog.projection.index, Height(2));
        let good = index.gaps_at(height).await.expect("reads").0;
        for alteration in [
            "DELETE FROM gap_report WHERE height = 2",
            "UPDATE gap_report SET reported_ms = 1",
            "UPDATE gap_report SET ranges = 0",
            "UPDATE gap_report SET device = 'ghost-1'",
            "UPDATE gap_report SET report = x'000000000000000000'",
            "UPDATE gap_report SET subject_key = x'0000000000000000000000000000000000000000000000000000000000000000'",
            "UPDATE gap_report SET height = 3 WHERE height = 2",
            "UPDATE gap_report SET visible_from = 9000000000000000000",
        ] {
            index.execute(alteration).await;
            let mut found = 0;
            for height in [3, 2, 3] {
                found += fog.projection.verify(Height(height)).await.expect("verifies");
            }
            assert!(found > 0, "{alteration}");
            assert_eq!(
                index.gaps_at(height).await.expect("reads"),
                (good.clone(), 0),
                "{alteration}"
            );
            assert_eq!(
                (fog.missing().await, fog.visible().await),
                (Some(20), 3),
                "{alteration}"
            );
        }
        let ghost = "INSERT INTO gap_report SELECT bundle, 99, subject_key, device, 5000, ranges, report, 0, 0, tag FROM \
                     gap_report WHERE height = 2";
        index.execute(ghost).await;
        assert_eq!(fog.projection.remove_strays(height).await.expect("removes"), 1);
        task.abort();
        let dir = tempfile::tempdir().expect("a folder");
        let index = Index::open(&index::Config::default(), dir.path()).await.expect("opens");
        let rebuilt = Fog {
            projection: Projection {
                index,
                ..fog.projection.clone()
            },
            ..fog
        };
        rebuilt.projection.index.ready().await.expect("counts");
        while rebuilt.projection.advance().await.expect("projects").is_some() {}
        assert_eq!(rebuilt.projection.index.gaps_at(height).await.expect("reads").0, good);
        assert_eq!(rebuilt.missing().await, Some(20));
    }

    /// SHA-256 over all rows, block by block, in the order of their ids.
    async fn digest_of_all(index: &Index, head: Height) -> Digest {
        let mut digest = Digest::ZERO;
        for height in (1..=head.0).map(Height) {
            let (mut rows, strange) = index.rows_at(height).await.expect("reads");
            assert_eq!(strange, 0);
            rows.sort_by(|a, b| a.id.cmp(&b.id));
            digest = Digest::of(
                record::canonical::Domain::OBSERVATION,
                &[digest.as_bytes(), format!("{rows:?}").as_bytes()],
            );
        }
        digest
    }

    /// A pulse oximeter's reading has two observations.
    fn oxygen_and_pulse(fog: &Fog, seq: u64) -> Entry {
        let measured = |code: &str, unit: &str, value: u64| Measured {
            code: code.to_owned(),
            value: Some(value.to_string().parse().expect("decimal")),
            samples: None,
            unit: unit.to_owned(),
            state: MeasurementState::Valid,
        };
        let reading = Reading {
            v: VERSION,
            device: "oximeter-1".parse().expect("good"),
            boot: BootId { counter: 1, random: 2 },
            seq,
            up_ms: seq,
            // One a second, up to now.
            wall: Some(now_ms() - 600_000_000 + seq.cast_signed() * 1_000),
            time_quality: TimeQuality::Synced,
            observations: vec![
                measured("59408-5", "%", 90 + seq % 10),
                measured("8867-4", "/min", 60 + seq % 40),
            ],
        };
        Entry::new(now_ms(), reading.sign(&fog.device))
    }

    /// Blocks of four full bundles until there are so many observations.
    async fn filled(fog: &Fog, observations: u64) {
        const BUNDLES_A_BLOCK: u64 = 4;
        const READINGS_A_BUNDLE: u64 = 1_000;
        fog.append(vec![fog.announcement(), fog.gateway(), fog.device()]).await;
        let mut seqs = 1..=observations / 2;
        while !seqs.is_empty() {
            let mut commits = Vec::new();
            for _ in 0..BUNDLES_A_BLOCK {
                let entries: Vec<_> = seqs
                    .by_ref()
                    .take(READINGS_A_BUNDLE as usize)
                    .map(|seq| oxygen_and_pulse(fog, seq))
                    .collect();
                if entries.is_empty() {
                    break;
                }
                let author = (&fog.genesis.network(), &home(), &fog.key);
                let sealed = MatchedSubmission::seal(author, (&fog.subject_key, &Bundle::new(entries)), now_ms());
                let (commit, payload) = sealed.expect("seals").into_parts();
                fog.projection.vault.put(payload.into()).await.expect("kept");
                commits.push(commit);
            }
            fog.append(commits).await;
        }
    }

    /// Projects all of it; how long that took, how much there is then, and the digest of it.
    async fn all_of(fog: &Projection) -> (f64, index::Counts, Digest) {
        let begun = std::time::Instant::now();
        fog.index.ready().await.expect("counts");
        while fog.advance().await.expect("projects").is_some() {}
        let took = begun.elapsed().as_secs_f64();
        let counts = fog.counts().await.expect("counts");
        (took, counts, digest_of_all(&fog.index, fog.chain.head().height).await)
    }

    /// Minutes on a machine that does nothing else:
    /// `OBSERVATIONS=1000000 cargo test --release --workspace --lib a_reindex_of_a_million -- --ignored --nocapture`.
    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "minutes, and what it prints is for PERFORMANCE.md"]
    async fn a_reindex_of_a_million_observations_gives_the_same_rows_on_each_database() {
        let asked = std::env::var_os("OBSERVATIONS").and_then(|asked| asked.into_string().ok());
        let observations = asked.map_or(1_000_000, |asked| asked.parse().expect("a number"));
        let fog = Fog::new().await;
        filled(&fog, observations).await;
        let mut first = None;
        let server = Server::large();
        let mut worlds = vec![World::on(index::Driver::Sqlite).await.expect("always there")];
        if let Some(server) = &server {
            worlds.push(World::at(server).await);
        }
        for world in worlds {
            let driver = world.config.driver;
            let index = Index::open(&world.config, world.dir.path()).await.expect("opens");
            let projection = Projection {
                index,
                ..fog.projection.clone()
            };
            let (took, counts, before) = all_of(&projection).await;
            println!(
                "{driver:?}: {} observations projected in {took:.1} s: {before}",
                counts.observations
            );
            assert_eq!(counts.observations, observations);
            let begun = std::time::Instant::now();
            let index = Index::open(&world.config, world.dir.path()).await.expect("opens");
            index.ready().await.expect("counts");
            println!("{driver:?}: counted in {:.1} s", begun.elapsed().as_secs_f64());
            // What `fog-node reindex` does.
            let begun = std::time::Instant::now();
            projection.forget().await.expect("forgets");
            assert_eq!(projection.counts().await.expect("counts").observations, 0);
            println!("{driver:?}: emptied in {:.1} s", begun.elapsed().as_secs_f64());
            let (took, again, after) = all_of(&projection).await;
            println!("{driver:?}: made anew in {took:.1} s");
            assert_eq!((again, after), (counts, before), "every row is what it was");
            assert_eq!(*first.get_or_insert(after), after, "and the same on each database");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_payload_that_comes_late_does_not_hold_up_the_chain_and_is_projected_then() {
        let fog = Fog::new().await;
        let device = fog.device.clone();
        let (late, commit) = fog.bundle(1, &[&device]);
        fog.append(vec![fog.announcement(), fog.gateway(), fog.device()]).await;
        fog.append(vec![commit]).await;
        let task = tokio::spawn(fog.projection.clone().run());
        in_time(fog.projected(2)).await;
        assert_eq!(fog.count(|_| true).await.payloads_missing, 1);
        fog.projection.vault.put(late).await.expect("kept");
        in_time(fog.count(|counts| counts.payloads_missing == 0)).await;
        fog.append(vec![]).await;
        in_time(fog.projected(3)).await;
        assert_eq!(fog.visible().await, 1);
        task.abort();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_compared_of_an_unsettled_bundle_keeps_its_key_in_hand_until_it_is_written() {
        let fog = Fog::new().await;
        let device = fog.device.clone();
        let (_, missing) = fog.bundle(1, &[&device]);
        fog.append(vec![fog.announcement(), fog.gateway(), fog.device()]).await;
        fog.append(vec![missing]).await;
        for height in [1, 2] {
            assert_eq!(fog.projection.advance().await.expect("projects"), Some(Height(height)));
        }
        let (_, expected) = fog.projection.compare(Height(2)).await.expect("compares");
        assert_eq!(expected.in_hand.len(), 1);
        let (keyring, key) = (fog.projection.keyring.clone(), fog.subject_key.id());
        let destroying = tokio::task::spawn_blocking(move || keyring.destroy(&key));
        while fog.projection.keyring.secret(&key).is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!destroying.is_finished(), "the rows may yet be written");
        drop(expected);
        in_time(destroying).await.expect("no panic").expect("destroyed");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_erased_on_the_chain_is_not_opened_though_its_private_half_is_here() {
        let fog = Fog::new().await;
        let device = fog.device.clone();
        let (payload, commit) = fog.bundle(1, &[&device]);
        fog.projection.vault.put(payload).await.expect("kept");
        let cid = commit.payload().expect("a bundle").cid;
        fog.append(vec![fog.announcement(), fog.gateway(), fog.device()]).await;
        fog.append(vec![commit]).await;
        let key = fog.subject_key.id();
        let erased = fog.sign(Author::Organization(member()), Action::Erase(Erasure { key }));
        fog.append(vec![erased]).await;
        fog.projection.vault.erase(&cid).await.expect("erases");
        for height in [1, 2, 3] {
            assert_eq!(fog.projection.advance().await.expect("projects"), Some(Height(height)));
        }
        assert_eq!(fog.count(|_| true).await.observations, 0);
        assert_eq!(fog.projection.verify(Height(2)).await.expect("compares"), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_device_that_is_enrolled_later_is_projected_later() {
        let fog = Fog::new().await;
        let device = fog.device.clone();
        let (payload, commit) = fog.bundle(1, &[&device, &device]);
        fog.projection.vault.put(payload).await.expect("kept");
        fog.append(vec![fog.announcement(), fog.gateway()]).await;
        fog.append(vec![commit]).await;
        let task = tokio::spawn(fog.projection.clone().run());
        in_time(fog.count(|counts| counts.rejected == 2)).await;
        fog.append(vec![fog.device()]).await;
        let counts = in_time(fog.count(|counts| counts.rejected == 0)).await;
        assert_eq!((counts.observations, counts.duplicates), (2, 0));
        task.abort();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_measured_with_keys_that_are_approved_later_one_by_one_is_projected_later() {
        let fog = Fog::new().await;
        let (first, second, forger) = (fog.device.clone(), SigningKey::random(), SigningKey::random());
        let (payload, commit) = fog.bundle(1, &[&first, &second]);
        let (forged, commit_forged) = fog.bundle(3, &[&first, &forger]);
        for payload in [payload, forged] {
            fog.projection.vault.put(payload).await.expect("kept");
        }
        fog.append(vec![fog.announcement(), fog.gateway()]).await;
        fog.append(vec![commit]).await;
        fog.append(vec![commit_forged]).await;
        let task = tokio::spawn(fog.projection.clone().run());
        in_time(fog.count(|counts| counts.rejected == 4)).await;
        fog.append(vec![fog.device()]).await;
        in_time(fog.count(|counts| counts.rejected == 2)).await;
        fog.projection
            .index
            .execute("DELETE FROM observation WHERE seq = 3")
            .await;
        let found = fog.projection.verify(Height(3)).await.expect("verifies");
        assert_eq!(found, 1, "a forged reading keeps no block from being compared");
        let device = "oximeter-1".parse().expect("good");
        let rotation = Rotation {
            from: first.public(),
            to: second.public(),
            proof: Possession::prove(&fog.genesis.network(), (&home(), &device), &second),
            overlap_ms: 0,
            device,
        };
        let author = Author::Organization(member());
        fog.append(vec![fog.sign(author, Action::RotateDevice(rotation))]).await;
        let counts = in_time(fog.count(|counts| counts.rejected == 1)).await;
        assert_eq!((counts.observations, counts.duplicates), (3, 0));
        task.abort();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_revocation_leaves_what_was_final_and_ends_what_comes_after_it_also_when_projected_anew() {
        let fog = Fog::new().await;
        let device = fog.device.clone();
        let (before, committed_before) = fog.bundle(1, &[&device, &device]);
        let (after, committed_after) = fog.bundle(3, &[&device]);
        for payload in [before, after] {
            fog.projection.vault.put(payload).await.expect("kept");
        }
        fog.append(vec![fog.announcement(), fog.gateway(), fog.device()]).await;
        fog.append(vec![committed_before]).await;
        // The test's blocks carry times of 1970: whatever was received today came after the grace.
        let revoke = Action::RevokeDevice("oximeter-1".parse().expect("good"));
        fog.append(vec![fog.sign(Author::Organization(member()), revoke)]).await;
        fog.append(vec![committed_after]).await;
        // Projected with the state of the head alone, as after a loss of the index.
        for height in 1..=4 {
            assert_eq!(fog.projection.advance().await.expect("projects"), Some(Height(height)));
        }
        let counts = fog.count(|_| true).await;
        assert_eq!((counts.observations, counts.rejected), (2, 1));
        assert!(
            fog.projection
                .index
                .pending_at(Height(4), &RETRYABLE)
                .await
                .expect("reads")
                .is_empty(),
            "it is not tried again: `revoked` does not pass"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commitment_to_something_else_is_recorded_and_not_projected() {
        let fog = Fog::new().await;
        let device = fog.device.clone();
        let (payload, commit) = fog.bundle(1, &[&device]);
        let mut commitment = commit.commitment().expect("a commitment").clone();
        commitment.count += 1;
        fog.projection.vault.put(payload).await.expect("kept");
        fog.append(vec![fog.announcement(), fog.gateway(), fog.device()]).await;
        fog.append(vec![fog.sign(Author::Gateway(home()), Action::Commit(commitment))])
            .await;
        let task = tokio::spawn(fog.projection.clone().run());
        in_time(fog.projected(2)).await;
        let counts = fog.count(|_| true).await;
        assert_eq!((counts.rejected, counts.observations), (1, 0));
        task.abort();
    }
}
