//! The ledger's block as the engine sees it: bytes on its wire, a digest to vote on, the context it was proposed in.

use bytes::{BufMut, Bytes};
use commonware_codec::{Buf, Copying, DecodeExt as _, EncodeSize, Error, Read, Write};
use commonware_consensus::{
    BoundedBlock, CertifiableBlock, Heightable,
    simplex::types::Context,
    types::{Epoch, Height, Round, View},
};
use commonware_cryptography::{Digestible, ed25519, sha256};
use ledger::block::{BLOCK_BYTES_MAX, Block};
use record::signature::{PublicKey, SigningKey};

/// The digest that validators vote on, in the engine's type: exactly the header's digest.
pub type EngineDigest = sha256::Digest;
/// What the engine knows about a proposal: its round, its leader, its parent.
pub type EngineContext = Context<EngineDigest, ed25519::PublicKey>;

/// Bytes of a length in front of at most [`BLOCK_BYTES_MAX`] bytes.
const LENGTH_BYTES_MAX: usize = 5;

/// A digest in the engine's type.
#[must_use]
pub fn engine_digest(digest: &record::canonical::Digest) -> EngineDigest {
    EngineDigest::from(*digest.as_bytes())
}

/// A digest in the ledger's type.
#[must_use]
pub fn ledger_digest(digest: &EngineDigest) -> record::canonical::Digest {
    record::canonical::Digest::from_bytes(digest.0)
}

/// A validator's key in the engine's type.
///
/// # Panics
/// Never: the engine accepts every point that our stricter check lets through.
#[must_use]
pub fn engine_key(key: &PublicKey) -> ed25519::PublicKey {
    ed25519::PublicKey::try_from(*key.as_bytes()).expect("a point checked by the record crate is one for the engine")
}

/// A validator's signing key in the engine's type.
///
/// # Panics
/// Never: any 32 bytes are a secret key.
#[must_use]
pub fn engine_signer(key: &SigningKey) -> ed25519::PrivateKey {
    ed25519::PrivateKey::decode(Copying(key.secret_bytes().as_slice())).expect("any 32 bytes are an ed25519 secret")
}

/// A ledger block whose transactions are the ones its header's root names, so that its digest stands for all of it.
#[derive(Clone, Debug)]
pub struct EngineBlock {
    block: Block,
    bytes: Bytes,
    digest: EngineDigest,
}

impl EngineBlock {
    /// Wraps a block of our own making: the genesis, or one just built with its root.
    #[must_use]
    pub fn new(block: Block) -> Self {
        let bytes = Bytes::from(block.encode());
        let digest = engine_digest(&block.header.digest());
        Self { block, bytes, digest }
    }

    /// The ledger's block.
    #[must_use]
    pub const fn block(&self) -> &Block {
        &self.block
    }
}

impl Write for EngineBlock {
    fn write(&self, buf: &mut impl BufMut) {
        self.bytes.write(buf);
    }
}

impl EncodeSize for EngineBlock {
    fn encode_size(&self) -> usize {
        self.bytes.encode_size()
    }
}

impl Read for EngineBlock {
    /// The limit is the protocol's own, the same on every node.
    type Cfg = ();

    fn read_cfg(buf: &mut impl Buf, (): &()) -> Result<Self, Error> {
        let bytes = Bytes::read_cfg(buf, &(..=BLOCK_BYTES_MAX).into())?;
        let block = Block::decode(&bytes).map_err(|e| Error::Wrapped("block", e.into()))?;
        // The engine keeps and compares blocks by digest alone; without this check a liar could send other transactions
        // under the digest of an honest header.
        if !block.is_whole() {
            return Err(Error::Invalid("block", "its transactions are not those of its root"));
        }
        let digest = engine_digest(&block.header.digest());
        Ok(Self { block, bytes, digest })
    }
}

impl Digestible for EngineBlock {
    type Digest = EngineDigest;

    fn digest(&self) -> EngineDigest {
        self.digest
    }
}

impl Heightable for EngineBlock {
    fn height(&self) -> Height {
        Height::new(self.block.header.height.0)
    }
}

impl commonware_consensus::Block for EngineBlock {
    fn parent(&self) -> EngineDigest {
        engine_digest(&self.block.header.parent)
    }
}

impl CertifiableBlock for EngineBlock {
    type Context = EngineContext;

    fn context(&self) -> EngineContext {
        let header = &self.block.header;
        EngineContext {
            round: Round::new(Epoch::new(header.epoch), View::new(header.view)),
            leader: engine_key(&header.leader),
            parent: (View::new(header.parent_view), engine_digest(&header.parent)),
        }
    }
}

impl BoundedBlock for EngineBlock {
    fn max_encode_size((): &()) -> usize {
        LENGTH_BYTES_MAX + BLOCK_BYTES_MAX
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use commonware_codec::{Decode as _, Encode as _};
    use ledger::{
        genesis::{Genesis, Organization, Role, Validator},
        policy::ValidityPolicy,
        transaction::{Action, Author, Commitment, GatewayEnrolment, SignedTransaction, Transaction},
    };
    use record::{
        bundle::{Category, SealedBundle, SubjectKey},
        canonical::{Digest, cid_of},
    };

    pub(crate) fn founded(keys: &[SigningKey]) -> Genesis {
        let organization = |i: usize| format!("org-{i}").parse().expect("good");
        let member = |(i, key): (usize, &SigningKey)| Organization {
            id: organization(i),
            name: format!("Org {i}"),
            role: Role::Provider,
            key: key.public(),
        };
        let validator = |(i, key): (usize, &SigningKey)| Validator {
            organization: organization(i),
            key: key.public(),
            tls: Digest::ZERO,
            address: None,
        };
        Genesis {
            name: "test".to_owned(),
            founded_ms: 0,
            organizations: keys.iter().enumerate().map(member).collect(),
            validators: keys.iter().enumerate().map(validator).collect(),
            policy: ValidityPolicy::default(),
        }
    }

    fn subject() -> SubjectKey {
        SubjectKey {
            public: vec![7; 32],
            category: Category::Vitals,
            epoch: 1,
        }
    }

    /// The first organisation enrols the gateway `home-1` and announces a subject key.
    pub(crate) fn enrolments_of(genesis: &Genesis, key: &SigningKey, gateway: &SigningKey) -> Vec<SignedTransaction> {
        let enrolment = GatewayEnrolment {
            gateway: "home-1".parse().expect("good"),
            key: gateway.public(),
            tls: Digest::ZERO,
        };
        let sign = |action| {
            let author = Author::Organization(genesis.organizations[0].id.clone());
            Transaction {
                network: genesis.network(),
                author,
                sequence: 0,
                action,
            }
            .sign(key)
        };
        vec![
            sign(Action::EnrolGateway(enrolment)),
            sign(Action::AnnounceKey(subject())),
        ]
    }

    pub(crate) fn enrolments(genesis: &Genesis, key: &SigningKey) -> Vec<SignedTransaction> {
        enrolments_of(genesis, key, &SigningKey::random())
    }

    /// A commitment of the gateway `home-1` to the payload `sealed`.
    pub(crate) fn commitment(genesis: &Genesis, gateway: &SigningKey) -> SignedTransaction {
        let commitment = Commitment {
            bundle: SealedBundle::id_of(b"sealed"),
            cid: cid_of(b"sealed"),
            key: subject().id(),
            root: Digest::ZERO,
            count: 1,
            bucket: 0,
        };
        Transaction {
            network: genesis.network(),
            author: Author::Gateway("home-1".parse().expect("good")),
            sequence: 0,
            action: Action::Commit(commitment),
        }
        .sign(gateway)
    }

    pub(crate) fn child(genesis: &Genesis, parent: &Block, transactions: Vec<SignedTransaction>) -> Block {
        let mut block = Block {
            header: parent.header.clone(),
            transactions,
        };
        block.header.height = parent.header.height.next();
        block.header.parent = parent.header.digest();
        block.header.timestamp_ms += 1;
        block.header.parent_view = parent.header.view;
        block.header.view += 300;
        block.header.transactions_root = block.transactions_root();
        block.header = genesis.policy.mine(block.header).0;
        block
    }

    fn sample() -> EngineBlock {
        let keys = [SigningKey::random()];
        let genesis = founded(&keys);
        EngineBlock::new(child(
            &genesis,
            &Block::genesis(&genesis),
            enrolments(&genesis, &keys[0]),
        ))
    }

    #[test]
    fn the_engine_votes_on_the_header_digest_and_reads_back_what_it_wrote() {
        let block = sample();
        assert_eq!(&block.digest().0, block.block().header.digest().as_bytes());
        let read = EngineBlock::decode_cfg(block.encode(), &()).expect("decodes");
        assert_eq!(read.block(), block.block());
        assert_eq!((read.digest(), read.context()), (block.digest(), block.context()));
        assert!(block.encode().len() <= EngineBlock::max_encode_size(&()));
    }

    #[test]
    fn other_transactions_under_an_honest_header_are_refused() {
        let mut forged = sample().block().clone();
        forged.transactions.clear();
        assert!(EngineBlock::decode_cfg(EngineBlock::new(forged).encode(), &()).is_err());
    }

    #[test]
    fn keys_are_the_same_in_both_worlds() {
        use commonware_cryptography::Signer as _;
        let key = SigningKey::random();
        assert_eq!(engine_signer(&key).public_key(), engine_key(&key.public()));
    }
}
