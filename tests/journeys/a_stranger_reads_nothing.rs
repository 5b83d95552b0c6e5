//! Without a grant there is nothing to see: no token, a broken token, and the token of another member.

use sandbox::harness::{Answer, Visitor};

use crate::sandboxes::{calm, eventually};

fn addresses(visitor: &Visitor) -> Vec<String> {
    let (base, patient) = (&visitor.report.hospital.fhir, visitor.report.patients[0].id);
    vec![
        format!("{base}/Observation?patient={patient}"),
        format!("{base}/Observation?patient={patient}&_count=1000"),
        format!("{base}/Patient/{patient}"),
    ]
}

fn is_outcome(answer: &Answer) -> bool {
    answer.json()["resourceType"] == "OperationOutcome" && answer.content_type.starts_with("application/fhir+json")
}

#[tokio::test]
async fn nobody_reads_without_a_token() {
    let visitor = calm().visitor();
    for url in addresses(&visitor) {
        let answer = visitor.get(&url, None).await;
        assert!(
            answer.status.as_u16() == 401 && is_outcome(&answer),
            "{url}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn a_token_with_another_signature_is_refused() {
    let visitor = calm().visitor();
    let token = &visitor.report.hospital.token;
    let (claims, signature) = token.rsplit_once('.').expect("a JWT");
    let forged = format!("{claims}.{}", signature.chars().rev().collect::<String>());
    for url in addresses(&visitor) {
        let answer = visitor.get(&url, Some(&forged)).await;
        assert!(
            answer.status.as_u16() == 401 && is_outcome(&answer),
            "{url}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn another_member_without_a_grant_reads_nothing() {
    let visitor = calm().visitor();
    for node in &visitor.report.nodes {
        for url in addresses(&visitor) {
            let url = url.replace(&visitor.report.nodes[0].http, &node.http);
            let answer = visitor.get(&url, Some(&visitor.report.stranger.token)).await;
            let nothing = match answer.status.as_u16() {
                200 => answer.json()["total"] == 0 && answer.matches().is_empty(),
                403 | 404 => is_outcome(&answer),
                _ => false,
            };
            assert!(nothing, "{url}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn the_hospital_does_read() {
    // The counterpart: these addresses do have something to show.
    let visitor = calm().visitor();
    for url in addresses(&visitor) {
        // What was acknowledged a moment ago becomes visible a little later.
        eventually(&url, async || {
            let answer = visitor.get(&url, Some(&visitor.report.hospital.token)).await;
            assert!(answer.status.is_success(), "{url}: {answer:?}");
            let has_something = answer.json()["resourceType"] == "Patient" || !answer.matches().is_empty();
            has_something.then_some(())
        })
        .await;
    }
}
