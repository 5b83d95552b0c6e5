//! Whether the operator's own daemon does what a vault needs: the steps of the driver, one by one, on blocks that are thrown away.

use std::{
    fmt,
    time::{Duration, Instant},
};

use cid::Cid;
use rand::RngExt as _;
use record::{bundle::PAYLOAD_BYTES_MAX, canonical};
use serde_bytes::ByteBuf;

use super::{Config, Failure, rpc::Rpc};
use crate::vault::{
    store::{digest, is_payload_of},
    unixfs::{LEAF_BYTES, Layout, Link},
};

/// Collecting a large repository takes long.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(600);
/// Payloads that are put one after the other to see how fast the daemon keeps them.
const PACED: u32 = 20;

/// One thing that was looked at.
#[derive(Debug)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// How it is, or why it is not.
    pub result: Result<String, String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.result {
            Ok(how) if how.is_empty() => write!(f, "ok      {}", self.what),
            Ok(how) => write!(f, "ok      {}: {how}", self.what),
            Err(why) => write!(f, "FAILED  {}: {why}", self.what),
        }
    }
}

/// Looks at the configured daemon; what it put there is gone again at the end. `collects` lets the daemon delete everything
/// that is not pinned, whoever put it there.
pub async fn examine(config: &Config, collects: bool) -> Vec<Finding> {
    let rpc = match Rpc::new(config) {
        Ok(rpc) => rpc,
        Err(why) => return vec![found("the client", Err(why))],
    };
    let mut findings = vec![found("the daemon answers", introduce(&rpc).await)];
    if findings[0].result.is_err() {
        return findings;
    }
    let mut made = Vec::new();
    let (small, large) = (throw_away(1_000), throw_away(PAYLOAD_BYTES_MAX));
    findings.push(found(
        "a payload is put, pinned, and read back",
        kept(&rpc, &small, &mut made).await,
    ));
    findings.push(found("so is the largest payload", kept(&rpc, &large, &mut made).await));
    findings.push(found(
        "a large record is put in blocks under one pin",
        in_blocks(&rpc, &mut made).await,
    ));
    findings.push(found("what is absent is said in time", absent(&rpc).await));
    findings.push(found(
        "payloads a second, one after the other",
        paced(&rpc, &mut made).await,
    ));
    findings.push(found("what it has is listed", listed(&rpc, &made).await));
    findings.push(found(
        "an unpinned payload is pinned again",
        pinned_again(&rpc, &small).await,
    ));
    if collects {
        let result = collected(&rpc, &small, &mut made).await;
        findings.push(found("a collection spares what is pinned, and nothing else", result));
    }
    findings.push(found("what was put is gone again", swept(&rpc, &made).await));
    findings
}

fn found(what: &'static str, result: Result<String, String>) -> Finding {
    Finding { what, result }
}

fn told(failure: Failure) -> String {
    match failure.cause() {
        cause if cause.is_empty() => failure.to_string(),
        cause => format!("{failure} ({cause})"),
    }
}

/// Canonical DAG-CBOR of about so many bytes, at most, that nobody else has: a byte string.
fn throw_away(bytes: usize) -> Vec<u8> {
    let mut random = vec![0; bytes - 5];
    rand::rng().fill(&mut random[..]);
    canonical::encode(&ByteBuf::from(random))
}

async fn introduce(rpc: &Rpc) -> Result<String, String> {
    let (version, daemon) = (rpc.version().await.map_err(told)?, rpc.id().await.map_err(told)?);
    let size = rpc.repository_bytes().await.map_err(told)?;
    let peers = rpc.peers().await.map_err(told)?;
    Ok(format!(
        "{} (version {version}), peer {}, {size} bytes in its repository, connected with {peers} peers",
        daemon.agent, daemon.peer
    ))
}

async fn kept(rpc: &Rpc, payload: &[u8], made: &mut Vec<Cid>) -> Result<String, String> {
    let cid = canonical::cid_of(payload);
    made.push(cid);
    let stored = rpc.put(payload).await.map_err(told)?;
    if stored != cid {
        made.push(stored);
        return Err(format!("it was kept as {stored}, and is {cid}"));
    }
    let bytes = rpc.get(&cid).await.map_err(told)?;
    let bytes = bytes.ok_or("it is not there after it was put")?;
    if !is_payload_of(&cid, &bytes) {
        return Err("other bytes came back".to_owned());
    }
    if rpc.size(&cid).await.map_err(told)? != Some(payload.len() as u64) {
        return Err("block/stat says another length".to_owned());
    }
    if !rpc.is_pinned(&cid).await.map_err(told)? {
        return Err("it is not pinned, though pin=true was sent".to_owned());
    }
    Ok(format!("{} bytes", payload.len()))
}

/// Three leaves and their root, as a large record has them.
async fn in_blocks(rpc: &Rpc, made: &mut Vec<Cid>) -> Result<String, String> {
    let mut random = vec![0; 2 * LEAF_BYTES + 1_000];
    rand::rng().fill(&mut random[..]);
    let mut layout = Layout::default();
    let leaves: Vec<_> = random
        .chunks(LEAF_BYTES)
        .map(|leaf| (Link::leaf(leaf).cid, leaf.to_vec()))
        .collect();
    let links = random.chunks(LEAF_BYTES).map(Link::leaf);
    let mut nodes: Vec<_> = links.flat_map(|link| layout.leaf(link)).collect();
    let (root, last) = layout.finish().expect("three leaves");
    nodes.extend(last);
    // The root first: it is unpinned before what it holds is removed.
    made.push(root.cid);
    for (cid, block) in leaves.iter().chain(&nodes) {
        made.push(*cid);
        let stored = rpc.put_block(*cid == root.cid, block).await.map_err(told)?;
        if stored != *cid {
            made.push(stored);
            return Err(format!("a block was kept as {stored}, and is {cid}"));
        }
    }
    rpc.pin(&root.cid).await.map_err(told)?;
    if !rpc.is_pinned(&root.cid).await.map_err(told)? {
        return Err("the root is not pinned after pin/add".to_owned());
    }
    for (cid, block) in leaves.iter().chain(&nodes) {
        if rpc.get(cid).await.map_err(told)?.as_deref() != Some(block) {
            return Err(format!("{cid} came back with other bytes, or not at all"));
        }
    }
    Ok(format!("{} bytes under {}", random.len(), root.cid))
}

async fn absent(rpc: &Rpc) -> Result<String, String> {
    let cid = canonical::cid_of(&throw_away(100));
    let started = Instant::now();
    match rpc.get(&cid).await.map_err(told)? {
        None => Ok(format!("after {} ms", started.elapsed().as_millis())),
        Some(_) => Err("bytes came for an identifier that nobody knows".to_owned()),
    }
}

async fn paced(rpc: &Rpc, made: &mut Vec<Cid>) -> Result<String, String> {
    let started = Instant::now();
    for _ in 0..PACED {
        kept(rpc, &throw_away(1_000), made).await?;
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(format!("{:.0}, each read back", f64::from(PACED) / seconds))
}

async fn listed(rpc: &Rpc, made: &[Cid]) -> Result<String, String> {
    let started = Instant::now();
    let blocks = rpc.blocks().await.map_err(told)?;
    match made.iter().find(|cid| !blocks.contains(&digest(cid))) {
        Some(cid) => Err(format!("refs/local leaves out {cid}, which was put just now")),
        None => Ok(format!(
            "{} blocks in {} ms",
            blocks.len(),
            started.elapsed().as_millis()
        )),
    }
}

async fn pinned_again(rpc: &Rpc, payload: &[u8]) -> Result<String, String> {
    let cid = canonical::cid_of(payload);
    rpc.unpin(&cid).await.map_err(told)?;
    if rpc.is_pinned(&cid).await.map_err(told)? {
        return Err("it is pinned after pin/rm".to_owned());
    }
    // Once more: a pin that is gone is no failure.
    rpc.unpin(&cid).await.map_err(told)?;
    rpc.pin(&cid).await.map_err(told)?;
    if rpc.is_pinned(&cid).await.map_err(told)? {
        Ok(String::new())
    } else {
        Err("it is not pinned after pin/add".to_owned())
    }
}

async fn collected(rpc: &Rpc, pinned: &[u8], made: &mut Vec<Cid>) -> Result<String, String> {
    let loose = throw_away(1_000);
    kept(rpc, &loose, made).await?;
    let (loose, pinned) = (canonical::cid_of(&loose), canonical::cid_of(pinned));
    rpc.unpin(&loose).await.map_err(told)?;
    let started = Instant::now();
    rpc.collect(COLLECT_TIMEOUT).await.map_err(told)?;
    if rpc.get(&pinned).await.map_err(told)?.is_none() {
        return Err("a pinned payload is gone".to_owned());
    }
    if rpc.get(&loose).await.map_err(told)?.is_some() {
        return Err("what was unpinned is still there".to_owned());
    }
    Ok(format!("in {} ms", started.elapsed().as_millis()))
}

async fn swept(rpc: &Rpc, made: &[Cid]) -> Result<String, String> {
    for cid in made {
        rpc.unpin(cid).await.map_err(told)?;
        rpc.remove(cid).await.map_err(told)?;
    }
    Ok(format!("{} blocks", made.len()))
}
