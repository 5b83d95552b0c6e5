//! A network on paper: its founders, its keys, and what they sign.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ledger::{
    committee::{Change, Voice},
    genesis::{Genesis, Organization, Role, Validator},
    handover::Committees,
    policy::ValidityPolicy,
    transaction::{Action, Author, Commitment, GatewayEnrolment, SignedTransaction, Transaction},
};
use record::{
    bundle::{self, Category, SealedBundle, SubjectKey},
    canonical::{self, Digest, Domain, cid_of},
    ids::KeyId,
    merkle,
    signature::SigningKey,
};
use serde::Serialize;
use serde_bytes::ByteBuf;

/// The shape of a sealed bundle whose inside nobody opens: sealing draws random numbers, and equal seeds must give equal runs.
#[derive(Serialize)]
struct Shape {
    v: u8,
    key: KeyId,
    category: Category,
    epoch: u32,
    author: &'static str,
    enc: ByteBuf,
    ciphertext: ByteBuf,
}

/// What stands in front of the 32 secret bytes in the PKCS#8 form of an ed25519 key.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A network with one organisation, one gateway and one subject key; equal seeds give equal networks.
pub(crate) struct Clinic {
    pub(crate) genesis: Genesis,
    pub(crate) validators: Vec<SigningKey>,
    organization: SigningKey,
    gateway: SigningKey,
    subject: SubjectKey,
}

/// The signing key with these secret bytes.
fn key(byte: u8) -> SigningKey {
    let body = BASE64_STANDARD.encode([PKCS8_PREFIX.as_slice(), &[byte; 32]].concat());
    SigningKey::from_pem(&format!(
        "-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"
    ))
    .expect("a key")
}

impl Clinic {
    pub(crate) fn of(validators: u8) -> Self {
        Self::founded(validators, 0, ValidityPolicy::default())
    }

    /// A network with so many founders, and keys for newcomers behind theirs.
    pub(crate) fn founded(founders: u8, newcomers: u8, policy: ValidityPolicy) -> Self {
        let organization = key(200);
        let id: record::ids::OrganizationId = "hospital-a".parse().expect("good");
        let keys: Vec<_> = (1..=founders + newcomers).map(key).collect();
        let genesis = Genesis {
            name: "simulated clinic".to_owned(),
            founded_ms: 0,
            organizations: vec![Organization {
                id: id.clone(),
                name: "Hospital A".to_owned(),
                role: Role::Provider,
                key: organization.public(),
            }],
            validators: keys
                .iter()
                .take(usize::from(founders))
                .map(|key| Validator {
                    organization: id.clone(),
                    key: key.public(),
                    tls: Digest::ZERO,
                    address: None,
                })
                .collect(),
            policy,
        };
        let subject = SubjectKey {
            public: vec![7; 32],
            category: Category::Vitals,
            epoch: 1,
        };
        Self {
            genesis,
            validators: keys,
            organization,
            gateway: key(201),
            subject,
        }
    }

    pub(crate) fn founders(&self) -> Committees {
        Committees::founding(&self.genesis)
    }

    /// What the gateway's commitments need to find on the chain.
    pub(crate) fn enrolments(&self) -> [SignedTransaction; 2] {
        let gateway = GatewayEnrolment {
            gateway: "home-1".parse().expect("good"),
            key: self.gateway.public(),
            tls: Digest::ZERO,
        };
        [Action::EnrolGateway(gateway), Action::AnnounceKey(self.subject.clone())].map(|action| {
            let author = Author::Organization(self.genesis.organizations[0].id.clone());
            Transaction {
                network: self.genesis.network(),
                author,
                sequence: 0,
                action,
            }
            .sign(&self.organization)
        })
    }

    /// What the founders' organisation asks to be given to one of its keys, but for the key.
    pub(crate) fn seat(&self, validator: usize) -> Validator {
        Validator {
            key: self.validators[validator].public(),
            // Each seat has a TLS key of its own; founders have none here.
            tls: Digest::of(Domain::TLS_KEY, &[b"a newcomer"]),
            ..self.genesis.validators[0].clone()
        }
    }

    /// The organisation's voice for a change.
    pub(crate) fn voice(&self, change: Change, epoch: u64) -> SignedTransaction {
        let transaction = Transaction {
            network: self.genesis.network(),
            author: Author::Organization(self.genesis.organizations[0].id.clone()),
            sequence: 0,
            action: Action::Voice(Voice { change, epoch }),
        };
        transaction.sign(&self.organization)
    }

    /// A commitment in the gateway's name that the gateway did not sign.
    pub(crate) fn forged(&self) -> SignedTransaction {
        self.commitment(u64::MAX, &self.organization).0
    }

    /// A payload and the gateway's commitment to it.
    pub(crate) fn bundle(&self, number: u64) -> (SignedTransaction, Vec<u8>) {
        self.commitment(number, &self.gateway)
    }

    fn commitment(&self, number: u64, signer: &SigningKey) -> (SignedTransaction, Vec<u8>) {
        let payload = canonical::encode(&Shape {
            v: bundle::VERSION,
            key: self.subject.id(),
            category: self.subject.category,
            epoch: self.subject.epoch,
            author: "home-1",
            enc: ByteBuf::new(),
            ciphertext: ByteBuf::from(number.to_be_bytes()),
        });
        let commitment = Commitment {
            bundle: SealedBundle::id_of(&payload),
            cid: cid_of(&payload),
            key: self.subject.id(),
            root: merkle::root(&[]),
            count: 0,
            bucket: 0,
        };
        let author = Author::Gateway("home-1".parse().expect("good"));
        let action = Action::Commit(commitment);
        let transaction = Transaction {
            network: self.genesis.network(),
            author,
            sequence: 0,
            action,
        };
        (transaction.sign(signer), payload)
    }
}
