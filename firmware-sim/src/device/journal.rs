//! What a device has measured and nobody has acknowledged yet: sent in order, kept until acknowledged, bounded.
//!
//! It lives in the device's memory, as on a small microcontroller: a power cut loses it, and the next start says so by its
//! boot id. When it is full the device measures on; what finds no room has used its number, so the gap is seen.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{fault::Fault, signal::Stream};

/// What goes first when several wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Somebody should see it at once.
    Alarm,
    /// Measured now.
    Live,
    /// Measured before the connection was there, or before this run.
    Stored,
    /// Acknowledged before, sent once more (a fault).
    Replay,
}

/// A signed reading that waits for its acknowledgement.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its sequence number.
    pub(crate) seq: u64,
    /// Which topic it goes to.
    pub(crate) stream: Stream,
    /// When its turn is.
    pub(crate) class: Class,
    /// The signed message; every sending has the same bytes.
    pub(crate) payload: Bytes,
    /// What `acknowledged.ndjson` says about it.
    pub(crate) line: String,
    /// What is wrong with it.
    pub(crate) fault: Option<Fault>,
    late: bool,
    ticket: u64,
    first_sent: Option<Instant>,
    sent: Option<Instant>,
    /// When an outside broker took it; the gateway has not said yet that it has it.
    pub(crate) handed: Option<Instant>,
}

impl Entry {
    /// A reading that has not been sent.
    pub(crate) const fn new(
        (seq, stream, class): (u64, Stream, Class),
        payload: Bytes,
        line: String,
        fault: Option<Fault>,
    ) -> Self {
        Self {
            seq,
            stream,
            class,
            payload,
            line,
            fault,
            late: matches!(fault, Some(Fault::Reorder)),
            ticket: 0,
            first_sent: None,
            sent: None,
            handed: None,
        }
    }

    /// Since it was sent for the first time.
    pub(crate) fn waited(&self) -> Duration {
        self.first_sent.map(|sent| sent.elapsed()).unwrap_or_default()
    }

    const fn copies(&self) -> u8 {
        if matches!(self.fault, Some(Fault::Repeat)) {
            2
        } else {
            1
        }
    }
}

/// What to hand to the broker now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sending {
    /// Names it in the answer.
    pub(crate) ticket: u64,
    pub(crate) stream: Stream,
    pub(crate) payload: Bytes,
    /// How often it is sent each time.
    pub(crate) copies: u8,
    /// Whether it is a reading that has never been sent before.
    pub(crate) first: bool,
}

/// There is no room for a reading.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// The readings of one start, in the order in which they were made.
#[derive(Debug)]
pub(crate) struct Journal {
    entries: VecDeque<Entry>,
    in_flight: usize,
    readings_max: usize,
    last_ticket: u64,
}

impl Journal {
    /// A journal with room for so many readings; waveforms and what is stored may use the first half of it.
    pub(crate) const fn new(readings_max: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            in_flight: 0,
            readings_max,
            last_ticket: 0,
        }
    }

    /// Keeps a reading until it is settled.
    pub(crate) fn keep(&mut self, mut entry: Entry) -> Result<(), Full> {
        if self.entries.len() >= self.room(entry.stream, entry.class) {
            return Err(Full);
        }
        self.last_ticket += 1;
        entry.ticket = self.last_ticket;
        self.entries.push_back(entry);
        Ok(())
    }

    /// Whether what is not measured now may be put in, of which so many may wait.
    pub(crate) fn has_room_for_stored(&self, waiting_max: usize) -> bool {
        let waiting = self.entries.iter().filter(|entry| entry.class > Class::Live).count();
        waiting < waiting_max && self.entries.len() < self.room(Stream::Reading, Class::Stored)
    }

    const fn room(&self, stream: Stream, class: Class) -> usize {
        match (stream, class) {
            (Stream::Reading | Stream::Event, Class::Alarm | Class::Live) => self.readings_max,
            _ => self.readings_max.div_ceil(2),
        }
    }

    /// The reading whose turn it is, now taken as sent; `None` when the window is full or nothing waits.
    pub(crate) fn send(&mut self, window: usize) -> Option<Sending> {
        if self.in_flight >= window {
            return None;
        }
        let mut at = self.next_but(None)?;
        if self.entries[at].late {
            let overtaking = self.next_but(Some(at))?;
            self.entries[at].late = false;
            at = overtaking;
        }
        let now = Instant::now();
        let entry = &mut self.entries[at];
        let first = entry.first_sent.is_none() && entry.class != Class::Replay;
        entry.first_sent.get_or_insert(now);
        entry.sent = Some(now);
        self.in_flight += 1;
        Some(Sending {
            ticket: entry.ticket,
            stream: entry.stream,
            copies: entry.copies(),
            first,
            payload: entry.payload.clone(),
        })
    }

    /// Where the next one is that is not in flight, the oldest of its class.
    fn next_but(&self, but: Option<usize>) -> Option<usize> {
        let waits = |at: &usize| {
            let entry = &self.entries[*at];
            entry.sent.is_none() && entry.handed.is_none() && Some(*at) != but
        };
        (0..self.entries.len())
            .filter(waits)
            .min_by_key(|at| self.entries[*at].class)
    }

    /// Acknowledged, or refused for good: nothing more to send. `None` for the answer to a repeat.
    pub(crate) fn settle(&mut self, ticket: u64) -> Option<Entry> {
        let entry = self.entries.remove(self.position(ticket)?)?;
        self.in_flight -= usize::from(entry.sent.is_some());
        Some(entry)
    }

    /// Not taken now: sent again, before what is younger and not in flight.
    pub(crate) fn again(&mut self, ticket: u64) {
        if let Some(entry) = self.position(ticket).and_then(|at| self.entries.get_mut(at)) {
            self.in_flight -= usize::from(entry.sent.take().is_some());
        }
    }

    /// The connection is lost: everything is sent again, the oldest first.
    pub(crate) fn rewind(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.sent = None);
        self.in_flight = 0;
    }

    /// The broker has it, which is no receipt: it is kept, and no longer in flight.
    pub(crate) fn hand_over(&mut self, ticket: u64) {
        if let Some(entry) = self.position(ticket).and_then(|at| self.entries.get_mut(at)) {
            self.in_flight -= usize::from(entry.sent.take().is_some());
            entry.handed = Some(Instant::now());
        }
    }

    /// Since when a reading waits in the broker.
    pub(crate) fn handed_since(&self) -> Option<Instant> {
        self.entries.iter().filter_map(|entry| entry.handed).min()
    }

    /// The oldest reading that waits in the broker is sent again; false if there is none.
    pub(crate) fn question(&mut self) -> bool {
        let oldest = self.entries.iter_mut().find(|entry| entry.handed.is_some());
        oldest.is_some_and(|entry| entry.handed.take().is_some())
    }

    /// Whether a number is here; if the broker has it, it is sent again.
    pub(crate) fn send_again(&mut self, seq: u64) -> bool {
        let mut found = self.entries.iter_mut().filter(|entry| entry.seq == seq).peekable();
        let is_here = found.peek().is_some();
        found.for_each(|entry| entry.handed = None);
        is_here
    }

    /// The gateway has what the broker took at this moment, and a broker keeps the order: what it took before, and the gateway
    /// does not have, is lost, and is sent again.
    pub(crate) fn lost(&mut self, before: Instant) {
        let lost = |entry: &&mut Entry| entry.handed.is_some_and(|at| at < before);
        self.entries
            .iter_mut()
            .filter(lost)
            .for_each(|entry| entry.handed = None);
    }

    /// The tickets of all readings that this is true of.
    pub(crate) fn tickets(&self, is: impl Fn(&Entry) -> bool) -> Vec<u64> {
        self.entries
            .iter()
            .filter(|entry| is(entry))
            .map(|entry| entry.ticket)
            .collect()
    }

    /// Nothing overtakes anything any more: no further reading will come.
    pub(crate) fn release(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.late = false);
    }

    /// When the reading was sent that has waited longest for its answer.
    pub(crate) fn oldest_in_flight(&self) -> Option<Instant> {
        self.entries.iter().filter_map(|entry| entry.sent).min()
    }

    /// Whether everything has been settled.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn position(&self, ticket: u64) -> Option<usize> {
        self.entries.iter().position(|entry| entry.ticket == ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64) -> Entry {
        of(seq, Stream::Reading, Class::Live, None)
    }

    fn of(seq: u64, stream: Stream, class: Class, fault: Option<Fault>) -> Entry {
        Entry::new((seq, stream, class), Bytes::from(seq.to_string()), String::new(), fault)
    }

    fn journal(seqs: impl IntoIterator<Item = u64>) -> Journal {
        let mut journal = Journal::new(100);
        seqs.into_iter().for_each(|seq| journal.keep(entry(seq)).expect("room"));
        journal
    }

    fn sent(journal: &mut Journal, window: usize) -> Vec<u64> {
        std::iter::from_fn(|| journal.send(window))
            .map(|sending| sending.ticket)
            .collect()
    }

    #[test]
    fn after_a_reconnect_everything_unacknowledged_is_sent_again_in_order_with_the_same_bytes() {
        let mut journal = journal(1..=5);
        assert_eq!(sent(&mut journal, 4), [1, 2, 3, 4]);
        assert!(journal.settle(2).is_some());
        journal.rewind();
        let again: Vec<_> = std::iter::from_fn(|| journal.send(4)).collect();
        assert_eq!(again.iter().map(|s| s.ticket).collect::<Vec<_>>(), [1, 3, 4, 5]);
        assert_eq!(
            again.iter().map(|s| s.first).collect::<Vec<_>>(),
            [false, false, false, true]
        );
        assert!(again.iter().all(|s| s.payload == s.ticket.to_string()));
    }

    #[test]
    fn nothing_is_forgotten_before_it_is_settled() {
        let mut journal = journal(1..=3);
        for _ in 0..10 {
            assert_eq!(sent(&mut journal, 8), [1, 2, 3]);
            journal.rewind();
        }
        for seq in 1..=3 {
            assert!(journal.settle(seq).is_some());
            assert!(journal.settle(seq).is_none());
        }
        assert!(journal.is_empty());
    }

    #[test]
    fn with_a_window_of_one_a_refusal_for_now_keeps_the_order() {
        let mut journal = journal(1..=3);
        let mut taken = Vec::new();
        for attempt in 0..30 {
            let sending = journal.send(1).map(|s| s.ticket);
            let Some(seq) = sending else { break };
            assert_eq!(journal.send(1), None);
            if attempt % 3 == 0 {
                journal.again(seq);
            } else {
                assert!(journal.settle(seq).is_some());
                taken.push(seq);
            }
        }
        assert_eq!(taken, [1, 2, 3]);
    }

    #[test]
    fn a_full_journal_refuses_waveforms_first_and_keeps_what_it_has() {
        let mut journal = Journal::new(4);
        let wave = |seq| of(seq, Stream::Wave, Class::Live, None);
        assert_eq!(
            (journal.keep(wave(1)), journal.keep(wave(2)), journal.keep(wave(3))),
            (Ok(()), Ok(()), Err(Full))
        );
        assert_eq!(
            (journal.keep(entry(4)), journal.keep(entry(5)), journal.keep(entry(6))),
            (Ok(()), Ok(()), Err(Full))
        );
        assert_eq!(payloads(&mut journal), ["1", "2", "4", "5"]);
    }

    #[test]
    fn a_late_reading_is_overtaken_once() {
        let mut journal = journal([]);
        journal
            .keep(of(1, Stream::Reading, Class::Live, Some(Fault::Reorder)))
            .expect("room");
        assert_eq!(journal.send(8), None);
        journal.keep(entry(2)).expect("room");
        journal.keep(entry(3)).expect("room");
        assert_eq!(sent(&mut journal, 8), [2, 1, 3]);
    }

    #[test]
    fn at_the_end_nothing_waits_to_be_overtaken() {
        let mut journal = journal([]);
        journal
            .keep(of(1, Stream::Reading, Class::Live, Some(Fault::Reorder)))
            .expect("room");
        journal.release();
        assert_eq!(sent(&mut journal, 8), [1]);
    }

    fn payloads(journal: &mut Journal) -> Vec<Bytes> {
        std::iter::from_fn(|| journal.send(100))
            .map(|sending| sending.payload)
            .collect()
    }

    #[test]
    fn alarms_go_first_then_what_is_live_then_what_was_stored_each_in_order() {
        let mut journal = Journal::new(100);
        for (seq, class) in [
            (1, Class::Stored),
            (2, Class::Stored),
            (11, Class::Live),
            (12, Class::Live),
            (13, Class::Alarm),
        ] {
            journal.keep(of(seq, Stream::Reading, class, None)).expect("room");
        }
        assert_eq!(payloads(&mut journal), ["13", "11", "12", "1", "2"]);
    }

    #[test]
    fn what_is_stored_leaves_room_for_what_is_live() {
        let mut journal = Journal::new(4);
        assert!(journal.has_room_for_stored(2));
        for seq in 1..=2 {
            journal
                .keep(of(seq, Stream::Reading, Class::Stored, None))
                .expect("room");
        }
        assert!(!journal.has_room_for_stored(2) && !journal.has_room_for_stored(100));
        assert_eq!(journal.keep(entry(3)), Ok(()));
        assert_eq!(journal.keep(of(4, Stream::Reading, Class::Replay, None)), Err(Full));
    }

    #[test]
    fn what_the_broker_has_is_kept_until_the_gateway_has_it() {
        let mut journal = journal(1..=5);
        assert_eq!(sent(&mut journal, 1), [1]);
        for seq in 1..=3 {
            journal.hand_over(seq);
            assert_eq!(sent(&mut journal, 1), [seq + 1], "the window is free again");
        }
        // The connection is lost: what the broker has is not sent again before somebody says that it is lost.
        journal.rewind();
        assert!(journal.question());
        assert_eq!(sent(&mut journal, 8), [1, 4, 5]);
        journal.hand_over(1);
        journal.hand_over(5);
        let answer = journal.settle(1).expect("kept").handed.expect("handed over");
        journal.lost(answer);
        assert_eq!(sent(&mut journal, 8), [2, 3], "5 was handed over after the question");
        assert_eq!(journal.tickets(|entry| entry.seq > 2), [3, 4, 5]);
        assert!(journal.handed_since() >= Some(answer) && !Journal::new(1).question());
    }

    #[test]
    fn the_window_counts_what_is_in_flight() {
        let mut journal = journal(1..=4);
        assert_eq!(sent(&mut journal, 2), [1, 2]);
        assert!(journal.oldest_in_flight().is_some());
        journal.settle(1);
        assert_eq!(sent(&mut journal, 2), [3]);
        journal.again(2);
        assert_eq!(sent(&mut journal, 2), [2]);
    }
}
