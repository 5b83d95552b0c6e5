//! What cannot be believed is kept aside with a reason that the status shows, is never served, and harms nobody.

use record::{ids::DeviceId, reading::Reading, signature::SigningKey};
use sandbox::harness::Visitor;

use crate::{
    by_hand,
    sandboxes::{calm, eventually},
};

async fn counted(visitor: &Visitor, reason: &str) -> u64 {
    visitor.gateway_status().await["quarantined"]["by_reason"][reason]
        .as_u64()
        .unwrap_or(0)
}

/// Publishes a message that must be refused, and waits until the status counts it under this reason.
async fn refused(topic: &str, message: Vec<u8>, reason: &str) {
    let visitor = calm().visitor();
    let before = counted(&visitor, reason).await;
    let answer = by_hand::publish(&visitor.report, topic, message).await;
    assert!(
        !answer.as_ref().is_ok_and(|answer| answer.contains("Success")),
        "{reason}: {answer:?}"
    );
    eventually(reason, async || {
        (counted(&visitor, reason).await > before).then_some(())
    })
    .await;
    let recent = visitor.gateway_status().await["quarantined"]["recent"].to_string();
    assert!(recent.contains(reason), "{recent}");
    assert_eq!(calm().process("gateway").restarts, 0, "the gateway lives");
}

/// A good reading of the first device, and its topic.
fn good() -> (Reading, String, SigningKey) {
    let report = calm().report();
    let device = &report.devices[0];
    (
        by_hand::reading(device, "8867-4", "61", "/min"),
        device.topic.clone(),
        by_hand::key(device),
    )
}

#[tokio::test]
async fn a_wrong_signature() {
    let (reading, topic, _) = good();
    refused(
        &topic,
        reading.sign_json(&SigningKey::random()).as_bytes().to_vec(),
        "wrong-signature",
    )
    .await;
}

#[tokio::test]
async fn an_unknown_device() {
    let (reading, topic, key) = good();
    let unknown: DeviceId = "nobodys-1".parse().expect("good");
    let topic = topic.replace(reading.device.as_str(), unknown.as_str());
    let reading = Reading {
        device: unknown,
        ..reading
    };
    refused(&topic, reading.sign(&key).as_bytes().to_vec(), "unknown-device").await;
}

#[tokio::test]
async fn an_absurd_value() {
    let (mut reading, topic, key) = good();
    reading.observations[0].value = Some("9000".parse().expect("a decimal"));
    let identifier = reading.id().to_string();
    refused(&topic, reading.sign_json(&key).as_bytes().to_vec(), "implausible").await;
    let visitor = calm().visitor();
    let served = visitor.observations(visitor.report.devices[0].patient).await;
    assert!(
        served
            .iter()
            .all(|o| o["identifier"][0]["value"] != identifier.as_str()),
        "it is never served"
    );
}

#[tokio::test]
async fn another_devices_topic() {
    let (reading, _, key) = good();
    let topic = calm().report().devices[1].topic.clone();
    refused(&topic, reading.sign(&key).as_bytes().to_vec(), "wrong-topic").await;
}

#[tokio::test]
async fn what_is_no_reading() {
    let (_, topic, _) = good();
    refused(&topic, b"{\"reading\": 97}".to_vec(), "malformed").await;
}

#[tokio::test]
async fn a_megabyte() {
    let (_, topic, _) = good();
    refused(&topic, vec![b'{'; 1 << 20], "too-large").await;
}
