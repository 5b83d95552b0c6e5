//! Whether a pack that nobody has entered is a whole object: its frames are gone through, and its nodes from the root down.

use std::{fs, io, io::Read as _, os::unix::fs::FileExt as _, path::Path};

use cid::Cid;

use super::packs::{Places, read_at};
use crate::vault::{
    car,
    store::{cid_of, digest, is_payload_of},
    unixfs::{LEAF_BYTES, Node},
};

/// Blocks of a pack, at most: those of the largest object and its nodes.
const BLOCKS_MAX: usize = 40_000;

/// The root of a pack that has every block of its object, where they lie, and its length. Leaves are not hashed here: they are
/// whenever they are read.
pub(super) fn whole(path: &Path, key: &[u8; 32]) -> io::Result<Option<(Cid, Places, u64)>> {
    let file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    if length < car::HEAD_BYTES as u64 {
        return Ok(None);
    }
    let mut places = Places::new();
    let mut at = car::HEAD_BYTES as u64;
    while at < length {
        let Some((cid, start, bytes)) = frame(&file, at)? else {
            return Ok(None);
        };
        at = start + u64::from(bytes);
        places.insert(digest(&cid), (start, bytes));
        if at > length || places.len() > BLOCKS_MAX {
            return Ok(None);
        }
    }
    let found = [record::canonical::DAG_PB, record::canonical::RAW].map(|codec| cid_of(codec, key));
    let mut head = vec![0; car::HEAD_BYTES];
    file.read_exact_at(&mut head, 0)?;
    let Some(root) = found.into_iter().find(|root| car::head(root) == head) else {
        return Ok(None);
    };
    let mut todo = Vec::new();
    let mut next = Some((root, None));
    while let Some((cid, place)) = next {
        let Some(at) = places.get(&digest(&cid)) else {
            return Ok(None);
        };
        if cid.codec() == record::canonical::DAG_PB {
            let block = read_at(&file, *at)?;
            let below = is_payload_of(&cid, &block).then(|| Node::decode(&block, place.as_ref()));
            match below.flatten() {
                Some(below) => todo.extend(below),
                None => return Ok(None),
            }
        }
        next = todo.pop().map(|place| (place.link.cid, Some(place)));
    }
    Ok(Some((root, places, length)))
}

/// The identifier of the block at a place of a pack, and where its bytes lie.
fn frame(file: &fs::File, at: u64) -> io::Result<Option<(Cid, u64, u32)>> {
    // A length of at most three bytes: no block has 2 MiB.
    let mut before = [0; car::CID_BYTES + 3];
    let read = file.read_at(&mut before, at)?;
    let mut rest = &before[..read];
    let (mut bytes, mut shift) = (0_u32, 0_u32);
    loop {
        let mut byte = [0];
        if shift > 14 || rest.read(&mut byte)? == 0 {
            return Ok(None);
        }
        bytes |= u32::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let Some((name, _)) = rest.split_at_checked(car::CID_BYTES) else {
        return Ok(None);
    };
    let Some(block_bytes) = bytes
        .checked_sub(car::CID_BYTES as u32)
        .filter(|bytes| *bytes as usize <= LEAF_BYTES)
    else {
        return Ok(None);
    };
    let start = at + u64::from(shift / 7) + car::CID_BYTES as u64;
    Ok(Cid::read_bytes(name).ok().map(|cid| (cid, start, block_bytes)))
}
