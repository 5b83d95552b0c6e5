//! The sandbox as tests use it: the real program on ports of its own, its report, its processes, its doors.
//!
//! A test that fails here panics with what the sandbox printed. The sandbox ends with the test process, whatever happens
//! to that one.

mod bases;
mod benchmark;
mod leftovers;
mod visitor;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    children,
    client::Callers,
    config::Limits,
    fault::EXIT_USAGE,
    folder::Folder,
    lifeline,
    report::{ProcessReport, Report},
};

use bases::Base;
pub use benchmark::benchmark;
pub use visitor::{Answer, Visitor};

/// How often another base is tried when somebody who keeps none was faster.
const TRIES: usize = 5;
/// What each step of a sandbox may take on a slow machine that compiles something else; it gives up by itself then.
const LIMITS: Limits = Limits {
    start_s: 120,
    enrol_s: 180,
    drain_s: 180,
    agree_s: 120,
    stop_s: 60,
};
/// How long a sandbox may take until it is ready: nodes, enrolment, gateway and fleet, each within its limit.
const READY_MAX: Duration = Duration::from_secs(3 * LIMITS.start_s + LIMITS.enrol_s + 30);
/// How long it may take to stop: the fleet, the gateway, all nodes at once.
const STOP_MAX: Duration = Duration::from_secs(3 * LIMITS.stop_s + 30);
/// How long it may take to check every promise and to stop once its time is over: drained, agreed, served, stopped.
pub const END_MAX: Duration = Duration::from_secs(LIMITS.drain_s + 2 * LIMITS.agree_s + STOP_MAX.as_secs());
/// How long anything else takes at most that is waited for.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// A sandbox to be started.
#[derive(Clone, Debug)]
pub struct Builder {
    program: PathBuf,
    folder: PathBuf,
    nodes: u16,
    devices: u32,
    run_for: Option<Duration>,
    exported: Vec<(&'static str, String)>,
}

impl Builder {
    /// With this many fog nodes; 4 otherwise.
    #[must_use]
    pub const fn nodes(mut self, nodes: u16) -> Self {
        self.nodes = nodes;
        self
    }

    /// With this many devices; 8 otherwise.
    #[must_use]
    pub const fn devices(mut self, devices: u32) -> Self {
        self.devices = devices;
        self
    }

    /// That ends by itself after a time, with a check of every promise.
    #[must_use]
    pub const fn run_for(mut self, time: Duration) -> Self {
        self.run_for = Some(time);
        self
    }

    /// Whose user has exported this variable.
    #[must_use]
    pub fn exported(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.exported.push((name, value.into()));
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// If it does not get ready.
    #[must_use]
    pub fn start(self) -> Sandbox {
        leftovers::sweep(&self.folder);
        let folder = Folder::create(&self.folder).expect("the test may write to its folder");
        let limits = serde_json::json!({ "limits": LIMITS });
        folder
            .write_toml("sandbox.toml", &limits)
            .expect("the test may write to its folder");
        for _ in 0..TRIES {
            let sandbox = self.spawn(folder.root());
            match sandbox.wait_until_ready() {
                Some(end) if end.code() == Some(i32::from(EXIT_USAGE)) => {}
                Some(end) => panic!("the sandbox ended ({end}) before it was ready:\n{}", sandbox.printed()),
                None => return sandbox,
            }
        }
        panic!(
            "no free ports after {TRIES} tries:\n{}",
            fs::read_to_string(folder.path("printed")).unwrap_or_default()
        );
    }

    fn spawn(&self, folder: &Path) -> Sandbox {
        let printed = File::create(folder.join("printed")).expect("the test may write to its folder");
        let base = Base::draw(self.nodes);
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(folder.join("sandbox.toml"))
            .arg("--nodes")
            .arg(self.nodes.to_string())
            .arg("--devices")
            .arg(self.devices.to_string())
            .arg("--data-dir")
            .arg(folder.join("data"))
            .arg("--report")
            .arg(folder.join("report.json"))
            .arg("--port-base")
            .arg(base.number.to_string());
        if let Some(time) = self.run_for {
            command.arg("--for").arg(format!("{}s", time.as_secs()));
        }
        let process = command
            .envs(self.exported.iter().map(|(name, value)| (name, value)))
            .env(lifeline::VARIABLE, lifeline::STDIN)
            .stdin(Stdio::piped())
            .stdout(printed.try_clone().expect("a file handle can be copied"))
            .stderr(printed)
            .spawn()
            .expect("the program is built");
        Sandbox {
            process: Mutex::new(process),
            _base: base,
            folder: folder.to_owned(),
            program: self.program.clone(),
        }
    }
}

/// A running sandbox. Dropped, it is asked to stop, and then made to.
#[derive(Debug)]
pub struct Sandbox {
    /// Shared by the tests of one file; nobody holds the lock while waiting.
    process: Mutex<Child>,
    _base: Base,
    folder: PathBuf,
    program: PathBuf,
}

impl Sandbox {
    /// A sandbox run by this program (`env!("CARGO_BIN_EXE_sandbox")`), in a folder (`env!("CARGO_TARGET_TMPDIR")`) and
    /// under a label that no other test of this process uses.
    #[must_use]
    pub fn builder(program: impl Into<PathBuf>, folder: impl AsRef<Path>, label: &str) -> Builder {
        Builder {
            program: program.into(),
            folder: folder.as_ref().join(format!("{label}.{}", std::process::id())),
            nodes: 4,
            devices: 8,
            run_for: None,
            exported: Vec::new(),
        }
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        // A test that panicked left the handle as it was.
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> Option<ExitStatus> {
        self.child().try_wait().expect("a child can be waited for")
    }

    fn wait_until_ready(&self) -> Option<ExitStatus> {
        let deadline = Instant::now() + READY_MAX;
        loop {
            if let Some(end) = self.ended() {
                return Some(end);
            }
            if self.read_report().is_some_and(|report| report.ready) {
                return None;
            }
            assert!(
                Instant::now() < deadline,
                "the sandbox is not ready:\n{}",
                self.printed()
            );
            thread::sleep(PAUSE);
        }
    }

    fn read_report(&self) -> Option<Report> {
        serde_json::from_str(&fs::read_to_string(self.folder.join("report.json")).ok()?).ok()
    }

    /// The report as it stands now.
    ///
    /// # Panics
    /// If it is not of the promised shape.
    #[must_use]
    pub fn report(&self) -> Report {
        self.read_report().expect("a ready sandbox has written its report")
    }

    /// What the sandbox printed.
    #[must_use]
    pub fn printed(&self) -> String {
        fs::read_to_string(self.folder.join("printed")).unwrap_or_default()
    }

    /// A folder of this sandbox that the test may use.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.folder
    }

    /// The process with this name: a node's name, `gateway` or `fleet`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn process(&self, name: &str) -> ProcessReport {
        let report = self.report();
        let node = report
            .nodes
            .into_iter()
            .find(|node| node.name == name)
            .map(|node| node.process);
        match name {
            "gateway" => report.gateway.process,
            "fleet" => report.fleet.process,
            _ => node.expect("the test names a process that there is"),
        }
    }

    /// Kills a process as a power cut would, and waits until the sandbox has started it again.
    ///
    /// # Panics
    /// If it does not come back.
    pub fn kill(&self, name: &str) {
        let before = self.process(name);
        children::kill(before.pid.expect("it runs"));
        self.wait_for(&format!("{name} is started again"), || {
            let now = self.process(name);
            now.restarts > before.restarts && now.pid.is_some()
        });
    }

    /// Lets a process do nothing, as if it were cut off, until it is killed or thawed.
    ///
    /// # Panics
    /// If it does not run.
    pub fn freeze(&self, name: &str) {
        let pid = self.process(name).pid.expect("it runs");
        children::freeze(pid);
        self.wait_for(&format!("{name} stands still"), || children::is_frozen(pid));
    }

    /// Lets a frozen process go on.
    ///
    /// # Panics
    /// If it does not run.
    pub fn thaw(&self, name: &str) {
        children::thaw(self.process(name).pid.expect("it runs"));
    }

    /// Waits until something is so.
    ///
    /// # Panics
    /// If it takes too long.
    pub fn wait_for(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + WAIT_MAX;
        while !is_so() {
            assert!(
                Instant::now() < deadline,
                "waited in vain until {what}; the sandbox printed:\n{}",
                self.printed()
            );
            thread::sleep(PAUSE);
        }
    }

    /// Runs one of the commands of the program, and returns whether it succeeded and what it printed.
    ///
    /// # Panics
    /// If the program cannot be executed.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(&self.program)
            .args(arguments)
            .output()
            .expect("the program is built");
        let printed = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&printed).into_owned())
    }

    /// A visitor with HTTP clients of its own; one for each test, since clients belong to a runtime.
    ///
    /// # Panics
    /// If the certificate authority's file is not there.
    #[must_use]
    pub fn visitor(&self) -> Visitor {
        // An error means that a provider is installed already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let report = self.report();
        let ca = fs::read_to_string(&report.hospital.ca_file).expect("the report names the CA's file");
        let http = Callers::trusting(&ca)
            .and_then(|callers| callers.anybody())
            .expect("the CA's file is a certificate");
        Visitor { report, http }
    }

    /// Waits until it has ended by itself, and returns whether it says that every promise held.
    ///
    /// # Panics
    /// If it takes longer than `within`.
    pub fn wait_until_over(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        loop {
            if let Some(end) = self.ended() {
                return end.success();
            }
            assert!(
                Instant::now() < deadline,
                "the sandbox does not end:\n{}",
                self.printed()
            );
            thread::sleep(PAUSE);
        }
    }

    /// Process id of the sandbox itself.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// Waits until it has stopped after it was asked to, and returns whether it says that nothing failed.
    ///
    /// # Panics
    /// If it does not stop.
    pub fn wait_until_stopped(&self) -> bool {
        self.wait_until_over(STOP_MAX)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let still_runs = |sandbox: &Self| matches!(sandbox.child().try_wait(), Ok(None));
        if still_runs(self) {
            children::terminate(self.pid());
            let deadline = Instant::now() + STOP_MAX;
            while still_runs(self) && Instant::now() < deadline {
                thread::sleep(PAUSE);
            }
            // Both fail only if it has ended.
            let _ = self.child().kill();
            let _ = self.child().wait();
        }
    }
}
