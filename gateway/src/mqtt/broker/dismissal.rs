//! Ends the sessions of devices that are revoked: the connection, and what the broker kept for them.

use rmqtt::{context::ServerContext, types::Id};

use super::{Sessions, logins::Logins};
use crate::directory::Directory;

/// Ends them from now on, until it is dropped.
pub(super) async fn run(sessions: Sessions, logins: Logins, directory: Directory) {
    let mut changes = directory.changes();
    loop {
        let is_out = |user: &str| logins.device(user).is_some_and(|device| directory.is_out(&device));
        dismiss(sessions.context(), is_out).await;
        changes.next().await;
    }
}

async fn dismiss(context: &ServerContext, is_out: impl Fn(&str) -> bool) {
    let shared = context.extends.shared().await;
    // First whom, then how: the iterator holds a lock that ending a session needs.
    let whom: Vec<Id> = shared
        .iter()
        .map(|entry| entry.id())
        .filter(|id| is_out(id.username_ref()))
        .collect();
    for id in whom {
        let mut entry = match shared.entry(id).try_lock().await {
            Ok(entry) => entry,
            Err(error) => {
                tracing::debug!(%error, "a session is busy; its next message ends it");
                continue;
            }
        };
        match entry.kick(true, true, true).await {
            Ok(_) => metrics::counter!("gateway_mqtt_sessions_dismissed_total").increment(1),
            Err(error) => tracing::debug!(%error, "a session could not be ended; its next message ends it"),
        }
    }
}
