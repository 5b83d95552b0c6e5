//! An observer holds no chain and believes no node: it reads what its organisation was granted, and nothing else, also when one
//! of the nodes that it asks is killed.

use std::{
    process::{Child, Command, Stdio},
    sync::LazyLock,
};

use ledger::{
    handover::{Committees, Handovers},
    proof::Receipt,
};
use sandbox::{
    harness::{Sandbox, Visitor},
    lifeline,
    report::PreparedReport,
};
use serde_json::Value as Json;

use crate::sandboxes::{eventually, folder, program};

/// A sandbox of its own: one of its nodes is killed.
fn watched() -> &'static Sandbox {
    static WATCHED: LazyLock<Sandbox> = LazyLock::new(|| Sandbox::builder(program(), folder(), "watched").start());
    &WATCHED
}

/// A running observer, which ends with the test.
struct Observer {
    process: Child,
    plan: PreparedReport,
}

impl Observer {
    fn start(plan: &PreparedReport) -> Self {
        let process = Command::new(program())
            .args(["fog-node", "observe", "--config"])
            .arg(&plan.config_file)
            .env(lifeline::VARIABLE, lifeline::STDIN)
            .stdin(Stdio::piped())
            .spawn();
        Self {
            process: process.expect("the program is built"),
            plan: plan.clone(),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.plan.http)
    }

    async fn wait_until_ready(&self, visitor: &Visitor) {
        eventually("the observer is ready", async || {
            let answer = visitor.try_get(&self.url("/readyz"), None).await?;
            answer.status.is_success().then_some(())
        })
        .await;
    }

    async fn height(&self, visitor: &Visitor) -> u64 {
        let head = visitor.get(&self.url("/api/v1/chain/head"), None).await.json();
        head["height"].as_u64().expect("a height")
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The observations of the first patient that both have; sorted by id.
fn sorted(mut all: Vec<Json>) -> Vec<Json> {
    all.sort_by_key(|one| one["id"].to_string());
    all
}

#[tokio::test]
async fn an_observer_reads_what_the_full_node_reads_also_when_one_node_is_killed() {
    let sandbox = watched();
    let visitor = sandbox.visitor();
    let (patient, token) = (visitor.report.patients[0].id, visitor.report.hospital.token.clone());
    let observer = Observer::start(&visitor.report.observers[0]);
    observer.wait_until_ready(&visitor).await;
    let search = observer.url(&format!("/fhir/Observation?patient={patient}&_count=1000"));
    let read = async || sorted(visitor.get(&search, Some(&token)).await.matches());
    let compare = async || {
        // What the full node shows now, the observer shows soon, equal to the letter.
        let full = sorted(visitor.observations(patient).await);
        assert!(!full.is_empty());
        eventually("the observer has what the full node has", async || {
            let seen = read().await;
            full.iter().all(|one| seen.contains(one)).then_some(())
        })
        .await;
    };
    eventually("the first observations", async || {
        (!read().await.is_empty()).then_some(())
    })
    .await;
    compare().await;
    let before = observer.height(&visitor).await;
    sandbox.freeze(&visitor.report.nodes[2].name);
    eventually("the observer goes on without one node", async || {
        (observer.height(&visitor).await > before + 20).then_some(())
    })
    .await;
    sandbox.kill(&visitor.report.nodes[2].name);
    compare().await;
    receipts_hold(&visitor, &observer, &search, &token).await;
    what_it_does_not_do(&visitor, &observer).await;
}

/// The receipts that it gives prove finality to anybody; a bundle that it was not granted has none here.
async fn receipts_hold(visitor: &Visitor, observer: &Observer, search: &str, token: &str) {
    assert!(!visitor.get(search, Some(token)).await.matches().is_empty());
    let validators = std::fs::read_to_string(&visitor.report.validators_file).expect("the report names it");
    let founders: Handovers = serde_json::from_str(&validators).expect("validators");
    let committees = Committees::of(founders).expect("founders");
    let height = observer.height(visitor).await;
    let (mut own, mut others) = (0, 0);
    for height in (1..height).rev().take(60) {
        let block = visitor
            .get(
                &format!("{}/api/v1/chain/blocks/{height}", visitor.report.nodes[0].http),
                None,
            )
            .await
            .json();
        let transactions = block["transactions"].as_array().cloned().unwrap_or_default();
        for bundle in transactions
            .iter()
            .filter_map(|transaction| transaction["bundle"].as_str())
        {
            let answer = visitor
                .get(&observer.url(&format!("/api/v1/receipts/{bundle}")), None)
                .await;
            if answer.status.is_success() {
                assert!(Receipt::verify(&answer.text, &committees).is_ok());
                own += 1;
            } else {
                assert_eq!(answer.status.as_u16(), 404);
                others += 1;
            }
        }
    }
    assert!(own > 0 && others > 0, "{own} of its own, {others} of others");
}

async fn what_it_does_not_do(visitor: &Visitor, observer: &Observer) {
    for (path, status) in [
        ("/api/v1/chain/blocks/1", 501),
        ("/api/v1/chain/headers?from=1", 501),
        ("/api/v1/nothing", 404),
        ("/fhir/Observation", 401),
        ("/fhir/metadata", 200),
    ] {
        let answer = visitor.get(&observer.url(path), None).await;
        assert_eq!(answer.status.as_u16(), status, "{path}");
        let kind = if status == 200 {
            "CapabilityStatement"
        } else {
            "OperationOutcome"
        };
        assert_eq!(answer.json()["resourceType"], kind, "{path}");
    }
    for name in ["chain.redb", "consensus"] {
        assert!(!observer.plan.data_dir.join(name).exists(), "{name}");
    }
}

#[tokio::test]
async fn a_key_that_was_not_granted_opens_nothing() {
    let visitor = watched().visitor();
    let patient = visitor.report.patients[0].id;
    // It has the hospital's key of this patient, and no grant.
    let observer = Observer::start(&visitor.report.observers[1]);
    observer.wait_until_ready(&visitor).await;
    for token in [&visitor.report.stranger.token, &visitor.report.hospital.token] {
        let search = observer.url(&format!("/fhir/Observation?patient={patient}"));
        let answer = visitor.get(&search, Some(token)).await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()["total"].as_u64()),
            (200, Some(0))
        );
    }
    let metrics = visitor.get(&observer.url("/metrics"), None).await.text;
    let learned = metrics
        .lines()
        .find(|line| line.starts_with("fog_follow_bundles_total"));
    assert!(learned.is_none_or(|line| line.ends_with(" 0")), "{learned:?}");
}
