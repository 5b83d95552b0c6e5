//! The head of a sealed document: what everybody sees of it, and what only a holder of the private half opens.

use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE,
    hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey},
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use zeroize::{Zeroize as _, Zeroizing};

use super::{KEY_BYTES, Metadata, TAG_BYTES, VERSION};
use crate::{
    bundle::{Category, SubjectKey, SubjectSecret},
    canonical::{self, CanonicalError, Digest, Domain},
    ids::{GatewayId, KeyId, NetworkId},
    padding::{padded, unpadded},
};

/// Frame and head together have at most this many bytes.
pub const HEAD_BYTES_MAX: usize = 1_024;
/// The length of the head, in front of it.
const FRAME_BYTES: usize = 4;
/// What is sealed in the head has this size, whatever it says.
const INSIDE_BYTES: usize = 512;
/// What HPKE encapsulates with X25519.
const POINT_BYTES: usize = 32;

/// What is sealed in the head.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inside {
    content_key: ByteBuf,
    metadata: Metadata,
}

/// The content key: wiped when dropped.
pub(super) type ContentKey = Zeroizing<[u8; KEY_BYTES]>;

/// What everybody sees of a document: whose key opens it, and who sealed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedHead {
    /// Version of the sealed form.
    v: u8,
    /// Which subject key opens it.
    pub key: KeyId,
    /// What kind of record it is.
    pub category: Category,
    /// Generation of the key.
    pub epoch: u32,
    /// Who sealed it.
    pub author: GatewayId,
    /// HPKE encapsulated secret.
    enc: ByteBuf,
    /// AES-256-GCM over content key and metadata, padded.
    ciphertext: ByteBuf,
}

impl SealedHead {
    /// Seals a content key and what is said of the document; `None` if the system gives no random numbers or the subject's
    /// key is none.
    pub(super) fn seal(
        (network, author, key): (&NetworkId, &GatewayId, &SubjectKey),
        content_key: &ContentKey,
        metadata: &Metadata,
    ) -> Option<Self> {
        let mut head = Self {
            v: VERSION,
            key: key.id(),
            category: key.category,
            epoch: key.epoch,
            author: author.clone(),
            enc: ByteBuf::new(),
            ciphertext: ByteBuf::new(),
        };
        let mut inside = Inside {
            content_key: ByteBuf::from(content_key.as_slice()),
            metadata: metadata.clone(),
        };
        let plaintext = Zeroizing::new(canonical::encode(&inside));
        // ByteBuf does not wipe itself.
        inside.content_key.zeroize();
        let plaintext = padded(&plaintext, &[INSIDE_BYTES])?;
        let public = HpkePublicKey(key.public.clone());
        let (info, aad) = (Domain::DOCUMENT.as_str().as_bytes(), head.associated_data(network));
        let (enc, ciphertext) = SUITE.seal(info, &aad, &plaintext, &public).ok()?;
        (head.enc, head.ciphertext) = (ByteBuf::from(enc.0), ByteBuf::from(ciphertext));
        Some(head)
    }

    /// The content key and what is said of the document; `None` for another key or network, or altered bytes.
    pub(super) fn open(&self, network: &NetworkId, secret: &SubjectSecret) -> Option<(ContentKey, Metadata)> {
        let secret = HpkePrivateKey::from(secret.secret_bytes().to_vec());
        let enc = EncapsulatedSecret(self.enc.to_vec());
        let (info, aad) = (Domain::DOCUMENT.as_str().as_bytes(), self.associated_data(network));
        let plaintext = SUITE.open(&enc, info, &aad, &self.ciphertext, &secret).ok()?;
        let plaintext = Zeroizing::new(plaintext);
        let (inside, zeros) = unpadded(&plaintext)?;
        // Not `canonical::decode`: its encoding again would leave a copy of the key in memory.
        let mut inside: Inside = canonical::decode_foreign(inside, INSIDE_BYTES).ok()?;
        let content_key = inside.content_key.as_slice().try_into().ok().map(Zeroizing::new);
        inside.content_key.zeroize();
        let whole = zeros.iter().all(|byte| *byte == 0);
        content_key.filter(|_| whole).map(|key| (key, inside.metadata))
    }

    /// Frame and head: how a sealed document begins.
    #[must_use]
    pub fn framed(&self) -> Vec<u8> {
        let head = canonical::encode(self);
        let length = u32::try_from(head.len()).expect("a head is small");
        [&length.to_be_bytes()[..], &head].concat()
    }

    /// Reads the head from the first bytes of a document ([`HEAD_BYTES_MAX`] are enough), and says how many bytes of them it and
    /// its frame are.
    ///
    /// # Errors
    /// [`CanonicalError`], also for a version that we do not know.
    pub fn read(start: &[u8]) -> Result<(Self, u64), CanonicalError> {
        let short = || CanonicalError::Malformed("it does not begin with a head that is as long as it says".to_owned());
        let (length, rest) = start.split_first_chunk::<FRAME_BYTES>().ok_or_else(short)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| short())?;
        let bytes_max = HEAD_BYTES_MAX - FRAME_BYTES;
        let head = rest
            .get(..length)
            .filter(|head| head.len() <= bytes_max)
            .ok_or_else(short)?;
        let head: Self = canonical::decode(head, bytes_max)?;
        CanonicalError::unless(head.v, VERSION)?;
        let sealed = INSIDE_BYTES + usize::try_from(TAG_BYTES).expect("a tag is small");
        if head.enc.len() != POINT_BYTES || head.ciphertext.len() != sealed {
            return Err(short());
        }
        Ok((head, (FRAME_BYTES + length) as u64))
    }

    /// What every segment is bound to.
    pub(super) fn digest(framed: &[u8]) -> Digest {
        Digest::of(Domain::DOCUMENT, &[framed])
    }

    /// Domain, network, key, category, epoch, schema and author: none of them can be exchanged without the seal breaking.
    fn associated_data(&self, network: &NetworkId) -> Vec<u8> {
        canonical::encode(&(
            Domain::DOCUMENT.as_str(),
            network,
            self.key,
            self.category,
            self.epoch,
            self.v,
            &self.author,
        ))
    }
}
