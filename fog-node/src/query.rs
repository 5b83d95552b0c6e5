//! Permitted questions: the only way from a caller to records; without a permit of the state nothing is opened.

mod pick;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use cid::Cid;
use futures::{StreamExt as _, TryStreamExt as _};
use ledger::{
    block::Height,
    consent::{self, Permit},
    state::State,
};
use pick::{Origin, contradiction, opened, pick};
use record::{
    bundle::SealedBundle,
    fhir::{Patient, Resource},
    gaps::GapReport,
    ids::{KeyId, OrganizationId, SubjectId},
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    index::{self, Cursor, DateRange, Index, Row, Search},
    keyring::Keyring,
    turnstile::Turnstile,
    vault::{self, Refusal, Vault},
};

/// Bundles of one question that are fetched and opened at a time.
const OPENED_AT_ONCE_MAX: usize = 4;
/// Devices with gaps that an answer names, at most; that there are more is said.
pub const GAPS_MAX: u32 = 100;

/// Starts with gaps that are compared with what is here, at most, in one answer; the others are told as reported.
const COMPARED_STARTS_MAX: usize = 200;

/// What an operator may set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Questions of one organisation that are answered at a time; one that asks more is told to wait.
    pub in_flight_per_organization_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_flight_per_organization_max: 32,
        }
    }
}

/// Why a permitted question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Ask again later.
    #[error("too many questions of this organization at once")]
    Busy,
    /// Ask again later or elsewhere: a payload is not to be had now.
    #[error("a sealed record could not be fetched from any node")]
    Vault(#[from] vault::Error),
    /// Ask for less, or ask elsewhere.
    #[error("the index could not be asked")]
    Index(#[from] index::Error),
    /// A row says something else than the sealed record it stands for; it is mended from the chain.
    #[error("observation {observation} is indexed but {why}")]
    Contradiction {
        /// Which observation.
        observation: String,
        /// What does not fit.
        why: &'static str,
    },
}

/// A question for observations.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// About whom; `None` is everybody the reader may see.
    pub subjects: Option<BTreeSet<SubjectId>>,
    /// Codes as the index holds them; `None` is any code, an empty list matches nothing.
    pub codes: Option<Vec<String>>,
    /// The effective time lies in each of these.
    pub dates: Vec<DateRange>,
    /// Logical ids; empty is any.
    pub ids: Vec<String>,
    /// Observations on a page, at most; 0 asks for the total alone.
    pub count: u32,
    /// Where the page before ended.
    pub cursor: Option<Cursor>,
}

/// The answer to a question: what the reader may see, and no hint of the rest.
#[derive(Debug, Default)]
pub struct Answer {
    /// Observation resources, the newest first.
    pub observations: Vec<Resource>,
    /// How many there are on all pages.
    pub total: u64,
    /// Where the next page begins.
    pub next: Option<Cursor>,
    /// What is missing of the devices of those who were asked about, of each device the newest report.
    pub gaps: Vec<GapReport>,
    /// Whether more devices than [`GAPS_MAX`] have gaps.
    pub more_gaps: bool,
    /// How far the chain was in the index; none if it was not asked.
    pub projected: Option<Height>,
    /// Whether anybody who was asked about is visible to the reader.
    pub visible: bool,
}

/// The rooms that a question goes through.
#[derive(Debug)]
pub struct Rooms {
    /// Grants in force and device keys.
    pub states: watch::Receiver<Arc<State>>,
    /// Sealed records.
    pub vault: Vault,
    /// Where they are.
    pub index: Index,
    /// What opens them.
    pub keyring: Keyring,
}

/// The room.
#[derive(Debug)]
pub struct Query {
    organization: OrganizationId,
    states: watch::Receiver<Arc<State>>,
    vault: Vault,
    index: Index,
    keyring: Keyring,
    serves_granted: bool,
    readers: Turnstile<OrganizationId>,
}

impl Query {
    /// Opens the room.
    #[must_use]
    pub fn new(config: &Config, organization: OrganizationId, rooms: Rooms) -> Self {
        let Rooms {
            states,
            vault,
            index,
            keyring,
        } = rooms;
        Self {
            organization,
            states,
            vault,
            index,
            keyring,
            serves_granted: false,
            readers: Turnstile::new(config.in_flight_per_organization_max),
        }
    }

    /// Answers also from keys of other custodians that this organisation holds because it was granted them.
    #[must_use]
    pub fn serving_granted(mut self) -> Self {
        self.serves_granted = true;
        self
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.states.borrow())
    }

    /// The patients an organisation may see here, by id: those of whom it may read something that this node can open.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub fn patients(&self, reader: &OrganizationId) -> Result<Vec<Patient>, Error> {
        let _inside = self.readers.enter(reader).ok_or(Error::Busy)?;
        let state = self.state();
        let mut patients = self.keyring.patients();
        patients.retain(|patient| !self.permits(&state, reader, patient.id).is_empty());
        Ok(patients)
    }

    /// One patient, if the organisation may see them; "unknown" and "not yours" are the same answer.
    #[must_use]
    pub fn patient(&self, reader: &OrganizationId, subject: SubjectId) -> Option<Patient> {
        let permits = self.permits(&self.state(), reader, subject);
        self.keyring.patient(subject).filter(|_| !permits.is_empty())
    }

    /// Answers a question from what the organisation may read.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn observations(&self, reader: &OrganizationId, question: Question) -> Result<Answer, Error> {
        let _inside = self.readers.enter(reader).ok_or(Error::Busy)?;
        let state = self.state();
        let subjects = question
            .subjects
            .unwrap_or_else(|| self.keyring.patients().iter().map(|patient| patient.id).collect());
        let permits: Vec<_> = subjects
            .iter()
            .flat_map(|subject| self.permits(&state, reader, *subject))
            .collect();
        let visible = !permits.is_empty();
        if !visible || question.codes.as_ref().is_some_and(Vec::is_empty) {
            return Ok(Answer {
                visible,
                ..Answer::default()
            });
        }
        let projected = self.index.projected().await?;
        // Who asks for observations by their ids, or for their number alone, is not told less than was asked for.
        let misses_nothing = !question.ids.is_empty() || question.count == 0;
        let search = Search {
            codes: question.codes.unwrap_or_default(),
            dates: question.dates,
            ids: question.ids,
            count: question.count,
            cursor: question.cursor,
            // What is being projected while pages are read must not move them.
            height: projected,
        };
        let page = self.index.find(&permits, &search).await?;
        let (gaps, more_gaps) = if misses_nothing {
            (Vec::new(), false)
        } else {
            self.gaps(&permits, page.height).await?
        };
        let opened = self.open(&state, &permits, page.rows).await;
        // Whatever is wrong, the chain says how it must be.
        let observations = opened.inspect_err(|error| {
            if matches!(error, Error::Contradiction { .. }) {
                self.index.suspicious();
            }
        })?;
        Ok(Answer {
            observations,
            gaps,
            more_gaps,
            total: page.total,
            next: page.next,
            projected: Some(projected),
            visible,
        })
    }

    /// The newest report of each device with gaps, without what is here all the same, and whether there are more devices.
    async fn gaps(&self, permits: &[Permit], height: Height) -> Result<(Vec<GapReport>, bool), Error> {
        let mut reported = self.index.gaps(permits, height, GAPS_MAX + 1).await?;
        let more = reported.len() > GAPS_MAX as usize;
        reported.truncate(GAPS_MAX as usize);
        let mut left = COMPARED_STARTS_MAX;
        let mut gaps = Vec::with_capacity(reported.len());
        for mut report in reported.into_iter().map(|one| one.report) {
            for start in report.missing.starts.clone().iter().take(left) {
                let held = self.index.held(permits, height, (&report.device, start)).await?;
                report.missing.found(start.boot, &held);
                left -= 1;
            }
            gaps.push(report);
        }
        gaps.retain(|report| !report.missing.is_nothing());
        Ok((gaps, more))
    }

    /// What the organisation may read of one subject with the keys this node holds. A key of ours that another member
    /// announced as its own opens nothing: whoever saw its public half first would decide who reads.
    fn permits(&self, state: &State, reader: &OrganizationId, subject: SubjectId) -> Vec<Permit> {
        let is_ours = |key: &&KeyId| {
            state.subject_key(key).is_some_and(|k| k.custodian == self.organization)
                || (self.serves_granted && consent::authorize(state, &self.organization, key).is_ok())
        };
        let keys = self.keyring.keys_of(subject);
        keys.iter()
            .filter(is_ours)
            .filter_map(|key| consent::authorize(state, reader, key).ok())
            .collect()
    }

    /// The resources of the rows, in their order; each bundle is fetched and opened once.
    async fn open(&self, state: &Arc<State>, permits: &[Permit], rows: Vec<Row>) -> Result<Vec<Resource>, Error> {
        let count = rows.len();
        let mut bundles: HashMap<Cid, (KeyId, Vec<(usize, Row)>)> = HashMap::new();
        for (at, row) in rows.into_iter().enumerate() {
            bundles
                .entry(row.cid)
                .or_insert_with(|| (row.key, Vec::new()))
                .1
                .push((at, row));
        }
        let opened = futures::stream::iter(bundles)
            .map(|(cid, (key, rows))| async move {
                let permit = permits.iter().find(|permit| permit.key() == key);
                let permit = permit.ok_or_else(|| contradiction(&rows[0].1, "no permit covers its key"))?;
                self.resources(state, permit, &cid, rows).await
            })
            .buffer_unordered(OPENED_AT_ONCE_MAX);
        let mut resources: Vec<_> = opened.try_concat().await?;
        resources.sort_by_key(|(at, _)| *at);
        debug_assert_eq!(resources.len(), count, "each row gives one resource");
        Ok(resources.into_iter().map(|(_, resource)| resource).collect())
    }

    /// Opens one bundle under a permit and picks the observations of its rows.
    async fn resources(
        &self,
        state: &Arc<State>,
        permit: &Permit,
        cid: &Cid,
        rows: Vec<(usize, Row)>,
    ) -> Result<Vec<(usize, Resource)>, Error> {
        let payload = self.vault.get(cid).await?;
        let first = &rows[0].1;
        let of = permit.key();
        let (Some(secret), Some(subject)) = (self.keyring.secret(&of), self.keyring.subject_of(&of)) else {
            // The key was erased after it was asked whether the reader may.
            if self.state().tombstone(&of).is_some() {
                return Err(vault::Error::from(Refusal::Erased(*cid)).into());
            }
            return Err(contradiction(first, "its key is not in the keyring"));
        };
        let sealed = Origin {
            key: of,
            subject,
            bundle: SealedBundle::id_of(&payload),
            cid: *cid,
        };
        let (network, state) = (state.network, state.clone());
        // Decryption and decoding take milliseconds for a full bundle: not on a thread that serves connections.
        let picked = tokio::task::spawn_blocking(move || {
            let bundle = opened(&payload, &network, &secret).map_err(|why| contradiction(&rows[0].1, why))?;
            rows.into_iter()
                .map(|(at, row)| Ok((at, pick(&sealed, &bundle, &row, &state)?)))
                .collect()
        });
        picked
            .await
            .expect("a panic aborts the process before a join can see it")
    }
}
