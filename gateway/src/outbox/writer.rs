//! The one thread that owns the outbox: collects, seals, commits, and only then answers.

mod release;
mod room;
mod telling;

use std::{
    collections::BTreeMap,
    mem,
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use record::{
    canonical::{Digest, Domain},
    ids::{KeyId, ReadingId},
};
use tokio::sync::watch;

use self::release::Notes;
use super::{
    Config, Counters, Durable, Error, Measurement, NotTaken, QuarantineConfig, Rejected, Shortage, Urgency, Verdict,
    batch::{Batch, Group, Pending, Times, chunks, misnumbered},
    damage::abort,
    latency::Durations,
    now_ms,
    quarantine::{Kept, Quarantine},
    refused::Aside,
    request::{Answer, Request},
    seal::Sealer,
    sequence::{Place, Sequences},
    space::Space,
    spooled::Spooled,
    steady::Steady,
    store::{Changes, Newest, Store, Ticket},
};

/// A commit that only forgets bundles waits this long for readings, so that one sync serves both.
const FORGET_LINGER: Duration = Duration::from_millis(100);
/// What sealing, padding and framing may add to one message, for the high-water mark.
const OVERHEAD_BYTES: u64 = 1_024;
/// Readings whose times are remembered for the latencies; beyond it those that wait longest are forgotten: of a long backlog its
/// length says enough, and what is measured now is timed all the same.
const TIMED_MAX: usize = 50_000;
/// Notes about bundles that are kept while the disk bears no commit; of those beyond it the uplink finds out again after the
/// next start.
const NOTES_MAX: usize = 4_096;
/// While notes wait for the disk, or somebody is refused for want of room, it is looked this often whether there is some.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The outbox's state.
#[derive(Debug)]
pub(super) struct Writer {
    store: Store,
    config: Config,
    sealer: Sealer,
    sequences: Sequences,
    quarantine: Quarantine,
    counters: Counters,
    newest: Newest,
    notes: Notes,
    spooled: Spooled,
    aside: Aside,
    times: BTreeMap<u64, Vec<Times>>,
    timed: usize,
    publish_to_final: Durations,
    received_to_final: Durations,
    space: Space,
    steady: Steady,
    /// Verdicts that were given since the start.
    answered: u64,
    announce: watch::Sender<Newest>,
}

impl Writer {
    /// Reads the state back.
    pub(super) fn load(
        store: Store,
        (config, quarantine, folder): (Config, QuarantineConfig, &Path),
        sealer: Sealer,
        announce: watch::Sender<Newest>,
    ) -> Result<Self, Error> {
        let loaded = store.load()?;
        announce.send_replace(loaded.newest);
        let mut sequences = Sequences::of(loaded.streams, loaded.digests);
        sequences.forget_clocks_after(now_ms());
        Ok(Self {
            store,
            space: Space::of(folder, config.marks()),
            config,
            sealer,
            sequences,
            quarantine: Quarantine::of(quarantine, loaded.quarantined),
            counters: loaded.counters,
            newest: loaded.newest,
            notes: Notes::default(),
            spooled: loaded.spooled,
            aside: Aside::of(loaded.refused),
            times: BTreeMap::new(),
            timed: 0,
            publish_to_final: Durations::default(),
            received_to_final: Durations::default(),
            steady: Steady::since(Instant::now(), now_ms()),
            answered: 0,
            announce,
        })
    }

    /// Serves requests until it is told to stop or nobody can ask any more.
    pub(super) fn run(mut self, inbox: &Receiver<Request>) {
        loop {
            let mut batch = Batch::default();
            match inbox.recv_timeout(self.patience()) {
                Ok(first) => self.accept(first, &mut batch),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.gather(inbox, &mut batch);
            let stop = batch.stop.take();
            self.settle(batch);
            if self.space.is_short() {
                self.look_for_room();
            }
            if let Some(stop) = stop {
                // Closes the store.
                drop(self);
                // Whoever asked may have given up waiting: the thread ends all the same.
                let _unheard = stop.send(());
                return;
            }
        }
    }

    /// How long it waits for a request before it looks for room by itself.
    fn patience(&self) -> Duration {
        if self.has_notes() || self.space.is_short() {
            LOOK_AGAIN
        } else {
            Duration::MAX
        }
    }

    fn gather(&mut self, inbox: &Receiver<Request>, batch: &mut Batch) {
        let linger = Duration::from_millis(self.config.linger_ms);
        let start = Instant::now();
        let mut deadline = start + FORGET_LINGER;
        let mut urgent = false;
        while !batch.is_empty() && batch.readings < self.config.commit_readings_max && batch.stop.is_none() {
            if batch.is_urgent() && !urgent {
                urgent = true;
                deadline = deadline.min(Instant::now() + linger);
            }
            // What waits already comes along; nothing else is waited for.
            if batch.has_alarm() {
                deadline = start;
            }
            match inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(request) => self.accept(request, batch),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn accept(&mut self, request: Request, batch: &mut Batch) {
        match request {
            Request::Append(measurement, answer) => self.accept_reading(*measurement, answer, batch),
            Request::Quarantine(rejected, answer) => self.accept_rejected(*rejected, answer, batch),
            Request::Forget(finals) => batch.finals.extend(finals),
            Request::SetAside { order, why } => batch.refused.push((order, why)),
            Request::Stop(done) => batch.stop = Some(done),
            Request::State(state) => self.hear(*state),
            // Whoever asked may have given up waiting.
            Request::Report(answer) => drop(answer.send(self.report())),
            Request::Gaps(answer) => drop(answer.send(self.recent_gaps())),
        }
    }

    fn accept_reading(&mut self, mut measurement: Measurement, answer: Answer, batch: &mut Batch) {
        let digest = measurement.digest();
        match self.sequences.judge(&measurement.id, &digest) {
            Place::Known => {
                batch.duplicates += 1;
                batch.answers.push((answer, Pending::Duplicate(measurement.id)));
            }
            Place::Equivocation | Place::Leap if self.full(batch.bytes) == Some(Shortage::Disk) => refuse(answer),
            place @ (Place::Equivocation | Place::Leap) => {
                let rejected = misnumbered(&measurement, &place);
                batch
                    .answers
                    .push((answer, Pending::Quarantined(None, rejected.refusal.clone())));
                batch.rejected.push(rejected);
            }
            Place::New => {
                let bytes = measurement.entry.reading.as_bytes().len() as u64 + OVERHEAD_BYTES;
                if !self.takes(&measurement, batch.bytes + bytes) {
                    return refuse(answer);
                }
                batch.watch_gaps(&self.sequences, &measurement);
                self.sequences.record(&measurement.id, digest);
                let has_waited = self.has_waited(measurement.entry.received_ms);
                measurement.entry.clock = self.sequences.clock(&measurement, has_waited);
                batch.bytes += bytes;
                batch.answers.push((answer, Pending::Spooled(measurement.id.clone())));
                batch.add(measurement);
            }
        }
    }

    /// A message with a genuine signature keeps its place in the sequence: it is no gap, and a repetition is a duplicate.
    fn accept_rejected(&mut self, rejected: Rejected, answer: Answer, batch: &mut Batch) {
        // Quarantine has a bound of its own; what the disk cannot hold is not taken.
        if self.full(batch.bytes) == Some(Shortage::Disk) {
            return refuse(answer);
        }
        let Some(measurement) = &rejected.measurement else {
            batch
                .answers
                .push((answer, Pending::Quarantined(None, rejected.refusal.clone())));
            batch.rejected.push(rejected);
            return;
        };
        let (id, digest) = (measurement.id.clone(), measurement.digest());
        match self.sequences.judge(&id, &digest) {
            Place::Known => {
                batch.duplicates += 1;
                batch.answers.push((answer, Pending::Duplicate(id)));
            }
            Place::Equivocation | Place::Leap => {
                batch
                    .answers
                    .push((answer, Pending::Quarantined(None, rejected.refusal.clone())));
                batch.rejected.push(rejected);
            }
            // What it says of gaps would go into the spool.
            Place::New if self.sequences.moves_a_gap(&id) && self.full(batch.bytes).is_some() => refuse(answer),
            Place::New => {
                batch.watch_gaps(&self.sequences, measurement);
                self.sequences.record(&id, digest);
                batch
                    .answers
                    .push((answer, Pending::Quarantined(Some(id), rejected.refusal.clone())));
                batch.rejected.push(rejected);
            }
        }
    }

    /// Seals, commits, and answers.
    fn settle(&mut self, mut batch: Batch) {
        self.counters.duplicates += batch.duplicates;
        self.counters.received += batch.answers.len() as u64;
        self.hold_notes(&mut batch);
        if batch.writes() || batch.notes() > 0 {
            self.commit(&mut batch);
        }
        for (answer, pending) in batch.answers {
            self.answered += 1;
            let answered = self.answered;
            let durable = |id: &ReadingId| Durable {
                answered,
                progress: self.sequences.progress(id),
            };
            let verdict = match pending {
                Pending::Spooled(id) => Verdict::Spooled(durable(&id)),
                Pending::Duplicate(id) => Verdict::Duplicate(durable(&id)),
                Pending::Quarantined(Some(id), refusal) => Verdict::Quarantined(durable(&id), refusal),
                Pending::Quarantined(None, refusal) => {
                    let nowhere = Durable {
                        answered,
                        progress: None,
                    };
                    Verdict::Quarantined(nowhere, refusal)
                }
            };
            // The device has gone meanwhile: it will send again and be told that it is a duplicate.
            let _unheard = answer.send(Ok(verdict));
        }
    }

    fn commit(&mut self, batch: &mut Batch) {
        let started = Instant::now();
        let mut changes = Changes::default();
        let mut spooled_times = Vec::new();
        self.report_gaps(batch);
        self.seal(mem::take(&mut batch.groups), &mut changes, &mut spooled_times);
        self.quarantine(mem::take(&mut batch.rejected), &mut changes);
        let finals = mem::take(&mut batch.finals);
        self.release(&finals, mem::take(&mut batch.refused), &mut changes)
            .unwrap_or_else(|e| abort(&e));
        changes.sequences = self.sequences.take_changes();
        changes.counters = self.counters.clone();
        changes.next = self.newest.next;
        self.store.commit(&changes).unwrap_or_else(|e| abort(&e));
        for (order, times) in spooled_times {
            self.remember_times(order, times);
        }
        self.announce
            .send_if_modified(|newest| mem::replace(newest, self.newest) != self.newest);
        metrics::histogram!("gateway_outbox_commit_seconds").record(started.elapsed());
        metrics::gauge!("gateway_outbox_spooled_bundles").set(self.spooled.bundles as f64);
        metrics::gauge!("gateway_outbox_spooled_bytes").set(self.spooled.bytes as f64);
        metrics::counter!("gateway_outbox_readings_total").increment(batch.readings as u64);
    }

    /// What is missing goes with the readings that made it known: into the same commit, sealed for the same subject.
    fn report_gaps(&mut self, batch: &mut Batch) {
        let (sealer, last_ms) = (&self.sealer, &mut self.counters.gaps_reported_ms);
        batch.report_gaps(&mut self.sequences, |device, missing| {
            *last_ms = now_ms().max(last_ms.saturating_add(1));
            sealer.report(device, missing, *last_ms)
        });
    }

    fn seal(
        &mut self,
        groups: BTreeMap<(Urgency, KeyId), Group>,
        changes: &mut Changes,
        timed: &mut Vec<(u64, Vec<Times>)>,
    ) {
        let now = now_ms();
        for ((urgency, _), group) in groups {
            let subject = group.subject;
            for chunk in chunks(group.entries, group.gaps) {
                let (entries, times): (Vec<_>, Vec<_>) = chunk.entries.into_iter().unzip();
                let sealed = self
                    .sealer
                    .seal(&subject, (entries, chunk.gaps), now)
                    .expect("the subject's key was tried at start, and the chunk fits in a bundle");
                let order = self.newest.next;
                self.newest.next += 1;
                if urgency == Urgency::Alarm {
                    self.newest.next_alarm = self.newest.next;
                }
                let bytes = sealed.submission.len() as u64;
                let ticket = Ticket {
                    order,
                    bundle: sealed.bundle,
                    readings: sealed.readings,
                    bytes,
                    sealed_ms: Some(now),
                    urgency,
                };
                self.spooled.add(&ticket);
                self.counters.acknowledged += u64::from(ticket.readings);
                changes.spooled.push((ticket, sealed.submission));
                timed.push((order, times));
            }
        }
    }

    fn quarantine(&mut self, rejected: Vec<Rejected>, changes: &mut Changes) {
        for one in rejected {
            let reason = one.refusal.reason.as_str();
            *self.counters.quarantined.entry(reason.to_owned()).or_default() += 1;
            metrics::counter!("gateway_outbox_quarantined_total", "reason" => reason).increment(1);
            let kept = Kept {
                device: one.device,
                reason: one.refusal.reason,
                detail: one.refusal.detail,
                at_ms: one.at_ms,
                size_bytes: one.size_bytes,
                digest: (!one.message.is_empty()).then(|| Digest::of(Domain::READING, &[&one.message])),
                payload: self.sealer.seal_quarantined(&one.message, one.at_ms),
            };
            let (number, gone) = self.quarantine.add(&kept);
            changes.quarantined.push((number, kept));
            changes.released.extend(gone);
        }
    }
}

/// Whoever asked may have given up waiting.
fn refuse(answer: Answer) {
    metrics::counter!("gateway_outbox_full_total").increment(1);
    let _unheard = answer.send(Err(NotTaken::Full));
}
