//! The shape the outside sees: FHIR R4 (4.0.1) Observation, Patient, searchset Bundle and OperationOutcome as JSON.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::{
    decimal::Decimal,
    ids::SubjectId,
    observation::{Interpretation, Observation, Quantity, Value},
    reading::TimeQuality,
    vital::Sign,
};

/// The version of FHIR we speak.
pub const FHIR_VERSION: &str = "4.0.1";
/// Base of our own extensions and identifier systems.
pub const SYSTEM: &str = "urn:vitalfog";

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
    pub fn resource(&self) -> Json {
        json!({
            "resourceType": "Patient",
            "id": self.id.to_string(),
            "identifier": [{"system": format!("{SYSTEM}:subject"), "value": self.id.to_string()}],
            "active": true,
            "name": [{"use": "official", "family": self.family, "given": [self.given]}],
            "gender": self.gender,
            "birthDate": self.birth_date,
        })
    }
}

/// Milliseconds since 1970 as a FHIR instant in UTC.
#[must_use]
pub fn instant(ms: i64) -> String {
    let clamped = ms.clamp(Timestamp::MIN.as_millisecond() + 1, Timestamp::MAX.as_millisecond() - 1);
    Timestamp::from_millisecond(clamped).map_or_else(|_| "1970-01-01T00:00:00.000Z".to_owned(), |t| format!("{t:.3}"))
}

/// The Observation resource of one observation of one subject.
#[must_use]
pub fn observation(of: &Observation, subject: SubjectId) -> Json {
    let mut resource = json!({
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
        "extension": [{"url": format!("{SYSTEM}:time-quality"), "valueCode": time_quality(of.time_quality)}],
    });
    let fields = resource.as_object_mut().expect("an object, just built");
    match &of.value {
        Value::Quantity(value, flag) => {
            fields.insert("valueQuantity".to_owned(), quantity(value));
            fields.extend(interpretation(*flag).map(|i| ("interpretation".to_owned(), i)));
        }
        Value::Components(parts) => {
            let parts = parts.iter().map(|(sign, value, flag)| {
                let mut part = json!({"code": concept(sign), "valueQuantity": quantity(value)});
                let object = part.as_object_mut().expect("an object, just built");
                object.extend(interpretation(*flag).map(|i| ("interpretation".to_owned(), i)));
                part
            });
            fields.insert("component".to_owned(), parts.collect());
        }
        Value::Samples(samples, unit, flag) => {
            let data: Vec<_> = samples.data.iter().map(i32::to_string).collect();
            let origin = quantity(&Quantity {
                value: samples.origin,
                unit,
            });
            fields.insert(
                "valueSampledData".to_owned(),
                json!({"origin": origin, "period": number(samples.period_ms), "factor": number(samples.factor),
                       "dimensions": 1, "data": data.join(" ")}),
            );
            fields.extend(interpretation(*flag).map(|i| ("interpretation".to_owned(), i)));
        }
        Value::Absent => {
            let coding =
                json!({"system": "http://terminology.hl7.org/CodeSystem/data-absent-reason", "code": "not-a-number"});
            fields.insert("dataAbsentReason".to_owned(), json!({"coding": [coding]}));
        }
    }
    if of.questionable {
        fields.insert(
            "note".to_owned(),
            json!([{"text": "The sensor marked this measurement as questionable."}]),
        );
    }
    resource
}

fn concept(sign: &Sign) -> Json {
    let main = json!({"system": sign.system.uri(), "code": sign.code, "display": sign.display});
    let also = sign
        .also
        .map(|(code, display)| json!({"system": sign.system.uri(), "code": code, "display": display}));
    let coding: Vec<_> = [Some(main), also].into_iter().flatten().collect();
    json!({"coding": coding, "text": sign.display})
}

fn quantity(of: &Quantity) -> Json {
    json!({"value": number(of.value), "unit": of.unit, "system": "http://unitsofmeasure.org", "code": of.unit})
}

/// A decimal as a JSON number.
fn number(decimal: Decimal) -> Json {
    serde_json::from_str(&decimal.to_string()).expect("a decimal prints as a JSON number")
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

/// A searchset: matches with their full URLs, the total, and the links (`self`, `next`).
#[must_use]
pub fn searchset(base: &str, total: u64, links: &[(&str, String)], matches: Vec<Json>) -> Json {
    let entries: Vec<_> = matches
        .into_iter()
        .map(|resource| {
            let kind = resource["resourceType"].as_str().unwrap_or_default();
            let id = resource["id"].as_str().unwrap_or_default();
            json!({"fullUrl": format!("{base}/{kind}/{id}"), "resource": resource, "search": {"mode": "match"}})
        })
        .collect();
    let links: Vec<_> = links
        .iter()
        .map(|(relation, url)| json!({"relation": relation, "url": url}))
        .collect();
    let mut bundle = json!({"resourceType": "Bundle", "type": "searchset", "total": total, "link": links});
    if !entries.is_empty() {
        // An empty array is not allowed in FHIR JSON.
        bundle["entry"] = entries.into();
    }
    bundle
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
    use crate::reading::tests::reading;

    #[test]
    fn a_reading_keeps_its_value_and_names_its_source() {
        let all = Observation::of(&reading(), 1_790_000_000_123).expect("good");
        let resource = observation(&all[0], SubjectId::random());
        assert_eq!(resource["valueQuantity"]["value"], json!(97));
        assert_eq!(resource["code"]["coding"][1]["code"], "59408-5");
        assert_eq!(resource["issued"], "2026-09-21T14:13:20.123Z");
        assert_eq!(resource["identifier"][0]["value"], "oximeter-1/1-0000000000000002/3");
    }

    #[test]
    fn any_time_has_an_instant() {
        for ms in [i64::MIN, 0, i64::MAX] {
            assert!(instant(ms).ends_with('Z'));
        }
    }
}
