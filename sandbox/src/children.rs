//! The processes of a run: started, watched, started again when they die, as a service manager would; none survives.
//!
//! Each child is in a process group of its own, so that Ctrl-C in a terminal reaches the sandbox alone, which then stops
//! its children in order. Should the sandbox itself be killed, their [`crate::lifeline`] ends them.

mod program;

use std::{
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::Child,
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

pub use program::Program;

use crate::fault::{EXIT_USAGE, Fault};

/// The first pause before a dead child is started again; it doubles with each death.
const BACK_OFF_MIN: Duration = Duration::from_millis(500);
/// The longest pause.
const BACK_OFF_MAX: Duration = Duration::from_secs(10);
/// A child that lived this long starts again with the first pause.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);
/// How often in a row a child may not even start, because the machine is out of something, before it is given up.
const SPAWNS_MAX: u32 = 5;
/// Signals that somebody sends to end a process; what ends by any other one has broken down.
const SENT_BY_PEOPLE: [Signal; 4] = [Signal::KILL, Signal::TERM, Signal::INT, Signal::HUP];

/// How a supervised process is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// Its process id while it runs.
    pub pid: Option<u32>,
    /// How often it died and was started again.
    pub restarts: u64,
    /// How it ended the last time, if it ever did.
    pub last_end: Option<String>,
    /// How often it broke down: ended by itself with a failure. A process that somebody killed did not.
    pub breakdowns: u64,
    /// How it broke down the last time, and the last line of its log: the log may be gone when somebody asks.
    pub last_breakdown: Option<String>,
    /// It will not be started again: its configuration is wrong, it cannot be executed, or it was stopped.
    pub over: bool,
}

/// A process and the task that keeps it alive. Dropped without [`Supervised::stop`], the process is killed.
#[derive(Debug)]
pub struct Supervised {
    program: Program,
    life: watch::Receiver<Life>,
    stop: CancellationToken,
    task: JoinHandle<bool>,
}

impl Life {
    /// A sentence about a process that broke down.
    #[must_use]
    pub fn failure(&self, program: &Program) -> Option<String> {
        let last = self.last_breakdown.as_deref()?;
        let (name, log, times) = (&program.name, program.log.display(), self.breakdowns);
        Some(format!(
            "{name} broke down ({last}), breakdowns: {times}; its log is {log}"
        ))
    }
}

impl Supervised {
    /// Starts a program and keeps it running until it is stopped; `stop_max` is the time from SIGTERM to SIGKILL.
    #[must_use]
    pub fn start(program: Program, stop_max: Duration) -> Self {
        let (sender, life) = watch::channel(Life::default());
        let stop = CancellationToken::new();
        let supervisor = Supervisor {
            program: program.clone(),
            life: sender,
            stop: stop.clone(),
            stop_max,
        };
        Self {
            program,
            life,
            stop,
            task: tokio::spawn(supervisor.run()),
        }
    }

    /// What is run.
    #[must_use]
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// How it is doing now.
    #[must_use]
    pub fn life(&self) -> Life {
        self.life.borrow().clone()
    }

    /// How it is doing, as it changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Life> {
        self.life.clone()
    }

    /// Waits until `up` says yes, which is asked again and again.
    ///
    /// # Errors
    /// [`Fault::Start`] with the end of its log, if it takes longer than `within` or the process is not started again.
    pub async fn wait_until<F>(&self, what: &str, within: Duration, mut up: impl FnMut() -> F) -> Result<(), Fault>
    where
        F: Future<Output = bool>,
    {
        let deadline = Instant::now() + within;
        while !up().await {
            let life = self.life();
            if life.over || Instant::now() >= deadline {
                let end = life.last_end.map(|end| format!(" ({end})")).unwrap_or_default();
                let (name, tail) = (&self.program.name, self.program.log_tail());
                let log = self.program.log.display();
                return Err(Fault::Start(format!(
                    "{name} is not {what}{end}; the end of {log}:\n{tail}"
                )));
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// SIGTERM, a bounded wait, SIGKILL. Returns a sentence if it had to be killed, and one if it ever broke down.
    pub async fn stop(mut self) -> Vec<String> {
        self.stop.cancel();
        let ended = (&mut self.task).await.unwrap_or(false);
        let life = self.life();
        let name = &self.program.name;
        let killed = (!ended).then(|| format!("{name} did not end by itself when it was asked to, and was killed"));
        killed.into_iter().chain(life.failure(&self.program)).collect()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // With the task goes the child, which is killed when dropped.
        self.task.abort();
    }
}

/// The task behind [`Supervised`]: it alone owns the child.
struct Supervisor {
    program: Program,
    life: watch::Sender<Life>,
    stop: CancellationToken,
    stop_max: Duration,
}

impl Supervisor {
    /// Returns false if the last process had to be killed when it was asked to end.
    async fn run(self) -> bool {
        let mut pause = BACK_OFF_MIN;
        loop {
            let mut child = match self.spawn().await {
                Spawned::Child(child) => child,
                Spawned::Never => return true,
            };
            // Held until the process has ended; `Child::wait` would close it.
            let lifeline = child.stdin.take();
            let started = Instant::now();
            self.life.send_modify(|life| life.pid = child.id());
            let end = tokio::select! {
                end = child.wait() => end,
                () = self.stop.cancelled() => return self.terminate(&mut child).await,
            };
            drop(lifeline);
            let hopeless = end.as_ref().is_ok_and(|end| end.code() == Some(i32::from(EXIT_USAGE)));
            self.ended(describe(&end), broke_down(&end), hopeless);
            if hopeless {
                return true;
            }
            if started.elapsed() >= HEALTHY_AFTER {
                pause = BACK_OFF_MIN;
            }
            if !self.rest(pause).await {
                return true;
            }
            pause = (pause * 2).min(BACK_OFF_MAX);
            self.life.send_modify(|life| life.restarts += 1);
        }
    }

    /// Starts the program; a machine that is out of processes or files for a moment gets some time.
    async fn spawn(&self) -> Spawned {
        let mut pause = BACK_OFF_MIN;
        for _ in 1..SPAWNS_MAX {
            if let Ok(child) = self.program.spawn() {
                return Spawned::Child(child);
            }
            if !self.rest(pause).await {
                return Spawned::Never;
            }
            pause = (pause * 2).min(BACK_OFF_MAX);
        }
        match self.program.spawn() {
            Ok(child) => Spawned::Child(child),
            Err(e) => {
                self.ended(format!("it cannot be executed: {e}"), true, true);
                Spawned::Never
            }
        }
    }

    /// Pauses; false if it was stopped meanwhile.
    async fn rest(&self, pause: Duration) -> bool {
        let goes_on = timeout(pause, self.stop.cancelled()).await.is_err();
        if !goes_on {
            self.life.send_modify(|life| life.over = true);
        }
        goes_on
    }

    fn ended(&self, how: String, broke_down: bool, over: bool) {
        let breakdown = broke_down.then(|| {
            let log = self.program.log_tail();
            let last_word = log.lines().rev().find(|line| !line.trim().is_empty());
            last_word.map_or_else(|| how.clone(), |word| format!("{how}: {word}"))
        });
        self.life.send_modify(|life| {
            life.pid = None;
            life.over = over;
            if let Some(breakdown) = breakdown {
                life.breakdowns += 1;
                life.last_breakdown = Some(breakdown);
            }
            life.last_end = Some(how);
        });
    }

    /// Returns whether it ended by itself.
    async fn terminate(&self, child: &mut Child) -> bool {
        if let Some(pid) = child.id() {
            terminate(pid);
        }
        let end = timeout(self.stop_max, child.wait()).await;
        let broke_down = end.as_ref().is_ok_and(broke_down);
        let how = end.as_ref().ok().filter(|_| broke_down).map(describe);
        if end.is_err() {
            // An error here means that it ended in between.
            let _ = child.kill().await;
        }
        self.ended(how.unwrap_or_else(|| "it was stopped".to_owned()), broke_down, true);
        end.is_ok_and(|end| end.is_ok())
    }
}

/// What came of starting a program.
enum Spawned {
    Child(Child),
    /// It was tried often enough, or stopped meanwhile.
    Never,
}

type End = std::io::Result<ExitStatus>;

fn describe(end: &End) -> String {
    match end {
        Ok(end) => end.to_string(),
        Err(e) => format!("it could not be waited for: {e}"),
    }
}

/// Whether a process ended by itself with a failure: an exit code, or a signal like that of an abort.
fn broke_down(end: &End) -> bool {
    let signal_of_its_own = |signal| SENT_BY_PEOPLE.iter().all(|sent| sent.as_raw() != signal);
    end.as_ref()
        .is_ok_and(|end| end.code().is_some_and(|code| code != 0) || end.signal().is_some_and(signal_of_its_own))
}

/// Whether a process does anything: one that has ended and that nobody has waited for does not.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Whether a process stands still, all of it.
#[must_use]
pub fn is_frozen(pid: u32) -> bool {
    state(pid) == Some('T')
}

/// The letter of a process's state, as `ps` shows it.
fn state(pid: u32) -> Option<char> {
    // `pid (name) state ..`; the name may hold anything.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Asks a process to end (SIGTERM); one that is gone already is no fault.
pub fn terminate(pid: u32) {
    signal(pid, Signal::TERM);
}

/// Ends a process at once (SIGKILL), as a power cut would; one that is gone already is no fault.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Ends a process at once (SIGABRT), as its own panic would; one that is gone already is no fault.
pub fn abort(pid: u32) {
    signal(pid, Signal::ABORT);
}

/// What Ctrl-C in a terminal does to a process (SIGINT).
pub fn interrupt(pid: u32) {
    signal(pid, Signal::INT);
}

/// What closing its terminal does to a process (SIGHUP).
pub fn hang_up(pid: u32) {
    signal(pid, Signal::HUP);
}

/// Lets a process do nothing (SIGSTOP), as if its machine were cut off; it can still be killed.
pub fn freeze(pid: u32) {
    signal(pid, Signal::STOP);
}

/// Lets a frozen process go on (SIGCONT).
pub fn thaw(pid: u32) {
    signal(pid, Signal::CONT);
}

/// Ends a sandbox's run as if its time were over: it checks every promise then.
pub fn end_run(pid: u32) {
    signal(pid, Signal::USR1);
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn shell(script: &str, dir: &Path) -> Program {
        Program {
            name: "shell".to_owned(),
            executable: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            log: dir.join("log"),
        }
    }

    async fn until(life: &mut watch::Receiver<Life>, is: impl Fn(&Life) -> bool) -> Life {
        let reached = timeout(Duration::from_secs(20), life.wait_for(is)).await;
        reached.expect("in time").expect("the supervisor lives").clone()
    }

    /// A process that is up and does this when it is asked to end.
    async fn trapping(on_term: &str, dir: &Path, grace: Duration) -> Supervised {
        let script = format!("trap '{on_term}' TERM; echo up; while true; do sleep 0.1; done");
        let child = Supervised::start(shell(&script, dir), grace);
        let up = || async { child.program().log_tail().contains("up") };
        let came = child.wait_until("up", Duration::from_secs(20), up).await;
        came.expect("comes up");
        child
    }

    #[tokio::test]
    async fn a_killed_process_is_started_again() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let child = Supervised::start(shell("exec sleep 60", dir.path()), Duration::from_secs(5));
        let mut life = child.watch();
        let first = until(&mut life, |l| l.pid.is_some()).await.pid;
        kill(first.expect("it runs"));
        let second = until(&mut life, |l| l.restarts == 1 && l.pid.is_some()).await;
        assert_ne!(second.pid, first);
        assert!(second.last_end.expect("it died").contains("signal: 9"));
        assert!(child.stop().await.is_empty(), "to be killed is no breakdown");
        assert_eq!(life.borrow().pid, None);
    }

    #[tokio::test]
    async fn to_end_with_a_failure_is_a_breakdown() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for (script, how) in [
            ("kill -ABRT $$", "signal: 6"),
            ("kill -SEGV $$", "signal: 11"),
            ("echo 'why it does' >&2; exit 3", "exit status: 3: why it does"),
        ] {
            let script = format!("test -e up && exec sleep 60; touch up; {script}");
            let script = format!("cd {} && {script}", dir.path().display());
            let child = Supervised::start(shell(&script, dir.path()), Duration::from_secs(20));
            until(&mut child.watch(), |l| l.restarts == 1 && l.pid.is_some()).await;
            let failures = child.stop().await;
            assert!(
                failures.len() == 1 && failures[0].contains(how) && failures[0].contains("breakdowns: 1"),
                "{script}: {failures:?}"
            );
            std::fs::remove_file(dir.path().join("up")).expect("the script made it");
        }
    }

    #[tokio::test]
    async fn to_fail_when_asked_to_end_is_a_breakdown() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let child = trapping("exit 7", dir.path(), Duration::from_secs(20)).await;
        let failures = child.stop().await;
        assert!(
            failures.len() == 1 && failures[0].contains("exit status: 7"),
            "{failures:?}"
        );
    }

    #[tokio::test]
    async fn what_cannot_start_for_a_moment_starts_later() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut program = shell("exec sleep 60", dir.path());
        // Its log cannot be opened yet.
        program.log = dir.path().join("later/log");
        let child = Supervised::start(program, Duration::from_secs(5));
        sleep(BACK_OFF_MIN / 2).await;
        assert_eq!(child.life(), Life::default());
        std::fs::create_dir(dir.path().join("later")).expect("makes it");
        until(&mut child.watch(), |life| life.pid.is_some()).await;
        assert!(child.stop().await.is_empty());
    }

    #[tokio::test]
    async fn what_can_never_start_is_given_up() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut program = shell("", dir.path());
        program.executable = dir.path().join("absent");
        let child = Supervised::start(program, Duration::from_secs(5));
        let life = until(&mut child.watch(), |life| life.over).await;
        assert!(life.last_end.expect("a reason").contains("cannot be executed"));
    }

    #[tokio::test]
    async fn a_process_that_ignores_sigterm_is_killed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let child = trapping("", dir.path(), Duration::from_millis(300)).await;
        let failures = child.stop().await;
        assert!(
            failures.len() == 1 && failures[0].contains("was killed"),
            "{failures:?}"
        );
    }

    #[tokio::test]
    async fn bad_configuration_is_not_tried_twice() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let child = Supervised::start(shell("echo no such key; exit 64", dir.path()), Duration::from_secs(5));
        let fault = child
            .wait_until("up", Duration::from_secs(20), || async { false })
            .await
            .expect_err("never up");
        assert!(fault.to_string().contains("no such key"), "{fault}");
        assert_eq!(child.life().restarts, 0);
    }

    #[test]
    fn a_process_that_nobody_waited_for_does_not_run() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "read line"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("a shell");
        let pid = child.id();
        assert!(is_running(pid) && is_running(std::process::id()));
        drop(child.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(20);
        while is_running(pid) {
            assert!(Instant::now() < deadline, "it ends with its standard input");
            std::thread::sleep(BACK_OFF_MIN / 10);
        }
        assert!(Path::new("/proc").join(pid.to_string()).exists(), "it is still listed");
        child.wait().expect("it can be waited for");
        assert!(!is_running(pid));
    }

    #[tokio::test]
    async fn a_child_sees_the_end_of_its_parent() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        // `cat` ends when its standard input does: it stands for the lifeline.
        let mut child = shell("cat; echo orphaned", dir.path()).spawn().expect("starts");
        drop(child.stdin.take());
        assert!(
            timeout(Duration::from_secs(20), child.wait())
                .await
                .expect("in time")
                .expect("ends")
                .success()
        );
        assert!(
            std::fs::read_to_string(dir.path().join("log"))
                .expect("a log")
                .contains("orphaned")
        );
    }
}
