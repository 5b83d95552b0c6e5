//! A gap report out of an opened bundle: believed if the gateway that sealed it signed it, about a device of its own.

use std::sync::Arc;

use ledger::state::State;
use record::{gaps::SignedGapReport, ids::GatewayId, reading::Reason};

use super::sealed::Sealed;
use crate::index::Reported;

impl Sealed {
    /// The row of one report, which stands at this place after the bundle's readings.
    pub(super) fn reported(
        &self,
        entry: u32,
        signed: &SignedGapReport,
        state: &Arc<State>,
        author: &GatewayId,
    ) -> Result<Reported, Reason> {
        let key_of = |gateway: &GatewayId| state.gateway(gateway).map(|g| g.enrolment.key);
        let report = signed.decode(key_of).map_err(|refusal| refusal.reason)?;
        if report.network != self.network || report.gateway != *author {
            return Err(Reason::Malformed);
        }
        if state
            .device(&report.device)
            .is_none_or(|device| device.gateway != *author)
        {
            return Err(Reason::UnknownDevice);
        }
        Ok(Reported {
            key: self.commitment.key,
            bundle: self.commitment.bundle,
            entry,
            height: self.height,
            report,
        })
    }
}
