//! What is said on the chain about a large record, and what every commitment says of its payload.
//!
//! Who may commit to a document is who may commit to a bundle: a gateway of the key's custodian. The desk at which a hospital
//! hands in documents is enrolled as one, so that what it committed stands when its key or its member is gone.

use cid::Cid;
use record::{
    canonical::{DAG_PB, Digest, Domain, RAW, SHA2_256},
    ids::{BundleId, KeyId},
};
use serde::{Deserialize, Serialize};

/// What is said about a sealed document: a large record, kept in blocks under one root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentCommitment {
    /// The root of its blocks, as any IPFS peer names it; the identifier is made of it.
    pub cid: Cid,
    /// The subject key that opens it.
    pub key: KeyId,
    /// Bytes of the sealed document.
    pub bytes: u64,
    /// Hour in which it was sealed: number of [`TIME_BUCKET_MS`](crate::transaction::TIME_BUCKET_MS) since 1970.
    pub bucket: i64,
}

impl DocumentCommitment {
    /// The identifier of the document with this root: it becomes final once.
    #[must_use]
    pub fn id_of(cid: &Cid) -> BundleId {
        BundleId(Digest::of(Domain::DOCUMENT, &[&cid.to_bytes()]))
    }

    /// Whether its identifier is one that the root of a document has: of a node or, if it is small, of its one leaf. Any other
    /// would be a second name for bytes that have one.
    #[must_use]
    pub fn names_a_root(&self) -> bool {
        let hash = self.cid.hash();
        self.cid.version() == cid::Version::V1
            && [DAG_PB, RAW].contains(&self.cid.codec())
            && (hash.code(), hash.size()) == (SHA2_256, 32)
    }
}

/// What every commitment says of its payload, whatever that is: for those who keep, repair, prove and permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// What becomes final once.
    pub id: BundleId,
    /// Where it is kept: its one block, or the root of its blocks.
    pub cid: Cid,
    /// The subject key that opens it.
    pub key: KeyId,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admission::{SubmissionError, matched, matched_document},
        block::{
            Block, Height,
            tests::{child, founded},
        },
        consent::authorize,
        genesis::Genesis,
        proof::{Finalization, Receipt, Vote, vote_message},
        state::{Finals, Outcome, Refused, State, identifiers},
        transaction::{Action, Author, GatewayEnrolment, SignedTransaction, Transaction},
    };
    use record::{
        bundle::{Category, SubjectKey, SubjectSecret},
        canonical,
        document::{HEAD_BYTES_MAX, Metadata, Sealer},
        signature::SigningKey,
    };
    use std::collections::HashSet;

    #[derive(Default)]
    struct Known(HashSet<Digest>);

    impl Finals for Known {
        fn contains(&self, digest: &Digest) -> bool {
            self.0.contains(digest)
        }
    }

    struct World {
        keys: Vec<SigningKey>,
        desk: SigningKey,
        genesis: Genesis,
        parent: Block,
        state: State,
        known: Known,
        subject: SubjectKey,
    }

    impl World {
        fn new() -> Self {
            let keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
            let genesis = founded(&keys);
            let (_, subject) = SubjectSecret::generate(Category::Clinical, 1).expect("random numbers");
            Self {
                keys,
                desk: SigningKey::random(),
                state: State::genesis(&genesis),
                parent: Block::genesis(&genesis),
                genesis,
                known: Known::default(),
                subject,
            }
        }

        fn by(&self, author: Author, sequence: u64, action: Action, key: &SigningKey) -> SignedTransaction {
            let network = self.genesis.network();
            Transaction {
                network,
                author,
                sequence,
                action,
            }
            .sign(key)
        }

        fn org(&self, at: usize, action: Action) -> SignedTransaction {
            let author = Author::Organization(format!("org-{at}").parse().expect("good"));
            self.by(author, 0, action, &self.keys[at])
        }

        /// An organisation's gateway with this name and the desk's key.
        fn enrol(&self, at: usize, name: &str, key: &SigningKey) -> SignedTransaction {
            let enrolment = GatewayEnrolment {
                gateway: name.parse().expect("good"),
                key: key.public(),
                tls: Digest::of(Domain::TLS_KEY, &[name.as_bytes()]),
            };
            self.org(at, Action::EnrolGateway(enrolment))
        }

        fn document(&self) -> Vec<u8> {
            let metadata = Metadata {
                media_type: "application/pdf".parse().expect("good"),
                bytes: 10,
            };
            let author = "desk".parse().expect("good");
            let network = self.genesis.network();
            let (mut sealer, mut sealed) =
                Sealer::begin(&network, (&author, &self.subject), &metadata).expect("begins");
            sealed.extend(sealer.push(&[1; 10]).expect("fits"));
            for padding in sealer.finish().expect("all is there") {
                sealed.extend(padding.expect("sealed"));
            }
            sealed
        }

        fn commitment(&self, document: &[u8]) -> DocumentCommitment {
            DocumentCommitment {
                cid: canonical::cid_under(RAW, document),
                key: self.subject.id(),
                bytes: document.len() as u64,
                bucket: 0,
            }
        }

        fn commit(&self, author: &str, document: &[u8]) -> SignedTransaction {
            let author = Author::Gateway(author.parse().expect("good"));
            let action = Action::CommitDocument(self.commitment(document));
            self.by(author, 0, action, &self.desk)
        }

        fn apply(&mut self, transactions: Vec<SignedTransaction>) -> Vec<Outcome> {
            let block = child(&self.genesis, &self.parent, transactions);
            let outcomes = self.state.apply(&block, &self.known);
            for (transaction, outcome) in block.transactions.iter().zip(&outcomes) {
                if *outcome == Outcome::Applied {
                    self.known.0.extend(identifiers(transaction));
                }
            }
            self.parent = block;
            outcomes
        }
    }

    #[test]
    fn the_desk_of_the_custodian_commits_and_nobody_else() {
        let mut world = World::new();
        let document = world.document();
        let stranger = SigningKey::random();
        world.apply(vec![
            world.enrol(0, "desk", &world.desk),
            world.enrol(1, "foreign", &stranger),
        ]);
        let commit = world.commit("desk", &document);
        let unknown = Outcome::Refused(Refused::UnknownName);
        assert_eq!(world.apply(vec![commit.clone()]), [unknown], "nobody announced the key");
        world.apply(vec![world.org(0, Action::AnnounceKey(world.subject.clone()))]);
        let action = || Action::CommitDocument(world.commitment(&document));
        let foreign = Author::Gateway("foreign".parse().expect("good"));
        let later = Author::Gateway("desk".parse().expect("good"));
        let refused = vec![
            world.org(0, action()),
            world.org(1, action()),
            world.by(foreign, 0, action(), &stranger),
            world.by(later, 1, action(), &world.desk),
        ];
        let not_allowed = Outcome::Refused(Refused::NotAllowed);
        assert_eq!(world.apply(refused), [not_allowed; 4]);
        let forged = world.commit("desk", &document).claims().clone().sign(&stranger);
        assert_eq!(world.apply(vec![forged]), [Outcome::Refused(Refused::WrongSignature)]);
        assert_eq!(world.apply(vec![commit]), [Outcome::Applied]);
    }

    #[test]
    fn a_document_is_final_once_and_changes_no_right() {
        let mut world = World::new();
        world.apply(vec![
            world.enrol(0, "desk", &world.desk),
            world.org(0, Action::AnnounceKey(world.subject.clone())),
        ]);
        let document = world.document();
        let register = world.state.register_digest();
        let commit = world.commit("desk", &document);
        let twin = DocumentCommitment {
            bucket: 1,
            ..world.commitment(&document)
        };
        let author = Author::Gateway("desk".parse().expect("good"));
        let twin = world.by(author, 0, Action::CommitDocument(twin), &world.desk);
        assert_ne!(commit.id(), twin.id());
        let again = Outcome::Refused(Refused::AlreadyFinal);
        assert_eq!(
            world.apply(vec![commit.clone(), twin.clone()]),
            [Outcome::Applied, again]
        );
        assert_eq!(world.apply(vec![twin, commit]), [again; 2]);
        assert_eq!(world.state.register_digest(), register);
        let stranger = "org-1".parse().expect("good");
        assert!(authorize(&world.state, &stranger, &world.subject.id()).is_err());
    }

    #[test]
    fn what_a_revoked_desk_committed_stands() {
        let mut world = World::new();
        let commit = world.commit("desk", &world.document());
        world.apply(vec![
            world.enrol(0, "desk", &world.desk),
            world.org(0, Action::AnnounceKey(world.subject.clone())),
            commit.clone(),
        ]);
        let revoke = world.org(0, Action::RevokeGateway("desk".parse().expect("good")));
        world.apply(vec![revoke]);
        assert_eq!(world.state.committed(&commit, Height(1)), Ok(()));
        let after = world.state.height().next();
        assert_eq!(world.state.committed(&commit, after), Err(Refused::Revoked));
        let more = world.commit("desk", &world.document());
        assert_eq!(world.apply(vec![more]), [Outcome::Refused(Refused::NotAllowed)]);
    }

    #[test]
    fn a_commitment_is_matched_with_the_bytes_that_it_names() {
        let world = World::new();
        let document = world.document();
        let start = &document[..HEAD_BYTES_MAX];
        let given = |bytes: usize| (start, bytes as u64);
        let commit = world.commit("desk", &document);
        assert_eq!(
            matched_document(&commit, given(document.len())).expect("its own"),
            &world.commitment(&document)
        );
        let mismatch = |found| matches!(found, Err(SubmissionError::Mismatch));
        let other_author = world.commit("foreign", &document);
        assert!(mismatch(matched_document(&other_author, given(document.len()))));
        let longer = document.len() + 256;
        assert!(
            record::document::head_of(start, longer as u64).is_ok(),
            "a size that a document may have"
        );
        assert!(mismatch(matched_document(&commit, given(longer))));
        let malformed = |found| matches!(found, Err(SubmissionError::Malformed(_)));
        assert!(malformed(matched_document(&commit, given(document.len() - 1))));
        assert!(malformed(matched_document(&commit, (&[0; 64], document.len() as u64))));
        let author = || Author::Gateway("desk".parse().expect("good"));
        let named = |cid: Cid| {
            let commitment = DocumentCommitment {
                cid,
                ..world.commitment(&document)
            };
            world.by(author(), 0, Action::CommitDocument(commitment), &world.desk)
        };
        let root = canonical::cid_under(DAG_PB, &document);
        let node = named(root);
        assert!(matched_document(&node, given(document.len())).is_ok());
        let inline = cid::multihash::Multihash::wrap(0, b"inline").expect("short");
        for alias in [
            canonical::cid_of(&document),
            canonical::cid_under(0x0129, &document),
            Cid::new_v0(*root.hash()).expect("sha2-256"),
            Cid::new_v1(RAW, inline),
        ] {
            let commit = named(alias);
            let found = matched_document(&commit, given(document.len()));
            assert!(matches!(found, Err(SubmissionError::NoRoot)), "{alias}");
        }
        let no_bundle = matched(&commit, &document);
        assert!(matches!(no_bundle, Err(SubmissionError::NoCommitment)));
        let mut other = World::new();
        other.subject = world.subject.clone();
        other.subject.epoch = 2;
        let other_key = other.commit("desk", &document);
        assert!(mismatch(matched_document(&other_key, given(document.len()))));
    }

    #[test]
    fn a_receipt_proves_a_document_as_it_proves_a_bundle() {
        let mut world = World::new();
        let commit = world.commit("desk", &world.document());
        world.apply(vec![
            world.enrol(0, "desk", &world.desk),
            world.org(0, Action::AnnounceKey(world.subject.clone())),
            commit.clone(),
        ]);
        let message = vote_message(&world.parent.header);
        let mut keys = world.keys.clone();
        keys.sort_by_key(SigningKey::public);
        let votes = keys.iter().take(3).map(|key| Vote {
            validator: key.public(),
            signature: key.sign_raw(&message),
        });
        let votes = Finalization { votes: votes.collect() };
        let at = world
            .parent
            .transactions
            .iter()
            .position(|t| *t == commit)
            .expect("in it");
        let receipt = Receipt::of(&world.parent, at, vec![], votes.clone()).expect("a commitment");
        let committees = world.state.committees();
        let verified = Receipt::verify(&receipt.to_json(), &committees).expect("proves");
        assert_eq!(Some(verified.bundle()), commit.payload().map(|payload| payload.id));
        let mut other = receipt;
        other.bundle = BundleId(Digest::ZERO);
        assert!(Receipt::verify(&other.to_json(), &committees).is_err());
        let rest = (0..world.parent.transactions.len()).filter(|other| *other != at);
        for other in rest {
            assert!(Receipt::of(&world.parent, other, vec![], votes.clone()).is_none());
        }
    }
}
