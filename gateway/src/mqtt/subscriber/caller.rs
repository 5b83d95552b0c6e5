//! Asks a device something through the outside broker.

use std::num::NonZeroU32;

use rumqttc::{AsyncClient, PublishOptions, PublishProperties};

/// Publishes with QoS 0, so that nothing of ours is ever under way in the session; what is lost is asked again.
#[derive(Clone)]
pub struct Caller(pub(super) AsyncClient);

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Caller")
    }
}

impl Caller {
    /// Publishes a text, for whoever listens until its end.
    pub(in crate::mqtt) fn say(&self, topic: String, text: String, expiry_s: NonZeroU32) {
        let properties = PublishProperties {
            message_expiry_interval: Some(expiry_s.get()),
            ..PublishProperties::default()
        };
        let options = PublishOptions::at_most_once().properties(properties);
        if self.0.try_publish(topic, text, options).is_err() {
            tracing::debug!("a question could not be published: it is asked again");
        }
    }
}
