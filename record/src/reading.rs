//! One signed device message: raw bytes, the signature checked, then decoded; in CBOR (COSE) or, made by hand, in JSON.

use coset::{CborSerializable as _, CoseSign1, iana};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::{
    canonical::{self, Digest, Domain},
    decimal::Decimal,
    ids::{BootId, DeviceId, ReadingId},
    signature::{PublicKey, Signature, SigningKey},
};

/// A message larger than this is refused before it is looked at.
pub const READING_BYTES_MAX: usize = 65_536;
/// The payload version we understand.
pub const VERSION: u8 = 1;
/// Measured values in one message, at most.
pub const MEASURED_MAX: usize = 32;
/// Samples in one waveform block, at most.
pub const SAMPLES_MAX: usize = 8_192;

/// Why a message is not taken; with the detail it is kept in quarantine and shown to the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// More bytes than [`READING_BYTES_MAX`].
    TooLarge,
    /// Neither COSE_Sign1 over our CBOR map nor the JSON form, nor sealed.
    Malformed,
    /// It came in the clear, and this gateway takes sealed messages only.
    Unsealed,
    /// It is sealed, and does not open: for another gateway, key or topic, or altered.
    NotOpened,
    /// No device of this name is enrolled here.
    UnknownDevice,
    /// The signature is not the device's.
    WrongSignature,
    /// The device, or the key that it signed with, was taken out of use on the chain.
    Revoked,
    /// Nobody is assigned to the device: whom it measures is not known.
    Unassigned,
    /// The device published under another device's or gateway's topic.
    WrongTopic,
    /// A code we do not know.
    UnknownCode,
    /// A unit that the code does not allow.
    WrongUnit,
    /// A value that the body or the sensor cannot produce.
    Implausible,
    /// The same sequence number was used for something else before.
    Equivocation,
}

impl Reason {
    /// The word used in status, metrics and error topic.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too-large",
            Self::Malformed => "malformed",
            Self::Unsealed => "unsealed",
            Self::NotOpened => "not-opened",
            Self::UnknownDevice => "unknown-device",
            Self::WrongSignature => "wrong-signature",
            Self::Revoked => "revoked",
            Self::Unassigned => "unassigned",
            Self::WrongTopic => "wrong-topic",
            Self::UnknownCode => "unknown-code",
            Self::WrongUnit => "wrong-unit",
            Self::Implausible => "implausible",
            Self::Equivocation => "equivocation",
        }
    }
}

/// A message that was not taken: the reason, and a sentence that says what to change. It never repeats a measured value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", reason.as_str())]
pub struct Refusal {
    /// The reason code.
    pub reason: Reason,
    /// What to change, without any measured value.
    pub detail: String,
}

impl Refusal {
    /// A refusal with its sentence.
    #[must_use]
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

/// How far the device's wall clock can be trusted (HL7 Personal Health Device guide, coincident timestamps).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeQuality {
    /// The device's clock is set from a time service.
    Synced,
    /// The gateway corrected it from the tick counter.
    Corrected,
    /// Only ticks since boot are known.
    Relative,
    /// Nothing is known.
    Unknown,
}

/// How the sensor judged its own measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MeasurementState {
    /// A good measurement.
    #[default]
    Valid,
    /// Measured under doubtful conditions, e.g. motion.
    Questionable,
    /// The sensor has no value (NaN, NRes, out of range): becomes FHIR dataAbsentReason.
    Absent,
}

/// A block of a waveform, as FHIR SampledData: value = origin + factor * sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Samples {
    /// The value of a zero sample, in the unit of the measurement.
    pub origin: Decimal,
    /// Milliseconds between two samples.
    pub period_ms: Decimal,
    /// What one step of a sample is worth.
    pub factor: Decimal,
    /// The samples.
    pub data: Vec<i32>,
}

impl Samples {
    /// A digest of the block and its unit, each number with its exact digits.
    #[must_use]
    pub fn digest(&self, unit: &str) -> Digest {
        Digest::of(Domain::SAMPLES, &[&canonical::encode(&(unit, self))])
    }
}

/// What was measured: one number, a block of samples, or (with state absent) nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// LOINC code (or MDC, where LOINC has none).
    pub code: String,
    /// The number; absent for waveforms and for absent measurements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Decimal>,
    /// The waveform block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<Samples>,
    /// UCUM unit.
    pub unit: String,
    /// The sensor's own judgement.
    #[serde(default)]
    pub state: MeasurementState,
}

/// What a device says in one message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// Payload version: [`VERSION`].
    pub v: u8,
    /// Who measured.
    pub device: DeviceId,
    /// Which start of the device.
    pub boot: BootId,
    /// Which message of this start, from 1, without gaps.
    pub seq: u64,
    /// Milliseconds since boot when it was measured.
    pub up_ms: u64,
    /// The device's wall clock when it was measured, in milliseconds since 1970-01-01T00:00:00Z, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall: Option<i64>,
    /// How far `wall` can be trusted.
    pub time_quality: TimeQuality,
    /// What was measured.
    pub observations: Vec<Measured>,
}

impl Reading {
    /// What makes it unique.
    #[must_use]
    pub fn id(&self) -> ReadingId {
        ReadingId {
            device: self.device.clone(),
            boot: self.boot,
            seq: self.seq,
        }
    }

    /// Signs it as COSE_Sign1 (RFC 9052): Ed25519, the device id as key id, the reading's domain as external data.
    #[must_use]
    pub fn sign(&self, key: &SigningKey) -> SignedReading {
        let protected = coset::HeaderBuilder::new()
            .algorithm(iana::Algorithm::EdDSA)
            .key_id(self.device.as_str().as_bytes().to_vec())
            .build();
        let message = coset::CoseSign1Builder::new()
            .protected(protected)
            .payload(canonical::encode(self))
            .create_signature(Domain::READING.as_str().as_bytes(), |bytes| {
                key.sign_raw(bytes).as_bytes().to_vec()
            })
            .build();
        let bytes = message.to_vec().expect("a COSE message of our own making encodes");
        SignedReading(ByteBuf::from(bytes))
    }

    /// Signs it in the JSON form: `{"reading":{..},"signature":"base64"}`, the signature over the domain, a line feed and
    /// exactly the bytes of the `reading` value.
    #[must_use]
    pub fn sign_json(&self, key: &SigningKey) -> SignedReading {
        let text = serde_json::to_string(self).expect("a reading has string keys and finite numbers");
        let signature = base64(key.sign(Domain::READING, text.as_bytes()).as_bytes());
        SignedReading(ByteBuf::from(
            format!(r#"{{"reading":{text},"signature":"{signature}"}}"#).into_bytes(),
        ))
    }
}

/// A device message exactly as it was received; what is inside is not yet believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignedReading(ByteBuf);

/// The JSON form; the reading's own text is what is signed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonForm<'a> {
    #[serde(borrow)]
    reading: &'a serde_json::value::RawValue,
    signature: String,
}

impl SignedReading {
    /// Takes the bytes of a message, if they are not too many.
    ///
    /// # Errors
    /// [`Reason::TooLarge`].
    pub fn receive(bytes: &[u8]) -> Result<Self, Refusal> {
        within_size(bytes)?;
        Ok(Self(ByteBuf::from(bytes)))
    }

    /// The bytes as received.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Decodes the message and checks the device's signature; only a checked reading comes out.
    ///
    /// # Errors
    /// [`Reason::Malformed`], [`Reason::UnknownDevice`] or [`Reason::WrongSignature`].
    pub fn decode(&self, key_of: impl Fn(&DeviceId) -> Option<PublicKey>) -> Result<Reading, Refusal> {
        let reading = if self.0.first() == Some(&b'{') {
            self.decode_json(key_of)?
        } else {
            self.decode_cose(key_of)?
        };
        if reading.v != VERSION {
            return Err(malformed(format!("payload version {} is not {VERSION}", reading.v)));
        }
        if reading.seq == 0 {
            return Err(malformed("sequence numbers start at 1"));
        }
        if reading.observations.is_empty() || reading.observations.len() > MEASURED_MAX {
            return Err(malformed(format!("a message carries 1 to {MEASURED_MAX} observations")));
        }
        if reading
            .observations
            .iter()
            .filter_map(|m| m.samples.as_ref())
            .any(|s| s.data.len() > SAMPLES_MAX)
        {
            return Err(malformed(format!("a waveform block has at most {SAMPLES_MAX} samples")));
        }
        Ok(reading)
    }

    fn decode_cose(&self, key_of: impl Fn(&DeviceId) -> Option<PublicKey>) -> Result<Reading, Refusal> {
        let message = CoseSign1::from_slice(&self.0).map_err(|_| malformed("not a COSE_Sign1 message"))?;
        let payload = message
            .payload
            .as_deref()
            .ok_or_else(|| malformed("the COSE message has no payload"))?;
        // The decoder's own message may repeat a field's name or text, and so far nobody has vouched for it.
        let reading: Reading = canonical::decode_foreign(payload, READING_BYTES_MAX)
            .map_err(|_| malformed("not DAG-CBOR, or a field is missing, unknown or of the wrong type"))?;
        let key = key_of(&reading.device).ok_or_else(|| unknown(&reading.device))?;
        if message.protected.header.alg != Some(coset::Algorithm::Assigned(iana::Algorithm::EdDSA)) {
            return Err(malformed("the COSE algorithm must be EdDSA, in the protected header"));
        }
        message
            .verify_signature(Domain::READING.as_str().as_bytes(), |signature, bytes| {
                key.verify_raw(bytes, &Signature::from_bytes(signature.try_into().map_err(|_| ())?))
                    .map_err(|_| ())
            })
            .map_err(|()| wrong_signature(&reading.device))?;
        Ok(reading)
    }

    fn decode_json(&self, key_of: impl Fn(&DeviceId) -> Option<PublicKey>) -> Result<Reading, Refusal> {
        let form: JsonForm<'_> = serde_json::from_slice(&self.0).map_err(|e| malformed(json_error(&e)))?;
        let reading: Reading = serde_json::from_str(form.reading.get()).map_err(|e| malformed(json_error(&e)))?;
        let key = key_of(&reading.device).ok_or_else(|| unknown(&reading.device))?;
        let signature = unbase64(&form.signature)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| malformed("the signature must be the base64 of 64 bytes"))?;
        key.verify(
            Domain::READING,
            form.reading.get().as_bytes(),
            &Signature::from_bytes(signature),
        )
        .map_err(|_| wrong_signature(&reading.device))?;
        Ok(reading)
    }
}

/// Whether a message is small enough to be looked at, signed or sealed.
///
/// # Errors
/// [`Reason::TooLarge`].
pub fn within_size(message: &[u8]) -> Result<(), Refusal> {
    if message.len() <= READING_BYTES_MAX {
        return Ok(());
    }
    let bytes = message.len();
    let detail = format!("the message has {bytes} bytes, at most {READING_BYTES_MAX} are taken");
    Err(Refusal::new(Reason::TooLarge, detail))
}

fn malformed(detail: impl Into<String>) -> Refusal {
    Refusal::new(Reason::Malformed, detail)
}

fn unknown(device: &DeviceId) -> Refusal {
    Refusal::new(
        Reason::UnknownDevice,
        format!("device {device} is not enrolled here; enrol it first"),
    )
}

fn wrong_signature(device: &DeviceId) -> Refusal {
    Refusal::new(
        Reason::WrongSignature,
        format!("the signature is not by the enrolled key of device {device}"),
    )
}

/// Where the JSON is wrong, without repeating what it says.
fn json_error(error: &serde_json::Error) -> String {
    use serde_json::error::Category;
    let what = match error.classify() {
        Category::Data => "a field is missing, unknown or of the wrong type",
        Category::Syntax | Category::Io => "not JSON",
        Category::Eof => "the JSON ends too early",
    };
    format!("{what} (line {}, column {})", error.line(), error.column())
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn reading() -> Reading {
        Reading {
            v: VERSION,
            device: "oximeter-1".parse().expect("good"),
            boot: BootId { counter: 1, random: 2 },
            seq: 3,
            up_ms: 4_000,
            wall: Some(1_790_000_000_000),
            time_quality: TimeQuality::Synced,
            observations: vec![Measured {
                code: "59408-5".to_owned(),
                value: Some(Decimal::whole(97)),
                samples: None,
                unit: "%".to_owned(),
                state: MeasurementState::Valid,
            }],
        }
    }

    #[test]
    fn both_forms_decode_to_what_was_signed() {
        let key = SigningKey::random();
        for signed in [reading().sign(&key), reading().sign_json(&key)] {
            assert_eq!(signed.decode(|_| Some(key.public())), Ok(reading()));
        }
    }

    #[test]
    fn another_devices_key_is_refused() {
        let (key, other) = (SigningKey::random(), SigningKey::random());
        for signed in [reading().sign(&key), reading().sign_json(&key)] {
            let refusal = signed.decode(|_| Some(other.public())).expect_err("wrong key");
            assert_eq!(refusal.reason, Reason::WrongSignature);
            assert_eq!(
                signed.decode(|_| None).expect_err("unknown").reason,
                Reason::UnknownDevice
            );
        }
    }

    #[test]
    fn a_giant_message_is_refused_before_it_is_read() {
        assert_eq!(
            SignedReading::receive(&vec![b'{'; 1 << 20]).expect_err("giant").reason,
            Reason::TooLarge
        );
    }

    #[test]
    fn a_refusal_never_repeats_a_value() {
        let message =
            SignedReading::receive(br#"{"reading":{"v":1,"value":"98.7654"},"signature":""}"#).expect("small");
        assert!(
            !message
                .decode(|_| None)
                .expect_err("malformed")
                .to_string()
                .contains("98.7654")
        );
    }

    #[test]
    fn a_refusal_never_repeats_foreign_text() {
        const FOREIGN: &str = "Ada Muster is ill";
        let cose = |payload: Vec<u8>| {
            let message = coset::CoseSign1Builder::new().payload(payload).build();
            message.to_vec().expect("encodes")
        };
        let text = serde_json::to_string(&reading()).expect("encodes");
        let mut messages = vec![canonical::encode(&FOREIGN)];
        for field in ["seq", "synced", "valid"] {
            // As the name of an unknown field, and as a variant.
            let text = text.replace(&format!("\"{field}\""), &format!("\"{FOREIGN}\""));
            let tree: std::collections::BTreeMap<String, Tree> = serde_json::from_str(&text).expect("JSON");
            messages.push(cose(canonical::encode(&tree)));
            messages.push(format!(r#"{{"reading":{text},"signature":""}}"#).into_bytes());
        }
        for message in messages {
            let refusal = SignedReading::receive(&message).expect("small").decode(|_| None);
            let refusal = refusal.expect_err("malformed");
            assert_eq!(refusal.reason, Reason::Malformed, "{refusal}");
            assert!(!refusal.to_string().contains("Ada"), "{refusal}");
        }
    }

    /// Any JSON without fractions, to be written as CBOR.
    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Tree {
        Number(i64),
        Text(String),
        List(Vec<Tree>),
        Map(std::collections::BTreeMap<String, Tree>),
    }

    #[test]
    fn a_block_has_another_digest_with_any_other_number_or_unit() {
        let block = |origin: &str, factor: &str, data: Vec<i32>| Samples {
            origin: origin.parse().expect("decimal"),
            period_ms: Decimal::whole(4),
            factor: factor.parse().expect("decimal"),
            data,
        };
        let digests = [
            block("0", "0.5", vec![1, 2]).digest("mV"),
            block("0", "0.5", vec![1, 2]).digest("1"),
            block("0.0", "0.5", vec![1, 2]).digest("mV"),
            block("0", "0.50", vec![1, 2]).digest("mV"),
            block("0", "0.5", vec![2, 1]).digest("mV"),
        ];
        assert_eq!(std::collections::BTreeSet::from(digests).len(), digests.len());
        assert_eq!(block("0", "0.5", vec![1, 2]).digest("mV"), digests[0]);
    }

    proptest! {
        #[test]
        fn a_flipped_byte_is_never_believed(at: usize, with in 1u8..=255, json: bool) {
            let key = SigningKey::random();
            let signed = if json { reading().sign_json(&key) } else { reading().sign(&key) };
            let mut bytes = signed.as_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= with;
            if let Ok(other) = SignedReading::receive(&bytes).expect("small").decode(|_| Some(key.public())) {
                // Only unsigned decoration (spaces around the JSON form, an unprotected header) may differ.
                prop_assert_eq!(other, reading());
            }
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let key = SigningKey::random();
            let _refused = SignedReading::receive(&bytes).expect("small").decode(|_| Some(key.public()));
        }
    }
}
