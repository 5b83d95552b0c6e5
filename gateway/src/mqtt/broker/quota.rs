//! How many sessions each user has: one user cannot take those of the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A login that has not become a session within this time does not count any more.
const LOGIN_MAX: Duration = Duration::from_secs(30);

/// The sessions of each user, by client id: those that exist since nothing, those that are being opened since then.
type Sessions = HashMap<String, HashMap<String, Option<Instant>>>;

/// The sessions of each user.
#[derive(Clone, Debug)]
pub(super) struct Quota {
    per_user_max: usize,
    // Held for one look, never across an await: logins run side by side, and counting them must not.
    users: Arc<Mutex<Sessions>>,
}

impl Quota {
    /// So many for each user.
    pub(super) fn of(per_user_max: usize) -> Self {
        Self {
            per_user_max,
            users: Arc::default(),
        }
    }

    /// Whether the user may open or resume this session, which then counts; `is_theirs` says whether a session of the user
    /// exists, connected or not.
    pub(super) fn take(&self, user: &str, client_id: &str, is_theirs: impl Fn(&str) -> bool) -> bool {
        let mut users = self.lock();
        let sessions = users.entry(user.to_owned()).or_default();
        sessions.retain(|id, opening| opening.is_some_and(|at| at.elapsed() < LOGIN_MAX) || is_theirs(id));
        if sessions.len() >= self.per_user_max && !sessions.contains_key(client_id) {
            return false;
        }
        sessions.insert(client_id.to_owned(), Some(Instant::now()));
        true
    }

    /// The session exists now: it counts for as long as it does.
    pub(super) fn opened(&self, user: &str, client_id: &str) {
        let mut users = self.lock();
        if let Some(opening) = users.get_mut(user).and_then(|sessions| sessions.get_mut(client_id)) {
            *opening = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_counts_while_it_is_opened_and_while_it_exists() {
        let quota = Quota::of(2);
        let nothing = |_: &str| false;
        assert!(quota.take("scale", "a", nothing) && quota.take("scale", "b", nothing));
        assert!(!quota.take("scale", "c", nothing), "both are being opened");
        assert!(quota.take("scale", "a", nothing), "the same again");
        assert!(quota.take("oximeter", "c", nothing), "another user");
        quota.opened("scale", "a");
        assert!(!quota.take("scale", "c", |id| id == "a"), "it exists");
        assert!(quota.take("scale", "c", nothing), "it is gone");
    }
}
