//! What gateways, nodes and hospitals meet at the door, over HTTPS and with the real rooms behind it.

use ledger::{
    admission::{Admission, Submission},
    block::Height,
    erasure::Certificate,
    handover::Committees,
    holding::{Answer, Challenge},
    light::{CarriedCommitments, CarriedHeaders},
    proof::Receipt,
    transaction::{Action, Erasure, Grant},
};
use record::{gaps::Range, ids::SubjectId};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value as Json, json};

use super::clinic::{Clinic, body, organization};

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_admitted_and_proved_final() {
    let clinic = Clinic::open().await;
    let (bundle, submission) = clinic.submission(1);
    assert_eq!(
        clinic.submit(&clinic.gateway, submission.clone()).await.status(),
        409,
        "not enrolled yet"
    );
    clinic.enrol().await;
    assert_eq!(
        clinic
            .get(&format!("/api/v1/receipts/{bundle}"))
            .send()
            .await
            .expect("answers")
            .status(),
        404
    );
    let admitted = clinic.submit(&clinic.gateway, submission.clone()).await;
    assert_eq!(admitted.status(), 202);
    let admission: Admission = serde_json::from_value(body(admitted).await).expect("an admission");
    assert!(admission.is_genuine() && admission.bundle == bundle);
    let set = body(clinic.get("/api/v1/chain/validators").send().await.expect("answers")).await;
    let set = Committees::of(serde_json::from_value(set).expect("handovers")).expect("founders");
    assert_eq!(
        Receipt::verify(&clinic.receipt(&bundle).await, &set)
            .expect("holds")
            .bundle(),
        bundle
    );
    let standing = body(
        clinic
            .get(&format!("/api/v1/bundles/{bundle}"))
            .send()
            .await
            .expect("answers"),
    )
    .await;
    assert_eq!(standing["status"], "finalized");
    assert_eq!(clinic.submit(&clinic.gateway, submission).await.status(), 202, "again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_for_good_is_said_so() {
    let clinic = Clinic::open().await;
    clinic.enrol().await;
    let (_, submission) = clinic.submission(1);
    let mut altered = submission.clone();
    *altered.last_mut().expect("bytes") ^= 1;
    assert_eq!(clinic.submit(&clinic.gateway, altered).await.status(), 422);
    assert_eq!(
        clinic.submit(&clinic.node, submission.clone()).await.status(),
        403,
        "a node is no gateway"
    );
    assert_eq!(
        clinic.submit(&clinic.anybody, submission.clone()).await.status(),
        403,
        "no certificate"
    );
    let untyped = clinic
        .gateway
        .post(clinic.url("/api/v1/bundles"))
        .body(submission)
        .send()
        .await
        .expect("answers");
    assert_eq!(untyped.status(), 415);
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_are_for_nodes_alone() {
    let clinic = Clinic::open().await;
    let (_, submission) = clinic.submission(1);
    let payload = Submission::decode(&submission).expect("matches").into_parts().1;
    let cid = record::canonical::cid_of(&payload);
    let push = |by: &Client, body: Vec<u8>| {
        let post = by.post(clinic.url("/api/v1/payloads")).body(body);
        post.header("content-type", record::canonical::MEDIA_TYPE).send()
    };
    assert_eq!(
        push(&clinic.anybody, submission.clone())
            .await
            .expect("answers")
            .status(),
        403
    );
    let early = push(&clinic.node, submission.clone()).await.expect("answers");
    assert_eq!(early.status(), 409, "what no enrolled gateway committed to is not kept");
    let bare = push(&clinic.node, payload.clone()).await.expect("answers");
    assert_eq!(bare.status(), 422, "a payload comes with its commitment");
    clinic.enrol().await;
    assert_eq!(push(&clinic.node, submission).await.expect("answers").status(), 204);
    let pull = |by: &Client| by.get(clinic.url(&format!("/ipfs/{cid}?format=raw"))).send();
    assert_eq!(pull(&clinic.anybody).await.expect("answers").status(), 403);
    let pulled = pull(&clinic.node).await.expect("answers");
    assert_eq!(pulled.headers()["content-type"], "application/vnd.ipld.raw");
    assert_eq!(pulled.bytes().await.expect("a body"), payload);
    let probe = |by: &Client| by.get(clinic.url("/ipfs/bafkqaaa?format=raw")).send();
    assert_eq!(probe(&clinic.anybody).await.expect("answers").status(), 403);
    let probed = probe(&clinic.node).await.expect("answers");
    assert_eq!(probed.status(), 200);
    assert_eq!(probed.bytes().await.expect("a body").len(), 0);
    // An identity CID has its bytes inside; nothing is kept under it.
    let inlined = clinic.node.get(clinic.url("/ipfs/bafkqabtimvwgy3yk?format=raw")).send();
    assert_eq!(inlined.await.expect("answers").status(), 400);
}

/// A clinic that holds one payload, and what another node is answered for `/ipfs/..`.
struct Gateway {
    clinic: Clinic,
    payload: Vec<u8>,
    cid: String,
}

impl Gateway {
    async fn open() -> Self {
        let clinic = Clinic::open().await;
        clinic.enrol().await;
        let (_, submission) = clinic.submission(1);
        let payload = Submission::decode(&submission).expect("matches").into_parts().1;
        let post = clinic.node.post(clinic.url("/api/v1/payloads")).body(submission);
        let pushed = post.header("content-type", record::canonical::MEDIA_TYPE).send().await;
        assert_eq!(pushed.expect("answers").status(), 204);
        let cid = record::canonical::cid_of(&payload).to_string();
        Self { clinic, payload, cid }
    }

    async fn ask(&self, path: &str, headers: &[(&str, &str)]) -> (u16, http::HeaderMap, Vec<u8>) {
        let request = self.clinic.node.get(self.clinic.url(&format!("/ipfs/{path}")));
        let with = |request: reqwest::RequestBuilder, (name, value): &(&str, &str)| request.header(*name, *value);
        let answer = headers.iter().fold(request, with).send().await.expect("answers");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        (status, headers, answer.bytes().await.expect("a body").to_vec())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_is_served_as_a_trustless_gateway_does() {
    let gateway = Gateway::open().await;
    let (cid, payload) = (&gateway.cid, &gateway.payload);
    let raw = format!("{cid}?format=raw");
    let (status, headers, body) = gateway.ask(&raw, &[]).await;
    assert_eq!((status, &body), (200, payload));
    for (name, value) in [
        ("content-type", "application/vnd.ipld.raw".to_owned()),
        ("etag", format!("\"{cid}.raw\"")),
        ("content-disposition", format!("attachment; filename=\"{cid}.bin\"")),
        ("cache-control", "private, max-age=31536000, immutable".to_owned()),
        ("x-content-type-options", "nosniff".to_owned()),
        ("x-ipfs-roots", cid.clone()),
        ("accept-ranges", "bytes".to_owned()),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    let clinic = &gateway.clinic;
    let head = clinic.node.head(clinic.url(&format!("/ipfs/{raw}"))).send().await;
    let head = head.expect("answers");
    assert_eq!(head.headers()["content-length"], payload.len().to_string());
    assert_eq!(head.headers()["etag"], headers["etag"]);

    let accepts = [("accept", "text/html;q=0, application/vnd.ipld.car; version=1")];
    let (status, headers, car) = gateway.ask(cid, &accepts).await;
    let told = "application/vnd.ipld.car; version=1; order=dfs; dups=n";
    assert_eq!(
        (status, &headers["content-type"]),
        (200, &http::HeaderValue::from_static(told))
    );
    assert!(car.len() > payload.len() && car.ends_with(payload));
    let scoped = gateway.ask(&format!("{cid}?format=car&dag-scope=block"), &[]).await;
    assert_eq!(scoped.2, car, "what is sealed has no links");
    let both = gateway.ask(&raw, &[("accept", "application/vnd.ipld.car")]).await;
    assert_eq!(&both.2, payload, "format goes before Accept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_answers_what_is_asked_and_says_what_it_does_not_serve() {
    let gateway = Gateway::open().await;
    let (cid, payload) = (&gateway.cid, &gateway.payload);
    let (raw, tag) = (format!("{cid}?format=raw"), format!("W/\"{cid}.raw\""));
    let absent = format!("{}?format=raw", record::canonical::cid_of(b"elsewhere"));
    let of = |ending: &str| format!("{cid}{ending}");
    for (asked, headers, expected) in [
        (&raw, &[("if-none-match", tag.as_str())][..], 304),
        (&raw, &[("if-none-match", "\"another\"")], 200),
        (&raw, &[("range", "bytes=2-5")], 206),
        (&raw, &[("range", "bytes=2-5"), ("if-range", "\"another\"")], 200),
        (&raw, &[("range", "bytes=9999999-")], 416),
        (&raw, &[("cache-control", "only-if-cached")], 200),
        (cid, &[], 400),
        (cid, &[("accept", "*/*")], 400),
        (cid, &[("accept", "text/html")], 406),
        (cid, &[("accept", "application/vnd.ipld.raw;q=0.0, */*;q=0.5")], 400),
        (cid, &[("accept", "*/*;q=0.1, application/vnd.ipld.raw;q=0.9")], 200),
        (&of("?format=dag-json"), &[], 406),
        (&of("?format=car&car-version=2"), &[], 406),
        (&of("/below?format=car"), &[], 404),
        (&absent, &[], 404),
        (&absent, &[("cache-control", "only-if-cached")], 412),
    ] {
        let (status, told, body) = gateway.ask(asked, headers).await;
        assert_eq!(status, expected, "{asked} {headers:?}");
        let range = told.get("content-range").and_then(|range| range.to_str().ok());
        match status {
            200 => assert_eq!(&body, payload),
            206 => assert_eq!(
                (&body[..], range),
                (&payload[2..6], Some(&*format!("bytes 2-5/{}", payload.len())))
            ),
            304 => assert!(body.is_empty()),
            416 => assert_eq!(range, Some(&*format!("bytes */{}", payload.len()))),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_things_are_for_members_who_may_read_them() {
    let clinic = Clinic::with_readings().await;
    let ask = async |path: &str, token: Option<String>| {
        let request = clinic.get(path);
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let answer = request.send().await.expect("answers");
        (answer.status().as_u16(), answer.bytes().await.expect("a body"))
    };
    let sealed = |organization: &str| Some(clinic.token(organization, "system/Bundle.rs"));
    let headers = ask("/api/v1/chain/headers?from=0", None).await;
    let headers = CarriedHeaders::decode(&headers.1).expect("canonical");
    let committees = Committees::founding(&clinic.genesis);
    let proven = headers.proven(Height(0), &committees).expect("holds");
    assert!(
        proven.headers().len() > 6,
        "enrolments, key, readings: each in a voted block"
    );
    let commitments = "/api/v1/chain/commitments?from=1";
    for path in [commitments, "/api/v1/chain/state"] {
        assert_eq!(ask(path, None).await.0, 401);
        let reader = clinic.token("hospital-a", "system/Observation.rs system/Patient.rs");
        assert_eq!(
            ask(path, Some(reader)).await.0,
            403,
            "the token of a client that reads is not shown around"
        );
    }
    let told = async |organization: &str| {
        let (status, body) = ask(commitments, sealed(organization)).await;
        assert_eq!(status, 200);
        CarriedCommitments::decode(&body).expect("canonical").blocks
    };
    let blocks = told("hospital-a").await;
    assert!(blocks.iter().all(|block| block.check(&committees).is_ok()));
    let included: Vec<_> = blocks.iter().flat_map(|block| &block.included).collect();
    assert_eq!((included.len(), told("insurer-b").await.len()), (3, 0));
    let cid = included[0].transaction.commitment().expect("a commitment").cid;
    let payload = format!("/ipfs/{cid}?format=raw");
    let (status, body) = ask(&payload, sealed("hospital-a")).await;
    assert_eq!((status, record::canonical::cid_of(&body)), (200, cid));
    assert_eq!(ask(&payload, sealed("insurer-b")).await.0, 404);
    assert_eq!(
        ask("/fhir/Patient", sealed("hospital-a")).await.0,
        403,
        "it opens no record"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hospital_reads_what_was_measured() {
    let clinic = Clinic::with_readings().await;
    let patient = clinic.patient;
    let question =
        format!("/fhir/Observation?patient=Patient/{patient}&code=http://loinc.org|8867-4&date=ge2026-09-21&_count=2");
    let (status, first) = clinic.ask("hospital-a", &question).await;
    assert_eq!((status, &first["total"]), (200, &json!(3)));
    assert_eq!(first["entry"][0]["resource"]["valueQuantity"]["value"], 61);
    assert_eq!(
        first["entry"][0]["resource"]["effectiveDateTime"],
        "2026-09-21T14:16:20.000Z"
    );
    let next = first["link"][1]["url"]
        .as_str()
        .expect("a next page")
        .strip_prefix(&clinic.url(""))
        .expect("ours")
        .to_owned();
    let (_, second) = clinic.ask("hospital-a", &next).await;
    assert_eq!(second["entry"].as_array().expect("a page").len(), 1);
    assert_eq!(second["link"].as_array().expect("links").len(), 1);
    let id = second["entry"][0]["resource"]["id"].as_str().expect("text");
    assert_eq!(
        clinic.ask("hospital-a", &format!("/fhir/Observation/{id}")).await.1,
        second["entry"][0]["resource"]
    );
    let (_, panel) = clinic.ask("hospital-a", "/fhir/Observation?code=85354-9").await;
    assert_eq!(
        panel["entry"][0]["resource"]["component"][0]["valueQuantity"]["value"],
        128
    );
    let (_, people) = clinic.ask("hospital-a", "/fhir/Patient?name=jan").await;
    assert_eq!(
        (&people["total"], &people["entry"][0]["resource"]["id"]),
        (&json!(1), &json!(patient.to_string()))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_grant_nobody_is_there() {
    let clinic = Clinic::with_readings().await;
    let patient = clinic.patient;
    let observation =
        clinic.ask("hospital-a", "/fhir/Observation?_count=1").await.1["entry"][0]["resource"]["id"].clone();
    let observation = observation.as_str().expect("text");
    let without_self = |(status, mut bundle): (u16, Json)| {
        drop(bundle["link"].take());
        (status, bundle)
    };
    let hidden = clinic
        .ask("insurer-b", &format!("/fhir/Observation?patient={patient}"))
        .await;
    let unknown = clinic
        .ask(
            "insurer-b",
            &format!("/fhir/Observation?patient={}", SubjectId::random()),
        )
        .await;
    assert_eq!((hidden.0, &hidden.1["total"]), (200, &json!(0)));
    assert_eq!(without_self(hidden), without_self(unknown));
    for path in [
        format!("/fhir/Observation/{observation}"),
        format!("/fhir/Patient/{patient}"),
    ] {
        assert_eq!(clinic.ask("insurer-b", &path).await.0, 404);
    }
    assert_eq!(clinic.ask("insurer-b", "/fhir/Patient").await.1["total"], 0);
    let grant = Grant {
        key: clinic.subject_key.id(),
        grantee: organization("insurer-b"),
    };
    assert_eq!(clinic.decide(Action::Grant(grant.clone())).await["outcome"], "applied");
    assert_eq!(
        clinic
            .ask("insurer-b", &format!("/fhir/Observation?patient={patient}"))
            .await
            .1["total"],
        6
    );
    assert_eq!(clinic.decide(Action::Revoke(grant)).await["outcome"], "applied");
    assert_eq!(
        clinic
            .ask("insurer-b", &format!("/fhir/Observation/{observation}"))
            .await
            .0,
        404
    );
}

/// What the answer says is missing, and its total.
fn told(bundle: &Json) -> (Vec<&str>, &Json) {
    let entries = bundle["entry"].as_array().map(Vec::as_slice).unwrap_or_default();
    let outcomes = entries.iter().filter(|entry| entry["search"]["mode"] == "outcome");
    let issues = outcomes.flat_map(|entry| entry["resource"]["issue"].as_array().expect("issues"));
    let missing = issues.filter(|issue| issue["code"] == "incomplete");
    let missing = missing.map(|issue| {
        issue["extension"][0]["extension"][2]["valueString"]
            .as_str()
            .expect("ranges")
    });
    (missing.collect(), &bundle["total"])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_said_beside_the_matches_until_it_has_come() {
    let clinic = Clinic::with_readings().await;
    let search = format!("/fhir/Observation?patient={}", clinic.patient);
    let after = async |seq: u64, report: record::gaps::SignedGapReport| {
        let (bundle, submission) = clinic.submission_with(seq, vec![report]);
        assert_eq!(clinic.submit(&clinic.gateway, submission).await.status(), 202);
        clinic.receipt(&bundle).await;
        loop {
            let (_, answer) = clinic.ask("hospital-a", &search).await;
            if answer["total"] == seq * 2 {
                return answer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    assert_eq!(told(&clinic.ask("hospital-a", &search).await.1), (vec![], &json!(6)));
    let gap = [Range(2, 7), Range(9, 9)];
    let answer = after(4, clinic.report(1_000, &gap)).await;
    assert_eq!(
        told(&answer),
        (vec!["5-7,9"], &json!(8)),
        "the outcome is no match, and what is here is not missing"
    );
    let older = after(5, clinic.report(999, &[Range(8, 8)])).await;
    assert_eq!(
        told(&older).0,
        ["6-7,9"],
        "the newest report holds, whichever is final last"
    );
    for (path, expected) in [
        ("&_count=1", 1),
        ("&code=8867-4", 1),
        ("&_summary=count", 0),
        ("&_count=0", 0),
    ] {
        let (_, answer) = clinic.ask("hospital-a", &format!("{search}{path}")).await;
        assert_eq!(told(&answer).0.len(), expected, "{path}");
    }
    let (_, hidden) = clinic.ask("insurer-b", &search).await;
    assert_eq!(
        told(&hidden),
        (vec![], &json!(0)),
        "who may not see the patient sees no gap"
    );
    let forged = clinic.report(2_000, &[]);
    let forged = {
        let mut bytes = record::canonical::encode(&forged);
        *bytes.last_mut().expect("bytes") ^= 1;
        record::canonical::decode(&bytes, bytes.len()).expect("only the signature differs")
    };
    assert_eq!(told(&after(6, forged).await).0, ["7,9"], "not the gateway's word");
    assert_eq!(
        told(&after(7, clinic.report(2_000, &[])).await).0,
        [""; 0],
        "everything has come"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_asks_who_you_are_and_says_what_it_takes() {
    let clinic = Clinic::open().await;
    let status = async |request: RequestBuilder| request.send().await.expect("answers").status().as_u16();
    assert_eq!(status(clinic.get("/fhir/Observation")).await, 401);
    let narrow = clinic.token("hospital-a", "system/Patient.rs");
    assert_eq!(status(clinic.get("/fhir/Observation").bearer_auth(&narrow)).await, 403);
    assert_eq!(status(clinic.get("/fhir/Patient").bearer_auth(&narrow)).await, 200);
    let strict = clinic
        .get("/fhir/Patient?color=red")
        .bearer_auth(&narrow)
        .header("prefer", "handling=strict");
    assert_eq!(status(strict).await, 400);
    assert_eq!(
        status(
            clinic
                .get("/fhir/Patient")
                .bearer_auth(&narrow)
                .header("accept", "application/fhir+xml")
        )
        .await,
        406
    );
    let form = clinic
        .anybody
        .post(clinic.url("/fhir/Patient/_search"))
        .bearer_auth(&narrow)
        .body("name=nobody");
    let form = form.header("content-type", "application/x-www-form-urlencoded");
    assert_eq!(status(form).await, 200);
    assert_eq!(status(clinic.anybody.get(clinic.url("/fhir/metadata"))).await, 200);
    for open in [
        "/healthz",
        "/metrics",
        "/readyz",
        "/api/v1/chain/head",
        "/api/v1/chain/blocks/0",
        "/api/v1/peers",
    ] {
        assert_eq!(status(clinic.get(open)).await, 200, "{open}");
    }
    assert_eq!(status(clinic.get("/api/v1/chain/blocks/9")).await, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validator_is_given_proof_of_a_payload_and_nobody_else() {
    let clinic = Clinic::open().await;
    clinic.enrol().await;
    let (bundle, submission) = clinic.submission(1);
    assert_eq!(clinic.submit(&clinic.gateway, submission.clone()).await.status(), 202);
    clinic.receipt(&bundle).await;
    let payload = Submission::decode(&submission).expect("a submission").into_parts().1;
    let cid = record::canonical::cid_of(&payload);
    let asked = Challenge::to([7; 32], vec![cid, record::canonical::cid_of(b"absent")]).expect("two payloads");
    let ask = async |by: &Client, body: Vec<u8>| {
        let request = by
            .post(clinic.url("/api/v1/possession"))
            .header("content-type", record::canonical::MEDIA_TYPE);
        request.body(body).send().await.expect("answers")
    };
    for by in [&clinic.anybody, &clinic.gateway] {
        assert_eq!(ask(by, asked.encode()).await.status(), 403);
    }
    let mut altered = asked.encode();
    altered.push(0);
    assert_eq!(ask(&clinic.node, altered).await.status(), 422);
    assert_eq!(ask(&clinic.node, vec![0; 5_000]).await.status(), 413);
    let answered = ask(&clinic.node, asked.encode()).await;
    assert_eq!(answered.status(), 200);
    let network = clinic.genesis.network();
    let body_bytes = answered.bytes().await.expect("a body");
    let answer = Answer::decode(&body_bytes, &network, &asked).expect("genuine");
    assert_eq!(answer.validator, clinic.genesis.validators[0].key);
    let proof = asked.proof(&network, &answer.validator, &payload);
    assert_eq!(answer.proofs, [Some(proof), None]);

    let report = body(clinic.get("/api/v1/possession").send().await.expect("answers")).await;
    assert_eq!((&report["missing"], &report["peers"]), (&json!(0), &json!([])));
    let address = format!("/api/v1/possession/{cid}");
    assert_eq!(clinic.get(&address).send().await.expect("answers").status(), 401);
    let token = clinic.token("insurer-b", "system/Patient.read");
    let holders = clinic.get(&address).bearer_auth(&token).send().await.expect("answers");
    assert_eq!(body(holders).await["here"], json!(true));
    let absent = format!("/api/v1/possession/{}", record::canonical::cid_of(b"absent"));
    let told = clinic.get(&absent).bearer_auth(&token).send().await.expect("answers");
    assert_eq!(told.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_key_is_as_unknown_and_its_certificate_holds() {
    let clinic = Clinic::with_readings().await;
    let key = clinic.subject_key.id();
    let (_, submission) = clinic.submission(4);
    let submitted = Submission::decode(&submission).expect("ours").commitment().cid;
    assert_eq!(clinic.submit(&clinic.gateway, submission).await.status(), 202);
    let block = |client: &Client| client.get(clinic.url(&format!("/ipfs/{submitted}?format=raw"))).send();
    assert_eq!(block(&clinic.node).await.expect("answers").status(), 200);
    let address = format!("/api/v1/erasures/{key}");
    let asked = clinic.get(&address).send().await.expect("answers");
    assert_eq!(asked.status(), 404, "it is not erased");
    let malformed = clinic.get("/api/v1/erasures/abc").send().await.expect("answers");
    assert_eq!(malformed.status(), 400);

    assert_eq!(
        clinic.decide(Action::Erase(Erasure { key })).await["outcome"],
        "applied"
    );
    let certificate = clinic.get(&format!("{address}/certificate?wait_ms=20000"));
    let certificate = certificate.send().await.expect("answers");
    assert_eq!(certificate.status(), 200);
    let text = certificate.text().await.expect("text");
    let verified = Certificate::verify(&text, &Committees::founding(&clinic.genesis)).expect("holds");
    assert_eq!((verified.payloads, verified.confirmed.len()), (4, 1));
    let far = body(clinic.get(&address).send().await.expect("answers")).await;
    assert_eq!(
        (&far["complete"], &far["confirmed"][0]["private_half"]),
        (&json!(true), &json!("destroyed"))
    );
    assert_eq!(far["confirmed"][0]["organization"], "hospital-a");

    let (status, patient) = clinic
        .ask("hospital-a", &format!("/fhir/Patient/{}", clinic.patient))
        .await;
    let unknown = clinic
        .ask("hospital-a", &format!("/fhir/Patient/{}", SubjectId::random()))
        .await;
    assert_eq!(
        (status, &patient["issue"]),
        (404, &unknown.1["issue"]),
        "as one who never was"
    );
    assert_eq!(
        clinic.ask("hospital-a", "/fhir/Observation?_count=0").await.1["total"],
        0
    );
    let gone = block(&clinic.node).await.expect("answers");
    assert_eq!(gone.status(), 410);
    let late = clinic.submit(&clinic.gateway, clinic.submission(5).1).await;
    assert_eq!(late.status(), 422);
    let late = body(late).await.to_string();
    assert!(late.contains("was erased, which is for good"), "{late}");
}
