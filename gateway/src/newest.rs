//! The newest believed value of each sign of the devices that may be shown in their home, in memory alone.
//!
//! The sink puts in what has just become durable; who shows it takes it out. Values are of opted-in devices only, one for each
//! sign, so the memory has a bound. Nothing here is logged, and `Debug` shows no value.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use record::{
    ids::{BootId, DeviceId},
    observation::{Observation, Value},
    reading::TimeQuality,
    vital::Sign,
};
use serde::{Deserialize, Serialize};

/// A value as it is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shown {
    /// The number with the digits that were signed; null if the sensor had no value.
    pub value: Option<String>,
    /// UCUM.
    pub unit: String,
    /// When it holds, for people.
    pub measured: String,
    /// The same in milliseconds since 1970.
    pub measured_ms: i64,
    /// How far that time can be trusted.
    pub time_quality: TimeQuality,
    /// Whether the sensor doubted it.
    pub questionable: bool,
    /// Which start of the device, and which message of it.
    pub boot: BootId,
    /// The number of the message.
    pub seq: u64,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shown({}/{})", self.boot, self.seq)
    }
}

impl Shown {
    /// Whether it was measured later: of one start the number says it, of two the time.
    fn is_newer_than(&self, other: &Self) -> bool {
        if self.boot == other.boot {
            self.seq > other.seq
        } else {
            self.measured_ms > other.measured_ms
        }
    }
}

/// What a value is of.
pub type Of = (DeviceId, &'static str);

/// The newest values; clones share them.
#[derive(Clone, Debug)]
pub struct Newest {
    devices: Arc<HashSet<DeviceId>>,
    // Held for one look, never across an await.
    values: Arc<Mutex<BTreeMap<Of, Shown>>>,
}

impl Newest {
    /// Of these devices, and of no others.
    #[must_use]
    pub fn of(devices: HashSet<DeviceId>) -> Self {
        Self {
            devices: Arc::new(devices),
            values: Arc::default(),
        }
    }

    /// Whether a device may be shown.
    #[must_use]
    pub fn may_show(&self, device: &DeviceId) -> bool {
        self.devices.contains(device)
    }

    /// What a reading says that is durable now. A waveform is not shown.
    pub(crate) fn take(&self, observations: &[Observation]) {
        for one in observations.iter().filter(|one| self.may_show(&one.reading.device)) {
            match &one.value {
                Value::Quantity(quantity, _) => {
                    self.put(one, one.sign, Some(quantity.value.to_string()), quantity.unit)
                }
                Value::Components(parts) => {
                    for (sign, quantity, _) in parts {
                        self.put(one, sign, Some(quantity.value.to_string()), quantity.unit);
                    }
                }
                Value::Absent if !one.sign.waveform => {
                    if let Some(unit) = one.sign.units.first() {
                        self.put(one, one.sign, None, unit.ucum);
                    }
                }
                Value::Absent | Value::Samples(..) => {}
            }
        }
    }

    fn put(&self, of: &Observation, sign: &'static Sign, value: Option<String>, unit: &str) {
        let shown = Shown {
            value,
            unit: unit.to_owned(),
            measured: instant(of.effective_ms),
            measured_ms: of.effective_ms,
            time_quality: of.time_quality,
            questionable: of.questionable,
            boot: of.reading.boot,
            seq: of.reading.seq,
        };
        self.learn((of.reading.device.clone(), sign.code), shown);
    }

    /// Takes in a value, unless a newer one is known, or the device may not be shown.
    pub(crate) fn learn(&self, of: Of, shown: Shown) {
        if !self.may_show(&of.0) {
            return;
        }
        let mut values = self.lock();
        if values.get(&of).is_none_or(|known| shown.is_newer_than(known)) {
            values.insert(of, shown);
        }
    }

    /// All of them.
    pub(crate) fn all(&self) -> BTreeMap<Of, Shown> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Of, Shown>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn instant(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map(|instant| instant.to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::tests::{Home, measured};
    use record::{decimal::Decimal, reading::Measured};

    fn observed(
        home: &Home,
        seq: u64,
        measured: Vec<Measured>,
        change: impl FnOnce(&mut record::reading::Reading),
    ) -> Vec<Observation> {
        let mut reading = home.oximeter.unsigned(seq, measured);
        change(&mut reading);
        Observation::of(&reading, 1_790_000_000_000_i64).expect("good")
    }

    fn saturation(value: &str) -> Vec<Measured> {
        vec![measured("59408-5", value.parse::<Decimal>().expect("a number"), "%")]
    }

    #[tokio::test]
    async fn what_was_measured_later_is_shown_whatever_comes_later() {
        let home = Home::open();
        let oximeter: DeviceId = home.oximeter.id.clone();
        let newest = Newest::of([oximeter.clone()].into());
        let shown = |newest: &Newest| newest.all().values().next().and_then(|shown| shown.value.clone());
        newest.take(&observed(&home, 9, saturation("97.0"), |_| {}));
        assert_eq!(shown(&newest).as_deref(), Some("97.0"), "with its digits");
        // Backfill of the same start has a smaller number, even if its clock says otherwise,
        newest.take(&observed(&home, 4, saturation("91"), |r| {
            r.wall = r.wall.map(|wall| wall + 3_600_000)
        }));
        // and of another start an earlier time.
        newest.take(&observed(&home, 70, saturation("92"), |r| {
            r.boot.random += 1;
            r.wall = r.wall.map(|wall| wall - 3_600_000);
        }));
        assert_eq!(shown(&newest).as_deref(), Some("97.0"));
        newest.take(&observed(&home, 10, saturation("96"), |_| {}));
        assert_eq!(shown(&newest).as_deref(), Some("96"));
        assert!(!format!("{newest:?}").contains("96"), "no log shows a value");
    }

    #[tokio::test]
    async fn who_may_not_be_shown_is_not_and_a_panel_is_its_parts() {
        let home = Home::open();
        let scale: DeviceId = home.scale.id.clone();
        let newest = Newest::of([scale].into());
        newest.take(&observed(&home, 1, saturation("97"), |_| {}));
        assert!(newest.all().is_empty());
        let newest = Newest::of([home.oximeter.id.clone()].into());
        let pressure = vec![
            measured("8480-6", Decimal::whole(120), "mm[Hg]"),
            measured("8462-4", Decimal::whole(80), "mm[Hg]"),
        ];
        newest.take(&observed(&home, 1, pressure, |_| {}));
        let codes: Vec<_> = newest.all().into_keys().map(|(_, code)| code).collect();
        assert_eq!(codes, ["8462-4", "8480-6"]);
    }
}
