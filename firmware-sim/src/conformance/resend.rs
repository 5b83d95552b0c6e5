//! What the gateway has asked a device for, and whether the device sent it or said that it is lost.

use std::collections::BTreeMap;

use record::ids::{BootId, DeviceId, ReadingId};
use serde::Deserialize;

/// Numbers that are followed, of all devices; what is asked for beyond them is not judged.
const ASKED_MAX: usize = 100_000;

/// Ranges of numbers of one start, both ends included.
#[derive(Debug, Deserialize)]
struct Ranges {
    boot: BootId,
    ranges: Vec<(u64, u64)>,
}

/// The JSON on the topic `cmd`.
#[derive(Deserialize)]
struct Command {
    resend: Ranges,
}

/// The JSON on the topic `state`, as far as it answers.
#[derive(Deserialize)]
struct State {
    lost: Ranges,
}

/// What is asked for and not answered yet.
#[derive(Debug, Default)]
pub(super) struct Asked {
    numbers: BTreeMap<(DeviceId, BootId, u64), ()>,
}

impl Asked {
    /// A message of the gateway on the topic `cmd`.
    pub(super) fn command(&mut self, device: &DeviceId, message: &[u8]) {
        let Ok(Command { resend }) = serde_json::from_slice(message) else {
            return;
        };
        let numbers = resend.ranges.iter().flat_map(|(from, to)| *from..=*to);
        for seq in numbers.take(ASKED_MAX.saturating_sub(self.numbers.len())) {
            self.numbers.insert((device.clone(), resend.boot, seq), ());
        }
    }

    /// A reading came.
    pub(super) fn came(&mut self, id: &ReadingId) {
        self.numbers.remove(&(id.device.clone(), id.boot, id.seq));
    }

    /// A message of a device on its topic `state`.
    pub(super) fn state(&mut self, device: &DeviceId, message: &[u8]) {
        if let Ok(State { lost }) = serde_json::from_slice::<State>(message) {
            let is_lost = |seq: u64| lost.ranges.iter().any(|(from, to)| (*from..=*to).contains(&seq));
            let is_answered =
                |(of, boot, seq): &(DeviceId, BootId, u64)| of == device && *boot == lost.boot && is_lost(*seq);
            self.numbers.retain(|number, ()| !is_answered(number));
        }
    }

    /// Of each start how many numbers have no answer, and the first of them.
    pub(super) fn unanswered(&self) -> BTreeMap<(&DeviceId, BootId), (usize, u64)> {
        let mut all = BTreeMap::new();
        for (device, boot, seq) in self.numbers.keys() {
            all.entry((device, *boot)).or_insert((0, *seq)).0 += 1;
        }
        all
    }
}
