//! Which blocks the daemon has: one long answer, a line for each, taken apart while it comes.

use std::{collections::HashSet, str::FromStr as _, time::Duration};

use cid::Cid;
use record::canonical::SHA2_256;
use reqwest::{Response, StatusCode};
use tokio_util::task::AbortOnDropHandle;

use super::{Failure, Rpc, answered_badly, json, unreachable};

/// The whole list may take this long.
const LIST_TIMEOUT: Duration = Duration::from_secs(600);
/// Between two pieces of it.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);
/// A line has at most this many bytes.
const LINE_BYTES_MAX: usize = 4_096;
/// Blocks that are listed, at most: more than a vault of ours has.
const BLOCKS_MAX: usize = 64_000_000;

impl Rpc {
    /// SHA-256 of every block in the daemon's repository, pinned or not; those with another hash are left out.
    pub(in crate::vault::kubo) async fn blocks(&self) -> Result<HashSet<[u8; 32]>, Failure> {
        let request = self.request("refs/local", &[], LIST_TIMEOUT);
        let requests = self.requests.clone();
        let listed = self.runtime.spawn(async move {
            let _turn = requests.acquire().await.expect("the semaphore is never closed");
            let response = request.send().await.map_err(unreachable)?;
            if response.status() != StatusCode::OK {
                return Err(answered_badly(response).await);
            }
            list(response).await
        });
        // The runtime ends, and the node with it.
        AbortOnDropHandle::new(listed)
            .await
            .unwrap_or(Err(Failure::Unreachable(None)))
    }
}

async fn list(mut response: Response) -> Result<HashSet<[u8; 32]>, Failure> {
    let (mut blocks, mut rest) = (HashSet::new(), Vec::new());
    loop {
        let piece = tokio::time::timeout(PIECE_TIMEOUT, response.chunk()).await;
        let piece = piece.map_err(|_| Failure::Unreachable(None))?.map_err(unreachable)?;
        let Some(piece) = piece else { break };
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            rest.extend_from_slice(part);
            if rest.len() > LINE_BYTES_MAX || blocks.len() > BLOCKS_MAX {
                return Err(Failure::Nonsense("too many bytes"));
            }
            if rest.ends_with(b"\n") {
                blocks.extend(digest_of(&rest)?);
                rest.clear();
            }
        }
    }
    if !rest.trim_ascii().is_empty() {
        blocks.extend(digest_of(&rest)?);
    }
    Ok(blocks)
}

/// The SHA-256 in a line of the list. A line that says what went wrong makes the list no list: what it lacks would count as lost.
fn digest_of(line: &[u8]) -> Result<Option<[u8; 32]>, Failure> {
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let line = json(line)?;
    let said = line["Err"].as_str().unwrap_or_default();
    if !said.is_empty() {
        return Err(Failure::Said(super::words(said.as_bytes())));
    }
    let cid = line["Ref"].as_str().and_then(|text| Cid::from_str(text).ok());
    let cid = cid.ok_or(Failure::Nonsense("refs/local without Ref"))?;
    let is_ours = cid.hash().code() == SHA2_256;
    Ok(cid.hash().digest().try_into().ok().filter(|_| is_ours))
}
