//! What the writer is asked, and what may be asked of it beside the readings.

use record::{
    clock::Coincidence,
    ids::{BootId, DeviceId},
};
use tokio::sync::oneshot;

use super::{Final, Gap, Measurement, NotTaken, Outbox, Rejected, Report, Verdict, Way, Why};

/// Whoever waits until a message is durable.
pub(super) type Answer = oneshot::Sender<Result<Verdict, NotTaken>>;

/// What the writer is asked.
#[derive(Debug)]
pub(super) enum Request {
    Append(Box<Measurement>, Answer),
    Quarantine(Box<Rejected>, Answer),
    Forget(Vec<Final>),
    SetAside { order: u64, why: Why },
    State(Box<CounterState>),
    Report(oneshot::Sender<Report>),
    Gaps(oneshot::Sender<Vec<Gap>>),
    Stop(oneshot::Sender<()>),
}

/// What a device says of its tick counter, unsigned, and how it came.
#[derive(Debug)]
pub struct CounterState {
    /// Whose.
    pub device: DeviceId,
    /// Which start of it.
    pub boot: BootId,
    /// The counter, and when the gateway was told.
    pub pair: Coincidence,
    /// How the gateway was told.
    pub way: Way,
}

impl Outbox {
    /// Takes in what a device says of its tick counter. It is not kept: a writer that is busy does not hear it.
    pub fn state(&self, state: CounterState) {
        let _busy = self.requests.try_send(Request::State(Box::new(state)));
    }

    /// What is missing of the starts of devices with gaps that were used last, those first; a bounded number of them.
    pub async fn recent_gaps(&self) -> Vec<Gap> {
        let (answer, answered) = oneshot::channel();
        self.tell(Request::Gaps(answer)).await;
        answered.await.unwrap_or_default()
    }
}
