//! Which field of a reading is none: the gateway says that one is, and not which, since nobody has vouched for what stands there.

use std::collections::BTreeMap;

use record::{
    canonical,
    ids::{BootId, DeviceId},
    reading::{Measured, TimeQuality},
};
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_bytes::ByteBuf;

/// Letters of a strange field's name that are shown.
const NAME_SHOWN_MAX: usize = 40;

/// A reading that is no good, in either form.
enum Text<'a> {
    Json(&'a str),
    Cbor(&'a [u8]),
}

impl Text<'_> {
    fn read<T: DeserializeOwned>(&self) -> Option<T> {
        match self {
            Self::Json(text) => serde_json::from_str(text).ok(),
            Self::Cbor(bytes) => canonical::decode_foreign(bytes, bytes.len()).ok(),
        }
    }
}

#[derive(Deserialize)]
struct JsonForm<'a> {
    #[serde(borrow)]
    reading: &'a serde_json::value::RawValue,
}

/// COSE_Sign1 with nothing in its unprotected header, which is DAG-CBOR as well.
type CoseForm = (ByteBuf, BTreeMap<String, u8>, ByteBuf, ByteBuf);

/// Says of the first field that is missing or of a wrong form what it must be: each is read alone. Gives the names of all.
macro_rules! first_wrong {
    ($text:expr, $($field:ident: $form:ty, $expected:literal;)*) => {{
        let fields = [$(stringify!($field)),*];
        $({
            #[derive(Deserialize)]
            struct Alone {
                $field: $form,
            }
            let read = $text.read::<Alone>().map(|alone| alone.$field);
            if read.is_none() {
                return Some(format!("`{}` must be {}", stringify!($field), $expected));
            }
        })*
        fields
    }};
}

/// The field that has to be changed first, and what it must be; `None` if the message is no such form at all.
pub(super) fn field(message: &[u8]) -> Option<String> {
    if message.first() == Some(&b'{') {
        let form: JsonForm<'_> = serde_json::from_slice(message).ok()?;
        return first(&Text::Json(form.reading.get()));
    }
    let (_, _, payload, _): CoseForm = canonical::decode_foreign(message, message.len()).ok()?;
    first(&Text::Cbor(&payload))
}

fn first(text: &Text<'_>) -> Option<String> {
    let all: BTreeMap<String, IgnoredAny> = text.read()?;
    let known = first_wrong!(text,
        v: u8, "1";
        device: DeviceId, "the device's name, 1 to 64 characters of a-z, 0-9 and '-'";
        boot: BootId, "a counter without leading zeros, '-', and 16 lower-case hexadecimal digits, e.g. 7-00c0ffee00c0ffee";
        seq: u64, "a whole number from 1 on";
        up_ms: u64, "a whole number of milliseconds since this boot";
        wall: Option<i64>, "a whole number of milliseconds since 1970, or not be there";
        time_quality: TimeQuality, "one of synced, corrected, relative and unknown";
        observations: Vec<Measured>, "a list; each has code and unit, one of value, samples or neither with state absent, and nothing else";
    );
    let strange = all.keys().find(|name| !known.contains(&name.as_str()))?;
    let name: String = strange.escape_debug().take(NAME_SHOWN_MAX).collect();
    Some(format!("`{name}` is no field of a reading: take it out"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn reading(field: &str, value: Option<Value>) -> Value {
        let mut reading = json!({
            "v": 1, "device": "scale-1", "boot": "7-00c0ffee00c0ffee", "seq": 1, "up_ms": 5, "time_quality": "relative",
            "observations": [{"code": "29463-7", "unit": "kg", "value": 80}],
        });
        match value {
            Some(value) => reading[field] = value,
            None => drop(reading.as_object_mut().expect("an object").remove(field)),
        }
        reading
    }

    #[test]
    fn the_field_that_is_wrong_is_named_in_both_forms_and_its_value_is_not() {
        let cases = [
            ("boot", Some(json!("07-00C0FFEE00C0FFEE"))),
            ("boot", Some(json!(7_711))),
            ("boot", None),
            ("device", Some(json!("Scale_7711"))),
            ("seq", Some(json!("7711"))),
            ("seq", Some(json!(-7_711))),
            ("up_ms", None),
            ("wall", Some(json!("7711"))),
            ("time_quality", Some(json!("7711"))),
            (
                "observations",
                Some(json!([{"code": "29463-7", "unit": "kg", "values": 7_711}])),
            ),
            ("patient", Some(json!("7711"))),
        ];
        for (name, value) in cases {
            let reading = reading(name, value);
            let json = json!({"reading": reading, "signature": ""}).to_string();
            let bytes = |text: &[u8]| ByteBuf::from(text.to_vec());
            let payload = canonical::encode(&reading);
            let parts = (bytes(&[]), BTreeMap::<String, u8>::new(), bytes(&payload), bytes(&[]));
            for message in [json.into_bytes(), canonical::encode(&parts)] {
                let said = field(&message).expect("it is named");
                assert!(said.starts_with(&format!("`{name}` ")), "{name}: {said}");
                assert!(!said.contains("7711"), "{said}");
            }
        }
        let good = json!({"reading": reading("seq", Some(json!(1))), "signature": ""}).to_string();
        assert_eq!(field(good.as_bytes()), None);
        assert_eq!(field(b"not a reading"), None);
    }
}
