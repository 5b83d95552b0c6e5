//! A MariaDB of the test's own: its folder, its port, its users; it ends with the test, also when that is killed.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Executor as _, Row as _,
    mysql::{MySqlConnectOptions, MySqlConnection},
};

use crate::index::{Config, Driver, Index, Mysql};

/// Programs of Debian's mariadb-server; `mariadbd` is where no ordinary user's PATH leads.
const SERVER: &str = "/usr/sbin/mariadbd";
/// The shell waits until the test's end of the pipe is gone, whatever ended the test; then it removes the folder that is named first, if
/// one is.
const LIFELINE: &str = r#"folder=$1; shift; "$@" & pid=$!; echo $pid; read -r _; kill -CONT $pid 2>/dev/null; kill $pid 2>/dev/null
wait $pid; [ -z "$folder" ] || rm -rf "$folder"; exit 0"#;
/// The tests' servers are slow to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// The password of the users that the tests make: only this machine reaches the server.
pub(crate) const PASSWORD: &str = "only-on-this-machine";
/// As the server keeps it: nobody but the index tells it the password itself.
const PASSWORD_HASH: &str = "*823A1B897929FEF5FE2F04D2DD77211006673B60";

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    dir: tempfile::TempDir,
    port: u16,
    settings: &'static [&'static str],
    /// Nobody drops it: its shell removes its folder.
    is_shared: bool,
    lifeline: Option<(Child, ChildStdin, Pid)>,
    databases: AtomicU32,
}

/// Small, and it writes down everything that it is told.
const WATCHED: [&str; 5] = [
    "--innodb-buffer-pool-size=64M",
    "--log-bin=binlog",
    "--general-log",
    "--slow-query-log",
    "--long-query-time=0",
];
/// As a database administrator sets one up that is to hold a million rows.
const LARGE: [&str; 2] = ["--innodb-buffer-pool-size=2G", "--innodb-log-file-size=512M"];
/// Somebody else may take a port that was free a moment ago.
const TRIES: u32 = 5;

/// The server that most tests share; none if MariaDB is not installed, which is a failure in CI.
pub(crate) fn shared() -> Option<&'static Server> {
    static SHARED: OnceLock<Option<Server>> = OnceLock::new();
    SHARED.get_or_init(|| Server::with(&WATCHED, true)).as_ref()
}

impl Server {
    /// A server with an empty data folder; none if MariaDB is not installed.
    pub(crate) fn new() -> Option<Self> {
        Self::with(&WATCHED, false)
    }

    /// The same, for measurements.
    pub(crate) fn large() -> Option<Self> {
        Self::with(&LARGE, false)
    }

    fn with(settings: &'static [&'static str], is_shared: bool) -> Option<Self> {
        if !PathBuf::from(SERVER).exists() {
            let is_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
            assert!(
                !is_ci,
                "not run: MariaDB is not installed (apt-get install mariadb-server)"
            );
            println!("not run: MariaDB is not installed");
            return None;
        }
        let started = (0..TRIES).find_map(|_| Self::founded(settings, is_shared));
        Some(started.expect("MariaDB does not start: see above"))
    }

    /// None if it ends by itself.
    fn founded(settings: &'static [&'static str], is_shared: bool) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a folder");
        let mut install = Command::new("mariadb-install-db");
        install
            .args([
                "--no-defaults",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ])
            .arg(format!("--datadir={}", dir.path().join("data").display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if rustix::process::geteuid().is_root() {
            install.arg("--user=root");
        }
        assert!(install.status().expect("starts").success(), "mariadb-install-db");
        certificates(dir.path());
        // Once: the tests that share the server read it for each connection.
        fs::write(dir.path().join("password"), format!("{PASSWORD}\n")).expect("written");
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let mut server = Self {
            dir,
            port,
            settings,
            is_shared,
            lifeline: None,
            databases: AtomicU32::new(0),
        };
        if !server.begin() {
            println!("MariaDB does not start on port {port}:\n{}", server.log());
            return None;
        }
        Some(server)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("error.log")).unwrap_or_default()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts it, and waits until it answers.
    pub(crate) fn start(&mut self) {
        assert!(self.begin(), "MariaDB does not start:\n{}", self.log());
    }

    /// Whether it answers; not, if it has ended by itself.
    fn begin(&mut self) -> bool {
        let option = |name: &str, value: &str| format!("--{name}={value}");
        let file = |name: &str, file: &str| option(name, &self.path(file).display().to_string());
        let mut shell = Command::new("sh");
        shell.args(["-c", LIFELINE, "sh"]);
        shell.arg(if self.is_shared {
            self.dir.path()
        } else {
            std::path::Path::new("")
        });
        shell.args([SERVER, "--no-defaults"]).args([
            file("datadir", "data"),
            file("socket", "socket"),
            file("pid-file", "pid"),
            file("log-error", "error.log"),
            file("general-log-file", "general.log"),
            file("slow-query-log-file", "slow.log"),
            file("ssl-cert", "server.crt"),
            file("ssl-key", "server.key"),
            file("ssl-ca", "ca.crt"),
            option("port", &self.port.to_string()),
            option("bind-address", "127.0.0.1"),
            // Lax by itself: what the node needs, it asks for.
            option("sql-mode", ""),
            "--skip-name-resolve".to_owned(),
        ]);
        shell.args(self.settings);
        if rustix::process::geteuid().is_root() {
            shell.arg("--user=root");
        }
        let mut shell = shell
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let (stdin, stdout) = (shell.stdin.take().expect("piped"), shell.stdout.take().expect("piped"));
        let mut pid = String::new();
        BufReader::new(stdout).read_line(&mut pid).expect("a pid");
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw).expect("a pid");
        self.lifeline = Some((shell, stdin, pid));
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(self.path("socket")).is_err() {
            if self.log().contains("Aborting") {
                return false;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "MariaDB does not answer:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        true
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let (.., pid) = self.lifeline.as_ref().expect("it runs");
        kill_process(*pid, signal).expect("it is there");
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.end();
    }

    fn end(&mut self) {
        if let Some((mut shell, stdin, _)) = self.lifeline.take() {
            drop(stdin);
            let _ended = shell.wait();
        }
    }

    /// As whom the administrator comes in.
    pub(crate) fn administrator(&self) -> MySqlConnectOptions {
        MySqlConnectOptions::new().socket(self.path("socket")).username("root")
    }

    /// A connection of the administrator.
    pub(crate) async fn root(&self) -> MySqlConnection {
        self.administrator().connect().await.expect("root comes in")
    }

    /// What the administrator does.
    pub(crate) async fn sql(&self, text: &str) {
        let mut root = self.root().await;
        root.execute(sqlx::raw_sql(AssertSqlSafe(text.to_owned())))
            .await
            .unwrap_or_else(|error| panic!("{text}: {error}"));
    }

    pub(crate) async fn version(&self) -> String {
        let mut root = self.root().await;
        root.fetch_one("SELECT @@version AS v").await.expect("answers").get("v")
    }

    /// A new database with a user that may do what a node's user may, and no tables.
    pub(crate) async fn database(&self) -> Config {
        let name = format!("vitalfog_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.grant(&name).await;
        Config {
            driver: Driver::Mysql,
            mysql: Mysql {
                hosts: vec![format!("127.0.0.1:{}", self.port)],
                database: name.clone(),
                user: name,
                password_file: Some(self.path("password")),
                ca_file: Some(self.path("ca.crt")),
                ..Mysql::default()
            },
            ..Config::default()
        }
    }

    /// The database and its user.
    pub(crate) async fn grant(&self, name: &str) {
        self.sql(&format!(
            "CREATE DATABASE `{name}`; CREATE USER `{name}`@`127.0.0.1` IDENTIFIED BY PASSWORD '{PASSWORD_HASH}'; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON `{name}`.* TO `{name}`@`127.0.0.1`; \
             CREATE USER `{name}_admin`@`127.0.0.1` IDENTIFIED BY PASSWORD '{PASSWORD_HASH}'; \
             GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, DROP ON `{name}`.* TO `{name}_admin`@`127.0.0.1`"
        ))
        .await;
    }

    /// What `fog-node index migrate` does.
    pub(crate) async fn migrate(&self, config: &Config) {
        let mut config = config.clone();
        config.mysql.user.push_str("_admin");
        Index::migrate(&config).await.expect("migrates");
    }

    /// Everything that it has written to its disk but the tables themselves.
    pub(crate) fn logs(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for name in ["general.log", "slow.log", "error.log"] {
            all.extend(fs::read(self.path(name)).expect("a log"));
        }
        for entry in fs::read_dir(self.path("data")).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("binlog."))
            {
                all.extend(fs::read(path).expect("a binary log"));
            }
        }
        all
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// An authority, and a certificate of it for the server's address.
fn certificates(folder: &std::path::Path) {
    let authority_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("good");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).expect("signs");
    let issuer = Issuer::new(params, authority_key);
    let key = KeyPair::generate().expect("a key");
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("good");
    let server = server.signed_by(&key, &issuer).expect("signs");
    for (name, pem) in [
        ("ca.crt", authority.pem()),
        ("server.crt", server.pem()),
        ("server.key", key.serialize_pem()),
    ] {
        fs::write(folder.join(name), pem).expect("written");
    }
}
