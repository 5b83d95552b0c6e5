//! Content-addressed archives, version 1 (ipld.io/specs/transport/car/carv1): what a gateway sends and what the packs of large
//! records are, so that any IPFS program can read either.

use cid::Cid;
use record::canonical;
use serde::Serialize;

use super::unixfs::number;

/// Bytes of the head of an archive with one root.
pub(super) const HEAD_BYTES: usize = 59;
/// Bytes of an identifier of ours: version, codec, hash, its length, 32 bytes.
pub(super) const CID_BYTES: usize = 36;

/// The head of a CAR stream.
#[derive(Serialize)]
struct Head<'a> {
    roots: [&'a Cid; 1],
    version: u64,
}

/// The head of an archive, with its length before it.
#[must_use]
pub fn head(root: &Cid) -> Vec<u8> {
    let named = canonical::encode(&Head {
        roots: [root],
        version: 1,
    });
    let mut head = Vec::with_capacity(named.len() + 1);
    number(&mut head, named.len() as u64);
    head.extend_from_slice(&named);
    head
}

/// What stands before a block of so many bytes: the length of both, and the identifier.
#[must_use]
pub fn before(cid: &Cid, block_bytes: usize) -> Vec<u8> {
    let name = cid.to_bytes();
    let mut before = Vec::with_capacity(name.len() + 4);
    number(&mut before, (name.len() + block_bytes) as u64);
    before.extend_from_slice(&name);
    before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_car_of_one_block_has_these_bytes() {
        let cid = canonical::cid_of(b"\xa0");
        // 58 bytes of head: a map of two, "roots" with one link, "version" 1.
        assert_eq!(hex::encode(&head(&cid)[..18]), "3aa265726f6f747381d82a58250001711220");
        assert_eq!(head(&cid).len(), HEAD_BYTES);
        assert_eq!(before(&cid, 1), [&[37][..], &cid.to_bytes()].concat());
        assert_eq!(cid.to_bytes().len(), CID_BYTES);
    }
}
