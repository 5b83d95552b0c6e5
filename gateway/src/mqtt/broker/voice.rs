//! The embedded broker publishes something as the gateway: reasons, and what a device is asked.

use std::{num::NonZeroU32, time::Duration};

use bytes::Bytes;
use rmqtt::{
    codec::v5::PublishProperties,
    context::ServerContext,
    session::SessionState,
    types::{CodecPublish, From as Origin, Id, Publish, QoS},
};

use super::Sessions;
use crate::outbox::now_ms;

/// Whom what the gateway says is from.
const NAME: &str = "vitalfog-gateway";

/// Publishes a text with QoS 1; with an end, who is not there by then does not get it.
pub(super) async fn say(
    context: &ServerContext,
    from: Id,
    (topic, text): (String, String),
    expiry_s: Option<NonZeroU32>,
) {
    let message = CodecPublish {
        dup: false,
        retain: false,
        qos: QoS::AtLeastOnce,
        topic: topic.into(),
        packet_id: None,
        payload: Bytes::from(text),
        properties: Some(PublishProperties {
            message_expiry_interval: expiry_s,
            ..PublishProperties::default()
        }),
    };
    let message = Publish::from(message).create_time(now_ms());
    let end = expiry_s.map(|seconds| Duration::from_secs(seconds.get().into()));
    if let Err(error) = SessionState::forwards(context, Origin::from_system(from), message, false, end).await {
        tracing::debug!(%error, "what the gateway says could not be published");
    }
}

impl Sessions {
    /// Publishes a text as the gateway, for whoever listens until its end.
    pub(in crate::mqtt) async fn say(&self, topic: String, text: String, expiry_s: NonZeroU32) {
        let context = self.context();
        let from = Id::new(context.node.id(), 0, None, None, NAME.into(), None);
        say(context, from, (topic, text), Some(expiry_s)).await;
    }
}
