//! A device that only counts ticks: what it held back is served at the times at which it was measured, in order.

use std::time::Duration;

use jiff::Timestamp;
use record::{
    ids::BootId,
    reading::{Reading, TimeQuality},
};
use sandbox::{harness::Visitor, report::DeviceReport};
use serde_json::Value as Json;

use crate::{
    by_hand,
    sandboxes::{calm, eventually},
};

/// What the device measures; nobody else in the test does.
const BODY_WEIGHT: &str = "29463-7";
/// How far a served time may be off on a busy machine.
const OFF_MS: i64 = 5_000;

/// A reading that was measured when the tick counter stood at `up_ms`; the sequence number says which it is.
fn ticked(device: &DeviceReport, boot: BootId, seq: u64, up_ms: u64) -> Reading {
    Reading {
        boot,
        seq,
        up_ms,
        wall: None,
        time_quality: TimeQuality::Relative,
        ..by_hand::reading(device, BODY_WEIGHT, "80.5", "kg")
    }
}

async fn publish(visitor: &Visitor, device: &DeviceReport, reading: &Reading) {
    let message = reading.sign(&by_hand::key(device));
    let answer = by_hand::publish(&visitor.report, &device.topic, message.as_bytes()).await;
    assert!(answer.as_ref().is_ok_and(|text| text.contains("Success")), "{answer:?}");
}

/// The value of one of our extensions, by the ends of its addresses.
fn extension<'a>(resource: &'a Json, path: &[&str]) -> &'a Json {
    path.iter().fold(resource, |within, name| {
        let all = within["extension"].as_array().expect("extensions");
        let found = all
            .iter()
            .find(|one| one["url"].as_str().is_some_and(|url| url.ends_with(name)));
        found.expect("it is there")
    })
}

fn ms(instant: &Json) -> i64 {
    let text = instant.as_str().expect("text");
    text.parse::<Timestamp>().expect("an instant").as_millisecond()
}

#[tokio::test]
async fn what_a_device_without_a_clock_held_back_has_its_times() {
    let visitor = calm().visitor();
    let device = &visitor.report.devices[0];
    let boot = BootId {
        counter: 77,
        random: rand::random(),
    };
    let booted_ms = Timestamp::now().as_millisecond() - 600_000;
    let up = || u64::try_from(Timestamp::now().as_millisecond() - booted_ms).expect("after the start");
    // Two live readings a while apart, then three that were measured minutes before, the oldest first.
    for seq in [1, 2] {
        publish(&visitor, device, &ticked(device, boot, seq, up())).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let held_back = [(3, 60_000), (4, 120_000), (5, 420_000)];
    for (seq, up_ms) in held_back {
        publish(&visitor, device, &ticked(device, boot, seq, up_ms)).await;
    }
    let served = eventually("all readings of the device", async || {
        let all = visitor.observations(device.patient).await;
        let of_boot = |one: &Json| {
            one["identifier"][0]["value"]
                .as_str()
                .is_some_and(|id| id.contains(&boot.to_string()))
        };
        let ours: Vec<_> = all.into_iter().filter(of_boot).collect();
        (ours.len() == 5).then_some(ours)
    })
    .await;
    for (seq, up_ms) in held_back {
        let identifier = format!("{}/{boot}/{seq}", device.id);
        let one = served
            .iter()
            .find(|one| one["identifier"][0]["value"] == identifier.as_str())
            .expect("served");
        let measured_ms = booted_ms + i64::try_from(up_ms).expect("small");
        let off = ms(&one["effectiveDateTime"]) - measured_ms;
        assert!(off.abs() <= OFF_MS, "{seq} is off by {off} ms");
        assert!(ms(&one["issued"]) - measured_ms > 150_000, "when it came is kept, too");
        assert_eq!(extension(one, &["time-quality"])["valueCode"], "corrected");
        assert_eq!(extension(one, &["device-time", "up"])["valueQuantity"]["value"], up_ms);
    }
    // The newest first: the live ones, then the others as they were measured.
    let order: Vec<_> = served.iter().map(|one| ms(&one["effectiveDateTime"])).collect();
    assert!(order.is_sorted_by(|a, b| a >= b));
    let last = served[4]["identifier"][0]["value"].as_str().expect("text");
    assert!(last.ends_with("/3"), "{last} was measured first");
}
