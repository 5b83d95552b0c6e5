//! How claims are called: in files, topics and users.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What the MQTT user of a claim begins with.
const USER: &str = "claim-";

/// The name of a claim: 16 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClaimId(String);

impl ClaimId {
    pub(super) fn random() -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;

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
