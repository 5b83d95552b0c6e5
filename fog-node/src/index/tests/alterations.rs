//! Whatever an administrator of the database writes there, a question finds it or is answered as if it had not been.

use super::*;

on_each_database!(
    no_altered_row_is_ever_served,
    a_row_moved_out_of_a_page_is_missed_there,
    an_index_of_another_key_is_refused,
    an_index_put_back_to_an_older_state_goes_on_from_there,
    what_was_altered_while_nobody_looked_is_found_when_it_is_opened,
);

const HOUR_MS: i64 = 3_600_000;

/// Twelve rows, an hour apart, and a gap report.
async fn filled(world: &World) -> (Index, Vec<Row>) {
    let index = world.open().await;
    let rows: Vec<_> = (1..=12u32)
        .map(|at| Row {
            height: Height(1 + u64::from(at % 3)),
            ..row(1, u64::from(at), i64::from(at) * HOUR_MS)
        })
        .collect();
    for height in 1..=3 {
        let own: Vec<_> = rows
            .iter()
            .filter(|row| row.height == Height(height))
            .cloned()
            .collect();
        let report = reported(1, 10, &[(100, 200)], height);
        let reports = if height == 1 { vec![report] } else { vec![] };
        index.take(height, (&own, &reports), &[]).await;
    }
    (index, rows)
}

/// What is altered, each time in a copy of the good rows.
const ALTERATIONS: [&str; 17] = [
    "UPDATE observation SET code = '8310-5' WHERE seq = 4",
    "UPDATE observation SET effective_ms = effective_ms + 1 WHERE seq = 4",
    "UPDATE observation SET effective_ms = effective_ms - 86400000 WHERE seq = 4",
    "UPDATE observation SET received_ms = 7 WHERE seq = 4",
    "UPDATE observation SET subject = 'ffffffff-8b86-4d01-b42d-00c04fc964ff' WHERE seq = 4",
    "UPDATE observation SET subject_key = x'0000000000000000000000000000000000000000000000000000000000000000' WHERE seq = 4",
    "UPDATE observation SET bundle = x'0000000000000000000000000000000000000000000000000000000000000000' WHERE seq = 4",
    "UPDATE observation SET entry = 9 WHERE seq = 4",
    "UPDATE observation SET height = 9 WHERE seq = 4",
    "UPDATE observation SET visible_from = 9000000000000000000 WHERE seq = 4",
    "UPDATE observation SET cid = 'nonsense' WHERE seq = 4",
    "UPDATE observation SET tag = x'00' WHERE seq = 4",
    "DELETE FROM observation WHERE seq = 4",
    "DELETE FROM observation",
    "INSERT INTO observation SELECT 'g' || substr(id, 2), subject_key, subject, code, effective_ms, received_ms, device, boot, \
     seq + 100, ordinal, bundle, cid, entry, height, visible_from, tag FROM observation WHERE seq = 4",
    "UPDATE progress SET projected = 2",
    "UPDATE progress SET observations = 11",
];

async fn no_altered_row_is_ever_served(world: World) {
    let (index, rows) = filled(&world).await;
    let permits = permits(&[1]);
    let good = index.find(&permits, &search(100)).await.expect("finds").rows;
    assert_eq!(good.len(), rows.len());
    world
        .alter(&index, "CREATE TABLE kept AS SELECT * FROM observation")
        .await;
    world
        .alter(&index, "CREATE TABLE kept_progress AS SELECT * FROM progress")
        .await;
    for alteration in ALTERATIONS {
        let alarms = index.alarms();
        world.alter(&index, alteration).await;
        let mut found = 0;
        // The whole, pages of it, and the number alone.
        for count in [100, 3, 0] {
            let mut asked = search(count);
            loop {
                match index.find(&permits, &asked).await {
                    Err(Error::Altered(_)) => {
                        found += 1;
                        break;
                    }
                    Ok(page) => {
                        let is_good = page.rows.iter().all(|row| good.contains(row));
                        assert!(is_good && page.total == 12, "{alteration}: {page:?}");
                        let Some(next) = page.next else { break };
                        asked.cursor = Some(next);
                    }
                    Err(error) => panic!("{alteration}: {error}"),
                }
            }
        }
        assert!(found > 0, "{alteration}");
        assert!(alarms.has_changed().expect("it is open"), "{alteration}");
        for restore in [
            "DELETE FROM observation",
            "INSERT INTO observation SELECT * FROM kept",
            "DELETE FROM progress",
            "INSERT INTO progress SELECT * FROM kept_progress",
        ] {
            world.alter(&index, restore).await;
        }
        assert_eq!(index.find(&permits, &search(100)).await.expect("finds").rows, good);
    }
    let reports = index.gaps(&permits, Height(9), 9).await.expect("reads");
    assert_eq!(reports.len(), 1);
    world
        .alter(&index, "CREATE TABLE kept_reports AS SELECT * FROM gap_report")
        .await;
    for alteration in [
        "UPDATE gap_report SET reported_ms = 1",
        "UPDATE gap_report SET ranges = 0",
        "UPDATE gap_report SET visible_from = 9000000000000000000",
        "UPDATE gap_report SET device = 'another-1'",
        "DELETE FROM gap_report",
    ] {
        world.alter(&index, alteration).await;
        let found = index.gaps(&permits, Height(9), 9).await;
        assert!(matches!(found, Err(Error::Altered(_))), "{alteration}: {found:?}");
        world.alter(&index, "DELETE FROM gap_report").await;
        world
            .alter(&index, "INSERT INTO gap_report SELECT * FROM kept_reports")
            .await;
        assert_eq!(index.gaps(&permits, Height(9), 9).await.expect("reads"), reports);
    }
}

async fn a_row_moved_out_of_a_page_is_missed_there(world: World) {
    let (index, _) = filled(&world).await;
    // The total over all time stays what it was.
    world
        .alter(&index, "UPDATE observation SET effective_ms = 3600000 WHERE seq = 6")
        .await;
    let permits = permits(&[1]);
    let one_hour = Search {
        dates: vec![DateRange {
            from_ms: 6 * HOUR_MS,
            to_ms: 7 * HOUR_MS,
        }],
        ..search(10)
    };
    for asked in [one_hour, search(7)] {
        let found = index.find(&permits, &asked).await;
        assert!(matches!(found, Err(Error::Altered(_))), "{found:?}");
    }
    // By its id nobody finds one that is gone, and is told so.
    world.alter(&index, "DELETE FROM observation WHERE seq = 7").await;
    let by_id = Search {
        ids: vec![row(1, 7, 0).id],
        ..search(10)
    };
    assert!(matches!(index.find(&permits, &by_id).await, Err(Error::Altered(_))));
}

async fn an_index_of_another_key_is_refused(world: World) {
    let (_index, _) = filled(&world).await;
    std::fs::remove_file(world.dir.path().join("index.key")).expect("removes");
    let index = Index::open(&world.config, world.dir.path()).await.expect("opens");
    let error = index.ready().await.expect_err("not its rows");
    assert!(error.to_string().contains("index.key"), "{error}");
    assert!(index.find(&permits(&[1]), &search(10)).await.is_err());
    // Whoever wants it all the same begins anew.
    index.clear().await.expect("clears");
    index.ready().await.expect("counts");
    assert_eq!(index.projected().await.expect("reads"), Height(0));
    assert_eq!(index.counts().await.expect("counts").observations, 0);
}

async fn an_index_put_back_to_an_older_state_goes_on_from_there(world: World) {
    let index = world.open().await;
    index.take(1, (&[row(1, 1, 10)], &[]), &[]).await;
    world
        .alter(&index, "CREATE TABLE kept AS SELECT * FROM observation")
        .await;
    world
        .alter(&index, "CREATE TABLE kept_progress AS SELECT * FROM progress")
        .await;
    let later = Row {
        height: Height(2),
        ..row(1, 2, 20)
    };
    index.take(2, (std::slice::from_ref(&later), &[]), &[]).await;
    for restore in [
        "DELETE FROM observation",
        "INSERT INTO observation SELECT * FROM kept",
        "DELETE FROM progress",
        "INSERT INTO progress SELECT * FROM kept_progress",
    ] {
        world.alter(&index, restore).await;
    }
    // It is not where it was: nothing is taken in on top, and what is missing comes again.
    let taken = index
        .project((Height(2), Height(3)), (&[], &[]), &[])
        .await
        .expect("reads");
    assert_eq!((taken, index.projected().await.expect("reads")), (None, Height(1)));
    let index = world.open().await;
    index.take(2, (&[later], &[]), &[]).await;
    assert_eq!(index.find(&permits(&[1]), &search(10)).await.expect("finds").total, 2);
}

async fn what_was_altered_while_nobody_looked_is_found_when_it_is_opened(world: World) {
    let (index, _) = filled(&world).await;
    world.alter(&index, "DELETE FROM observation WHERE seq = 4").await;
    assert!(index.is_counted().await);
    drop(index);
    let index = Index::open(&world.config, world.dir.path()).await.expect("opens");
    let ready = index.ready().await;
    assert!(!index.is_counted().await, "a node with such an index is not ready");
    assert!(matches!(ready, Err(Error::Altered(_))), "{ready:?}");
    let again = index.ready().await.expect_err("nobody has mended it");
    assert!(
        again.to_string().contains("being mended"),
        "they are not counted again before: {again}"
    );
    assert_eq!(
        index.suspects().await.expect("looks"),
        Suspects::All,
        "nobody knows where"
    );
    assert!(
        index.find(&permits(&[1]), &search(10)).await.is_err(),
        "nothing is served meanwhile"
    );
}
