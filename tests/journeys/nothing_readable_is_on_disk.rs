//! A value that the hospital can read is nowhere on the disks it passed through: broker, outbox, vault, chain, index, logs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    by_hand,
    sandboxes::{calm, eventually},
};

/// Nobody else measures this: nine digits, within what the sensor can mean.
const VALUE: &str = "123.456789";
/// The same as the CBOR of a COSE reading has it: the integer 123456789, then the six decimals.
const VALUE_CBOR: [u8; 6] = [0x1a, 0x07, 0x5b, 0xcd, 0x15, 0x06];

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the report names the folder");
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    paths
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .collect()
}

fn contains(file: &Path, canary: &[u8]) -> bool {
    // A file that is gone by now holds nothing.
    fs::read(file)
        .unwrap_or_default()
        .windows(canary.len())
        .any(|window| window == canary)
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
    let family = visitor.report.patients[0]
        .name
        .split(' ')
        .nth(1)
        .expect("given and family name")
        .as_bytes();
    let canaries: [&[u8]; 3] = [VALUE.as_bytes(), &VALUE_CBOR, family];
    // The search itself works: what was published does hold the value.
    let (json, cbor) = (
        calm().scratch().join("published.json"),
        calm().scratch().join("published.cbor"),
    );
    fs::write(&json, in_json.as_bytes())
        .and_then(|()| fs::write(&cbor, in_cbor.as_bytes()))
        .expect("written");
    assert!(contains(&json, canaries[0]) && contains(&cbor, canaries[1]));
    let nodes = visitor.report.nodes.iter().map(|node| node.data_dir.clone());
    let places = nodes.chain([
        visitor.report.gateway.data_dir.clone(),
        visitor.report.data_dir.join("logs"),
    ]);
    let files: Vec<_> = places.flat_map(|place| files(&place)).collect();
    assert!(files.len() > 10, "there is something to search: {files:?}");
    for file in files {
        for canary in canaries {
            assert!(
                !contains(&file, canary),
                "{} holds {:?}",
                file.display(),
                String::from_utf8_lossy(canary)
            );
        }
    }
}
