//! Our side of the session that an outside broker keeps: nothing, and that is said rather than left unknown.

use rumqttc::{PersistedAckMode, PersistedSession, SessionStore, SessionStoreError, SessionStoreKey};

/// What a library's session store answers with.
type Answer<'a, T> = std::pin::Pin<Box<dyn Future<Output = Result<T, SessionStoreError>> + Send + 'a>>;

/// Messages with a packet id of ours that may be under way: there are none but SUBSCRIBE.
pub(super) const OUTGOING_MAX: u16 = 1;

/// A store that always knows the same session: no packet of ours is under way.
///
/// It is true, because this client publishes with QoS 0 alone, and what it receives is known again by the outbox. Without a
/// store the library does not know which packet ids are free in a session that only the broker remembers, and refuses to
/// subscribe in it: a gateway that was killed between CONNACK and SUBSCRIBE would never hear a device again.
#[derive(Debug)]
pub(super) struct NothingUnderWay {
    pub(super) session_expiry_s: u32,
}

impl SessionStore for NothingUnderWay {
    fn load<'a>(&'a self, key: &'a SessionStoreKey) -> Answer<'a, Option<PersistedSession>> {
        let session = PersistedSession {
            format_version: 1,
            client_id: key.client_id().to_owned(),
            clean_start: false,
            session_expiry_interval: Some(self.session_expiry_s),
            outgoing_inflight_upper_limit: Some(OUTGOING_MAX),
            ack_mode: PersistedAckMode::Manual,
            last_pkid: 0,
            last_puback: 0,
            replay: Vec::new(),
            incoming_qos2: Vec::new(),
        };
        Box::pin(async { Ok(Some(session)) })
    }

    fn save<'a>(&'a self, _key: &'a SessionStoreKey, _session: &'a PersistedSession) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn clear<'a>(&'a self, _key: &'a SessionStoreKey) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}
