//! Body temperature of a thermometer: generated, since no real series was found; its label says `synthetic`.

use record::decimal::Decimal;

use super::{
    Message, Signal,
    noise::{Noise, Walk},
    quantity,
};

/// LOINC code of body temperature.
const CODE: &str = "8310-5";
/// A thermometer shows tenths of a degree.
const DIGITS: u8 = 1;

/// Temperature around one person's usual value.
#[derive(Debug)]
pub(crate) struct BodyTemperature {
    noise: Noise,
    hundredths: Walk,
}

impl BodyTemperature {
    pub(crate) fn new(seed: u64) -> Self {
        let mut noise = Noise::new(2, seed);
        let hundredths = Walk::around(noise.between(3640, 3700), 8);
        Self { noise, hundredths }
    }
}

impl Signal for BodyTemperature {
    fn step(&mut self) -> Vec<Message> {
        let tenths = self.hundredths.next(&mut self.noise) / 10;
        let value = Decimal::new(tenths, DIGITS).expect("one digit is among the nine a decimal keeps");
        vec![Message::reading(vec![quantity(CODE, value, "Cel")])]
    }
}
