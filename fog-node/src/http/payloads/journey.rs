//! Large records at the gateway, over HTTPS: raw blocks, archives of all, of a range, of the root alone, and who gets them.

use bytes::Bytes;
use cid::Cid;
use futures::stream;

use crate::{http::clinic::Clinic, vault::car};

const LEAF: usize = 262_144;

/// The identifiers and bytes of the blocks of an archive, after its head.
fn blocks(archive: &[u8], root: &Cid) -> Vec<(Cid, Vec<u8>)> {
    let mut rest = archive
        .strip_prefix(&*car::head(root))
        .expect("a head that names the root");
    let mut blocks = Vec::new();
    while !rest.is_empty() {
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            let byte = rest[0];
            rest = &rest[1..];
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                break;
            }
        }
        let (frame, after) = rest.split_at(length);
        let cid = Cid::read_bytes(&frame[..36]).expect("an identifier");
        assert_eq!(
            cid,
            record::canonical::cid_under(cid.codec(), &frame[36..]),
            "its bytes hash to it"
        );
        blocks.push((cid, frame[36..].to_vec()));
        rest = after;
    }
    blocks
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_record_is_served_block_by_block_and_as_an_archive() {
    let clinic = Clinic::open().await;
    let sent: Vec<u8> = (0..5 * LEAF + 9)
        .map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8)
        .collect();
    let stream = stream::iter([Ok(Bytes::from(sent.clone()))]);
    let object = clinic.vault.put_object(stream, u64::MAX).await.expect("kept");
    let root = object.held.cid();
    let get = async |path: String| {
        let answer = clinic
            .node
            .get(clinic.url(&format!("/ipfs/{path}")))
            .send()
            .await
            .expect("answers");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        (status, headers, answer.bytes().await.expect("a body"))
    };
    let stranger = clinic
        .anybody
        .get(clinic.url(&format!("/ipfs/{root}?format=car")))
        .send();
    assert_eq!(stranger.await.expect("answers").status(), 403);

    let (status, headers, archive) = get(format!("{root}?format=car")).await;
    assert_eq!(status, 200);
    assert_eq!(
        headers["content-type"],
        "application/vnd.ipld.car; version=1; order=dfs; dups=n"
    );
    assert!(!headers.contains_key("content-length"), "it is made while it is sent");
    let all = blocks(&archive, &root);
    assert_eq!((all.len(), all[0].0), (7, root));
    let leaves: Vec<u8> = all[1..].iter().flat_map(|(_, leaf)| leaf.clone()).collect();
    assert!(leaves == sent, "the leaves are the record");
    for (cid, block) in &all {
        let (status, headers, raw) = get(format!("{cid}?format=raw")).await;
        assert_eq!((status, &headers["content-length"]), (200, &block.len().into()));
        assert!(raw == block[..]);
    }
    for (asked, expected) in [
        ("dag-scope=block", 1),
        ("dag-scope=entity", 7),
        ("dag-scope=all", 7),
        ("entity-bytes=0:0", 2),
        ("entity-bytes=262143:262144", 3),
        ("entity-bytes=-9:*", 2),
        ("entity-bytes=99999999:*", 1),
    ] {
        let (status, headers, archive) = get(format!("{root}?format=car&{asked}")).await;
        assert_eq!((status, blocks(&archive, &root).len()), (200, expected), "{asked}");
        let is_all = expected == 7;
        assert_eq!(headers["etag"] == format!("\"{root}.car\""), is_all, "{asked}");
    }
    for asked in ["dag-scope=some", "entity-bytes=5", "entity-bytes=a:b"] {
        assert_eq!(get(format!("{root}?format=car&{asked}")).await.0, 400, "{asked}");
    }
    let (status, _, part) = {
        let request = clinic.node.get(clinic.url(&format!("/ipfs/{}?format=raw", all[1].0)));
        let answer = request.header("range", "bytes=100-199").send().await.expect("answers");
        (answer.status().as_u16(), (), answer.bytes().await.expect("a body"))
    };
    assert_eq!((status, &part[..]), (206, &sent[100..200]));

    clinic.vault.let_go(&root).await.expect("gone");
    assert_eq!(get(format!("{root}?format=car")).await.0, 404);
    assert_eq!(get(format!("{}?format=raw", all[1].0)).await.0, 404);
}
