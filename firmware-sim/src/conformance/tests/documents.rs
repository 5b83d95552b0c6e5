//! What the documents tell device makers is what the kit and the gateway know.

use super::super::*;
use record::vital::SIGNS;

/// The codes and units of the schemas, as words of their text.
fn quoted(text: &str, from: &str, to: &str) -> Vec<String> {
    let (_, rest) = text.split_once(from).expect("it begins there");
    let (list, _) = rest.split_once(to).expect("it ends there");
    let mut words: Vec<_> = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    words.sort();
    words
}

fn known(is_waveform: bool) -> (Vec<String>, Vec<String>) {
    let signs = || {
        SIGNS
            .iter()
            .filter(move |s| s.waveform == is_waveform && !s.units.is_empty())
    };
    let second = signs().filter_map(|sign| sign.also.map(|(code, _)| code));
    let mut codes: Vec<_> = signs().map(|sign| sign.code).chain(second).map(str::to_owned).collect();
    let mut units: Vec<_> = signs().flat_map(|s| s.units).map(|unit| unit.ucum.to_owned()).collect();
    codes.sort();
    units.sort();
    units.dedup();
    (codes, units)
}

#[test]
fn the_schemas_know_the_same_codes_and_units_as_the_gateway() {
    let cddl = include_str!("../../../../docs/devices/reading.cddl");
    let json: serde_json::Value =
        serde_json::from_str(include_str!("../../../../docs/devices/reading.schema.json")).expect("JSON");
    for (is_waveform, word) in [(false, "quantity"), (true, "waveform")] {
        let (codes, units) = known(is_waveform);
        let between = |what: &str, next: &str| quoted(cddl, &format!("\n{word}-{what} ="), next);
        assert_eq!(between("code", &format!("\n{word}-unit =")), codes);
        let end = if is_waveform { "\n" } else { "\nwaveform-code" };
        assert_eq!(between("unit", end), units);
        let listed = |what: &str| {
            let list = json["$defs"][format!("{word}{what}")]["enum"]
                .as_array()
                .expect("a list");
            let mut words: Vec<_> = list.iter().map(|w| w.as_str().expect("a word").to_owned()).collect();
            words.sort();
            words
        };
        assert_eq!((listed("Code"), listed("Unit")), (codes, units));
    }
}

#[test]
fn the_table_of_codes_in_the_documents_is_the_gateways() {
    let document = include_str!("../../../../docs/DEVICES.md");
    for line in crate::command::codes().lines() {
        assert!(
            document.contains(line),
            "docs/DEVICES.md lacks this line of `firmware-sim codes`:\n{line}"
        );
    }
    let rows = document
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains(" LOINC "))
        .count();
    let rows = rows + document.lines().filter(|line| line.contains("| MDC ")).count();
    assert_eq!(
        rows + 2,
        crate::command::codes().lines().count(),
        "the document lists what is not known"
    );
}

#[test]
fn every_reason_is_explained_to_device_makers() {
    let document = include_str!("../../../../docs/DEVICES.md");
    for reason in [
        Reason::TooLarge,
        Reason::Malformed,
        Reason::Unsealed,
        Reason::NotOpened,
        Reason::UnknownDevice,
        Reason::WrongSignature,
        Reason::Revoked,
        Reason::Unassigned,
        Reason::WrongTopic,
        Reason::UnknownCode,
        Reason::WrongUnit,
        Reason::Implausible,
        Reason::Equivocation,
    ] {
        assert!(document.contains(&format!("| `{}` |", reason.as_str())), "{reason:?}");
    }
    let leap = numbers::LEAP_MAX.to_string();
    assert!(document.replace(',', "").contains(&leap), "{leap}");
    for limit in [
        record::topic::STATE_BYTES_MAX,
        READING_BYTES_MAX,
        record::reading::SAMPLES_MAX,
        record::reading::MEASURED_MAX,
    ] {
        let digits = limit.to_string();
        let grouped = if digits.len() > 3 {
            format!("{},{}", &digits[..digits.len() - 3], &digits[digits.len() - 3..])
        } else {
            digits
        };
        assert!(document.contains(&grouped), "{grouped}");
    }
}
