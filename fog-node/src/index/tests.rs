//! The index on each of its databases: one suite for both.

mod alterations;
mod outages;
pub(crate) mod server;

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
    ids::{BootId, DeviceId, OrganizationId, ReadingId},
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

pub(crate) fn row(seed: u8, seq: u64, effective_ms: i64) -> Row {
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

/// An empty index, and where it is.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: Config,
}

impl World {
    /// None if the database is not installed.
    pub(crate) async fn on(driver: Driver) -> Option<Self> {
        match driver {
            Driver::Sqlite => Some(Self {
                dir: tempfile::tempdir().expect("a folder"),
                config: Config::default(),
            }),
            Driver::Mysql => Some(Self::at(server::shared()?).await),
        }
    }

    /// A database of its own on a server.
    pub(crate) async fn at(server: &server::Server) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let config = server.database().await;
        server.migrate(&config).await;
        println!("MariaDB {}", server.version().await);
        Self {
            dir: tempfile::tempdir().expect("a folder"),
            config,
        }
    }

    /// What the database's administrator does, who may do everything there.
    async fn alter(&self, index: &Index, statement: &'static str) {
        match self.config.driver {
            Driver::Sqlite => index.execute(statement).await,
            Driver::Mysql => {
                let server = server::shared().expect("the index is in it");
                let database = &self.config.mysql.database;
                let sql = format!("USE `{database}`; SET SESSION sql_mode = 'PIPES_AS_CONCAT'; {statement}");
                server.sql(&sql).await;
            }
        }
    }

    pub(crate) async fn open(&self) -> Index {
        let index = Index::open(&self.config, self.dir.path()).await.expect("opens");
        index.ready().await.expect("counts");
        index
    }
}

/// Runs each test on each database.
macro_rules! on_each_database {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                let world = crate::index::tests::World::on(crate::index::Driver::Sqlite).await;
                super::$test(world.expect("SQLite is always there")).await;
            })+
        }
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                if let Some(world) = crate::index::tests::World::on(crate::index::Driver::Mysql).await {
                    super::$test(world).await;
                }
            })+
        }
    };
}
pub(crate) use on_each_database;

on_each_database!(
    a_row_comes_back_as_it_went_in_also_after_a_restart,
    projecting_a_height_again_changes_nothing,
    pages_stay_as_they_are_while_rows_are_added,
    nobody_sees_or_counts_a_row_without_its_permit,
    each_criterion_restricts,
    texts_compare_byte_by_byte,
    a_rejected_bundle_is_settled_once_and_visible_with_the_next_height,
    of_each_device_the_newest_report_that_a_permit_opens_holds_as_of_a_height,
    what_is_erased_is_gone_and_the_rest_is_as_it_was,
);

impl Index {
    /// Takes in a block that follows after the one before.
    pub(crate) async fn take(&self, height: u64, found: Contents<'_>, rejections: &[Rejection]) -> Projected {
        let heights = (Height(height - 1), Height(height));
        let taken = self.project(heights, found, rejections).await.expect("projects");
        taken.unwrap_or_default()
    }
}

fn search(count: u32) -> Search {
    Search {
        count,
        height: Height(u64::MAX),
        ..Search::default()
    }
}

async fn a_row_comes_back_as_it_went_in_also_after_a_restart(world: World) {
    let index = world.open().await;
    let given = Row {
        received_ms: i64::MAX,
        ..row(1, u64::MAX, i64::MIN)
    };
    index.take(1, (std::slice::from_ref(&given), &[]), &[]).await;
    let index = world.open().await;
    let page = index.find(&permits(&[1]), &search(10)).await.expect("finds");
    assert_eq!((page.rows, page.total, page.next), (vec![given], 1, None));
    assert_eq!(index.projected().await.expect("reads"), Height(1));
}

async fn projecting_a_height_again_changes_nothing(world: World) {
    let index = world.open().await;
    let rows = [row(1, 1, 10), row(1, 2, 20)];
    let projected = index.take(1, (&rows, &[]), &[]).await;
    assert_eq!(
        projected,
        Projected {
            inserted: 2,
            duplicates: 0
        }
    );
    assert_eq!(index.take(1, (&rows, &[]), &[]).await, Projected::default());
    assert_eq!(index.counts().await.expect("counts").duplicates, 0);
    let again = Row {
        bundle: BundleId(Digest::ZERO),
        height: Height(2),
        ..row(1, 2, 20)
    };
    let projected = index.take(2, (&[again, row(1, 3, 30)], &[]), &[]).await;
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

async fn pages_stay_as_they_are_while_rows_are_added(world: World) {
    let index = world.open().await;
    let rows: Vec<_> = (1..=7)
        .map(|seq| row(1, seq, 100 + i64::try_from(seq / 3).expect("small")))
        .collect();
    index.take(1, (&rows, &[]), &[]).await;
    let (permits, mut search, mut seen) = (permits(&[1]), search(3), Vec::new());
    for round in 0u8.. {
        let page = index.find(&permits, &search).await.expect("finds");
        assert_eq!((page.total, page.height), (7, Height(1)));
        seen.extend(page.rows);
        let newer = row(1, 100 + u64::from(round), 101);
        index.take(2 + u64::from(round), (&[newer], &[]), &[]).await;
        let Some(next) = page.next else { break };
        search.cursor = Some(next.to_string().parse().expect("our own cursor"));
    }
    let mut expected = rows;
    expected.sort_by(|a, b| (b.effective_ms, &b.id).cmp(&(a.effective_ms, &a.id)));
    assert_eq!(seen, expected);
}

async fn nobody_sees_or_counts_a_row_without_its_permit(world: World) {
    let index = world.open().await;
    index
        .take(1, (&[row(1, 1, 10), row(2, 2, 20), row(2, 3, 30)], &[]), &[])
        .await;
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

async fn each_criterion_restricts(world: World) {
    let index = world.open().await;
    let rows: Vec<_> = (1..=6)
        .map(|seq| row(1, seq, i64::try_from(seq).expect("small") * 10))
        .collect();
    index.take(1, (&rows, &[]), &[]).await;
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

async fn a_rejected_bundle_is_settled_once_and_visible_with_the_next_height(world: World) {
    let index = world.open().await;
    let late = row(1, 1, 10);
    let missing = Rejection {
        bundle: late.bundle,
        entry: None,
        reason: "payload-missing",
        height: Height(1),
    };
    index.take(1, (&[], &[]), &[missing]).await;
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
    index.take(2, (&[], &[]), &[]).await;
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

async fn of_each_device_the_newest_report_that_a_permit_opens_holds_as_of_a_height(world: World) {
    let index = world.open().await;
    let (gap, wider, closed) = (
        reported(1, 10, &[(2, 2), (5, 9)], 1),
        reported(1, 20, &[(2, 9)], 2),
        reported(2, 30, &[], 3),
    );
    let rows = [row(1, 5, 10), row(1, 6, 20), row(2, 7, 30)];
    for (height, found, rows) in [(1, &gap, &rows[..]), (2, &wider, &[]), (3, &closed, &[])] {
        let found = (rows, std::slice::from_ref(found));
        index.take(height, found, &[]).await;
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

async fn texts_compare_byte_by_byte(world: World) {
    let index = world.open().await;
    let coded = |seq, code: &str| Row {
        code: code.to_owned(),
        ..row(1, seq, 10)
    };
    let codes = ["a", "A", "a ", "\u{e4}", "ae"];
    let rows: Vec<_> = (1..).zip(codes).map(|(seq, code)| coded(seq, code)).collect();
    index.take(1, (&rows, &[]), &[]).await;
    for code in codes {
        let by_code = Search {
            codes: vec![code.to_owned()],
            ..search(10)
        };
        let found = index.find(&permits(&[1]), &by_code).await.expect("finds").rows;
        assert_eq!(found.iter().map(|row| row.code.as_str()).collect::<Vec<_>>(), [code]);
    }
}

async fn what_is_erased_is_gone_and_the_rest_is_as_it_was(world: World) {
    let index = world.open().await;
    // More than one step removes.
    let of = |seed: u8| (1..=600).map(move |at| row(seed, at * 10 + u64::from(seed), at.cast_signed() * 60_000));
    let (erased, kept): (Vec<_>, Vec<_>) = (of(1).collect(), of(2).collect());
    let reports = [(1, 10), (1, 20), (2, 30)].map(|(seed, at_ms)| reported(seed, at_ms, &[(1, 1)], 1));
    index.take(1, (&erased, &reports), &[]).await;
    index.take(2, (&kept, &[]), &[]).await;
    // Somebody has invented a row under the key: it goes, too.
    world
        .alter(
            &index,
            "INSERT INTO observation SELECT 'g' || substr(id, 2), subject_key, subject, code, effective_ms, received_ms, device, \
             boot, seq + 100000, ordinal, bundle, cid, entry, height, visible_from, tag FROM observation WHERE seq = 11",
        )
        .await;
    let (mine, others) = (permits(&[1]), permits(&[2]));
    let before = index.find(&others, &search(1_000)).await.expect("finds").rows;
    assert_eq!(before.len(), kept.len());
    let key = subject_key(1).id();
    assert_eq!(index.erase(key).await.expect("erases"), 600 + 2 + 1);
    assert_eq!(index.erase(key).await.expect("erases"), 0);
    for index in [index.clone(), world.open().await] {
        assert_eq!(index.find(&mine, &search(10)).await.expect("finds").total, 0);
        assert_eq!(index.find(&others, &search(1_000)).await.expect("finds").rows, before);
        assert_eq!(index.gaps(&mine, Height(9), 9).await.expect("reads"), []);
        assert_eq!(index.gaps(&others, Height(9), 9).await.expect("reads").len(), 1);
        assert_eq!(index.counts().await.expect("counts").observations, 600);
    }
    if world.config.driver == Driver::Sqlite {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(world.dir.path()).expect("a folder") {
            files.extend(std::fs::read(entry.expect("an entry").path()).expect("a file"));
        }
        let stands = |row: &Row| files.windows(row.id.len()).any(|window| window == row.id.as_bytes());
        assert!(stands(&kept[0]), "what is looked for can be found");
        assert!(!erased.iter().step_by(50).any(stands), "nothing of it is on the disk");
    }
}
