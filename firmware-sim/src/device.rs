//! One home device: it measures by its own clock, signs, numbers without gaps, and sends until the broker has answered.

mod account;
mod asked;
mod backoff;
mod boot;
mod habits;
mod journal;
mod link;
mod measurement;
mod note;
mod outcome;
mod receipt;
mod sealing;
mod waiting;

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use record::{
    ids::{BootId, DeviceId, GatewayId},
    signature::SigningKey,
    topic,
    transit::ReadingKey,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    time::{self, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{conformance, signal::Signal};
use asked::{Ranges, Shelf};
use backoff::Backoff;
use journal::Journal;
use link::{Answer, Event, Link, Loss, Name};
use receipt::Questions;

pub(crate) use backoff::LONGEST_MS;
pub use habits::Clock;
pub(crate) use habits::{Habits, Stored};
pub(crate) use link::{Broker, Credentials};
pub(crate) use note::Note;
pub use receipt::Receipt;
pub use sealing::Config as SealConfig;

/// "Not authorized": the gateway does not believe that the message is the device's, and so not its number either.
const NOT_BELIEVED: u8 = 0x87;
/// How often a device says that it is there, and what stands on its tick counter.
const STATE_EVERY: Duration = Duration::from_secs(240);

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
    pub(crate) habits: Habits,
}

/// What all devices of a fleet share.
pub(crate) struct Home {
    pub(crate) gateway: GatewayId,
    pub(crate) broker: Broker,
    /// What they seal to; none: they publish in the clear.
    pub(crate) seal: Option<ReadingKey>,
    /// Whether what is sent is written to `capture.ndjson`.
    pub(crate) captures: bool,
    pub(crate) data_dir: PathBuf,
    /// Room in each journal.
    pub(crate) readings_max: usize,
    /// How long a device keeps what was acknowledged.
    pub(crate) keep_acknowledged: Duration,
    pub(crate) answer_timeout: Duration,
}

/// A device that runs.
struct Device {
    id: DeviceId,
    key: SigningKey,
    signal: Box<dyn Signal>,
    habits: Habits,
    home: Arc<Home>,
    boot: BootId,
    /// When this run began, and how long the device had been running then.
    started: (Instant, Duration),
    seq: u64,
    journal: Journal,
    shelf: Shelf,
    /// What the gateway has asked for and the device does not have, still to be said.
    lost: Option<(BootId, Ranges)>,
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
    let (device, period, credentials) = {
        // Starts share the disk as they share the broker: some at a time.
        let _turn = home
            .broker
            .turns
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let home = home.clone();
        tokio::task::spawn_blocking(move || Device::start(parts, home, notes))
            .await
            .map_err(io::Error::other)??
    };
    let name = Name {
        gateway: &device.home.gateway,
        device: &device.id,
        boot: device.boot,
        started: device.started,
    };
    let link = Link::new(&device.home.broker, &name, &credentials);
    device.live(link, period, stop).await;
    Ok(())
}

impl Device {
    /// Counts the start, durably, and moves the signal behind what is stored.
    fn start(parts: Parts, home: Arc<Home>, notes: mpsc::Sender<Note>) -> io::Result<(Self, Duration, Credentials)> {
        let Parts {
            id,
            key,
            mut signal,
            period,
            mut habits,
            credentials,
        } = parts;
        let device = Self {
            journal: Journal::new(home.readings_max),
            shelf: Shelf::keeping(home.keep_acknowledged),
            lost: None,
            questions: Questions::every(home.answer_timeout),
            boot: boot::start(&home.data_dir, &id)?,
            seq: habits.skip_stored(&mut *signal),
            started: (
                Instant::now(),
                habits.stored.as_ref().map(Stored::span).unwrap_or_default(),
            ),
            id,
            key,
            signal,
            habits,
            home,
            backoff: Backoff::default(),
            resume_at: None,
            connected: false,
            notes,
        };
        Ok((device, period, credentials))
    }

    async fn live(mut self, mut link: Link, period: Duration, stop: CancellationToken) {
        // Devices are switched on at different moments: their clocks do not tick together.
        let first = time::Instant::now() + period.mul_f64(rand::random());
        let mut clock = time::interval_at(first, period);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut restate = time::interval_at(time::Instant::now() + STATE_EVERY, STATE_EVERY);
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
                _ = restate.tick(), if self.connected => link.say_that_it_is_there(),
            }
            if let Some((boot, ranges)) = self.lost.take() {
                link.say_lost(boot, &ranges);
            }
            self.mind_silence(&mut link).await;
            if measuring {
                self.refill();
            }
            self.send(&mut link).await;
        }
        self.forget_stored().await;
        self.forget_unsent().await;
        link.close().await;
        self.disconnected().await;
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
            Event::Answered(ticket, Answer::Unheard) if self.home.broker.receipt == Receipt::Ack => self.again(ticket),
            Event::Answered(ticket, Answer::Taken | Answer::Unheard) => {
                self.backoff.worked();
                match self.home.broker.receipt {
                    Receipt::Puback => drop(self.acknowledged(ticket).await),
                    Receipt::Ack => self.journal.hand_over(ticket),
                }
            }
            Event::Durable(progress) => self.durable(&progress).await,
            Event::Refused(refusal) => self.told(&refusal).await,
            Event::Asked(resend) => self.asked(&resend),
            Event::Answered(ticket, Answer::Refused(code)) if self.home.broker.receipt == Receipt::Puback => {
                if let Some(entry) = self.journal.settle(ticket) {
                    self.refused(entry, code).await;
                }
            }
            // An outside broker cannot refuse for the gateway: its rights are wrong, and the reading is in no hands but ours.
            Event::Answered(ticket, Answer::Again | Answer::Refused(_)) => self.again(ticket),
        }
    }

    /// The gateway has it; when an outside broker took it, if one did.
    async fn acknowledged(&mut self, ticket: u64) -> Option<Instant> {
        let entry = self.journal.settle(ticket)?;
        let handed = entry.handed;
        self.taken(entry).await;
        handed
    }

    fn again(&mut self, ticket: u64) {
        self.journal.again(ticket);
        // Once for all that were in flight together: they were refused for the same reason.
        if self.resume_at.is_none() {
            self.resume_at = Some(time::Instant::now() + self.backoff.failed());
        }
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
            let prefix = topic::prefix(&self.home.gateway);
            let topic = format!("{prefix}{}/{}", self.id, sending.stream.as_str());
            if sending.first {
                let now_ms = || jiff::Timestamp::now().as_millisecond();
                let line = || conformance::captured_line(&topic, &sending.payload, now_ms());
                let capture = self.home.captures.then(line);
                self.note(Note::Published { capture }).await;
            }
            let handed = (0..sending.copies)
                .filter(|_| link.publish(sending.ticket, &topic, sending.payload.clone()))
                .count();
            if handed == 0 {
                // Cannot happen while the window is smaller than the client's queue; if it does, the next event sends it.
                self.journal.again(sending.ticket);
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

#[cfg(test)]
mod tests {
    use super::{account::acknowledged_line, journal::Class, *};
    use crate::{
        fault,
        signal::{Library, Message, Stream},
    };
    use record::{
        observation::Observation,
        reading::{Reason, SignedReading, TimeQuality},
    };

    pub(super) fn device(
        key: &SigningKey,
        faults: &fault::Config,
        data_dir: PathBuf,
    ) -> (Device, mpsc::Receiver<Note>) {
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
            seal: None,
            captures: true,
            data_dir,
            readings_max: 10,
            keep_acknowledged: Duration::ZERO,
            answer_timeout: Duration::from_secs(1),
        };
        let (notes, inbox) = mpsc::channel(1_000);
        let device = Device {
            id: "cuff-1".parse().expect("good"),
            key: key.clone(),
            signal: Library::embedded().open("synthetic/blood-pressure").expect("known").1,
            habits: Habits {
                profile: None,
                faults: faults.faults().expect("good"),
                clock: Clock::Synced,
                events: 0.0,
                seals: true,
                stored: None,
                replay: std::collections::VecDeque::new(),
            },
            home: Arc::new(home),
            boot: BootId { counter: 1, random: 1 },
            started: (Instant::now(), Duration::ZERO),
            seq: 0,
            shelf: Shelf::keeping(Duration::ZERO),
            lost: None,
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
        let entry = device.signed(
            device.reading(1, Duration::ZERO, &wave),
            (Stream::Wave, Class::Live),
            None,
        );
        let signed = SignedReading::receive(&entry.payload).expect("small");
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
            (0..10).filter(|_| matches!(inbox.try_recv(), Ok(Note::Unkept))).count(),
            5,
            "each beside the line that says which number is missing"
        );
        for seq in 1..=10 {
            assert_eq!(device.journal.send(1).expect("kept").ticket, seq);
            device.follow(Event::Answered(seq, Answer::Taken)).await;
        }
        device.measure().await;
        let ticket = device.journal.send(1).expect("room again").ticket;
        assert_eq!(device.journal.settle(ticket).expect("sent").seq, 16);
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
        assert!(matches!(
            inbox.try_recv(),
            Ok(Note::Refused {
                is_unexpected: true,
                ..
            })
        ));
        // The answer to a repeat of the same reading changes nothing.
        device.follow(Event::Answered(1, Answer::Taken)).await;
        assert!(inbox.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_window_that_is_refused_together_is_one_failure() {
        let key = SigningKey::random();
        let (mut device, _inbox) = device(&key, &fault::Config::default(), PathBuf::new());
        for _ in 0..8 {
            device.measure().await;
        }
        let tickets: Vec<_> = std::iter::from_fn(|| device.journal.send(8))
            .map(|sending| sending.ticket)
            .collect();
        assert_eq!(tickets.len(), 8);
        for ticket in tickets {
            device.follow(Event::Answered(ticket, Answer::Again)).await;
        }
        let wait = device.resume_at.expect("it waits") - time::Instant::now();
        assert!(wait <= Duration::from_millis(500), "{wait:?}");
        assert!(
            device.backoff.failed() <= Duration::from_millis(1_000),
            "one failure so far"
        );
    }

    /// What the device says of each answer.
    fn said(inbox: &mut mpsc::Receiver<Note>) -> Vec<String> {
        std::iter::from_fn(|| inbox.try_recv().ok())
            .map(|note| format!("{note:?}"))
            .collect()
    }

    #[tokio::test]
    async fn a_fault_that_is_not_refused_and_a_replay_that_is_are_unexpected() {
        let key = SigningKey::random();
        let faults = fault::Config {
            giants: 1.0,
            ..fault::Config::default()
        };
        let (mut device, mut inbox) = device(&key, &faults, PathBuf::new());
        device.measure().await;
        let giant = device.journal.send(1).expect("measured");
        assert!(SignedReading::receive(&giant.payload).is_err(), "it is too large");
        device.follow(Event::Answered(giant.ticket, Answer::Taken)).await;
        let notes = said(&mut inbox).join("");
        assert!(notes.contains("is_unexpected: true"), "{notes}");

        device.habits.faults = fault::Config {
            replays: 1.0,
            ..fault::Config::default()
        }
        .faults()
        .expect("good");
        device.measure().await;
        let first = device.journal.send(1).expect("measured");
        device.follow(Event::Answered(first.ticket, Answer::Taken)).await;
        let again = device.journal.send(1).expect("sent once more");
        assert_eq!((&again.payload, again.first), (&first.payload, false));
        device
            .follow(Event::Answered(again.ticket, Answer::Refused(0x99)))
            .await;
        let notes = said(&mut inbox);
        assert!(notes[0].contains("is_unexpected: false") && notes[1].contains("Replayed { is_unexpected: true"));
        assert!(device.journal.is_empty());
    }

    #[tokio::test]
    async fn a_refused_giant_or_forgery_leaves_its_number_missing_and_a_wrong_unit_does_not() {
        let key = SigningKey::random();
        for (faults, code, is_missing) in [
            (r#"{"giants":1.0}"#, 0x99, true),
            (r#"{"wrong_key":1.0}"#, 0x87, true),
            (r#"{"wrong_unit":1.0}"#, 0x99, false),
        ] {
            let config: fault::Config = serde_json::from_str(faults).expect("good");
            let (mut device, mut inbox) = device(&key, &config, PathBuf::new());
            device.measure().await;
            let sending = device.journal.send(1).expect("measured");
            device
                .follow(Event::Answered(sending.ticket, Answer::Refused(code)))
                .await;
            let notes = said(&mut inbox).join("");
            assert_eq!(notes.contains("not-believed"), is_missing, "{faults}: {notes}");
            assert!(notes.contains("is_unexpected: false"), "{notes}");
        }
    }

    #[tokio::test]
    async fn a_device_without_a_clock_says_so_and_counts_from_its_start() {
        let key = SigningKey::random();
        let (mut device, _inbox) = device(&key, &fault::Config::default(), PathBuf::new());
        let series = || Library::embedded().open("synthetic/blood-pressure").expect("known").1;
        device.habits.clock = Clock::None;
        device.habits.stored = Some(Stored::of(series(), 100, Duration::from_secs(60)));
        device.started.1 = Duration::from_secs(6_000);
        device.seq = device.habits.skip_stored(&mut *device.signal);
        device.refill();
        device.measure().await;
        let mut readings = std::iter::from_fn(|| device.journal.send(100)).map(|sending| {
            let signed = SignedReading::receive(&sending.payload).expect("small");
            signed.decode(|_| Some(key.public())).expect("signed")
        });
        let live = readings.next().expect("what is live goes first");
        assert_eq!(
            (live.seq, live.wall, live.time_quality),
            (101, None, TimeQuality::Relative)
        );
        assert!((6_000_000..6_060_000).contains(&live.up_ms), "{}", live.up_ms);
        let stored: Vec<_> = readings.map(|reading| (reading.seq, reading.up_ms)).collect();
        assert_eq!(stored, [(1, 0), (2, 60_000), (3, 120_000), (4, 180_000), (5, 240_000)]);
    }

    #[tokio::test]
    async fn what_was_stored_says_when_it_was_measured() {
        let key = SigningKey::random();
        let (mut device, mut inbox) = device(&key, &fault::Config::default(), PathBuf::new());
        let series = Library::embedded().open("synthetic/blood-pressure").expect("known").1;
        device.habits.stored = Some(Stored::of(series, 24, Duration::from_secs(3_600)));
        device.started.1 = Duration::from_secs(86_400);
        device.refill();
        let sending = device.journal.send(1).expect("stored");
        let signed = SignedReading::receive(&sending.payload).expect("small");
        let reading = signed.decode(|_| Some(key.public())).expect("signed");
        let ago = jiff::Timestamp::now().as_millisecond() - reading.wall.expect("a clock");
        assert!((86_400_000..86_460_000).contains(&ago), "{ago}");
        device.forget_stored().await;
        let notes = said(&mut inbox).join("");
        assert!(
            notes.contains(r#"\"from\":6,"#) && notes.contains(r#"\"to\":24"#),
            "{notes}"
        );
    }

    #[tokio::test]
    async fn what_the_gateway_asks_for_is_sent_and_what_is_lost_is_said() {
        let folder = tempfile::tempdir().expect("a folder");
        let (key, faults) = (SigningKey::random(), fault::Config::default());
        let (mut device, _notes) = device(&key, &faults, folder.path().to_owned());
        device.shelf = Shelf::keeping(Duration::from_secs(3_600));
        let message = |seq: u64| {
            let message = Message {
                stream: Stream::Reading,
                observations: Vec::new(),
            };
            (seq, message)
        };
        for (seq, message) in (1..=6).map(message) {
            device.seq = seq;
            let reading = device.reading(seq, Duration::from_secs(seq), &message);
            let entry = device.signed(reading, (Stream::Reading, Class::Live), None);
            match seq {
                // Acknowledged, forgotten, dropped, waiting.
                1 => device.keep_acknowledged(&entry).await,
                2 => device.forget_to_send(entry).await,
                3 | 4 => {}
                _ => device.journal.keep(entry).expect("room"),
            }
        }
        let boot = device.boot;
        let ask = |text: &str| {
            let text = text.replace("BOOT", &boot.to_string());
            serde_json::from_str::<asked::Command>(&text).expect("JSON").resend
        };
        device.asked(&ask(
            r#"{"resend":{"boot":"BOOT","ranges":[[1,5],[7,18446744073709551615]]}}"#,
        ));
        assert_eq!(device.lost.take(), Some((boot, vec![(3, 4)])));
        let sent: Vec<_> = std::iter::from_fn(|| device.journal.send(9)).collect();
        assert_eq!(
            sent.len(),
            4,
            "5 and 6, that waited, 2, that was forgotten, and 1, that was acknowledged"
        );
        device.asked(&ask(
            r#"{"resend":{"boot":"9-00000000000000ff","ranges":[[1,5],[4,2]]}}"#,
        ));
        let other = BootId {
            counter: 9,
            random: 255,
        };
        assert_eq!(device.lost.take(), Some((other, vec![(1, 5)])));
    }
}
