//! Which bundles are sealed to keys that we hold and were granted: asked of all nodes, so that none can hide one.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ledger::{
    block::Height,
    consent,
    light::{IncludedInBlock, LightError, ProvenHeader, witnesses_needed},
    state::State,
};
use record::{
    canonical::Digest,
    ids::{BundleId, KeyId},
};

use super::{
    Error, Follower,
    sources::{Answer, Miss, Source},
};
use crate::proofs::Learned;

/// Keys named in one question, at most: who holds more asks for all that it was granted.
const KEYS_NAMED_MAX: usize = 100;
/// Blocks asked for at a time.
const STEP_BLOCKS: u64 = 128;
/// Steps that keys granted lately catch up in one round.
const CATCH_UP_STEPS: usize = 16;
/// A node may take so many times the time of one answer to tell all of a step: who drips keeps nobody back for long.
const STEP_TIMEOUTS: u32 = 4;

/// What is asked for: blocks, keys, and the state that says that we may know.
#[derive(Clone, Debug)]
struct Range {
    from: Height,
    to: Height,
    keys: BTreeSet<KeyId>,
    granted_at: Height,
}

/// What one node told of a range.
struct Told {
    blocks: Vec<IncludedInBlock>,
    digests: Vec<(Height, Digest)>,
    is_all: bool,
}

impl Follower {
    /// Learns the commitments of all blocks whose header is final, up to the newest state that was witnessed: who may
    /// commit is looked up in it.
    pub(super) async fn learn(&mut self) -> Result<(), Error> {
        let proofs = self.rooms.proofs.clone();
        let state = self.newest_state();
        let to = proofs.anchor().header.height.min(state.height());
        for step in 0.. {
            let through = proofs.through()?;
            let groups = self.groups(&state)?;
            let is_behind = groups.keys().any(|known| *known < through);
            if proofs.is_forked() || (through >= to && (!is_behind || step >= CATCH_UP_STEPS)) {
                break;
            }
            let next = Height(to.0.min(through.0 + STEP_BLOCKS)).max(through);
            for (known, keys) in groups {
                let goal = if known < through {
                    through.min(Height(known.0 + STEP_BLOCKS))
                } else {
                    next
                };
                if known < goal {
                    let range = Range {
                        from: known.next(),
                        to: goal,
                        keys,
                        granted_at: state.height(),
                    };
                    self.learn_range(range, &state).await?;
                }
            }
            if !proofs.is_forked() {
                let done = Learned {
                    through: Some(next),
                    ..Learned::default()
                };
                proofs.learn(done).await?;
            }
        }
        self.hand_over_late().await
    }

    /// The keys that we may read, by the height up to which their commitments are known.
    fn groups(&self, state: &State) -> Result<BTreeMap<Height, BTreeSet<KeyId>>, Error> {
        let learned = self.rooms.proofs.keys()?;
        let mut groups: BTreeMap<Height, BTreeSet<KeyId>> = BTreeMap::new();
        for key in self.granted(state) {
            let known = learned.get(&key).copied().unwrap_or_default();
            groups.entry(known).or_default().insert(key);
        }
        Ok(groups)
    }

    fn newest_state(&self) -> State {
        let known = || State::clone(&self.rooms.proofs.state());
        self.pending.as_ref().map_or_else(known, |(_, state)| state.clone())
    }

    /// The keys that we hold and may read.
    fn granted(&self, state: &State) -> Vec<KeyId> {
        let mut keys = self.rooms.keyring.keys();
        keys.retain(|key| consent::authorize(state, &self.organization, key).is_ok());
        keys
    }

    async fn learn_range(&mut self, range: Range, state: &State) -> Result<(), Error> {
        let asked = &range;
        let timeout = Duration::from_millis(self.config.answer_timeout_ms) * STEP_TIMEOUTS;
        let question = |source| async move {
            let told = tokio::time::timeout(timeout, collect(source, asked.clone()));
            told.await.unwrap_or(Err(Miss::Failed))
        };
        let told = self.sources.ask_all(question).await;
        let mut all: BTreeMap<BundleId, IncludedInBlock> = BTreeMap::new();
        let mut complete: Vec<(usize, BTreeSet<BundleId>)> = Vec::new();
        for (at, told) in told {
            if let Some((height, other)) = self.contradiction(&told)? {
                let followed = self.rooms.proofs.header_at(height)?.map(|header| header.digest);
                self.found_fork(height, followed.unwrap_or(Digest::ZERO), other).await?;
                return Ok(());
            }
            let Some(bundles) = bundles(&told, &range, state) else {
                self.sources.lied(at, range.from);
                continue;
            };
            if told.is_all {
                complete.push((at, bundles.keys().copied().collect()));
            }
            all.extend(bundles);
        }
        let needed = witnesses_needed(self.voters.known().newest());
        if complete.len() < needed {
            return Err(Error::TooFewNodes {
                to: range.to,
                answered: complete.len(),
                needed,
            });
        }
        self.compare(&complete, &all);
        let learned = Learned {
            blocks: all.into_values().collect(),
            keys: range.keys.into_iter().map(|key| (key, range.to)).collect(),
            through: None,
        };
        let new = self.rooms.proofs.learn(learned).await?;
        metrics::counter!("fog_follow_bundles_total").increment(new);
        Ok(())
    }

    /// A block that is proven and is not the one that was followed.
    fn contradiction(&self, told: &Told) -> Result<Option<(Height, ProvenHeader)>, Error> {
        for ((height, digest), block) in told.digests.iter().zip(&told.blocks) {
            let followed = self.rooms.proofs.header_at(*height)?;
            if followed.is_some_and(|followed| followed.digest != *digest) {
                return Ok(Some((*height, block.block.clone())));
            }
        }
        Ok(None)
    }

    /// A node that left out what another gave is named and counted.
    fn compare(&self, complete: &[(usize, BTreeSet<BundleId>)], all: &BTreeMap<BundleId, IncludedInBlock>) {
        for (at, told) in complete {
            let omitted = all.keys().filter(|bundle| !told.contains(bundle)).count();
            if omitted > 0 {
                metrics::counter!("fog_follow_bundles_omitted_total").increment(omitted as u64);
                let node = self.sources.name(*at);
                tracing::warn!(%node, omitted, "a fog node left out bundles that another one has proven");
            }
        }
    }

    /// Bundles that were learned late are told to the index, which opens them by and by.
    pub(super) async fn hand_over_late(&self) -> Result<(), Error> {
        let late = self.rooms.proofs.late()?;
        if late.is_empty() {
            return Ok(());
        }
        for (bundle, height) in &late {
            self.rooms.projection.note_late(*bundle, *height).await?;
        }
        Ok(self.rooms.proofs.forget_late(&late)?)
    }
}

/// All that one node tells of a range, answer after answer.
async fn collect(source: Source, range: Range) -> Answer<Told> {
    let mut told = Told {
        blocks: Vec::new(),
        digests: Vec::new(),
        is_all: false,
    };
    let nobody = BTreeSet::new();
    let named = if range.keys.len() <= KEYS_NAMED_MAX {
        &range.keys
    } else {
        &nobody
    };
    let mut from = range.from;
    loop {
        let (carried, digests) = source.commitments((from, range.to), named).await?;
        // Who does not know our newest grant yet would tell too little.
        if carried.through < from || carried.as_of < range.granted_at {
            return Ok(told);
        }
        let is_inside = |height: &Height| (from..=carried.through.min(range.to)).contains(height);
        if !digests.iter().all(|(height, _)| is_inside(height)) {
            return Err(Miss::Lied(LightError::BrokenChain(from)));
        }
        told.blocks.extend(carried.blocks);
        told.digests.extend(digests);
        if carried.through >= range.to {
            told.is_all = true;
            return Ok(told);
        }
        from = carried.through.next();
    }
}

/// The bundles that were told, each in what proves it; `None` if one was not asked for, or has no effect by the state.
fn bundles(told: &Told, range: &Range, state: &State) -> Option<BTreeMap<BundleId, IncludedInBlock>> {
    let names_all = range.keys.len() > KEYS_NAMED_MAX;
    let mut bundles = BTreeMap::new();
    for block in &told.blocks {
        for included in &block.included {
            let payload = included.transaction.payload()?;
            if !range.keys.contains(&payload.key) {
                if names_all {
                    continue;
                }
                return None;
            }
            // What was refused is in a block, too.
            state.committed(&included.transaction, block.height()?).ok()?;
            let alone = IncludedInBlock {
                block: block.block.clone(),
                included: vec![included.clone()],
            };
            bundles.insert(payload.id, alone);
        }
    }
    Some(bundles)
}
