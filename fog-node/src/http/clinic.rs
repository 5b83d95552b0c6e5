//! A network of one node, for tests: the door and all rooms are real; one validator's votes stand in for the engine.

#[cfg(test)]
pub(super) mod rooms;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use jsonwebtoken::{Algorithm, EncodingKey, Header as TokenHeader};
use ledger::{
    admission::MatchedSubmission,
    genesis::{Genesis, Organization, Role, Validator},
    policy::ValidityPolicy,
    transaction::{Action, Author, DeviceEnrolment, GatewayEnrolment, Transaction},
};
use record::{
    bundle::{Bundle, Category, Entry, SubjectKey, SubjectSecret},
    canonical::Digest,
    fhir::Patient,
    gaps::{GapReport, Range, SignedGapReport},
    ids::{BootId, BundleId, OrganizationId, SubjectId},
    reading::{Measured, MeasurementState, Reading, TimeQuality, VERSION},
    signature::SigningKey,
};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Config, Context,
    caller::Peer,
    tls::{Identity, tests::Authority},
};
use crate::{documents::Leftovers, index::tests::gap_report, keyring::Holding, vault::Vault};

/// A network of one node: hospital-a keeps the patient, insurer-b is a member without a grant.
pub(super) struct Clinic {
    pub(super) dir: tempfile::TempDir,
    _stop: DropGuard,
    address: SocketAddr,
    pub(super) genesis: Genesis,
    key: SigningKey,
    device: SigningKey,
    pub(super) desk: SigningKey,
    pub(super) subject_key: SubjectKey,
    pub(super) clinical: SubjectKey,
    pub(super) patient: SubjectId,
    pub(super) vault: Vault,
    pub(super) leftovers: Leftovers,
    pub(super) node: Client,
    pub(super) gateway: Client,
    gateway_tls: Digest,
    pub(super) anybody: Client,
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

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

pub(super) fn organization(id: &str) -> OrganizationId {
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
            address: None,
        }],
        policy: ValidityPolicy::default(),
    }
}

/// The keys of one patient, for vitals and for documents.
fn holdings() -> Vec<Holding> {
    let patient = Patient {
        id: SubjectId::random(),
        family: "Jansen".to_owned(),
        given: "Mieke".to_owned(),
        gender: "female".to_owned(),
        birth_date: "1950-01-01".to_owned(),
    };
    let holding = |category| {
        let (secret, key) = SubjectSecret::generate(category, 1).expect("random numbers");
        let patient = patient.clone();
        Holding { key, secret, patient }
    };
    [Category::Vitals, Category::Clinical].map(holding).into()
}

impl Clinic {
    pub(super) async fn open() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (key, desk, authority) = (SigningKey::random(), SigningKey::random(), Authority::new());
        let (identity, gateway) = (authority.issue(), authority.issue());
        let genesis = founded(&key, Peer::identity(&identity.chain[0]).expect("parses"));
        let holdings = holdings();
        let patient = holdings[0].patient.id;
        let (subject_key, clinical) = (holdings[0].key.clone(), holdings[1].key.clone());
        let rooms = rooms::open(dir.path(), &genesis, &key, (client(&identity), holdings, desk.clone())).await;
        let vault = rooms.vault.clone();
        let leftovers = Leftovers::new(rooms.chain.clone(), rooms.mempool.clone(), vault.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let config = Config {
            listen: address,
            ..Config::default()
        };
        let (node, anybody) = (client(&identity), anybody(&identity));
        let context = Context::new(config, genesis.clone(), key.public(), rooms);
        let stop = CancellationToken::new();
        let shutdown = stop.clone();
        tokio::spawn(async move {
            super::serve(listener, &identity, context, shutdown)
                .await
                .expect("fits")
        });
        Self {
            dir,
            _stop: stop.drop_guard(),
            address,
            genesis,
            key,
            device: SigningKey::random(),
            desk,
            subject_key,
            clinical,
            patient,
            vault,
            leftovers,
            node,
            gateway_tls: Peer::identity(&gateway.chain[0]).expect("parses"),
            gateway: client(&gateway),
            anybody,
        }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// An organisation's decision, handed in and waited for.
    pub(super) async fn decide(&self, action: Action) -> Json {
        let author = Author::Organization(organization("hospital-a"));
        let transaction = Transaction {
            network: self.genesis.network(),
            author,
            sequence: u64::try_from(now_ms()).expect("after 1970"),
            action,
        }
        .sign(&self.key);
        let request = self
            .anybody
            .post(self.url("/api/v1/transactions"))
            .header("content-type", record::canonical::MEDIA_TYPE);
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

    pub(super) async fn enrol(&self) {
        let place = ("home-1".parse().expect("good"), "cuff-1".parse().expect("good"));
        let device = DeviceEnrolment::of(&self.genesis.network(), place, &self.device);
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

    /// The desk is enrolled, and the patient's key for documents announced.
    pub(super) async fn open_desk(&self) {
        let desk = GatewayEnrolment {
            gateway: rooms::DESK.parse().expect("good"),
            key: self.desk.public(),
            tls: Digest::ZERO,
        };
        for action in [Action::EnrolGateway(desk), Action::AnnounceKey(self.clinical.clone())] {
            assert_eq!(self.decide(action).await["outcome"], "applied");
        }
    }

    /// A submission of one message: a pulse and two pressures.
    pub(super) fn submission(&self, seq: u64) -> (BundleId, Vec<u8>) {
        self.submission_with(seq, Vec::new())
    }

    /// What the gateway says at a time is missing of the device; nothing, if no range is.
    pub(super) fn report(&self, at_ms: i64, missing: &[Range]) -> SignedGapReport {
        let start = ("cuff-1".parse().expect("good"), BootId { counter: 1, random: 2 });
        let report = GapReport {
            network: self.genesis.network(),
            ..gap_report(start, at_ms, missing.to_vec())
        };
        report.sign(&self.key)
    }

    /// A submission of one message and of reports of what is missing.
    pub(super) fn submission_with(&self, seq: u64, gaps: Vec<SignedGapReport>) -> (BundleId, Vec<u8>) {
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
        let bundle = Bundle::new(vec![Entry::new(now_ms(), reading.sign(&self.device))]).with_gaps(gaps);
        let author = "home-1".parse().expect("good");
        let author = (&self.genesis.network(), &author, &self.key);
        let sealed = MatchedSubmission::seal(author, (&self.subject_key, &bundle), now_ms()).expect("seals");
        (sealed.commitment().bundle, sealed.encode())
    }

    pub(super) async fn submit(&self, by: &Client, body: Vec<u8>) -> Response {
        let request = by
            .post(self.url("/api/v1/bundles"))
            .header("content-type", record::canonical::MEDIA_TYPE);
        request.body(body).send().await.expect("answers")
    }

    pub(super) async fn receipt(&self, bundle: &BundleId) -> String {
        let answer = self
            .gateway
            .get(self.url(&format!("/api/v1/receipts/{bundle}?wait_ms=10000")))
            .send()
            .await
            .expect("answers");
        assert_eq!(answer.status(), 200);
        answer.text().await.expect("text")
    }

    pub(super) fn get(&self, path: &str) -> RequestBuilder {
        self.anybody.get(self.url(path))
    }

    pub(super) fn token(&self, organization: &str, scope: &str) -> String {
        let claims = json!({"iss": organization, "sub": "ward", "aud": self.genesis.network().to_string(),
            "scope": scope, "iat": now_ms() / 1_000, "exp": now_ms() / 1_000 + 300});
        let header = TokenHeader {
            typ: Some("at+jwt".to_owned()),
            ..TokenHeader::new(Algorithm::EdDSA)
        };
        let key = EncodingKey::from_ed_pem(self.key.to_pem().expect("encodes").as_bytes()).expect("a key");
        jsonwebtoken::encode(&header, &claims, &key).expect("signs")
    }

    /// What an organisation is answered to a FHIR question.
    pub(super) async fn ask(&self, organization: &str, path: &str) -> (u16, Json) {
        let token = self.token(organization, "system/Observation.rs system/Patient.read");
        let answer = self.get(path).bearer_auth(token).send().await.expect("answers");
        (answer.status().as_u16(), body(answer).await)
    }

    /// Three readings, final and in the index.
    pub(super) async fn with_readings() -> Self {
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

pub(super) async fn body(answer: Response) -> Json {
    serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON")
}
