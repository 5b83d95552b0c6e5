//! Why a signature is wrong: the mistakes that device makers make, tried one by one.

use std::collections::HashMap;

use record::{
    canonical::{self, Domain},
    ids::DeviceId,
    signature::{PublicKey, Signature},
};
use serde::Deserialize;
use serde_bytes::ByteBuf;

/// The JSON form with the text that was to be signed.
#[derive(Deserialize)]
struct JsonForm<'a> {
    #[serde(borrow)]
    reading: &'a serde_json::value::RawValue,
    signature: String,
}

/// COSE_Sign1 with nothing in its unprotected header, which is DAG-CBOR as well.
type CoseForm = (ByteBuf, HashMap<String, u8>, ByteBuf, ByteBuf);

/// Where the device's name stands.
#[derive(Deserialize)]
struct Named {
    device: DeviceId,
}

/// The mistake, if it is a known one.
pub(super) fn mistake(message: &[u8], keys: &HashMap<DeviceId, PublicKey>) -> Option<&'static str> {
    if message.first() == Some(&b'{') {
        json_mistake(message, keys)
    } else {
        cose_mistake(message, keys)
    }
}

fn json_mistake(message: &[u8], keys: &HashMap<DeviceId, PublicKey>) -> Option<&'static str> {
    let form: JsonForm<'_> = serde_json::from_slice(message).ok()?;
    let signature = unbase64(&form.signature)?;
    let text = form.reading.get();
    let key = keys.get(&named_in_json(text)?)?;
    let domain = Domain::READING.as_str();
    let holds = |signed: String| key.verify_raw(signed.as_bytes(), &signature).is_ok();
    if holds(text.to_owned()) {
        return Some("it is over the reading alone: put the line `vitalfog/reading/v1` and a line feed in front");
    }
    if holds(format!("{domain}{text}")) {
        return Some("the line feed between `vitalfog/reading/v1` and the reading is missing in what is signed");
    }
    if holds(format!("{domain}\n{text}\n")) {
        return Some("it is over the reading and a line feed after it: sign exactly the bytes that are sent");
    }
    if others(keys, |other| {
        other.verify(Domain::READING, text.as_bytes(), &signature).is_ok()
    }) {
        return Some("it is by the key of another device");
    }
    Some("was the reading written anew after it was signed? Send exactly the bytes that were signed")
}

fn cose_mistake(message: &[u8], keys: &HashMap<DeviceId, PublicKey>) -> Option<&'static str> {
    let (protected, _, payload, signature): CoseForm = canonical::decode_foreign(message, message.len()).ok()?;
    let signature = Signature::from_bytes(signature.as_slice().try_into().ok()?);
    let key = keys.get(&named_in_cbor(&payload)?)?;
    let over = |aad: &str| {
        let parts = ("Signature1", &protected, ByteBuf::from(aad), &payload);
        canonical::encode(&parts)
    };
    let domain = Domain::READING.as_str();
    if key.verify_raw(&over(""), &signature).is_ok() {
        return Some("external_aad was empty: it is the bytes of `vitalfog/reading/v1`");
    }
    if key.verify_raw(&payload, &signature).is_ok() {
        return Some("it is over the payload: sign COSE's Sig_structure (RFC 9052, section 4.4)");
    }
    if others(keys, |other| other.verify_raw(&over(domain), &signature).is_ok()) {
        return Some("it is by the key of another device");
    }
    None
}

fn others(keys: &HashMap<DeviceId, PublicKey>, holds: impl Fn(&PublicKey) -> bool) -> bool {
    keys.values().any(holds)
}

/// The name alone, whatever else stands there.
fn named_in_json(text: &str) -> Option<DeviceId> {
    serde_json::from_str::<Named>(text).ok().map(|named| named.device)
}

fn named_in_cbor(payload: &[u8]) -> Option<DeviceId> {
    let named: Named = canonical::decode_foreign(payload, payload.len()).ok()?;
    Some(named.device)
}

fn unbase64(text: &str) -> Option<Signature> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    Some(Signature::from_bytes(bytes.try_into().ok()?))
}
