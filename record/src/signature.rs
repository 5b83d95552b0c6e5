//! Who vouches for bytes: ed25519 keys and signatures, always under a domain, always checked strictly.

use std::{fmt, str::FromStr};

use ed25519_dalek::{
    Signer as _,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, spki::der::pem::LineEnding},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use zeroize::Zeroizing;

use crate::canonical::Domain;

/// A key or a signature that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The bytes are no key of this kind, or a weak one.
    #[error("not a usable ed25519 key: {0}")]
    BadKey(String),
    /// The signature does not belong to these bytes, this domain and this key.
    #[error("the signature does not verify")]
    Wrong,
}

/// The public half of an ed25519 pair: 32 bytes, hex as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// A key from its 32 bytes; weak (small-order) points are refused, since a signature could be forged for them.
    ///
    /// # Errors
    /// [`SignatureError::BadKey`].
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, SignatureError> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(&bytes).map_err(|e| SignatureError::BadKey(e.to_string()))?;
        if key.is_weak() {
            return Err(SignatureError::BadKey("a point of small order".to_owned()));
        }
        Ok(Self(bytes))
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Checks a signature over the domain and the bytes as received (never over a re-encoding).
    ///
    /// # Errors
    /// [`SignatureError::Wrong`].
    pub fn verify(&self, domain: Domain, bytes: &[u8], signature: &Signature) -> Result<(), SignatureError> {
        self.verify_raw(&framed(domain, bytes), signature)
    }

    /// Checks a signature over exactly these bytes: for formats that frame themselves (COSE, the engine's votes).
    ///
    /// # Errors
    /// [`SignatureError::Wrong`].
    pub fn verify_raw(&self, bytes: &[u8], signature: &Signature) -> Result<(), SignatureError> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(&self.0).map_err(|_| SignatureError::Wrong)?;
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        key.verify_strict(bytes, &signature).map_err(|_| SignatureError::Wrong)
    }
}

/// An ed25519 signature: 64 bytes, hex as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature([u8; 64]);

impl Signature {
    /// A signature from its 64 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// The 64 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

/// The private half of an ed25519 pair. It is wiped when dropped and never printed.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// A new key from the system's random numbers.
    #[must_use]
    pub fn random() -> Self {
        let seed: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
        Self(ed25519_dalek::SigningKey::from_bytes(&seed))
    }

    /// Reads a PKCS#8 PEM file's text, as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// [`SignatureError::BadKey`].
    pub fn from_pem(pem: &str) -> Result<Self, SignatureError> {
        let key = ed25519_dalek::SigningKey::from_pkcs8_pem(pem).map_err(|e| SignatureError::BadKey(e.to_string()))?;
        Ok(Self(key))
    }

    /// The key as PKCS#8 PEM, as openssl reads it.
    ///
    /// # Errors
    /// [`SignatureError::BadKey`] if it cannot be encoded.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, SignatureError> {
        // Without the optional public half: openssl 3.0 does not read that form (RFC 5958 version 2).
        let secret = ed25519_dalek::pkcs8::KeypairBytes {
            secret_key: self.0.to_bytes(),
            public_key: None,
        };
        secret
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|e| SignatureError::BadKey(e.to_string()))
    }

    /// The 32 secret bytes, for the engine that wants its own key type.
    #[must_use]
    pub fn secret_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs the domain and the bytes.
    #[must_use]
    pub fn sign(&self, domain: Domain, bytes: &[u8]) -> Signature {
        self.sign_raw(&framed(domain, bytes))
    }

    /// Signs exactly these bytes: for formats that frame themselves.
    #[must_use]
    pub fn sign_raw(&self, bytes: &[u8]) -> Signature {
        Signature(self.0.sign(bytes).to_bytes())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {})", self.public())
    }
}

/// What is signed: the domain, a line feed, the bytes. A shell can build it with `printf '%s\n%s'`.
fn framed(domain: Domain, bytes: &[u8]) -> Vec<u8> {
    [domain.as_str().as_bytes(), b"\n", bytes].concat()
}

macro_rules! hex_bytes {
    ($name:ident, $length:literal, $make:expr) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = SignatureError;

            fn from_str(text: &str) -> Result<Self, SignatureError> {
                let wrong = || SignatureError::BadKey(format!("expected {} lower-case hex digits", $length * 2));
                if text.bytes().any(|b| b.is_ascii_uppercase()) {
                    return Err(wrong());
                }
                let bytes: [u8; $length] = hex::decode(text)
                    .ok()
                    .and_then(|b| b.try_into().ok())
                    .ok_or_else(wrong)?;
                $make(bytes)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    return String::deserialize(deserializer)?
                        .parse()
                        .map_err(D::Error::custom);
                }
                let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?.into_vec();
                let bytes: [u8; $length] = bytes
                    .try_into()
                    .map_err(|_| D::Error::custom(concat!("expected ", $length, " bytes")))?;
                $make(bytes).map_err(|e: SignatureError| D::Error::custom(e))
            }
        }
    };
}

hex_bytes!(PublicKey, 32, PublicKey::from_bytes);
hex_bytes!(Signature, 64, |bytes| Ok(Signature(bytes)));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_domain_bytes_and_key_only() {
        let (key, other) = (SigningKey::random(), SigningKey::random());
        let signature = key.sign(Domain::HEAD, b"head");
        assert!(key.public().verify(Domain::HEAD, b"head", &signature).is_ok());
        assert!(key.public().verify(Domain::ADMISSION, b"head", &signature).is_err());
        assert!(key.public().verify(Domain::HEAD, b"heap", &signature).is_err());
        assert!(other.public().verify(Domain::HEAD, b"head", &signature).is_err());
    }

    #[test]
    fn a_key_survives_its_pem_and_is_not_printed() {
        let key = SigningKey::random();
        let pem = key.to_pem().expect("encodes");
        assert_eq!(SigningKey::from_pem(&pem).expect("decodes").public(), key.public());
        assert!(!format!("{key:?}").contains(&hex::encode(*key.secret_bytes())));
    }

    #[test]
    fn weak_keys_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        assert!(PublicKey::from_bytes(identity).is_err());
        assert!(PublicKey::from_bytes([0; 32]).is_err());
    }
}
