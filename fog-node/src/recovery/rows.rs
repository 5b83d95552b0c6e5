//! Rows of the index that a question found to be somebody else's: looked for, put right from the chain, recorded.

use std::time::Duration;

use tokio::time::sleep;

use super::{FoundBy, Incidents, Kind};
use crate::projection::{Followed, Projection};

/// Between two looks at all rows, at least: whoever alters them again and again does not keep the node busy.
const PAUSE: Duration = Duration::from_secs(2);

/// Waits until something in the index is found to be wrong, and mends it; for ever. What cannot be mended now is tried again.
pub async fn mend_rows<F: Followed>(projection: Projection<F>, incidents: Incidents) {
    let mut alarms = projection.alarms();
    // One that was raised while the node started counts, too.
    let mut is_alarmed = *alarms.borrow_and_update() > 0;
    loop {
        if !is_alarmed && alarms.changed().await.is_err() {
            return;
        }
        alarms.borrow_and_update();
        is_alarmed = !mended(&projection, &incidents).await;
        // Who asked meanwhile has seen what is mended now; what is new, the next question finds.
        alarms.borrow_and_update();
        sleep(PAUSE).await;
    }
}

async fn mended<F: Followed>(projection: &Projection<F>, incidents: &Incidents) -> bool {
    let what = "rows are not those that this node wrote; each block that they belong to is compared with the chain";
    let place = "the index".to_owned();
    let open = incidents.found(Kind::IndexAltered, FoundBy::Question, place, what.to_owned());
    match projection.mend().await {
        Ok(mended) => {
            let how = if mended.anew {
                "the chain: the index is projected anew".to_owned()
            } else {
                format!("the chain: {} rows in {} blocks", mended.rows, mended.blocks)
            };
            incidents.mended(open, vec![how]);
            true
        }
        Err(error) => {
            tracing::warn!(%error, "altered rows of the index could not be mended now");
            false
        }
    }
}
