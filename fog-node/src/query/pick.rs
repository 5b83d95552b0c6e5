//! What a row stands for, out of the opened bundle: believed if the reading says all that the row says.

use cid::Cid;
use ledger::{device::Arrival, state::State};
use record::{
    bundle::{Bundle, SealedBundle, SubjectSecret},
    fhir::{self, Resource},
    ids::{BundleId, KeyId, NetworkId, SubjectId},
    observation::Observation,
};

use super::Error;
use crate::index::Row;

pub(super) fn opened(payload: &[u8], network: &NetworkId, secret: &SubjectSecret) -> Result<Bundle, &'static str> {
    let sealed = SealedBundle::decode(payload).map_err(|_| "its payload is no sealed bundle")?;
    sealed
        .open(network, secret)
        .map_err(|_| "its payload does not open with its key")
}

/// What the payload and the key that opened it say of all rows that stand for it.
pub(super) struct Origin {
    pub(super) key: KeyId,
    pub(super) subject: SubjectId,
    pub(super) bundle: BundleId,
    pub(super) cid: Cid,
}

/// The resource a row points at, after the device's signature was checked again, if the row says what the reading says: by
/// what a row says it was found, and stands on this page.
pub(super) fn pick(origin: &Origin, bundle: &Bundle, row: &Row, state: &State) -> Result<Resource, Error> {
    let wrong = |why| contradiction(row, why);
    let at = usize::try_from(row.entry).map_err(|_| wrong("its entry is out of range"))?;
    let entry = bundle
        .entries
        .get(at)
        .ok_or_else(|| wrong("its bundle has no such entry"))?;
    // That the device reports to the gateway that committed it was checked when the row was made.
    let arrival = Arrival {
        author: None,
        committed: row.height,
        received_ms: entry.received_ms,
    };
    let reading = state
        .reading(&entry.reading, &arrival)
        .map_err(|_| wrong("its reading does not verify"))?;
    let observations =
        Observation::of(&reading, entry.reception()).map_err(|_| wrong("its reading is no observation we know"))?;
    let observation = observations
        .get(usize::from(row.ordinal))
        .ok_or_else(|| wrong("its reading has no such observation"))?;
    let expected = Row {
        id: observation.id(),
        key: origin.key,
        subject: origin.subject,
        code: observation.sign.code.to_owned(),
        effective_ms: observation.effective_ms,
        received_ms: observation.received_ms,
        reading: observation.reading.clone(),
        ordinal: observation.index,
        bundle: origin.bundle,
        cid: origin.cid,
        entry: row.entry,
        height: row.height,
    };
    if expected.id != row.id {
        return Err(wrong("its bundle holds another observation at that place"));
    }
    if expected != *row {
        return Err(wrong("its row says something else than its bundle"));
    }
    Ok(fhir::observation(observation, origin.subject))
}

pub(super) fn contradiction(row: &Row, why: &'static str) -> Error {
    Error::Contradiction {
        observation: row.id.clone(),
        why,
    }
}
