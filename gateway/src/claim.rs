//! One-time claims: a person prints one, a new device shows its secret and presents its key, and the claim is burnt.
//!
//! A claim is a file of its own in the data folder. The command makes it; from then on the running gateway alone writes it.
//! Whoever has the printed secret can present a key once, so it is kept as a hash, it ends soon, and what was presented counts
//! on the chain only when the operator approves it.

mod requests;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
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

/// The folder in the data folder.
const FOLDER: &str = "claims";
/// More bytes than a claim has.
const CLAIM_BYTES_MAX: u64 = 64 << 10;
/// Claims that are kept, used ones among them, at most.
pub const CLAIMS_MAX: usize = 10_000;
/// More bytes than what a device presents has.
pub const REQUEST_BYTES_MAX: usize = 4_096;
/// What the MQTT user of a claim begins with.
const USER: &str = "claim-";

/// The name of a claim: 16 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClaimId(String);

impl ClaimId {
    fn random() -> Self {
        Self(format!("{:016x}", rand::random::<u64>()))
    }

    /// The claim whose MQTT user this is.
    #[must_use]
    pub fn of_user(user: &str) -> Option<Self> {
        user.strip_prefix(USER)?.parse().ok()
    }

    /// Its MQTT user.
    #[must_use]
    pub fn user(&self) -> String {
        format!("{USER}{}", self.0)
    }
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ClaimId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 16 && text.bytes().all(is_digit) {
            Ok(Self(text.to_owned()))
        } else {
            Err("a claim's name has 16 lower-case hex digits".to_owned())
        }
    }
}

impl TryFrom<String> for ClaimId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ClaimId> for String {
    fn from(id: ClaimId) -> Self {
        id.0
    }
}

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
}

/// Why a claim is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such claim here.
    #[error("claim-unknown: there is no such claim here; ask for a new code")]
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
        "malformed: expected {{\"key\", \"proof\", \"password_sha256\"}}, each in lower-case hex, and nothing else"
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
    fn with(&self, place: (&NetworkId, &GatewayId), presented: &[u8], now_ms: i64) -> Result<Self, Refused> {
        if presented.len() > REQUEST_BYTES_MAX {
            return Err(Refused::Malformed);
        }
        let Presented {
            key,
            proof,
            password_sha256,
        } = serde_json::from_slice(presented).map_err(|_| Refused::Malformed)?;
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
        fs::create_dir_all(&folder).map_err(disk)?;
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
        (presented, now_ms): (&[u8], i64),
    ) -> Result<Claim, Refused> {
        let file = path(data_dir, id);
        let not_kept = |error: kept::Error| {
            tracing::error!(%error, "a claim could not be read or kept");
            Refused::NotKept
        };
        let claim = read(&file).map_err(not_kept)?.ok_or(Refused::Unknown)?;
        let burnt = claim.with(place, presented, now_ms)?;
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

/// What is printed for the device: everything that it needs to find, check and ask this gateway.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invitation {
    /// The version of this form.
    pub v: u8,
    /// Where to connect, `mqtts://host:port`.
    pub url: String,
    /// SHA-256 of the certificate of the authority that signed the gateway's, in hex.
    pub ca_sha256: String,
    /// The network, for the proof.
    pub network: NetworkId,
    /// The gateway, for topics and the proof.
    pub gateway: GatewayId,
    /// What the device seals its messages to, 64 hexadecimal digits.
    pub reading_key: String,
    /// What the device is called.
    pub device: DeviceId,
    /// The claim; the MQTT user is `claim-` and this.
    pub claim: ClaimId,
    /// The password of that user.
    pub secret: String,
    /// Until when, in milliseconds since 1970.
    pub expires_ms: i64,
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invitation({} for {})", self.claim, self.device)
    }
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
        let burn =
            |id: &ClaimId, text: &[u8], now_ms| Claims::burn(folder.path(), id, (&network, &home), (text, now_ms));
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
        let burnt = Claims::burn(folder.path(), &claim.id, (&network, &home), (&text, 1_000));
        assert_eq!(burnt, Err(Refused::NotKept));
    }

    #[test]
    fn names_of_claims_lead_nowhere_else() {
        for bad in [
            "",
            "../../etc/x",
            "00000000000000zz",
            "0123456789ABCDEF",
            "0123456789abcdef0",
        ] {
            assert!(bad.parse::<ClaimId>().is_err(), "{bad}");
        }
        let id: ClaimId = "0123456789abcdef".parse().expect("good");
        assert_eq!(ClaimId::of_user(&id.user()), Some(id));
    }
}
