//! The same bundle handed in twice, to two nodes, after a crash and after it is final is one commitment with one receipt.

use std::fs;

use ledger::{
    admission::{Admission, MatchedSubmission},
    handover::{Committees, Handovers},
    proof::Receipt,
};
use record::{
    bundle::{Bundle, Entry, SubjectKey},
    canonical::{Digest, MEDIA_TYPE},
    ids::{BundleId, GatewayId},
    signature::SigningKey,
};
use sandbox::{
    client::{Callers, Node},
    harness::Sandbox,
    identities::TlsIdentity,
    network::GATEWAY,
    report::{NodeReport, Report},
};
use serde::Deserialize;
use serde_json::Value as Json;

use crate::{
    by_hand,
    sandboxes::{eventually, folder, program},
};

/// The node that admits the bundle first, and is killed before it is final.
const KILLED: &str = "hospital-a";
/// Without these two of four nothing becomes final.
const FROZEN: [&str; 2] = ["insurer-c", "supplier-d"];
/// So many blocks after the last submission a second commitment would be in one of them.
const BLOCKS_AFTER: u64 = 5;
/// A node that has had no block for so long still takes bundles, in milliseconds: the quorum is away as long as the test likes.
const PATIENT: &str = "stale_after_ms = 3600000";

/// Somebody with the keys of the sandbox's gateway, and a bundle it never sealed itself.
struct Twin {
    http: reqwest::Client,
    bundle: BundleId,
    submission: Vec<u8>,
    /// The identifier of the only reading in it.
    reading: String,
}

#[derive(Deserialize)]
struct Enrolment {
    subject: SubjectKey,
}

impl Twin {
    /// Seals one reading of the first device as the gateway would.
    fn of(report: &Report) -> Self {
        let file = |name: &str| report.data_dir.join("gateway").join(name);
        let text = |name: &str| fs::read_to_string(file(name)).expect("the sandbox has written it");
        let enrolments: Vec<Enrolment> = serde_json::from_str(&text("enrolment.json")).expect("JSON");
        let gateway: GatewayId = GATEWAY.parse().expect("a good name");
        let device = &report.devices[0];
        let reading = by_hand::reading(device, "8867-4", "61", "/min");
        let (identifier, received_ms) = (reading.id().to_string(), jiff::Timestamp::now().as_millisecond());
        let entry = Entry::new(received_ms, reading.sign(&by_hand::key(device)));
        let bundle = Bundle::new(vec![entry]);
        let key = SigningKey::from_pem(&text("gateway.pem")).expect("a key");
        let author = (&report.network, &gateway, &key);
        let sealed = MatchedSubmission::seal(author, (&enrolments[0].subject, &bundle), received_ms);
        let sealed = sealed.expect("the subject's key can be sealed to");
        let ca = fs::read_to_string(&report.gateway.ca_file).expect("the sandbox has written it");
        let tls = TlsIdentity {
            certificate: file("gateway.crt"),
            private_key: file("gateway.key"),
            pin: Digest::ZERO,
        };
        let http = Callers::trusting(&ca).and_then(|callers| callers.with_certificate(&tls));
        Self {
            http: http.expect("a certificate and its key"),
            bundle: sealed.commitment().bundle,
            submission: sealed.encode(),
            reading: identifier,
        }
    }

    /// Hands the bundle in, the same bytes each time; `None` if nobody answers or the node is not ready.
    async fn tried(&self, node: &NodeReport) -> Option<()> {
        let request = self.http.post(format!("{}/api/v1/bundles", node.http));
        let request = request.header("content-type", MEDIA_TYPE).body(self.submission.clone());
        let text = request.send().await.ok()?.error_for_status().ok()?.text().await.ok()?;
        let admission: Admission = serde_json::from_str(&text).expect("an admission");
        assert!(admission.bundle == self.bundle && admission.is_genuine(), "{text}");
        Some(())
    }

    async fn hand_in(&self, node: &NodeReport) {
        let admitted = self.tried(node).await;
        admitted.unwrap_or_else(|| panic!("{} does not admit the bundle", node.name));
    }

    async fn standing(&self, node: &NodeReport) -> Json {
        let request = self.http.get(format!("{}/api/v1/bundles/{}", node.http, self.bundle));
        let answer = request.send().await.expect("the node answers");
        answer.json().await.expect("JSON")
    }
}

/// At which heights of a node's chain, up to one, the bundle is committed to.
async fn commitments(node: &Node, bundle: BundleId, up_to: u64) -> Vec<u64> {
    let mut found = Vec::new();
    for height in 1..=up_to {
        let block = node.block(height).await.expect("a block up to the head");
        let times = block.transactions.iter().filter(|line| line.bundle == Some(bundle));
        found.extend(times.map(|_| height));
    }
    found
}

/// Hands the bundle in twice to one node and at once to another, while nothing can become final, kills the first, and hands
/// it in again: it is still not final.
async fn repeat_without_a_quorum(sandbox: &Sandbox, twin: &Twin, nodes: &[NodeReport]) {
    FROZEN.iter().for_each(|name| sandbox.freeze(name));
    tokio::join!(twin.hand_in(&nodes[0]), twin.hand_in(&nodes[1]));
    twin.hand_in(&nodes[0]).await;
    for node in &nodes[..2] {
        assert_eq!(twin.standing(node).await["status"], "admitted", "{}", node.name);
    }
    let file = nodes[0].data_dir.with_file_name("config.toml");
    let text = fs::read_to_string(&file).expect("the sandbox has written it");
    fs::write(&file, text.replacen("[http]\n", &format!("[http]\n{PATIENT}\n"), 1)).expect("the test may write there");
    sandbox.kill(KILLED);
    eventually("the killed node to admit it again", async || {
        twin.tried(&nodes[0]).await
    })
    .await;
    assert_eq!(
        twin.standing(&nodes[0]).await["status"],
        "admitted",
        "nothing is final without a quorum"
    );
}

#[tokio::test]
async fn a_repeated_bundle_is_one_commitment() {
    let sandbox = Sandbox::builder(program(), folder(), "repeated").devices(1).start();
    let visitor = sandbox.visitor();
    let (nodes, twin) = (&visitor.report.nodes, Twin::of(&visitor.report));
    repeat_without_a_quorum(&sandbox, &twin, nodes).await;
    FROZEN.iter().for_each(|name| sandbox.thaw(name));

    let mut receipts = Vec::new();
    for index in 0..nodes.len() {
        let node = visitor.node(index);
        receipts.push(eventually("its receipt", async || node.receipt(&twin.bundle).await.ok().flatten()).await);
    }
    // Again, now that it is final, at the node that was killed and at one that it was never handed to.
    for index in [0, 2] {
        twin.hand_in(&nodes[index]).await;
        assert_eq!(twin.standing(&nodes[index]).await["status"], "finalized");
        let again = visitor
            .node(index)
            .receipt(&twin.bundle)
            .await
            .expect("the node answers");
        assert_eq!(again.as_deref(), Some(receipts[index].as_str()), "the same receipt");
    }
    let head = visitor.node(0).head().await.expect("the node answers").height;
    let validators = fs::read_to_string(&visitor.report.validators_file).expect("it is there");
    let founders: Handovers = serde_json::from_str(&validators).expect("JSON");
    let committees = Committees::of(founders).expect("founders");
    for (index, receipt) in receipts.iter().enumerate() {
        let verified = Receipt::verify(receipt, &committees).expect("each node's receipt verifies");
        let first = Receipt::verify(&receipts[0], &committees).expect("as above");
        // Each node has votes of a quorum, not of the same one; what they voted for is the same.
        assert_eq!((verified.bundle(), verified.header()), (twin.bundle, first.header()));
        let node = visitor.node(index);
        let after = async || node.head().await.ok().filter(|now| now.height >= head + BLOCKS_AFTER);
        let now = eventually("blocks after the last submission", after).await;
        let heights = commitments(&node, twin.bundle, now.height).await;
        assert_eq!(
            heights,
            [verified.header().height.0],
            "one commitment on {}",
            nodes[index].name
        );
    }
    let patient = visitor.report.devices[0].patient;
    let served = eventually("the reading", async || {
        let all = visitor.observations(patient).await;
        let is_it = |o: &&Json| o["identifier"][0]["value"] == twin.reading.as_str();
        Some(all.iter().filter(is_it).count()).filter(|count| *count > 0)
    });
    assert_eq!(served.await, 1, "served once");
}
