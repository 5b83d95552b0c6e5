//! Erasure against an oracle in random histories, and certificates against everything that may be wrong with one.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use proptest::prelude::*;
use record::{
    bundle::{Bundle, Category, SealedBundle, SubjectKey, SubjectSecret},
    canonical::{self, Digest, Domain},
    signature::SigningKey,
};

use super::*;
use crate::{
    block::{
        Block,
        tests::{child, founded},
    },
    consent::authorize,
    genesis::Genesis,
    proof::{Finalization, Vote, vote_message},
    refused::Refused,
    state::{Finals, Outcome, State, identifiers},
    transaction::{Commitment, Erasure, GatewayEnrolment, Grant, SignedTransaction, Transaction},
};

struct Known(HashSet<Digest>);

impl Finals for Known {
    fn contains(&self, digest: &Digest) -> bool {
        self.0.contains(digest)
    }
}

/// Four members with a validator each; the first is custodian of every key, and operates the gateway.
struct World {
    keys: Vec<SigningKey>,
    gateway: SigningKey,
    genesis: Genesis,
    blocks: Vec<Block>,
    state: State,
    known: Known,
    subjects: Vec<SubjectKey>,
}

impl World {
    fn new(subjects: usize) -> Self {
        let mut keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
        keys.sort_by_key(SigningKey::public);
        let genesis = founded(&keys);
        let subject = |_| SubjectSecret::generate(Category::Vitals, 1).expect("random numbers").1;
        let mut world = Self {
            state: State::genesis(&genesis),
            blocks: vec![Block::genesis(&genesis)],
            gateway: SigningKey::random(),
            known: Known(HashSet::new()),
            subjects: (0..subjects).map(subject).collect(),
            genesis,
            keys,
        };
        let enrolment = GatewayEnrolment {
            gateway: "home-1".parse().expect("good"),
            key: world.gateway.public(),
            tls: Digest::ZERO,
        };
        let enrol = world.by(0, 1, Action::EnrolGateway(enrolment));
        assert_eq!(world.apply(vec![enrol]), [Outcome::Applied]);
        world
    }

    fn signed(&self, author: Author, sequence: u64, action: Action, key: &SigningKey) -> SignedTransaction {
        Transaction {
            network: self.genesis.network(),
            author,
            sequence,
            action,
        }
        .sign(key)
    }

    fn by(&self, organization: usize, sequence: u64, action: Action) -> SignedTransaction {
        let author = Author::Organization(format!("org-{organization}").parse().expect("good"));
        self.signed(author, sequence, action, &self.keys[organization])
    }

    fn announce(&self, subject: usize, sequence: u64) -> SignedTransaction {
        self.by(0, sequence, Action::AnnounceKey(self.subjects[subject].clone()))
    }

    fn erase(&self, organization: usize, subject: usize) -> SignedTransaction {
        let key = self.subjects[subject].id();
        self.by(organization, 0, Action::Erase(Erasure { key }))
    }

    fn commit(&self, subject: usize) -> SignedTransaction {
        let author: record::ids::GatewayId = "home-1".parse().expect("good");
        let bundle = Bundle::new(vec![]);
        let network = self.genesis.network();
        let sealed = SealedBundle::seal(&network, &author, &self.subjects[subject], &bundle).expect("seals");
        let commitment = Commitment::to(&sealed.encode(), &sealed, (bundle.root(), 1), 0);
        self.signed(Author::Gateway(author), 0, Action::Commit(commitment), &self.gateway)
    }

    fn confirm(&self, validator: usize, subject: usize, cids: &BTreeSet<Cid>) -> SignedTransaction {
        let confirmation = Confirmation {
            key: self.subjects[subject].id(),
            tombstone: self.erase(0, subject).id(),
            payloads: cids.len() as u64,
            cids: digest_of(cids),
            private_half: if validator == 0 {
                PrivateHalf::Destroyed
            } else {
                PrivateHalf::NeverHeld
            },
        };
        let key = &self.keys[validator];
        self.signed(
            Author::Validator(key.public()),
            0,
            Action::ConfirmErasure(confirmation),
            key,
        )
    }

    fn apply(&mut self, transactions: Vec<SignedTransaction>) -> Vec<Outcome> {
        let block = child(&self.genesis, self.blocks.last().expect("the genesis"), transactions);
        let outcomes = self.state.apply(&block, &self.known);
        for (transaction, outcome) in block.transactions.iter().zip(&outcomes) {
            if *outcome == Outcome::Applied {
                self.known.0.extend(identifiers(transaction));
            }
        }
        self.blocks.push(block);
        outcomes
    }

    fn outcome(&mut self, transaction: SignedTransaction) -> Option<Refused> {
        match self.apply(vec![transaction])[0] {
            Outcome::Applied => None,
            Outcome::Refused(why) => Some(why),
        }
    }

    /// The proof of a transaction, with the votes of three.
    fn inclusion(&self, id: TransactionId) -> Inclusion {
        let found = self.blocks.iter().find_map(|block| {
            let index = block.transactions.iter().position(|signed| signed.id() == id)?;
            Some((block, index))
        });
        let (block, index) = found.expect("it is in a block");
        let message = vote_message(&block.header);
        let vote = |key: &SigningKey| Vote {
            validator: key.public(),
            signature: key.sign_raw(&message),
        };
        let votes = self.keys.iter().take(3).map(vote).collect();
        Inclusion::of(block, index, vec![], Finalization { votes }).expect("it is there")
    }

    /// One key announced, committed to twice, erased, and confirmed by everybody.
    fn erased() -> (Self, Certificate) {
        let mut world = Self::new(1);
        let commits = [world.commit(0), world.commit(0)];
        let cids: BTreeSet<_> = commits.iter().map(|c| c.commitment().expect("it is one").cid).collect();
        let announce = world.announce(0, 2);
        world.apply(std::iter::once(announce).chain(commits).collect());
        let erase = world.erase(0, 0);
        assert_eq!(world.outcome(erase.clone()), None);
        let words: Vec<_> = (0..4).map(|v| world.confirm(v, 0, &cids)).collect();
        let ids: Vec<_> = words.iter().map(SignedTransaction::id).collect();
        assert_eq!(world.apply(words), [Outcome::Applied; 4]);
        let certificate = Certificate {
            key: world.subjects[0].id(),
            tombstone: world.inclusion(erase.id()),
            confirmations: ids.into_iter().map(|id| world.inclusion(id)).collect(),
        };
        (world, certificate)
    }
}

#[test]
fn an_erased_key_takes_nothing_more_and_never_comes_back() {
    let mut world = World::new(1);
    let key = world.subjects[0].id();
    let (custodian, reader) = ("org-0".parse().expect("good"), "org-1".parse().expect("good"));
    let grant = Grant {
        key,
        grantee: "org-1".parse().expect("good"),
    };
    assert_eq!(
        world.outcome(world.erase(0, 0)),
        Some(Refused::UnknownName),
        "not announced yet"
    );
    assert_eq!(world.outcome(world.announce(0, 2)), None);
    assert_eq!(world.outcome(world.by(0, 3, Action::Grant(grant.clone()))), None);
    assert!(authorize(&world.state, &reader, &key).is_ok());
    assert_eq!(
        world.outcome(world.erase(1, 0)),
        Some(Refused::NotAllowed),
        "a reader is no custodian"
    );
    let early = world.confirm(1, 0, &BTreeSet::new());
    assert_eq!(
        world.outcome(early.clone()),
        Some(Refused::UnknownName),
        "there is nothing to confirm"
    );
    assert_eq!(world.outcome(world.erase(0, 0)), None);
    assert!(authorize(&world.state, &reader, &key).is_err() && authorize(&world.state, &custodian, &key).is_err());
    for refused in [
        world.commit(0),
        world.announce(0, 4),
        world.by(1, 4, Action::AnnounceKey(world.subjects[0].clone())),
        world.by(0, 5, Action::Grant(grant.clone())),
        world.by(0, 6, Action::Revoke(grant)),
    ] {
        assert_eq!(world.outcome(refused), Some(Refused::Erased));
    }
    assert_eq!(world.outcome(world.erase(0, 0)), Some(Refused::AlreadyFinal));
    assert_eq!(
        world.outcome(world.by(0, 7, Action::Erase(Erasure { key }))),
        Some(Refused::AlreadyFinal)
    );
    assert_eq!(world.state.tombstones().len(), 1);
    assert_eq!(world.state.tombstone(&key).expect("it is there").custodian, custodian);
}

#[test]
fn who_has_a_seat_confirms_once_with_its_own_key_and_nobody_else() {
    let mut world = World::new(1);
    let none = BTreeSet::new();
    world.apply(vec![world.announce(0, 2), world.erase(0, 0)]);
    let good = world.confirm(1, 0, &none);
    let forged = good.claims().clone().sign(&world.keys[2]);
    assert_eq!(world.outcome(forged), Some(Refused::WrongSignature));
    let stranger = SigningKey::random();
    let seatless = Transaction {
        author: Author::Validator(stranger.public()),
        ..good.claims().clone()
    };
    assert_eq!(world.outcome(seatless.sign(&stranger)), Some(Refused::NotAllowed));
    let organization = Transaction {
        author: Author::Organization("org-1".parse().expect("good")),
        ..good.claims().clone()
    };
    assert_eq!(
        world.outcome(organization.sign(&world.keys[1])),
        Some(Refused::NotAllowed)
    );
    let Action::ConfirmErasure(word) = good.claims().action else {
        panic!("it is one")
    };
    let other = Confirmation {
        tombstone: TransactionId(Digest::ZERO),
        ..word
    };
    let author = Author::Validator(world.keys[1].public());
    let other = world.signed(author.clone(), 0, Action::ConfirmErasure(other), &world.keys[1]);
    assert_eq!(world.outcome(other), Some(Refused::NotAllowed), "of another tombstone");
    let numbered = world.signed(author.clone(), 1, Action::ConfirmErasure(word), &world.keys[1]);
    assert_eq!(world.outcome(numbered), Some(Refused::NotAllowed));
    let register = world.state.register_digest();
    assert_eq!(world.outcome(good), None);
    assert_eq!(
        world.state.register_digest(),
        register,
        "the register does not grow by it"
    );
    let second = Confirmation { payloads: 7, ..word };
    let second = world.signed(author, 0, Action::ConfirmErasure(second), &world.keys[1]);
    assert_eq!(
        world.outcome(second),
        Some(Refused::AlreadyFinal),
        "another word of the same validator"
    );
    let validator = world.signed(
        Author::Validator(world.keys[0].public()),
        9,
        Action::AnnounceKey(world.subjects[0].clone()),
        &world.keys[0],
    );
    assert_eq!(
        world.outcome(validator),
        Some(Refused::NotAllowed),
        "a seat is no membership"
    );
}

#[test]
fn a_network_without_erasures_has_the_register_that_it_had() {
    let world = World::new(1);
    let bytes = canonical::encode(world.state.register());
    assert!(!bytes.windows(6).any(|window| window == b"erased"));
}

#[test]
fn a_certificate_with_everybodys_word_holds_and_any_changed_byte_makes_it_fail() {
    let (world, certificate) = World::erased();
    let committees = Committees::founding(&world.genesis);
    let text = certificate.to_json();
    let verified = Certificate::verify(&text, &committees).expect("holds");
    assert_eq!((verified.key, verified.payloads), (certificate.key, 2));
    assert_eq!(verified.confirmed.len(), 4);
    assert_eq!(verified.custodian.as_str(), "org-0");
    let halves: Vec<_> = verified.confirmed.iter().map(|word| word.private_half).collect();
    let destroyed = halves.iter().filter(|half| **half == PrivateHalf::Destroyed).count();
    assert_eq!(destroyed, 1);
    for at in (0..text.len()).step_by(7) {
        let mut changed = text.clone().into_bytes();
        changed[at] ^= 1;
        if let Ok(changed) = String::from_utf8(changed) {
            assert!(Certificate::verify(&changed, &committees).is_err(), "byte {at}");
        }
    }
    let other = World::new(1);
    assert!(Certificate::verify(&text, &Committees::founding(&other.genesis)).is_err());
}

#[test]
fn a_certificate_that_lacks_a_word_or_has_a_wrong_one_says_which() {
    let (mut world, good) = World::erased();
    let committees = Committees::founding(&world.genesis);
    let judged = |certificate: &Certificate| Certificate::verify(&certificate.to_json(), &committees);
    let mut short = good.clone();
    short.confirmations.remove(2);
    assert_eq!(judged(&short), Err(CertificateError::Missing(world.keys[2].public())));
    let mut none = good.clone();
    none.confirmations.clear();
    assert!(matches!(judged(&none), Err(CertificateError::Missing(_))));
    let mut twice = good.clone();
    twice.confirmations[1] = twice.confirmations[0].clone();
    assert!(matches!(judged(&twice), Err(CertificateError::Malformed(_))));
    let mut other_key = good.clone();
    other_key.key = KeyId(Digest::ZERO);
    assert!(matches!(judged(&other_key), Err(CertificateError::Tombstone(_))));
    let mut swapped = good.clone();
    swapped.tombstone = good.confirmations[0].clone();
    assert!(matches!(judged(&swapped), Err(CertificateError::Tombstone(_))));
    // What was never in a block, and what another one signed, though it is in a block.
    let some = BTreeSet::from([canonical::cid_of(b"another")]);
    let mut invented = good.clone();
    invented.confirmations[3].transaction = world.confirm(3, 0, &some);
    assert!(matches!(judged(&invented), Err(CertificateError::Confirmation { .. })));
    let forged = world.confirm(3, 0, &some).claims().clone().sign(&world.keys[1]);
    world.apply(vec![forged.clone()]);
    let mut refused = good.clone();
    refused.confirmations[3] = world.inclusion(forged.id());
    assert!(matches!(judged(&refused), Err(CertificateError::Confirmation { .. })));
    // A signature is no part of what a transaction is known by: another content than the forged one has.
    let more = BTreeSet::from([canonical::cid_of(b"another"), canonical::cid_of(b"one more")]);
    let differing = world.confirm(3, 0, &more);
    world.apply(vec![differing.clone()]);
    let mut disagreeing = good.clone();
    disagreeing.confirmations[3] = world.inclusion(differing.id());
    assert_eq!(
        judged(&disagreeing),
        Err(CertificateError::Disagreement(world.keys[3].public()))
    );
    let before = world.confirm(3, 0, &BTreeSet::new());
    let mut stranger = good.clone();
    let key = SigningKey::random();
    let claims = Transaction {
        author: Author::Validator(key.public()),
        ..before.claims().clone()
    };
    let signed = claims.sign(&key);
    world.apply(vec![signed.clone()]);
    stranger.confirmations.push(world.inclusion(signed.id()));
    stranger
        .confirmations
        .sort_by_key(|inclusion| match inclusion.transaction.claims().author {
            Author::Validator(key) => key,
            _ => panic!("each is a validator's"),
        });
    assert!(judged(&stranger).is_err());
}

#[test]
fn the_digest_of_payloads_depends_on_which_they_are_and_on_nothing_else() {
    let cid = |seed: u8| canonical::cid_of(&[seed]);
    let some: BTreeSet<_> = [cid(1), cid(2), cid(3)].into();
    let again: BTreeSet<_> = [cid(3), cid(1), cid(2), cid(1)].into();
    assert_eq!(digest_of(&some), digest_of(&again));
    let fewer: BTreeSet<_> = [cid(1), cid(2)].into();
    assert_ne!(digest_of(&some), digest_of(&fewer));
    assert_ne!(digest_of(&BTreeSet::new()), Digest::of(Domain::ERASURE, &[]));
}

/// What a step of a history does, and to which of two keys.
#[derive(Clone, Copy, Debug)]
enum Step {
    Announce,
    Commit,
    Grant,
    Revoke,
    Erase(usize),
    Confirm(usize),
}

fn step() -> impl Strategy<Value = (Step, usize)> {
    let kinds = prop_oneof![
        2 => Just(Step::Announce),
        4 => Just(Step::Commit),
        2 => Just(Step::Grant),
        1 => Just(Step::Revoke),
        2 => (0usize..2).prop_map(Step::Erase),
        3 => (0usize..4).prop_map(Step::Confirm),
    ];
    (kinds, 0usize..2)
}

/// What is known of one key without any of our code: the oracle.
#[derive(Clone, Debug, Default)]
struct Expected {
    announced: bool,
    erased: bool,
    granted: bool,
    committed: usize,
    confirmed: BTreeSet<usize>,
}

impl Expected {
    /// Whether the step takes effect, and what it leaves.
    fn takes(&mut self, step: Step) -> bool {
        let lives = self.announced && !self.erased;
        match step {
            Step::Announce => {
                !self.announced && {
                    self.announced = true;
                    true
                }
            }
            Step::Commit => {
                lives && {
                    self.committed += 1;
                    true
                }
            }
            Step::Grant => {
                lives && {
                    self.granted = true;
                    true
                }
            }
            Step::Revoke => {
                lives && {
                    self.granted = false;
                    true
                }
            }
            Step::Erase(by) => {
                by == 0 && lives && {
                    self.erased = true;
                    self.granted = false;
                    true
                }
            }
            Step::Confirm(validator) => self.erased && self.confirmed.insert(validator),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_history_has_the_outcomes_of_the_oracle(
        steps in proptest::collection::vec(step(), 1..40),
        per_block in 1usize..6,
    ) {
        let mut world = World::new(2);
        let mut expected = [Expected::default(), Expected::default()];
        let mut sequence = 10;
        for steps in steps.chunks(per_block) {
            let mut transactions = Vec::new();
            let mut outcomes = Vec::new();
            for &(step, subject) in steps {
                sequence += 1;
                let key = world.subjects[subject].id();
                let grant = Grant { key, grantee: "org-2".parse().expect("good") };
                transactions.push(match step {
                    Step::Announce => world.announce(subject, sequence),
                    Step::Commit => world.commit(subject),
                    Step::Grant => world.by(0, sequence, Action::Grant(grant)),
                    Step::Revoke => world.by(0, sequence, Action::Revoke(grant)),
                    Step::Erase(by) => world.erase(by, subject),
                    Step::Confirm(validator) => world.confirm(validator, subject, &BTreeSet::new()),
                });
                outcomes.push(expected[subject].takes(step));
            }
            let applied: Vec<_> = world.apply(transactions).iter().map(|o| *o == Outcome::Applied).collect();
            prop_assert_eq!(applied, outcomes, "{:?}", steps);
        }
        let reader = "org-2".parse().expect("good");
        for (subject, expected) in expected.iter().enumerate() {
            let key = world.subjects[subject].id();
            prop_assert_eq!(world.state.tombstone(&key).is_some(), expected.erased);
            prop_assert_eq!(world.state.subject_key(&key).is_some(), expected.announced && !expected.erased);
            prop_assert_eq!(authorize(&world.state, &reader, &key).is_ok(), expected.granted);
        }
        let copy: crate::register::Register = canonical::decode(&canonical::encode(world.state.register()), 1 << 20).expect("canonical");
        prop_assert_eq!(&copy, world.state.register());
        let mut counts = BTreeMap::new();
        for (key, _) in world.state.tombstones() {
            *counts.entry(*key).or_insert(0) += 1;
        }
        prop_assert!(counts.values().all(|count| *count == 1));
    }
}
