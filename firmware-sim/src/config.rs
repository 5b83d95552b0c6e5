//! One TOML file for a fleet, and the list of its devices; everything wrong with them is found at once.

mod files;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use record::{
    ids::{DeviceId, GatewayId},
    signature::SigningKey,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

pub(crate) use self::files::secret;
use self::files::{address, entries, trusting};
use crate::{
    conformance::Captured,
    device::{self, Broker, Credentials, Habits, Home, Parts, Stored},
    fault,
    fleet::Fleet,
    profile::{self, Profile, Profiles},
    signal::{Kind, Library, Signal, Stream},
};

/// More complaints than this are counted, not listed.
const COMPLAINTS_MAX: usize = 50;
/// A device cannot measure more often than this.
const PERIOD_MS_MIN: f64 = 1.0;

/// Configuration of `firmware-sim run`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The gateway the devices belong to; part of their topics.
    pub gateway: String,
    /// Boot counters, `status.json`, and the account of all readings: `acknowledged.ndjson`, `refused.ndjson`,
    /// `missing.ndjson`; made if it does not exist.
    pub data_dir: PathBuf,
    /// JSON list of [`DeviceEntry`].
    pub devices: PathBuf,
    /// Recordings to replay instead of the built-in ones: a file or a folder of `.csv` or `.csv.gz`.
    pub recordings: Option<PathBuf>,
    /// How much faster than usual everything is replayed.
    pub speed: f64,
    /// Time between two readings of a device at speed 1. Waveforms keep one second a block, as recorded.
    pub cadence_ms: u64,
    /// Unacknowledged readings that a device keeps; what finds no room leaves a gap in its numbers.
    pub journal_readings_max: usize,
    /// How long a device keeps what was acknowledged, for a gateway that asks for it, in seconds; 1,000 readings at most.
    pub keep_acknowledged_s: u64,
    /// Write every message to `capture.ndjson` when it is sent first.
    pub capture: bool,
    /// A capture whose messages the devices publish again, each under its own topic, when they start.
    pub replay: Option<PathBuf>,
    /// The broker.
    pub mqtt: device::Config,
    /// What they seal to; without it they publish in the clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seal: Option<device::SealConfig>,
    /// What goes wrong.
    pub fault: fault::Config,
    /// What some devices do differently, by the name of the profile.
    pub profile: Profiles,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            gateway: "home-1".to_owned(),
            data_dir: PathBuf::from("data/firmware-sim"),
            devices: PathBuf::from("devices.json"),
            recordings: None,
            speed: 1.0,
            cadence_ms: 1_000,
            journal_readings_max: 600,
            keep_acknowledged_s: 0,
            capture: false,
            replay: None,
            mqtt: device::Config::default(),
            seal: None,
            fault: fault::Config::default(),
            profile: Profiles::new(),
        }
    }
}

/// A device in `devices.json`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceEntry {
    /// Its name, as enrolled at the gateway.
    pub id: DeviceId,
    /// What it is.
    pub kind: Kind,
    /// PKCS#8 PEM of its ed25519 key, readable by the owner only.
    pub key_file: PathBuf,
    /// Its user at the broker.
    pub user: String,
    /// Its password at the broker, readable by the owner only; absent for a device that logs in with a certificate alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Its certificate at the broker, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// The private key of its certificate, PEM, readable by the owner only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_key: Option<PathBuf>,
    /// The label of what it replays.
    pub recording: String,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Default)]
pub struct Complaints(Vec<String>);

impl fmt::Display for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for complaint in self.0.iter().take(COMPLAINTS_MAX) {
            writeln!(f, "- {complaint}")?;
        }
        match self.0.len().checked_sub(COMPLAINTS_MAX) {
            Some(more @ 1..) => writeln!(f, "- and {more} more"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Complaints {}

impl Complaints {
    /// The good value, or a complaint written down.
    fn hear<T>(&mut self, result: Result<T, String>) -> Option<T> {
        result.map_err(|complaint| self.0.push(complaint)).ok()
    }
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`Complaints`], when it cannot be read or is not of this form.
    pub fn load(path: &Path) -> Result<Self, Complaints> {
        let text =
            fs::read_to_string(path).map_err(|e| Complaints(vec![format!("cannot read {}: {e}", path.display())]))?;
        toml::from_str(&text).map_err(|e| Complaints(vec![format!("{}: {}", path.display(), e.to_string().trim_end())]))
    }

    /// Reads every file it names and builds the fleet; nothing is connected or written yet.
    pub(crate) fn fleet(&self) -> Result<Fleet, Complaints> {
        let mut complaints = Complaints::default();
        let home = self.home(&mut complaints);
        let library = complaints.hear(self.library());
        let devices = self.devices(library.as_ref(), &mut complaints);
        match (home, complaints.0.is_empty()) {
            (Some(home), true) => Ok(Fleet { home, devices }),
            _ => Err(complaints),
        }
    }

    fn home(&self, complaints: &mut Complaints) -> Option<Home> {
        let gateway = self.gateway.parse::<GatewayId>().map_err(|e| format!("gateway: {e}"));
        let gateway = complaints.hear(gateway);
        let sealing = gateway.clone().zip(self.seal.as_ref());
        let seal = sealing.map(|(gateway, seal)| seal.key(gateway).map_err(|e| format!("[seal] {e}")));
        let seal = complaints.hear(seal.transpose());
        let broker = self.broker(complaints);
        complaints.hear(self.fault.faults().map_err(|e| e.to_string()));
        if !(1..=1_000_000).contains(&self.journal_readings_max) {
            complaints
                .0
                .push("journal_readings_max must lie between 1 and 1000000".to_owned());
        }
        Some(Home {
            gateway: gateway?,
            broker: broker?,
            seal: seal?,
            captures: self.capture,
            data_dir: self.data_dir.clone(),
            readings_max: self.journal_readings_max,
            keep_acknowledged: Duration::from_secs(self.keep_acknowledged_s),
            answer_timeout: Duration::from_millis(self.mqtt.answer_timeout_ms),
        })
    }

    fn broker(&self, complaints: &mut Complaints) -> Option<Broker> {
        let mqtt = &self.mqtt;
        let address = complaints.hear(address(&mqtt.address));
        let tls = complaints.hear(trusting(&mqtt.ca, None));
        for (name, value, low, high) in [
            ("keep_alive_s", u64::from(mqtt.keep_alive_s), 5, 3_600),
            ("connect_timeout_ms", mqtt.connect_timeout_ms, 100, 600_000),
            ("answer_timeout_ms", mqtt.answer_timeout_ms, 1_000, 600_000),
            ("in_flight_max", u64::from(mqtt.in_flight_max), 1, 1_000),
            ("connecting_max", mqtt.connecting_max as u64, 1, 10_000),
        ] {
            if !(low..=high).contains(&value) {
                complaints
                    .0
                    .push(format!("[mqtt] {name} must lie between {low} and {high}"));
            }
        }
        let (host, port) = address?;
        Some(Broker {
            host,
            port,
            tls: Arc::new(tls?),
            keep_alive_s: mqtt.keep_alive_s,
            connect_timeout: Duration::from_millis(mqtt.connect_timeout_ms),
            in_flight_max: mqtt.in_flight_max,
            receipt: mqtt.receipt,
            // A senseless number has been complained about; the clamp only keeps the semaphore from panicking before.
            turns: Arc::new(Semaphore::new(mqtt.connecting_max.clamp(1, 10_000))),
        })
    }

    fn library(&self) -> Result<Library, String> {
        match &self.recordings {
            Some(path) => Library::read(path).map_err(|e| format!("recordings: {e}")),
            None => Ok(Library::embedded().clone()),
        }
    }

    /// Time between two steps of a device that measures so many times as often as usual.
    fn period(&self, kind: Kind, rate: f64) -> Result<Duration, String> {
        let cadence = if kind.is_waveform() { 1_000 } else { self.cadence_ms };
        // Nobody waits longer than 2^53 milliseconds.
        let period_ms = cadence as f64 / self.speed / rate;
        if period_ms.is_finite() && period_ms >= PERIOD_MS_MIN && self.speed > 0.0 {
            Ok(Duration::from_secs_f64(period_ms / 1_000.0))
        } else {
            Err(format!(
                "speed, cadence_ms and rate must leave at least {PERIOD_MS_MIN} ms between two readings"
            ))
        }
    }

    fn devices(&self, library: Option<&Library>, complaints: &mut Complaints) -> Vec<Parts> {
        let Some(entries) = complaints.hear(entries(&self.devices)) else {
            return Vec::new();
        };
        let mut seen = std::collections::HashSet::new();
        let mut known = Vec::new();
        for (number, entry) in entries.into_iter().enumerate() {
            let entry: Result<DeviceEntry, _> = serde_json::from_value(entry);
            let Some(entry) = complaints.hear(entry.map_err(|e| format!("device number {number}: {e}"))) else {
                continue;
            };
            if !seen.insert(entry.id.clone()) {
                complaints.0.push(format!("device {} is listed twice", entry.id));
            }
            known.push(entry);
        }
        let names: Vec<_> = known.iter().map(|entry| entry.id.clone()).collect();
        complaints.0.extend(profile::complaints(&self.profile, &names));
        let usual = Profile::default();
        let assigned = profile::assign(&self.profile, &names);
        let mut devices = Vec::new();
        for (entry, profile) in known.into_iter().zip(assigned) {
            devices.extend(self.device(entry, (profile.unwrap_or(("", &usual)), library), complaints));
        }
        self.give_back(&mut devices, complaints);
        devices
    }

    /// How a device logs in: by password, by certificate, or by both.
    fn credentials(&self, entry: &DeviceEntry) -> Result<Credentials, String> {
        let password = entry.password_file.as_deref().map(secret).transpose()?;
        let identity = match (&entry.certificate, &entry.private_key) {
            (Some(certificate), Some(key)) => Some((certificate.as_path(), key.as_path())),
            (None, None) => None,
            _ => return Err("certificate and private_key belong together: set both or none".to_owned()),
        };
        if password.is_none() && identity.is_none() {
            return Err("nothing to log in with: set password_file, or certificate and private_key".to_owned());
        }
        let tls = identity.map(|identity| trusting(&self.mqtt.ca, Some(identity)).map(Arc::new));
        Ok(Credentials {
            user: entry.user.clone(),
            password: password.map(|password| password.trim_end_matches(['\r', '\n']).to_owned()),
            tls: tls.transpose()?,
        })
    }

    fn device(
        &self,
        entry: DeviceEntry,
        ((name, profile), library): ((&str, &Profile), Option<&Library>),
        complaints: &mut Complaints,
    ) -> Option<Parts> {
        let id = &entry.id;
        let key = secret(&entry.key_file)
            .and_then(|pem| SigningKey::from_pem(&pem).map_err(|e| format!("{}: {e}", entry.key_file.display())));
        let key = complaints.hear(key.map_err(|e| format!("device {id}: {e}")));
        let credentials = complaints.hear(self.credentials(&entry).map_err(|e| format!("device {id}: {e}")));
        let period = |rate: f64| self.period(entry.kind, rate).map_err(|e| format!("device {id}: {e}"));
        let periods = complaints.hear(period(1.0).and_then(|usual| Ok((usual, period(profile.rate)?))));
        let own = complaints.hear(signal(&entry, library?));
        let (usual, period) = periods?;
        let stored = (profile.stored_steps > 0)
            .then(|| signal(&entry, library?).ok())
            .flatten();
        // What is wrong with them has been said already.
        let faults = profile.fault.as_ref().unwrap_or(&self.fault).faults().ok()?;
        if faults.spoil_seals() && (self.seal.is_none() || !profile.seals) {
            let text = format!("device {id}: a fault spoils seals, and it has none: set [seal]");
            complaints.0.push(text);
        }
        let habits = Habits {
            profile: (!name.is_empty()).then(|| name.into()),
            faults,
            clock: profile.clock,
            events: profile.events,
            seals: profile.seals,
            stored: stored.map(|signal| Stored::of(signal, profile.stored_steps, usual)),
            replay: std::collections::VecDeque::new(),
        };
        Some(Parts {
            id: entry.id,
            key: key?,
            credentials: credentials?,
            signal: own?,
            period,
            habits,
        })
    }

    /// Gives each device the messages of the capture that are its own.
    fn give_back(&self, devices: &mut [Parts], complaints: &mut Complaints) {
        let Some(path) = &self.replay else { return };
        let text = fs::read_to_string(path).map_err(|e| format!("replay: cannot read {}: {e}", path.display()));
        let Some(text) = complaints.hear(text) else { return };
        let prefix = format!("vitalfog/v1/{}/", self.gateway);
        for (number, line) in (1..).zip(text.lines()) {
            let message = Captured::parse(line).map_err(|e| format!("replay: line {number} is {e}"));
            let Some(message) = complaints.hear(message) else {
                continue;
            };
            let levels = message
                .topic
                .strip_prefix(&prefix)
                .and_then(|rest| rest.split_once('/'));
            let whose = levels.and_then(|(device, channel)| {
                let device = devices.iter_mut().find(|parts| parts.id.as_str() == device)?;
                Some((device, Stream::of(channel)?))
            });
            match whose {
                Some((parts, stream)) => parts.habits.replay.push_back((stream, message.payload.into())),
                None => complaints
                    .0
                    .push(format!("replay: line {number} is of none of these devices")),
            }
        }
    }
}

/// The device's sensor, at its start.
fn signal(entry: &DeviceEntry, library: &Library) -> Result<Box<dyn Signal>, String> {
    let id = &entry.id;
    let (kind, signal) = library
        .open(&entry.recording)
        .map_err(|e| format!("device {id}: {e}"))?;
    if kind == entry.kind {
        Ok(signal)
    } else {
        Err(format!(
            "device {id}: recording {:?} is for a {kind}, not for a {}",
            entry.recording, entry.kind
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).expect("written");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permitted");
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let (devices, key) = (folder.path().join("devices.json"), folder.path().join("key.pem"));
        write(&key, &SigningKey::random().to_pem().expect("encodes"), 0o644);
        let entry = |id: &str, kind: &str, recording: &str| {
            serde_json::json!({
                "id": id, "kind": kind, "key_file": key, "user": "home", "password_file": folder.path().join("none"),
                "recording": recording,
            })
        };
        let list = serde_json::json!([
            entry("scale-1", "scale", "synthetic/body-weight"),
            entry("scale-1", "scale", "ecg-mitbih-208"),
            entry("Scale", "scale", "synthetic/body-weight"),
            entry("scale-3", "scale", "nothing"),
        ]);
        write(&devices, &list.to_string(), 0o644);
        let config = Config {
            gateway: "Home".to_owned(),
            devices,
            mqtt: device::Config {
                address: "nowhere".to_owned(),
                ca: folder.path().join("ca"),
                ..Default::default()
            },
            fault: fault::Config {
                drops: 2.0,
                ..Default::default()
            },
            speed: 0.0,
            ..Config::default()
        };
        let said = config.fleet().err().expect("bad").to_string();
        for part in [
            "gateway",
            "address",
            "ca",
            "[fault]",
            "speed",
            "chmod 600",
            "none",
            "listed twice",
            "for a wearable-ecg",
            "device number 2",
            "\"nothing\"",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.toml");
        write(&path, "gateway = \"home-1\"\nspeeed = 2.0\n", 0o644);
        assert!(Config::load(&path).expect_err("bad").to_string().contains("speeed"));
        write(
            &path,
            "gateway = \"home-2\"\nspeed = 2\n[mqtt]\naddress = \"127.0.0.1:1\"\n",
            0o644,
        );
        let config = Config::load(&path).expect("good");
        assert_eq!((config.gateway.as_str(), config.mqtt.keep_alive_s), ("home-2", 30));
    }

    #[test]
    fn waveforms_keep_their_second_and_the_rest_its_cadence() {
        let config = Config {
            cadence_ms: 5_000,
            speed: 2.0,
            ..Config::default()
        };
        assert_eq!(config.period(Kind::WearableEcg, 1.0), Ok(Duration::from_millis(500)));
        assert_eq!(
            config.period(Kind::GlucoseSensor, 1.0),
            Ok(Duration::from_millis(2_500))
        );
        assert!(
            Config {
                speed: 1e9,
                ..Config::default()
            }
            .period(Kind::Scale, 1.0)
            .is_err()
        );
        assert!(
            Config {
                speed: f64::NAN,
                ..Config::default()
            }
            .period(Kind::Scale, 1.0)
            .is_err()
        );
    }
}
