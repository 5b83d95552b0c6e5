//! One MQTT 5 connection after another: what the broker answers to each message, and when the connection is lost.
//!
//! A connection is never resumed. The session starts clean and the client is made anew after each loss, because the
//! device's journal, not the MQTT library, knows what has to be sent again; a broker's half-remembered session would only
//! refuse the packet ids of a device that has restarted.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{
    FutureExt as _, Stream, StreamExt as _,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use record::{
    ids::{BootId, DeviceId, GatewayId},
    topic,
};
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, EventLoop, Incoming, LastWill, MqttOptions, NetworkOptions,
    PubAckReason, PublishNoticeError, PublishOptions, PublishProperties, PublishResult, QoS, SubscribeFilter,
    SubscribeReasonCode, TlsConfiguration, Transport,
};
use tokio::{sync::Semaphore, time};

use super::{
    asked::{Command, Ranges, Resend},
    backoff::Backoff,
    receipt::{Progress, Receipt, Refusal},
};

/// How the payload is written: COSE_Sign1 (RFC 9052, section 2).
const CONTENT_TYPE: &str = "application/cose; cose-type=\"cose-sign1\"";
/// The user property that names the version of the map inside.
const SCHEMA_VERSION: &str = "schema-version";
/// A device takes at most so many unanswered messages from the broker.
const RECEIVE_MAX: u16 = 8;
/// A device takes no larger packet from the broker.
const PACKET_BYTES_MAX: u32 = 16_384;
/// Requests besides readings that wait for the client, at most: states and a subscription.
const ASIDE_MAX: usize = 5;
/// At the end the broker has so long to take the goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// The broker as all devices of a fleet see it.
#[derive(Clone)]
pub(crate) struct Broker {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    pub(crate) keep_alive_s: u16,
    pub(crate) connect_timeout: Duration,
    pub(crate) in_flight_max: u16,
    /// What tells a device that the gateway has a reading.
    pub(crate) receipt: Receipt,
    /// Handshakes at the same time; the rest of the fleet waits its turn.
    pub(crate) turns: Arc<Semaphore>,
}

/// Who the device says it is.
pub(crate) struct Credentials {
    pub(crate) user: String,
    /// Absent for who logs in with a certificate alone.
    pub(crate) password: Option<String>,
    /// TLS with the device's own certificate; otherwise the fleet's, without one.
    pub(crate) tls: Option<Arc<rustls::ClientConfig>>,
}

/// Whose link it is: part of its topics, and what it says of itself.
pub(crate) struct Name<'a> {
    pub(crate) gateway: &'a GatewayId,
    pub(crate) device: &'a DeviceId,
    pub(crate) boot: BootId,
    /// A moment, and what stood on its tick counter then.
    pub(crate) started: (Instant, Duration),
}

/// What a link reports.
#[derive(Debug)]
pub(crate) enum Event {
    /// The broker has taken the connection.
    Connected,
    /// The connection is lost or was not made; a new one is under way.
    Lost(Loss),
    /// The broker has answered a message.
    Answered(u64, Answer),
    /// The gateway says what is durable.
    Durable(Progress),
    /// The gateway says what it refuses.
    Refused(Refusal),
    /// The gateway asks for what it misses.
    Asked(Resend),
}

/// Why a connection is lost.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Loss {
    /// Somebody has to correct the credentials or the enrolment; trying again may help later.
    #[error("the broker refuses the device: {0:?}")]
    Unwelcome(ConnectReturnCode),
    /// The network, the broker or TLS.
    #[error(transparent)]
    Broken(ConnectionError),
}

/// What the broker says about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is kept.
    Taken,
    /// The broker has it, and nobody listens: an embedded broker has kept it all the same.
    Unheard,
    /// Not now.
    Again,
    /// Never: the message itself is at fault.
    Refused(u8),
}

impl Answer {
    const fn of(reason: PubAckReason) -> Self {
        match reason {
            PubAckReason::Success => Self::Taken,
            PubAckReason::NoMatchingSubscribers => Self::Unheard,
            // The message itself is at fault and is kept in quarantine; sending it again would not cure it.
            PubAckReason::NotAuthorized | PubAckReason::TopicNameInvalid | PubAckReason::PayloadFormatInvalid => {
                Self::Refused(reason as u8)
            }
            // The receiver is full, slow or (0x83) stopping: the reading is in no hands but ours.
            PubAckReason::QuotaExceeded
            | PubAckReason::UnspecifiedError
            | PubAckReason::ImplementationSpecificError
            | PubAckReason::PacketIdentifierInUse => Self::Again,
        }
    }

    fn of_notice(notice: Result<PublishResult, PublishNoticeError>) -> Self {
        match notice {
            Ok(PublishResult::Qos1(ack)) => Self::of(ack.reason),
            // No answer reached us, and messages are never sent with another quality of service.
            Ok(_) | Err(_) => Self::Again,
        }
    }
}

type Packets = Pin<Box<dyn Stream<Item = Result<rumqttc::Event, ConnectionError>> + Send>>;
type Answers = FuturesUnordered<BoxFuture<'static, (u64, Answer)>>;

/// One connection, from the attempt to its loss.
struct Session {
    client: AsyncClient,
    packets: Packets,
    answers: Answers,
    connected: bool,
}

impl Session {
    fn start(options: &MqttOptions, turns: Arc<Semaphore>, wait: Duration) -> Self {
        let (client, eventloop) = AsyncClient::builder(options.clone()).build();
        Self {
            client,
            packets: packets(eventloop, turns, wait),
            answers: FuturesUnordered::new(),
            connected: false,
        }
    }
}

/// The event loop as a stream, because its `poll` must not be dropped half-way (it would never finish a slow handshake)
/// and a stream keeps its place between two polls.
fn packets(mut eventloop: EventLoop, turns: Arc<Semaphore>, wait: Duration) -> Packets {
    let attempt = async move {
        time::sleep(wait).await;
        let turn = turns.acquire_owned().await.expect("the semaphore is never closed");
        let first = eventloop.poll().await;
        drop(turn);
        (first, eventloop)
    };
    let rest = |mut eventloop: EventLoop| async move {
        let packet = eventloop.poll().await;
        Some((packet, eventloop))
    };
    let packets = attempt
        .into_stream()
        .flat_map(move |(first, eventloop)| stream::iter([first]).chain(stream::unfold(eventloop, rest)));
    Box::pin(packets)
}

/// A device's way to the broker.
pub(crate) struct Link {
    options: MqttOptions,
    turns: Arc<Semaphore>,
    backoff: Backoff,
    session: Session,
    topics: String,
    boot: BootId,
    started: (Instant, Duration),
    receipt: Receipt,
}

impl Link {
    /// A link that starts to connect as soon as it is asked for events.
    pub(crate) fn new(broker: &Broker, name: &Name<'_>, credentials: &Credentials) -> Self {
        let mut options = MqttOptions::new(name.device.as_str(), (broker.host.as_str(), broker.port));
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        let tls = credentials.tls.as_ref().unwrap_or(&broker.tls).clone();
        let topics = format!("{}{}", topic::prefix(name.gateway), name.device);
        match &credentials.password {
            Some(password) => options.set_credentials(credentials.user.as_str(), password.clone().into_bytes()),
            None => options.set_username(credentials.user.as_str()),
        };
        options
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)))
            .set_network_options(network)
            .set_last_will(LastWill::new(
                format!("{topics}/state"),
                gone(name.boot),
                QoS::AtLeastOnce,
                true,
                None,
            ))
            .set_clean_start(true)
            .set_keep_alive(broker.keep_alive_s)
            .set_connect_timeout(broker.connect_timeout)
            .set_receive_maximum(Some(RECEIVE_MAX))
            .set_max_packet_size(Some(PACKET_BYTES_MAX))
            // Twice, so that repeats (a fault) of a full window still find a packet id and a place.
            .set_outgoing_inflight_upper_limit(broker.in_flight_max.saturating_mul(2).saturating_add(1))
            .set_request_channel_capacity(usize::from(broker.in_flight_max) * 2 + ASIDE_MAX);
        let turns = broker.turns.clone();
        let session = Session::start(&options, turns.clone(), Duration::ZERO);
        Self {
            options,
            turns,
            backoff: Backoff::default(),
            session,
            topics,
            boot: name.boot,
            started: name.started,
            receipt: broker.receipt,
        }
    }

    /// Whether messages can be sent now.
    pub(crate) const fn is_connected(&self) -> bool {
        self.session.connected
    }

    /// The next thing that happens. May be dropped and called again at any time without losing anything.
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            let packet = tokio::select! {
                // Answers first: what has been acknowledged stays acknowledged when the connection is lost next.
                biased;
                Some((seq, answer)) = self.session.answers.next(), if !self.session.answers.is_empty() => {
                    return Event::Answered(seq, answer);
                }
                packet = self.session.packets.next() => packet,
            };
            match packet {
                Some(Ok(rumqttc::Event::Incoming(Incoming::ConnAck(_)))) => {
                    self.session.connected = true;
                    self.backoff.worked();
                    self.introduce();
                    return Event::Connected;
                }
                Some(Ok(rumqttc::Event::Incoming(Incoming::SubAck(ack)))) => {
                    let granted = |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Success(_));
                    if !ack.return_codes.iter().all(granted) {
                        tracing::warn!(
                            topics = self.topics,
                            "the broker does not let the device hear the gateway"
                        );
                    }
                }
                Some(Ok(rumqttc::Event::Incoming(Incoming::Publish(message)))) => {
                    if let Some(said) = self.understood(&message.topic, &message.payload) {
                        return said;
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(ConnectionError::ConnectionRefused(code))) => return self.lost(Loss::Unwelcome(code)),
                Some(Err(error)) => return self.lost(Loss::Broken(error)),
                None => return self.lost(Loss::Broken(ConnectionError::RequestsDone)),
            }
        }
    }

    /// Says that it is there, and asks to hear what the gateway says to it.
    fn introduce(&self) {
        self.say_that_it_is_there();
        let channels: &[_] = match self.receipt {
            Receipt::Puback => &["cmd"],
            Receipt::Ack => &["ack", "error", "cmd"],
        };
        let filter = |channel| SubscribeFilter::new(format!("{}/{channel}", self.topics), QoS::AtLeastOnce);
        // A connection that takes no subscription brings no receipt; the silence is noticed, and it is made anew.
        let _full = self
            .session
            .client
            .try_subscribe_many(channels.iter().map(filter).collect::<Vec<_>>());
    }

    /// Says that it is there, and what stands on its tick counter now: the gateway reads its own clock beside it.
    pub(crate) fn say_that_it_is_there(&self) {
        self.publish_state(serde_json::json!({"online": true, "boot": self.boot, "up_ms": self.up_ms()}).to_string());
    }

    /// Says which numbers of a start it does not have.
    pub(crate) fn say_lost(&self, boot: BootId, ranges: &Ranges) {
        let lost = serde_json::json!({"boot": boot, "ranges": ranges});
        let state = serde_json::json!({"online": true, "boot": self.boot, "up_ms": self.up_ms(), "lost": lost});
        self.publish_state(state.to_string());
    }

    fn up_ms(&self) -> u64 {
        let (at, stood) = self.started;
        // Six hundred million years fit.
        (stood + at.elapsed()).as_millis() as u64
    }

    fn publish_state(&self, state: String) {
        let options = PublishOptions::at_least_once().retain(true);
        // Nothing depends on it: the next one says it again.
        let _full = self
            .session
            .client
            .try_publish(format!("{}/state", self.topics), state, options);
    }

    /// What the gateway says to this device; anything else is not for it.
    fn understood(&self, topic: &[u8], message: &[u8]) -> Option<Event> {
        match topic.strip_prefix(self.topics.as_bytes())? {
            b"/ack" => serde_json::from_slice(message).ok().map(Event::Durable),
            b"/error" => serde_json::from_slice(message).ok().map(Event::Refused),
            b"/cmd" => serde_json::from_slice(message)
                .ok()
                .map(|command: Command| Event::Asked(command.resend)),
            _ => None,
        }
    }

    fn lost(&mut self, loss: Loss) -> Event {
        self.reconnect();
        Event::Lost(loss)
    }

    /// Gives up the connection and starts a new one after a while.
    pub(crate) fn reconnect(&mut self) {
        let wait = self.backoff.failed();
        self.session = Session::start(&self.options, self.turns.clone(), wait);
    }

    /// Hands a message to the broker; false when it has no room, which the caller's window prevents.
    pub(crate) fn publish(&mut self, seq: u64, topic: &str, payload: Bytes) -> bool {
        let properties = PublishProperties {
            content_type: Some(CONTENT_TYPE.to_owned()),
            user_properties: vec![(SCHEMA_VERSION.to_owned(), record::reading::VERSION.to_string())],
            ..PublishProperties::default()
        };
        let options = PublishOptions::at_least_once().properties(properties);
        let Ok(notice) = self.session.client.try_publish_tracked(topic, payload, options) else {
            return false;
        };
        let answer = async move { (seq, Answer::of_notice(notice.wait_async().await)) };
        self.session.answers.push(answer.boxed());
        true
    }

    /// Says goodbye, so that the broker does not take the end for a failure.
    pub(crate) async fn close(mut self) {
        if self.session.connected {
            self.publish_state(gone(self.boot));
        }
        if self.session.connected && self.session.client.try_disconnect().is_ok() {
            let drained = async { while let Some(Ok(_)) = self.session.packets.next().await {} };
            // When the broker does not answer the connection just closes; everything is acknowledged or given up by now.
            let _ = time::timeout(GOODBYE, drained).await;
        }
    }
}

/// What the state topic says when it is not there, by itself or as its will.
fn gone(boot: BootId) -> String {
    serde_json::json!({ "online": false, "boot": boot }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_success_is_an_acknowledgement() {
        assert_eq!(Answer::of(PubAckReason::Success), Answer::Taken);
        assert_eq!(Answer::of(PubAckReason::NoMatchingSubscribers), Answer::Unheard);
        assert_eq!(Answer::of(PubAckReason::QuotaExceeded), Answer::Again);
        // What a gateway says while it stops: its successor has to get the reading.
        assert_eq!(Answer::of(PubAckReason::ImplementationSpecificError), Answer::Again);
        assert_eq!(Answer::of(PubAckReason::PayloadFormatInvalid), Answer::Refused(0x99));
        assert_eq!(Answer::of(PubAckReason::NotAuthorized), Answer::Refused(0x87));
        assert_eq!(Answer::of_notice(Err(PublishNoticeError::SessionReset)), Answer::Again);
    }
}
