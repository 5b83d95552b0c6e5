//! Who is measured and by what: synthetic patients, their subject keys, and one to three devices for each.

use std::{fs, path::PathBuf};

use firmware_sim::signal::{Kind, Library};
use record::{
    bundle::{Category, SubjectKey, SubjectSecret},
    fhir::Patient,
    ids::{DeviceId, SubjectId},
    signature::{PublicKey, SigningKey},
};

use crate::{
    fault::Fault,
    folder::Folder,
    identities::{Password, signing_key},
};

/// Names that nobody bears: placeholders of several languages. A number makes each unique.
const FAMILIES: [&str; 8] = [
    "Sample",
    "Muster",
    "Exemple",
    "Ejemplo",
    "Esempio",
    "Voorbeeld",
    "Placeholder",
    "Specimen",
];
const GIVEN: [&str; 10] = [
    "Alpha", "Bravo", "Charlie", "Delta", "Echo", "Foxtrot", "Golf", "Hotel", "India", "Juliett",
];
const GENDERS: [&str; 4] = ["female", "male", "other", "unknown"];
/// Devices of one patient, at most; the first patient has one, the second two, and so on around.
const DEVICES_PER_PATIENT_MAX: usize = 3;

/// A synthetic person, with the keys that open what their devices measure and what a hospital writes about them.
#[derive(Clone, Debug)]
pub struct Person {
    /// Who they are.
    pub patient: Patient,
    /// The public half of their key for vitals.
    pub key: SubjectKey,
    /// The private half: it goes into the custodian's keyring, and stays here for the audit at the end.
    pub secret: SubjectSecret,
    /// Their key for documents, both halves.
    pub clinical: (SubjectSecret, SubjectKey),
}

impl Person {
    fn synthetic(number: usize) -> Result<Self, Fault> {
        let pair = |category| SubjectSecret::generate(category, 1).map_err(Fault::identity("a subject key"));
        let ((secret, key), clinical) = (pair(Category::Vitals)?, pair(Category::Clinical)?);
        let patient = Patient {
            id: SubjectId::random(),
            family: format!("{}-{:04}", FAMILIES[number % FAMILIES.len()], number + 1),
            given: GIVEN[number % GIVEN.len()].to_owned(),
            gender: GENDERS[number % GENDERS.len()].to_owned(),
            birth_date: format!(
                "{}-{:02}-{:02}",
                1930 + number * 7 % 75,
                1 + number % 12,
                1 + number * 5 % 28
            ),
        };
        Ok(Self {
            patient,
            key,
            secret,
            clinical,
        })
    }

    /// The name people read.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} {}", self.patient.given, self.patient.family)
    }
}

/// A home device.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its id.
    pub id: DeviceId,
    /// What kind of device it is.
    pub kind: Kind,
    /// The label of what it replays.
    pub recording: String,
    /// Whom it measures: index into [`Household::people`].
    pub person: usize,
    /// The key with which it signs, public half.
    pub key: PublicKey,
    /// PEM file of the private half.
    pub key_file: PathBuf,
    /// The password of its MQTT user, which is called like the device.
    pub password: Password,
}

impl Device {
    /// The private half of its key, read back from its file.
    ///
    /// # Errors
    /// [`Fault::File`] or [`Fault::Identity`].
    pub fn signing_key(&self) -> Result<SigningKey, Fault> {
        let pem = fs::read_to_string(&self.key_file).map_err(Fault::file(&self.key_file))?;
        SigningKey::from_pem(&pem).map_err(Fault::identity("a device's key"))
    }
}

/// Everybody and everything at home.
#[derive(Clone, Debug)]
pub struct Household {
    /// The people.
    pub people: Vec<Person>,
    /// Their devices.
    pub devices: Vec<Device>,
}

impl Household {
    /// A household with this many devices and as many people as they need, each device with a recording of the library;
    /// keys and passwords are written to the folder.
    ///
    /// # Errors
    /// [`Fault::Identity`] or [`Fault::File`].
    pub fn furnish(folder: &Folder, devices: usize, recordings: &Library) -> Result<Self, Fault> {
        let owners = owners(devices);
        let people = owners.last().map_or(0, |last| last + 1);
        let people = (0..people).map(Person::synthetic).collect::<Result<_, _>>()?;
        let devices = owners
            .into_iter()
            .enumerate()
            .map(|(i, person)| device(folder, recordings, (i, person)));
        Ok(Self {
            people,
            devices: devices.collect::<Result<_, _>>()?,
        })
    }

    /// The person a device measures.
    #[must_use]
    pub fn person_of(&self, device: &Device) -> &Person {
        &self.people[device.person]
    }
}

/// Whom each device measures: 1, 2, 3, 1, 2, 3 .. devices a person.
fn owners(devices: usize) -> Vec<usize> {
    (0..)
        .flat_map(|person| std::iter::repeat_n(person, person % DEVICES_PER_PATIENT_MAX + 1))
        .take(devices)
        .collect()
}

fn device(folder: &Folder, recordings: &Library, (index, person): (usize, usize)) -> Result<Device, Fault> {
    let kind = Kind::ALL[index % Kind::ALL.len()];
    let number = index / Kind::ALL.len();
    let name = format!("{}-{}", stem(kind), number + 1);
    let (key, key_file) = signing_key(folder, &format!("fleet/keys/{name}.pem"))?;
    let password = Password::create(folder, &format!("fleet/passwords/{name}"))?;
    let id = name.parse().expect("a stem and a number are a good name");
    let recording = recordings.recording(kind, number);
    Ok(Device {
        id,
        kind,
        recording,
        person,
        key: key.public(),
        key_file,
        password,
    })
}

/// What devices of a kind are called.
const fn stem(kind: Kind) -> &'static str {
    match kind {
        Kind::PulseOximeter => "oximeter",
        Kind::BloodPressureCuff => "cuff",
        Kind::Thermometer => "thermometer",
        Kind::GlucoseSensor => "glucose",
        Kind::Scale => "scale",
        Kind::WearableEcg => "ecg",
        Kind::WearablePpg => "ppg",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn everybody_has_one_to_three_devices() {
        assert_eq!(owners(8), [0, 1, 1, 2, 2, 2, 3, 4]);
        assert!(owners(0).is_empty());
    }

    #[test]
    fn names_and_ids_are_unique() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::create(dir.path()).expect("creates");
        let household = Household::furnish(&folder, 50, Library::embedded()).expect("furnishes");
        let devices: HashSet<_> = household.devices.iter().map(|d| d.id.clone()).collect();
        let names: HashSet<_> = household.people.iter().map(Person::name).collect();
        assert_eq!((devices.len(), names.len()), (50, household.people.len()));
        assert_eq!(household.devices[0].id.as_str(), "oximeter-1");
        assert_eq!(household.devices[7].id.as_str(), "oximeter-2");
    }

    #[test]
    fn birth_dates_are_dates() {
        for number in 0..1_000 {
            let person = Person::synthetic(number).expect("random numbers");
            assert!(person.patient.birth_date.parse::<jiff::civil::Date>().is_ok());
        }
    }
}
