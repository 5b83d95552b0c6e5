//! The connection to Home Assistant's broker: a client of its own, with a clean session and a will.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use record::ids::GatewayId;
use rumqttc::{
    AsyncClient, Event, EventLoop, LastWill, MqttOptions, Packet, PublishOptions, QoS, SubscribeFilter,
    SubscribeReasonCode, TlsConfiguration, Transport,
};
use tokio::{sync::mpsc, time::sleep};

use super::{
    Config,
    board::{Change, OFFLINE},
    discovery::Topics,
};
use crate::login::Access;

/// Requests to the client that wait, at most.
const REQUESTS_MAX: usize = 256;
/// Messages without an answer, at most.
const IN_FLIGHT_MAX: u16 = 64;
/// First and longest pause before the broker is dialled again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Keep-alive, in seconds.
const KEEP_ALIVE_S: u16 = 30;
/// Largest packet that is received, in bytes: we wrote them.
const PACKET_BYTES_MAX: u32 = 16_384;

/// What the broker says.
#[derive(Debug)]
pub(super) enum Heard {
    Connected,
    Subscribed,
    Lost,
    Message {
        topic: String,
        text: Bytes,
        /// Whether it stood there before.
        is_kept: bool,
    },
}

/// The connection.
pub(super) struct Line {
    client: AsyncClient,
    events: Option<EventLoop>,
    filters: Vec<SubscribeFilter>,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Line")
    }
}

impl Line {
    pub(super) fn of(
        (config, gateway): (&Config, &GatewayId),
        access: &Access,
        topics: &Topics,
    ) -> Result<Self, rumqttc::ConfigError> {
        let options = options((config, gateway), access, topics)?;
        let filter = |path: String| SubscribeFilter::new(path, QoS::AtLeastOnce);
        let own = SubscribeFilter {
            // What we publish we know.
            nolocal: true,
            ..filter(format!("{}#", topics.own()))
        };
        let (client, events) = AsyncClient::builder(options).build();
        Ok(Self {
            client,
            events: Some(events),
            filters: vec![own, filter(topics.birth()), filter(topics.echo())],
        })
    }

    /// Keeps the connection, and says what is heard.
    pub(super) fn listen(&mut self, heard: mpsc::Sender<Heard>) -> impl Future<Output = ()> + use<> {
        let (client, filters) = (self.client.clone(), self.filters.clone());
        let events = self.events.take();
        async move {
            if let Some(events) = events {
                listen(events, (client, filters), heard).await;
            }
        }
    }

    /// Publishes something that stays; false if it has to wait.
    pub(super) fn publish(&self, (topic, text): &Change) -> bool {
        let options = PublishOptions::at_least_once().retain(true);
        self.client.try_publish(topic.as_str(), text.clone(), options).is_ok()
    }

    /// Publishes something to hear it.
    pub(super) fn call(&self, topic: &str) {
        // Unheard, no more is waited for after a while.
        let _full = self.client.try_publish(topic, "", PublishOptions::at_least_once());
    }
}

/// How this gateway's client connects: the gateway's name is in its client id, or the configuration has another one.
fn options(
    (config, gateway): (&Config, &GatewayId),
    access: &Access,
    topics: &Topics,
) -> Result<MqttOptions, rumqttc::ConfigError> {
    let mut options = MqttOptions::new(config.client_id(gateway), (access.host.as_str(), access.port));
    options
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(
            &access.tls,
        ))))
        .set_keep_alive(KEEP_ALIVE_S)
        .set_clean_start(true)
        .set_last_will(LastWill::new(topics.gateway(), OFFLINE, QoS::AtLeastOnce, true, None))
        .set_max_packet_size(Some(PACKET_BYTES_MAX))
        .set_outgoing_inflight_upper_limit(IN_FLIGHT_MAX)
        .set_request_channel_capacity(REQUESTS_MAX);
    if let Some(password) = &access.password {
        options.set_credentials(&config.user, password.clone());
    }
    options.validate()?;
    Ok(options)
}

async fn listen(
    mut events: EventLoop,
    (client, filters): (AsyncClient, Vec<SubscribeFilter>),
    heard: mpsc::Sender<Heard>,
) {
    let (mut pause, mut was_connected) = (PAUSE.0, false);
    loop {
        let said = match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                (pause, was_connected) = (PAUSE.0, true);
                tracing::info!("connected to Home Assistant's broker");
                let _full = client.try_subscribe_many(filters.clone());
                Heard::Connected
            }
            Ok(Event::Incoming(Packet::SubAck(ack))) => {
                let granted = |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Success(_));
                if !ack.return_codes.iter().all(granted) {
                    tracing::error!(
                        "Home Assistant's broker refuses a subscription: the user needs rights to homeassistant/#"
                    );
                }
                Heard::Subscribed
            }
            Ok(Event::Incoming(Packet::Publish(message))) => Heard::Message {
                topic: String::from_utf8_lossy(&message.topic).into_owned(),
                text: message.payload.clone(),
                is_kept: message.retain,
            },
            Ok(_) => continue,
            Err(error) => {
                if std::mem::take(&mut was_connected) {
                    tracing::warn!(%error, "Home Assistant's broker is lost; dialling again");
                } else {
                    tracing::debug!(%error, "Home Assistant's broker cannot be reached");
                }
                sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
                pause = (pause * 2).min(PAUSE.1);
                Heard::Lost
            }
        };
        if heard.send(said).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{ClientConfig, RootCertStore};

    #[test]
    fn two_gateways_of_one_broker_have_two_client_ids_unless_they_are_told_otherwise() {
        let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let tls = ClientConfig::builder().with_root_certificates(RootCertStore::empty());
        let access = Access {
            host: "localhost".to_owned(),
            port: 8883,
            tls: Arc::new(tls.with_no_client_auth()),
            password: None,
        };
        let client_id = |config: &Config, gateway: &str| {
            let gateway = gateway.parse().expect("good");
            let topics = Topics::of(&config.prefix, &gateway);
            let options = options((config, &gateway), &access, &topics).expect("fits");
            options.client_id()
        };
        let config = Config::default();
        assert_ne!(client_id(&config, "home-1"), client_id(&config, "home-2"));
        assert_eq!(
            client_id(&config, "home-1"),
            client_id(&config, "home-1"),
            "also after a restart"
        );
        let told = Config {
            client_id: Some("flat-3".to_owned()),
            ..config
        };
        assert_eq!(client_id(&told, "home-1"), "flat-3");
    }
}
