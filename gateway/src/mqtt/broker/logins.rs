//! Who may connect to the embedded broker: the listed users, devices that were claimed, and claims that are to be used.

use record::ids::DeviceId;

use super::rights::{Rights, Users};
use crate::{claim::ClaimId, directory::Directory};

/// All of them. A listed user goes before a claimed device of the same name.
#[derive(Clone, Debug)]
pub(super) struct Logins {
    users: Users,
    directory: Directory,
}

/// Who is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// A user of the list, or a claimed device.
    User(Rights),
    /// Somebody who knows the secret of a claim.
    Claimant(ClaimId),
}

impl Login {
    /// What they may do with topics of devices.
    pub(super) const fn rights(&self) -> Option<&Rights> {
        match self {
            Self::User(rights) => Some(rights),
            Self::Claimant(_) => None,
        }
    }
}

impl Logins {
    pub(super) const fn new(users: Users, directory: Directory) -> Self {
        Self { users, directory }
    }

    /// Who gives the right password.
    pub(super) fn authenticate(&self, name: &str, password: &[u8]) -> Option<Login> {
        if let Some(rights) = self.users.authenticate(name, password) {
            return Some(Login::User(rights.clone()));
        }
        if self.users.rights(name).is_some() {
            return None;
        }
        if let Some(claim) = ClaimId::of_user(name) {
            let opens = self.directory.is_claim_opened(&claim, password);
            return opens.then_some(Login::Claimant(claim));
        }
        let device: DeviceId = name.parse().ok()?;
        let is_right = self.directory.is_claimed_by(&device, password);
        is_right.then(|| Login::User(Rights::of_device(device)))
    }

    /// Whom a certificate names. It must say the same name as user and as client id, and a password that comes along must be
    /// the right one.
    pub(super) fn recognise(
        &self,
        certificate: &str,
        (user, client_id): (&str, &str),
        password: Option<&[u8]>,
    ) -> Option<Login> {
        if self.users.rights(user).is_some() {
            let rights = self.users.recognise(certificate, (user, client_id), password);
            return rights.cloned().map(Login::User);
        }
        let device: DeviceId = certificate.parse().ok()?;
        let is_named = user == certificate && client_id == certificate && self.directory.is_claimed(&device);
        let is_right = password
            .filter(|password| !password.is_empty())
            .is_none_or(|password| self.directory.is_claimed_by(&device, password));
        (is_named && is_right).then(|| Login::User(Rights::of_device(device)))
    }

    /// The rights of somebody who is connected; a claimant has none of them.
    pub(super) fn rights(&self, name: &str) -> Option<Rights> {
        if let Some(rights) = self.users.rights(name) {
            return Some(rights.clone());
        }
        let device: DeviceId = name.parse().ok()?;
        self.directory.is_claimed(&device).then(|| Rights::of_device(device))
    }

    /// The device that somebody is who is connected.
    pub(super) fn device(&self, name: &str) -> Option<DeviceId> {
        self.rights(name)?.device().cloned()
    }
}
