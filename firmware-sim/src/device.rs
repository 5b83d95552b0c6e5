//! One home device: it measures by its own clock, signs, numbers without gaps, and sends until the broker has answered.

mod backoff;
mod boot;
mod journal;
mod link;
mod note;
mod receipt;
mod waiting;

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use record::{
    canonical::Digest,
    decimal::Decimal,
    ids::{BootId, DeviceId, GatewayId},
    reading::{Measured, Reading, TimeQuality, VERSION},
    signature::SigningKey,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    time::{self, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    fault::{self, Fault, Faults},
    signal::{Message, Signal},
};
use backoff::Backoff;
use journal::{Entry, Journal};
use link::{Answer, Event, Link, Loss, Name};
use receipt::Questions;

pub(crate) use backoff::LONGEST_MS;
pub(crate) use link::{Broker, Credentials};
pub(crate) use note::Note;
pub use receipt::Receipt;

/// How the devices reach their gateway's broker.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `host:port`; MQTT 5 over TLS.
    pub address: String,
    /// PEM file of the authority that signed the broker's certificate.
    pub ca: PathBuf,
    /// Seconds without traffic after which a device asks whether the broker is still there.
    pub keep_alive_s: u16,
    /// TCP, TLS and MQTT handshake together.
    pub connect_timeout_ms: u64,
    /// What tells a device that the gateway has a reading: `puback` behind the gateway's embedded broker, `ack` behind any
    /// outside broker, whose PUBACK says nothing of the gateway.
    pub receipt: Receipt,
    /// A message without an answer for so long: the connection is given up and everything is sent again. With the receipt
    /// `ack` the gateway is asked anew after this time, and then more and more seldom.
    pub answer_timeout_ms: u64,
    /// Unanswered messages of a device. With 1 the gateway receives each start strictly in order; with more, what follows
    /// a message that was refused for now may be taken before it.
    pub in_flight_max: u16,
    /// Devices that connect at the same time; a fleet that lost its broker does not come back as one stampede.
    pub connecting_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:18830".to_owned(),
            ca: PathBuf::from("ca.crt"),
            keep_alive_s: 30,
            connect_timeout_ms: 10_000,
            receipt: Receipt::default(),
            answer_timeout_ms: 30_000,
            in_flight_max: 1,
            connecting_max: 64,
        }
    }
}

/// What makes a device this one.
pub(crate) struct Parts {
    pub(crate) id: DeviceId,
    pub(crate) key: SigningKey,
    pub(crate) credentials: Credentials,
    pub(crate) signal: Box<dyn Signal>,
    /// Time between two steps of the signal.
    pub(crate) period: Duration,
}

/// What all devices of a fleet share.
pub(crate) struct Home {
    pub(crate) gateway: GatewayId,
    pub(crate) broker: Broker,
    pub(crate) faults: Faults,
    pub(crate) data_dir: PathBuf,
    /// Room in each journal.
    pub(crate) readings_max: usize,
    pub(crate) answer_timeout: Duration,
}

/// A device that runs.
struct Device {
    id: DeviceId,
    key: SigningKey,
    signal: Box<dyn Signal>,
    home: Arc<Home>,
    boot: BootId,
    started: Instant,
    seq: u64,
    journal: Journal,
    questions: Questions,
    backoff: Backoff,
    /// Set while the gateway has asked for patience.
    resume_at: Option<time::Instant>,
    connected: bool,
    notes: mpsc::Sender<Note>,
}

/// Runs a device until `stop`, then until everything is acknowledged; the caller limits how long that may take.
///
/// # Errors
/// When the boot counter cannot be made durable: without it a number could be used twice.
pub(crate) async fn run(
    parts: Parts,
    home: Arc<Home>,
    notes: mpsc::Sender<Note>,
    stop: CancellationToken,
) -> io::Result<()> {
    let boot = {
        // Starts share the disk as they share the broker: some at a time.
        let _turn = home
            .broker
            .turns
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let (data_dir, id) = (home.data_dir.clone(), parts.id.clone());
        tokio::task::spawn_blocking(move || boot::start(&data_dir, &id))
            .await
            .map_err(io::Error::other)??
    };
    let name = Name {
        gateway: &home.gateway,
        device: &parts.id,
        boot,
    };
    let link = Link::new(&home.broker, &name, &parts.credentials);
    let device = Device {
        journal: Journal::new(home.readings_max),
        questions: Questions::every(home.answer_timeout),
        id: parts.id,
        key: parts.key,
        signal: parts.signal,
        home,
        boot,
        started: Instant::now(),
        seq: 0,
        backoff: Backoff::default(),
        resume_at: None,
        connected: false,
        notes,
    };
    device.live(link, parts.period, stop).await;
    Ok(())
}

impl Device {
    async fn live(mut self, mut link: Link, period: Duration, stop: CancellationToken) {
        // Devices are switched on at different moments: their clocks do not tick together.
        let first = time::Instant::now() + period.mul_f64(rand::random());
        let mut clock = time::interval_at(first, period);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut measuring = true;
        while measuring || !self.journal.is_empty() {
            tokio::select! {
                () = stop.cancelled(), if measuring => {
                    measuring = false;
                    self.journal.release();
                }
                _ = clock.tick(), if measuring => self.measure().await,
                event = link.next() => self.follow(event).await,
                () = until(self.resume_at) => self.resume_at = None,
                () = until(self.question_at()), if self.connected => self.question(),
            }
            self.mind_silence(&mut link).await;
            self.send(&mut link).await;
        }
        link.close().await;
        self.disconnected().await;
    }

    /// One step of the signal: each message becomes a numbered, signed reading in the journal.
    async fn measure(&mut self) {
        for message in self.signal.step() {
            self.seq += 1;
            let fault = self.home.faults.strike(rand::random());
            if fault == Some(Fault::Drop) {
                self.note(Note::Unkept).await;
                continue;
            }
            let entry = self.sign(message, fault);
            if self.journal.keep(entry).is_err() {
                self.note(Note::Unkept).await;
            }
        }
    }

    fn sign(&self, message: Message, fault: Option<Fault>) -> Entry {
        let mut reading = Reading {
            v: VERSION,
            device: self.id.clone(),
            boot: self.boot,
            seq: self.seq,
            // Six hundred million years fit.
            up_ms: self.started.elapsed().as_millis() as u64,
            wall: Some(jiff::Timestamp::now().as_millisecond()),
            time_quality: TimeQuality::Synced,
            observations: message.observations,
        };
        let line = acknowledged_line(&reading);
        fault::spoil(&mut reading, fault);
        let signed = match fault {
            Some(Fault::WrongKey) => reading.sign(&SigningKey::random()),
            _ => reading.sign(&self.key),
        };
        let mut entry = Entry::new(
            self.seq,
            message.stream,
            Bytes::copy_from_slice(signed.as_bytes()),
            line,
        );
        entry.copies = if fault == Some(Fault::Repeat) { 2 } else { 1 };
        entry.late = fault == Some(Fault::Reorder);
        entry
    }

    async fn follow(&mut self, event: Event) {
        match event {
            Event::Connected => {
                self.connected = true;
                // The broker may have lost what it took before.
                self.question();
                self.note(Note::Connected).await;
            }
            Event::Lost(loss) => {
                match loss {
                    Loss::Unwelcome(_) => tracing::warn!(device = %self.id, %loss, "not connected"),
                    Loss::Broken(_) => tracing::debug!(device = %self.id, %loss, "not connected"),
                }
                self.journal.rewind();
                self.disconnected().await;
            }
            // Behind an outside broker nobody listens now, not even for later: it is in no hands but ours.
            Event::Answered(seq, Answer::Unheard) if self.home.broker.receipt == Receipt::Ack => self.again(seq),
            Event::Answered(seq, Answer::Taken | Answer::Unheard) => {
                self.backoff.worked();
                match self.home.broker.receipt {
                    Receipt::Puback => drop(self.acknowledged(seq).await),
                    Receipt::Ack => self.journal.hand_over(seq),
                }
            }
            Event::Durable(progress) => self.durable(&progress).await,
            Event::Refused(refusal) => self.refused(&refusal).await,
            Event::Answered(seq, Answer::Refused(code)) if self.home.broker.receipt == Receipt::Puback => {
                if self.journal.settle(seq).is_some() {
                    tracing::warn!(device = %self.id, boot = %self.boot, seq, code, "a reading is refused");
                    self.note(Note::Refused).await;
                }
            }
            // An outside broker cannot refuse for the gateway: its rights are wrong, and the reading is in no hands but ours.
            Event::Answered(seq, Answer::Again | Answer::Refused(_)) => self.again(seq),
        }
    }

    /// The gateway has it; when an outside broker took it, if one did.
    async fn acknowledged(&mut self, seq: u64) -> Option<Instant> {
        let settled = self.journal.settle(seq)?;
        let waited = settled.first_sent.map(|sent| sent.elapsed()).unwrap_or_default();
        let line = settled.line;
        self.note(Note::Acknowledged { line, waited }).await;
        settled.handed
    }

    fn again(&mut self, seq: u64) {
        self.journal.again(seq);
        self.resume_at = Some(time::Instant::now() + self.backoff.failed());
    }

    /// Gives up a connection on which an answer is overdue.
    async fn mind_silence(&mut self, link: &mut Link) {
        let overdue = |sent: Instant| sent.elapsed() > self.home.answer_timeout;
        if link.is_connected() && self.journal.oldest_in_flight().is_some_and(overdue) {
            tracing::warn!(device = %self.id, "no answer in time, connecting anew");
            link.reconnect();
            self.journal.rewind();
            self.disconnected().await;
        }
    }

    /// Sends what the window allows, the oldest first.
    async fn send(&mut self, link: &mut Link) {
        if !link.is_connected() || self.resume_at.is_some() {
            return;
        }
        while let Some(sending) = self.journal.send(usize::from(self.home.broker.in_flight_max)) {
            let topic = format!(
                "vitalfog/v1/{}/{}/{}",
                self.home.gateway,
                self.id,
                sending.stream.as_str()
            );
            if sending.first {
                self.note(Note::Published).await;
            }
            let handed = (0..sending.copies)
                .filter(|_| link.publish(sending.seq, &topic, sending.payload.clone()))
                .count();
            if handed == 0 {
                // Cannot happen while the window is smaller than the client's queue; if it does, the next event sends it.
                self.journal.again(sending.seq);
                return;
            }
        }
    }

    async fn disconnected(&mut self) {
        if std::mem::take(&mut self.connected) {
            self.note(Note::Disconnected).await;
        }
    }

    async fn note(&self, note: Note) {
        // The fleet that reads the notes outlives its devices; when it is gone there is nobody to tell.
        let _ = self.notes.send(note).await;
    }
}

async fn until(moment: Option<time::Instant>) {
    match moment {
        Some(moment) => time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// What `acknowledged.ndjson` says about a reading: what it measured, not how it was spoiled.
fn acknowledged_line(reading: &Reading) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        device: &'a DeviceId,
        boot: BootId,
        seq: u64,
        observations: Vec<Observed<'a>>,
    }
    #[derive(Serialize)]
    struct Observed<'a> {
        code: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        value: Option<Decimal>,
        // A digest instead of the samples: a line stays a line.
        #[serde(skip_serializing_if = "Option::is_none")]
        samples: Option<Digest>,
    }
    fn observed(measured: &Measured) -> Observed<'_> {
        Observed {
            code: &measured.code,
            value: measured.value,
            samples: measured.samples.as_ref().map(|block| block.digest(&measured.unit)),
        }
    }
    let line = Line {
        device: &reading.device,
        boot: reading.boot,
        seq: reading.seq,
        observations: reading.observations.iter().map(observed).collect(),
    };
    serde_json::to_string(&line).expect("a line has string keys and finite numbers")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::Library;
    use record::{
        observation::Observation,
        reading::{Reason, SignedReading},
    };

    fn device(key: &SigningKey, faults: &fault::Config, data_dir: PathBuf) -> (Device, mpsc::Receiver<Note>) {
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("TLS 1.2 and 1.3")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let broker = Broker {
            host: "127.0.0.1".to_owned(),
            port: 1,
            tls: Arc::new(tls),
            keep_alive_s: 30,
            connect_timeout: Duration::from_secs(1),
            in_flight_max: 1,
            receipt: Receipt::Puback,
            turns: Arc::new(tokio::sync::Semaphore::new(1)),
        };
        let home = Home {
            gateway: "home-1".parse().expect("good"),
            broker,
            faults: faults.faults().expect("good"),
            data_dir,
            readings_max: 10,
            answer_timeout: Duration::from_secs(1),
        };
        let (notes, inbox) = mpsc::channel(1_000);
        let device = Device {
            id: "cuff-1".parse().expect("good"),
            key: key.clone(),
            signal: Library::embedded().open("synthetic/blood-pressure").expect("known").1,
            home: Arc::new(home),
            boot: BootId { counter: 1, random: 1 },
            started: Instant::now(),
            seq: 0,
            journal: Journal::new(10),
            questions: Questions::every(Duration::from_secs(1)),
            backoff: Backoff::default(),
            resume_at: None,
            connected: false,
            notes,
        };
        (device, inbox)
    }

    async fn first_payload(faults: fault::Config) -> (SigningKey, SignedReading) {
        let key = SigningKey::random();
        let (mut device, _inbox) = device(&key, &faults, PathBuf::new());
        device.measure().await;
        let sending = device.journal.send(1).expect("measured");
        (key, SignedReading::receive(&sending.payload).expect("small"))
    }

    #[tokio::test]
    async fn a_reading_is_what_the_gateway_takes() {
        let (key, signed) = first_payload(fault::Config::default()).await;
        let reading = signed.decode(|_| Some(key.public())).expect("signed");
        assert_eq!((reading.seq, reading.time_quality), (1, TimeQuality::Synced));
        let now = jiff::Timestamp::now().as_millisecond();
        assert!(reading.wall.is_some_and(|wall| (now - 5_000..=now).contains(&wall)));
        assert_eq!(Observation::of(&reading, now).expect("plausible").len(), 1);
        let line: serde_json::Value = serde_json::from_str(&acknowledged_line(&reading)).expect("JSON");
        assert_eq!(line["device"], "cuff-1");
        assert_eq!(line["observations"][0]["code"], "8480-6");
        assert!(line["observations"][0]["value"].is_i64());
    }

    #[tokio::test]
    async fn the_line_of_a_waveform_changes_with_any_sample() {
        let key = SigningKey::random();
        let (mut device, _inbox) = device(&key, &fault::Config::default(), PathBuf::new());
        device.signal = Library::embedded().open("ecg-mitbih-208").expect("known").1;
        device.seq = 1;
        let is_wave = |message: &Message| message.observations.iter().any(|m| m.samples.is_some());
        let wave = (0..10)
            .flat_map(|_| device.signal.step())
            .find(is_wave)
            .expect("an ECG");
        let signed = SignedReading::receive(&device.sign(wave, None).payload).expect("small");
        let mut reading = signed.decode(|_| Some(key.public())).expect("signed");
        let line = acknowledged_line(&reading);
        let said: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert!(
            said["observations"][0]["samples"]
                .as_str()
                .is_some_and(|d| d.starts_with("1220"))
        );
        let block = reading.observations.iter_mut().find_map(|m| m.samples.as_mut());
        *block.expect("a block").data.last_mut().expect("samples") += 1;
        assert_ne!(acknowledged_line(&reading), line);
    }

    #[tokio::test]
    async fn a_wrong_key_unit_or_clock_is_really_wrong() {
        let (key, signed) = first_payload(fault::Config {
            wrong_key: 1.0,
            ..fault::Config::default()
        })
        .await;
        assert_eq!(
            signed.decode(|_| Some(key.public())).expect_err("wrong").reason,
            Reason::WrongSignature
        );
        let (key, signed) = first_payload(fault::Config {
            wrong_unit: 1.0,
            ..fault::Config::default()
        })
        .await;
        let reading = signed.decode(|_| Some(key.public())).expect("signed");
        assert_eq!(
            Observation::of(&reading, 0).expect_err("wrong").reason,
            Reason::WrongUnit
        );
        let (key, signed) = first_payload(fault::Config {
            wrong_clock: 1.0,
            ..fault::Config::default()
        })
        .await;
        let reading = signed.decode(|_| Some(key.public())).expect("signed");
        let ahead = reading.wall.expect("a clock") - jiff::Timestamp::now().as_millisecond();
        assert!(ahead > 86_000_000, "{ahead}");
    }

    #[tokio::test]
    async fn what_finds_no_room_leaves_a_gap_and_no_number_is_used_twice() {
        let key = SigningKey::random();
        let (mut device, mut inbox) = device(&key, &fault::Config::default(), PathBuf::new());
        for _ in 0..15 {
            device.measure().await;
        }
        assert_eq!(
            (0..5).filter(|_| matches!(inbox.try_recv(), Ok(Note::Unkept))).count(),
            5
        );
        for seq in 1..=10 {
            assert_eq!(device.journal.send(1).expect("kept").seq, seq);
            device.follow(Event::Answered(seq, Answer::Taken)).await;
        }
        device.measure().await;
        assert_eq!(device.journal.send(1).expect("room again").seq, 16);
    }

    #[tokio::test]
    async fn a_gateway_that_is_full_is_given_time_and_the_same_reading_again() {
        let key = SigningKey::random();
        let (mut device, mut inbox) = device(&key, &fault::Config::default(), PathBuf::new());
        device.measure().await;
        let first = device.journal.send(1).expect("measured");
        device.follow(Event::Answered(1, Answer::Again)).await;
        assert!(device.resume_at.is_some_and(|at| at > time::Instant::now()));
        assert_eq!(device.journal.send(1).expect("again").payload, first.payload);
        device.follow(Event::Answered(1, Answer::Refused(0x99))).await;
        assert!(device.journal.is_empty());
        assert!(matches!(inbox.try_recv(), Ok(Note::Refused)));
        // The answer to a repeat of the same reading changes nothing.
        device.follow(Event::Answered(1, Answer::Taken)).await;
        assert!(inbox.try_recv().is_err());
    }
}
