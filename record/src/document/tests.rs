//! Attacks on sealed documents: whatever is done to the bytes, what comes out is the content or an error.

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::{
    bundle::{Category, SubjectKey, SubjectSecret},
    canonical::{self, Digest, Domain},
    ids::NetworkId,
};

/// Three segments, the last one with some content and some padding.
const BYTES: usize = 150_000;

fn network() -> NetworkId {
    NetworkId(Digest::of(Domain::GENESIS, &[b"test"]))
}

fn pair() -> (SubjectSecret, SubjectKey) {
    SubjectSecret::generate(Category::Clinical, 1).expect("random numbers")
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8 | 1).collect()
}

fn about(bytes: usize) -> Metadata {
    Metadata {
        media_type: "application/pdf".parse().expect("good"),
        bytes: bytes as u64,
    }
}

fn sealed_to(key: &SubjectKey, content: &[u8], piece: usize) -> Vec<u8> {
    let author = "desk-1".parse().expect("good");
    let (mut sealer, mut sealed) = Sealer::begin(&network(), (&author, key), &about(content.len())).expect("begins");
    let announced = sealer.sealed_bytes();
    for piece in content.chunks(piece) {
        sealed.extend(sealer.push(piece).expect("fits"));
    }
    for padding in sealer.finish().expect("all is there") {
        sealed.extend(padding.expect("sealed"));
    }
    assert_eq!(sealed.len() as u64, announced);
    sealed
}

/// Reads a range as whoever holds the bytes does it.
fn read(secret: &SubjectSecret, sealed: &[u8], range: Range<u64>, piece: usize) -> Result<Vec<u8>, OpenError> {
    let start = &sealed[..sealed.len().min(HEAD_BYTES_MAX)];
    let mut part = Opener::open(&network(), secret, (start, sealed.len() as u64))?.part(range)?;
    let within = part.sealed();
    let (from, to) = (within.start as usize, within.end as usize);
    let mut content = Vec::new();
    for piece in sealed[from.min(sealed.len())..to.min(sealed.len())].chunks(piece) {
        content.extend(part.push(piece)?);
    }
    part.finish()?;
    Ok(content)
}

fn whole(secret: &SubjectSecret, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
    read(secret, sealed, 0..BYTES as u64, 100_000)
}

/// Frame and head, then the segments, each with its tag.
fn cut(sealed: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (_, head) = SealedHead::read(&sealed[..HEAD_BYTES_MAX]).expect("a head");
    let (head, body) = sealed.split_at(head as usize);
    let segment = (SEGMENT_BYTES + TAG_BYTES) as usize;
    (head.to_vec(), body.chunks(segment).map(<[u8]>::to_vec).collect())
}

#[test]
fn every_size_at_a_boundary_comes_back_whole() {
    let (secret, key) = pair();
    let segment = SEGMENT_BYTES as usize;
    for bytes in [
        0,
        1,
        4_095,
        4_096,
        4_097,
        segment - 1,
        segment,
        segment + 1,
        2 * segment,
        BYTES,
    ] {
        let content = content(bytes);
        for piece in [997, 65_536, 1 << 20] {
            let sealed = sealed_to(&key, &content, piece);
            assert_eq!(read(&secret, &sealed, 0..bytes as u64, piece).expect("opens"), content);
            assert!(head_of(&sealed[..sealed.len().min(HEAD_BYTES_MAX)], sealed.len() as u64).is_ok());
        }
    }
}

#[test]
fn nobody_else_opens_it_and_not_in_another_network() {
    let ((secret, key), (other, _)) = (pair(), pair());
    let sealed = sealed_to(&key, &content(BYTES), 65_536);
    assert!(whole(&secret, &sealed).is_ok());
    assert!(matches!(whole(&other, &sealed), Err(OpenError::NotOpened)));
    let given = (&sealed[..HEAD_BYTES_MAX], sealed.len() as u64);
    let elsewhere = Opener::open(&NetworkId(Digest::ZERO), &secret, given);
    assert!(matches!(elsewhere, Err(OpenError::NotOpened)));
}

#[test]
fn a_flipped_byte_anywhere_in_the_head_opens_nothing() {
    let (secret, key) = pair();
    let sealed = sealed_to(&key, &content(BYTES), 65_536);
    let (head, _) = cut(&sealed);
    for at in 0..head.len() {
        let mut altered = sealed.clone();
        altered[at] ^= 1;
        assert!(whole(&secret, &altered).is_err(), "byte {at}");
    }
}

#[test]
fn dropped_doubled_swapped_and_foreign_segments_are_refused() {
    let (secret, key) = pair();
    let sealed = sealed_to(&key, &content(BYTES), 65_536);
    let (head, segments) = cut(&sealed);
    let (_, foreign) = cut(&sealed_to(&key, &content(BYTES), 65_536));
    let joined = |order: &[&Vec<u8>]| {
        let body: Vec<u8> = order.iter().flat_map(|segment| segment.iter().copied()).collect();
        [head.clone(), body].concat()
    };
    let [a, b, c] = &segments[..] else {
        panic!("three segments")
    };
    assert_eq!(joined(&[a, b, c]), sealed);
    let wrong = [
        joined(&[b, a, c]),
        joined(&[a, a, c]),
        joined(&[a, c, b]),
        joined(&[a, b]),
        joined(&[a, b, b]),
        joined(&[a, c]),
        joined(&[b, c]),
        joined(&[a, b, c, c]),
        joined(&[&foreign[0], b, c]),
        joined(&[a, &foreign[1], c]),
        joined(&[a, b, &foreign[2]]),
        joined(&[&foreign[0], &foreign[1], &foreign[2]]),
    ];
    for (at, wrong) in wrong.iter().enumerate() {
        assert!(whole(&secret, wrong).is_err(), "{at}");
        // Also if whoever gives the bytes lies about how many there are.
        let given = (&head[..], sealed.len() as u64);
        let opener = Opener::open(&network(), &secret, given).expect("the head is genuine");
        let mut part = opener.part(0..BYTES as u64).expect("within");
        let told = part.push(&wrong[head.len()..]).and_then(|_| part.finish());
        assert!(told.is_err(), "{at}, told the right size");
    }
}

#[test]
fn a_document_that_was_cut_opens_at_no_length() {
    let (secret, key) = pair();
    let sealed = sealed_to(&key, &content(BYTES), 65_536);
    let (head, segments) = cut(&sealed);
    let ends = segments.iter().scan(head.len(), |at, segment| {
        *at += segment.len();
        Some(*at)
    });
    let ends: Vec<_> = ends.collect();
    for end in std::iter::once(head.len()).chain(ends) {
        for length in [end.saturating_sub(1), end, end + 1] {
            if length < sealed.len() {
                assert!(whole(&secret, &sealed[..length]).is_err(), "{length}");
            }
        }
    }
}

#[test]
fn the_end_of_a_shorter_content_is_no_middle_of_a_longer_one() {
    let (content_key, framed) = ([7; KEY_BYTES], vec![0; 100]);
    let mut short = Sealer::with(&content_key, &framed, SEGMENT_BYTES).expect("a key");
    let mut long = Sealer::with(&content_key, &framed, 2 * SEGMENT_BYTES).expect("a key");
    let content = content(SEGMENT_BYTES as usize);
    let (last, first) = (
        short.push(&content).expect("sealed"),
        long.push(&content).expect("sealed"),
    );
    assert_eq!(last.len(), first.len());
    assert_ne!(last, first, "the last segment has a nonce of its own");
}

#[test]
fn the_form_is_the_one_that_is_described() {
    // Computed by another implementation from the description alone (Python's cryptography).
    const PINNED: &str = "5ed7aa28e00b939e160e7c6da3101baeb204f9d31814ad75e7d73307cb03717c";
    let framed: Vec<u8> = (0..=255).collect();
    let mut sealer = Sealer::with(&[9; KEY_BYTES], &framed, BYTES as u64).expect("a key");
    let mut body = sealer.push(&content(BYTES)).expect("sealed");
    for padding in sealer.finish().expect("all is there") {
        body.extend(padding.expect("sealed"));
    }
    assert_eq!(hex::encode(Sha256::digest(&body)), PINNED);
}

#[test]
fn padding_that_is_not_zero_is_refused() {
    let (secret, key) = pair();
    let author = "desk-1".parse().expect("good");
    let content_key = zeroize::Zeroizing::new([9; KEY_BYTES]);
    let head = SealedHead::seal((&network(), &author, &key), &content_key, &about(10)).expect("seals");
    let framed = head.framed();
    let sealed_as = |bytes: usize| {
        let mut sealer = Sealer::with(&*content_key, &framed, bytes as u64).expect("a key");
        let mut sealed = [framed.clone(), sealer.push(&content(bytes)).expect("fits")].concat();
        for padding in sealer.finish().expect("all") {
            sealed.extend(padding.expect("sealed"));
        }
        sealed
    };
    assert_eq!(read(&secret, &sealed_as(10), 0..10, 4_096).expect("opens"), content(10));
    let hides = read(&secret, &sealed_as(11), 0..10, 4_096);
    assert!(matches!(hides, Err(OpenError::NotOpened)), "a byte behind the content");
}

#[test]
fn another_length_than_announced_is_no_document() {
    let (_, key) = pair();
    let author = "desk-1".parse().expect("good");
    let begin = |bytes| Sealer::begin(&network(), (&author, &key), &about(bytes)).map(|(sealer, _)| sealer);
    let mut sealer = begin(5).expect("begins");
    assert_eq!(sealer.push(&[0; 6]), Err(SealError::OtherLength { bytes: 5 }));
    let mut sealer = begin(5).expect("begins");
    sealer.push(&[0; 4]).expect("fits");
    assert!(matches!(sealer.finish(), Err(SealError::OtherLength { bytes: 5 })));
    let giant = usize::try_from(CONTENT_BYTES_MAX).expect("64 bits") + 1;
    assert!(matches!(begin(giant), Err(SealError::TooLarge { .. })));
}

#[test]
fn a_range_behind_the_content_is_refused_and_an_empty_one_reads_nothing() {
    let (secret, key) = pair();
    let sealed = sealed_to(&key, &content(BYTES), 65_536);
    let bytes = BYTES as u64;
    assert!(matches!(
        read(&secret, &sealed, 0..bytes + 1, 65_536),
        Err(OpenError::OutOfRange { bytes: told }) if told == bytes
    ));
    assert!(read(&secret, &sealed, bytes..bytes, 65_536).expect("empty").is_empty());
    let opener = Opener::open(&network(), &secret, (&sealed[..HEAD_BYTES_MAX], sealed.len() as u64)).expect("opens");
    let part = opener.part(70_000..70_010).expect("within");
    let within = part.sealed();
    assert_eq!(
        within.end - within.start,
        SEGMENT_BYTES + TAG_BYTES,
        "one segment is read"
    );
}

#[test]
fn the_size_says_only_the_class_and_nothing_says_the_kind() {
    let (_, key) = pair();
    let author = "desk-1".parse().expect("good");
    let begun = |media_type: &str, bytes| {
        let media_type = media_type.parse().expect("good");
        let (sealer, head) =
            Sealer::begin(&network(), (&author, &key), &Metadata { media_type, bytes }).expect("begins");
        (sealer.sealed_bytes(), head.len())
    };
    assert_eq!(
        begun("a/b", 20_000_000),
        begun("application/dicom; x=\"a long one\"", 20_300_000)
    );
    assert_eq!(begun("a/b", 1), begun("application/pdf", 4_096));
    let longest = format!("a/{}", "b".repeat(MEDIA_TYPE_BYTES_MAX - 2));
    assert_eq!(begun(&longest, 1), begun("a/b", 1));
}

#[test]
fn padded_sizes_are_those_of_the_paper() {
    // L = 2^E + r: E = 9 keeps S = 4 bits behind the first, here from the smallest size on.
    for (bytes, padded) in [
        (0, 4_096),
        (4_096, 4_096),
        (4_097, 4_352),
        (65_536, 65_536),
        (65_537, 67_584),
        (20_000_000, 20_447_232),
        (1 << 30, 1 << 30),
    ] {
        assert_eq!(padded_bytes(bytes), padded, "{bytes}");
    }
}

#[test]
fn a_voter_sees_whose_it_is_and_refuses_other_sizes() {
    let (_, key) = pair();
    let sealed = sealed_to(&key, &content(BYTES), 65_536);
    let (start, bytes) = (&sealed[..HEAD_BYTES_MAX], sealed.len() as u64);
    let head = head_of(start, bytes).expect("whole");
    assert_eq!((head.key, head.author.as_str()), (key.id(), "desk-1"));
    for other in [0, 10, bytes - 1, bytes + 1, bytes + 16, bytes + 4_095, u64::MAX] {
        assert!(head_of(start, other).is_err(), "{other}");
    }
    assert!(head_of(&start[..3], bytes).is_err());
    assert!(head_of(&start[..300], bytes).is_err());
    let mut unknown = sealed[..HEAD_BYTES_MAX].to_vec();
    let version = unknown
        .windows(3)
        .position(|w| w == [0x61, b'v', VERSION])
        .expect("a version")
        + 2;
    unknown[version] += 1;
    let error = head_of(&unknown, bytes).expect_err("unknown");
    assert!(error.to_string().contains("version 2"), "{error}");
}

#[test]
fn a_media_type_cannot_leave_its_header() {
    for bad in [
        "",
        "pdf",
        "/",
        "a/",
        "a/b\r\nX: y",
        "a/b\n",
        "a/ü",
        "a b/c",
        "a/b ",
        " a/b",
        "a/b\0",
    ] {
        assert!(bad.parse::<MediaType>().is_err(), "{bad:?}");
    }
    for good in ["application/pdf", "text/plain; charset=utf-8", "application/fhir+json"] {
        assert_eq!(good.parse::<MediaType>().expect("good").as_str(), good);
    }
    assert!(format!("a/{}", "b".repeat(254)).parse::<MediaType>().is_err());
    let foreign = canonical::encode(&("a\r\n/b", 1));
    assert!(canonical::decode::<(MediaType, u64)>(&foreign, 100).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_range_in_any_pieces_is_that_range(
        bytes in 0usize..300_000, from: u64, length: u64, pieces in (1usize..200_000, 1usize..200_000),
    ) {
        let (secret, key) = pair();
        let content = content(bytes);
        let sealed = sealed_to(&key, &content, pieces.0.max(bytes / 50 + 1));
        let from = from % (bytes as u64 + 1);
        let to = from + length % (bytes as u64 - from + 1);
        let part = read(&secret, &sealed, from..to, pieces.1.max(bytes / 50 + 1)).expect("opens");
        prop_assert_eq!(&part[..], &content[from as usize..to as usize]);
    }

    #[test]
    fn a_flipped_byte_never_opens(at: usize, with in 1u8..=255) {
        let (secret, key) = pair();
        let mut sealed = sealed_to(&key, &content(BYTES), 65_536);
        let at = at % sealed.len();
        sealed[at] ^= with;
        prop_assert!(whole(&secret, &sealed).is_err());
    }

    #[test]
    fn what_is_handed_out_before_an_error_is_a_prefix_of_the_content(at: usize, with in 1u8..=255, piece in 1usize..100_000) {
        let (secret, key) = pair();
        let content = content(BYTES);
        let mut sealed = sealed_to(&key, &content, 65_536);
        let (head, _) = cut(&sealed);
        let at = head.len() + at % (sealed.len() - head.len());
        sealed[at] ^= with;
        let opener = Opener::open(&network(), &secret, (&head, sealed.len() as u64)).expect("the head is genuine");
        let mut part = opener.part(0..BYTES as u64).expect("within");
        let mut out = Vec::new();
        for piece in sealed[head.len()..].chunks(piece.max(1_000)) {
            match part.push(piece) {
                Ok(more) => out.extend(more),
                Err(_) => break,
            }
        }
        prop_assert!(out.len() < BYTES && content.starts_with(&out));
    }

    #[test]
    fn padding_costs_little_and_is_padded_already(bytes in PADDED_BYTES_MIN..=CONTENT_BYTES_MAX) {
        let padded = padded_bytes(bytes);
        prop_assert!(padded >= bytes && (padded - bytes) * 100 <= bytes * 12);
        prop_assert_eq!(padded_bytes(padded), padded);
        let layout = Layout::of(800, bytes);
        prop_assert_eq!(Layout::of_size(800, layout.bytes()), Some(layout));
    }
}
