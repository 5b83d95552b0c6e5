//! One-time claims: a person prints one, a new device shows its secret and presents its key, and the claim is burnt.
//!
//! A claim is a file of its own in the data folder. The command makes it; from then on the running gateway alone writes it.
//! Whoever has the printed secret can present a key once, so it is kept as a hash, it ends soon, and what was presented counts
//! on the chain only when the operator approves it.

mod requests;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest};
use ledger::possession::Possession;
use record::{
    bundle::SubjectKey,
    ids::{DeviceId, GatewayId, NetworkId},
    signature::PublicKey,
};
use serde::{Deserialize, Serialize};

use crate::{kept, outbox::can_seal_to};

mod answer;
mod invitation;
mod name;
mod proof;

pub use self::{
    answer::{answer, answer_topic, request_topic},
    invitation::{Invitation, Kind, is_address},
    name::ClaimId,
    proof::SecretProof,
};

/// The folder in the data folder.
const FOLDER: &str = "claims";
/// More bytes than a claim has.
const CLAIM_BYTES_MAX: u64 = 64 << 10;
/// Claims that are kept, used ones among them, at most.
pub const CLAIMS_MAX: usize = 10_000;
/// More bytes than what a device presents has.
pub const REQUEST_BYTES_MAX: usize = 4_096;

/// A claim as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Its name.
    pub id: ClaimId,
    /// Which device it is for.
    pub device: DeviceId,
    /// Whom the device measures, unless it is assigned otherwise.
    pub subject: Option<SubjectKey>,
    /// SHA-256 of its secret, in hex; the secret is random, not chosen by a person.
    secret_sha256: String,
    /// Until when it can be used, in milliseconds since 1970.
    pub expires_ms: i64,
    /// What was presented.
    pub used: Option<Used>,
}

/// What a device has presented.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    /// Its key, which has proven itself.
    pub key: PublicKey,
    /// By that key.
    pub proof: Possession,
    /// SHA-256 of the password that it drew for itself, in hex: its MQTT user is called like the device.
    password_sha256: String,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
}

/// What a device presents, JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Presented {
    key: PublicKey,
    proof: Possession,
    password_sha256: String,
    /// That it knows the secret; absent where the secret was the password of its connection.
    #[serde(default)]
    secret_proof: Option<SecretProof>,
}

/// How it is known that who presents a key has the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// It was the password of the connection.
    Login,
    /// The request itself has to prove it, by a [`SecretProof`].
    Proof,
}

/// Why a claim is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such claim here, or the secret of another; who does not have it learns no more.
    #[error(
        "claim-unknown: there is no such claim here, or secret_proof is not by its secret over this very request; ask for a new code"
    )]
    Unknown,
    /// Too late.
    #[error("claim-expired: the code was not used in time; ask for a new one")]
    Expired,
    /// Burnt.
    #[error("claim-used: another key was presented with this code; if it was not yours, tell the operator at once")]
    Used,
    /// The key does not prove itself.
    #[error(
        "not-possessed: the proof must be the key's signature over vitalfog/device-key/v1, a line feed, and network/gateway/device"
    )]
    NotPossessed,
    /// Not what is expected.
    #[error(
        "malformed: expected {{\"key\", \"proof\", \"password_sha256\"}}, behind an outside broker also \"secret_proof\", each in \
         lower-case hex, and nothing else"
    )]
    Malformed,
    /// The disk does not take it.
    #[error("not-kept: the gateway could not keep it; try again")]
    NotKept,
}

impl Claim {
    /// Whether this is its secret.
    #[must_use]
    pub fn is_opened_by(&self, secret: &[u8]) -> bool {
        is_digest_of(&self.secret_sha256, secret)
    }

    /// The claim with what was presented. The same key may present itself again: its answer may have been lost.
    fn with(
        &self,
        place: (&NetworkId, &GatewayId),
        (presented, evidence): (&[u8], Evidence),
        now_ms: i64,
    ) -> Result<Self, Refused> {
        if presented.len() > REQUEST_BYTES_MAX {
            return Err(Refused::Malformed);
        }
        let Presented {
            key,
            proof,
            password_sha256,
            secret_proof,
        } = serde_json::from_slice(presented).map_err(|_| Refused::Malformed)?;
        if evidence == Evidence::Proof {
            let secret_proof = secret_proof.ok_or(Refused::Malformed)?;
            let said = proof::said(place, self, (&key, &password_sha256));
            if !secret_proof.holds(&self.secret_sha256, &said) {
                return Err(Refused::Unknown);
            }
        }
        if hex::decode(&password_sha256).map_or(0, |bytes| bytes.len()) != digest::SHA256_OUTPUT_LEN {
            return Err(Refused::Malformed);
        }
        if !proof.holds(place.0, (place.1, &self.device), &key) {
            return Err(Refused::NotPossessed);
        }
        match &self.used {
            Some(used) if used.key == key && used.password_sha256 == password_sha256 => return Ok(self.clone()),
            Some(_) => return Err(Refused::Used),
            None if now_ms > self.expires_ms => return Err(Refused::Expired),
            None => {}
        }
        let used = Used {
            key,
            proof,
            password_sha256,
            at_ms: now_ms,
        };
        Ok(Self {
            used: Some(used),
            ..self.clone()
        })
    }
}

fn is_digest_of(expected: &str, given: &[u8]) -> bool {
    let given = digest::digest(&digest::SHA256, given);
    let expected = hex::decode(expected).unwrap_or_default();
    verify_slices_are_equal(given.as_ref(), &expected).is_ok()
}

/// The claims of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    all: BTreeMap<ClaimId, Claim>,
    /// Of each device the one that was used last.
    last: BTreeMap<DeviceId, ClaimId>,
}

impl Claims {
    /// Where they are kept; its time changes with each of them.
    #[must_use]
    pub fn folder(data_dir: &Path) -> PathBuf {
        data_dir.join(FOLDER)
    }

    /// All that are kept.
    ///
    /// # Errors
    /// [`kept::Error`].
    pub fn load(data_dir: &Path) -> Result<Self, kept::Error> {
        let folder = Self::folder(data_dir);
        let disk = |error| kept::Error::Disk(folder.display().to_string(), error);
        let mut claims = Self::default();
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            entries => entries.map_err(disk)?,
        };
        for entry in entries {
            let path = entry.map_err(disk)?.path();
            // What is being written beside is none yet.
            if path.extension().is_none_or(|end| end != "json") {
                continue;
            }
            if let Some(claim) = read(&path)? {
                claims.take(claim);
            }
        }
        Ok(claims)
    }

    /// Makes a claim for a device, keeps it, and gives it with its secret, which is nowhere else. Claims that nobody used in
    /// time are removed.
    ///
    /// # Errors
    /// [`kept::Error`], also if there are too many.
    pub fn make(
        data_dir: &Path,
        (device, subject): (DeviceId, Option<SubjectKey>),
        (now_ms, valid_ms): (i64, i64),
    ) -> Result<(Claim, String), kept::Error> {
        let folder = Self::folder(data_dir);
        let disk = |error| kept::Error::Disk(folder.display().to_string(), error);
        kept::make_folder(&folder).map_err(disk)?;
        let known = Self::load(data_dir)?;
        for claim in known.iter() {
            if claim.used.is_none() && now_ms > claim.expires_ms {
                fs::remove_file(path(data_dir, &claim.id)).map_err(disk)?;
            }
        }
        if known.all.len() >= CLAIMS_MAX {
            return Err(disk(io::Error::other(format!("there are {CLAIMS_MAX} claims already"))));
        }
        let secret = hex::encode(rand::random::<[u8; 32]>());
        let claim = Claim {
            id: ClaimId::random(),
            device,
            subject,
            secret_sha256: hex::encode(digest::digest(&digest::SHA256, secret.as_bytes())),
            expires_ms: now_ms.saturating_add(valid_ms),
            used: None,
        };
        kept::replace(&path(data_dir, &claim.id), &claim)?;
        Ok((claim, secret))
    }

    /// Burns a claim for what was presented: it is on the disk when this returns. What the file says decides, so that nobody
    /// is let in twice.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn burn(
        data_dir: &Path,
        id: &ClaimId,
        place: (&NetworkId, &GatewayId),
        (presented, evidence, now_ms): (&[u8], Evidence, i64),
    ) -> Result<Claim, Refused> {
        let file = path(data_dir, id);
        let not_kept = |error: kept::Error| {
            tracing::error!(%error, "a claim could not be read or kept");
            Refused::NotKept
        };
        let claim = read(&file).map_err(not_kept)?.ok_or(Refused::Unknown)?;
        let burnt = claim.with(place, (presented, evidence), now_ms)?;
        if burnt != claim {
            kept::replace(&file, &burnt).map_err(not_kept)?;
        }
        Ok(burnt)
    }

    /// One of them.
    #[must_use]
    pub fn claim(&self, id: &ClaimId) -> Option<&Claim> {
        self.all.get(id)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Claim> {
        self.all.values()
    }

    /// Takes one, in the state that it has now.
    pub fn take(&mut self, claim: Claim) {
        if let Some(used) = &claim.used {
            let last = self.of_device(&claim.device);
            if last.is_none_or(|(_, last)| last.at_ms <= used.at_ms) {
                self.last.insert(claim.device.clone(), claim.id.clone());
            }
        }
        self.all.insert(claim.id.clone(), claim);
    }

    /// The claim of a device that was used last.
    #[must_use]
    pub fn of_device(&self, device: &DeviceId) -> Option<(&Claim, &Used)> {
        let last = self.all.get(self.last.get(device)?)?;
        Some((last, last.used.as_ref()?))
    }

    /// The claims that devices used last, and what they presented.
    pub fn claimed(&self) -> impl Iterator<Item = (&Claim, &Used)> {
        self.last.keys().filter_map(|device| self.of_device(device))
    }

    /// Whether this is the password that a claimed device drew.
    #[must_use]
    pub fn is_password(&self, device: &DeviceId, password: &[u8]) -> bool {
        self.of_device(device)
            .is_some_and(|(_, used)| is_digest_of(&used.password_sha256, password))
    }
}

/// A claim's file, if there is one. Its subject key is tried here: sealing to it later has no way to fail.
fn read(path: &Path) -> Result<Option<Claim>, kept::Error> {
    let claim = kept::read::<Claim>(path, CLAIM_BYTES_MAX)?;
    let bad = claim
        .as_ref()
        .filter(|claim| claim.subject.as_ref().is_some_and(|key| !can_seal_to(key)));
    match bad {
        Some(claim) => {
            let entry = format!("the claim of device {}", claim.device);
            Err(kept::Error::Unsealable(path.display().to_string(), entry))
        }
        None => Ok(claim),
    }
}

fn path(data_dir: &Path, id: &ClaimId) -> PathBuf {
    Claims::folder(data_dir).join(format!("{id}.json"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::standing::Standing;
    use record::{canonical::Digest, signature::SigningKey};

    pub(crate) fn presented(network: &NetworkId, device: &DeviceId, key: &SigningKey, password: &str) -> Vec<u8> {
        let home = "home-1".parse().expect("good");
        let proof = Possession::prove(network, (&home, device), key);
        let password_sha256 = hex::encode(digest::digest(&digest::SHA256, password.as_bytes()));
        serde_json::json!({"key": key.public(), "proof": proof, "password_sha256": password_sha256})
            .to_string()
            .into_bytes()
    }

    /// What a device presents at an outside broker.
    pub(crate) fn proven(
        (network, gateway): (&NetworkId, &GatewayId),
        claim: &Claim,
        (key, secret): (&SigningKey, &str),
    ) -> String {
        let mut request: serde_json::Value =
            serde_json::from_slice(&presented(network, &claim.device, key, "pw")).expect("JSON");
        let digest = request["password_sha256"].as_str().expect("text").to_owned();
        let said = proof::said((network, gateway), claim, (&key.public(), &digest));
        request["secret_proof"] = serde_json::json!(SecretProof::make(secret, &said));
        request.to_string()
    }

    #[test]
    fn a_claim_is_used_once_in_time_by_a_key_that_proves_itself() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (network, home) = (NetworkId(Digest::ZERO), "home-1".parse().expect("good"));
        let cuff: DeviceId = "cuff-1".parse().expect("good");
        let make = || Claims::make(folder.path(), (cuff.clone(), None), (1_000, 500)).expect("makes");
        let ((claim, secret), (late, _)) = (make(), make());
        let kept = fs::read_to_string(path(folder.path(), &claim.id)).expect("reads");
        assert!(!kept.contains(&secret), "hashed");
        assert!(claim.is_opened_by(secret.as_bytes()) && !claim.is_opened_by(b"guess"));
        let (key, other) = (SigningKey::random(), SigningKey::random());
        let burn = |id: &ClaimId, text: &[u8], now_ms| {
            Claims::burn(folder.path(), id, (&network, &home), (text, Evidence::Login, now_ms))
        };
        let good = presented(&network, &cuff, &key, "pw");
        let elsewhere = presented(&network, &"scale-1".parse().expect("good"), &key, "pw");
        assert_eq!(burn(&claim.id, &elsewhere, 1_000), Err(Refused::NotPossessed));
        assert_eq!(burn(&claim.id, b"{}", 1_000), Err(Refused::Malformed));
        assert_eq!(
            burn(&claim.id, &vec![b' '; REQUEST_BYTES_MAX + 1], 1_000),
            Err(Refused::Malformed)
        );
        assert_eq!(burn(&ClaimId::random(), &good, 1_000), Err(Refused::Unknown));
        assert_eq!(burn(&late.id, &good, 1_501), Err(Refused::Expired));
        let burnt = burn(&claim.id, &good, 1_500).expect("in time");
        assert_eq!(
            burn(&claim.id, &good, 9_999),
            Ok(burnt.clone()),
            "the answer may have been lost"
        );
        let thief = presented(&network, &cuff, &other, "pw");
        assert_eq!(burn(&claim.id, &thief, 1_400), Err(Refused::Used));
        let claims = Claims::load(folder.path()).expect("reads");
        assert_eq!(claims.claim(&claim.id), Some(&burnt), "after a restart");
        assert!(claims.is_password(&cuff, b"pw") && !claims.is_password(&cuff, b"pv"));
        let requests = claims.requests(&home, &Standing::default());
        assert_eq!(requests.len(), 1);
        assert!(requests[0].key == key.public() && requests[0].is_proven(&network));
        Claims::make(folder.path(), (cuff, None), (2_000, 500)).expect("makes");
        let left = Claims::load(folder.path()).expect("reads");
        assert!(
            left.claim(&late.id).is_none() && left.claim(&claim.id).is_some(),
            "swept"
        );
    }

    #[test]
    fn a_claim_that_nothing_can_be_sealed_by_is_refused_by_its_name() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (network, home) = (NetworkId(Digest::ZERO), "home-1".parse().expect("good"));
        let cuff = crate::standing::tests::cuff();
        let bad = crate::outbox::tests::unsealable();
        let (claim, _) = Claims::make(folder.path(), (cuff.clone(), Some(bad)), (1_000, 500)).expect("makes");
        let said = Claims::load(folder.path()).expect_err("small order").to_string();
        assert!(
            said.contains("device cuff-1") && said.contains(&claim.id.to_string()),
            "{said}"
        );
        let text = presented(&network, &cuff, &SigningKey::random(), "pw");
        let burnt = Claims::burn(
            folder.path(),
            &claim.id,
            (&network, &home),
            (&text, Evidence::Login, 1_000),
        );
        assert_eq!(burnt, Err(Refused::NotKept));
    }

    #[test]
    fn behind_an_outside_broker_a_request_proves_the_secret_and_does_not_show_it() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (network, home) = (NetworkId(Digest::ZERO), "home-1".parse().expect("good"));
        let cuff: DeviceId = "cuff-1".parse().expect("good");
        let make = || Claims::make(folder.path(), (cuff.clone(), None), (1_000, 500)).expect("makes");
        let ((claim, secret), (other, other_secret)) = (make(), make());
        let (key, thief) = (SigningKey::random(), SigningKey::random());
        let burn = |id: &ClaimId, text: &[u8]| {
            Claims::burn(folder.path(), id, (&network, &home), (text, Evidence::Proof, 1_000))
        };
        let place = (&network, &home);
        let request = |claim: &Claim, key: &SigningKey, secret: &str| proven(place, claim, (key, secret));
        let good = request(&claim, &key, &secret);
        assert!(!good.contains(&secret), "shown to whoever reads along");
        assert_eq!(
            burn(&claim.id, &presented(&network, &cuff, &key, "pw")),
            Err(Refused::Malformed),
            "no proof"
        );
        // What an intruder who reads everything can make of it before it is taken.
        let stolen: serde_json::Value = serde_json::from_str(&good).expect("JSON");
        let mut own: serde_json::Value = serde_json::from_str(&request(&claim, &thief, "guess")).expect("JSON");
        assert_eq!(burn(&claim.id, own.to_string().as_bytes()), Err(Refused::Unknown));
        own["secret_proof"] = stolen["secret_proof"].clone();
        assert_eq!(
            burn(&claim.id, own.to_string().as_bytes()),
            Err(Refused::Unknown),
            "another key"
        );
        let mut other_password = stolen.clone();
        other_password["password_sha256"] = serde_json::json!("00".repeat(32));
        assert_eq!(
            burn(&claim.id, other_password.to_string().as_bytes()),
            Err(Refused::Unknown)
        );
        assert_eq!(
            burn(&other.id, good.as_bytes()),
            Err(Refused::Unknown),
            "another claim of the same device"
        );
        assert_eq!(
            burn(&claim.id, request(&claim, &thief, &other_secret).as_bytes()),
            Err(Refused::Unknown)
        );
        let burnt = burn(&claim.id, good.as_bytes()).expect("proven");
        assert_eq!(burn(&claim.id, good.as_bytes()), Ok(burnt), "a replay changes nothing");
        assert_eq!(
            burn(&claim.id, request(&claim, &thief, &secret).as_bytes()),
            Err(Refused::Used)
        );
    }
}
