//! A receipt proves itself offline with the validators' public keys alone; with any byte changed it proves nothing.

use std::fs;

use ledger::{
    handover::{Committees, Handovers},
    proof::Receipt,
};

use crate::sandboxes::{calm, eventually};

/// The text of a receipt of some bundle that became final.
async fn receipt() -> String {
    let node = calm().visitor().node(1);
    let mut height = 0;
    eventually("a final bundle", async || {
        let block = node.block(height + 1).await.ok()?;
        height += 1;
        let bundle = block.transactions.iter().find_map(|transaction| transaction.bundle)?;
        node.receipt(&bundle).await.expect("a bundle on the chain is known")
    })
    .await
}

#[tokio::test]
async fn a_changed_receipt_is_refused() {
    let (sandbox, receipt) = (calm(), receipt().await);
    let validators = sandbox.report().validators_file;
    let validators = validators.to_str().expect("UTF-8");
    let file = sandbox.scratch().join("receipt.json");
    let verify = |text: &[u8]| {
        fs::write(&file, text).expect("the test may write to its folder");
        sandbox.command(&[
            "fog-node",
            "verify-receipt",
            file.to_str().expect("UTF-8"),
            "--validators",
            validators,
        ])
    };
    let (passes, printed) = verify(receipt.as_bytes());
    assert!(passes, "{printed}");
    // The program itself for some bytes; the function it calls for every one.
    for at in (0..receipt.len()).step_by(receipt.len() / 9) {
        let mut bytes = receipt.clone().into_bytes();
        bytes[at] ^= 1;
        let (passes, printed) = verify(&bytes);
        assert!(!passes && !printed.trim().is_empty(), "byte {at}: {printed}");
    }
    let founders: Handovers =
        serde_json::from_str(&fs::read_to_string(validators).expect("it is there")).expect("JSON");
    let committees = Committees::of(founders).expect("founders");
    for at in 0..receipt.len() {
        let mut bytes = receipt.clone().into_bytes();
        bytes[at] ^= 1;
        let refused = std::str::from_utf8(&bytes).is_ok_and(|text| Receipt::verify(text, &committees).is_err());
        assert!(refused || std::str::from_utf8(&bytes).is_err(), "byte {at}");
    }
}

#[tokio::test]
async fn the_nodes_name_the_validators_that_the_report_names() {
    let visitor = calm().visitor();
    let file = fs::read_to_string(&visitor.report.validators_file).expect("it is there");
    let ours: Handovers = serde_json::from_str(&file).expect("JSON");
    for node in &visitor.report.nodes {
        let answer = visitor
            .get(&format!("{}/api/v1/chain/validators", node.http), None)
            .await;
        assert_eq!(serde_json::from_str::<Handovers>(&answer.text).expect("JSON"), ours);
    }
}
