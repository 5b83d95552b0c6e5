//! Searchable metadata of the observations this node can open: a projection of the chain, without measured values.
//!
//! Delete it and it is rebuilt, equal. It answers for permits only: a row whose key no permit names does not exist for
//! the caller, in the page and in the total alike.

mod cursor;
mod gaps;
mod sqlite;

use std::path::Path;

use cid::Cid;
use ledger::{block::Height, consent::Permit};
use record::ids::{BundleId, KeyId, ReadingId, SubjectId};
use serde::{Deserialize, Serialize};

pub use cursor::{BadCursor, Cursor};
pub use gaps::Reported;
use sqlite::Sqlite;

/// Rows on one page, at most.
pub const PAGE_ROWS_MAX: u32 = 1_000;
/// Permits, codes, dates and ids in one search, at most, together.
pub const CRITERIA_MAX: usize = 10_000;

/// Which database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// `index.sqlite` in the data folder.
    #[default]
    Sqlite,
}

/// How the index is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which database.
    pub driver: Driver,
    /// Connections at a time, at most.
    pub connections_max: u32,
    /// How long a query waits for a connection or a lock.
    pub busy_timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            driver: Driver::Sqlite,
            connections_max: 4,
            busy_timeout_ms: 5_000,
        }
    }
}

impl Config {
    /// What is wrong with it, each with the key to change.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let zero = [
            ("connections_max", self.connections_max == 0),
            ("busy_timeout_ms", self.busy_timeout_ms == 0),
        ];
        zero.iter()
            .filter(|(_, is_zero)| *is_zero)
            .map(|(key, _)| format!("index.{key} must be at least 1"))
            .collect()
    }
}

/// Why the index does not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database is busy, unreachable or failing: later again.
    #[error("the index does not answer: {0}")]
    Database(#[from] sqlx::Error),
    /// The database cannot be brought to this version's schema.
    #[error("the index cannot be migrated (delete it, it will be rebuilt): {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A row does not parse: delete the index, it will be rebuilt.
    #[error("the index is damaged in column {0}: delete it, it will be rebuilt")]
    Damaged(&'static str),
    /// The search names more than [`CRITERIA_MAX`] things.
    #[error("the search names {0} keys, codes, dates and ids, at most {CRITERIA_MAX} are allowed: narrow it")]
    TooBroad(usize),
}

/// One observation, as far as the index knows it: where it is, not what was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// FHIR logical id (`record::observation::Observation::id`).
    pub id: String,
    /// The key that opens it.
    pub key: KeyId,
    /// Whose it is.
    pub subject: SubjectId,
    /// LOINC (or MDC) code.
    pub code: String,
    /// When it holds, in milliseconds since 1970.
    pub effective_ms: i64,
    /// When the gateway received it, in milliseconds since 1970.
    pub received_ms: i64,
    /// The reading it comes from.
    pub reading: ReadingId,
    /// Which of the reading's observations, from 0.
    pub ordinal: u16,
    /// The bundle that holds the reading.
    pub bundle: BundleId,
    /// The bundle's payload.
    pub cid: Cid,
    /// Which reading of the bundle, from 0.
    pub entry: u32,
    /// Block of the commitment.
    pub height: Height,
}

/// What the opened bundles of a block give: rows of observations, and gap reports.
pub type Contents<'a> = (&'a [Row], &'a [Reported]);

/// Something in a final bundle that was not indexed; it never repeats a measured value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The bundle.
    pub bundle: BundleId,
    /// Which reading of it, from 0; none for the bundle as a whole.
    pub entry: Option<u32>,
    /// The reason code.
    pub reason: &'static str,
    /// Block of the commitment.
    pub height: Height,
}

/// A bundle of which something was rejected for a reason that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The bundle.
    pub bundle: BundleId,
    /// Block of the commitment.
    pub height: Height,
}

/// A span of time: from (inclusive) to (exclusive), in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateRange {
    /// The first millisecond inside.
    pub from_ms: i64,
    /// The first millisecond after.
    pub to_ms: i64,
}

/// What is asked for. Empty lists do not restrict; all that is given must hold.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// Of this subject.
    pub subject: Option<SubjectId>,
    /// With one of these codes.
    pub codes: Vec<String>,
    /// Within each of these spans.
    pub dates: Vec<DateRange>,
    /// With one of these logical ids.
    pub ids: Vec<String>,
    /// Rows on a page; 0 asks for the total alone.
    pub count: u32,
    /// Where the page begins.
    pub cursor: Option<Cursor>,
    /// The chain as of this height; a cursor's own height takes its place.
    pub height: Height,
}

/// One page of a search.
#[derive(Clone, Debug)]
pub struct Page {
    /// The rows, newest effective time first.
    pub rows: Vec<Row>,
    /// How many rows the whole search has for this caller.
    pub total: u64,
    /// Where the next page begins; none on the last.
    pub next: Option<Cursor>,
    /// The height as of which the page was cut.
    pub height: Height,
}

/// What became of a block's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Projected {
    /// Rows that are new.
    pub inserted: u64,
    /// Rows whose observation was there already, from another bundle or another place in this one.
    pub duplicates: u64,
}

/// How much is in the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Observations.
    pub observations: u64,
    /// Second occurrences, which are not inserted.
    pub duplicates: u64,
    /// Entries and bundles that were rejected.
    pub rejected: u64,
    /// Bundles among them whose payload no peer had; they are tried again.
    pub payloads_missing: u64,
}

/// The index. Clones share it.
#[derive(Clone, Debug)]
pub struct Index(Store);

#[derive(Clone, Debug)]
enum Store {
    Sqlite(Sqlite),
}

impl Index {
    /// Opens the database and brings it to this version's schema.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::Migration`].
    pub async fn open(config: &Config, data_dir: &Path) -> Result<Self, Error> {
        match config.driver {
            Driver::Sqlite => Sqlite::open(config, data_dir).await.map(Store::Sqlite).map(Self),
        }
    }

    /// The height up to which the chain is projected.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn projected(&self) -> Result<Height, Error> {
        let Store::Sqlite(store) = &self.0;
        store.projected().await
    }

    /// Takes in a block, all of it or nothing; a height that was taken in before changes nothing.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn project(
        &self,
        height: Height,
        found: Contents<'_>,
        rejections: &[Rejection],
    ) -> Result<Projected, Error> {
        let Store::Sqlite(store) = &self.0;
        store.project(height, found, rejections).await
    }

    /// Replaces what was rejected of a bundle by what a later attempt gave. Its rows become visible with the next
    /// height, so that pages already handed out stay as they are.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn settle(
        &self,
        bundle: BundleId,
        found: Contents<'_>,
        rejections: &[Rejection],
    ) -> Result<Projected, Error> {
        let Store::Sqlite(store) = &self.0;
        store.settle(bundle, found, rejections).await
    }

    /// Notes what is to be settled later; what is noted already stays as it is.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn note(&self, rejections: &[Rejection]) -> Result<(), Error> {
        let Store::Sqlite(store) = &self.0;
        store.note(rejections).await
    }

    /// Bundles of which something was rejected for one of these reasons, those tried least first.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn pending(&self, reasons: &[&'static str], count: u32) -> Result<Vec<Pending>, Error> {
        let Store::Sqlite(store) = &self.0;
        store.pending(reasons, count).await
    }

    /// The rows of a block that queries see, whatever they say now, and how many cannot be read or are hidden.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn rows_at(&self, height: Height) -> Result<(Vec<Row>, u64), Error> {
        let Store::Sqlite(store) = &self.0;
        store.rows_at(height).await
    }

    /// Whether something of a block was rejected for one of these reasons, and may yet be settled.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn is_pending(&self, height: Height, reasons: &[&'static str]) -> Result<bool, Error> {
        let Store::Sqlite(store) = &self.0;
        store.is_pending(height, reasons).await
    }

    /// Whether an observation stands in the index at another height.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn has_elsewhere(&self, row: &Row) -> Result<bool, Error> {
        let Store::Sqlite(store) = &self.0;
        store.has_elsewhere(row).await
    }

    /// Puts this in the place of everything of a block.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn replace(&self, height: Height, found: Contents<'_>) -> Result<(), Error> {
        let Store::Sqlite(store) = &self.0;
        store.replace(height, found).await
    }

    /// Removes rows of heights that no block has, up to and including `head`.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn remove_strays(&self, head: Height) -> Result<u64, Error> {
        let Store::Sqlite(store) = &self.0;
        store.remove_strays(head).await
    }

    /// A page of the rows that the permits open.
    ///
    /// # Errors
    /// [`Error::TooBroad`], [`Error::Database`] or [`Error::Damaged`].
    pub async fn find(&self, permits: &[Permit], search: &Search) -> Result<Page, Error> {
        let keys: Vec<_> = permits.iter().map(Permit::key).collect();
        let criteria = keys.len() + search.codes.len() + search.dates.len() + search.ids.len();
        if criteria > CRITERIA_MAX {
            return Err(Error::TooBroad(criteria));
        }
        let Store::Sqlite(store) = &self.0;
        store.find(&keys, search).await
    }

    /// How much is in the index.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn counts(&self) -> Result<Counts, Error> {
        let Store::Sqlite(store) = &self.0;
        store.counts().await
    }
}

#[cfg(test)]
impl Index {
    /// Changes the database behind the index's back.
    pub(crate) async fn execute(&self, statement: &'static str) {
        let Store::Sqlite(store) = &self.0;
        store.execute(statement).await;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use ledger::{
        block::Block,
        consent,
        genesis::{Genesis, Organization, Role, Validator},
        policy::ValidityPolicy,
        state::{Finals, State},
        transaction::{Action, Author, Transaction},
    };
    use record::{
        bundle::{Category, SubjectKey},
        canonical::{self, Digest, Domain},
        gaps::{GapReport, Missing, Range, Start},
        ids::{BootId, DeviceId, OrganizationId},
        signature::SigningKey,
    };

    struct Nothing;

    impl Finals for Nothing {
        fn contains(&self, _: &Digest) -> bool {
            false
        }
    }

    fn hospital() -> OrganizationId {
        "hospital-a".parse().expect("good")
    }

    fn subject_key(seed: u8) -> SubjectKey {
        SubjectKey {
            public: vec![seed; 32],
            category: Category::Vitals,
            epoch: 1,
        }
    }

    /// Permits of the custodian for these keys: made the only way there is, from a state.
    fn permits(seeds: &[u8]) -> Vec<Permit> {
        let key = SigningKey::random();
        let organization = Organization {
            id: hospital(),
            name: "A".to_owned(),
            role: Role::Provider,
            key: key.public(),
        };
        let genesis = Genesis {
            name: "test".to_owned(),
            founded_ms: 1,
            organizations: vec![organization],
            validators: vec![Validator {
                organization: hospital(),
                key: key.public(),
                tls: Digest::ZERO,
                address: None,
            }],
            policy: ValidityPolicy::default(),
        };
        let announce = |seed: &u8| {
            let action = Action::AnnounceKey(subject_key(*seed));
            let author = Author::Organization(hospital());
            Transaction {
                network: genesis.network(),
                author,
                sequence: 0,
                action,
            }
            .sign(&key)
        };
        let mut block = Block {
            transactions: seeds.iter().map(announce).collect(),
            ..Block::genesis(&genesis)
        };
        block.header.height = Height(1);
        let mut state = State::genesis(&genesis);
        state.apply(&block, &Nothing);
        let permit = |seed: &u8| consent::authorize(&state, &hospital(), &subject_key(*seed).id()).expect("custodian");
        seeds.iter().map(permit).collect()
    }

    fn row(seed: u8, seq: u64, effective_ms: i64) -> Row {
        let reading = ReadingId {
            device: "oximeter-1".parse().expect("good"),
            boot: BootId {
                counter: 1,
                random: u64::MAX,
            },
            seq,
        };
        let id = Digest::of(Domain::OBSERVATION, &[reading.to_string().as_bytes()]);
        Row {
            id: hex::encode(&id.as_bytes()[..16]),
            key: subject_key(seed).id(),
            subject: "6f9619ff-8b86-4d01-b42d-00c04fc964ff".parse().expect("a UUID"),
            code: if seq.is_multiple_of(2) {
                "8867-4".to_owned()
            } else {
                "59408-5".to_owned()
            },
            effective_ms,
            received_ms: effective_ms + 5,
            reading,
            ordinal: 0,
            bundle: BundleId(Digest::of(Domain::BUNDLE, &[&seq.to_be_bytes()])),
            cid: canonical::cid_of(&seq.to_be_bytes()),
            entry: 0,
            height: Height(1),
        }
    }

    async fn index() -> (tempfile::TempDir, Index) {
        let dir = tempfile::tempdir().expect("a folder");
        let index = Index::open(&Config::default(), dir.path()).await.expect("opens");
        (dir, index)
    }

    fn search(count: u32) -> Search {
        Search {
            count,
            height: Height(u64::MAX),
            ..Search::default()
        }
    }

    #[tokio::test]
    async fn a_row_comes_back_as_it_went_in_also_after_a_restart() {
        let (dir, index) = index().await;
        let given = Row {
            received_ms: i64::MAX,
            ..row(1, u64::MAX, i64::MIN)
        };
        index
            .project(Height(1), (std::slice::from_ref(&given), &[]), &[])
            .await
            .expect("projects");
        let index = Index::open(&Config::default(), dir.path()).await.expect("opens");
        let page = index.find(&permits(&[1]), &search(10)).await.expect("finds");
        assert_eq!((page.rows, page.total, page.next), (vec![given], 1, None));
        assert_eq!(index.projected().await.expect("reads"), Height(1));
    }

    #[tokio::test]
    async fn projecting_a_height_again_changes_nothing() {
        let (_dir, index) = index().await;
        let rows = [row(1, 1, 10), row(1, 2, 20)];
        let projected = index.project(Height(1), (&rows, &[]), &[]).await.expect("projects");
        assert_eq!(
            projected,
            Projected {
                inserted: 2,
                duplicates: 0
            }
        );
        assert_eq!(
            index.project(Height(1), (&rows, &[]), &[]).await.expect("projects"),
            Projected::default()
        );
        assert_eq!(index.counts().await.expect("counts").duplicates, 0);
        let again = Row {
            bundle: BundleId(Digest::ZERO),
            height: Height(2),
            ..row(1, 2, 20)
        };
        let projected = index
            .project(Height(2), (&[again, row(1, 3, 30)], &[]), &[])
            .await
            .expect("projects");
        assert_eq!(
            projected,
            Projected {
                inserted: 1,
                duplicates: 1
            }
        );
        let counts = index.counts().await.expect("counts");
        assert_eq!((counts.observations, counts.duplicates), (3, 1));
    }

    #[tokio::test]
    async fn pages_stay_as_they_are_while_rows_are_added() {
        let (_dir, index) = index().await;
        let rows: Vec<_> = (1..=7)
            .map(|seq| row(1, seq, 100 + i64::try_from(seq / 3).expect("small")))
            .collect();
        index.project(Height(1), (&rows, &[]), &[]).await.expect("projects");
        let (permits, mut search, mut seen) = (permits(&[1]), search(3), Vec::new());
        for round in 0u8.. {
            let page = index.find(&permits, &search).await.expect("finds");
            assert_eq!((page.total, page.height), (7, Height(1)));
            seen.extend(page.rows);
            let newer = row(1, 100 + u64::from(round), 101);
            index
                .project(Height(2 + u64::from(round)), (&[newer], &[]), &[])
                .await
                .expect("projects");
            let Some(next) = page.next else { break };
            search.cursor = Some(next.to_string().parse().expect("our own cursor"));
        }
        let mut expected = rows;
        expected.sort_by(|a, b| (b.effective_ms, &b.id).cmp(&(a.effective_ms, &a.id)));
        assert_eq!(seen, expected);
    }

    #[tokio::test]
    async fn nobody_sees_or_counts_a_row_without_its_permit() {
        let (_dir, index) = index().await;
        index
            .project(Height(1), (&[row(1, 1, 10), row(2, 2, 20), row(2, 3, 30)], &[]), &[])
            .await
            .expect("projects");
        assert_eq!(index.find(&permits(&[1]), &search(10)).await.expect("finds").total, 1);
        assert_eq!(index.find(&permits(&[1, 2]), &search(0)).await.expect("finds").total, 3);
        let nothing = index.find(&[], &search(10)).await.expect("finds");
        assert_eq!((nothing.total, nothing.rows.len()), (0, 0));
        let by_id = Search {
            ids: vec![row(2, 2, 20).id],
            ..search(10)
        };
        assert_eq!(index.find(&permits(&[1]), &by_id).await.expect("finds").total, 0);
        assert_eq!(index.find(&permits(&[2]), &by_id).await.expect("finds").total, 1);
    }

    #[tokio::test]
    async fn each_criterion_restricts() {
        let (_dir, index) = index().await;
        let rows: Vec<_> = (1..=6)
            .map(|seq| row(1, seq, i64::try_from(seq).expect("small") * 10))
            .collect();
        index.project(Height(1), (&rows, &[]), &[]).await.expect("projects");
        let permits = permits(&[1]);
        let total = async |search: Search| index.find(&permits, &search).await.expect("finds").total;
        let range = |from_ms, to_ms| DateRange { from_ms, to_ms };
        assert_eq!(
            total(Search {
                codes: vec!["8867-4".to_owned()],
                ..search(10)
            })
            .await,
            3
        );
        assert_eq!(
            total(Search {
                dates: vec![range(20, 50)],
                ..search(10)
            })
            .await,
            3
        );
        assert_eq!(
            total(Search {
                dates: vec![range(20, 50), range(40, 99)],
                ..search(10)
            })
            .await,
            1
        );
        assert_eq!(
            total(Search {
                subject: Some(SubjectId::random()),
                ..search(10)
            })
            .await,
            0
        );
        assert_eq!(
            total(Search {
                height: Height(0),
                ..search(10)
            })
            .await,
            0
        );
        let broad = Search {
            codes: vec![String::new(); CRITERIA_MAX],
            ..search(10)
        };
        assert!(matches!(index.find(&permits, &broad).await, Err(Error::TooBroad(_))));
    }

    #[tokio::test]
    async fn a_rejected_bundle_is_settled_once_and_visible_with_the_next_height() {
        let (_dir, index) = index().await;
        let late = row(1, 1, 10);
        let missing = Rejection {
            bundle: late.bundle,
            entry: None,
            reason: "payload-missing",
            height: Height(1),
        };
        index
            .project(Height(1), (&[], &[]), &[missing])
            .await
            .expect("projects");
        let pending = index.pending(&["payload-missing"], 10).await.expect("reads");
        assert_eq!(
            pending,
            [Pending {
                bundle: late.bundle,
                height: Height(1)
            }]
        );
        index
            .settle(late.bundle, (&[], &[]), &[missing])
            .await
            .expect("still missing");
        assert_eq!(index.counts().await.expect("counts").payloads_missing, 1);
        for inserted in [1, 0] {
            let settled = index
                .settle(late.bundle, (std::slice::from_ref(&late), &[]), &[])
                .await
                .expect("settles");
            assert_eq!(
                settled,
                Projected {
                    inserted,
                    duplicates: 0
                }
            );
        }
        assert_eq!(index.find(&permits(&[1]), &search(10)).await.expect("finds").total, 0);
        index.project(Height(2), (&[], &[]), &[]).await.expect("projects");
        assert_eq!(
            index.find(&permits(&[1]), &search(10)).await.expect("finds").rows,
            [late]
        );
        assert_eq!(
            index.counts().await.expect("counts"),
            Counts {
                observations: 1,
                ..Counts::default()
            }
        );
    }

    /// What a gateway says at a time is missing of one start of a device; nothing, if no range is.
    pub(crate) fn gap_report((device, boot): (DeviceId, BootId), at_ms: i64, missing: Vec<Range>) -> GapReport {
        let start = Start {
            boot,
            high_seq: 1_000,
            missing,
        };
        GapReport {
            v: record::gaps::VERSION,
            network: record::ids::NetworkId(Digest::ZERO),
            gateway: "home-1".parse().expect("good"),
            device,
            at_ms,
            missing: Missing {
                starts: Some(start)
                    .filter(|start| !start.missing.is_empty())
                    .into_iter()
                    .collect(),
                more_ranges: 0,
            },
        }
    }

    fn reported(seed: u8, at_ms: i64, missing: &[(u64, u64)], height: u64) -> Reported {
        let of = row(seed, 1, 10);
        let missing: Vec<_> = missing.iter().map(|(from, to)| Range(*from, *to)).collect();
        Reported {
            key: of.key,
            bundle: BundleId(Digest::of(Domain::BUNDLE, &[&at_ms.to_be_bytes()])),
            entry: 1,
            height: Height(height),
            report: gap_report((of.reading.device, of.reading.boot), at_ms, missing),
        }
    }

    #[tokio::test]
    async fn of_each_device_the_newest_report_that_a_permit_opens_holds_as_of_a_height() {
        let (_dir, index) = index().await;
        let (gap, wider, closed) = (
            reported(1, 10, &[(2, 2), (5, 9)], 1),
            reported(1, 20, &[(2, 9)], 2),
            reported(2, 30, &[], 3),
        );
        let rows = [row(1, 5, 10), row(1, 6, 20), row(2, 7, 30)];
        for (height, found, rows) in [(1, &gap, &rows[..]), (2, &wider, &[]), (3, &closed, &[])] {
            let found = (rows, std::slice::from_ref(found));
            index.project(Height(height), found, &[]).await.expect("projects");
        }
        let newest = async |seeds: &[u8], height| {
            let found = index.gaps(&permits(seeds), Height(height), 9).await.expect("reads");
            found.into_iter().map(|one| one.report.at_ms).collect::<Vec<_>>()
        };
        assert_eq!(newest(&[1], 1).await, [10], "as of then");
        assert_eq!(newest(&[1], 9).await, [20]);
        assert_eq!(
            newest(&[1, 2], 9).await,
            [0; 0],
            "under another key everything has come"
        );
        assert_eq!((newest(&[2], 9).await, newest(&[], 9).await), (vec![], vec![]));
        let held = async |seeds: &[u8]| {
            let missing = (&gap.report.device, &gap.report.missing.starts[0]);
            index.held(&permits(seeds), Height(9), missing).await.expect("reads")
        };
        assert_eq!(held(&[1]).await, [5, 6], "what no permit opens is not there");
        assert_eq!(held(&[1, 2]).await, [5, 6, 7]);
    }

    #[test]
    fn only_our_own_cursors_parse() {
        let cursor = Cursor {
            effective_ms: -1,
            id: [7; 16],
            height: Height(9),
        };
        let text = cursor.to_string();
        assert_eq!(text.parse(), Ok(cursor));
        let other_version = URL_SAFE_NO_PAD.encode([&[9][..], &[0; 32]].concat());
        for bad in [
            "",
            "AA",
            "' OR 1=1",
            &text[1..],
            &format!("{text}AA"),
            &format!("{text}="),
            &other_version,
        ] {
            assert_eq!(bad.parse::<Cursor>(), Err(BadCursor), "{bad}");
        }
    }
}
