//! By which pair of clocks a reading of a device without a wall clock is timed, and when such pairs are forgotten.

use record::{
    clock::Coincidence,
    ids::{BootId, DeviceId},
};

use super::{
    super::{
        Measurement,
        clock::{Clock, Stated, Way},
    },
    Sequences,
};

impl Sequences {
    /// What a reading that was just remembered is timed with, if its device has no wall clock. One that has waited here says
    /// nothing of the counter.
    pub(in super::super) fn clock(&mut self, measurement: &Measurement, has_waited: bool) -> Option<Coincidence> {
        let now = Coincidence {
            gateway_ms: measurement.entry.received_ms,
            up_ms: measurement.ticks_ms?,
        };
        let (device, boot) = (&measurement.id.device, measurement.id.boot);
        let number = *self.numbers.get(&(device.clone(), boot))?;
        let (stream, _) = self.streams.get_mut(&number)?;
        let stated = self.stated.get_mut(device).filter(|(of, _)| *of == boot);
        let stated = stated.map(|(_, stated)| stated);
        if !has_waited {
            stream.clock = Clock::after(stream.clock, now);
        }
        let signed = stream.clock.and_then(Clock::pair);
        signed.or_else(|| {
            let stated = stated?;
            if !has_waited {
                stated.meet(now);
            }
            stated.pair(stream.clock)
        })
    }

    /// Takes in what a device said of its counter when it connected. Nobody has signed it: it makes no start of the device
    /// known, is not kept, and gives way to what signed messages prove.
    pub(in super::super) fn state(&mut self, device: DeviceId, boot: BootId, (pair, way): (Coincidence, Way)) {
        let known = self.stated.get(&device).filter(|(of, _)| *of == boot);
        if let Some(stated) = Stated::after(known.map(|(_, stated)| *stated), pair, way) {
            self.stated.insert(device, (boot, stated));
        }
    }

    /// Forgets what tick counters were read against, since the gateway's clock is another now.
    pub(in super::super) fn forget_clocks(&mut self) {
        self.stated.clear();
        self.forget_clocks_that(|_| true);
    }

    /// The same of what was read later than it is now: the clock was set back while the gateway did not run.
    pub(in super::super) fn forget_clocks_after(&mut self, now_ms: i64) {
        self.forget_clocks_that(|clock| clock.is_after(now_ms));
    }

    fn forget_clocks_that(&mut self, is: impl Fn(Clock) -> bool) {
        for (number, (stream, _)) in &mut self.streams {
            if stream.clock.is_some_and(&is) {
                stream.clock = None;
                self.touched.insert(*number);
            }
        }
    }
}
