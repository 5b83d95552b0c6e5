//! The one encoding that is hashed (DAG-CBOR, strict on decode) and Algorithm 1: SHA-256 over a domain and those bytes.

use std::{fmt, str::FromStr};

use cid::Cid;
use multihash::Multihash;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, de::Error as _};
use sha2::{Digest as _, Sha256};

/// Multihash code of SHA-256: a digest names its algorithm, so that it can change (paper, section 3: "SHA-256 and SHA-3").
pub const SHA2_256: u64 = 0x12;
/// Multicodec of DAG-CBOR blocks.
pub const DAG_CBOR: u64 = 0x71;
/// The media type of these bytes, as registered with IANA.
pub const MEDIA_TYPE: &str = "application/vnd.ipld.dag-cbor";
/// Multicodec of raw blocks.
pub const RAW: u64 = 0x55;
/// Multicodec of the nodes that hold a large record's blocks together (UnixFS, as IPFS keeps files).
pub const DAG_PB: u64 = 0x70;

/// What a digest or a signature is about; keeps the meanings of equal bytes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Domain(&'static str);

impl Domain {
    /// A sealed bundle's identifier.
    pub const BUNDLE: Self = Self("vitalfog/bundle/v1");
    /// A sealed document's identifier, and what binds its parts together.
    pub const DOCUMENT: Self = Self("vitalfog/document/v1");
    /// A device's signature over a reading, and the digest by which a message is known again.
    pub const READING: Self = Self("vitalfog/reading/v1");
    /// A gateway's reading key, which devices seal their messages to.
    pub const READING_KEY: Self = Self("vitalfog/reading-key/v1");
    /// A message that is sealed to a reading key.
    pub const SEALED_READING: Self = Self("vitalfog/sealed-reading/v1");
    /// A leaf of a bundle's Merkle tree: one entry, salted.
    pub const LEAF: Self = Self("vitalfog/leaf/v1");
    /// A gateway's signature over what is missing of a device.
    pub const GAPS: Self = Self("vitalfog/gaps/v1");
    /// A block of samples with its unit, for whoever compares what was sent with what is served.
    pub const SAMPLES: Self = Self("vitalfog/samples/v1");
    /// An observation's identifier.
    pub const OBSERVATION: Self = Self("vitalfog/observation/v1");
    /// A subject key's identifier.
    pub const SUBJECT_KEY: Self = Self("vitalfog/subject-key/v1");
    /// A transaction's identifier and its author's signature.
    pub const TRANSACTION: Self = Self("vitalfog/transaction/v1");
    /// A block header's digest: what validators vote on.
    pub const HEADER: Self = Self("vitalfog/header/v1");
    /// The validity policy's identifier.
    pub const POLICY: Self = Self("vitalfog/policy/v1");
    /// The genesis document: the network's identifier.
    pub const GENESIS: Self = Self("vitalfog/genesis/v1");
    /// The rolling digest of the state.
    pub const STATE: Self = Self("vitalfog/state/v1");
    /// The register: who may do what.
    pub const REGISTER: Self = Self("vitalfog/register/v1");
    /// A fog node's signed admission of a bundle.
    pub const ADMISSION: Self = Self("vitalfog/admission/v1");
    /// A fog node's signed head.
    pub const HEAD: Self = Self("vitalfog/head/v1");
    /// Proof that a validator has the bytes of a payload at hand.
    pub const HOLDING: Self = Self("vitalfog/holding/v1");
    /// The keys of a committee, as the headers of the epoch before it name them.
    pub const COMMITTEE: Self = Self("vitalfog/committee/v1");
    /// A device's key proves that its private half is there.
    pub const POSSESSION: Self = Self("vitalfog/device-key/v1");
    /// An inner node of a Merkle tree.
    pub const MERKLE_NODE: Self = Self("vitalfog/merkle-node/v1");
    /// What may be said once of a subject key: that it is erased, and by each validator that it holds nothing of it any more.
    pub const ERASURE: Self = Self("vitalfog/erasure/v1");
    /// The payloads of an erased key: their identifiers, sorted.
    pub const ERASED_PAYLOADS: Self = Self("vitalfog/erased-payloads/v1");
    /// A TLS public key (SubjectPublicKeyInfo), as pinned on the chain.
    pub const TLS_KEY: Self = Self("vitalfog/tls-key/v1");

    /// The domain string itself.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

/// A SHA-256 digest; as text and on the wire it is a multihash (`1220` and 64 hex digits).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// All zero: the parent of nothing.
    pub const ZERO: Self = Self([0; 32]);

    /// Algorithm 1 of the paper, `Current Hash = SHA256(d)`, with the domain in front: SHA-256(len ‖ domain ‖ parts).
    #[must_use]
    pub fn of(domain: Domain, parts: &[&[u8]]) -> Self {
        let mut hasher = Self::hasher(domain);
        for part in parts {
            hasher.update(part);
        }
        Self::finish(hasher)
    }

    /// A hasher that already holds the domain, for callers that hash many continuations of one prefix (the nonce search).
    #[must_use]
    pub fn hasher(domain: Domain) -> Sha256 {
        let name = domain.as_str().as_bytes();
        let length = u8::try_from(name.len()).expect("domain strings are shorter than 256 bytes");
        Sha256::new().chain_update([length]).chain_update(name)
    }

    /// The digest of what the hasher was fed.
    #[must_use]
    pub fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// A digest from its 32 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the digest.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// How many leading bits are zero; policy P asks for a minimum.
    #[must_use]
    pub fn leading_zero_bits(&self) -> u32 {
        let whole = self.0.iter().take_while(|byte| **byte == 0).count();
        let partial = self.0.get(whole).map_or(0, |byte| byte.leading_zeros());
        u32::try_from(whole * 8).expect("at most 256 bits") + partial
    }

    fn multihash(&self) -> Multihash<64> {
        Multihash::wrap(SHA2_256, &self.0).expect("32 bytes fit in a multihash of 64")
    }

    fn from_multihash(bytes: &[u8]) -> Result<Self, String> {
        let hash = Multihash::<64>::from_bytes(bytes).map_err(|e| e.to_string())?;
        if hash.code() != SHA2_256 {
            return Err(format!("multihash code {:#x} is not sha2-256 (0x12)", hash.code()));
        }
        let digest = hash
            .digest()
            .try_into()
            .map_err(|_| "a sha2-256 digest has 32 bytes".to_owned())?;
        Ok(Self(digest))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.multihash().to_bytes()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err("a digest is written in lower-case hex".to_owned());
        }
        Self::from_multihash(&hex::decode(text).map_err(|e| e.to_string())?)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(&self.multihash().to_bytes())
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?;
            Self::from_multihash(&bytes).map_err(D::Error::custom)
        }
    }
}

/// Why bytes are not the canonical encoding of anything we know.
#[derive(Debug, thiserror::Error)]
pub enum CanonicalError {
    /// More bytes than the type may have.
    #[error("{bytes} bytes, at most {bytes_max} are allowed")]
    TooLarge {
        /// How many there were.
        bytes: usize,
        /// How many there may be.
        bytes_max: usize,
    },
    /// Not DAG-CBOR, or not of the expected shape.
    #[error("not canonical DAG-CBOR of the expected shape: {0}")]
    Malformed(String),
    /// It decodes, but encoding it again gives other bytes.
    #[error("not the canonical encoding: encoding it again gives other bytes")]
    NotCanonical,
    /// It decodes, but says that it is of a version that we do not know.
    #[error("version {version} of the format is not {known}, the one known here")]
    UnknownVersion {
        /// What it says it is.
        version: u8,
        /// What we know.
        known: u8,
    },
}

impl CanonicalError {
    /// Lets only the version that we know pass.
    ///
    /// # Errors
    /// [`CanonicalError::UnknownVersion`].
    pub(crate) const fn unless(version: u8, known: u8) -> Result<(), Self> {
        if version == known {
            Ok(())
        } else {
            Err(Self::UnknownVersion { version, known })
        }
    }
}

/// The canonical bytes of a value.
///
/// # Panics
/// Never for the types of this project: their maps have string keys and they hold no floating-point numbers.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_ipld_dagcbor::to_vec(value).expect("our types hold nothing that DAG-CBOR cannot express")
}

/// Reads canonical bytes: size first, strict DAG-CBOR, and equal to what [`encode`] would write.
///
/// # Errors
/// [`CanonicalError`] says which of the three failed.
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8], bytes_max: usize) -> Result<T, CanonicalError> {
    let value = decode_foreign(bytes, bytes_max)?;
    if encode(&value) == bytes {
        Ok(value)
    } else {
        Err(CanonicalError::NotCanonical)
    }
}

/// Like [`decode`] for bytes that another party's encoder wrote and whose exact form is signed: strict, but not compared
/// with our own encoding.
///
/// # Errors
/// [`CanonicalError::TooLarge`] or [`CanonicalError::Malformed`].
pub fn decode_foreign<T: DeserializeOwned>(bytes: &[u8], bytes_max: usize) -> Result<T, CanonicalError> {
    if bytes.len() > bytes_max {
        return Err(CanonicalError::TooLarge {
            bytes: bytes.len(),
            bytes_max,
        });
    }
    serde_ipld_dagcbor::from_slice(bytes).map_err(|e| CanonicalError::Malformed(e.to_string()))
}

/// The content identifier of a payload: CIDv1, dag-cbor, sha2-256 over the bytes alone, as any IPFS peer computes it.
#[must_use]
pub fn cid_of(payload: &[u8]) -> Cid {
    cid_under(DAG_CBOR, payload)
}

/// The content identifier of a block under a codec ([`DAG_CBOR`], [`RAW`], [`DAG_PB`]).
#[must_use]
pub fn cid_under(codec: u64, block: &[u8]) -> Cid {
    let digest: [u8; 32] = Sha256::digest(block).into();
    let hash = Multihash::wrap(SHA2_256, &digest).expect("32 bytes fit in a multihash of 64");
    Cid::new_v1(codec, hash)
}

/// Parses a CID as we accept it: version 1, sha2-256, codec dag-cbor, dag-pb or raw. Identity hashes (which inline data) are refused.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn parse_cid(text: &str) -> Result<Cid, String> {
    let cid = Cid::try_from(text).map_err(|e| format!("not a CID: {e}"))?;
    if cid.version() != cid::Version::V1 {
        return Err("only CIDv1 is served here".to_owned());
    }
    if cid.hash().code() != SHA2_256 || cid.hash().size() != 32 {
        return Err("only sha2-256 CIDs are served here".to_owned());
    }
    if ![DAG_CBOR, DAG_PB, RAW].contains(&cid.codec()) {
        return Err("only dag-cbor, dag-pb and raw CIDs are served here".to_owned());
    }
    Ok(cid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        name: String,
        digest: Digest,
        count: u64,
    }

    fn sample() -> Sample {
        Sample {
            name: "spool".to_owned(),
            digest: Digest::of(Domain::STATE, &[b"x"]),
            count: 300,
        }
    }

    #[test]
    fn a_digest_names_its_algorithm() {
        let text = Digest::ZERO.to_string();
        assert!(text.starts_with("1220"));
        assert_eq!(text.parse::<Digest>(), Ok(Digest::ZERO));
        assert!(text.replace("1220", "1320").parse::<Digest>().is_err());
    }

    #[test]
    fn domains_keep_equal_bytes_apart() {
        assert_ne!(Digest::of(Domain::BUNDLE, &[b"x"]), Digest::of(Domain::HEADER, &[b"x"]));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&sample());
        bytes.push(0);
        assert!(decode::<Sample>(&bytes, 1024).is_err());
    }

    #[test]
    fn an_identity_cid_is_refused() {
        assert!(parse_cid("bafkqaaa").is_err());
        for codec in [DAG_CBOR, DAG_PB, RAW] {
            assert!(parse_cid(&cid_under(codec, b"sealed").to_string()).is_ok());
        }
        assert!(
            parse_cid(&cid_under(0x0129, b"sealed").to_string()).is_err(),
            "dag-json"
        );
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(name in ".{0,40}", count: u64) {
            let value = Sample { name, count, ..sample() };
            prop_assert_eq!(decode::<Sample>(&encode(&value), 1024).expect("canonical"), value);
        }

        #[test]
        fn a_flipped_bit_never_decodes_to_the_same_value(at in 0usize..60, bit in 0u8..8) {
            let mut bytes = encode(&sample());
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok(other) = decode::<Sample>(&bytes, 1024) {
                prop_assert_ne!(other, sample());
            }
        }
    }
}
