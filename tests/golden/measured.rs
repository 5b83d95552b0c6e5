//! Forms of what is measured: digests, readings in both signed forms, bundles plain and sealed, the FHIR shape.

use std::sync::LazyLock;

use record::{
    bundle::{Bundle, Category, Entry, SealedBundle, SubjectKey, SubjectSecret},
    canonical::{self, Digest, Domain},
    clock::Coincidence,
    decimal::Decimal,
    document::{Metadata, Opener, Sealer},
    fhir::{self, Patient},
    gaps::{GapReport, Missing, Range, SignedGapReport, Start},
    ids::{BootId, NetworkId},
    merkle,
    observation::Observation,
    reading::{Measured, MeasurementState, Reading, Samples, TimeQuality},
    topic::{Channel, Topic},
    transit::{ReadingKey, ReadingSecret, SealedReading},
};
use serde::Serialize;
use serde_bytes::ByteBuf;

use crate::{Form, fixed, form, golden, is_rewritten, key, named, text};

/// Every domain, by the name its digest has in the file.
const DOMAINS: [(&str, Domain); 19] = [
    ("digest-bundle", Domain::BUNDLE),
    ("digest-reading", Domain::READING),
    ("digest-reading-key", Domain::READING_KEY),
    ("digest-sealed-reading", Domain::SEALED_READING),
    ("digest-leaf", Domain::LEAF),
    ("digest-gaps", Domain::GAPS),
    ("digest-samples", Domain::SAMPLES),
    ("digest-observation", Domain::OBSERVATION),
    ("digest-subject-key", Domain::SUBJECT_KEY),
    ("digest-transaction", Domain::TRANSACTION),
    ("digest-header", Domain::HEADER),
    ("digest-policy", Domain::POLICY),
    ("digest-genesis", Domain::GENESIS),
    ("digest-state", Domain::STATE),
    ("digest-admission", Domain::ADMISSION),
    ("digest-head", Domain::HEAD),
    ("digest-merkle-node", Domain::MERKLE_NODE),
    ("digest-tls-key", Domain::TLS_KEY),
    ("digest-document", Domain::DOCUMENT),
];
/// Private half of the subject key: 1, 2, 3, .. 32.
const SECRET: &str = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20";
/// Its public half, as openssl computes it.
const PUBLIC: &str = "07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c";
/// When everything happened: 2026-09-21T14:13:20Z.
const NOW_MS: i64 = 1_790_000_000_000;

fn one(code: &str, value: &str, unit: &str) -> Measured {
    Measured {
        code: code.to_owned(),
        value: Some(named(value)),
        samples: None,
        unit: unit.to_owned(),
        state: MeasurementState::Valid,
    }
}

fn reading() -> Reading {
    Reading {
        v: 1,
        device: named("oximeter-1"),
        boot: BootId {
            counter: 7,
            random: 0x00c0_ffee,
        },
        seq: 3,
        up_ms: 4_000,
        wall: Some(NOW_MS),
        time_quality: TimeQuality::Synced,
        observations: vec![one("59408-5", "97", "%"), one("8867-4", "61.50", "/min")],
    }
}

fn rich() -> Reading {
    let samples = Samples {
        origin: Decimal::whole(0),
        period_ms: named("2.778"),
        factor: named("0.005"),
        data: vec![-3, 0, 12, 180],
    };
    let wave = Measured {
        value: None,
        samples: Some(samples),
        ..one("11524-6", "0", "mV")
    };
    let absent = Measured {
        value: None,
        state: MeasurementState::Absent,
        ..one("9279-1", "0", "/min")
    };
    let hot = Measured {
        state: MeasurementState::Questionable,
        ..one("8310-5", "45.5", "Cel")
    };
    let observations = vec![
        one("8480-6", "128", "mm[Hg]"),
        one("8462-4", "82", "mm[Hg]"),
        wave,
        absent,
        hot,
    ];
    let (wall, time_quality) = (None, TimeQuality::Relative);
    Reading {
        wall,
        time_quality,
        observations,
        ..reading()
    }
}

/// What is missing of one device: of one start two ranges.
fn gaps() -> GapReport {
    let start = Start {
        boot: reading().boot,
        high_seq: 9,
        missing: vec![Range(1, 2), Range(5, 5)],
    };
    GapReport {
        v: 1,
        network: network(),
        gateway: named("home-1"),
        device: named("oximeter-1"),
        at_ms: NOW_MS,
        missing: Missing {
            starts: vec![start],
            more_ranges: 0,
        },
    }
}

/// The tick counter of the device a minute after it measured.
fn clock() -> Coincidence {
    Coincidence {
        gateway_ms: NOW_MS,
        up_ms: 64_000,
    }
}

/// A bundle whose salt is fixed: it is read from bytes, since a new one draws its own.
fn bundle() -> Bundle {
    #[derive(Serialize)]
    struct Salted {
        v: u8,
        salt: ByteBuf,
        entries: Vec<Entry>,
        gaps: Vec<SignedGapReport>,
    }
    let ticks = Entry {
        clock: Some(clock()),
        ..Entry::new(NOW_MS + 41, rich().sign_json(&key(1)))
    };
    let entries = vec![Entry::new(NOW_MS + 40, reading().sign(&key(1))), ticks];
    let salt = ByteBuf::from([9; 32]);
    let gaps = vec![gaps().sign(&key(2))];
    let bytes = canonical::encode(&Salted {
        v: 2,
        salt,
        entries,
        gaps,
    });
    canonical::decode(&bytes, bytes.len()).expect("a bundle")
}

pub(crate) fn subject_key() -> SubjectKey {
    let public = hex::decode(PUBLIC).expect("hex");
    let (category, epoch) = (Category::Vitals, 1);
    SubjectKey {
        public,
        category,
        epoch,
    }
}

pub(crate) fn network() -> NetworkId {
    NetworkId(Digest::of(Domain::GENESIS, &[b"golden"]))
}

/// Sealing draws a secret of its own, so the pinned payload stays as long as it opens to the pinned bundle. Only a decision
/// seals anew.
static SEALED: LazyLock<SealedBundle> = LazyLock::new(|| {
    let pinned = golden("bytes.hex", "sealed-bundle")
        .and_then(|text| hex::decode(text).ok())
        .and_then(|payload| SealedBundle::decode(&payload).ok())
        .filter(|sealed| {
            sealed
                .open(&network(), &secret())
                .is_ok_and(|opened| opened == bundle())
        });
    let seal = || SealedBundle::seal(&network(), &named("home-1"), &subject_key(), &bundle()).expect("seals");
    match pinned {
        Some(sealed) => sealed,
        None if is_rewritten() => seal(),
        None => panic!("the pinned payload does not open to the pinned bundle"),
    }
});

/// What the pinned document says.
const DOCUMENT: &[u8] = b"%PDF-1.7 golden";

fn about() -> Metadata {
    Metadata {
        media_type: named("application/pdf"),
        bytes: DOCUMENT.len() as u64,
    }
}

fn opened(document: &[u8]) -> Option<(Metadata, Vec<u8>)> {
    let given = (document, document.len() as u64);
    let opener = Opener::open(&network(), &secret(), given).ok()?;
    let metadata = opener.metadata().clone();
    let mut part = opener.part(0..metadata.bytes).ok()?;
    let within = part.sealed();
    let within = usize::try_from(within.start).ok()?..usize::try_from(within.end).ok()?;
    let content = part.push(document.get(within)?).ok()?;
    part.finish().ok()?;
    Some((metadata, content))
}

/// As with a bundle: the pinned document stays as long as it opens to the pinned content.
static SEALED_DOCUMENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let pinned = golden("bytes.hex", "sealed-document")
        .and_then(|text| hex::decode(text).ok())
        .filter(|document| opened(document).is_some_and(|opened| opened == (about(), DOCUMENT.to_vec())));
    let seal = || {
        let parts = (&named("desk-1"), &subject_key());
        let (mut sealer, mut sealed) = Sealer::begin(&network(), parts, &about()).expect("begins");
        sealed.extend(sealer.push(DOCUMENT).expect("fits"));
        let padding = sealer.finish().expect("all is there");
        sealed.extend(padding.flat_map(|piece| piece.expect("sealed")));
        sealed
    };
    match pinned {
        Some(document) => document,
        None if is_rewritten() => seal(),
        None => panic!("the pinned document does not open to the pinned content"),
    }
});

pub(crate) fn document() -> Vec<u8> {
    SEALED_DOCUMENT.clone()
}

fn reading_key() -> ReadingSecret {
    let key = ReadingKey::read(network(), named("home-1"), PUBLIC).expect("a key");
    ReadingSecret::of(key, hex::decode(SECRET).expect("hex").into()).expect("the halves belong together")
}

fn topic() -> Topic {
    let (device, channel) = (named("oximeter-1"), Channel::Reading);
    Topic { device, channel }
}

/// As with a bundle: the pinned message stays as long as it opens to the pinned reading.
static SEALED_READING: LazyLock<SealedReading> = LazyLock::new(|| {
    let signed = reading().sign(&key(1));
    let pinned = golden("bytes.hex", "sealed-reading")
        .and_then(|text| hex::decode(text).ok())
        .and_then(|message| SealedReading::receive(&message).ok())
        .filter(|sealed| {
            let opened = reading_key().open(&topic(), sealed);
            opened.is_ok_and(|opened| opened == signed.as_bytes())
        });
    match pinned {
        Some(sealed) => sealed,
        None if is_rewritten() => reading_key().key().seal(&topic(), signed.as_bytes()).expect("seals"),
        None => panic!("the pinned sealed message does not open to the pinned reading"),
    }
});

pub(crate) fn sealed() -> SealedBundle {
    SEALED.clone()
}

fn secret() -> SubjectSecret {
    SubjectSecret::from_bytes(hex::decode(SECRET).expect("hex").into())
}

pub(crate) fn root() -> (Digest, u32) {
    (bundle().root(), 2)
}

fn patient() -> Patient {
    Patient {
        id: named("7f3c1b5e-9a1d-4c52-8d0e-2f6a4b8c0d1e"),
        family: "Muster".to_owned(),
        given: "Ada".to_owned(),
        gender: "female".to_owned(),
        birth_date: "1950-04-01".to_owned(),
    }
}

pub(crate) fn bytes() -> Vec<Form> {
    let leaves: Vec<_> = (0..5_u8).map(|n| Digest::of(Domain::READING, &[&[n]])).collect();
    let digests = DOMAINS.map(|(name, domain)| fixed(name, Digest::of(domain, &[b"gol", b"den"]).as_bytes()));
    let rest = vec![
        form("digest", &Digest::ZERO),
        form("decimal", &named::<Decimal>("-36.70")),
        form("reading", &reading()),
        form("reading-rich", &rich()),
        form("reading-id", &reading().id()),
        fixed("reading-cose", reading().sign(&key(1)).as_bytes()),
        fixed("reading-key-id", reading_key().key().id().0.as_bytes()),
        form("sealed-reading", &*SEALED_READING),
        form("entry", &bundle().entries[0]),
        form("entry-by-ticks", &bundle().entries[1]),
        form("gap-report", &gaps()),
        form("gap-report-signed", &bundle().gaps[0]),
        form("bundle", &bundle()),
        fixed("bundle-root", bundle().root().as_bytes()),
        form("subject-key", &subject_key()),
        fixed("subject-key-id", subject_key().id().0.as_bytes()),
        form("sealed-bundle", &sealed()),
        fixed("sealed-bundle-id", SealedBundle::id_of(&sealed().encode()).0.as_bytes()),
        fixed("sealed-bundle-cid", &canonical::cid_of(&sealed().encode()).to_bytes()),
        fixed("merkle-root-0", merkle::root(&[]).as_bytes()),
        fixed("merkle-root-1", merkle::root(&leaves[..1]).as_bytes()),
        fixed("merkle-root-5", merkle::root(&leaves).as_bytes()),
        form("merkle-path", &merkle::Path::of(&leaves, 4).expect("five leaves")),
        form("patient", &patient()),
        form("document-metadata", &about()),
        fixed("sealed-document", &document()),
    ];
    digests.into_iter().chain(rest).collect()
}

/// A shape that is written and never read back: its numbers are text here, floats there.
fn served(name: &'static str, shape: &impl Serialize) -> Form {
    fixed(name, &serde_json::to_vec(shape).expect("shapes have a JSON form"))
}

pub(crate) fn texts() -> Vec<Form> {
    let observations = bundle().entries.into_iter().flat_map(|entry| {
        let reading = entry.reading.decode(|_| Some(key(1).public())).expect("signed");
        Observation::of(&reading, entry.reception()).expect("plausible")
    });
    let names = [
        "observation-spo2",
        "observation-rate",
        "observation-panel",
        "observation-wave",
        "observation-absent",
        "observation-hot",
    ];
    let shapes = names
        .into_iter()
        .zip(observations)
        .map(|(name, o)| served(name, &fhir::observation(&o, patient().id)));
    let outcome = fhir::operation_outcome("error", "login", "no bearer token");
    let links = [("self", "https://fog/fhir/Patient".to_owned())];
    let page = fhir::searchset("https://fog/fhir", 1, &links, vec![patient().resource()]);
    let told = fhir::searchset("https://fog/fhir", 0, &[], vec![]).with_outcome(&outcome);
    let more = vec![
        text("reading-json", &reading()),
        fixed("reading-signed-json", reading().sign_json(&key(1)).as_bytes()),
        text("subject-key", &subject_key()),
        text("patient", &patient()),
        served("gaps-fhir", &fhir::gaps(&[gaps()], false)),
        served("patient-fhir", &patient().resource()),
        served("searchset", &page),
        served("searchset-empty", &fhir::searchset("https://fog/fhir", 0, &[], vec![])),
        served("searchset-outcome", &told),
        text("operation-outcome", &outcome),
    ];
    shapes.chain(more).collect()
}

#[test]
fn the_pinned_payload_opens_to_the_pinned_bundle() {
    assert_eq!(sealed().open(&network(), &secret()).expect("opens"), bundle());
    assert!(sealed().open(&NetworkId(Digest::ZERO), &secret()).is_err());
}

#[test]
fn the_pinned_sealed_message_opens_under_its_topic_alone() {
    let opened = reading_key().open(&topic(), &SEALED_READING).expect("opens");
    assert_eq!(opened, reading().sign(&key(1)).as_bytes());
    let channel = Channel::Event;
    assert!(
        reading_key()
            .open(&Topic { channel, ..topic() }, &SEALED_READING)
            .is_err()
    );
}

#[test]
fn the_pinned_readings_are_signed_by_their_device() {
    for entry in bundle().entries {
        assert!(entry.reading.decode(|_| Some(key(1).public())).is_ok());
        assert!(entry.reading.decode(|_| Some(key(2).public())).is_err());
    }
}

#[test]
fn the_glossary_lists_every_code_unit_and_range() {
    let path = [env!("CARGO_MANIFEST_DIR"), "..", "docs", "GLOSSARY.md"];
    let glossary = std::fs::read_to_string(path.iter().collect::<std::path::PathBuf>()).expect("is there");
    for sign in record::vital::SIGNS {
        assert!(glossary.contains(sign.code), "{}", sign.code);
        for unit in sign.units.iter().filter(|_| !sign.waveform) {
            let (flag, plausible) = (unit.flag, unit.plausible);
            let row = format!(
                "| {} | {}-{} | {}-{} |",
                unit.ucum, flag.0, flag.1, plausible.0, plausible.1
            );
            assert!(glossary.contains(&row), "{} {row}", sign.code);
        }
    }
}

#[test]
fn the_pinned_document_opens_to_its_content_and_to_nothing_else() {
    assert_eq!(opened(&document()), Some((about(), DOCUMENT.to_vec())));
    let mut altered = document();
    let last = altered.len() - 1;
    altered[last] ^= 1;
    assert_eq!(opened(&altered), None);
}
