//! A value that the hospital can read is nowhere on the disks it passed through: broker, outbox, vault, chain, index, logs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use record::decimal::Decimal;

use crate::{
    by_hand,
    sandboxes::{calm, eventually},
};

/// Nobody else measures this: thirteen digits, within what the sensor can mean. Six bytes hold its mantissa in any form, so
/// that none of them is met by chance.
const VALUE: &str = "1234.567890123";

/// What is looked for, each with what it is.
struct Canary {
    what: &'static str,
    bytes: Vec<u8>,
}

impl Canary {
    fn new(what: &'static str, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        assert!(bytes.len() >= 6, "{what} is not met by chance");
        Self { what, bytes }
    }
}

/// The forms in which a program keeps a number: as text, as floating point, and its digits as an integer, which is what
/// CBOR (after a head byte, eight bytes from the high one down) and SQLite (six bytes, likewise) make of it, too.
fn forms_of(value: &str) -> Vec<Canary> {
    let float: f64 = value.parse().expect("a number");
    let (mantissa, _) = value.parse::<Decimal>().expect("a decimal").parts();
    let (high, low) = (mantissa.to_be_bytes(), mantissa.to_le_bytes());
    vec![
        Canary::new("the text", value),
        Canary::new("the integer's text", mantissa.to_string()),
        Canary::new("the integer from the high byte down", &high[2..]),
        Canary::new("the integer from the low byte up", &low[..6]),
        Canary::new("a varint from the low bits up", low_bits_first(mantissa)),
        Canary::new("a varint from the high bits down", high_bits_first(mantissa)),
        Canary::new("a float from the high byte down", float.to_be_bytes()),
        Canary::new("a float from the low byte up", float.to_le_bytes()),
    ]
}

/// Seven bits a byte; all but the last byte are marked.
fn marked(mut bytes: Vec<u8>) -> Vec<u8> {
    let last = bytes.len() - 1;
    bytes[..last].iter_mut().for_each(|byte| *byte |= 0x80);
    bytes
}

fn groups(mut number: i64) -> Vec<u8> {
    let mut groups = Vec::new();
    while number > 0 {
        groups.push(u8::try_from(number & 0x7f).expect("seven bits"));
        number >>= 7;
    }
    groups
}

fn low_bits_first(number: i64) -> Vec<u8> {
    marked(groups(number))
}

fn high_bits_first(number: i64) -> Vec<u8> {
    marked(groups(number).into_iter().rev().collect())
}

#[test]
fn the_forms_are_those_that_programs_write() {
    assert_eq!(low_bits_first(300), [0xac, 0x02], "as protocol buffers have it");
    assert_eq!(high_bits_first(300), [0x82, 0x2c], "as SQLite has it");
    let integer = &forms_of(VALUE)[2];
    assert_eq!(hex::encode(&integer.bytes), "011f71fb04cb");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the report names the folder");
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    paths
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .collect()
}

/// The canaries that are in these bytes.
fn found<'a>(bytes: &[u8], canaries: &'a [Canary]) -> Vec<&'a str> {
    let is_in = |canary: &&Canary| bytes.windows(canary.bytes.len()).any(|window| window == canary.bytes);
    canaries.iter().filter(is_in).map(|canary| canary.what).collect()
}

#[tokio::test]
async fn nothing_readable_is_on_disk() {
    let visitor = calm().visitor();
    let device = visitor
        .report
        .devices
        .iter()
        .find(|d| d.id.as_str() == "glucose-1")
        .expect("there is one");
    let key = by_hand::key(device);
    let in_json = by_hand::reading(device, "41653-7", VALUE, "mg/dL").sign_json(&key);
    let in_cbor = by_hand::reading(device, "41653-7", VALUE, "mg/dL").sign(&key);
    for message in [&in_json, &in_cbor] {
        let answer = by_hand::publish(&visitor.report, &device.topic, message.as_bytes()).await;
        assert!(
            answer.as_ref().is_ok_and(|answer| answer.contains("Success")),
            "{answer:?}"
        );
    }
    let path = format!("Observation?patient={}&code=41653-7", device.patient);
    eventually("both readings at the hospital", async || {
        let count = visitor.fhir(&path).await.text.matches(VALUE).count();
        (count >= 2).then_some(())
    })
    .await;
    let mut canaries = forms_of(VALUE);
    let mut pseudonyms = Vec::new();
    for patient in &visitor.report.patients {
        let family = patient.name.split(' ').nth(1).expect("given and family name");
        canaries.push(Canary::new("a family name", family));
        let id = patient.id.to_string();
        let bytes = hex::decode(id.replace('-', "")).expect("an id is a UUID");
        pseudonyms.extend([
            Canary::new("a patient's id", id),
            Canary::new("a patient's id in bytes", bytes),
        ]);
    }
    // The search itself works: what was published does hold the value.
    assert_eq!(found(in_json.as_bytes(), &canaries), ["the text"]);
    assert_eq!(
        found(in_cbor.as_bytes(), &canaries),
        ["the integer from the high byte down"]
    );
    let nodes = visitor.report.nodes.iter().map(|node| node.data_dir.clone());
    let places = nodes.chain([
        visitor.report.gateway.data_dir.clone(),
        visitor.report.data_dir.join("logs"),
    ]);
    let files: Vec<_> = places.flat_map(|place| files(&place)).collect();
    assert!(files.len() > 10, "there is something to search: {files:?}");
    for file in files {
        // A file that is gone by now holds nothing.
        let bytes = fs::read(&file).unwrap_or_default();
        assert_eq!(found(&bytes, &canaries), Vec::<&str>::new(), "in {}", file.display());
        // The index of the custodian's node is asked by patient: it is the one place that has their ids.
        if !is_index(&file) {
            assert_eq!(found(&bytes, &pseudonyms), Vec::<&str>::new(), "in {}", file.display());
        }
    }
}

fn is_index(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("index.sqlite"))
}
