//! A reading made by hand: from its parts, or from a JSON text that is signed exactly as it stands.

use std::{fs, io::Read as _, path::PathBuf};

use base64::Engine as _;
use record::{
    canonical::Domain,
    decimal::Decimal,
    ids::{BootId, DeviceId, GatewayId, NetworkId},
    reading::{Measured, MeasurementState, READING_BYTES_MAX, Reading, TimeQuality, VERSION},
    signature::SigningKey,
    topic::Topic,
    transit::ReadingKey,
};

use crate::{config, signal::Stream};

/// What to sign.
#[derive(Debug, clap::Args)]
pub(super) struct Request {
    /// PEM file of the device's key.
    #[arg(long)]
    key: PathBuf,
    /// JSON text of a whole reading, signed as it stands; `-` reads standard input.
    #[arg(long, conflicts_with_all = ["device", "code", "value", "unit", "boot", "seq"])]
    reading: Option<PathBuf>,
    /// Device id.
    #[arg(long, required_unless_present = "reading")]
    device: Option<DeviceId>,
    /// LOINC (or MDC) code.
    #[arg(long, required_unless_present = "reading")]
    code: Option<String>,
    /// The number, digit for digit as it is to be read.
    #[arg(long, required_unless_present = "reading", allow_negative_numbers = true)]
    value: Option<Decimal>,
    /// UCUM unit.
    #[arg(long, required_unless_present = "reading")]
    unit: Option<String>,
    /// Boot id, e.g. `7-00c0ffee00c0ffee`; a new one without it.
    #[arg(long, value_parser = boot_id)]
    boot: Option<BootId>,
    /// Sequence number.
    #[arg(long, default_value_t = 1)]
    seq: u64,
    #[command(flatten)]
    seal: Seal,
}

/// Sealed to the gateway's reading key, for one topic. What is printed is the bytes of the message, without a line end.
#[derive(Debug, clap::Args)]
struct Seal {
    /// Seal it to this reading key, as the gateway's /status shows it.
    #[arg(long, requires_all = ["network", "gateway"])]
    seal_to: Option<String>,
    /// The network that the gateway belongs to.
    #[arg(long)]
    network: Option<NetworkId>,
    /// The gateway whose topic it is published under.
    #[arg(long)]
    gateway: Option<GatewayId>,
    /// The last level of the topic that it is published under.
    #[arg(long, default_value = "reading", value_parser = ["reading", "wave", "event"])]
    channel: String,
}

fn boot_id(text: &str) -> Result<BootId, String> {
    text.parse()
}

impl Request {
    /// The message, ready to be published: signed, with a line end that is no part of it; or sealed.
    pub(super) fn message(&self) -> Result<Vec<u8>, String> {
        let signed = self.sign()?;
        match self.seal.key()? {
            None => Ok(format!("{signed}\n").into_bytes()),
            Some(key) => self.seal.seal(&key, &signed),
        }
    }

    fn sign(&self) -> Result<String, String> {
        let key = SigningKey::from_pem(&config::secret(&self.key)?).map_err(|e| e.to_string())?;
        match &self.reading {
            Some(path) => sign_text(&key, &text(path)?),
            None => self
                .put_together()
                .map(|reading| utf8(reading.sign_json(&key).as_bytes())),
        }
    }

    fn put_together(&self) -> Result<Reading, String> {
        let missing = || "without --reading all of --device --code --value --unit are needed".to_owned();
        let measured = Measured {
            code: self.code.clone().ok_or_else(missing)?,
            value: Some(self.value.ok_or_else(missing)?),
            samples: None,
            unit: self.unit.clone().ok_or_else(missing)?,
            state: MeasurementState::Valid,
        };
        Ok(Reading {
            v: VERSION,
            device: self.device.clone().ok_or_else(missing)?,
            boot: self.boot.unwrap_or_else(|| BootId {
                counter: 1,
                random: rand::random(),
            }),
            seq: self.seq,
            up_ms: 0,
            wall: Some(jiff::Timestamp::now().as_millisecond()),
            time_quality: TimeQuality::Synced,
            observations: vec![measured],
        })
    }
}

impl Seal {
    fn key(&self) -> Result<Option<ReadingKey>, String> {
        let Some(text) = &self.seal_to else { return Ok(None) };
        let (Some(network), Some(gateway)) = (self.network, self.gateway.clone()) else {
            return Err("--seal-to needs --network and --gateway".to_owned());
        };
        let key = ReadingKey::read(network, gateway, text).map_err(|e| e.to_string())?;
        Ok(Some(key))
    }

    /// Seals it for the topic of its own device.
    fn seal(&self, key: &ReadingKey, signed: &str) -> Result<Vec<u8>, String> {
        let form: Signed = serde_json::from_str(signed).map_err(|e| format!("not a reading: {e}"))?;
        let channel = Stream::of(&self.channel).ok_or("there is no such channel")?.channel();
        let topic = Topic {
            device: form.reading.device,
            channel,
        };
        let sealed = key.seal(&topic, signed.as_bytes()).map_err(|e| e.to_string())?;
        Ok(sealed.encode())
    }
}

/// Whose a signed message is.
#[derive(serde::Deserialize)]
struct Signed {
    reading: Reading,
}

fn text(path: &PathBuf) -> Result<String, String> {
    let read = if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin()
            .take(READING_BYTES_MAX as u64 + 1)
            .read_to_string(&mut text)
            .map(|_| text)
    } else {
        fs::read_to_string(path)
    };
    read.map_err(|e| format!("cannot read {}: {e}", path.display()))
}

/// Signs the text as it stands; only the space around it, which is no part of a JSON value, is left away.
fn sign_text(key: &SigningKey, text: &str) -> Result<String, String> {
    let text = text.trim_matches([' ', '\t', '\r', '\n']);
    let _: Reading = serde_json::from_str(text).map_err(|e| format!("not a reading: {e}"))?;
    let signature =
        base64::engine::general_purpose::STANDARD.encode(key.sign(Domain::READING, text.as_bytes()).as_bytes());
    Ok(format!(r#"{{"reading":{text},"signature":"{signature}"}}"#))
}

fn utf8(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the JSON form is UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use record::{
        canonical::Digest,
        reading::SignedReading,
        topic::Channel,
        transit::{ReadingKeys, SealedReading},
    };
    use std::os::unix::fs::PermissionsExt as _;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        request: Request,
    }

    fn key_file(folder: &std::path::Path) -> (SigningKey, String) {
        let (key, path) = (SigningKey::random(), folder.join("key.pem"));
        fs::write(&path, key.to_pem().expect("encodes").as_bytes()).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("permitted");
        (key, path.display().to_string())
    }

    #[test]
    fn parts_become_a_reading_that_the_gateway_takes() {
        let folder = tempfile::tempdir().expect("a folder");
        let (key, file) = key_file(folder.path());
        let args = [
            "sign", "--key", &file, "--device", "scale-1", "--code", "29463-7", "--value", "71.40", "--unit", "kg",
        ];
        let message = Line::try_parse_from(args)
            .expect("good")
            .request
            .sign()
            .expect("signed");
        let reading = SignedReading::receive(message.as_bytes())
            .expect("small")
            .decode(|_| Some(key.public()))
            .expect("good");
        assert_eq!(reading.observations[0].value.expect("a number").to_string(), "71.40");
        assert!(Line::try_parse_from(&args[..9]).is_err());
    }

    #[test]
    fn what_is_sealed_by_hand_opens_at_its_gateway_under_its_topic() {
        let folder = tempfile::tempdir().expect("a folder");
        let (_, file) = key_file(folder.path());
        let (network, gateway) = (NetworkId(Digest::ZERO), "home-1".parse().expect("good"));
        let keys = ReadingKeys::generate(network, gateway, 0).expect("random numbers");
        let (to, network) = (keys.current().public(), network.to_string());
        let args = [
            "sign",
            "--key",
            &file,
            "--device",
            "scale-1",
            "--code",
            "29463-7",
            "--value",
            "71.40",
            "--unit",
            "kg",
            "--channel",
            "event",
            "--seal-to",
            &to,
            "--network",
            &network,
            "--gateway",
            "home-1",
        ];
        let line = Line::try_parse_from(args).expect("good");
        let message = line.request.message().expect("sealed");
        assert!(!message.windows(5).any(|part| part == b"71.40"));
        let topic = |channel| Topic {
            device: "scale-1".parse().expect("good"),
            channel,
        };
        let sealed = SealedReading::receive(&message).expect("well formed");
        let signed = keys.open(&topic(Channel::Event), &sealed).expect("opens");
        assert!(signed.starts_with(b"{\"reading\":{") && signed.ends_with(b"}"));
        assert!(keys.open(&topic(Channel::Reading), &sealed).is_err());
        assert!(Line::try_parse_from(&args[..15]).is_err(), "a key alone is not enough");
    }

    #[test]
    fn a_text_is_signed_as_it_stands() {
        let key = SigningKey::random();
        let text = r#"{ "v":1, "device":"scale-1","boot":"1-0000000000000001", "seq":9, "up_ms":5, "wall":1790000000000,
            "time_quality":"synced", "observations":[{"code":"29463-7","value":71.40,"unit":"kg"}]}"#;
        let message = sign_text(&key, &format!("\n{text}\n")).expect("signed");
        assert!(message.contains(text));
        let reading = SignedReading::receive(message.as_bytes())
            .expect("small")
            .decode(|_| Some(key.public()))
            .expect("good");
        assert_eq!(reading.seq, 9);
        assert!(sign_text(&key, "{}").is_err());
    }
}
