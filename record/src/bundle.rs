//! Readings of one subject and category, sealed to the subject's key (HPKE) at the edge, and opened by a holder.

use std::fmt;

use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE,
    hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey},
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use zeroize::Zeroizing;

use crate::{
    canonical::{self, CanonicalError, Digest, Domain},
    clock::{Coincidence, Reception},
    gaps::SignedGapReport,
    ids::{BundleId, GatewayId, KeyId, NetworkId},
    merkle,
    padding::{padded, unpadded},
    reading::SignedReading,
};

/// The largest payload that is stored or sent: one IPFS block.
pub const PAYLOAD_BYTES_MAX: usize = 1_000_000;
/// Readings in one bundle, at most.
pub const BUNDLE_READINGS_MAX: usize = 1_024;
/// Version of the sealed format.
pub const VERSION: u8 = 2;
/// A plaintext is padded to one of these sizes.
const PADDING_CLASSES: [usize; 7] = [256, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 983_040];

/// The kind of record a subject key opens; consent is given by category.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Category {
    /// What home devices measure.
    Vitals,
    /// Conditions, results, documents.
    Clinical,
    /// Prescriptions and deliveries.
    Medication,
    /// Bills and claims.
    Billing,
    /// Who read what.
    Audit,
}

impl Category {
    /// The category's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vitals => "vitals",
            Self::Clinical => "clinical",
            Self::Medication => "medication",
            Self::Billing => "billing",
            Self::Audit => "audit",
        }
    }
}

/// The public half of a subject key, with what it is for. Its id is on the chain; whose it is, only holders know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubjectKey {
    /// X25519 public key, 32 bytes.
    #[serde(with = "serde_bytes")]
    pub public: Vec<u8>,
    /// What it opens.
    pub category: Category,
    /// Which generation of the subject's key for this category; a withdrawal starts the next.
    pub epoch: u32,
}

impl SubjectKey {
    /// The key's identifier.
    #[must_use]
    pub fn id(&self) -> KeyId {
        KeyId(Digest::of(Domain::SUBJECT_KEY, &[&canonical::encode(self)]))
    }
}

/// The private half of a subject key: wiped when dropped, never printed.
#[derive(Clone)]
pub struct SubjectSecret(Zeroizing<Vec<u8>>);

impl SubjectSecret {
    /// A new pair for a category and epoch.
    ///
    /// # Errors
    /// [`SealError::Crypto`] if the system gives no random numbers.
    pub fn generate(category: Category, epoch: u32) -> Result<(Self, SubjectKey), SealError> {
        let (public, secret) = SUITE.generate_key_pair().map_err(|_| SealError::Crypto)?;
        let secret = Self(Zeroizing::new(secret.secret_bytes().to_vec()));
        Ok((
            secret,
            SubjectKey {
                public: public.0,
                category,
                epoch,
            },
        ))
    }

    /// A secret from its 32 bytes, as the keyring keeps it.
    #[must_use]
    pub fn from_bytes(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// The 32 bytes, for the keyring alone.
    #[must_use]
    pub fn secret_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SubjectSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SubjectSecret(..)")
    }
}

/// A signed reading, when the gateway received it, and how it knows the time of one that has no wall clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Milliseconds since 1970, by the gateway's clock.
    pub received_ms: i64,
    /// The pair of clocks that its time is computed with; none for a device with a wall clock, or while none is known.
    pub clock: Option<Coincidence>,
    /// The message, exactly as the device signed it: a holder checks the signature again.
    pub reading: SignedReading,
}

impl Entry {
    /// A message that was received at this time.
    #[must_use]
    pub const fn new(received_ms: i64, reading: SignedReading) -> Self {
        Self {
            received_ms,
            clock: None,
            reading,
        }
    }

    /// What is known of its time beside what the device says.
    #[must_use]
    pub const fn reception(&self) -> Reception {
        Reception {
            received_ms: self.received_ms,
            clock: self.clock,
        }
    }
}

/// Readings of one subject and category, in the order the gateway received them, and what it found missing by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// Version of the format.
    pub v: u8,
    /// Random; makes the Merkle leaves unguessable.
    salt: ByteBuf,
    /// The readings.
    pub entries: Vec<Entry>,
    /// What is missing of devices of which that has changed; nothing else in the bundle is about these gaps.
    pub gaps: Vec<SignedGapReport>,
}

impl Bundle {
    /// A bundle with a salt of its own.
    #[must_use]
    pub fn new(entries: Vec<Entry>) -> Self {
        Self {
            v: VERSION,
            salt: ByteBuf::from(rand::random::<[u8; 32]>()),
            entries,
            gaps: Vec::new(),
        }
    }

    /// With reports of what is missing.
    #[must_use]
    pub fn with_gaps(self, gaps: Vec<SignedGapReport>) -> Self {
        Self { gaps, ..self }
    }

    /// One digest per reading, then one per gap report, salted: SHA-256(domain, salt, canonical entry or report).
    #[must_use]
    pub fn leaves(&self) -> Vec<Digest> {
        let entries = self.entries.iter().map(canonical::encode);
        entries
            .chain(self.gaps.iter().map(canonical::encode))
            .map(|bytes| Digest::of(Domain::LEAF, &[&self.salt, &bytes]))
            .collect()
    }

    /// What the commitment on the chain says of the batch.
    #[must_use]
    pub fn root(&self) -> Digest {
        merkle::root(&self.leaves())
    }
}

/// Why a bundle cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Too many readings or too many bytes for one payload; split it.
    #[error("{bytes} bytes do not fit in one payload of {PAYLOAD_BYTES_MAX}: split the bundle")]
    TooLarge {
        /// Size of the plaintext.
        bytes: usize,
    },
    /// The key does not open it: another key, another network, or altered bytes.
    #[error("the payload does not open with this key on this network: it was sealed for another or was altered")]
    NotOpened,
    /// It opens, but what is inside is not a bundle.
    #[error("not a bundle we know: {0}")]
    Malformed(#[from] CanonicalError),
    /// The cryptographic library failed.
    #[error("the cryptographic library failed (no random numbers, or a malformed key)")]
    Crypto,
}

/// A bundle that only a holder of the subject's private half can read: the payload kept in vaults and named on the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedBundle {
    /// Version of the format.
    v: u8,
    /// Which subject key opens it.
    pub key: KeyId,
    /// What kind of record it is.
    pub category: Category,
    /// Generation of the key.
    pub epoch: u32,
    /// The gateway that sealed it.
    pub author: GatewayId,
    /// HPKE encapsulated secret.
    enc: ByteBuf,
    /// AES-256-GCM over the padded plaintext.
    ciphertext: ByteBuf,
}

impl SealedBundle {
    /// Seals a bundle to the public half of a subject key: HPKE base mode, X25519, HKDF-SHA256, AES-256-GCM (RFC 9180).
    ///
    /// # Errors
    /// [`SealError::TooLarge`] or [`SealError::Crypto`].
    pub fn seal(network: &NetworkId, author: &GatewayId, key: &SubjectKey, bundle: &Bundle) -> Result<Self, SealError> {
        let plaintext = canonical::encode(bundle);
        let plaintext = padded(&plaintext, &PADDING_CLASSES).ok_or(SealError::TooLarge { bytes: plaintext.len() })?;
        let mut sealed = Self {
            v: VERSION,
            key: key.id(),
            category: key.category,
            epoch: key.epoch,
            author: author.clone(),
            enc: ByteBuf::new(),
            ciphertext: ByteBuf::new(),
        };
        let aad = sealed.associated_data(network);
        let (enc, ciphertext) = SUITE
            .seal(
                Domain::BUNDLE.as_str().as_bytes(),
                &aad,
                &plaintext,
                &HpkePublicKey(key.public.clone()),
            )
            .map_err(|_| SealError::Crypto)?;
        sealed.enc = ByteBuf::from(enc.0);
        sealed.ciphertext = ByteBuf::from(ciphertext);
        Ok(sealed)
    }

    /// Opens it with the private half.
    ///
    /// # Errors
    /// [`SealError::NotOpened`] for the wrong key, network or any altered byte; [`SealError::Malformed`] if it is no bundle, or
    /// one of another version.
    pub fn open(&self, network: &NetworkId, secret: &SubjectSecret) -> Result<Bundle, SealError> {
        let aad = self.associated_data(network);
        let secret = HpkePrivateKey::from(secret.secret_bytes().to_vec());
        let enc = EncapsulatedSecret(self.enc.to_vec());
        let plaintext = SUITE
            .open(
                &enc,
                Domain::BUNDLE.as_str().as_bytes(),
                &aad,
                &self.ciphertext,
                &secret,
            )
            .map(Zeroizing::new)
            .map_err(|_| SealError::NotOpened)?;
        let (bundle, _zeros) = unpadded(&plaintext).ok_or(SealError::NotOpened)?;
        let bundle: Bundle = canonical::decode(bundle, PAYLOAD_BYTES_MAX)?;
        CanonicalError::unless(bundle.v, VERSION)?;
        Ok(bundle)
    }

    /// The payload's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Reads a payload's bytes.
    ///
    /// # Errors
    /// [`CanonicalError`], also for a version that we do not know.
    pub fn decode(payload: &[u8]) -> Result<Self, CanonicalError> {
        let sealed: Self = canonical::decode(payload, PAYLOAD_BYTES_MAX)?;
        CanonicalError::unless(sealed.v, VERSION)?;
        Ok(sealed)
    }

    /// The identifier of a payload.
    #[must_use]
    pub fn id_of(payload: &[u8]) -> BundleId {
        BundleId(Digest::of(Domain::BUNDLE, &[payload]))
    }

    /// Domain, network, key, category, epoch, schema and author: none of them can be exchanged without the seal breaking.
    fn associated_data(&self, network: &NetworkId) -> Vec<u8> {
        canonical::encode(&(
            Domain::BUNDLE.as_str(),
            network,
            self.key,
            self.category,
            self.epoch,
            self.v,
            &self.author,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{reading::tests::reading, signature::SigningKey};
    use proptest::prelude::*;

    fn network() -> NetworkId {
        NetworkId(Digest::of(Domain::GENESIS, &[b"test"]))
    }

    fn sealed() -> (SubjectSecret, Bundle, SealedBundle) {
        let (secret, key) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
        let entry = Entry::new(1, reading().sign(&SigningKey::random()));
        let report = crate::gaps::tests::report().sign(&SigningKey::random());
        let bundle = Bundle::new(vec![entry]).with_gaps(vec![report]);
        let sealed = SealedBundle::seal(&network(), &"home-1".parse().expect("good"), &key, &bundle).expect("seals");
        (secret, bundle, sealed)
    }

    #[test]
    fn a_holder_opens_what_was_sealed_and_nobody_else() {
        let (secret, bundle, sealed) = sealed();
        let payload = sealed.encode();
        let read = SealedBundle::decode(&payload).expect("decodes");
        assert_eq!(read.open(&network(), &secret).expect("opens"), bundle);
        let (other, _) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
        assert!(matches!(read.open(&network(), &other), Err(SealError::NotOpened)));
        assert!(matches!(
            read.open(&NetworkId(Digest::ZERO), &secret),
            Err(SealError::NotOpened)
        ));
    }

    #[test]
    fn the_size_says_only_the_class() {
        let (_, _, first) = sealed();
        let (_, _, second) = sealed();
        assert_eq!(first.ciphertext.len(), second.ciphertext.len());
        assert_eq!(first.ciphertext.len() % 256, 16);
    }

    #[test]
    fn a_bundle_that_is_too_large_says_so() {
        let (_, key) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
        let giant = SignedReading::receive(&vec![0; 65_536]).expect("as large as a message may be");
        let bundle = Bundle::new(vec![Entry::new(1, giant); 16]);
        let sealed = SealedBundle::seal(&network(), &"home-1".parse().expect("good"), &key, &bundle);
        assert!(matches!(sealed, Err(SealError::TooLarge { bytes }) if bytes > PAYLOAD_BYTES_MAX));
    }

    #[test]
    fn another_version_is_refused_and_says_so() {
        let (_, _, mut sealed) = sealed();
        sealed.v = VERSION + 1;
        let error = SealedBundle::decode(&sealed.encode()).expect_err("unknown");
        assert!(error.to_string().contains("version 3"), "{error}");
        let (secret, key) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
        let mut bundle = Bundle::new(vec![]);
        bundle.v = VERSION + 1;
        let author = "home-1".parse().expect("good");
        let sealed = SealedBundle::seal(&network(), &author, &key, &bundle).expect("seals");
        let error = sealed.open(&network(), &secret).expect_err("unknown");
        assert!(error.to_string().contains("version 3"), "{error}");
    }

    #[test]
    fn a_leaf_is_no_digest_of_a_message() {
        let (_, bundle, _) = sealed();
        let entry = canonical::encode(&bundle.entries[0]);
        assert_eq!(bundle.leaves()[0], Digest::of(Domain::LEAF, &[&bundle.salt, &entry]));
        assert_ne!(bundle.leaves()[0], Digest::of(Domain::READING, &[&bundle.salt, &entry]));
    }

    #[test]
    fn the_root_vouches_for_the_gap_reports_too() {
        let (_, bundle, _) = sealed();
        assert_eq!(bundle.leaves().len(), 2);
        let without = Bundle {
            gaps: vec![],
            ..bundle.clone()
        };
        assert_ne!(bundle.root(), without.root());
    }

    proptest! {
        #[test]
        fn a_flipped_byte_never_opens(at: usize, with in 1u8..=255) {
            let (secret, _, sealed) = sealed();
            let mut payload = sealed.encode();
            let at = at % payload.len();
            payload[at] ^= with;
            if let Ok(read) = SealedBundle::decode(&payload) {
                prop_assert!(read.open(&network(), &secret).is_err());
            }
        }
    }
}
