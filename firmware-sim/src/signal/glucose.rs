//! Glucose of a continuous sensor: one person's recorded values, unchanged and in their order.

use record::decimal::Decimal;

use super::{Message, Signal, library::Person, quantity};

/// LOINC code of glucose in interstitial fluid, in mg/dL.
pub(crate) const CODE: &str = "99504-3";

/// Replays one person, one recorded value a step. The recording's five minutes become the device's cadence.
#[derive(Debug)]
pub(crate) struct Glucose {
    person: Person,
    next: usize,
}

impl Glucose {
    pub(crate) const fn new(person: Person) -> Self {
        Self { person, next: 0 }
    }
}

impl Signal for Glucose {
    fn step(&mut self) -> Vec<Message> {
        let value = self.person.glucose_mg_dl[self.next];
        self.next = (self.next + 1) % self.person.glucose_mg_dl.len();
        vec![Message::reading(vec![quantity(CODE, Decimal::whole(value), "mg/dL")])]
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Library, *};

    #[test]
    fn all_nineteen_people_are_replayed_value_by_value() {
        let mut values = 0;
        for index in 0..19 {
            let label = Library::embedded().recording(super::super::Kind::GlucoseSensor, index);
            let person = Library::embedded()
                .glucose(&label)
                .expect("known")
                .glucose_mg_dl
                .clone();
            values += person.len();
            let replayed = Library::embedded().expected(&label).expect("known").take(person.len());
            for (message, recorded) in replayed.zip(person.iter()) {
                assert_eq!(
                    message.observations,
                    [quantity("99504-3", Decimal::whole(*recorded), "mg/dL")]
                );
            }
        }
        assert_eq!(values, 34_890);
    }

    #[test]
    fn the_first_person_starts_as_in_the_file() {
        let label = "cgm-hall-2018/1636-69-001";
        let first = Library::embedded().glucose(label).expect("known").glucose_mg_dl[..3].to_vec();
        assert_eq!(first, [93, 93, 93]);
    }
}
