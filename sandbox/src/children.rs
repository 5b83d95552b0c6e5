//! The processes of a run: started, watched, started again when they die, as a service manager would; none survives.
//!
//! Each child is in a process group of its own, so that Ctrl-C in a terminal reaches the sandbox alone, which then stops
//! its children in order. Should the sandbox itself be killed, their [`crate::lifeline`] ends them.

use std::{
    fs::OpenOptions,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    fault::{EXIT_USAGE, Fault},
    lifeline,
};

/// The first pause before a dead child is started again; it doubles with each death.
const BACK_OFF_MIN: Duration = Duration::from_millis(500);
/// The longest pause.
const BACK_OFF_MAX: Duration = Duration::from_secs(10);
/// A child that lived this long starts again with the first pause.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);
/// How much of the end of a log is shown when a child does not come up.
const LOG_TAIL_BYTES: u64 = 2_048;

/// What to run.
#[derive(Clone, Debug)]
pub struct Program {
    /// What people call the process.
    pub name: String,
    /// The file to execute; its name decides what it is.
    pub executable: PathBuf,
    /// Its arguments.
    pub arguments: Vec<PathBuf>,
    /// The file to which its output is appended.
    pub log: PathBuf,
}

impl Program {
    /// The command as a person would type it.
    #[must_use]
    pub fn command_line(&self) -> Vec<String> {
        let parts = std::iter::once(&self.executable).chain(&self.arguments);
        parts.map(|part| part.display().to_string()).collect()
    }

    /// The end of what it printed.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.log).unwrap_or_default()
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let log = OpenOptions::new().append(true).create(true).open(&self.log)?;
        Command::new(&self.executable)
            .args(&self.arguments)
            .env(lifeline::VARIABLE, lifeline::STDIN)
            // Everything is on loopback; a proxy of the user's environment must not come between.
            .env("NO_PROXY", "127.0.0.1,localhost")
            .env("no_proxy", "127.0.0.1,localhost")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }
}

fn tail(log: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// How a supervised process is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// Its process id while it runs.
    pub pid: Option<u32>,
    /// How often it died and was started again.
    pub restarts: u64,
    /// How it ended the last time, if it ever did.
    pub last_end: Option<String>,
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

    /// SIGTERM, a bounded wait, SIGKILL. Returns whether it ended by itself.
    pub async fn stop(mut self) -> bool {
        self.stop.cancel();
        (&mut self.task).await.unwrap_or(false)
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
    /// Returns whether the last process ended by itself when it was asked to.
    async fn run(self) -> bool {
        let mut pause = BACK_OFF_MIN;
        loop {
            let mut child = match self.program.spawn() {
                Ok(child) => child,
                Err(e) => {
                    self.ended(format!("it cannot be executed: {e}"), true);
                    return false;
                }
            };
            // Held until the process has ended; `Child::wait` would close it.
            let lifeline = child.stdin.take();
            let started = Instant::now();
            self.life.send_modify(|life| life.pid = child.id());
            let end = tokio::select! {
                end = child.wait() => end,
                () = self.stop.cancelled() => {
                    let graceful = self.terminate(&mut child).await;
                    self.ended("it was stopped".to_owned(), true);
                    return graceful;
                }
            };
            drop(lifeline);
            let hopeless = end.as_ref().is_ok_and(|end| end.code() == Some(i32::from(EXIT_USAGE)));
            self.ended(describe(end), hopeless);
            if hopeless {
                return false;
            }
            if started.elapsed() >= HEALTHY_AFTER {
                pause = BACK_OFF_MIN;
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stop.cancelled() => {
                    self.life.send_modify(|life| life.over = true);
                    return true;
                }
            }
            pause = (pause * 2).min(BACK_OFF_MAX);
            self.life.send_modify(|life| life.restarts += 1);
        }
    }

    fn ended(&self, how: String, over: bool) {
        self.life.send_modify(|life| {
            life.pid = None;
            life.last_end = Some(how);
            life.over = over;
        });
    }

    async fn terminate(&self, child: &mut Child) -> bool {
        if let Some(pid) = child.id() {
            terminate(pid);
        }
        if timeout(self.stop_max, child.wait()).await.is_ok_and(|end| end.is_ok()) {
            return true;
        }
        // An error here means that it ended in between.
        let _ = child.kill().await;
        false
    }
}

fn describe(end: std::io::Result<ExitStatus>) -> String {
    end.map_or_else(|e| format!("it could not be waited for: {e}"), |end| end.to_string())
}

/// Asks a process to end (SIGTERM); one that is gone already is no fault.
pub fn terminate(pid: u32) {
    signal(pid, Signal::TERM);
}

/// Ends a process at once (SIGKILL), as a power cut would; one that is gone already is no fault.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Lets a process do nothing (SIGSTOP), as if its machine were cut off; it can still be killed.
pub fn freeze(pid: u32) {
    signal(pid, Signal::STOP);
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
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
        assert!(child.stop().await);
        assert_eq!(life.borrow().pid, None);
    }

    #[tokio::test]
    async fn a_process_that_ignores_sigterm_is_killed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let script = "trap '' TERM; echo up; while true; do sleep 0.1; done";
        let child = Supervised::start(shell(script, dir.path()), Duration::from_millis(300));
        let up = || async { child.program().log_tail().contains("up") };
        child
            .wait_until("up", Duration::from_secs(20), up)
            .await
            .expect("comes up");
        assert!(!child.stop().await);
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
