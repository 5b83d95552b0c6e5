//! Lets at most so many at a time through per name, so that one busy party cannot take a whole room.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A turnstile; callers bring a name the chain knows, so the number of names is bounded by the number of members.
pub struct Turnstile<K> {
    inside_max: usize,
    // A mutex and not a task: it is held for one lookup, never across an await.
    names: Mutex<HashMap<K, Arc<Semaphore>>>,
}

/// Being inside; dropped on the way out.
#[derive(Debug)]
pub struct Inside(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl<K: Eq + Hash + Clone> Turnstile<K> {
    /// A turnstile that lets `inside_max` at a time through per name.
    #[must_use]
    pub fn new(inside_max: usize) -> Self {
        Self {
            inside_max,
            names: Mutex::default(),
        }
    }

    /// Goes through, or `None` if too many of this name are inside.
    pub fn enter(&self, name: &K) -> Option<Inside> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let semaphore = match names.get(name) {
            Some(semaphore) => semaphore,
            None => names
                .entry(name.clone())
                .or_insert_with(|| Arc::new(Semaphore::new(self.inside_max))),
        };
        semaphore.clone().try_acquire_owned().ok().map(Inside)
    }
}

impl<K> fmt::Debug for Turnstile<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turnstile")
            .field("inside_max", &self.inside_max)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_does_not_use_up_anothers_places() {
        let turnstile = Turnstile::new(1);
        let inside = turnstile.enter(&"a");
        assert!(inside.is_some());
        assert!(turnstile.enter(&"a").is_none());
        assert!(turnstile.enter(&"b").is_some());
        drop(inside);
        assert!(turnstile.enter(&"a").is_some());
    }
}
