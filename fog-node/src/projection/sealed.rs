//! One bundle opened: compared with its commitment, each device's signature checked, each reading put in clinical terms.

use std::sync::Arc;

use ledger::{block::Height, device::Arrival, state::State, transaction::Commitment};
use record::{
    bundle::{Bundle, Entry, SealedBundle, SubjectSecret},
    ids::{GatewayId, NetworkId, SubjectId},
    observation::Observation,
    reading::{Reason, TimeQuality},
};

use super::{NOT_AS_COMMITTED, NOT_OPENED, Opened};
use crate::index::{Rejection, Row};

/// All that is needed to open one bundle.
pub(super) struct Sealed {
    pub(super) network: NetworkId,
    pub(super) commitment: Commitment,
    pub(super) subject: SubjectId,
    pub(super) height: Height,
}

impl Sealed {
    pub(super) fn rejected(&self, reason: &'static str) -> Opened {
        let rejection = Rejection {
            bundle: self.commitment.bundle,
            entry: None,
            reason,
            height: self.height,
        };
        Opened {
            rejections: vec![rejection],
            ..Opened::default()
        }
    }

    /// Opens the payload, compares it with the commitment and puts every reading in clinical terms.
    pub(super) fn open(&self, payload: &[u8], secret: &SubjectSecret, state: &Arc<State>) -> Opened {
        let opened = SealedBundle::decode(payload)
            .ok()
            .filter(|sealed| sealed.key == self.commitment.key)
            .and_then(|sealed| Some((sealed.open(&self.network, secret).ok()?, sealed.author)));
        let Some((bundle, author)) = opened else {
            return self.rejected(NOT_OPENED);
        };
        if !self.is_as_committed(&bundle) {
            return self.rejected(NOT_AS_COMMITTED);
        }
        let mut opened = Opened::default();
        for (at, entry) in (0u32..).zip(&bundle.entries) {
            match self.rows(at, entry, state, &author) {
                Ok((rows, measured_ms)) => {
                    opened.rows.extend(rows);
                    opened.measured_ms.extend(measured_ms);
                }
                Err(reason) => opened.rejections.push(Rejection {
                    bundle: self.commitment.bundle,
                    entry: Some(at),
                    reason: reason.as_str(),
                    height: self.height,
                }),
            }
        }
        for (at, signed) in (self.commitment.count..).zip(&bundle.gaps) {
            match self.reported(at, signed, state, &author) {
                Ok(report) => opened.gaps.push(report),
                Err(reason) => opened.rejections.push(Rejection {
                    bundle: self.commitment.bundle,
                    entry: Some(at),
                    reason: reason.as_str(),
                    height: self.height,
                }),
            }
        }
        opened
    }

    fn is_as_committed(&self, bundle: &Bundle) -> bool {
        u32::try_from(bundle.entries.len()) == Ok(self.commitment.count) && bundle.root() == self.commitment.root
    }

    /// The rows of one reading, whose device's signature is checked against the keys on the chain (of a device that
    /// reports to the gateway that sealed it) that counted then, and when it was measured if the device's clock is set.
    fn rows(
        &self,
        at: u32,
        entry: &Entry,
        state: &Arc<State>,
        author: &GatewayId,
    ) -> Result<(Vec<Row>, Option<i64>), Reason> {
        let arrival = Arrival {
            author: Some(author),
            committed: self.height,
            received_ms: entry.received_ms,
        };
        let reading = state
            .reading(&entry.reading, &arrival)
            .map_err(|refusal| refusal.reason)?;
        let observations = Observation::of(&reading, entry.reception()).map_err(|refusal| refusal.reason)?;
        let measured_ms = reading.wall.filter(|_| reading.time_quality == TimeQuality::Synced);
        let rows = observations.into_iter().map(|observation| Row {
            id: observation.id(),
            key: self.commitment.key,
            subject: self.subject,
            code: observation.sign.code.to_owned(),
            effective_ms: observation.effective_ms,
            received_ms: observation.received_ms,
            ordinal: observation.index,
            reading: observation.reading,
            bundle: self.commitment.bundle,
            cid: self.commitment.cid,
            entry: at,
            height: self.height,
        });
        Ok((rows.collect(), measured_ms))
    }
}
