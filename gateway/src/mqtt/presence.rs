//! Which devices have gone silent: the time since each one's last reading, and what it (or its will) says on its state topic.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ledger::device::ended;
use record::{
    ids::{BootId, DeviceId},
    reading::Refusal,
    topic::{Channel, STATE_BYTES_MAX, Topic},
};
use serde::{Deserialize, Serialize};

use crate::{
    intake::Intake,
    outbox::{GAPS_MAX, Way},
};

/// Silent devices that are shown by name, at most.
const SHOWN_MAX: usize = 100;
/// Starts of a device of which it is remembered what the device does not have any more, at most.
const LOST_BOOTS_MAX: usize = 8;
/// Ranges of one start that a device may say it does not have, at most.
pub(super) const LOST_RANGES_MAX: usize = GAPS_MAX;

/// What is remembered of every enrolled device. It lives in memory: after a start, silence is counted from the start.
#[derive(Clone, Debug)]
pub struct Presence {
    intake: Intake,
    silent_after: Duration,
    started: Instant,
    // Written message by message by both drivers, read by the status page; held for one look, never across an await.
    sightings: Arc<Mutex<HashMap<DeviceId, Sighting>>>,
}

#[derive(Clone, Debug, Default)]
struct Sighting {
    reading_at: Option<Instant>,
    is_online: Option<bool>,
    /// How often it has begun to be there, or begun anew.
    connections: u64,
    /// Its start, if it said so.
    boot: Option<BootId>,
    /// What it says it does not have, by start, in the order of the numbers.
    lost: Vec<(BootId, Vec<(u64, u64)>)>,
}

/// How a state came to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Its device said it just now.
    Fresh(Way),
    /// A broker had kept it, or says it in the device's place: it says nothing of this moment.
    Kept,
}

/// What a device says of itself; other fields are its own affair, and what is wrong in one does not spoil the others.
#[derive(Deserialize)]
struct State {
    online: bool,
    #[serde(default)]
    boot: serde_json::Value,
    #[serde(default)]
    up_ms: serde_json::Value,
    #[serde(default)]
    lost: serde_json::Value,
}

/// Numbers that a device was asked for and does not have.
#[derive(Deserialize)]
struct Lost {
    boot: BootId,
    ranges: Vec<(u64, u64)>,
}

impl State {
    /// What stood on the counter of this start when it was said.
    fn counter(&self) -> Option<(BootId, u64)> {
        let boot = BootId::deserialize(&self.boot).ok()?;
        Some((boot, self.up_ms.as_u64()?))
    }

    fn lost(&self) -> Option<Lost> {
        Lost::deserialize(&self.lost).ok()
    }
}

/// A device of which no reading has come for too long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SilentDevice {
    /// Which.
    pub device: DeviceId,
    /// For how long, in seconds; since the gateway's start at most.
    pub silent_s: u64,
    /// What its state topic says: `false` after its goodbye or its will, absent if it never said anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
}

/// Who is silent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Silence {
    /// How many devices are.
    pub devices: usize,
    /// How many say that they are online, silent or not.
    pub online: usize,
    /// Those that have been silent for longest.
    pub longest: Vec<SilentDevice>,
}

impl Presence {
    /// Of the devices that are enrolled; silent is who sends no reading for this long.
    #[must_use]
    pub fn of(intake: Intake, silent_after: Duration) -> Self {
        Self {
            intake,
            silent_after,
            started: Instant::now(),
            sightings: Arc::default(),
        }
    }

    /// A reading of this device came, and is its own.
    pub(super) fn heard(&self, device: &DeviceId) {
        self.note(device, |sighting| sighting.reading_at = Some(Instant::now()));
    }

    /// Whether a message under this topic is what a device says of itself; more bytes are judged as a reading, and refused.
    pub(super) fn is_state(topic: &Topic, message: &[u8]) -> bool {
        topic.channel == Channel::State && message.len() <= STATE_BYTES_MAX
    }

    /// What a device says of itself. Of one that is out nothing is believed, and it is to hear why; nothing of it is kept either:
    /// a state has no signature, and says nothing that somebody would look for in the quarantine.
    pub(super) fn says(&self, device: &DeviceId, message: &[u8], arrival: Arrival) -> Option<Refusal> {
        if self.intake.directory().is_out(device) {
            return Some(ended(device));
        }
        self.stated(device, message, arrival);
        None
    }

    /// A message on the device's state topic; one that is not understood changes nothing.
    pub(super) fn stated(&self, device: &DeviceId, message: &[u8], arrival: Arrival) {
        let Ok(state) = serde_json::from_slice::<State>(message) else {
            return;
        };
        if let (Arrival::Fresh(way), true, Some((boot, up_ms))) = (arrival, state.online, state.counter()) {
            self.intake.stated(device, (boot, up_ms), way);
        }
        self.note(device, |sighting| {
            let boot = BootId::deserialize(&state.boot).ok();
            // Devices say it every few minutes: that alone is no connection.
            let is_new = sighting.is_online != Some(true) || (boot.is_some() && boot != sighting.boot);
            sighting.is_online = Some(state.online);
            sighting.boot = boot.or(sighting.boot);
            sighting.connections += u64::from(is_new && state.online && arrival != Arrival::Kept);
            if let Some(lost) = state.lost() {
                sighting.lose(lost);
            }
        });
    }

    /// Whether a device can be asked something: it has not said goodbye, and was there lately.
    #[must_use]
    pub fn is_there(&self, device: &DeviceId) -> bool {
        let sightings = self.lock();
        let Some(sighting) = sightings.get(device) else {
            return false;
        };
        let is_heard = sighting.reading_at.is_some_and(|at| at.elapsed() < self.silent_after);
        sighting.is_online.unwrap_or(is_heard)
    }

    /// How often a device has connected since the gateway was started, and what it says it has not of one of its starts.
    pub(super) fn said_of(&self, device: &DeviceId, boot: BootId) -> (u64, Vec<(u64, u64)>) {
        let sightings = self.lock();
        let Some(sighting) = sightings.get(device) else {
            return (0, Vec::new());
        };
        let lost = sighting.lost.iter().find(|(of, _)| *of == boot);
        (
            sighting.connections,
            lost.map(|(_, ranges)| ranges.clone()).unwrap_or_default(),
        )
    }

    /// Who is silent now.
    #[must_use]
    pub fn silence(&self) -> Silence {
        let devices = self.intake.devices();
        let sightings = self.lock();
        let mut silence = Silence::default();
        for device in devices {
            let sighting = sightings.get(&device).cloned().unwrap_or_default();
            silence.online += usize::from(sighting.is_online == Some(true));
            let silent = sighting.reading_at.unwrap_or(self.started).elapsed();
            if silent >= self.silent_after {
                silence.longest.push(SilentDevice {
                    device,
                    silent_s: silent.as_secs(),
                    online: sighting.is_online,
                });
            }
        }
        drop(sightings);
        silence.devices = silence.longest.len();
        silence
            .longest
            .sort_by(|a, b| (b.silent_s, &a.device).cmp(&(a.silent_s, &b.device)));
        silence.longest.truncate(SHOWN_MAX);
        silence
    }

    /// Remembers something of an enrolled device; of others nothing, so that nobody can fill the memory with names.
    fn note(&self, device: &DeviceId, change: impl FnOnce(&mut Sighting)) {
        if self.intake.knows(device) {
            change(self.lock().entry(device.clone()).or_default());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, Sighting>> {
        self.sightings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sighting {
    /// Remembers what it does not have, of a few starts, in bounded space: who says more is asked again.
    fn lose(&mut self, mut lost: Lost) {
        lost.ranges.truncate(LOST_RANGES_MAX);
        lost.ranges.retain(|(from, to)| (1..=*to).contains(from));
        let before = self.lost.iter().position(|(of, _)| *of == lost.boot);
        let mut ranges = before.map(|at| self.lost.remove(at).1).unwrap_or_default();
        ranges.extend(lost.ranges);
        self.lost.push((lost.boot, joined(ranges)));
        if self.lost.len() > LOST_BOOTS_MAX {
            self.lost.remove(0);
        }
    }
}

/// Ranges in their order, those that touch as one, the highest of them if there are too many.
fn joined(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (from, to) in ranges {
        match joined.last_mut() {
            Some((_, end)) if from <= end.saturating_add(1) => *end = to.max(*end),
            _ => joined.push((from, to)),
        }
    }
    joined.drain(..joined.len().saturating_sub(LOST_RANGES_MAX));
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::tests::Home;

    const FRESH: Arrival = Arrival::Fresh(Way::Direct);

    #[tokio::test]
    async fn what_a_device_says_it_has_lost_is_remembered_in_bounded_space() {
        let home = Home::open();
        let presence = Presence::of(home.intake.clone(), Duration::from_secs(60));
        let device: DeviceId = "oximeter-1".parse().expect("good");
        assert!(!presence.is_there(&device));
        let say = |boot: u32, ranges: &str| {
            let text = format!(r#"{{"online":true,"lost":{{"boot":"{boot}-0000000000000001","ranges":{ranges}}}}}"#);
            presence.stated(&device, text.as_bytes(), FRESH);
        };
        let boot = |counter| BootId { counter, random: 1 };
        say(7, "[[4,5],[9,9],[3,2],[0,1]]");
        say(7, "[[4,5],[11,12]]");
        assert_eq!(presence.said_of(&device, boot(7)), (1, vec![(4, 5), (9, 9), (11, 12)]));
        say(7, "[[10,10],[1,3]]");
        assert_eq!(presence.said_of(&device, boot(7)), (1, vec![(1, 5), (9, 12)]));
        // What is not understood spoils nothing else.
        presence.stated(&device, br#"{"online":true,"boot":7,"up_ms":-1,"lost":[1]}"#, FRESH);
        assert!(presence.is_there(&device));
        for counter in 100..200 {
            say(counter, "[[1,1]]");
        }
        for seq in 1..1_000 {
            say(500, &format!("[[{0},{0}]]", seq * 2));
        }
        assert_eq!(presence.said_of(&device, boot(7)).1, []);
        assert_eq!(presence.said_of(&device, boot(500)).1.len(), LOST_RANGES_MAX);
        assert_eq!(presence.lock()[&device].lost.len(), LOST_BOOTS_MAX);
        let before = presence.said_of(&device, boot(500)).0;
        assert_eq!(before, 1, "saying it again is no connection");
        presence.stated(&device, br#"{"online":true}"#, Arrival::Kept);
        assert_eq!(
            presence.said_of(&device, boot(500)).0,
            before,
            "a kept state is no connection"
        );
        presence.stated(&device, br#"{"online":false}"#, Arrival::Kept);
        assert!(!presence.is_there(&device));
        presence.stated(&device, br#"{"online":true,"boot":"8-0000000000000001"}"#, FRESH);
        assert_eq!(presence.said_of(&device, boot(500)).0, before + 1, "it is back");
        presence.stated(&device, br#"{"online":true,"boot":"9-0000000000000001"}"#, FRESH);
        assert_eq!(
            presence.said_of(&device, boot(500)).0,
            before + 2,
            "it has started anew"
        );
    }

    #[tokio::test]
    async fn who_sends_nothing_is_silent_whatever_its_state_says() {
        let home = Home::open();
        let presence = Presence::of(home.intake.clone(), Duration::from_millis(200));
        let (oximeter, nobody) = ("oximeter-1".parse().expect("good"), "nobody".parse().expect("good"));
        assert_eq!(
            presence.silence(),
            Silence::default(),
            "silence is counted from the start"
        );
        presence.stated(&oximeter, br#"{"online":true,"battery":40}"#, FRESH);
        presence.stated(&nobody, br#"{"online":true}"#, FRESH);
        tokio::time::sleep(Duration::from_millis(250)).await;
        let silent = presence.silence();
        assert_eq!((silent.devices, silent.online), (home.intake.devices().len(), 1));
        let shown = silent.longest.iter().find(|silent| silent.device == oximeter);
        assert_eq!(shown.and_then(|silent| silent.online), Some(true));
        presence.heard(&oximeter);
        presence.stated(&oximeter, br#"{"online":false}"#, FRESH);
        presence.stated(&oximeter, b"not a state", FRESH);
        let silent = presence.silence();
        assert_eq!((silent.devices, silent.online), (home.intake.devices().len() - 1, 0));
        assert!(silent.longest.iter().all(|silent| silent.device != oximeter));
        assert_eq!(presence.lock().len(), 1, "nothing is remembered of who is not enrolled");
    }
}
