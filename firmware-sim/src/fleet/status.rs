//! The fleet's own account: `status.json` for whoever watches, `acknowledged.ndjson` for whoever compares with the chain.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
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

/// `status.json`.
#[derive(Debug, Serialize)]
struct Report {
    devices: usize,
    connected: u64,
    published: u64,
    acknowledged: u64,
    refused: u64,
    unkept: u64,
    latency_ms: Latency,
}

/// Counts the notes of all devices; the only one that writes the files.
#[derive(Debug)]
pub(super) struct Status {
    path: PathBuf,
    acknowledged_file: File,
    devices: usize,
    connected: u64,
    published: u64,
    acknowledged: u64,
    refused: u64,
    unkept: u64,
    waited: Histogram,
}

impl Status {
    pub(super) async fn open(data_dir: &Path, devices: usize) -> io::Result<Self> {
        let acknowledged = data_dir.join("acknowledged.ndjson");
        let acknowledged_file = OpenOptions::new().create(true).append(true).open(acknowledged).await?;
        Ok(Self {
            path: data_dir.join("status.json"),
            acknowledged_file,
            devices,
            connected: 0,
            published: 0,
            acknowledged: 0,
            refused: 0,
            unkept: 0,
            waited: Histogram::new(),
        })
    }

    /// Counts until the last device is gone, then writes the last status.
    pub(super) async fn keep(mut self, mut inbox: mpsc::Receiver<Note>) -> io::Result<()> {
        let mut clock = time::interval(EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut notes, mut ticks) = (Vec::with_capacity(NOTES_AT_ONCE), 0_u32);
        loop {
            tokio::select! {
                count = inbox.recv_many(&mut notes, NOTES_AT_ONCE) => {
                    if count == 0 {
                        break;
                    }
                    self.count(&mut notes).await?;
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
        self.write().await
    }

    async fn count(&mut self, notes: &mut Vec<Note>) -> io::Result<()> {
        let mut lines = String::new();
        for note in notes.drain(..) {
            match note {
                Note::Connected => self.connected += 1,
                Note::Disconnected => self.connected -= 1,
                Note::Published => self.published += 1,
                Note::Refused => self.refused += 1,
                Note::Unkept => self.unkept += 1,
                Note::Acknowledged { line, waited } => {
                    self.acknowledged += 1;
                    self.waited.record(waited);
                    lines.push_str(&line);
                    lines.push('\n');
                }
            }
        }
        // In the file before it is in the status: whoever reads both never misses a line.
        self.acknowledged_file.write_all(lines.as_bytes()).await?;
        self.acknowledged_file.flush().await
    }

    fn report(&self) -> Report {
        Report {
            devices: self.devices,
            connected: self.connected,
            published: self.published,
            acknowledged: self.acknowledged,
            refused: self.refused,
            unkept: self.unkept,
            latency_ms: Latency {
                publish_to_puback: Percentiles {
                    p50: self.waited.percentile_ms(50),
                    p99: self.waited.percentile_ms(99),
                },
            },
        }
    }

    async fn write(&self) -> io::Result<()> {
        let text = serde_json::to_string(&self.report()).map_err(io::Error::other)?;
        let next = self.path.with_extension("json.next");
        fs::write(&next, text + "\n").await?;
        fs::rename(&next, &self.path).await
    }

    fn log(&self) {
        let Self {
            devices,
            connected,
            published,
            acknowledged,
            refused,
            unkept,
            ..
        } = self;
        tracing::info!(devices, connected, published, acknowledged, refused, unkept, "fleet");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_account_says_what_the_devices_said() {
        let folder = tempfile::tempdir().expect("a folder");
        let (notes, inbox) = mpsc::channel(100);
        let status = Status::open(folder.path(), 2).await.expect("open");
        let account = tokio::spawn(status.keep(inbox));
        notes.send(Note::Connected).await.expect("open");
        notes.send(Note::Connected).await.expect("open");
        for n in 1..=10_u64 {
            notes.send(Note::Published).await.expect("open");
            let (line, waited) = (format!(r#"{{"seq":{n}}}"#), Duration::from_millis(n));
            notes.send(Note::Acknowledged { line, waited }).await.expect("open");
        }
        notes.send(Note::Disconnected).await.expect("open");
        notes.send(Note::Refused).await.expect("open");
        notes.send(Note::Unkept).await.expect("open");
        drop(notes);
        account.await.expect("joined").expect("written");
        let text = std::fs::read_to_string(folder.path().join("status.json")).expect("written");
        let status: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            (status["devices"].as_u64(), status["connected"].as_u64()),
            (Some(2), Some(1))
        );
        assert_eq!(
            (status["published"].as_u64(), status["acknowledged"].as_u64()),
            (Some(10), Some(10))
        );
        assert_eq!(
            (status["refused"].as_u64(), status["unkept"].as_u64()),
            (Some(1), Some(1))
        );
        let p50 = status["latency_ms"]["publish_to_puback"]["p50"]
            .as_f64()
            .expect("a number");
        assert!((4.9..=5.1).contains(&p50), "{p50}");
        let lines = std::fs::read_to_string(folder.path().join("acknowledged.ndjson")).expect("written");
        assert_eq!(lines.lines().count(), 10);
    }
}
