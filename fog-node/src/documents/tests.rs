//! A document's limits, and its sealing while it comes. The rest of its way is walked with real rooms in `http::binaries`.

use futures::{StreamExt as _, stream};

use super::*;

#[test]
fn a_limit_of_the_content_is_a_limit_of_what_is_kept() {
    for bytes_max in [1, 4_096, 65_537, 240 << 20] {
        let config = Config {
            bytes_max,
            ..Config::default()
        };
        assert!(config.faults().is_empty(), "{:?}", config.faults());
        let (_, key) = record::bundle::SubjectSecret::generate(Category::Clinical, 1).expect("random numbers");
        let metadata = Metadata {
            media_type: format!("a/{}", "b".repeat(200)).parse().expect("good"),
            bytes: bytes_max,
        };
        let network = record::ids::NetworkId(record::canonical::Digest::ZERO);
        let author = "desk-1".parse().expect("good");
        let (sealer, _) = Sealer::begin(&network, (&author, &key), &metadata).expect("begins");
        assert!(sealer.sealed_bytes() <= config.sealed_bytes_max(), "{bytes_max}");
    }
    let vault = vault::Config::default();
    assert!(
        Config::default().sealed_bytes_max() <= vault.object_bytes_max,
        "a vault takes what a door takes"
    );
}

#[test]
fn half_a_desk_and_no_limit_are_faults() {
    let mut config = Config::default();
    config.desk.author = Some("desk-1".parse().expect("good"));
    config.bytes_max = 0;
    config.uploads_max = 0;
    let faults = config.faults().join("\n");
    for named in ["documents.desk", "documents.bytes_max", "documents.uploads_max"] {
        assert!(faults.contains(named), "{faults}");
    }
}

async fn gathered(stream: impl Stream<Item = io::Result<Bytes>> + Send) -> io::Result<Vec<u8>> {
    let mut stream = Box::pin(stream);
    let mut all = Vec::new();
    while let Some(piece) = stream.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all)
}

fn begun(bytes: u64) -> (Sealer, Vec<u8>) {
    let (_, key) = record::bundle::SubjectSecret::generate(Category::Clinical, 1).expect("random numbers");
    let network = record::ids::NetworkId(record::canonical::Digest::ZERO);
    let metadata = Metadata {
        media_type: "a/b".parse().expect("good"),
        bytes,
    };
    let author = "desk-1".parse().expect("good");
    Sealer::begin(&network, (&author, &key), &metadata).expect("begins")
}

#[tokio::test]
async fn what_comes_in_pieces_goes_out_sealed_and_whole() {
    let (sealer, head) = begun(200_000);
    let expected = sealer.sealed_bytes();
    let pieces = stream::iter((0..20).map(|_| Ok(Bytes::from(vec![7; 10_000]))));
    let sealed = gathered(sealed(sealer, head, pieces)).await.expect("whole");
    assert_eq!(sealed.len() as u64, expected);
    assert!(!sealed.windows(16).any(|window| window == [7; 16]), "nothing readable");
}

#[tokio::test]
async fn a_body_that_breaks_off_or_is_too_short_or_too_long_is_no_document() {
    let broken = stream::iter([Ok(Bytes::from(vec![7; 10])), Err(io::Error::other("gone"))]);
    let short = stream::iter([Ok(Bytes::from(vec![7; 10]))]);
    let long = stream::iter([Ok(Bytes::from(vec![7; 10])), Ok(Bytes::from(vec![7; 11]))]);
    let (sealer, head) = begun(20);
    assert!(gathered(sealed(sealer, head, broken)).await.is_err());
    let (sealer, head) = begun(20);
    assert!(gathered(sealed(sealer, head, short)).await.is_err());
    let (sealer, head) = begun(20);
    assert!(gathered(sealed(sealer, head, long)).await.is_err());
}
