//! Documents at the door, over HTTPS and with the real rooms behind it.

use std::{fs, path::Path, time::Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::stream;
use ledger::{
    document::DocumentCommitment,
    erasure::Certificate,
    handover::Committees,
    transaction::{Action, Author, Erasure, Grant, Transaction},
};
use record::{
    canonical::{self, MEDIA_TYPE},
    document::{Metadata, Sealer},
    ids::SubjectId,
    signature::SigningKey,
};
use reqwest::{Body, RequestBuilder, Response};

use super::clinic::{Clinic, body, organization, rooms::DOCUMENT_BYTES_MAX};
use crate::documents::GRACE;

const SCOPE: &str = "system/Binary.cr";
/// Some segments and a part of one.
const BYTES: usize = 1_500_000;
/// What nobody who holds the sealed bytes may find in them.
const READABLE: &[u8] = b"%PDF-1.7 Mieke Jansen, thorax, two views";

fn document() -> Vec<u8> {
    let mut content: Vec<u8> = READABLE.iter().copied().cycle().take(BYTES).collect();
    for (at, byte) in content.iter_mut().enumerate().skip(READABLE.len()) {
        *byte = byte.wrapping_add((at / 7 % 3) as u8);
    }
    content
}

fn post(clinic: &Clinic, organization: &str, content: impl Into<Body>) -> RequestBuilder {
    let request = clinic.anybody.post(clinic.url("/fhir/Binary"));
    let request = request.bearer_auth(clinic.token(organization, SCOPE));
    let request = request.header("x-security-context", format!("Patient/{}", clinic.patient));
    request.header("content-type", "application/pdf").body(content)
}

fn get(clinic: &Clinic, organization: &str, id: &str) -> RequestBuilder {
    let request = clinic.get(&format!("/fhir/Binary/{id}"));
    request.bearer_auth(clinic.token(organization, SCOPE))
}

async fn status(request: RequestBuilder) -> u16 {
    request.send().await.expect("answers").status().as_u16()
}

fn id_of(answer: &Response, clinic: &Clinic) -> String {
    let location = answer.headers()["location"].to_str().expect("text");
    let id = location
        .strip_prefix(&clinic.url("/fhir/Binary/"))
        .expect("this node's");
    id.to_owned()
}

/// A clinic with one document.
async fn with_document() -> (Clinic, String, Vec<u8>) {
    let clinic = Clinic::open().await;
    clinic.open_desk().await;
    let content = document();
    let answer = post(&clinic, "hospital-a", content.clone())
        .send()
        .await
        .expect("answers");
    assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap_or_default());
    let answer = post(&clinic, "hospital-a", content.clone())
        .send()
        .await
        .expect("answers");
    assert_eq!(answer.status(), 201, "the same content again is another document");
    let id = id_of(&answer, &clinic);
    (clinic, id, content)
}

fn files(folder: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.extend(fs::read(&path));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_comes_back_byte_for_byte_and_by_ranges() {
    let (clinic, id, content) = with_document().await;
    let whole = get(&clinic, "hospital-a", &id).send().await.expect("answers");
    assert_eq!(whole.status(), 200);
    let headers = whole.headers().clone();
    assert_eq!(headers["content-type"], "application/pdf");
    assert_eq!(headers["content-length"], BYTES.to_string().as_str());
    assert_eq!(
        headers["x-security-context"],
        format!("Patient/{}", clinic.patient).as_str()
    );
    assert_eq!(headers["content-disposition"], "attachment");
    assert_eq!(headers["cache-control"], "no-store");
    assert!(whole.bytes().await.expect("whole") == content, "byte for byte");
    for (from, to) in [(0, 1), (65_530, 65_550), (262_100, 262_200), (BYTES - 3, BYTES)] {
        let asked = format!("bytes={from}-{}", to - 1);
        let part = get(&clinic, "hospital-a", &id)
            .header("range", asked)
            .send()
            .await
            .expect("answers");
        assert_eq!(part.status(), 206);
        let said = format!("bytes {from}-{}/{BYTES}", to - 1);
        assert_eq!(part.headers()["content-range"], said.as_str());
        assert_eq!(part.bytes().await.expect("a part"), &content[from..to]);
    }
    let beyond = get(&clinic, "hospital-a", &id).header("range", format!("bytes={BYTES}-"));
    assert_eq!(status(beyond).await, 416);
    let head = clinic.anybody.head(clinic.url(&format!("/fhir/Binary/{id}")));
    let head = head
        .bearer_auth(clinic.token("hospital-a", SCOPE))
        .send()
        .await
        .expect("answers");
    assert_eq!(head.headers()["content-length"], BYTES.to_string().as_str());
    let statement = body(clinic.get("/fhir/metadata").send().await.expect("answers")).await;
    let types = statement["rest"][0]["resource"].as_array().expect("types").clone();
    assert!(types.iter().any(|one| one["type"] == "Binary"), "{types:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_readable_of_a_document_is_on_the_disk() {
    let (clinic, id, content) = with_document().await;
    let files = files(clinic.dir.path());
    assert!(
        files.iter().map(Vec::len).sum::<usize>() > 2 * content.len(),
        "it is there"
    );
    let readable = |file: &Vec<u8>| file.windows(READABLE.len()).any(|window| window == READABLE);
    assert!(!files.iter().any(readable));
    let patient = clinic.patient.to_string();
    let named = |file: &Vec<u8>| file.windows(patient.len()).any(|window| window == patient.as_bytes());
    assert!(!files.iter().any(named), "nor whose it is");
    assert!(!id.contains(&patient));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_read_a_document_cannot_tell_it_from_none() {
    let (clinic, id, content) = with_document().await;
    let unknown = canonical::cid_of(b"another").to_string();
    let told = |organization: &'static str, id: String| {
        let request = get(&clinic, organization, &id);
        async move {
            let answer = request.send().await.expect("answers");
            (answer.status().as_u16(), answer.text().await.expect("text"))
        }
    };
    let stranger = told("insurer-b", id.clone()).await;
    assert_eq!(stranger.0, 404);
    assert_eq!(stranger, told("insurer-b", unknown.clone()).await);
    assert_eq!(stranger, told("hospital-a", unknown).await);
    assert_eq!(stranger, told("hospital-a", "nonsense".to_owned()).await);
    assert_eq!(status(clinic.get(&format!("/fhir/Binary/{id}"))).await, 401);
    let narrow = clinic.get(&format!("/fhir/Binary/{id}"));
    let narrow = narrow.bearer_auth(clinic.token("hospital-a", "system/Observation.rs"));
    assert_eq!(status(narrow).await, 403);
    let grant = Grant {
        key: clinic.clinical.id(),
        grantee: organization("insurer-b"),
    };
    assert_eq!(clinic.decide(Action::Grant(grant.clone())).await["outcome"], "applied");
    let read = get(&clinic, "insurer-b", &id).send().await.expect("answers");
    assert_eq!(read.status(), 200, "a grant opens it");
    assert!(read.bytes().await.expect("whole") == content);
    assert_eq!(clinic.decide(Action::Revoke(grant)).await["outcome"], "applied");
    assert_eq!(told("insurer-b", id).await, stranger, "and a revocation shuts it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_is_refused_with_what_to_change() {
    let clinic = Clinic::open().await;
    let small = || Bytes::from_static(READABLE);
    let refused = |request: RequestBuilder, expected: u16, word: &'static str| async move {
        let answer = request.send().await.expect("answers");
        let (status, text) = (answer.status().as_u16(), answer.text().await.expect("text"));
        assert!(status == expected && text.contains(word), "{status}: {text}");
    };
    let early = post(&clinic, "hospital-a", small());
    refused(early, 404, "no such patient").await;
    let announce = Action::AnnounceKey(clinic.subject_key.clone());
    assert_eq!(clinic.decide(announce).await["outcome"], "applied");
    refused(post(&clinic, "hospital-a", small()), 409, "clinical").await;
    let announce = Action::AnnounceKey(clinic.clinical.clone());
    assert_eq!(clinic.decide(announce).await["outcome"], "applied");
    refused(post(&clinic, "hospital-a", small()), 409, "does not know").await;
    refused(post(&clinic, "insurer-b", small()), 404, "no such patient").await;
    let somebody = post(&clinic, "hospital-a", small());
    let somebody = somebody.header("x-security-context", format!("Patient/{}", SubjectId::random()));
    refused(somebody, 400, "X-Security-Context").await;
    let read_only = clinic.anybody.post(clinic.url("/fhir/Binary")).body(small());
    refused(
        read_only.bearer_auth(clinic.token("hospital-a", "system/Binary.rs")),
        403,
        "Binary.c",
    )
    .await;
    let chunked = stream::iter([Ok::<_, std::io::Error>(small())]);
    refused(
        post(&clinic, "hospital-a", Body::wrap_stream(chunked)),
        411,
        "Content-Length",
    )
    .await;
    let giant = vec![7; usize::try_from(DOCUMENT_BYTES_MAX).expect("small") + 1];
    refused(post(&clinic, "hospital-a", giant), 413, "at most").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_document_is_served_as_a_resource_and_a_large_one_is_not() {
    let (clinic, large, _) = with_document().await;
    let answer = post(&clinic, "hospital-a", READABLE).send().await.expect("answers");
    let small = id_of(&answer, &clinic);
    let resource = |id: &str| get(&clinic, "hospital-a", id).header("accept", "application/fhir+json");
    let read = body(resource(&small).send().await.expect("answers")).await;
    assert_eq!(read["resourceType"], "Binary");
    assert_eq!(read["contentType"], "application/pdf");
    let data = STANDARD.decode(read["data"].as_str().expect("text")).expect("base64");
    assert_eq!(data, READABLE);
    assert_eq!(status(resource(&large)).await, 406);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_fills_a_nodes_disk_with_documents_of_his_own() {
    let (clinic, id, _) = with_document().await;
    let commit = |by: &SigningKey, cid| {
        let document = DocumentCommitment {
            cid,
            key: clinic.clinical.id(),
            bytes: 2_000_000,
            bucket: 0,
        };
        let transaction = Transaction {
            network: clinic.genesis.network(),
            author: Author::Gateway("desk-1".parse().expect("good")),
            sequence: 0,
            action: Action::CommitDocument(document),
        };
        transaction.sign(by).encode()
    };
    let told = |client: &reqwest::Client, body: Vec<u8>| {
        let request = client
            .post(clinic.url("/api/v1/documents"))
            .header("content-type", MEDIA_TYPE);
        status(request.body(body))
    };
    let cid = canonical::parse_cid(&id).expect("a root");
    let thief = SigningKey::random();
    assert_eq!(told(&clinic.anybody, commit(&thief, cid)).await, 403, "no node");
    assert_eq!(
        told(&clinic.node, commit(&thief, cid)).await,
        422,
        "not signed by the desk"
    );
    assert_eq!(told(&clinic.node, b"nonsense".to_vec()).await, 422);
    assert_eq!(
        told(&clinic.node, commit(&clinic.desk, cid)).await,
        422,
        "the root has another size"
    );
    assert!(
        clinic.vault.holds(&cid).await.expect("asks"),
        "who says so takes it from nobody"
    );
    let alias = canonical::cid_of(b"a bundle");
    assert_eq!(
        told(&clinic.node, commit(&clinic.desk, alias)).await,
        422,
        "no name that a document has"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_nobody_committed_to_goes_at_once_when_its_key_is_erased() {
    let mut clinic = Clinic::open().await;
    clinic.open_desk().await;
    let metadata = Metadata {
        media_type: "application/pdf".parse().expect("good"),
        bytes: 10,
    };
    let (author, network) = ("desk-1".parse().expect("good"), clinic.genesis.network());
    let (mut sealer, mut sealed) = Sealer::begin(&network, (&author, &clinic.clinical), &metadata).expect("begins");
    sealed.extend(sealer.push(&[1; 10]).expect("fits"));
    for padding in sealer.finish().expect("all is there") {
        sealed.extend(padding.expect("sealed"));
    }
    let kept = |content: Vec<u8>| {
        let vault = clinic.vault.clone();
        let content = stream::iter([Ok::<_, std::io::Error>(Bytes::from(content))]);
        async move { vault.put_object(content, u64::MAX).await.expect("kept").held.cid() }
    };
    let (sealed, other) = (kept(sealed).await, kept(document()).await);
    let now = Instant::now();
    clinic.leftovers.look(now).await.expect("looks");
    assert!(clinic.vault.holds(&sealed).await.expect("asks"), "it may be on its way");
    let key = clinic.clinical.id();
    assert_eq!(
        clinic.decide(Action::Erase(Erasure { key })).await["outcome"],
        "applied"
    );
    clinic.leftovers.look(now).await.expect("looks");
    assert!(!clinic.vault.holds(&sealed).await.expect("asks"));
    assert!(
        clinic.vault.holds(&other).await.expect("asks"),
        "of what is sealed to no such key nobody knows yet"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_nobody_committed_to_goes_after_a_while() {
    let (mut clinic, id, content) = with_document().await;
    let stray = stream::iter([Ok::<_, std::io::Error>(Bytes::from(document()))]);
    let stray = clinic.vault.put_object(stray, u64::MAX).await.expect("kept").held.cid();
    let final_one = canonical::parse_cid(&id).expect("a root");
    let (now, later) = (Instant::now(), Instant::now() + GRACE);
    clinic.leftovers.look(now).await.expect("looks");
    assert!(
        clinic.vault.holds(&stray).await.expect("asks"),
        "its commitment may be on its way"
    );
    clinic.leftovers.look(later).await.expect("looks");
    assert!(!clinic.vault.holds(&stray).await.expect("asks"));
    assert!(
        clinic.vault.holds(&final_one).await.expect("asks"),
        "what is final stays"
    );
    let read = get(&clinic, "hospital-a", &id).send().await.expect("answers");
    assert!(read.bytes().await.expect("whole") == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_whose_key_was_erased_is_gone_with_all_its_blocks() {
    let (clinic, id, content) = with_document().await;
    let (root, key) = (canonical::parse_cid(&id).expect("a root"), clinic.clinical.id());
    assert!(clinic.vault.holds(&root).await.expect("asks"));
    assert_eq!(
        clinic.decide(Action::Erase(Erasure { key })).await["outcome"],
        "applied"
    );
    let certificate = clinic.get(&format!("/api/v1/erasures/{key}/certificate?wait_ms=20000"));
    let certificate = certificate.send().await.expect("answers");
    assert_eq!(certificate.status(), 200);
    let text = certificate.text().await.expect("text");
    let verified = Certificate::verify(&text, &Committees::founding(&clinic.genesis)).expect("holds");
    assert_eq!(verified.payloads, 2, "both documents");
    assert_eq!(status(get(&clinic, "hospital-a", &id)).await, 404);
    assert!(!clinic.vault.holds(&root).await.expect("asks"));
    assert!(clinic.vault.is_erased(&root).await.expect("knows"));
    let again = status(post(&clinic, "hospital-a", content)).await;
    assert!((400..500).contains(&again), "nothing is sealed to it any more: {again}");
}
