//! The proof that every node holds nothing of a subject key any more: its tombstone, and the word of each validator.
//!
//! A certificate of erasure is checked offline with the validators' keys alone. What it rests on: each confirmation is signed
//! with the key that its node votes with, stands in a final block above the tombstone, and names the same payloads as
//! all others, which whoever has the chain can count. It proves that a node *says* so; a node that keeps a copy can say it, too.

use std::collections::BTreeSet;

use cid::Cid;
use record::{
    canonical::{Digest, Domain},
    ids::{KeyId, OrganizationId},
    signature::PublicKey,
};
use serde::{Deserialize, Serialize};

use crate::{
    block::{Header, Height},
    handover::Committees,
    proof::{Included, Inclusion, ReceiptError},
    transaction::{Action, Author, Confirmation, PrivateHalf, TransactionId},
};

/// Bytes of JSON of a certificate, at most: every validator's word, with the votes of all on each.
pub const CERTIFICATE_BYTES_MAX: usize = 16 << 20;

/// Under this digest a key is erased, once.
#[must_use]
pub fn tombstone_id(key: &KeyId) -> Digest {
    Digest::of(Domain::ERASURE, &[key.0.as_bytes()])
}

/// Under this digest a validator gives its word on an erased key, once.
#[must_use]
pub fn confirmation_id(key: &KeyId, validator: &PublicKey) -> Digest {
    Digest::of(Domain::ERASURE, &[key.0.as_bytes(), validator.as_bytes()])
}

/// What a confirmation says of payloads: the digest of their identifiers' bytes, sorted, each once.
#[must_use]
pub fn digest_of(cids: &BTreeSet<Cid>) -> Digest {
    let mut bytes: Vec<_> = cids.iter().map(Cid::to_bytes).collect();
    bytes.sort_unstable();
    let parts: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
    Digest::of(Domain::ERASED_PAYLOADS, &parts)
}

/// Everything needed to check that a key is erased at every node. Its JSON text is strict: one certificate, one text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The erased key.
    pub key: KeyId,
    /// The custodian's transaction.
    pub tombstone: Inclusion,
    /// The validators' words, by their keys.
    pub confirmations: Vec<Inclusion>,
}

/// Why a certificate of erasure proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not the strict text of a certificate.
    #[error("not a certificate of erasure, or not its exact text: {0}")]
    Malformed(String),
    /// The tombstone does not hold.
    #[error("the tombstone: {0}")]
    Tombstone(String),
    /// A confirmation does not hold.
    #[error("the confirmation of {validator}: {why}")]
    Confirmation {
        /// Whose it should be.
        validator: String,
        /// What is wrong with it.
        why: String,
    },
    /// Two confirmations name different payloads: one of them is wrong.
    #[error("{0} confirms other payloads than the validators before it: one of them is wrong, ask who has the chain")]
    Disagreement(PublicKey),
    /// Somebody has not confirmed.
    #[error("validator {0} had a seat when the key was erased, or since, and has not confirmed; ask again when it has")]
    Missing(PublicKey),
}

/// One validator's word, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// Who.
    pub validator: PublicKey,
    /// What became of the private half there.
    pub private_half: PrivateHalf,
    /// The height of its word.
    pub height: Height,
}

/// A certificate of which every part was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedCertificate {
    /// The erased key.
    pub key: KeyId,
    /// Who erased it.
    pub custodian: OrganizationId,
    /// The header of the block with the tombstone.
    pub header: Header,
    /// How many payloads there were.
    pub payloads: u64,
    /// [`digest_of`] them.
    pub cids: Digest,
    /// Everybody's word, by key.
    pub confirmed: Vec<Confirmed>,
}

impl Certificate {
    /// The strict text.
    ///
    /// # Panics
    /// Never: all of it has a JSON form.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a certificate has string keys and whole numbers")
    }

    /// Checks the text of a certificate against a network's validators; any one changed byte makes it fail.
    ///
    /// # Errors
    /// [`CertificateError`] says which part does not hold.
    pub fn verify(text: &str, committees: &Committees) -> Result<VerifiedCertificate, CertificateError> {
        let malformed = |why: &str| CertificateError::Malformed(why.to_owned());
        if text.len() > CERTIFICATE_BYTES_MAX {
            return Err(malformed("it is too large"));
        }
        let certificate: Self = serde_json::from_str(text).map_err(|error| malformed(&error.to_string()))?;
        if certificate.to_json() != text {
            return Err(malformed("the text differs from the one canonical text of its content"));
        }
        certificate.check(committees)
    }

    fn check(self, committees: &Committees) -> Result<VerifiedCertificate, CertificateError> {
        let (custodian, erased) = self.tombstone_of(committees)?;
        let mut confirmed: Vec<Confirmed> = Vec::with_capacity(self.confirmations.len());
        let (mut said, mut last_epoch) = (None, erased.header.epoch);
        for inclusion in &self.confirmations {
            let (validator, confirmation, included) = self.confirmation_of(inclusion, &erased, committees)?;
            if confirmed.last().is_some_and(|before| before.validator >= validator) {
                return Err(CertificateError::Malformed(
                    "its confirmations are not ordered by validator, or one stands there twice".to_owned(),
                ));
            }
            let payloads = (confirmation.payloads, confirmation.cids);
            if *said.get_or_insert(payloads) != payloads {
                return Err(CertificateError::Disagreement(validator));
            }
            last_epoch = last_epoch.max(included.header.epoch);
            confirmed.push(Confirmed {
                validator,
                private_half: confirmation.private_half,
                height: included.header.height,
            });
        }
        let is_missing = |key: &PublicKey| confirmed.iter().all(|word| word.validator != *key);
        let expected = committees.between(erased.header.epoch..=last_epoch);
        if let Some(missing) = expected.into_iter().find(is_missing) {
            return Err(CertificateError::Missing(missing));
        }
        let (payloads, cids) = said.expect("every committee has a validator, and each has confirmed");
        Ok(VerifiedCertificate {
            key: self.key,
            custodian,
            header: erased.header,
            payloads,
            cids,
            confirmed,
        })
    }

    /// That the custodian's signature is right and the tombstone took effect, the validators say by confirming it.
    fn tombstone_of(&self, committees: &Committees) -> Result<(OrganizationId, Included), CertificateError> {
        let wrong = |why: String| CertificateError::Tombstone(why);
        let claims = self.tombstone.transaction.claims();
        let (Author::Organization(custodian), Action::Erase(erasure)) = (&claims.author, &claims.action) else {
            return Err(wrong("it is none".to_owned()));
        };
        if erasure.key != self.key || claims.network != committees.network() {
            return Err(wrong("it is another key's, or another network's".to_owned()));
        }
        let included = self.tombstone.check(committees);
        Ok((custodian.clone(), included.map_err(|error| wrong(error.to_string()))?))
    }

    fn confirmation_of(
        &self,
        inclusion: &Inclusion,
        erased: &Included,
        committees: &Committees,
    ) -> Result<(PublicKey, Confirmation, Included), CertificateError> {
        let claims = inclusion.transaction.claims();
        let wrong = |why: String| CertificateError::Confirmation {
            validator: match &claims.author {
                Author::Validator(key) => key.to_string(),
                _ => "no validator".to_owned(),
            },
            why,
        };
        let (Author::Validator(validator), Action::ConfirmErasure(confirmation)) = (&claims.author, &claims.action)
        else {
            return Err(wrong("it is none".to_owned()));
        };
        let tombstone: TransactionId = self.tombstone.transaction.id();
        if (confirmation.key, confirmation.tombstone, claims.network) != (self.key, tombstone, committees.network()) {
            return Err(wrong("it is about another erasure".to_owned()));
        }
        if !inclusion.transaction.is_signed_by(validator) {
            return Err(wrong("the signature is not the validator's".to_owned()));
        }
        let has_seat = committees.between(erased.header.epoch..=u64::MAX).contains(validator);
        if !has_seat {
            return Err(wrong("it had no seat when the key was erased, nor since".to_owned()));
        }
        let included = inclusion
            .check(committees)
            .map_err(|error: ReceiptError| wrong(error.to_string()))?;
        if included.header.height < erased.header.height {
            return Err(wrong("it stands before the tombstone".to_owned()));
        }
        Ok((*validator, *confirmation, included))
    }
}

#[cfg(test)]
mod tests;
