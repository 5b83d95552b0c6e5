//! The shape the outside sees: FHIR R4 (4.0.1) Observation, Patient, searchset Bundle and OperationOutcome as JSON.

mod gaps;

pub use gaps::gaps;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{
    Value as Json, json,
    value::{RawValue, to_raw_value},
};

use crate::{
    decimal::Decimal,
    ids::SubjectId,
    observation::{Interpretation, Observation, Quantity, Value},
    reading::{Samples, TimeQuality},
    vital::Sign,
};

/// The version of FHIR we speak.
pub const FHIR_VERSION: &str = "4.0.1";
/// Base of our own extensions and identifier systems.
pub const SYSTEM: &str = "urn:vitalfog";

/// A resource as the text that is served. It is no `serde_json::Value`, which keeps numbers as floats: of 36.70 it would
/// serve 36.7, but the precision of a decimal is part of what FHIR says with it.
#[derive(Clone, Debug)]
pub struct Resource {
    kind: &'static str,
    id: String,
    text: Box<RawValue>,
}

impl Resource {
    fn of(kind: &'static str, id: String, body: &impl Serialize) -> Self {
        let text = raw(body);
        Self { kind, id, text }
    }
}

impl Serialize for Resource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.text.serialize(serializer)
    }
}

fn raw(body: &impl Serialize) -> Box<RawValue> {
    to_raw_value(body).expect("resources have string keys and finite numbers")
}

/// Who a subject is, as its custodian knows it; kept sealed in the keyring, shown to permitted callers alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patient {
    /// The pseudonym: FHIR logical id.
    pub id: SubjectId,
    /// Family name.
    pub family: String,
    /// Given name.
    pub given: String,
    /// FHIR administrative gender: male, female, other or unknown.
    pub gender: String,
    /// `YYYY-MM-DD`; an age is derived from it and never stored (paper, section 6).
    pub birth_date: String,
}

impl Patient {
    /// The Patient resource.
    #[must_use]
    pub fn resource(&self) -> Resource {
        let body = json!({
            "resourceType": "Patient",
            "id": self.id.to_string(),
            "identifier": [{"system": format!("{SYSTEM}:subject"), "value": self.id.to_string()}],
            "active": true,
            "name": [{"use": "official", "family": self.family, "given": [self.given]}],
            "gender": self.gender,
            "birthDate": self.birth_date,
        });
        Resource::of("Patient", self.id.to_string(), &body)
    }
}

/// Milliseconds since 1970 as a FHIR instant in UTC.
#[must_use]
pub fn instant(ms: i64) -> String {
    let clamped = ms.clamp(Timestamp::MIN.as_millisecond() + 1, Timestamp::MAX.as_millisecond() - 1);
    Timestamp::from_millisecond(clamped).map_or_else(|_| "1970-01-01T00:00:00.000Z".to_owned(), |t| format!("{t:.3}"))
}

/// What differs between observations, beside what all of them have.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    #[serde(flatten)]
    head: Json,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_quantity: Option<UcumQuantity>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    component: Vec<Component>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_sampled_data: Option<SampledData>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_absent_reason: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interpretation: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<Json>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Component {
    code: Json,
    value_quantity: UcumQuantity,
    #[serde(skip_serializing_if = "Option::is_none")]
    interpretation: Option<Json>,
}

#[derive(Serialize)]
struct UcumQuantity {
    value: Decimal,
    unit: &'static str,
    system: &'static str,
    code: &'static str,
}

#[derive(Serialize)]
struct SampledData {
    origin: UcumQuantity,
    period: Decimal,
    factor: Decimal,
    dimensions: u8,
    data: String,
}

/// The Observation resource of one observation of one subject; each number has the digits that the device signed.
#[must_use]
pub fn observation(of: &Observation, subject: SubjectId) -> Resource {
    let mut body = Body {
        head: head(of, subject),
        note: of
            .questionable
            .then(|| json!([{"text": "The sensor marked this measurement as questionable."}])),
        ..Body::default()
    };
    match &of.value {
        Value::Quantity(value, flag) => {
            body.value_quantity = Some(quantity(value));
            body.interpretation = interpretation(*flag);
        }
        Value::Components(parts) => {
            let part = |(sign, value, flag): &(&Sign, Quantity, Interpretation)| Component {
                code: concept(sign),
                value_quantity: quantity(value),
                interpretation: interpretation(*flag),
            };
            body.component = parts.iter().map(part).collect();
        }
        Value::Samples(samples, unit, flag) => {
            body.value_sampled_data = Some(sampled(samples, unit));
            body.interpretation = interpretation(*flag);
        }
        Value::Absent => {
            let coding =
                json!({"system": "http://terminology.hl7.org/CodeSystem/data-absent-reason", "code": "not-a-number"});
            body.data_absent_reason = Some(json!({"coding": [coding]}));
        }
    }
    Resource::of("Observation", of.id(), &body)
}

fn head(of: &Observation, subject: SubjectId) -> Json {
    json!({
        "resourceType": "Observation",
        "id": of.id(),
        "meta": {"lastUpdated": instant(of.received_ms)},
        "identifier": [{"system": format!("{SYSTEM}:reading"), "value": of.reading.to_string()}],
        "status": "final",
        "category": [{"coding": [{
            "system": "http://terminology.hl7.org/CodeSystem/observation-category",
            "code": of.sign.class.code(),
        }]}],
        "code": concept(of.sign),
        "subject": {"reference": format!("Patient/{subject}")},
        "effectiveDateTime": instant(of.effective_ms),
        "issued": instant(of.received_ms),
        "device": {"identifier": {"system": format!("{SYSTEM}:device"), "value": of.reading.device.as_str()}},
        "extension": [
            {"url": format!("{SYSTEM}:time-quality"), "valueCode": time_quality(of.time_quality)},
            {"url": format!("{SYSTEM}:device-time"), "extension": device_time(of)},
        ],
    })
}

/// The device's own clocks as it signed them, whatever `effectiveDateTime` was made of.
fn device_time(of: &Observation) -> Vec<Json> {
    let unit = quantity(&Quantity {
        value: Decimal::whole(0),
        unit: "ms",
    });
    let up = json!({"value": of.up_ms, "unit": unit.unit, "system": unit.system, "code": unit.code});
    let wall = of
        .wall_ms
        .map(|ms| json!({"url": "wall", "valueDateTime": instant(ms)}));
    [Some(json!({"url": "up", "valueQuantity": up})), wall]
        .into_iter()
        .flatten()
        .collect()
}

fn concept(sign: &Sign) -> Json {
    let main = json!({"system": sign.system.uri(), "code": sign.code, "display": sign.display});
    let also = sign
        .also
        .map(|(code, display)| json!({"system": sign.system.uri(), "code": code, "display": display}));
    let coding: Vec<_> = [Some(main), also].into_iter().flatten().collect();
    json!({"coding": coding, "text": sign.display})
}

const fn quantity(of: &Quantity) -> UcumQuantity {
    UcumQuantity {
        value: of.value,
        unit: of.unit,
        system: "http://unitsofmeasure.org",
        code: of.unit,
    }
}

fn sampled(samples: &Samples, unit: &'static str) -> SampledData {
    let data: Vec<_> = samples.data.iter().map(i32::to_string).collect();
    let value = samples.origin;
    SampledData {
        origin: quantity(&Quantity { value, unit }),
        period: samples.period_ms,
        factor: samples.factor,
        dimensions: 1,
        data: data.join(" "),
    }
}

fn interpretation(flag: Interpretation) -> Option<Json> {
    let (code, display) = match flag {
        Interpretation::Normal => return None,
        Interpretation::Low => ("L", "Low"),
        Interpretation::High => ("H", "High"),
        Interpretation::Abnormal => ("A", "Abnormal"),
    };
    let system = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation";
    Some(json!([{"coding": [{"system": system, "code": code, "display": display}]}]))
}

const fn time_quality(of: TimeQuality) -> &'static str {
    match of {
        TimeQuality::Synced => "synced",
        TimeQuality::Corrected => "corrected",
        TimeQuality::Relative => "relative",
        TimeQuality::Unknown => "unknown",
    }
}

/// A Bundle of type searchset.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Searchset {
    resource_type: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    total: u64,
    link: Vec<Json>,
    // An empty array is not allowed in FHIR JSON.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    entry: Vec<Entry>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    full_url: Option<String>,
    resource: Box<RawValue>,
    search: Json,
}

impl Searchset {
    /// With a remark on the search itself, beside the matches.
    #[must_use]
    pub fn with_outcome(mut self, outcome: &Json) -> Self {
        self.entry.push(Entry {
            full_url: None,
            resource: raw(outcome),
            search: json!({"mode": "outcome"}),
        });
        self
    }
}

/// A searchset: matches with their full URLs, the total, and the links (`self`, `next`).
#[must_use]
pub fn searchset(base: &str, total: u64, links: &[(&str, String)], matches: Vec<Resource>) -> Searchset {
    let entry = |Resource { kind, id, text }| Entry {
        full_url: Some(format!("{base}/{kind}/{id}")),
        resource: text,
        search: json!({"mode": "match"}),
    };
    Searchset {
        resource_type: "Bundle",
        kind: "searchset",
        total,
        link: links
            .iter()
            .map(|(relation, url)| json!({"relation": relation, "url": url}))
            .collect(),
        entry: matches.into_iter().map(entry).collect(),
    }
}

/// An OperationOutcome with one issue: severity, FHIR issue type code, and a sentence that says what to change.
#[must_use]
pub fn operation_outcome(severity: &str, code: &str, diagnostics: &str) -> Json {
    json!({
        "resourceType": "OperationOutcome",
        "issue": [{"severity": severity, "code": code, "diagnostics": diagnostics}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::{MeasurementState, tests::reading};
    use proptest::prelude::*;

    fn json(of: &impl Serialize) -> Json {
        serde_json::from_str(raw(of).get()).expect("JSON")
    }

    fn served(value: Value) -> Resource {
        let mut one = Observation::of(&reading(), 1_790_000_000_123).expect("good").remove(0);
        one.value = value;
        observation(&one, SubjectId::random())
    }

    fn of(value: Decimal) -> Value {
        Value::Quantity(Quantity { value, unit: "%" }, Interpretation::Normal)
    }

    /// The text between `before` and the next comma or brace.
    fn number<'a>(text: &'a str, before: &str) -> &'a str {
        let (_, rest) = text.split_once(before).expect("is there");
        rest.split([',', '}']).next().expect("split gives at least one")
    }

    #[test]
    fn a_reading_keeps_its_value_and_names_its_source() {
        let all = Observation::of(&reading(), 1_790_000_000_123).expect("good");
        let resource = json(&observation(&all[0], SubjectId::random()));
        assert_eq!(resource["valueQuantity"]["value"], json!(97));
        assert_eq!(resource["code"]["coding"][1]["code"], "59408-5");
        assert_eq!(resource["issued"], "2026-09-21T14:13:20.123Z");
        assert_eq!(resource["identifier"][0]["value"], "oximeter-1/1-0000000000000002/3");
        let clocks = &resource["extension"][1]["extension"];
        assert_eq!(clocks[0]["valueQuantity"]["value"], 4_000);
        assert_eq!(clocks[1]["valueDateTime"], "2026-09-21T14:13:20.000Z");
    }

    #[test]
    fn every_number_has_the_digits_that_were_signed() {
        let decimal = |text: &str| text.parse::<Decimal>().expect("a decimal");
        for text in ["36.70", "123456789.123456789", "0.000000001", "-0.50", "97"] {
            let page = searchset("https://fog/fhir", 1, &[], vec![served(of(decimal(text)))]);
            assert_eq!(number(raw(&page).get(), r#""valueQuantity":{"value":"#), text);
        }
        let (origin, period_ms, factor) = (decimal("0.10"), decimal("4.000000001"), decimal("0.0050"));
        let block = Samples {
            origin,
            period_ms,
            factor,
            data: vec![-3, 0],
        };
        let wave = served(Value::Samples(block, "mV", Interpretation::Normal));
        assert_eq!(number(wave.text.get(), r#""origin":{"value":"#), "0.10");
        assert_eq!(number(wave.text.get(), r#""period":"#), "4.000000001");
        assert_eq!(number(wave.text.get(), r#""factor":"#), "0.0050");
    }

    #[test]
    fn an_empty_page_has_no_entry_and_an_outcome_is_no_match() {
        let empty = searchset("https://fog/fhir", 0, &[], vec![]);
        assert_eq!(json(&empty).get("entry"), None);
        let told = json(&empty.with_outcome(&operation_outcome("information", "not-found", "nobody")));
        assert_eq!(told["entry"][0]["search"]["mode"], "outcome");
        assert_eq!(told["entry"][0]["resource"]["resourceType"], "OperationOutcome");
        assert_eq!(told["entry"][0].get("fullUrl"), None);
    }

    #[test]
    fn doubt_and_absence_are_said() {
        let mut doubtful = reading();
        doubtful.observations[0].state = MeasurementState::Questionable;
        let all = Observation::of(&doubtful, 1_790_000_000_123).expect("good");
        let resource = json(&observation(&all[0], SubjectId::random()));
        assert!(
            resource["note"][0]["text"]
                .as_str()
                .is_some_and(|t| t.contains("questionable"))
        );
        let absent = json(&served(Value::Absent));
        assert_eq!(absent["dataAbsentReason"]["coding"][0]["code"], "not-a-number");
        assert_eq!(absent.get("valueQuantity"), None);
    }

    #[test]
    fn any_time_has_an_instant() {
        for ms in [i64::MIN, 0, i64::MAX] {
            assert!(instant(ms).ends_with('Z'));
        }
    }

    proptest! {
        #[test]
        fn any_decimal_is_served_digit_for_digit(mantissa: i64, scale in 0u8..=9) {
            let value = Decimal::new(mantissa, scale).expect("scale <= 9");
            let resource = served(of(value));
            prop_assert_eq!(number(resource.text.get(), r#""valueQuantity":{"value":"#), value.to_string());
        }
    }
}
