//! Which devices have gone silent: the time since each one's last reading, and what it (or its will) says on its state topic.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use record::ids::DeviceId;
use serde::{Deserialize, Serialize};

use crate::intake::Intake;

/// Silent devices that are shown by name, at most.
const SHOWN_MAX: usize = 100;

/// What is remembered of every enrolled device. It lives in memory: after a start, silence is counted from the start.
#[derive(Clone, Debug)]
pub struct Presence {
    intake: Intake,
    silent_after: Duration,
    started: Instant,
    // Written message by message by both drivers, read by the status page; held for one look, never across an await.
    sightings: Arc<Mutex<HashMap<DeviceId, Sighting>>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sighting {
    reading_at: Option<Instant>,
    is_online: Option<bool>,
}

/// What a device says of itself; other fields are its own affair.
#[derive(Deserialize)]
struct State {
    online: bool,
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

    /// A message on the device's state topic; one that is not understood changes nothing.
    pub(super) fn stated(&self, device: &DeviceId, message: &[u8]) {
        if let Ok(State { online }) = serde_json::from_slice(message) {
            self.note(device, |sighting| sighting.is_online = Some(online));
        }
    }

    /// Who is silent now.
    #[must_use]
    pub fn silence(&self) -> Silence {
        let devices = self.intake.devices();
        let sightings = self.lock();
        let mut silence = Silence::default();
        for device in devices {
            let sighting = sightings.get(&device).copied().unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::tests::Home;

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
        presence.stated(&oximeter, br#"{"online":true,"battery":40}"#);
        presence.stated(&nobody, br#"{"online":true}"#);
        tokio::time::sleep(Duration::from_millis(250)).await;
        let silent = presence.silence();
        assert_eq!((silent.devices, silent.online), (home.intake.devices().len(), 1));
        let shown = silent.longest.iter().find(|silent| silent.device == oximeter);
        assert_eq!(shown.and_then(|silent| silent.online), Some(true));
        presence.heard(&oximeter);
        presence.stated(&oximeter, br#"{"online":false}"#);
        presence.stated(&oximeter, b"not a state");
        let silent = presence.silence();
        assert_eq!((silent.devices, silent.online), (home.intake.devices().len() - 1, 0));
        assert!(silent.longest.iter().all(|silent| silent.device != oximeter));
        assert_eq!(presence.lock().len(), 1, "nothing is remembered of who is not enrolled");
    }
}
