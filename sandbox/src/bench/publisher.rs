//! A device of the benchmark: signs, publishes at a pace that is changed while it runs, and times each answer.
//!
//! With the embedded broker a reading is acknowledged by the PUBACK; behind Mosquitto by the gateway's own word on `ack`,
//! and one that has none for too long is sent again, as every device has to do. What the gateway does not take (0x97) is kept and
//! sent again later.

mod account;

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    FutureExt as _, Stream, StreamExt as _,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use record::{
    ids::{BootId, DeviceId, GatewayId, ReadingId},
    reading::{Reading, TimeQuality, VERSION},
    signature::SigningKey,
    topic::{Channel, Topic},
    transit::ReadingKey,
};
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, Incoming, MqttOptions, PubAckReason, PublishNoticeError,
    PublishOptions, PublishResult, QoS, TlsConfiguration, Transport,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::account::Word;
pub(super) use self::account::{Account, Counts};
use super::edge::heart_rate;
use crate::{
    config::Broker,
    fault::Fault,
    network::{GATEWAY, Network},
};

/// Messages without an answer, at most.
pub(super) const WINDOW: usize = 16;
/// What was not taken is tried again after this time.
const AGAIN: Duration = Duration::from_millis(100);
/// A reading without the gateway's word for this time is sent again.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// How often it is looked for such readings.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A connection that breaks is made again after this time.
const RECONNECT: Duration = Duration::from_millis(500);

/// How a device reaches what keeps its readings, and what tells it that they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// The gateway's own broker; the PUBACK tells.
    Embedded,
    /// Mosquitto before a gateway; the gateway's word on `ack` tells.
    Mosquitto,
    /// Mosquitto before anything else; nobody tells but Mosquitto, with its PUBACK.
    Bare,
}

impl From<Broker> for Link {
    fn from(broker: Broker) -> Self {
        match broker {
            Broker::Embedded => Self::Embedded,
            Broker::Mosquitto => Self::Mosquitto,
        }
    }
}

/// How fast a device publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// What was not taken before, and nothing new.
    Rest,
    /// A reading in each such time.
    Every(Duration),
    /// As fast as it is answered, so many readings and no more.
    Flood(u64),
}

/// What the broker says to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Taken,
    Later,
    Unknown,
}

impl Answer {
    fn of(notice: Result<PublishResult, PublishNoticeError>) -> Self {
        match notice {
            Ok(PublishResult::Qos1(ack)) if ack.reason == PubAckReason::QuotaExceeded => Self::Later,
            Ok(PublishResult::Qos1(ack)) if (ack.reason as u8) < 0x80 => Self::Taken,
            Err(PublishNoticeError::V5PubAck(PubAckReason::QuotaExceeded)) => Self::Later,
            _ => Self::Unknown,
        }
    }
}

type Packets = Pin<Box<dyn Stream<Item = Result<Event, ConnectionError>> + Send>>;
type Answers = FuturesUnordered<BoxFuture<'static, (u64, Answer)>>;

/// One device.
pub(super) struct Publisher {
    id: DeviceId,
    key: SigningKey,
    boot: BootId,
    options: MqttOptions,
    gateway: GatewayId,
    link: Link,
    /// What it seals to; none: it publishes in the clear.
    seal: Option<ReadingKey>,
    last_seq: u64,
    /// Signed before, from the next number on.
    signed: VecDeque<Bytes>,
    /// The number up to which it floods.
    flood_until: u64,
    /// Readings without an acknowledgement, and when each was sent.
    open: BTreeMap<u64, (Instant, Bytes)>,
    /// What was not taken: the same bytes go again, other ones of the same number would be a contradiction.
    again: VecDeque<(u64, Bytes)>,
    account: Arc<Account>,
}

impl Publisher {
    /// The device of a household with this number.
    pub(super) fn of(network: &Network, index: usize, link: Link, account: Arc<Account>) -> Result<Self, Fault> {
        let (device, mqtt) = (&network.household.devices[index], network.ports.mqtt());
        let certificates = &network.mqtt.devices[index];
        let mut options = MqttOptions::new(device.id.as_str(), (mqtt.ip().to_string(), mqtt.port()));
        let own = match link {
            Link::Embedded => {
                let password = std::fs::read(&device.password.file).map_err(Fault::file(&device.password.file))?;
                options.set_credentials(device.id.as_str(), password);
                None
            }
            Link::Mosquitto | Link::Bare => {
                Some((certificates.certificate.as_path(), certificates.private_key.as_path()))
            }
        };
        let tls = TlsConfiguration::Rustls(Arc::new(tls(&network.ca_file, own)?));
        options
            .set_transport(Transport::tls_with_config(tls))
            .set_clean_start(true)
            .set_max_packet_size(None)
            .set_outgoing_inflight_upper_limit(u16::try_from(2 * WINDOW).expect("it is small"))
            .set_request_channel_capacity(2 * WINDOW + 2);
        Ok(Self {
            id: device.id.clone(),
            key: device.signing_key()?,
            boot: BootId {
                counter: 1,
                random: rand::random(),
            },
            options,
            gateway: GATEWAY.parse().expect("a good name"),
            link,
            // Behind somebody else's broker the gateway takes nothing else.
            seal: (link == Link::Mosquitto).then(|| network.gateway.reading_key.clone()),
            last_seq: 0,
            signed: VecDeque::new(),
            flood_until: 0,
            open: BTreeMap::new(),
            again: VecDeque::new(),
            account,
        })
    }

    /// Signs its next readings before they are sent.
    pub(super) fn prepare(&mut self, readings: u64) {
        let next = self.last_seq + 1;
        self.signed = (next..next + readings).map(|seq| self.sign(seq)).collect();
    }

    /// Publishes until it is told to stop and returns itself: what is in `open` then was not acknowledged.
    pub(super) async fn run(mut self, mut pace: watch::Receiver<Pace>, stop: CancellationToken) -> Self {
        while !stop.is_cancelled() {
            self.connection(&mut pace, &stop).await;
            // What was sent and not answered is sent again over the next connection.
            let open = std::mem::take(&mut self.open);
            self.again
                .extend(open.into_iter().map(|(seq, (_, message))| (seq, message)));
            tokio::time::sleep(RECONNECT).await;
        }
        self
    }

    /// The readings that were acknowledged.
    pub(super) fn acknowledged(&self) -> impl Iterator<Item = ReadingId> {
        let waits = |seq: &u64| self.open.contains_key(seq) || self.again.iter().any(|(other, _)| other == seq);
        let closed = (1..=self.last_seq).filter(move |seq| !waits(seq));
        closed.map(|seq| ReadingId {
            device: self.id.clone(),
            boot: self.boot,
            seq,
        })
    }

    async fn connection(&mut self, pace: &mut watch::Receiver<Pace>, stop: &CancellationToken) {
        let (client, events) = AsyncClient::builder(self.options.clone()).build();
        let (mut packets, mut answers) = (packets(events), Answers::new());
        let mut is_connected = false;
        let (mut due, mut again_at, mut look_at) = (Instant::now(), Instant::now(), Instant::now() + LOOK_EVERY);
        loop {
            let current = *pace.borrow(); // Not marked as seen: below it is noticed that it has changed.
            while matches!(current, Pace::Flood(_))
                && is_connected
                && self.open.len() < WINDOW
                && self.last_seq < self.flood_until
            {
                self.send_new(&client, &answers);
            }
            let has_room = is_connected && self.open.len() < WINDOW;
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some((seq, answer)) = answers.next(), if !answers.is_empty() => self.answered(seq, answer),
                packet = packets.next() => match packet {
                    Some(Ok(Event::Incoming(Incoming::ConnAck(_)))) => {
                        is_connected = true;
                        self.account.connected.fetch_add(1, Ordering::Relaxed);
                        if self.link == Link::Mosquitto {
                            // Without it no reading is acknowledged, and the run fails.
                            let _full = client.try_subscribe(self.topic(Channel::Ack).name(&self.gateway), QoS::AtLeastOnce);
                        }
                    }
                    Some(Ok(Event::Incoming(Incoming::Publish(message)))) => self.heard(&message.payload),
                    Some(Ok(_)) => {}
                    _ => {
                        self.account.broken.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                },
                changed = pace.changed() => {
                    if changed.is_err() { break }
                    match *pace.borrow() {
                        // Not all devices at the same moment.
                        Pace::Every(pause) => due = Instant::now() + pause.mul_f64(rand::random()),
                        Pace::Flood(readings) => self.flood_until = self.last_seq + readings,
                        Pace::Rest => {}
                    }
                }
                () = sleep_until(again_at), if is_connected && !self.again.is_empty() => {
                    again_at = Instant::now() + AGAIN;
                    self.send_again(&client, &answers);
                }
                () = sleep_until(due), if has_room && matches!(current, Pace::Every(_)) => {
                    let Pace::Every(pause) = current else { continue };
                    due = (due + pause).max(Instant::now());
                    // A device that is held back offers the same again instead of more.
                    if !self.send_again(&client, &answers) {
                        self.send_new(&client, &answers);
                    }
                }
                () = sleep_until(look_at) => {
                    look_at = Instant::now() + LOOK_EVERY;
                    self.miss();
                }
            }
        }
        if is_connected {
            self.account.connected.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn send_new(&mut self, client: &AsyncClient, answers: &Answers) {
        self.last_seq += 1;
        self.account.made.fetch_add(1, Ordering::Relaxed);
        let message = self.signed.pop_front().unwrap_or_else(|| self.sign(self.last_seq));
        self.send(self.last_seq, message, (client, answers));
    }

    /// Sends what was not taken before; false if there is nothing.
    fn send_again(&mut self, client: &AsyncClient, answers: &Answers) -> bool {
        let Some((seq, message)) = self.again.pop_front() else {
            return false;
        };
        self.send(seq, message, (client, answers));
        true
    }

    fn send(&mut self, seq: u64, message: Bytes, (client, answers): (&AsyncClient, &Answers)) {
        self.open.insert(seq, (Instant::now(), message.clone()));
        let topic = self.topic(Channel::Reading);
        let payload = match &self.seal {
            Some(key) => Bytes::from(key.seal(&topic, &message).expect("a reading fits").encode()),
            None => message,
        };
        match client.try_publish_tracked(topic.name(&self.gateway), payload, PublishOptions::at_least_once()) {
            Ok(notice) => answers.push(async move { (seq, Answer::of(notice.wait_async().await)) }.boxed()),
            Err(_) => self.keep(seq),
        }
    }

    /// Keeps what was not taken, to send it again.
    fn keep(&mut self, seq: u64) {
        if let Some((_, message)) = self.open.remove(&seq) {
            self.again.push_back((seq, message));
        }
    }

    fn answered(&mut self, seq: u64, answer: Answer) {
        match (answer, self.link) {
            (Answer::Later, _) => {
                self.account.held_back.fetch_add(1, Ordering::Relaxed);
                self.keep(seq);
            }
            (Answer::Taken, Link::Embedded | Link::Bare) => self.close(seq),
            // Mosquitto's word is no receipt; what has no answer at all stays open, and is missed.
            (Answer::Taken | Answer::Unknown, _) => {}
        }
    }

    fn heard(&mut self, payload: &[u8]) {
        let Ok(word) = serde_json::from_slice::<Word>(payload) else {
            return;
        };
        if word.boot == self.boot {
            let durable: Vec<_> = self.open.keys().copied().filter(|seq| word.covers(*seq)).collect();
            durable.into_iter().for_each(|seq| self.close(seq));
        }
    }

    fn close(&mut self, seq: u64) {
        if let Some((since, _)) = self.open.remove(&seq) {
            self.account.waited(since);
        }
    }

    /// What has no answer for too long is sent again.
    fn miss(&mut self) {
        let lost = self.open.iter().filter(|(_, (since, _))| since.elapsed() > LOST_AFTER);
        let lost: Vec<_> = lost.map(|(seq, _)| *seq).collect();
        lost.into_iter().for_each(|seq| self.keep(seq));
    }

    fn topic(&self, channel: Channel) -> Topic {
        Topic {
            device: self.id.clone(),
            channel,
        }
    }

    fn sign(&self, seq: u64) -> Bytes {
        let reading = Reading {
            v: VERSION,
            device: self.id.clone(),
            boot: self.boot,
            seq,
            up_ms: seq * 1_000,
            wall: Some(jiff::Timestamp::now().as_millisecond()),
            time_quality: TimeQuality::Synced,
            observations: vec![heart_rate(seq)],
        };
        Bytes::copy_from_slice(reading.sign(&self.key).as_bytes())
    }
}

/// The event loop as a stream, because its `poll` must not be dropped half-way.
fn packets(events: EventLoop) -> Packets {
    let next = |mut events: EventLoop| async move {
        let packet = events.poll().await;
        Some((packet, events))
    };
    Box::pin(stream::unfold(events, next))
}

/// TLS that trusts the network's authority, with a certificate or without.
pub(super) fn tls(
    ca: &std::path::Path,
    own: Option<(&std::path::Path, &std::path::Path)>,
) -> Result<rustls::ClientConfig, Fault> {
    let made = || -> Result<rustls::ClientConfig, Box<dyn std::error::Error + Send + Sync>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca)?)?;
        let config = rustls::ClientConfig::builder().with_root_certificates(roots);
        let Some((certificate, key)) = own else {
            return Ok(config.with_no_client_auth());
        };
        let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<_, _>>()?;
        Ok(config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key)?)?)
    };
    made().map_err(Fault::identity("a device's TLS"))
}
