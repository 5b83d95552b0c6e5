//! A patient's key is erased while readings flow and nodes are killed: every node lets go of it and says so, and an old copy of a
//! node's folder that is put back is erased again by itself.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use cid::Cid;
use fog_node::{
    config::Config,
    index::Index,
    keyring::{FILE as KEYRING, Keyring, Passphrase},
    vault::{Config as VaultConfig, Vault},
};
use ledger::{block::Height, proof::CarriedBlock};
use record::{bundle::SubjectKey, canonical::MEDIA_TYPE, ids::KeyId};
use sandbox::{
    children,
    client::Callers,
    harness::{Sandbox, Visitor},
    report::{NodeReport, ProcessReport},
};
use serde_json::Value as Json;
use tokio::runtime::Runtime;

use crate::sandboxes::{VICTIM, eventually, folder, program};

/// So many payloads, at least, are sealed to the key before it is erased.
const PAYLOADS_MIN: usize = 3;
/// Payloads of a key that are looked for on the disks, at most.
const SAMPLE: usize = 40;

fn config_of(process: &ProcessReport) -> PathBuf {
    let at = process.command.iter().position(|word| word == "--config");
    process.command[at.expect("it has a configuration") + 1].clone().into()
}

/// The key that the first device's readings are sealed to.
fn subject(visitor: &Visitor) -> KeyId {
    let file = config_of(&visitor.report.gateway.process).with_file_name("enrolment.json");
    let list: Vec<Json> = serde_json::from_str(&fs::read_to_string(file).expect("the gateway's list")).expect("JSON");
    let device = visitor.report.devices[0].id.as_str();
    let entry = list
        .iter()
        .find(|entry| entry["device"] == device)
        .expect("it is listed");
    let subject: SubjectKey = serde_json::from_value(entry["subject"].clone()).expect("a subject key");
    subject.id()
}

/// Every payload that the chain commits to the key.
async fn payloads(visitor: &Visitor, key: &KeyId) -> BTreeSet<Cid> {
    let head = visitor.node(0).head().await.expect("answers").height;
    let ca = fs::read_to_string(&visitor.report.hospital.ca_file).expect("the CA's file");
    let http = Callers::trusting(&ca)
        .and_then(|callers| callers.anybody())
        .expect("a certificate");
    let mut cids = BTreeSet::new();
    for height in 1..=head {
        let url = format!("{}/api/v1/chain/blocks/{height}", visitor.report.nodes[0].http);
        let answer = http
            .get(url)
            .header("accept", MEDIA_TYPE)
            .send()
            .await
            .expect("answers");
        let block = CarriedBlock::decode(&answer.bytes().await.expect("a body"))
            .expect("a block")
            .block;
        let commitments = block.transactions.iter().filter_map(|signed| signed.commitment());
        cids.extend(commitments.filter(|c| c.key == *key).map(|c| c.cid));
    }
    cids
}

/// What a backup of the node had, and what comes back of it.
const PARTS: [&str; 5] = [
    "vault.redb",
    KEYRING,
    "index.sqlite",
    "index.sqlite-wal",
    "index.sqlite-shm",
];

/// Copies those files; what is not there is not there in the copy.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for part in PARTS {
        let (from, to) = (from.join(part), to.join(part));
        if from.exists() {
            fs::copy(from, to).expect("copies");
        } else {
            let _absent = fs::remove_file(to);
        }
    }
}

/// What a stopped node has of the key: payloads, rows at these heights, and whether the private half opens.
async fn left(node: &NodeReport, key: &KeyId, cids: &BTreeSet<Cid>) -> (usize, usize, bool) {
    let config = Config::load(&config_of(&node.process)).expect("its configuration");
    let vault = Vault::open(&VaultConfig::default(), &node.data_dir, reqwest::Client::new())
        .await
        .expect("opens");
    let mut payloads = 0;
    for cid in cids {
        payloads += usize::from(vault.local(cid).await.expect("reads").is_some());
    }
    let index = Index::open(&config.index, &node.data_dir).await.expect("opens");
    let (mut rows, head) = (0, index.projected().await.expect("reads"));
    for height in 1..=head.0 {
        let (found, _) = index.rows_at(Height(height)).await.expect("reads");
        rows += found.iter().filter(|row| row.key == *key).count();
    }
    let opens = config.keyring.passphrase_file.is_some_and(|file| {
        let passphrase = Passphrase::read(&file).expect("reads");
        let keyring = Keyring::open(&node.data_dir.join(KEYRING), &passphrase).expect("opens");
        keyring.secret(key).is_some()
    });
    (payloads, rows, opens)
}

/// Kills a node, gives its folder back as it was in a copy, and lets the sandbox start it again.
fn restore(sandbox: &Sandbox, node: &NodeReport, backup: &Path) {
    let process = sandbox.process(&node.name);
    let pid = process.pid.expect("it runs");
    children::freeze(sandbox.pid());
    children::kill(pid);
    sandbox.wait_for("the node is dead", || !children::is_running(pid));
    // Its votes stay: who puts an old copy of those back is what the fence is for, which has tests of its own.
    copy(backup, &node.data_dir);
    children::thaw(sandbox.pid());
    sandbox.wait_for("the node is started again", || {
        sandbox.process(&node.name).restarts > process.restarts
    });
}

async fn metric(visitor: &Visitor, node: usize, name: &str) -> Option<f64> {
    let metrics = visitor.node(node).metrics().await.ok()?;
    let line = metrics.lines().find(|line| line.starts_with(name))?;
    line.split(' ').next_back()?.parse().ok()
}

/// The certificate holds, as it is and as nothing else.
fn certified(sandbox: &Sandbox, visitor: &Visitor, certificate: &str) {
    let (file, altered) = (sandbox.scratch().join("certificate"), sandbox.scratch().join("altered"));
    fs::write(&file, certificate).expect("writes");
    fs::write(&altered, certificate.replacen("20", "21", 1)).expect("writes");
    let validators = visitor.report.validators_file.to_string_lossy().into_owned();
    let verify = |file: &Path| {
        sandbox.command(&[
            "fog-node",
            "verify-erasure",
            &file.to_string_lossy(),
            "--validators",
            &validators,
        ])
    };
    let (holds, said) = verify(&file);
    assert!(holds && said.matches("confirmed").count() == 4, "{said}");
    assert!(said.contains("the private half was there and is destroyed"), "{said}");
    assert!(!verify(&altered).0, "a changed byte");
}

#[test]
fn an_erased_key_is_gone_from_every_node() {
    let sandbox = Sandbox::builder(program(), folder(), "erasure").start();
    let runtime = Runtime::new().expect("a runtime");
    let visitor = runtime.block_on(async { sandbox.visitor() });
    let (key, patient) = (subject(&visitor), visitor.report.devices[0].patient);
    let custodian = &visitor.report.nodes[0];
    let url = format!(
        "{}/Observation?patient={patient}&_count=0",
        visitor.report.hospital.fhir
    );
    runtime.block_on(eventually("there is something to erase", async || {
        let answer = visitor.try_get(&url, Some(&visitor.report.hospital.token)).await?;
        let is_read = answer.status == 200 && answer.json()["total"] != 0;
        (is_read && payloads(&visitor, &key).await.len() >= PAYLOADS_MIN).then_some(())
    }));
    let backup = sandbox.scratch().join("backup");
    sandbox.freeze(&custodian.name);
    copy(&custodian.data_dir, &backup);
    sandbox.thaw(&custodian.name);

    let config = config_of(&custodian.process).to_string_lossy().into_owned();
    let organization = visitor.report.hospital.private_key_file.to_string_lossy().into_owned();
    let (id, other) = (key.to_string(), KeyId(record::canonical::Digest::ZERO).to_string());
    let erase = |again: &str| {
        let who = ["--config", &config, "--organization-key", &organization];
        sandbox.command(&[&["fog-node", "erase"], &who[..], &["--yes-erase", again, &id]].concat())
    };
    let (done, said) = erase(&other);
    assert!(!done && said.contains("--yes-erase"), "{said}");
    let (done, said) = erase(&id);
    assert!(done && said.contains("applied"), "{said}");
    sandbox.kill(VICTIM);
    sandbox.kill(&custodian.name);

    let address = format!("{}/api/v1/erasures/{id}/certificate", visitor.report.nodes[1].http);
    let certificate = runtime.block_on(eventually("everybody's word", async || {
        let answer = visitor.try_get(&address, None).await?;
        (answer.status == 200).then_some(answer.text)
    }));
    certified(&sandbox, &visitor, &certificate);

    runtime.block_on(eventually("nobody reads what was measured", async || {
        let answer = visitor.try_get(&url, Some(&visitor.report.hospital.token)).await?;
        (answer.status == 200 && answer.json()["total"] == 0).then_some(())
    }));

    // An old copy comes back: the keys, the rows and the payloads. Nobody says anything to the node.
    restore(&sandbox, custodian, &backup);
    runtime.block_on(eventually("it is erased again", async || {
        (metric(&visitor, 0, "fog_erasure_keys_total").await? >= 1.0).then_some(())
    }));
    let cids = runtime.block_on(payloads(&visitor, &key));
    assert!(cids.len() >= PAYLOADS_MIN, "there were payloads: {}", cids.len());
    let some: BTreeSet<_> = cids.into_iter().take(SAMPLE).collect();
    let full = config_of(&custodian.process).to_string_lossy().into_owned();
    let (agrees, compared) = sandbox.command(&["fog-node", "verify", "--full", "--config", &full]);
    assert!(agrees, "the chain is what it was: {compared}");

    children::terminate(sandbox.pid());
    sandbox.wait_until_stopped();
    for node in &visitor.report.nodes {
        let found = runtime.block_on(left(node, &key, &some));
        assert_eq!(found, (0, 0, false), "payloads, rows, private half at {}", node.name);
    }
}
