//! A new device comes by a printed code, is approved, measures, and is revoked: it is out at once, and what it measured stays.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ledger::possession::Possession;
use record::{canonical::Digest, ids::NetworkId, reading::Reading, signature::SigningKey};
use sandbox::{harness::Sandbox, report::ProcessReport};
use serde_json::{Value as Json, json};

use crate::{
    by_hand,
    sandboxes::{calm, eventually},
};

/// A gateway obeys within this time after the operator's node has applied the block: the other nodes apply it in the same
/// moment, and their answers are on their way. The rest is for a busy machine.
const OBEYED_MAX: Duration = Duration::from_secs(5);

/// The configuration that a process was started with.
fn config_of(process: &ProcessReport) -> PathBuf {
    let at = process.command.iter().position(|word| word == "--config");
    process.command[at.expect("it has a configuration") + 1].clone().into()
}

fn done(sandbox: &Sandbox, arguments: &[&str]) -> String {
    let (passed, printed) = sandbox.command(arguments);
    assert!(passed, "{arguments:?}: {printed}");
    printed
}

/// The subject key of the first device, in a file.
fn subject(sandbox: &Sandbox, gateway: &Path) -> PathBuf {
    let list = fs::read_to_string(gateway.with_file_name("enrolment.json")).expect("the gateway's list");
    let list: Json = serde_json::from_str(&list).expect("JSON");
    let file = sandbox.scratch().join("subject.json");
    fs::write(&file, list[0]["subject"].to_string()).expect("written");
    file
}

/// What a device of this maker presents with its code.
fn presented(code: &Json, key: &SigningKey) -> String {
    let name = |field: &str| code[field].as_str().expect("a name").to_owned();
    let network = NetworkId(name("network").parse::<Digest>().expect("a digest"));
    let place = (
        name("gateway").parse().expect("good"),
        name("device").parse().expect("good"),
    );
    let proof = Possession::prove(&network, (&place.0, &place.1), key);
    // The SHA-256 of the password "test".
    let password_sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    json!({"key": key.public(), "proof": proof, "password_sha256": password_sha256}).to_string()
}

#[tokio::test]
async fn a_device_comes_by_a_code_and_goes_by_a_revocation() {
    let (sandbox, visitor) = (calm(), calm().visitor());
    let report = &visitor.report;
    let (gateway, node) = (config_of(&report.gateway.process), config_of(&report.nodes[0].process));
    let (at_home, at_node) = (gateway.to_string_lossy(), node.to_string_lossy());
    let subject = subject(sandbox, &gateway);
    let name = "newcomer-1";
    let claim = [
        "gateway",
        "claim",
        "new",
        "--config",
        &at_home,
        "--device",
        name,
        "--subject",
    ];
    let printed = done(sandbox, &[&claim[..], &[&subject.to_string_lossy()]].concat());
    let code: Json = serde_json::from_str(printed.lines().next().expect("a line")).expect("JSON");
    let (claim, secret) = (
        code["claim"].as_str().expect("a claim"),
        code["secret"].as_str().expect("a secret"),
    );
    let key = SigningKey::random();
    let (user, topic) = (
        format!("claim-{claim}"),
        format!("vitalfog/v1/home-1/claim/{claim}/request"),
    );
    let present = async |key: &SigningKey| {
        let login = (user.as_str(), secret.as_bytes().to_vec());
        by_hand::publish_as(report, login, &topic, presented(&code, key)).await
    };
    eventually("the gateway to know the code", async || {
        present(&key).await.ok().filter(|answer| answer.contains("Success"))
    })
    .await;
    let thief = present(&SigningKey::random()).await.expect("an answer");
    assert!(thief.contains("claim-used"), "{thief}");

    let device = sandbox::report::DeviceReport {
        id: name.parse().expect("good"),
        ..report.devices[0].clone()
    };
    let topic = format!("vitalfog/v1/home-1/{name}/reading");
    let reading = by_hand::reading(&device, "8867-4", "71", "/min");
    let numbered = |seq| Reading { seq, ..reading.clone() };
    let measured = numbered(1).sign(&key).as_bytes().to_vec();
    let answer = by_hand::publish_as(report, (name, b"test".to_vec()), &topic, measured).await;
    assert!(
        answer.as_ref().is_ok_and(|answer| answer.contains("Success")),
        "{answer:?}"
    );

    let requests = sandbox.scratch().join("requests.json");
    fs::write(
        &requests,
        done(sandbox, &["gateway", "claim", "requests", "--config", &at_home]),
    )
    .expect("written");
    let organization_key = report.hospital.private_key_file.to_string_lossy();
    let edge = [
        "fog-node",
        "edge",
        "--config",
        &at_node,
        "--organization-key",
        &organization_key,
    ];
    let approved = done(
        sandbox,
        &[&edge[..], &["approve", &requests.to_string_lossy()]].concat(),
    );
    assert!(approved.contains("enrol-device"), "{approved}");
    let identifier = numbered(1).id().to_string();
    let served = async || {
        let all = visitor.observations(device.patient).await;
        all.iter()
            .any(|one| one["identifier"][0]["value"] == identifier.as_str())
            .then_some(())
    };
    eventually("the reading to be served once its device is on the chain", served).await;

    let revoked = done(sandbox, &[&edge[..], &["revoke-device", name]].concat());
    let since = Instant::now();
    let became: Json = serde_json::from_str(revoked.trim()).expect("the node's word");
    let mut seq = 1;
    let refused = loop {
        seq += 1;
        let message = numbered(seq).sign(&key).as_bytes().to_vec();
        let answer = by_hand::publish(report, &topic, message).await.expect("an answer");
        if !answer.contains("Success") {
            break answer;
        }
        assert!(since.elapsed() < OBEYED_MAX, "not obeyed in {OBEYED_MAX:?}");
    };
    let height = visitor.node(0).head().await.expect("answers").height;
    let final_at = became["height"].as_u64().expect("a height");
    eprintln!(
        "obeyed {:?} and {} blocks after its block",
        since.elapsed(),
        height - final_at
    );
    assert!(refused.contains("revoked"), "{refused}");
    let login = by_hand::publish_as(report, (name, b"test".to_vec()), &topic, "x").await;
    assert!(login.is_err(), "it does not come in again: {login:?}");
    assert!(served().await.is_some(), "what it measured before stays");
}
