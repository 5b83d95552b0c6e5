//! Body weight on a scale: generated, since no real series was found; its label says `synthetic`.

use record::decimal::Decimal;

use super::{
    Message, Signal,
    noise::{Noise, Walk},
    quantity,
};

/// LOINC code of body weight.
const CODE: &str = "29463-7";
/// A bathroom scale shows tenths of a kilogram.
const DIGITS: u8 = 1;

/// Weight around one person's usual value.
#[derive(Debug)]
pub(crate) struct BodyWeight {
    noise: Noise,
    tenths: Walk,
}

impl BodyWeight {
    pub(crate) fn new(seed: u64) -> Self {
        let mut noise = Noise::new(3, seed);
        let tenths = Walk::around(noise.between(520, 960), 2);
        Self { noise, tenths }
    }
}

impl Signal for BodyWeight {
    fn step(&mut self) -> Vec<Message> {
        let tenths = self.tenths.next(&mut self.noise);
        let value = Decimal::new(tenths, DIGITS).expect("one digit is among the nine a decimal keeps");
        vec![Message::reading(vec![quantity(CODE, value, "kg")])]
    }
}
