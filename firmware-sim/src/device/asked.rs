//! The gateway asks for numbers that it misses: what the device has it sends, and of the rest it says that it is lost.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use record::ids::BootId;
use serde::Deserialize;

use super::{
    Device, Note,
    journal::{Class, Entry},
};
use crate::signal::Stream;

/// Readings that are kept beside the journal, at most.
const KEPT_MAX: usize = 1_000;
/// Numbers that are looked for at a time, at most.
const ASKED_MAX: usize = 1_000;
/// Ranges that are said to be lost at a time, at most: more is asked for again.
const LOST_MAX: usize = 64;

/// Ranges of numbers, both ends included.
pub(crate) type Ranges = Vec<(u64, u64)>;

/// The JSON on the topic `cmd`. Commands of later versions are not understood, and ignored.
#[derive(Debug, Deserialize)]
pub(crate) struct Command {
    pub(crate) resend: Resend,
}

/// What is to be sent, again or for the first time.
#[derive(Debug, Deserialize)]
pub(crate) struct Resend {
    boot: BootId,
    ranges: Ranges,
}

/// A reading that is not to be sent, unless somebody asks.
#[derive(Debug)]
struct Kept {
    seq: u64,
    stream: Stream,
    payload: Bytes,
    /// What the account says of it; absent once it says it.
    line: Option<String>,
    /// Until when; absent if it was never sent.
    until: Option<Instant>,
}

/// What a device has beside its journal: acknowledged readings for a while, and those that it forgot to send (a fault).
#[derive(Debug)]
pub(crate) struct Shelf {
    kept: VecDeque<Kept>,
    keeps: Duration,
}

impl Shelf {
    /// A shelf on which acknowledged readings stay for so long.
    pub(crate) const fn keeping(keeps: Duration) -> Self {
        Self {
            kept: VecDeque::new(),
            keeps,
        }
    }

    /// Keeps a reading that was never sent; gives the number of the one that makes room for it, if that one was never sent.
    fn forget_to_send(&mut self, entry: Entry) -> Option<u64> {
        self.keep(Kept {
            seq: entry.seq,
            stream: entry.stream,
            payload: entry.payload,
            line: Some(entry.line),
            until: None,
        })
    }

    /// Keeps a reading that was acknowledged; gives the same.
    pub(crate) fn acknowledged(&mut self, seq: u64, stream: Stream, payload: Bytes) -> Option<u64> {
        if self.keeps.is_zero() {
            return None;
        }
        let now = Instant::now();
        self.kept.retain(|one| one.until.is_none_or(|until| until > now));
        self.kept.retain(|one| one.seq != seq);
        self.keep(Kept {
            seq,
            stream,
            payload,
            line: None,
            until: Some(now + self.keeps),
        })
    }

    fn keep(&mut self, one: Kept) -> Option<u64> {
        self.kept.push_back(one);
        if self.kept.len() <= KEPT_MAX {
            return None;
        }
        let gone = self.kept.pop_front()?;
        gone.until.is_none().then_some(gone.seq)
    }

    /// The reading of this number as it goes to the journal: one that was acknowledged stays here, too.
    fn entry(&self, seq: u64) -> Option<Entry> {
        let one = self.kept.iter().find(|one| one.seq == seq)?;
        let class = if one.until.is_some() {
            Class::Replay
        } else {
            Class::Stored
        };
        let line = one.line.clone().unwrap_or_default();
        Some(Entry::new((seq, one.stream, class), one.payload.clone(), line, None))
    }

    /// The journal has a reading that was never sent.
    fn moved(&mut self, seq: u64) {
        self.kept.retain(|one| one.seq != seq || one.until.is_some());
    }

    /// Numbers of readings that were never sent.
    fn unsent(&self) -> impl Iterator<Item = u64> {
        self.kept.iter().filter(|one| one.until.is_none()).map(|one| one.seq)
    }
}

impl Device {
    /// A reading that the device forgets to send, until it is asked.
    pub(super) async fn forget_to_send(&mut self, entry: Entry) {
        let gone = self.shelf.forget_to_send(entry);
        self.miss_unsent(gone).await;
    }

    /// A reading that is acknowledged stays for a while.
    pub(super) async fn keep_acknowledged(&mut self, entry: &Entry) {
        let gone = self.shelf.acknowledged(entry.seq, entry.stream, entry.payload.clone());
        self.miss_unsent(gone).await;
    }

    /// What nobody asked for until the end.
    pub(super) async fn forget_unsent(&mut self) {
        for seq in self.shelf.unsent().collect::<Vec<_>>() {
            self.miss_unsent(Some(seq)).await;
        }
    }

    async fn miss_unsent(&self, seq: Option<u64>) {
        if let Some(seq) = seq {
            self.note(Note::Unkept).await;
            self.miss((seq, seq), "not-asked").await;
        }
    }

    /// The gateway asks; what is lost is said soon.
    pub(super) fn asked(&mut self, resend: &Resend) {
        let mut lost = Ranges::new();
        if resend.boot == self.boot {
            let numbers = resend.ranges.iter().flat_map(|(from, to)| *from..=*to);
            let used = 1..=self.seq;
            for seq in numbers.take(ASKED_MAX) {
                if used.contains(&seq) && !self.sends(seq) {
                    lose(&mut lost, seq);
                }
            }
        } else {
            // The journal is memory: of another start there is nothing.
            lost.extend(resend.ranges.iter().filter(|(from, to)| from <= to));
        }
        lost.truncate(LOST_MAX);
        if !lost.is_empty() {
            self.lost = Some((resend.boot, lost));
        }
    }

    /// Whether a number is on its way, now at the latest.
    fn sends(&mut self, seq: u64) -> bool {
        let is_stored = self.habits.stored.as_ref().is_some_and(|stored| stored.has(seq));
        if is_stored || self.journal.send_again(seq) {
            return true;
        }
        let Some(entry) = self.shelf.entry(seq) else {
            return false;
        };
        // Without room it is asked for again.
        if self.journal.keep(entry).is_ok() {
            self.shelf.moved(seq);
        }
        true
    }
}

/// Adds a number to ascending ranges.
fn lose(lost: &mut Ranges, seq: u64) {
    match lost.last_mut() {
        Some((_, to)) if *to + 1 == seq => *to = seq,
        _ => lost.push((seq, seq)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64) -> Entry {
        let line = format!("line {seq}");
        Entry::new(
            (seq, Stream::Reading, Class::Live),
            Bytes::from(seq.to_string()),
            line,
            None,
        )
    }

    #[test]
    fn what_was_acknowledged_stays_for_a_while_and_is_sent_again_as_it_was() {
        let mut shelf = Shelf::keeping(Duration::from_secs(3_600));
        assert_eq!(shelf.acknowledged(4, Stream::Wave, Bytes::from_static(b"four")), None);
        for _ in 0..2 {
            let again = shelf.entry(4).expect("kept");
            assert_eq!(
                (again.stream, again.class, &again.payload[..]),
                (Stream::Wave, Class::Replay, &b"four"[..])
            );
            shelf.moved(4);
        }
        assert!(shelf.entry(5).is_none());
        let mut short = Shelf::keeping(Duration::from_nanos(1));
        let _ = short.acknowledged(1, Stream::Reading, Bytes::new());
        std::thread::sleep(Duration::from_millis(1));
        let _ = short.acknowledged(2, Stream::Reading, Bytes::new());
        assert!(short.entry(1).is_none());
        let mut none = Shelf::keeping(Duration::ZERO);
        let _ = none.acknowledged(1, Stream::Reading, Bytes::new());
        assert!(none.entry(1).is_none());
    }

    #[test]
    fn what_was_forgotten_is_sent_once_and_named_if_there_is_no_room_for_it() {
        let mut shelf = Shelf::keeping(Duration::ZERO);
        for seq in 1..=KEPT_MAX as u64 {
            assert_eq!(shelf.forget_to_send(entry(seq)), None);
        }
        assert_eq!(shelf.forget_to_send(entry(5_000)), Some(1));
        let first = shelf.entry(5_000).expect("kept");
        assert_eq!((first.class, first.line.as_str()), (Class::Stored, "line 5000"));
        shelf.moved(5_000);
        assert!(shelf.entry(5_000).is_none());
        assert_eq!(shelf.unsent().count(), KEPT_MAX - 1);
    }

    #[test]
    fn a_command_reads_as_the_gateway_writes_it_and_lost_numbers_are_ranges() {
        let text = r#"{"resend":{"boot":"7-0000000000000001","ranges":[[4,5],[9,9]]}}"#;
        let command: Command = serde_json::from_str(text).expect("JSON");
        assert_eq!(command.resend.ranges, [(4, 5), (9, 9)]);
        assert!(serde_json::from_str::<Command>(r#"{"reboot":{}}"#).is_err());
        let mut lost = Ranges::new();
        [3, 4, 5, 9].into_iter().for_each(|seq| lose(&mut lost, seq));
        assert_eq!(lost, [(3, 5), (9, 9)]);
    }
}
