//! The fleet's own account: `status.json` for whoever watches, lists of readings for whoever compares with the chain.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::{
    fs::{self, File, OpenOptions},
    io::AsyncWriteExt as _,
    sync::mpsc,
    time::{self, MissedTickBehavior},
};

use super::latency::Histogram;
use crate::device::Note;

/// How often `status.json` is written.
const EVERY: Duration = Duration::from_millis(500);
/// How many of these pass between two lines in the log.
const LOG_EVERY: u32 = 20;
/// Notes taken at a time; their lines are written at once.
const NOTES_AT_ONCE: usize = 1_024;
/// What devices without a profile are called beside those with one.
const USUAL: &str = "usual";

/// Percentiles in milliseconds.
#[derive(Debug, Serialize)]
struct Percentiles {
    p50: f64,
    p99: f64,
}

#[derive(Debug, Serialize)]
struct Latency {
    publish_to_puback: Percentiles,
}

/// What became of the readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Connections that are there now.
    pub connected: u64,
    /// Readings that were sent, however often.
    pub published: u64,
    /// Readings that were acknowledged.
    pub acknowledged: u64,
    /// Readings that were refused for good.
    pub refused: u64,
    /// Numbers that were used and not sent.
    pub unkept: u64,
    /// Messages that were sent once more after they had been acknowledged, and answered.
    pub replayed: u64,
    /// Answers that were others than they had to be.
    pub unexpected: u64,
}

impl Summary {
    /// Readings that have no answer.
    #[must_use]
    pub const fn unanswered(&self) -> u64 {
        self.published.saturating_sub(self.acknowledged + self.refused)
    }

    /// Whether every reading was answered, and as it had to be.
    #[must_use]
    pub const fn is_as_expected(&self) -> bool {
        self.unexpected == 0 && self.unanswered() == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "published {}, acknowledged {}, refused {}, without an answer {}, used and not sent {}, sent once more {}, \
             answered unexpectedly {}",
            self.published,
            self.acknowledged,
            self.refused,
            self.unanswered(),
            self.unkept,
            self.replayed,
            self.unexpected
        )
    }
}

/// `status.json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    devices: usize,
    #[serde(flatten)]
    summary: Summary,
    /// Of all devices.
    latency_ms: Latency,
    /// The same of those with this profile, and of those without one as `usual`; empty if nobody has a profile.
    profiles: BTreeMap<&'a str, Part>,
}

/// What belongs to one profile.
#[derive(Debug, Serialize)]
struct Part {
    acknowledged: u64,
    latency_ms: Latency,
}

impl Part {
    fn of(waited: &Histogram) -> Self {
        Self {
            acknowledged: waited.total(),
            latency_ms: Latency {
                publish_to_puback: Percentiles {
                    p50: waited.percentile_ms(50),
                    p99: waited.percentile_ms(99),
                },
            },
        }
    }
}

/// A list of the account: a JSON line for each.
#[derive(Debug)]
struct List {
    file: File,
    lines: String,
}

impl List {
    async fn open(data_dir: &Path, name: &str) -> io::Result<Self> {
        let path = data_dir.join(name);
        Ok(Self {
            file: OpenOptions::new().create(true).append(true).open(path).await?,
            lines: String::new(),
        })
    }

    fn add(&mut self, line: &str) {
        self.lines.push_str(line);
        self.lines.push('\n');
    }

    async fn write(&mut self) -> io::Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        self.file.write_all(self.lines.as_bytes()).await?;
        self.lines.clear();
        self.file.flush().await
    }
}

/// Counts the notes of all devices; the only one that writes the files.
#[derive(Debug)]
pub(super) struct Status {
    path: PathBuf,
    acknowledged: List,
    refused: List,
    missing: List,
    capture: Option<List>,
    devices: usize,
    summary: Summary,
    /// Of all devices, and of each profile; anew when every device has a connection for the first time, and from then on only
    /// of what was sent since, so that a fleet that connects is not taken for one that measures.
    waited: (Histogram, BTreeMap<Option<Arc<str>>, Histogram>),
    all_connected: Option<Instant>,
}

impl Status {
    pub(super) async fn open(data_dir: &Path, devices: usize, captures: bool) -> io::Result<Self> {
        Ok(Self {
            path: data_dir.join("status.json"),
            acknowledged: List::open(data_dir, "acknowledged.ndjson").await?,
            refused: List::open(data_dir, "refused.ndjson").await?,
            missing: List::open(data_dir, "missing.ndjson").await?,
            capture: match captures {
                true => Some(List::open(data_dir, "capture.ndjson").await?),
                false => None,
            },
            devices,
            summary: Summary::default(),
            waited: (Histogram::new(), BTreeMap::new()),
            all_connected: None,
        })
    }

    /// Counts until the last device is gone, then writes the last status.
    pub(super) async fn keep(mut self, mut inbox: mpsc::Receiver<Note>) -> io::Result<Summary> {
        let mut clock = time::interval(EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut notes, mut ticks) = (Vec::with_capacity(NOTES_AT_ONCE), 0_u32);
        loop {
            tokio::select! {
                count = inbox.recv_many(&mut notes, NOTES_AT_ONCE) => {
                    if count == 0 {
                        break;
                    }
                    notes.drain(..).for_each(|note| self.count(note));
                    // In the file before it is in the status: whoever reads both never misses a line.
                    for list in [&mut self.acknowledged, &mut self.refused, &mut self.missing] {
                        list.write().await?;
                    }
                    if let Some(list) = &mut self.capture {
                        list.write().await?;
                    }
                }
                _ = clock.tick() => {
                    self.write().await?;
                    ticks = ticks.wrapping_add(1);
                    if ticks.is_multiple_of(LOG_EVERY) {
                        self.log();
                    }
                }
            }
        }
        self.log();
        self.write().await?;
        Ok(self.summary)
    }

    fn count(&mut self, note: Note) {
        let now = &mut self.summary;
        match note {
            Note::Connected => {
                now.connected += 1;
                if now.connected == self.devices as u64 && self.all_connected.is_none() {
                    self.all_connected = Some(Instant::now());
                    self.waited = (Histogram::new(), BTreeMap::new());
                }
            }
            Note::Disconnected => now.connected -= 1,
            Note::Published { capture } => {
                now.published += 1;
                if let (Some(list), Some(line)) = (&mut self.capture, capture) {
                    list.add(&line);
                }
            }
            Note::Refused { line, is_unexpected } => {
                now.refused += 1;
                now.unexpected += u64::from(is_unexpected);
                self.refused.add(&line);
            }
            Note::Unkept => now.unkept += 1,
            Note::Missing(line) => self.missing.add(&line),
            Note::Replayed { is_unexpected } => {
                now.replayed += 1;
                now.unexpected += u64::from(is_unexpected);
            }
            Note::Acknowledged {
                line,
                waited,
                profile,
                is_unexpected,
            } => {
                now.acknowledged += 1;
                now.unexpected += u64::from(is_unexpected);
                self.acknowledged.add(&line);
                if self.all_connected.is_none_or(|since| since.elapsed() >= waited) {
                    let (all, parts) = &mut self.waited;
                    all.record(waited);
                    parts.entry(profile).or_insert_with(Histogram::new).record(waited);
                }
            }
        }
    }

    fn report(&self) -> Report<'_> {
        let (all, parts) = &self.waited;
        let is_divided = parts.keys().any(Option::is_some);
        let profiles = parts.iter().filter(|_| is_divided);
        Report {
            devices: self.devices,
            summary: self.summary,
            latency_ms: Part::of(all).latency_ms,
            profiles: profiles
                .map(|(name, waited)| (name.as_deref().unwrap_or(USUAL), Part::of(waited)))
                .collect(),
        }
    }

    async fn write(&self) -> io::Result<()> {
        let text = serde_json::to_string(&self.report()).map_err(io::Error::other)?;
        let next = self.path.with_extension("json.next");
        fs::write(&next, text + "\n").await?;
        fs::rename(&next, &self.path).await
    }

    fn log(&self) {
        let Summary { connected, .. } = self.summary;
        tracing::info!(devices = self.devices, connected, "fleet: {}", self.summary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledged(n: u64, waited: Duration) -> Note {
        Note::Acknowledged {
            line: format!(r#"{{"seq":{n}}}"#),
            waited,
            profile: (n == 10).then(|| "hot".into()),
            is_unexpected: n == 3,
        }
    }

    #[tokio::test]
    async fn the_account_says_what_the_devices_said() {
        let folder = tempfile::tempdir().expect("a folder");
        let (notes, inbox) = mpsc::channel(100);
        let status = Status::open(folder.path(), 2, true).await.expect("open");
        let account = tokio::spawn(status.keep(inbox));
        notes.send(Note::Connected).await.expect("open");
        notes.send(Note::Connected).await.expect("open");
        let before_all_were_connected = Duration::from_secs(3_600);
        notes
            .send(acknowledged(0, before_all_were_connected))
            .await
            .expect("open");
        // Long before the first of the others was sent, also if the account is written meanwhile.
        time::sleep(Duration::from_millis(500)).await;
        for n in 1..=10_u64 {
            let capture = Some(r#"{"topic":"t"}"#.to_owned());
            notes.send(Note::Published { capture }).await.expect("open");
            notes
                .send(acknowledged(n, Duration::from_millis(n)))
                .await
                .expect("open");
        }
        notes.send(Note::Disconnected).await.expect("open");
        let refused = Note::Refused {
            line: r#"{"seq":11}"#.to_owned(),
            is_unexpected: false,
        };
        notes.send(refused).await.expect("open");
        notes
            .send(Note::Missing(r#"{"from":12}"#.to_owned()))
            .await
            .expect("open");
        notes.send(Note::Unkept).await.expect("open");
        drop(notes);
        let summary = account.await.expect("joined").expect("written");
        assert!(!summary.is_as_expected(), "{summary}");
        let text = std::fs::read_to_string(folder.path().join("status.json")).expect("written");
        let status: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            (status["devices"].as_u64(), status["connected"].as_u64()),
            (Some(2), Some(1))
        );
        assert_eq!(
            (status["published"].as_u64(), status["acknowledged"].as_u64()),
            (Some(10), Some(11))
        );
        assert_eq!(
            (status["refused"].as_u64(), status["unkept"].as_u64()),
            (Some(1), Some(1))
        );
        let p50 = status["latency_ms"]["publish_to_puback"]["p50"]
            .as_f64()
            .expect("a number");
        assert!((4.9..=5.1).contains(&p50), "{p50}");
        assert_eq!(status["unexpected"].as_u64(), Some(1));
        let part = |name: &str| status["profiles"][name]["acknowledged"].as_u64();
        assert_eq!((part("usual"), part("hot")), (Some(9), Some(1)));
        let lines = |name: &str| {
            let text = std::fs::read_to_string(folder.path().join(name)).expect("written");
            text.lines().count()
        };
        let files = [
            "acknowledged.ndjson",
            "refused.ndjson",
            "missing.ndjson",
            "capture.ndjson",
        ];
        assert_eq!(files.map(lines), [11, 1, 1, 10]);
    }
}
