//! The sandboxes that the journeys share: a calm one for questions, and a stormy one whose processes are killed.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use sandbox::{
    client::Node,
    harness::{END_MAX, Sandbox},
    report::Report,
};
use tokio::runtime::Runtime;

/// How long the stormy one runs before everything is checked; what is killed is killed well before.
const STORM: Duration = Duration::from_secs(60);
/// How long readings flow before something is killed.
const FLOW: Duration = Duration::from_secs(4);
/// How long one node is cut off at least.
const CUT_OFF: Duration = Duration::from_secs(6);
/// Within this time another block is final without one node. Its turns to lead cost a view's timeout each, which is a
/// second or two; the rest is for a machine that does something else.
const FINALITY_MAX: Duration = Duration::from_secs(30);
/// What is waited for comes within this time, or never.
const EVENTUALLY: Duration = Duration::from_secs(90);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// The node that is cut off and killed; it is not the one that the hospital asks.
pub(crate) const VICTIM: &str = "supplier-d";

/// The program under test.
pub(crate) fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_sandbox").into()
}

/// Where the tests keep what they write.
pub(crate) fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// Looks again and again until there is something, for as long as a busy machine may need.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let found = tokio::time::timeout(EVENTUALLY, search).await;
    found.unwrap_or_else(|_| panic!("waited {} s in vain for {what}", EVENTUALLY.as_secs()))
}

/// Runs undisturbed as long as the tests do.
pub(crate) fn calm() -> &'static Sandbox {
    static CALM: LazyLock<Sandbox> = LazyLock::new(|| Sandbox::builder(program(), folder(), "calm").start());
    &CALM
}

/// What was seen in the storm, and what the sandbox said of it in the end.
#[derive(Debug)]
pub(crate) struct Storm {
    /// Whether every promise held, by its exit code.
    pub(crate) passed: bool,
    /// The report at the end.
    pub(crate) report: Report,
    /// Heights of the chain just after one node was cut off, and just before that node was killed.
    pub(crate) heights_without_one: (u64, u64),
    /// What the sandbox printed.
    pub(crate) printed: String,
}

/// Readings flow; the gateway is killed; one fog node is cut off, then killed; both come back; every promise is checked.
pub(crate) fn storm() -> &'static Storm {
    static STORM_SEEN: LazyLock<Storm> = LazyLock::new(|| {
        let sandbox = Sandbox::builder(program(), folder(), "stormy").run_for(STORM).start();
        let runtime = Runtime::new().expect("a runtime");
        let visitor = runtime.block_on(async { sandbox.visitor() });
        let height = |node: &Node| runtime.block_on(node.head()).expect("the first node answers").height;
        thread::sleep(FLOW);
        sandbox.kill("gateway");
        thread::sleep(FLOW);
        sandbox.freeze(VICTIM);
        // A block that the victim voted for may still be on its way.
        thread::sleep(Duration::from_secs(1));
        let before = height(&visitor.node(0));
        thread::sleep(CUT_OFF);
        let deadline = Instant::now() + FINALITY_MAX;
        let mut after = height(&visitor.node(0));
        while after <= before && Instant::now() < deadline {
            thread::sleep(PAUSE);
            after = height(&visitor.node(0));
        }
        sandbox.kill(VICTIM);
        let passed = sandbox.wait_until_over(STORM + END_MAX);
        Storm {
            passed,
            report: sandbox.report(),
            heights_without_one: (before, after),
            printed: sandbox.printed(),
        }
    });
    &STORM_SEEN
}
