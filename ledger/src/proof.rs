//! What a third party checks with the validators' public keys alone: inclusion in a block, and two thirds of the votes.

use record::{
    canonical::{self, CanonicalError, Digest},
    ids::BundleId,
    merkle,
};
use serde::{Deserialize, Serialize};

use crate::{
    block::{BLOCK_BYTES_MAX, Block, FinalizedBlock, Header},
    handover::Committees,
    transaction::SignedTransaction,
};

pub use crate::{
    quorum::{NotFinal, ValidatorSet, vote_message, vote_namespace},
    votes::{Finalization, Vote},
};

/// A receipt has at most this many bytes of JSON.
pub const RECEIPT_BYTES_MAX: usize = 1_048_576;
/// A block that became final through a descendant is at most this many headers below it.
pub const DESCENT_MAX: usize = 256;

/// Everything needed to check that a bundle's or document's commitment is final. Its JSON text is strict: one receipt, one text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The bundle, or the document.
    pub bundle: BundleId,
    /// The signed commitment, as it stands in the block.
    pub transaction: SignedTransaction,
    /// From the commitment to the block's Merkle root.
    pub path: merkle::Path,
    /// The block's header, then (if it was not voted on itself) its descendants up to the one that was.
    pub headers: Vec<Header>,
    /// The votes on the last header.
    pub finalization: Finalization,
}

/// Why a receipt proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// Not the strict text of a receipt.
    #[error("not a receipt, or not its exact text: {0}")]
    Malformed(String),
    /// The commitment is about another bundle.
    #[error("the commitment is about another bundle")]
    OtherBundle,
    /// The Merkle path does not lead from the commitment to the block.
    #[error("the Merkle path does not lead from the commitment to the block's root")]
    NotIncluded,
    /// The headers are not a chain, or of another network.
    #[error("the headers are not one chain of this network")]
    BrokenChain,
    /// The votes do not hold.
    #[error(transparent)]
    NotFinal(#[from] NotFinal),
}

/// A receipt whose every part was checked; what a gateway needs to see before it forgets a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedReceipt {
    bundle: BundleId,
    header: Header,
    voted_in: u64,
    votes: usize,
}

impl VerifiedReceipt {
    /// The bundle that is final.
    #[must_use]
    pub const fn bundle(&self) -> BundleId {
        self.bundle
    }

    /// The header of the block that holds its commitment.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The epoch whose committee voted.
    #[must_use]
    pub const fn voted_in(&self) -> u64 {
        self.voted_in
    }

    /// How many validators' votes were checked.
    #[must_use]
    pub const fn votes(&self) -> usize {
        self.votes
    }
}

impl Receipt {
    /// The receipt of transaction `index` of `block`, which was finalized itself or through `descendants`.
    #[must_use]
    pub fn of(block: &Block, index: usize, descendants: Vec<Header>, finalization: Finalization) -> Option<Self> {
        let inclusion = Inclusion::of(block, index, descendants, finalization)?;
        Some(Self {
            bundle: inclusion.transaction.payload()?.id,
            transaction: inclusion.transaction,
            path: inclusion.path,
            headers: inclusion.headers,
            finalization: inclusion.finalization,
        })
    }

    /// The strict text.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a receipt has string keys and whole numbers")
    }

    /// Checks the text of a receipt against a network's validators; any one changed byte makes it fail.
    ///
    /// # Errors
    /// [`ReceiptError`] says which part does not hold.
    pub fn verify(text: &str, committees: &Committees) -> Result<VerifiedReceipt, ReceiptError> {
        if text.len() > RECEIPT_BYTES_MAX {
            return Err(ReceiptError::Malformed(format!("more than {RECEIPT_BYTES_MAX} bytes")));
        }
        let receipt: Self = serde_json::from_str(text).map_err(|e| ReceiptError::Malformed(e.to_string()))?;
        if receipt.to_json() != text {
            return Err(ReceiptError::Malformed(
                "the text differs from the one canonical text of its content".to_owned(),
            ));
        }
        receipt.check(committees)
    }

    fn check(self, committees: &Committees) -> Result<VerifiedReceipt, ReceiptError> {
        if self
            .transaction
            .payload()
            .is_none_or(|payload| payload.id != self.bundle)
        {
            return Err(ReceiptError::OtherBundle);
        }
        let bundle = self.bundle;
        let inclusion = Inclusion {
            transaction: self.transaction,
            path: self.path,
            headers: self.headers,
            finalization: self.finalization,
        };
        let Included {
            header,
            voted_in,
            votes,
        } = inclusion.check(committees)?;
        Ok(VerifiedReceipt {
            bundle,
            header,
            voted_in,
            votes,
        })
    }
}

/// Everything needed to check that a transaction of any kind stands in a final block. That it took effect there is not
/// said: who reads it knows why it must have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inclusion {
    /// The transaction, as it stands in the block.
    pub transaction: SignedTransaction,
    /// From the transaction to the block's Merkle root.
    pub path: merkle::Path,
    /// The block's header, then (if it was not voted on itself) its descendants up to the one that was.
    pub headers: Vec<Header>,
    /// The votes on the last header.
    pub finalization: Finalization,
}

/// What an [`Inclusion`] proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Included {
    /// The header of the block that the transaction stands in.
    pub(crate) header: Header,
    /// The epoch whose committee voted.
    pub(crate) voted_in: u64,
    /// How many votes were checked.
    pub(crate) votes: usize,
}

impl Inclusion {
    /// The proof for transaction `index` of `block`, which was finalized itself or through `descendants`.
    #[must_use]
    pub fn of(block: &Block, index: usize, descendants: Vec<Header>, finalization: Finalization) -> Option<Self> {
        let transaction = block.transactions.get(index)?.clone();
        let path = merkle::Path::of(&block.leaves(), index)?;
        let headers = std::iter::once(block.header.clone()).chain(descendants).collect();
        Some(Self {
            transaction,
            path,
            headers,
            finalization,
        })
    }

    pub(crate) fn check(&self, committees: &Committees) -> Result<Included, ReceiptError> {
        let network = committees.network();
        if self.headers.len() > DESCENT_MAX || self.headers.iter().any(|h| h.network != network) {
            return Err(ReceiptError::BrokenChain);
        }
        if self.headers.windows(2).any(|pair| pair[1].parent != pair[0].digest()) {
            return Err(ReceiptError::BrokenChain);
        }
        let (first, last) = self
            .headers
            .first()
            .zip(self.headers.last())
            .ok_or(ReceiptError::BrokenChain)?;
        if self.path.root(self.transaction.leaf()) != Some(first.transactions_root) {
            return Err(ReceiptError::NotIncluded);
        }
        Ok(Included {
            votes: self.finalization.check(last, committees.at(last.epoch))?,
            voted_in: last.epoch,
            header: first.clone(),
        })
    }
}

/// A block as one node hands it to another: nothing about it is believed; whoever asked knows which digest it must have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CarriedBlock {
    /// The block.
    pub block: Block,
    /// The votes on this very block, if the sender has them.
    pub finalization: Option<Finalization>,
}

/// More than the encoding of any block and all its votes has.
pub const CARRIED_BYTES_MAX: usize = BLOCK_BYTES_MAX + 64 * 1_024;

impl CarriedBlock {
    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Reads the bytes of a carried block.
    ///
    /// # Errors
    /// [`CanonicalError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CanonicalError> {
        canonical::decode(bytes, CARRIED_BYTES_MAX)
    }

    /// Whether the block is the one with this digest, and its transactions are those of its root.
    #[must_use]
    pub fn is(&self, digest: &Digest) -> bool {
        self.block.header.digest() == *digest && self.block.is_whole()
    }

    /// As a block whose digest was found to be the agreed one. Votes that do not hold are left out.
    #[must_use]
    pub fn finalized(self, committee: &ValidatorSet) -> FinalizedBlock {
        let finalization = self
            .finalization
            .filter(|votes| votes.check(&self.block.header, committee).is_ok());
        FinalizedBlock {
            digest: self.block.header.digest(),
            block: self.block,
            finalization,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        block::tests::{child, founded},
        transaction::{Action, Author, Commitment, Transaction},
    };
    use proptest::prelude::*;
    use record::{
        bundle::{Bundle, Category, SealedBundle, SubjectSecret},
        signature::SigningKey,
    };

    fn receipt(voters: usize) -> (Receipt, Committees) {
        let mut keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
        keys.sort_by_key(SigningKey::public);
        let genesis = founded(&keys);
        let author = "home-1".parse().expect("good");
        let (_, subject) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
        let commit = |count| {
            let bundle = Bundle::new(vec![]);
            let sealed = SealedBundle::seal(&genesis.network(), &author, &subject, &bundle).expect("seals");
            let action = Action::Commit(Commitment::to(&sealed.encode(), &sealed, (bundle.root(), count), 0));
            let (network, author) = (genesis.network(), Author::Gateway(author.clone()));
            Transaction {
                network,
                author,
                sequence: 0,
                action,
            }
            .sign(&keys[0])
        };
        let block = child(&genesis, &Block::genesis(&genesis), (1..6).map(commit).collect());
        let next = child(&genesis, &block, vec![]);
        let message = vote_message(&next.header);
        let votes = keys
            .iter()
            .take(voters)
            .map(|k| Vote {
                validator: k.public(),
                signature: k.sign_raw(&message),
            })
            .collect();
        let set = Committees::founding(&genesis);
        (
            Receipt::of(&block, 2, vec![next.header], Finalization { votes }).expect("index 2 of 5"),
            set,
        )
    }

    #[test]
    fn three_of_four_votes_prove_and_two_do_not() {
        let (good, set) = receipt(3);
        assert_eq!(
            Receipt::verify(&good.to_json(), &set).expect("proves").bundle(),
            good.bundle
        );
        let (thin, set) = receipt(2);
        assert!(matches!(
            Receipt::verify(&thin.to_json(), &set),
            Err(ReceiptError::NotFinal(_))
        ));
    }

    #[test]
    fn another_networks_validators_do_not_count() {
        let ((good, _), (_, other)) = (receipt(3), receipt(3));
        assert!(Receipt::verify(&good.to_json(), &other).is_err());
    }

    #[test]
    fn one_vote_cannot_be_counted_twice() {
        let (mut greedy, set) = receipt(2);
        let again = greedy.finalization.votes[1].clone();
        greedy.finalization.votes.push(again);
        assert!(matches!(
            Receipt::verify(&greedy.to_json(), &set),
            Err(ReceiptError::NotFinal(_))
        ));
    }

    #[test]
    fn every_changed_byte_is_refused() {
        let (good, set) = receipt(4);
        let text = good.to_json().into_bytes();
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] ^= 1;
            if let Ok(changed) = String::from_utf8(changed) {
                assert!(Receipt::verify(&changed, &set).is_err(), "byte {at}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_other_byte_anywhere_is_refused(at: usize, with in 1u8..=255) {
            let (good, set) = receipt(3);
            let mut text = good.to_json().into_bytes();
            let at = at % text.len();
            text[at] ^= with;
            if let Ok(text) = String::from_utf8(text) {
                prop_assert!(Receipt::verify(&text, &set).is_err());
            }
        }
    }
}
