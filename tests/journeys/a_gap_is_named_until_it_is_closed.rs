//! Readings that never came are named in the hospital's answers, exactly, and no longer once they were handed in.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use record::{
    gaps::Range,
    ids::{BootId, DeviceId},
};
use sandbox::{
    children,
    harness::{Sandbox, Visitor},
};
use serde::Deserialize;

use crate::{
    by_hand,
    sandboxes::{eventually, folder, program},
};

/// How long the fleet that loses readings measures.
const MEASURED: Duration = Duration::from_secs(8);

/// What is missing, by start of a device: `3-5,9`.
type Missing = BTreeMap<(DeviceId, BootId), String>;

#[derive(Deserialize)]
struct Line {
    device: DeviceId,
    boot: BootId,
    seq: u64,
}

/// What a process was started with.
fn config_of(sandbox: &Sandbox, process: &str) -> String {
    sandbox
        .process(process)
        .command
        .last()
        .expect("its configuration")
        .clone()
}

/// The same devices once more, of which three readings in ten are measured and never sent; the sandbox's own fleet stands
/// still meanwhile. Their account of what was acknowledged to them.
fn lossy_fleet(sandbox: &Sandbox) -> String {
    let data = sandbox.scratch().join("lossy");
    let own = fs::read_to_string(config_of(sandbox, "fleet")).expect("the fleet has a configuration");
    let line = |line: &str| match line.split_once(" = ") {
        Some(("data_dir", _)) => format!("data_dir = {data:?}\n"),
        Some(("speed", _)) => "speed = 4.0\n".to_owned(),
        _ => format!("{line}\n"),
    };
    let config: String = own.lines().map(line).collect();
    let path = sandbox.scratch().join("lossy.toml");
    fs::write(&path, config + "\n[fault]\ndrops = 0.3\n").expect("the test may write to its folder");
    sandbox.freeze("fleet");
    let mut fleet = Command::new(program())
        .args(["firmware-sim", "run", "--config"])
        .arg(&path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program is built");
    thread::sleep(MEASURED);
    children::terminate(fleet.id());
    assert!(fleet.wait().expect("a child can be waited for").success());
    fs::read_to_string(data.join("acknowledged.ndjson")).expect("the fleet keeps an account")
}

/// The numbers below the highest of each start that were not acknowledged.
fn missing_in(account: &str) -> BTreeMap<(DeviceId, BootId), Vec<u64>> {
    let mut taken: BTreeMap<_, BTreeSet<u64>> = BTreeMap::new();
    for line in account.lines() {
        let line: Line = serde_json::from_str(line).expect("a line of the account");
        taken.entry((line.device, line.boot)).or_default().insert(line.seq);
    }
    let missing = taken.into_iter().map(|(start, taken)| {
        let high = *taken.last().expect("at least one");
        (start, (1..high).filter(|seq| !taken.contains(seq)).collect::<Vec<_>>())
    });
    missing.filter(|(_, missing)| !missing.is_empty()).collect()
}

fn in_ranges(numbers: &[u64]) -> String {
    let mut ranges: Vec<Range> = Vec::new();
    for seq in numbers {
        match ranges.last_mut() {
            Some(last) if last.1 + 1 == *seq => last.1 = *seq,
            _ => ranges.push(Range(*seq, *seq)),
        }
    }
    let texts: Vec<_> = ranges.iter().map(Range::to_string).collect();
    texts.join(",")
}

/// What an answer to a search says is missing.
async fn told(visitor: &Visitor, token: &str) -> Missing {
    let url = format!("{}/Observation?_count=1", visitor.report.hospital.fhir);
    let answer = visitor.get(&url, Some(token)).await.json();
    let entries = answer["entry"].as_array().cloned().unwrap_or_default();
    let outcomes = entries.iter().filter(|entry| entry["search"]["mode"] == "outcome");
    let issues = outcomes.flat_map(|entry| entry["resource"]["issue"].as_array().cloned().unwrap_or_default());
    issues
        .filter(|issue| issue["code"] == "incomplete")
        .map(|issue| {
            let part = |name: &str| {
                let parts = issue["extension"][0]["extension"].as_array().expect("parts");
                let part = parts.iter().find(|part| part["url"] == name).expect("it is there");
                part["valueString"].as_str().expect("text").to_owned()
            };
            let start = (
                part("device").parse().expect("a device"),
                part("boot").parse().expect("a start"),
            );
            (start, part("missing"))
        })
        .collect()
}

/// A file of the missing readings, each signed by its device.
fn file_of(visitor: &Visitor, missing: &BTreeMap<(DeviceId, BootId), Vec<u64>>, path: &Path) {
    let mut lines = String::new();
    for ((id, boot), numbers) in missing {
        let device = visitor
            .report
            .devices
            .iter()
            .find(|device| device.id == *id)
            .expect("of the fleet");
        for seq in numbers {
            let mut reading = by_hand::reading(device, "8310-5", "36.6", "Cel");
            (reading.boot, reading.seq) = (*boot, *seq);
            let signed = reading.sign_json(&by_hand::key(device));
            lines += std::str::from_utf8(signed.as_bytes()).expect("JSON is UTF-8");
            lines.push('\n');
        }
    }
    fs::write(path, lines).expect("the test may write to its folder");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_named_until_it_is_closed() {
    let sandbox = Sandbox::builder(program(), folder(), "gaps")
        .nodes(1)
        .devices(4)
        .start();
    let visitor = sandbox.visitor();
    let missing = missing_in(&lossy_fleet(&sandbox));
    let count: usize = missing.values().map(Vec::len).sum();
    assert!(count > 5, "readings were lost: {missing:?}");
    sandbox.kill("gateway");
    let expected: Missing = missing
        .iter()
        .map(|(start, numbers)| (start.clone(), in_ranges(numbers)))
        .collect();
    let hospital = &visitor.report.hospital.token;
    eventually("exactly the gaps of the fleet's account", async || {
        (told(&visitor, hospital).await == expected).then_some(())
    })
    .await;
    assert_eq!(told(&visitor, &visitor.report.stranger.token).await, Missing::new());
    let file = sandbox.scratch().join("missing.ndjson");
    file_of(&visitor, &missing, &file);
    let config = config_of(&sandbox, "gateway");
    let resync = || {
        let file = file.to_str().expect("UTF-8");
        sandbox.command(&["gateway", "resync", "--config", &config, "--from", file])
    };
    assert_eq!(resync(), (true, format!("new {count}, known 0, refused 0\n")));
    eventually("no gap any more", async || {
        told(&visitor, hospital).await.is_empty().then_some(())
    })
    .await;
    assert_eq!(resync(), (true, format!("new 0, known {count}, refused 0\n")));
    // What stands still cannot be asked to stop.
    sandbox.thaw("fleet");
}
