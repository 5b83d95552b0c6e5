//! Who may connect to the embedded broker, and which topics are whose.

use std::collections::HashMap;

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest};
use record::{
    ids::{DeviceId, GatewayId},
    topic::{self, Channel, Topic},
};
use serde::{Deserialize, Serialize};

/// One line of the users' file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The name it connects with.
    pub user: String,
    /// SHA-256 of its password (which is random, not chosen by a person), in hex; absent for who logs in with a certificate
    /// alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_sha256: Option<String>,
    /// The device it is; absent for the home's own user, which may publish for any device of this gateway: the devices'
    /// signatures still decide.
    pub device: Option<DeviceId>,
}

/// What a user may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rights {
    device: Option<DeviceId>,
}

impl Rights {
    /// Those of a device.
    pub(super) const fn of_device(device: DeviceId) -> Self {
        Self { device: Some(device) }
    }

    /// Whether the topic is one that this user's messages may come under.
    pub(super) fn may_publish(&self, topic: &Topic) -> bool {
        (topic.channel.carries_readings() || topic.channel == Channel::State) && self.is_own(&topic.device)
    }

    /// Whether the filter reaches nothing but what this user may see: all of its own device, and of the others what the
    /// gateway says to them, never what they measured.
    pub(super) fn may_subscribe(&self, gateway: &GatewayId, filter: &str) -> bool {
        let Some((device, channel)) = filter
            .strip_prefix(&topic::prefix(gateway))
            .and_then(|rest| rest.split_once('/'))
        else {
            return false;
        };
        match &self.device {
            Some(own) => device == own.as_str(),
            None => {
                let is_device = device == "+" || device.parse::<DeviceId>().is_ok();
                let told = [Channel::State, Channel::Ack, Channel::Error, Channel::Command];
                is_device && told.iter().any(|told| told.as_str() == channel)
            }
        }
    }

    /// The device this user is, if it is one.
    pub(super) const fn device(&self) -> Option<&DeviceId> {
        self.device.as_ref()
    }

    fn is_own(&self, device: &DeviceId) -> bool {
        self.device.as_ref().is_none_or(|own| own == device)
    }
}

/// The users, by name.
#[derive(Clone, Debug)]
pub struct Users {
    users: HashMap<String, (Option<[u8; 32]>, Rights)>,
}

impl Users {
    /// Takes the list of the users' file.
    ///
    /// # Errors
    /// A sentence: a name twice or empty, or a digest that is none.
    pub fn of(list: Vec<User>) -> Result<Self, String> {
        let mut users = HashMap::with_capacity(list.len());
        for user in list {
            let wrong = || format!("password_sha256 of {:?} must be 64 hex digits", user.user);
            let digest = user.password_sha256.as_ref().map(|text| {
                let bytes = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok());
                bytes.ok_or_else(wrong)
            });
            let digest = digest.transpose()?;
            let rights = Rights { device: user.device };
            if user.user.is_empty() || users.insert(user.user.clone(), (digest, rights)).is_some() {
                return Err(format!("user {:?} must have a name of its own", user.user));
            }
        }
        Ok(Self { users })
    }

    /// The rights of a user who gives the right password. An unknown name costs the same work as a wrong password.
    pub(super) fn authenticate(&self, name: &str, password: &[u8]) -> Option<&Rights> {
        const NOBODY: [u8; 32] = [0; 32];
        let given = digest::digest(&digest::SHA256, password);
        let known = self
            .users
            .get(name)
            .and_then(|(digest, rights)| Some((digest.as_ref()?, rights)));
        let expected = known.map_or(&NOBODY, |(digest, _)| digest);
        let is_right = verify_slices_are_equal(given.as_ref(), expected).is_ok();
        known.filter(|_| is_right).map(|(_, rights)| rights)
    }

    /// The rights of the user whom a certificate names. It must say the same name as user and as client id, and a password
    /// that comes along must be the right one.
    pub(super) fn recognise(
        &self,
        certificate: &str,
        (user, client_id): (&str, &str),
        password: Option<&[u8]>,
    ) -> Option<&Rights> {
        if user != certificate || client_id != certificate {
            return None;
        }
        match password.filter(|password| !password.is_empty()) {
            Some(password) => self.authenticate(user, password),
            None => self.rights(user),
        }
    }

    /// The rights of a user who is connected.
    pub(super) fn rights(&self, name: &str) -> Option<&Rights> {
        self.users.get(name).map(|(_, rights)| rights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, password: &str, device: Option<&str>) -> User {
        User {
            user: name.to_owned(),
            password_sha256: Some(hex::encode(digest::digest(&digest::SHA256, password.as_bytes()))),
            device: device.map(|d| d.parse().expect("good")),
        }
    }

    fn users() -> Users {
        Users::of(vec![
            user("scale", "s3cret", Some("scale-1")),
            user("home", "hom3", None),
        ])
        .expect("good")
    }

    fn topic(name: &str) -> Topic {
        Topic::parse(&"home-1".parse().expect("good"), &format!("vitalfog/v1/home-1/{name}")).expect("good")
    }

    #[test]
    fn only_the_right_password_opens() {
        assert!(users().authenticate("scale", b"s3cret").is_some());
        assert!(users().authenticate("scale", b"s3cre").is_none());
        assert!(users().authenticate("nobody", b"s3cret").is_none());
        assert!(users().authenticate("", b"").is_none());
    }

    #[test]
    fn a_certificate_opens_for_its_own_name_alone() {
        let users = users();
        let who = |user, client_id, password| users.recognise("scale", (user, client_id), password).is_some();
        assert!(who("scale", "scale", None) && who("scale", "scale", Some(b"s3cret".as_slice())));
        assert!(!who("scale", "scale", Some(b"wrong".as_slice())));
        assert!(!who("home", "scale", None) && !who("scale", "home", None) && !who("home", "home", Some(b"hom3")));
        assert!(users.recognise("nobody", ("nobody", "nobody"), None).is_none());
        let bare = User {
            password_sha256: None,
            ..user("bare", "", Some("bare-1"))
        };
        let bare = Users::of(vec![bare]).expect("good");
        assert!(bare.recognise("bare", ("bare", "bare"), None).is_some());
        assert!(
            bare.authenticate("bare", b"").is_none(),
            "without a password there is none to guess"
        );
    }

    #[test]
    fn a_device_publishes_under_its_own_topics_alone() {
        let users = users();
        let (scale, home) = (
            users.rights("scale").expect("known"),
            users.rights("home").expect("known"),
        );
        assert!(scale.may_publish(&topic("scale-1/reading")) && scale.may_publish(&topic("scale-1/state")));
        assert!(!scale.may_publish(&topic("oximeter-1/reading")));
        assert!(home.may_publish(&topic("scale-1/wave")) && home.may_publish(&topic("oximeter-1/event")));
        for channel in ["ack", "error", "cmd"] {
            assert!(!scale.may_publish(&topic(&format!("scale-1/{channel}"))));
            assert!(!home.may_publish(&topic(&format!("scale-1/{channel}"))));
        }
    }

    #[test]
    fn nobody_subscribes_to_what_another_measures() {
        let users = users();
        let home: GatewayId = "home-1".parse().expect("good");
        let may = |user: &str, filter: &str| users.rights(user).expect("known").may_subscribe(&home, filter);
        assert!(may("scale", "vitalfog/v1/home-1/scale-1/#"));
        assert!(may("home", "vitalfog/v1/home-1/+/error"));
        for filter in [
            "#",
            "+/#",
            "vitalfog/v1/home-1/#",
            "vitalfog/v1/home-1/+/error",
            "$SYS/#",
            "vitalfog/v1/home-1",
        ] {
            assert!(!may("scale", filter), "{filter}");
        }
        for filter in [
            "#",
            "vitalfog/v1/home-1/#",
            "vitalfog/v1/home-1/+/reading",
            "vitalfog/v1/home-1/scale-1/#",
        ] {
            assert!(!may("home", filter), "{filter}");
        }
    }

    #[test]
    fn a_users_file_with_a_fault_is_refused() {
        assert!(Users::of(vec![user("a", "x", None), user("a", "y", None)]).is_err());
        assert!(
            Users::of(vec![User {
                password_sha256: Some("abc".to_owned()),
                ..user("a", "x", None)
            }])
            .is_err()
        );
        assert!(Users::of(vec![user("", "x", None)]).is_err());
    }
}
