//! Which device measures whom: the device's public key and the subject key its readings are sealed to.

use std::{collections::HashMap, fs, io, path::PathBuf};

use record::{bundle::SubjectKey, ids::DeviceId, signature::PublicKey};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::outbox;

/// Devices at one gateway, at most.
pub const DEVICES_MAX: usize = 10_000;
const _: () = assert!(
    outbox::STREAMS_MAX > DEVICES_MAX,
    "a device that is heard keeps its place in the sequence, or its next number would look like a gap"
);

/// Where the enrolments are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A JSON list of [`Enrolment`].
    pub file: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            file: "enrolment.json".into(),
        }
    }
}

/// One device: whose signature counts, and for whom it measures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// The device.
    pub device: DeviceId,
    /// The key it signs readings with.
    pub key: PublicKey,
    /// The key its readings are sealed to: the subject's public half.
    pub subject: SubjectKey,
}

/// One device as it is written: each field is read by itself, so that a fault names it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    device: Value,
    key: Value,
    subject: Value,
}

impl Written {
    fn read(self, number: usize) -> Result<Enrolment, Error> {
        let device = self
            .device
            .as_str()
            .map(|name| format!(" ({name:?})"))
            .unwrap_or_default();
        let field = |field, why: serde_json::Error| Error::Field {
            number,
            device: device.clone(),
            field,
            why: why.to_string(),
        };
        Ok(Enrolment {
            device: serde_json::from_value(self.device).map_err(|why| field("device", why))?,
            key: serde_json::from_value(self.key).map_err(|why| field("key", why))?,
            subject: serde_json::from_value(self.subject).map_err(|why| field("subject", why))?,
        })
    }
}

/// Why the enrolments cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// Not the JSON list we expect.
    #[error("is not a JSON list of enrolments, each with device, key and subject: {0}")]
    Malformed(#[from] serde_json::Error),
    /// One field of one enrolment is no such thing.
    #[error("enrolment {number}{device}: {field}: {why}")]
    Field {
        /// Which of them, from 1.
        number: usize,
        /// Its device, if that can be read.
        device: String,
        /// What it is called in the file.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A device twice, a subject key that nothing can be sealed to, or too many devices.
    #[error("{0}")]
    Contradiction(String),
}

/// The devices that are enrolled at this gateway.
#[derive(Clone, Debug, Default)]
pub struct Enrolments {
    devices: HashMap<DeviceId, Enrolment>,
}

impl Enrolments {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Error`].
    pub fn load(config: &Config) -> Result<Self, Error> {
        let list: Vec<Written> = serde_json::from_str(&fs::read_to_string(&config.file)?)?;
        let numbered = (1..).zip(list);
        Self::of(
            numbered
                .map(|(number, one)| one.read(number))
                .collect::<Result<_, _>>()?,
        )
    }

    /// Takes a list.
    ///
    /// # Errors
    /// [`Error::Contradiction`].
    pub fn of(list: Vec<Enrolment>) -> Result<Self, Error> {
        if list.len() > DEVICES_MAX {
            return Err(Error::Contradiction(format!("more than {DEVICES_MAX} devices")));
        }
        let mut devices = HashMap::with_capacity(list.len());
        for enrolment in list {
            if !outbox::can_seal_to(&enrolment.subject) {
                return Err(Error::Contradiction(format!(
                    "{}: not a usable X25519 subject key",
                    enrolment.device
                )));
            }
            let device = enrolment.device.clone();
            if devices.insert(device.clone(), enrolment).is_some() {
                return Err(Error::Contradiction(format!("{device} is enrolled twice")));
            }
        }
        Ok(Self { devices })
    }

    /// The enrolment of a device.
    #[must_use]
    pub fn of_device(&self, device: &DeviceId) -> Option<&Enrolment> {
        self.devices.get(device)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Enrolment> {
        self.devices.values()
    }

    /// How many devices are enrolled.
    #[must_use]
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// Whether no device is enrolled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::{
        bundle::{Category, SubjectSecret},
        signature::SigningKey,
    };

    fn enrolment(device: &str) -> Enrolment {
        let (_, subject) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
        Enrolment {
            device: device.parse().expect("good"),
            key: SigningKey::random().public(),
            subject,
        }
    }

    #[test]
    fn a_file_reads_back_and_a_device_twice_is_refused() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let config = Config {
            file: folder.path().join("enrolment.json"),
        };
        let one = enrolment("scale-1");
        fs::write(&config.file, serde_json::to_string(&[&one]).expect("encodes")).expect("writes");
        let read = Enrolments::load(&config).expect("good");
        assert_eq!(read.of_device(&one.device), Some(&one));
        assert!(matches!(
            Enrolments::of(vec![one.clone(), one]),
            Err(Error::Contradiction(_))
        ));
    }

    #[test]
    fn a_fault_names_the_device_and_the_field() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let config = Config {
            file: folder.path().join("enrolment.json"),
        };
        let good = serde_json::to_value(enrolment("scale-1")).expect("encodes");
        let said = |field: &str, value: Value| {
            let mut bad = good.clone();
            bad[field] = value;
            fs::write(&config.file, Value::from(vec![good.clone(), bad]).to_string()).expect("writes");
            Enrolments::load(&config).expect_err("a fault").to_string()
        };
        let second = "enrolment 2 (\"scale-1\"): ";
        let key = said("key", "12ab".into());
        assert!(
            key.starts_with(&format!("{second}key: ")) && key.contains("64 lower-case hex digits"),
            "{key}"
        );
        let subject = said("subject", serde_json::json!({"key": "00"}));
        assert!(
            subject.starts_with(&format!("{second}subject: ")) && subject.contains("`key`"),
            "{subject}"
        );
        let device = said("device", "Scale 1".into());
        assert!(device.contains("device: ") && device.contains("a-z, 0-9"), "{device}");
        let other = said("kye", 1.into());
        assert!(other.contains("`kye`"), "{other}");
    }

    #[test]
    fn a_short_subject_key_is_refused() {
        let mut one = enrolment("scale-1");
        one.subject.public.pop();
        assert!(matches!(Enrolments::of(vec![one]), Err(Error::Contradiction(_))));
    }
}
