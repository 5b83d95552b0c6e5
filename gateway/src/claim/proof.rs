//! The proof that who presents a key has a claim's secret, made so that whoever reads it learns nothing of the secret.
//!
//! It covers everything that is presented, so that it is of no use for another key, device, claim, gateway or network. Its key is
//! the digest of the secret, which is what a gateway keeps of it: who reads the gateway's folder could make proofs for claims that
//! are open, and what was presented counts for others only when the operator has approved it.

use aws_lc_rs::{digest, hmac};
use record::{
    ids::{GatewayId, NetworkId},
    signature::PublicKey,
};
use serde::{Deserialize, Serialize};

use super::Claim;

/// What begins the text.
const DOMAIN: &str = "vitalfog/claim/v1";

/// HMAC-SHA256 over the text, by the SHA-256 of the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretProof(String);

impl SecretProof {
    /// By a secret, over a text.
    #[must_use]
    pub fn make(secret: &str, said: &str) -> Self {
        let digest = digest::digest(&digest::SHA256, secret.as_bytes());
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, digest.as_ref()), said.as_bytes());
        Self(hex::encode(tag))
    }

    /// Whether it is by the secret of this digest; takes as long whatever is wrong.
    pub(super) fn holds(&self, secret_sha256: &str, said: &str) -> bool {
        let (Ok(key), Ok(tag)) = (hex::decode(secret_sha256), hex::decode(&self.0)) else {
            return false;
        };
        hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &key), said.as_bytes(), &tag).is_ok()
    }
}

/// The text: domain, network/gateway/device, claim, key and password digest, a line each.
pub(super) fn said(
    (network, gateway): (&NetworkId, &GatewayId),
    claim: &Claim,
    (key, password_sha256): (&PublicKey, &str),
) -> String {
    let (device, id) = (&claim.device, &claim.id);
    format!("{DOMAIN}\n{network}/{gateway}/{device}\n{id}\n{key}\n{password_sha256}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_hmac_that_others_compute() {
        // printf 'text' | openssl dgst -sha256 -mac HMAC -macopt hexkey:$(printf secret | sha256sum | cut -c-64)
        let proof = SecretProof::make("secret", "text");
        assert_eq!(
            proof.0,
            "f68faf509cc1721126aaa1ee6c9d0bf7ff652039082b57dabf21840af24ac6c6"
        );
        let digest = hex::encode(digest::digest(&digest::SHA256, b"secret"));
        assert!(proof.holds(&digest, "text") && !proof.holds(&digest, "texts"));
        assert!(!SecretProof("00".repeat(32)).holds(&digest, "text"));
        for bad in ["", "zz", &proof.0[..62]] {
            assert!(!SecretProof(bad.to_owned()).holds(&digest, "text"), "{bad}");
        }
    }
}
