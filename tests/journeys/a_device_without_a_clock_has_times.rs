//! A device that only counts ticks: what it held back is served at the times at which it was measured, in order.

use std::time::{Duration, Instant};

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
/// How far a served time may be off on a busy machine; the time of receipt would be off by minutes.
const OFF_MS: i64 = 20_000;
/// The live readings come so far apart. The gateway believes two whose ways differ by a tenth of it at most.
const APART: Duration = Duration::from_secs(5);
/// By then it believes two of them. The way of each includes a login, which may be slow, so there are many.
const LIVE_MAX: Duration = Duration::from_secs(180);

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

/// The readings of this start that are served, each with its sequence number, in the order in which they are served.
async fn served(visitor: &Visitor, device: &DeviceReport, boot: BootId) -> Vec<(u64, Json)> {
    let start = format!("{}/{boot}/", device.id);
    let seq = |one: &Json| -> Option<u64> {
        let identifier = one["identifier"][0]["value"].as_str()?;
        identifier.strip_prefix(&start)?.parse().ok()
    };
    let all = visitor.observations(device.patient).await;
    all.into_iter().filter_map(|one| Some((seq(&one)?, one))).collect()
}

fn is_corrected(one: &Json) -> bool {
    extension(one, &["time-quality"])["valueCode"] == "corrected"
}

/// Publishes live readings, numbered from 1, until one is served as corrected: the gateway knows the counter. Says how many.
async fn make_known(visitor: &Visitor, device: &DeviceReport, (boot, booted_ms): (BootId, i64)) -> u64 {
    let (begin, mut seq) = (Instant::now(), 0);
    loop {
        seq += 1;
        let up_ms = u64::try_from(Timestamp::now().as_millisecond() - booted_ms).expect("after the start");
        publish(visitor, device, &ticked(device, boot, seq, up_ms)).await;
        tokio::time::sleep(APART).await;
        let served = served(visitor, device, boot).await;
        if served.iter().any(|(_, one)| is_corrected(one)) {
            return seq;
        }
        assert!(
            begin.elapsed() < LIVE_MAX,
            "none of {seq} live readings is served as corrected after {LIVE_MAX:?}"
        );
    }
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
    let live = make_known(&visitor, device, (boot, booted_ms)).await;
    // Measured minutes before, the oldest first.
    let held_back = [(live + 1, 60_000), (live + 2, 120_000), (live + 3, 420_000)];
    for (seq, up_ms) in held_back {
        publish(&visitor, device, &ticked(device, boot, seq, up_ms)).await;
    }
    let served = eventually("all readings of the device", async || {
        let served = served(&visitor, device, boot).await;
        let has = |seq| served.iter().any(|(other, _)| *other == seq);
        (1..=live + 3).all(has).then_some(served)
    })
    .await;
    for (seq, up_ms) in held_back {
        let (_, one) = served.iter().find(|(other, _)| *other == seq).expect("served");
        let measured_ms = booted_ms + i64::try_from(up_ms).expect("small");
        let off = ms(&one["effectiveDateTime"]) - measured_ms;
        assert!(off.abs() <= OFF_MS, "{seq} is off by {off} ms");
        assert!(ms(&one["issued"]) - measured_ms > 150_000, "when it came is kept, too");
        assert!(is_corrected(one), "{seq} is not corrected");
        assert_eq!(extension(one, &["device-time", "up"])["valueQuantity"]["value"], up_ms);
    }
    // The newest first: the live ones, then the others as they were measured.
    let times: Vec<_> = served.iter().map(|(_, one)| ms(&one["effectiveDateTime"])).collect();
    assert!(times.is_sorted_by(|a, b| a >= b), "{times:?}");
    let order: Vec<_> = served
        .iter()
        .map(|(seq, _)| *seq)
        .skip_while(|seq| *seq <= live)
        .collect();
    assert_eq!(order, [live + 3, live + 2, live + 1], "what was measured first is last");
}
