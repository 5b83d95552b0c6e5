//! Forms of what is agreed: genesis, policy, transactions of every kind, blocks, state, admission, receipt.

use ledger::{
    admission::{Admission, Submission},
    block::{Block, Header, Height},
    committee::{Change, Voice, digest_of},
    document::DocumentCommitment,
    erasure::{self, Certificate},
    genesis::{Address, Genesis, Organization, Role, Validator},
    handover::{Committees, Handover, Handovers},
    holding::{Answer, Challenge},
    policy::ValidityPolicy,
    possession::Possession,
    proof::{Finalization, Inclusion, Receipt, Vote, vote_message},
    state::{Finals, Outcome, Refused, State},
    transaction::{
        Action, Author, Commitment, Confirmation, DeviceEnrolment, Erasure, GatewayEnrolment, Grant, PrivateHalf,
        Rotation, SignedTransaction, Transaction,
    },
};
use record::{
    bundle::SealedBundle,
    canonical::{self, Digest, Domain},
    signature::SigningKey,
};
use serde_bytes::ByteBuf;

use crate::{
    Form, fixed, form, key,
    measured::{document, network, root, sealed, subject_key},
    named, text,
};

/// Seeds of the organisations' keys; the validators' are ten higher.
const MEMBERS: [(u8, &str, Role); 4] = [
    (11, "hospital-a", Role::Provider),
    (12, "hospital-b", Role::Provider),
    (13, "insurer", Role::Payer),
    (14, "supplier", Role::Supplier),
];
const GATEWAY: u8 = 31;

fn genesis() -> Genesis {
    let organization = |(seed, id, role): (u8, &str, Role)| Organization {
        id: named(id),
        name: id.to_uppercase(),
        role,
        key: key(seed).public(),
    };
    let validator = |(seed, id, _): (u8, &str, Role)| Validator {
        organization: named(id),
        key: key(seed + 10).public(),
        tls: tls(seed),
        address: None,
    };
    Genesis {
        name: "golden".to_owned(),
        founded_ms: 1_789_000_000_000,
        organizations: MEMBERS.map(organization).to_vec(),
        validators: MEMBERS.map(validator).to_vec(),
        policy: ValidityPolicy::default(),
    }
}

fn tls(seed: u8) -> Digest {
    Digest::of(Domain::TLS_KEY, &[&[seed]])
}

fn signed(author: Author, sequence: u64, action: Action, by: &SigningKey) -> SignedTransaction {
    let network = genesis().network();
    Transaction {
        network,
        author,
        sequence,
        action,
    }
    .sign(by)
}

fn decided(sequence: u64, action: Action) -> SignedTransaction {
    signed(Author::Organization(named("hospital-a")), sequence, action, &key(11))
}

fn commit() -> SignedTransaction {
    let commitment = Commitment::to(&sealed().encode(), &sealed(), root(), 1_790_000_000_000);
    signed(
        Author::Gateway(named("home-1")),
        0,
        Action::Commit(commitment),
        &key(GATEWAY),
    )
}

/// Stands by itself: the pinned block is older than documents.
fn commit_document() -> SignedTransaction {
    let document = DocumentCommitment {
        cid: canonical::cid_of(&document()),
        key: subject_key().id(),
        bytes: document().len() as u64,
        bucket: 497_222,
    };
    let author = Author::Gateway(named("desk-1"));
    signed(author, 0, Action::CommitDocument(document), &key(GATEWAY))
}

/// One of each kind but one, in an order in which each takes effect.
fn transactions() -> Vec<(&'static str, SignedTransaction)> {
    let gateway = GatewayEnrolment {
        gateway: named("home-1"),
        key: key(GATEWAY).public(),
        tls: tls(GATEWAY),
    };
    let (network, home, oximeter) = (genesis().network(), named("home-1"), named("oximeter-1"));
    let rotation = Rotation {
        device: named("oximeter-1"),
        from: key(1).public(),
        to: key(2).public(),
        proof: Possession::prove(&network, (&home, &oximeter), &key(2)),
        overlap_ms: 3_600_000,
    };
    let device = DeviceEnrolment::of(&network, (home, oximeter), &key(1));
    let grant = Grant {
        key: subject_key().id(),
        grantee: named("insurer"),
    };
    let fifth = Validator {
        organization: named("hospital-b"),
        key: key(25).public(),
        tls: tls(15),
        address: Some(Address {
            consensus: "192.0.2.5:8501".to_owned(),
            http: "https://192.0.2.5:8401".to_owned(),
        }),
    };
    let voice = Voice {
        change: Change::Seat(fifth),
        epoch: 0,
    };
    vec![
        ("enrol-gateway", decided(1, Action::EnrolGateway(gateway))),
        ("enrol-device", decided(2, Action::EnrolDevice(device))),
        ("announce-key", decided(3, Action::AnnounceKey(subject_key()))),
        ("grant", decided(4, Action::Grant(grant.clone()))),
        ("revoke", decided(5, Action::Revoke(grant))),
        ("commit", commit()),
        ("rotate-device", decided(7, Action::RotateDevice(rotation))),
        ("revoke-device", decided(8, Action::RevokeDevice(named("oximeter-1")))),
        ("revoke-gateway", decided(9, Action::RevokeGateway(named("home-1")))),
        ("voice", decided(6, Action::Voice(voice))),
    ]
}

fn block() -> Block {
    let genesis = genesis();
    let transactions = transactions().into_iter().map(|(_, transaction)| transaction).collect();
    let mut block = Block {
        header: Block::genesis(&genesis).header,
        transactions,
    };
    block.header.parent = block.header.digest();
    block.header.height = Height(1);
    block.header.view = 2;
    block.header.timestamp_ms += 1_000;
    block.header.transactions_root = block.transactions_root();
    block.header = genesis.policy.mine(block.header).0;
    block
}

struct Nothing;

impl Finals for Nothing {
    fn contains(&self, _: &Digest) -> bool {
        false
    }
}

fn state() -> State {
    let mut state = State::genesis(&genesis());
    let outcomes = state.apply(&block(), &Nothing);
    assert!(outcomes.iter().all(|o| *o == Outcome::Applied), "{outcomes:?}");
    state
}

/// The votes of three of the four founders.
fn votes(header: &Header) -> Finalization {
    let message = vote_message(header);
    let mut voters: Vec<_> = MEMBERS.map(|(seed, ..)| key(seed + 10)).into();
    voters.sort_by_key(SigningKey::public);
    let vote = |voter: &SigningKey| Vote {
        validator: voter.public(),
        signature: voter.sign_raw(&message),
    };
    Finalization {
        votes: voters.iter().take(3).map(vote).collect(),
    }
}

fn receipt() -> Receipt {
    let block = block();
    let votes = votes(&block.header);
    Receipt::of(&block, 5, vec![], votes).expect("the sixth is the commitment")
}

fn challenge() -> Challenge {
    let cid = commit().commitment().expect("it is one").cid;
    Challenge::to([7; 32], vec![cid, canonical::cid_of(b"absent")]).expect("two payloads")
}

/// The first payload is there, the second is not.
fn answered() -> Answer {
    let proof = challenge().proof(&genesis().network(), &key(21).public(), &sealed().encode());
    Answer::sign(
        &genesis().network(),
        &challenge(),
        (Height(1), vec![Some(proof), None]),
        &key(21),
    )
}

/// The founders hand over to three of them.
fn handovers() -> Handovers {
    let validators: Vec<_> = genesis().committee().into_iter().take(3).collect();
    let mut header = block().header;
    header.next_validators = digest_of(&validators);
    let handover = Handover {
        finalization: votes(&header),
        header,
        validators,
    };
    Handovers {
        handovers: vec![handover],
        ..Handovers::none(&genesis())
    }
}

/// The key of the one commitment is erased: the tombstone, then the word of each validator, by their keys.
fn erasure_of() -> Vec<SignedTransaction> {
    let erasure = Erasure {
        key: subject_key().id(),
    };
    let tombstone = signed(
        Author::Organization(named("hospital-a")),
        0,
        Action::Erase(erasure),
        &key(11),
    );
    let commitment = commit().commitment().expect("it is one").clone();
    let word = |validator: &SigningKey| {
        let confirmation = Confirmation {
            key: commitment.key,
            tombstone: tombstone.id(),
            payloads: 1,
            cids: erasure::digest_of(&[commitment.cid].into()),
            private_half: if validator.public() == key(21).public() {
                PrivateHalf::Destroyed
            } else {
                PrivateHalf::NeverHeld
            },
        };
        let author = Author::Validator(validator.public());
        signed(author, 0, Action::ConfirmErasure(confirmation), validator)
    };
    let mut validators: Vec<_> = MEMBERS.map(|(seed, ..)| key(seed + 10)).into();
    validators.sort_by_key(SigningKey::public);
    let words: Vec<_> = validators.iter().map(word).collect();
    std::iter::once(tombstone).chain(words).collect()
}

/// The block after the one above, with all of that in it.
fn erasing_block() -> Block {
    let genesis = genesis();
    let mut block = Block {
        header: block().header,
        transactions: erasure_of(),
    };
    block.header.parent = block.header.digest();
    block.header.height = Height(2);
    block.header.view = 3;
    block.header.timestamp_ms += 1_000;
    block.header.transactions_root = block.transactions_root();
    block.header = genesis.policy.mine(block.header).0;
    block
}

fn erased_state() -> State {
    let mut state = state();
    let outcomes = state.apply(&erasing_block(), &Nothing);
    assert!(outcomes.iter().all(|o| *o == Outcome::Applied), "{outcomes:?}");
    state
}

fn certificate() -> Certificate {
    let block = erasing_block();
    let inclusion = |at| Inclusion::of(&block, at, vec![], votes(&block.header)).expect("it is there");
    Certificate {
        key: subject_key().id(),
        tombstone: inclusion(0),
        confirmations: (1..=MEMBERS.len()).map(inclusion).collect(),
    }
}

fn admission() -> Admission {
    Admission::sign(SealedBundle::id_of(&sealed().encode()), 1_790_000_000_500, &key(21))
}

pub(crate) fn bytes() -> Vec<Form> {
    let last = ("commit-document", commit_document());
    let kinds = transactions().into_iter().chain([last]).map(|(name, t)| {
        let survives = SignedTransaction::decode(&t.encode()).is_ok_and(|read| read == t);
        Form {
            survives,
            ..fixed(name, &t.encode())
        }
    });
    let submission = Submission {
        transaction: commit(),
        payload: ByteBuf::from(sealed().encode()),
    };
    let outcomes = [Outcome::Applied, Outcome::Refused(Refused::AlreadyFinal)];
    let rest = vec![
        form("genesis", &genesis()),
        fixed("network", genesis().network().0.as_bytes()),
        form("policy", &genesis().policy),
        fixed("policy-id", genesis().policy.id().as_bytes()),
        fixed("transaction-id", commit().id().0.as_bytes()),
        fixed("transaction-leaf", commit().leaf().as_bytes()),
        fixed("genesis-block", Block::genesis(&genesis()).header.digest().as_bytes()),
        form("block", &block()),
        fixed("block-digest", block().header.digest().as_bytes()),
        form("outcomes", &outcomes.to_vec()),
        form("register", state().register()),
        fixed("state-digest", state().digest().as_bytes()),
        form("submission", &submission),
        form("admission", &admission()),
        fixed("vote-message", &vote_message(&block().header)),
        form("challenge", &challenge()),
        form("challenge-answer", &answered()),
        fixed(
            "document-id",
            DocumentCommitment::id_of(&canonical::cid_of(&document())).0.as_bytes(),
        ),
        fixed("erase", &erasure_of()[0].encode()),
        fixed("confirm-erasure", &erasure_of()[1].encode()),
        fixed("tombstone-id", erasure::tombstone_id(&subject_key().id()).as_bytes()),
        fixed(
            "confirmation-id",
            erasure::confirmation_id(&subject_key().id(), &key(21).public()).as_bytes(),
        ),
        form("register-erased", erased_state().register()),
        fixed("state-digest-erased", erased_state().digest().as_bytes()),
    ];
    kinds.chain(rest).collect()
}

pub(crate) fn texts() -> Vec<Form> {
    vec![
        text("genesis", &genesis()),
        text("admission", &admission()),
        text("validators", &Handovers::none(&genesis())),
        text("handovers", &handovers()),
        text("receipt", &receipt()),
        text("certificate-of-erasure", &certificate()),
    ]
}

#[test]
fn the_pinned_receipt_proves_its_bundle() {
    let verified = Receipt::verify(&receipt().to_json(), &Committees::founding(&genesis())).expect("genuine");
    assert_eq!(verified.bundle(), SealedBundle::id_of(&sealed().encode()));
    assert_eq!(verified.votes(), 3);
}

#[test]
fn the_pinned_certificate_of_erasure_names_every_validator() {
    let committees = Committees::founding(&genesis());
    let verified = Certificate::verify(&certificate().to_json(), &committees).expect("genuine");
    assert_eq!((verified.payloads, verified.confirmed.len()), (1, MEMBERS.len()));
}

#[test]
fn the_pinned_handover_is_proven() {
    let committees = Committees::of(handovers()).expect("proven");
    assert_eq!(
        (committees.at(0).validators.len(), committees.at(1).validators.len()),
        (4, 3)
    );
}

#[test]
fn the_pinned_block_meets_the_policy() {
    let genesis = genesis();
    let parent = Block::genesis(&genesis).header;
    assert!(genesis.policy.verify(block(), &parent, &genesis.sitting()).is_ok());
}

#[test]
fn the_pinned_submission_and_admission_are_genuine() {
    let submission = Submission {
        transaction: commit(),
        payload: ByteBuf::from(sealed().encode()),
    };
    assert!(Submission::decode(&submission.encode()).is_ok());
    assert!(admission().is_genuine());
    assert_ne!(
        genesis().network(),
        network(),
        "the payload was sealed for a network of its own"
    );
}
