//! A new device comes by a printed code, is approved, measures, and is revoked: it is out at once, and what it measured stays.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ledger::possession::Possession;
use record::{canonical::Digest, ids::NetworkId, reading::Reading, signature::SigningKey};
use sandbox::{
    harness::{Sandbox, Visitor},
    report::{DeviceReport, ProcessReport},
};
use serde_json::{Value as Json, json};

use crate::{
    by_hand,
    sandboxes::{calm, eventually},
};

/// A gateway obeys within this time after the operator's node has applied the block: the other nodes apply it in the same
/// moment, and their answers are on their way. But a node whose answer failed just before is asked again after up to five
/// seconds, and two have to be heard; the rest is for a busy machine.
const OBEYED_MAX: Duration = Duration::from_secs(30);
/// The pause between two readings that try it, so that none is refused for its rate.
const PAUSE: Duration = Duration::from_millis(100);

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

/// The subject key of the first device, in a file for this newcomer.
fn subject(sandbox: &Sandbox, gateway: &Path, name: &str) -> PathBuf {
    let list = fs::read_to_string(gateway.with_file_name("enrolment.json")).expect("the gateway's list");
    let list: Json = serde_json::from_str(&list).expect("JSON");
    let file = sandbox.scratch().join(format!("subject-{name}.json"));
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

/// A device that has a printed code, and all that is needed to follow it.
struct Newcomer {
    visitor: Visitor,
    /// The gateway's and the operator's node's configuration.
    configs: (String, String),
    code: Json,
    key: SigningKey,
    reading: Reading,
}

impl Newcomer {
    fn invited(name: &str) -> Self {
        let (sandbox, visitor) = (calm(), calm().visitor());
        let report = &visitor.report;
        let (gateway, node) = (config_of(&report.gateway.process), config_of(&report.nodes[0].process));
        let subject = subject(sandbox, &gateway, name);
        let configs = [gateway, node].map(|path| path.to_string_lossy().into_owned());
        let order = [
            "gateway",
            "claim",
            "new",
            "--device",
            name,
            "--config",
            &configs[0],
            "--subject",
        ];
        let printed = done(sandbox, &[&order[..], &[&subject.to_string_lossy()]].concat());
        let device = DeviceReport {
            id: name.parse().expect("good"),
            ..report.devices[0].clone()
        };
        Self {
            configs: configs.into(),
            code: serde_json::from_str(printed.lines().next().expect("a line")).expect("JSON"),
            key: SigningKey::random(),
            reading: by_hand::reading(&device, "8867-4", "71", "/min"),
            visitor,
        }
    }

    async fn present(&self, key: &SigningKey) -> Result<String, String> {
        let text = |field: &str| self.code[field].as_str().expect("text").to_owned();
        let (user, secret) = (format!("claim-{}", text("claim")), text("secret").into_bytes());
        let topic = format!("vitalfog/v1/home-1/claim/{}/request", text("claim"));
        by_hand::publish_as(
            &self.visitor.report,
            (&user, secret),
            &topic,
            presented(&self.code, key),
        )
        .await
    }

    fn numbered(&self, seq: u64) -> Reading {
        Reading {
            seq,
            ..self.reading.clone()
        }
    }

    /// Publishes a reading as its own user.
    async fn publish(&self, seq: u64) -> Result<String, String> {
        let message = self.numbered(seq).sign(&self.key).as_bytes().to_vec();
        let user = (self.name(), b"test".to_vec());
        by_hand::publish_as(&self.visitor.report, user, &self.topic(), message).await
    }

    fn name(&self) -> &str {
        self.reading.device.as_str()
    }

    fn topic(&self) -> String {
        format!("vitalfog/v1/home-1/{}/reading", self.name())
    }

    /// Presents its key until the gateway knows the code.
    async fn claims(&self) {
        eventually("the gateway to know the code", async || {
            let answer = self.present(&self.key).await;
            answer.ok().filter(|answer| answer.contains("Success"))
        })
        .await;
    }

    /// What its gateway asks the operator for, of this device alone, in a file.
    fn requests(&self) -> String {
        let order = ["gateway", "claim", "requests", "--config", &self.configs.0];
        let mut all: Vec<Json> = serde_json::from_str(&done(calm(), &order)).expect("JSON");
        all.retain(|request| request["device"] == self.name());
        let file = calm().scratch().join(format!("requests-{}.json", self.name()));
        fs::write(&file, Json::from(all).to_string()).expect("written");
        file.to_string_lossy().into_owned()
    }

    /// Waits until the hospital is answered with a reading.
    async fn serves(&self, seq: u64) {
        eventually("the reading to be served once its key is on the chain", async || {
            self.is_served(seq).await.then_some(())
        })
        .await;
    }

    /// What the operator decides.
    fn decide(&self, decision: &[&str]) -> String {
        let key = self.visitor.report.hospital.private_key_file.to_string_lossy();
        let order = [
            "fog-node",
            "edge",
            "--config",
            &self.configs.1,
            "--organization-key",
            &key,
        ];
        done(calm(), &[&order[..], decision].concat())
    }

    /// Waits until the gateway names it, or does not name it any more, among the devices that nobody is served.
    async fn is_named_as_unserved(&self, wanted: bool) {
        eventually("the gateway to say whether the chain knows the device", async || {
            let status = self.visitor.gateway_status().await;
            let named = status["not_on_chain"]["named"].as_array()?;
            (named.iter().any(|name| name == self.name()) == wanted).then_some(())
        })
        .await;
    }

    async fn is_served(&self, seq: u64) -> bool {
        let patient = self.visitor.report.devices[0].patient;
        let identifier = self.numbered(seq).id().to_string();
        let all = self.visitor.observations(patient).await;
        all.iter()
            .any(|one| one["identifier"][0]["value"] == identifier.as_str())
    }
}

#[tokio::test]
async fn a_device_comes_by_a_code_and_goes_by_a_revocation() {
    let newcomer = Newcomer::invited("newcomer-1");
    newcomer.claims().await;
    let thief = newcomer.present(&SigningKey::random()).await.expect("an answer");
    assert!(thief.contains("claim-used"), "{thief}");
    let answer = newcomer.publish(1).await;
    assert!(
        answer.as_ref().is_ok_and(|answer| answer.contains("Success")),
        "{answer:?}"
    );

    newcomer.is_named_as_unserved(true).await;

    let approved = newcomer.decide(&["approve", &newcomer.requests()]);
    assert!(approved.contains("enrol-device"), "{approved}");
    newcomer.serves(1).await;
    newcomer.is_named_as_unserved(false).await;

    newcomer.decide(&["revoke-device", newcomer.name()]);
    let since = Instant::now();
    let mut seq = 1;
    let refused = loop {
        seq += 1;
        let message = newcomer.numbered(seq).sign(&newcomer.key).as_bytes().to_vec();
        let answer = by_hand::publish(&newcomer.visitor.report, &newcomer.topic(), message).await;
        let answer = answer.expect("the home's own user is connected");
        if !answer.contains("Success") {
            break answer;
        }
        assert!(since.elapsed() < OBEYED_MAX, "not obeyed in {OBEYED_MAX:?}");
        tokio::time::sleep(PAUSE).await;
    };
    assert!(refused.contains("revoked"), "{refused}");
    let again = newcomer.publish(seq + 1).await;
    assert!(again.is_err(), "it does not come in again: {again:?}");
    assert!(newcomer.is_served(1).await, "what it measured before stays");
    let order = [
        "gateway",
        "claim",
        "new",
        "--device",
        newcomer.name(),
        "--config",
        &newcomer.configs.0,
    ];
    let (is_made, said) = calm().command(&order);
    assert!(
        !is_made && said.contains("used up"),
        "a code that could come to nothing: {said}"
    );
}

#[tokio::test]
async fn what_a_device_measured_with_each_key_it_came_with_is_served_once_all_are_approved() {
    let first = Newcomer::invited("newcomer-2");
    first.claims().await;
    let measured = first.publish(1).await;
    assert!(
        measured.as_ref().is_ok_and(|answer| answer.contains("Success")),
        "{measured:?}"
    );
    // It was reset before anybody approved it, and came by another code with another key.
    let second = Newcomer::invited("newcomer-2");
    second.claims().await;
    let measured = second.publish(1).await;
    assert!(
        measured.as_ref().is_ok_and(|answer| answer.contains("Success")),
        "{measured:?}"
    );
    let requests = second.requests();
    let said = second.decide(&["approve", &requests]);
    assert_eq!(said.matches("MORE THAN ONE KEY").count(), 2, "{said}");
    let said = second.decide(&["approve", "--rotate", &requests]);
    let kinds: Vec<_> = said.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    assert_eq!(kinds, ["enrol-device", "rotate-device"], "{said}");
    for newcomer in [&first, &second] {
        newcomer.serves(1).await;
    }
    second.decide(&["revoke-device", second.name()]);
    let said = second.decide(&["approve", "--rotate", &requests]);
    assert_eq!(said.matches("is REVOKED").count(), 2, "{said}");
}
