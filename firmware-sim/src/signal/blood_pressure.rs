//! Blood pressure of a cuff: generated, since no real series was found; its label says `synthetic`.

use record::{decimal::Decimal, vital};

use super::{
    Message, Signal,
    noise::{Noise, Walk},
    quantity,
};

/// Systolic, diastolic and mean pressure around one person's usual values.
#[derive(Debug)]
pub(crate) struct BloodPressure {
    noise: Noise,
    systolic: Walk,
    /// Systolic minus diastolic, so that one never falls below the other.
    pulse: Walk,
}

impl BloodPressure {
    pub(crate) fn new(seed: u64) -> Self {
        let mut noise = Noise::new(1, seed);
        let systolic = noise.between(112, 142);
        let pulse = noise.between(38, 56);
        Self {
            noise,
            systolic: Walk::around(systolic, 3),
            pulse: Walk::around(pulse, 1),
        }
    }
}

impl Signal for BloodPressure {
    fn step(&mut self) -> Vec<Message> {
        let systolic = self.systolic.next(&mut self.noise);
        let pulse = self.pulse.next(&mut self.noise).max(20);
        let diastolic = systolic - pulse;
        let pressure = |code, value| quantity(code, Decimal::whole(value), "mm[Hg]");
        vec![Message::reading(vec![
            pressure(vital::SYSTOLIC, systolic),
            pressure(vital::DIASTOLIC, diastolic),
            // The estimate that oscillometric cuffs print when they do not show the measured one.
            pressure(vital::MEAN_PRESSURE, diastolic + pulse / 3),
        ])]
    }
}
