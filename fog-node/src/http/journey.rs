//! The door with the real rooms behind it: enrol, hand in, prove, ask; only the engine is replaced, by one validator's votes.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use jsonwebtoken::{Algorithm, EncodingKey, Header as TokenHeader};
use ledger::{
    admission::{Admission, Submission},
    block::{Block, FinalizedBlock},
    genesis::{Genesis, Organization, Role, Validator},
    policy::ValidityPolicy,
    proof::{Finalization, Receipt, ValidatorSet, Vote, vote_message},
    transaction::{
        Action, Author, Commitment, DeviceEnrolment, GatewayEnrolment, Grant, SignedTransaction, Transaction,
    },
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use record::{
    bundle::{Bundle, Category, Entry, SealedBundle, SubjectKey, SubjectSecret},
    canonical::Digest,
    fhir::Patient,
    ids::{BootId, BundleId, OrganizationId, SubjectId},
    reading::{Measured, MeasurementState, Reading, TimeQuality, VERSION},
    signature::SigningKey,
};
use reqwest::{Client, RequestBuilder, Response};
use rustls::{RootCertStore, pki_types::PrivateKeyDer};
use serde_json::{Value as Json, json};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Config, Context, Rooms, caller::Peer, server::Identity};
use crate::{
    chain::{self, Chain},
    index::{self, Index},
    intake::{self, Intake},
    keyring::{Holding, Keyring, Passphrase},
    mempool::{self, Mempool},
    projection::Projection,
    query::{self, Query},
    telemetry::{self, Telemetry},
    vault::{self, Vault},
};

/// A network of one node: hospital-a keeps the patient, insurer-b is a member without a grant.
struct Clinic {
    _dir: tempfile::TempDir,
    _stop: DropGuard,
    address: SocketAddr,
    genesis: Genesis,
    key: SigningKey,
    device: SigningKey,
    subject_key: SubjectKey,
    patient: SubjectId,
    node: Client,
    gateway: Client,
    gateway_tls: Digest,
    anybody: Client,
}

/// One CA and certificates of it.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut ca = CertificateParams::new(vec![]).expect("names");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(ca, KeyPair::generate().expect("a key")).expect("a CA"))
    }

    fn issue(&self) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("names");
        let leaf = leaf.signed_by(&key, &self.0).expect("a certificate");
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a root");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        Identity {
            chain: vec![leaf.der().clone()],
            key,
            roots: Arc::new(roots),
        }
    }
}

fn client(identity: &Identity) -> Client {
    let tls = identity.client().expect("fits");
    Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .build()
        .expect("a client")
}

fn anybody(identity: &Identity) -> Client {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("known");
    let tls = tls.with_root_certificates(identity.roots.clone()).with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .build()
        .expect("a client")
}

fn telemetry() -> Telemetry {
    static ONCE: OnceLock<Telemetry> = OnceLock::new();
    ONCE.get_or_init(|| Telemetry::start(&telemetry::Config::default()).expect("once in this process"))
        .clone()
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn organization(id: &str) -> OrganizationId {
    id.parse().expect("good")
}

fn founded(key: &SigningKey, tls: Digest) -> Genesis {
    let member = |id: &str, role| Organization {
        id: organization(id),
        name: id.to_owned(),
        role,
        key: key.public(),
    };
    Genesis {
        name: "test".to_owned(),
        founded_ms: u64::try_from(now_ms()).expect("after 1970"),
        organizations: vec![member("hospital-a", Role::Provider), member("insurer-b", Role::Payer)],
        validators: vec![Validator {
            organization: organization("hospital-a"),
            key: key.public(),
            tls,
        }],
        policy: ValidityPolicy::default(),
    }
}

/// The engine's stand-in: whatever waits becomes the next block, with the one validator's vote.
async fn finalize(chain: Chain, mempool: Mempool, genesis: Genesis, key: SigningKey) {
    loop {
        mempool.wait_for_work().await;
        let transactions = mempool.pick(&Default::default(), 100);
        let ids: Vec<_> = transactions.iter().map(SignedTransaction::id).collect();
        let head = chain.head();
        let mut block = Block {
            header: Block::genesis(&genesis).header,
            transactions,
        };
        block.header.height = head.height.next();
        block.header.parent = head.digest;
        block.header.timestamp_ms = head.timestamp_ms.max(u64::try_from(now_ms()).expect("after 1970")) + 1;
        block.header.transactions_root = block.transactions_root();
        let (header, digest) = genesis.policy.mine(block.header);
        block.header = header;
        let vote = Vote {
            validator: key.public(),
            signature: key.sign_raw(&vote_message(&block.header)),
        };
        let finalization = Some(Finalization { votes: vec![vote] });
        chain
            .append(FinalizedBlock {
                block,
                digest,
                finalization,
            })
            .await
            .expect("appends");
        mempool.remove(&ids);
    }
}

impl Clinic {
    async fn open() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (key, authority) = (SigningKey::random(), Authority::new());
        let (identity, gateway) = (authority.issue(), authority.issue());
        let genesis = founded(&key, Peer::identity(&identity.chain[0]).expect("parses"));
        let patient = Patient {
            id: SubjectId::random(),
            family: "Jansen".to_owned(),
            given: "Mieke".to_owned(),
            gender: "female".to_owned(),
            birth_date: "1950-01-01".to_owned(),
        };
        let (secret, subject_key) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
        let holding = Holding {
            key: subject_key.clone(),
            secret,
            patient: patient.clone(),
        };
        let passphrase = Passphrase::new("correct horse battery".to_owned().into()).expect("long enough");
        let keyring = Keyring::create(&dir.path().join("keyring.sealed"), &passphrase, vec![holding]).expect("creates");
        let chain = Chain::open(&chain::Config::default(), dir.path(), &genesis).expect("opens");
        let vault = Vault::open(&vault::Config::default(), dir.path(), client(&identity))
            .await
            .expect("opens");
        let index = Index::open(&index::Config::default(), dir.path()).await.expect("opens");
        let mempool = Mempool::new(&mempool::Config::default());
        tokio::spawn(Projection::new(chain.clone(), vault.clone(), index.clone(), keyring.clone()).run());
        tokio::spawn(finalize(chain.clone(), mempool.clone(), genesis.clone(), key.clone()));
        let rooms = Rooms {
            intake: Intake::new(
                &intake::Config::default(),
                key.clone(),
                chain.clone(),
                mempool.clone(),
                vault.clone(),
            ),
            query: Query::new(
                &query::Config::default(),
                chain.clone(),
                vault.clone(),
                index.clone(),
                keyring,
            ),
            telemetry: telemetry(),
            consensus_runs: watch::channel(true).1,
            chain,
            mempool,
            vault,
            index,
        };
        let (listener, stop) = (
            TcpListener::bind("127.0.0.1:0").await.expect("a port"),
            CancellationToken::new(),
        );
        let address = listener.local_addr().expect("bound");
        let config = Config {
            listen: address,
            ..Config::default()
        };
        let (node, anybody) = (client(&identity), anybody(&identity));
        let context = Context::new(config, genesis.clone(), key.public(), rooms);
        let shutdown = stop.clone();
        tokio::spawn(async move {
            super::serve(listener, &identity, context, shutdown)
                .await
                .expect("fits")
        });
        Self {
            _dir: dir,
            _stop: stop.drop_guard(),
            address,
            genesis,
            key,
            device: SigningKey::random(),
            subject_key,
            patient: patient.id,
            node,
            gateway_tls: Peer::identity(&gateway.chain[0]).expect("parses"),
            gateway: client(&gateway),
            anybody,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// An organisation's decision, handed in and waited for.
    async fn decide(&self, action: Action) -> Json {
        let author = Author::Organization(organization("hospital-a"));
        let transaction = Transaction {
            network: self.genesis.network(),
            author,
            sequence: 0,
            action,
        }
        .sign(&self.key);
        let request = self
            .anybody
            .post(self.url("/api/v1/transactions"))
            .header("content-type", super::bundles::DAG_CBOR);
        let answer = request.body(transaction.encode()).send().await.expect("answers");
        assert_eq!(answer.status(), 202);
        let id = body(answer).await["id"].as_str().expect("text").to_owned();
        body(
            self.get(&format!("/api/v1/transactions/{id}?wait_ms=10000"))
                .send()
                .await
                .expect("answers"),
        )
        .await
    }

    async fn enrol(&self) {
        let gateway = "home-1".parse().expect("good");
        let device = DeviceEnrolment {
            device: "cuff-1".parse().expect("good"),
            key: self.device.public(),
            gateway,
        };
        let gateway = GatewayEnrolment {
            gateway: device.gateway.clone(),
            key: self.key.public(),
            tls: self.gateway_tls,
        };
        for action in [
            Action::EnrolGateway(gateway),
            Action::EnrolDevice(device),
            Action::AnnounceKey(self.subject_key.clone()),
        ] {
            assert_eq!(self.decide(action).await["outcome"], "applied");
        }
    }

    /// A submission of one message: a pulse and two pressures.
    fn submission(&self, seq: u64) -> (BundleId, Vec<u8>) {
        let measured = |code: &str, value: &str, unit: &str| Measured {
            code: code.to_owned(),
            value: Some(value.parse().expect("decimal")),
            samples: None,
            unit: unit.to_owned(),
            state: MeasurementState::Valid,
        };
        let reading = Reading {
            v: VERSION,
            device: "cuff-1".parse().expect("good"),
            boot: BootId { counter: 1, random: 2 },
            seq,
            up_ms: 1,
            wall: Some(1_790_000_000_000 + i64::try_from(seq).expect("small") * 60_000),
            time_quality: TimeQuality::Synced,
            observations: vec![
                measured("8480-6", "128", "mm[Hg]"),
                measured("8462-4", "82", "mm[Hg]"),
                measured("8867-4", "61", "/min"),
            ],
        };
        let bundle = Bundle::new(vec![Entry {
            received_ms: now_ms(),
            reading: reading.sign(&self.device),
        }]);
        let author = "home-1".parse().expect("good");
        let sealed = SealedBundle::seal(&self.genesis.network(), &author, &self.subject_key, &bundle).expect("seals");
        let payload = sealed.encode();
        let commitment = Commitment::to(&payload, &sealed, (bundle.root(), 1), now_ms());
        let id = commitment.bundle;
        let (author, action) = (Author::Gateway(author), Action::Commit(commitment));
        let transaction = Transaction {
            network: self.genesis.network(),
            author,
            sequence: 0,
            action,
        }
        .sign(&self.key);
        (
            id,
            Submission {
                transaction,
                payload: serde_bytes::ByteBuf::from(payload),
            }
            .encode(),
        )
    }

    async fn submit(&self, by: &Client, body: Vec<u8>) -> Response {
        let request = by
            .post(self.url("/api/v1/bundles"))
            .header("content-type", super::bundles::DAG_CBOR);
        request.body(body).send().await.expect("answers")
    }

    async fn receipt(&self, bundle: &BundleId) -> String {
        let answer = self
            .gateway
            .get(self.url(&format!("/api/v1/receipts/{bundle}?wait_ms=10000")))
            .send()
            .await
            .expect("answers");
        assert_eq!(answer.status(), 200);
        answer.text().await.expect("text")
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.anybody.get(self.url(path))
    }

    fn token(&self, organization: &str, scope: &str) -> String {
        let claims = json!({"iss": organization, "sub": "ward", "aud": self.genesis.network().to_string(),
            "scope": scope, "exp": now_ms() / 1_000 + 300});
        let header = TokenHeader {
            typ: Some("at+jwt".to_owned()),
            ..TokenHeader::new(Algorithm::EdDSA)
        };
        let key = EncodingKey::from_ed_pem(self.key.to_pem().expect("encodes").as_bytes()).expect("a key");
        jsonwebtoken::encode(&header, &claims, &key).expect("signs")
    }

    /// What an organisation is answered to a FHIR question.
    async fn ask(&self, organization: &str, path: &str) -> (u16, Json) {
        let token = self.token(organization, "system/Observation.rs system/Patient.read");
        let answer = self.get(path).bearer_auth(token).send().await.expect("answers");
        (answer.status().as_u16(), body(answer).await)
    }

    /// Three readings, final and in the index.
    async fn with_readings() -> Self {
        let clinic = Self::open().await;
        clinic.enrol().await;
        for seq in 1..=3 {
            let (bundle, submission) = clinic.submission(seq);
            assert_eq!(clinic.submit(&clinic.gateway, submission).await.status(), 202);
            clinic.receipt(&bundle).await;
        }
        let visible = async {
            while clinic.ask("hospital-a", "/fhir/Observation?_count=0").await.1["total"] != 6 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), visible)
            .await
            .expect("visible in time");
        clinic
    }
}

async fn body(answer: Response) -> Json {
    serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON")
}

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
    let set: ValidatorSet = serde_json::from_value(set).expect("a set");
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
    let payload = {
        let (_, submission) = clinic.submission(1);
        Submission::decode(&submission).expect("matches").into_parts().1
    };
    let cid = record::canonical::cid_of(&payload);
    let push = |by: &Client| by.post(clinic.url("/api/v1/payloads")).body(payload.clone()).send();
    assert_eq!(push(&clinic.anybody).await.expect("answers").status(), 403);
    assert_eq!(push(&clinic.node).await.expect("answers").status(), 204);
    let pull = |by: &Client| by.get(clinic.url(&format!("/ipfs/{cid}?format=raw"))).send();
    assert_eq!(pull(&clinic.anybody).await.expect("answers").status(), 403);
    let pulled = pull(&clinic.node).await.expect("answers");
    assert_eq!(pulled.headers()["content-type"], "application/vnd.ipld.raw");
    assert_eq!(pulled.bytes().await.expect("a body"), payload);
    let inlined = clinic
        .node
        .get(clinic.url("/ipfs/bafkqaaa?format=raw"))
        .send()
        .await
        .expect("answers");
    assert_eq!(inlined.status(), 400);
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
