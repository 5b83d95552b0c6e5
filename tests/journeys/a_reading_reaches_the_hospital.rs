//! What a home device measures is what the hospital reads: value by value, with its unit, over all pages.

use record::{ids::BootId, reading::Measured};
use sandbox::{harness::Visitor, report::DeviceReport};
use serde_json::Value as Json;

use crate::{
    by_hand,
    sandboxes::{calm, eventually},
};

/// The device whose recording is real and whose values are single numbers.
const GLUCOSE: &str = "glucose-1";
/// What it measures.
const CONTINUOUS_GLUCOSE: &str = "99504-3";

fn device<'a>(visitor: &'a Visitor, id: &str) -> &'a DeviceReport {
    visitor
        .report
        .devices
        .iter()
        .find(|device| device.id.as_str() == id)
        .expect("the sandbox has such a device")
}

/// Sequence number, value and unit of a device's observations, in the order they were measured; the fleet's first start.
fn series(observations: &[Json], device: &DeviceReport) -> Vec<(usize, String, String)> {
    let mut series: Vec<_> = observations
        .iter()
        .filter_map(|observation| {
            let identifier = observation["identifier"][0]["value"].as_str()?;
            let [of, boot, seq] = identifier.split('/').collect::<Vec<_>>()[..] else {
                return None;
            };
            let boot: BootId = boot.parse().ok()?;
            let quantity = &observation["valueQuantity"];
            let value = (
                seq.parse().ok()?,
                quantity["value"].to_string(),
                quantity["code"].as_str()?.to_owned(),
            );
            // By hand, other codes are published, too.
            let is_recorded = observation["code"]["coding"][0]["code"] == CONTINUOUS_GLUCOSE;
            (of == device.id.as_str() && boot.counter == 1 && is_recorded).then_some(value)
        })
        .collect();
    series.sort();
    series
}

#[tokio::test]
async fn the_hospital_reads_the_recording_value_by_value() {
    let visitor = calm().visitor();
    let device = device(&visitor, GLUCOSE);
    let recorded: Vec<Measured> = firmware_sim::expected(&device.recording)
        .expect("the report names the recording")
        .take(1_000)
        .flat_map(|message| message.observations)
        .collect();
    let seen = eventually("five readings of one device", async || {
        let seen = series(&visitor.observations(device.patient).await, device);
        (seen.len() >= 5).then_some(seen)
    })
    .await;
    for (i, (seq, value, unit)) in seen.iter().enumerate() {
        assert_eq!(*seq, i + 1, "no gap");
        let expected = &recorded[i];
        assert_eq!(
            (value, unit),
            (&expected.value.expect("a number").to_string(), &expected.unit)
        );
    }
}

#[tokio::test]
async fn a_reading_made_by_hand_is_served_digit_by_digit() {
    let visitor = calm().visitor();
    let device = device(&visitor, GLUCOSE);
    let reading = by_hand::reading(device, "41653-7", "98.70", "mg/dL");
    let identifier = reading.id().to_string();
    let answer = by_hand::publish(
        &visitor.report,
        &device.topic,
        reading.sign_json(&by_hand::key(device)).as_bytes(),
    )
    .await;
    assert!(
        answer.as_ref().is_ok_and(|answer| answer.contains("Success")),
        "{answer:?}"
    );
    let path = format!("Observation?patient={}&code=41653-7", device.patient);
    let found = eventually("the reading made by hand", async || {
        let all = visitor.fhir(&path).await.matches();
        all.into_iter()
            .find(|o| o["identifier"][0]["value"] == identifier.as_str())
    })
    .await;
    assert_eq!(found["valueQuantity"]["code"], "mg/dL");
    // The body as it is: a JSON library would read a float, to which a last zero means nothing.
    let id = found["id"].as_str().expect("an id");
    let body = visitor.fhir(&format!("Observation/{id}")).await.text;
    assert!(body.contains(r#""valueQuantity":{"value":98.70,"#), "{body}");
}

#[tokio::test]
async fn the_hospital_knows_its_patients_and_what_the_node_can_do() {
    let visitor = calm().visitor();
    let patient = &visitor.report.patients[0];
    let answer = visitor.fhir(&format!("Patient/{}", patient.id)).await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()["id"].as_str()),
        (200, Some(patient.id.to_string().as_str()))
    );
    let name = &answer.json()["name"][0];
    let name = format!(
        "{} {}",
        name["given"][0].as_str().unwrap_or_default(),
        name["family"].as_str().unwrap_or_default()
    );
    assert_eq!(name, patient.name);
    let metadata = visitor
        .get(&format!("{}/metadata", visitor.report.hospital.fhir), None)
        .await;
    assert_eq!(
        (metadata.status.as_u16(), metadata.json()["fhirVersion"].as_str()),
        (200, Some("4.0.1"))
    );
}

#[tokio::test]
async fn pages_are_complete_and_do_not_overlap() {
    let visitor = calm().visitor();
    let patient = device(&visitor, GLUCOSE).patient;
    eventually("enough for three pages", async || {
        let count = visitor.observations(patient).await.len();
        (count > 4).then_some(())
    })
    .await;
    let base = &visitor.report.hospital.fhir;
    let mut url = Some(format!("{base}/Observation?patient={patient}&_count=2"));
    let (mut ids, mut total, mut pages) = (Vec::new(), None, 0);
    while let Some(page) = url {
        pages += 1;
        let page = visitor.get(&page, Some(&visitor.report.hospital.token)).await;
        let first_total = *total.get_or_insert(page.json()["total"].as_u64().expect("a total"));
        assert_eq!(
            page.json()["total"].as_u64(),
            Some(first_total),
            "readings that arrive meanwhile do not count"
        );
        assert!(page.matches().len() <= 2);
        ids.extend(
            page.matches()
                .iter()
                .map(|o| o["id"].as_str().expect("an id").to_owned()),
        );
        let links = page.json()["link"].as_array().cloned().unwrap_or_default();
        url = links
            .iter()
            .find(|link| link["relation"] == "next")
            .and_then(|link| link["url"].as_str())
            .map(str::to_owned);
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), Some(count as u64)), (count, total));
    assert!(count > 4 && pages >= 3, "{count} observations on {pages} pages");
}
