//! A server that is down, slow, full, deadlocked, or not what it has to be: what a node sees of it, and that it comes back.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _, mysql::MySqlConnection};

use super::{server::Server, *};

const PATIENCE: Duration = Duration::from_secs(60);

async fn sql(connection: &mut MySqlConnection, text: String) -> Result<(), sqlx::Error> {
    connection.execute(sqlx::raw_sql(AssertSqlSafe(text))).await.map(|_| ())
}

/// A database on a server, that is not waited for for long.
async fn opened(server: &Server) -> World {
    let mut world = World::at(server).await;
    world.config.mysql.statement_timeout_ms = 3_000;
    world
}

async fn eventually<T, F: Future<Output = Result<T, Error>>>(what: &str, work: impl Fn() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match work().await {
            Ok(done) => return done,
            Err(error) => assert!(Instant::now() < deadline, "{what}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_rights_are_few_and_what_it_lacks_is_told() {
    let Some(server) = server::shared() else { return };
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut config = server.database().await;
    let name = config.mysql.database.clone();
    let dir = tempfile::tempdir().expect("a folder");
    let told = async |config: &Config| {
        let index = Index::open(config, dir.path()).await.expect("a node runs without");
        index.ready().await.expect_err("not yet").to_string()
    };
    assert!(
        told(&config).await.contains("fog-node index migrate"),
        "{}",
        told(&config).await
    );
    // It cannot make the tables itself.
    assert!(Index::migrate(&config).await.is_err());
    server.migrate(&config).await;
    server.migrate(&config).await;
    let index = Index::open(&config, dir.path()).await.expect("opens");
    index.ready().await.expect("four rights are enough");
    index.take(1, (&[row(1, 1, 10)], &[]), &[]).await;
    for statement in [
        "DROP TABLE observation",
        "CREATE TABLE x (a INT)",
        "ALTER TABLE progress ADD x INT",
    ] {
        let mut session = index.database().write().await.expect("a session");
        assert!(session.execute(Statement::new(statement)).await.is_err(), "{statement}");
    }
    // The server's own default is lax; the session is not.
    let mut session = index.database().write().await.expect("a session");
    let long =
        "INSERT INTO rejected (bundle, entry, reason, height, attempts) VALUES (x'00', 1, REPEAT('x', 99), 1, 1)";
    assert!(
        session.execute(Statement::new(long)).await.is_err(),
        "nothing is cut off"
    );
    drop(session);
    server
        .sql(&format!("REVOKE INSERT ON `{name}`.* FROM `{name}`@`127.0.0.1`"))
        .await;
    let refused = Index::open(&config, dir.path()).await.expect("opens");
    assert!(
        refused
            .project((Height(1), Height(2)), (&[row(1, 2, 10)], &[]), &[])
            .await
            .is_err()
    );
    server
        .sql(&format!("UPDATE `{name}`._sqlx_migrations SET checksum = x'00'"))
        .await;
    assert!(told(&config).await.contains("another version"));
    config.mysql.password_file = Some(dir.path().join("wrong"));
    std::fs::write(dir.path().join("wrong"), "guessed").expect("written");
    let error = told(&config).await;
    assert!(error.contains("GRANT SELECT, INSERT, UPDATE, DELETE"), "{error}");
    assert!(!error.contains("guessed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_another_authority_vouches_for_is_not_believed() {
    let Some(server) = server::shared() else { return };
    let world = opened(server).await;
    world.open().await;
    let Some(other) = Server::new() else { return };
    let mut config = world.config.clone();
    config.mysql.ca_file = other.database().await.mysql.ca_file;
    let index = Index::open(&config, world.dir.path()).await.expect("opens");
    assert!(matches!(index.ready().await, Err(Error::Database(_))));
    // By a name that is not in its certificate.
    let mut config = world.config.clone();
    config.mysql.hosts[0] = config.mysql.hosts[0].replace("127.0.0.1", "localhost");
    let index = Index::open(&config, world.dir.path()).await.expect("opens");
    assert!(matches!(index.ready().await, Err(Error::Database(_))));
    // It is encrypted: the server itself says so.
    server
        .sql(&format!(
            "ALTER USER `{}`@`127.0.0.1` REQUIRE SSL",
            world.config.mysql.user
        ))
        .await;
    world.open().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_lock_and_a_deadlock_are_waited_out() {
    let Some(server) = server::shared() else { return };
    let world = opened(server).await;
    let (index, name) = (world.open().await, &world.config.mysql.database);
    let mut other = server.root().await;
    sql(
        &mut other,
        format!("USE `{name}`; BEGIN; SELECT * FROM progress FOR UPDATE"),
    )
    .await
    .expect("locks");
    let taken = tokio::spawn({
        let index = index.clone();
        async move { index.take(1, (&[row(1, 1, 10)], &[]), &[]).await }
    });
    waits(server, name).await;
    sql(&mut other, "COMMIT".to_owned()).await.expect("commits");
    assert_eq!(taken.await.expect("ends").inserted, 1);
    // Each has what the other one wants: the server ends one of them.
    let next = Row {
        height: Height(2),
        ..row(1, 2, 20)
    };
    let copy = format!(
        "BEGIN; INSERT INTO observation SELECT '{}', subject_key, subject, code, effective_ms, received_ms, device, boot, 7, ordinal, \
         bundle, cid, entry, height, visible_from, tag FROM observation",
        next.id
    );
    sql(&mut other, copy).await.expect("inserts");
    let taken = tokio::spawn({
        let (index, next) = (index.clone(), next.clone());
        async move { index.take(2, (&[next], &[]), &[]).await }
    });
    waits(server, name).await;
    // Whoever is ended: the other one goes on.
    let _ended = sql(&mut other, "SELECT * FROM progress FOR UPDATE".to_owned()).await;
    let _ended = sql(&mut other, "ROLLBACK".to_owned()).await;
    assert_eq!(taken.await.expect("ends").inserted, 1);
    assert_eq!(index.find(&permits(&[1]), &search(10)).await.expect("finds").total, 2);
}

/// Until a statement waits for a lock.
async fn waits(server: &Server, database: &str) {
    let deadline = Instant::now() + PATIENCE;
    let mut root = server.root().await;
    loop {
        let waiting = sqlx::query(
            "SELECT trx_id FROM information_schema.innodb_trx JOIN information_schema.processlist ON id = trx_mysql_thread_id \
             WHERE trx_state = 'LOCK WAIT' AND db = ?",
        );
        let waiting = root.fetch_all(waiting.bind(database)).await;
        if !waiting.expect("reads").is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "nobody waits");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_or_is_killed_or_full_comes_back_and_nothing_is_lost() {
    let Some(mut server) = Server::new() else { return };
    let world = opened(&server).await;
    let index = world.open().await;
    index.take(1, (&[row(1, 1, 10)], &[]), &[]).await;
    let second = Row {
        height: Height(2),
        ..row(1, 2, 20)
    };
    let found = (std::slice::from_ref(&second), &[][..]);
    let permits = &permits(&[1])[..];
    let total = || async { Ok(index.find(permits, &search(10)).await?.total) };

    server.signal(Signal::STOP);
    let begun = Instant::now();
    assert!(matches!(total().await, Err(Error::Database(_))));
    assert!(matches!(
        index.project((Height(1), Height(2)), found, &[]).await,
        Err(Error::Database(_))
    ));
    assert!(begun.elapsed() < PATIENCE, "it does not wait for ever");
    server.signal(Signal::CONT);
    // What became of the interrupted commit is not known: either way it is there once.
    eventually("it goes on", || async {
        index.ready().await?;
        index.project((Height(1), Height(2)), found, &[]).await
    })
    .await;
    assert_eq!(
        (
            eventually("it reads", total).await,
            index.projected().await.expect("reads")
        ),
        (2, Height(2))
    );

    server.kill();
    assert!(matches!(total().await, Err(Error::Database(_))));
    server.start();
    assert_eq!(eventually("it is back", total).await, 2);

    server.sql("SET GLOBAL max_connections = 10").await;
    let mut others = Vec::new();
    while let Ok(other) = server.administrator().connect().await {
        others.push(other);
    }
    // Its own idle connections are used up by a new index, which has none.
    let full = Index::open(&world.config, world.dir.path()).await.expect("opens");
    assert!(matches!(full.ready().await, Err(Error::Database(_))));
    drop(others);
    eventually("there is room again", || full.ready()).await;
    assert_eq!(full.find(permits, &search(10)).await.expect("finds").total, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_used_in_their_order_and_the_next_one_takes_over() {
    let (Some(mut first), Some(second)) = (Server::new(), Server::new()) else {
        return;
    };
    let mut world = opened(&first).await;
    let other = opened(&second).await;
    world
        .config
        .mysql
        .hosts
        .extend(other.config.mysql.hosts.iter().cloned());
    // Both authorities: a replica would have a certificate of the same one.
    let authorities = [&world.config, &other.config].map(|config| {
        let file = config.mysql.ca_file.as_ref().expect("named");
        std::fs::read_to_string(file).expect("reads")
    });
    world.config.mysql.ca_file = Some(world.dir.path().join("ca.crt"));
    std::fs::write(world.dir.path().join("ca.crt"), authorities.concat()).expect("written");
    let index = world.open().await;
    index.take(1, (&[row(1, 1, 10)], &[]), &[]).await;
    first.kill();
    // The other one knows nothing: the chain is projected there from the beginning.
    assert_eq!(eventually("the next", || index.projected()).await, Height(0));
    let taken = index
        .project((Height(1), Height(2)), (&[], &[]), &[])
        .await
        .expect("reads");
    assert_eq!(taken, None, "nothing is taken in on top of nothing");
    index.take(1, (&[row(1, 1, 10)], &[]), &[]).await;
    assert_eq!(index.find(&permits(&[1]), &search(10)).await.expect("finds").total, 1);
    // One that only reads is passed over.
    first.start();
    first.sql("SET GLOBAL read_only = 1").await;
    let again = world.open().await;
    assert_eq!(again.find(&permits(&[1]), &search(10)).await.expect("finds").total, 1);
    second.sql("SET GLOBAL read_only = 1").await;
    let none = Index::open(&world.config, world.dir.path()).await.expect("opens");
    let error = none.ready().await.expect_err("nobody takes writes").to_string();
    assert!(error.contains("read_only"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_logs_hold_no_password() {
    let Some(server) = server::shared() else { return };
    let world = opened(server).await;
    let index = world.open().await;
    index.take(1, (&[row(1, 1, 10)], &[]), &[]).await;
    let logs = server.logs();
    let stands = |what: &str| logs.windows(what.len()).any(|window| window == what.as_bytes());
    // What is looked for can be found: the logs are on.
    assert!(stands("INSERT INTO observation") && stands(&row(1, 1, 10).id));
    assert!(
        !stands(server::PASSWORD),
        "it was told to log in with, never in a statement"
    );
}
