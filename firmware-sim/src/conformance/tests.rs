//! Each rule is broken once, and only once, by a message that is right otherwise.

#[cfg(test)]
mod documents;

use super::*;
use record::{
    decimal::Decimal,
    ids::BootId,
    reading::{Measured, MeasurementState},
    signature::SigningKey,
};

const NOW: i64 = 1_790_000_000_000;
const OWN: &str = "vitalfog/v1/home-1/scale-1/reading";

fn reading(seq: u64) -> Reading {
    Reading {
        v: record::reading::VERSION,
        device: "scale-1".parse().expect("good"),
        boot: BootId { counter: 3, random: 9 },
        seq,
        up_ms: 1_000 * seq,
        wall: Some(NOW),
        time_quality: TimeQuality::Synced,
        observations: vec![Measured {
            code: "29463-7".to_owned(),
            value: Some(Decimal::whole(71)),
            samples: None,
            unit: "kg".to_owned(),
            state: MeasurementState::Valid,
        }],
    }
}

fn message(topic: &str, payload: &[u8]) -> Captured {
    Captured {
        topic: topic.to_owned(),
        payload: payload.to_vec(),
        qos: Some(1),
        retain: Some(false),
        received_ms: Some(NOW),
    }
}

fn judge(key: &SigningKey, others: &[(&str, &SigningKey)]) -> Judge {
    let mut keys: HashMap<DeviceId, PublicKey> = others
        .iter()
        .map(|(name, key)| (name.parse().expect("good"), key.public()))
        .collect();
    keys.insert("scale-1".parse().expect("good"), key.public());
    Judge::new("home-1".parse().expect("good"), keys, true)
}

fn rules(verdict: &Verdict) -> Vec<&'static str> {
    verdict.findings.iter().map(|finding| finding.rule).collect()
}

#[test]
fn a_good_message_in_either_form_has_no_finding() {
    let key = SigningKey::random();
    let mut judge = judge(&key, &[]);
    let first = judge.judge(&message(OWN, reading(1).sign(&key).as_bytes()));
    let second = judge.judge(&message(OWN, reading(2).sign_json(&key).as_bytes()));
    assert_eq!((rules(&first), rules(&second)), (vec![], vec![]));
    assert_eq!(judge.missing(), []);
}

#[test]
fn what_the_gateway_refuses_is_a_fault_with_its_reason() {
    let (key, other) = (SigningKey::random(), SigningKey::random());
    let own = |change: fn(&mut Reading)| {
        let mut reading = reading(1);
        change(&mut reading);
        (OWN, reading.sign(&key).as_bytes().to_vec())
    };
    let giant_state = [br#"{"online":true,"note":""#, &[b'x'; 5_000][..], br#""}"#].concat();
    let cases = [
        ("too-large", (OWN, vec![b'{'; 70_000])),
        ("malformed", (OWN, b"not a reading".to_vec())),
        ("malformed", own(|r| r.seq = 0)),
        ("unknown-device", own(|r| r.device = "scale-9".parse().expect("good"))),
        ("wrong-signature", (OWN, reading(1).sign(&other).as_bytes().to_vec())),
        ("wrong-topic", ("vitalfog/v1/home-2/scale-1/reading", own(|_| {}).1)),
        ("wrong-topic", ("vitalfog/v1/home-1/scale-2/reading", own(|_| {}).1)),
        ("wrong-topic", ("vitalfog/v1/home-1/scale-1/readings", own(|_| {}).1)),
        ("unknown-code", own(|r| "0-0".clone_into(&mut r.observations[0].code))),
        ("wrong-unit", own(|r| "st".clone_into(&mut r.observations[0].unit))),
        (
            "implausible",
            own(|r| r.observations[0].value = Some(Decimal::whole(7_100))),
        ),
        ("implausible", own(|r| r.seq = 5_000_000_000)),
        ("too-large", ("vitalfog/v1/home-1/scale-1/state", giant_state)),
    ];
    for (reason, (topic, payload)) in cases {
        let verdict = judge(&key, &[("scale-2", &other)]).judge(&message(topic, &payload));
        assert_eq!(rules(&verdict), [reason], "{verdict:?}");
        assert!(verdict.findings[0].is_fault && verdict.findings[0].sentence.len() > 20);
        assert!(!format!("{verdict:?}").contains("7100"), "no value is repeated");
    }
}

#[test]
fn the_usual_mistakes_of_signing_are_named() {
    use base64::Engine as _;
    let (key, other) = (SigningKey::random(), SigningKey::random());
    let text = serde_json::to_string(&reading(1)).expect("encodes");
    let json = |signed: &str, key: &SigningKey| {
        let signature = base64::engine::general_purpose::STANDARD.encode(key.sign_raw(signed.as_bytes()).as_bytes());
        format!(r#"{{"reading":{text},"signature":"{signature}"}}"#).into_bytes()
    };
    let framed = format!("vitalfog/reading/v1\n{text}");
    let cose = |aad: &str| {
        let bytes = |text: &[u8]| serde_bytes::ByteBuf::from(text.to_vec());
        let (protected, payload) = (bytes(&[0xa1, 1, 0x27]), bytes(&record::canonical::encode(&reading(1))));
        let signed = record::canonical::encode(&("Signature1", &protected, bytes(aad.as_bytes()), &payload));
        let signature = bytes(key.sign_raw(&signed).as_bytes());
        record::canonical::encode(&(protected, HashMap::<String, u8>::new(), payload, signature))
    };
    let cases = [
        (json(&text, &key), "reading alone"),
        (json(&format!("vitalfog/reading/v1{text}"), &key), "line feed between"),
        (json(&format!("{framed}\n"), &key), "line feed after it"),
        (json(&framed, &other), "another device"),
        (json("else", &key), "written anew"),
        (cose(""), "external_aad"),
        (reading(1).sign(&other).as_bytes().to_vec(), "another device"),
    ];
    for (payload, named) in cases {
        let verdict = judge(&key, &[("scale-2", &other)]).judge(&message(OWN, &payload));
        assert_eq!(rules(&verdict), ["wrong-signature"]);
        assert!(verdict.findings[0].sentence.contains(named), "{named}: {verdict:?}");
    }
    let right = judge(&key, &[]).judge(&message(OWN, &cose("vitalfog/reading/v1")));
    assert_eq!(
        rules(&right),
        [""; 0],
        "the message by hand is right but for what is changed"
    );
}

#[test]
fn what_loses_readings_without_a_refusal_is_a_fault_too() {
    let key = SigningKey::random();
    let mut judge = judge(&key, &[]);
    let mut say = |reading: &Reading, change: fn(&mut Captured)| {
        let mut message = message(OWN, reading.sign(&key).as_bytes());
        change(&mut message);
        judge.judge(&message)
    };
    let rest = |_: &mut Captured| {};
    assert_eq!(rules(&say(&reading(1), |m| m.qos = Some(0))), ["qos"]);
    assert_eq!(rules(&say(&reading(2), |m| m.retain = Some(true))), ["retain"]);
    let changed = Reading {
        wall: Some(NOW - 1),
        ..reading(2)
    };
    assert_eq!(rules(&say(&changed, rest)), ["equivocation"]);
    assert!(say(&reading(2), rest).what.contains("sent again"));
    let backwards = Reading { up_ms: 1, ..reading(3) };
    assert_eq!(rules(&say(&backwards, rest)), ["up-ms"]);
    let rebooted = Reading {
        boot: BootId { counter: 3, random: 8 },
        ..reading(1)
    };
    assert_eq!(rules(&say(&rebooted, rest)), ["boot"]);
    let ahead = say(&reading(7), rest);
    assert!(!ahead.findings[0].is_fault && rules(&ahead) == ["order"]);
    let missing = judge.missing();
    assert!(missing.len() == 1 && missing[0].is_fault, "{missing:?}");
    assert!(missing[0].sentence.contains("4 to 6"), "{missing:?}");
}

#[test]
fn a_clock_that_is_not_believed_is_advice() {
    let key = SigningKey::random();
    for (wall, quality) in [
        (Some(NOW / 1_000), TimeQuality::Synced),
        (Some(NOW + 3_600_000), TimeQuality::Synced),
        (None, TimeQuality::Synced),
    ] {
        let reading = Reading {
            wall,
            time_quality: quality,
            ..reading(1)
        };
        let verdict = judge(&key, &[]).judge(&message(OWN, reading.sign(&key).as_bytes()));
        assert!(
            rules(&verdict) == ["clock"] && !verdict.findings[0].is_fault,
            "{verdict:?}"
        );
    }
    let relative = Reading {
        wall: None,
        time_quality: TimeQuality::Relative,
        ..reading(1)
    };
    assert_eq!(
        rules(&judge(&key, &[]).judge(&message(OWN, relative.sign(&key).as_bytes()))),
        [""; 0]
    );
}

#[test]
fn state_is_json_and_the_gateways_own_topics_are_left_alone() {
    let key = SigningKey::random();
    let judged = |channel: &str, payload: &[u8]| {
        let topic = format!("vitalfog/v1/home-1/scale-1/{channel}");
        judge(&key, &[]).judge(&message(&topic, payload)).findings
    };
    assert_eq!(judged("state", br#"{"online":true}"#), []);
    assert!(!judged("state", b"here")[0].is_fault);
    assert!(judged("state", &[b' '; 5_000])[0].is_fault);
    assert_eq!(judged("ack", b"whatever"), []);
    assert_eq!(judged("error", b"whatever"), []);
}

#[test]
fn who_is_asked_sends_or_says_that_it_is_lost() {
    let key = SigningKey::random();
    let mut judge = judge(&key, &[]);
    let mut say = |channel: &str, payload: &[u8]| {
        let topic = format!("vitalfog/v1/home-1/scale-1/{channel}");
        judge.judge(&message(&topic, payload)).findings
    };
    for seq in [1, 6] {
        say("reading", reading(seq).sign(&key).as_bytes());
    }
    let boot = reading(1).boot;
    let asked = format!(r#"{{"resend":{{"boot":"{boot}","ranges":[[2,4],[5,5]]}}}}"#);
    assert_eq!(say("cmd", asked.as_bytes()), []);
    assert_eq!(say("cmd", b"a command of a later version"), []);
    say("reading", reading(3).sign(&key).as_bytes());
    let lost = format!(r#"{{"online":true,"boot":"{boot}","up_ms":9000,"lost":{{"boot":"{boot}","ranges":[[5,5]]}}}}"#);
    assert_eq!(say("state", lost.as_bytes()), []);
    let found: Vec<_> = judge
        .missing()
        .into_iter()
        .filter(|found| found.rule == "resend")
        .collect();
    assert_eq!(found.len(), 1);
    assert!(
        found[0].is_fault && found[0].sentence.contains("for 2 numbers, 2 first"),
        "{}",
        found[0]
    );
}

#[test]
fn a_counter_without_its_boot_is_worth_nothing() {
    let key = SigningKey::random();
    let judged = |payload: &[u8]| {
        let verdict = judge(&key, &[]).judge(&message("vitalfog/v1/home-1/scale-1/state", payload));
        rules(&verdict)
    };
    assert_eq!(
        judged(br#"{"online":true,"boot":"7-0000000000000001","up_ms":5}"#),
        [""; 0]
    );
    assert_eq!(judged(br#"{"online":true,"up_ms":5}"#), ["state"]);
    assert_eq!(
        judged(br#"{"online":true,"boot":"7-0000000000000001","up_ms":"5"}"#),
        ["state"]
    );
}

#[test]
fn a_sealed_message_is_judged_by_what_is_in_it_and_without_keys_by_its_form() {
    let key = SigningKey::random();
    let gateway = || "home-1".parse().expect("good");
    let network = record::ids::NetworkId(Digest::ZERO);
    let keys = ReadingKeys::generate(network, gateway(), 0).expect("random numbers");
    let others = ReadingKeys::generate(network, gateway(), 0).expect("random numbers");
    let seal = |keys: &ReadingKeys, topic: &str, signed: &[u8]| {
        let topic = Topic::parse(&gateway(), topic).expect("a topic");
        let sealed = keys.current().seal(&topic, signed).expect("seals");
        message(OWN, &sealed.encode())
    };
    let event = OWN.replace("reading", "event");
    let good = |seq| reading(seq).sign(&key).as_bytes().to_vec();
    let mut sick = reading(3);
    sick.observations[0].value = Some(Decimal::whole(7_100));
    let mut cut = seal(&keys, OWN, &good(9));
    cut.payload.pop();
    let cases = [
        (seal(&keys, OWN, &good(1)), vec![]),
        (seal(&keys, OWN, &good(1)), vec![]),
        (seal(&keys, OWN, reading(2).sign_json(&key).as_bytes()), vec![]),
        (seal(&keys, OWN, sick.sign(&key).as_bytes()), vec!["implausible"]),
        (seal(&keys, &event, &good(4)), vec!["not-opened"]),
        (seal(&others, OWN, &good(4)), vec!["not-opened"]),
        (
            seal(&keys, OWN, reading(4).sign(&SigningKey::random()).as_bytes()),
            vec!["wrong-signature"],
        ),
        (cut.clone(), vec!["malformed"]),
        (message(OWN, &good(4)), vec!["unsealed"]),
        (seal(&keys, OWN, &good(4)), vec![]),
    ];
    let seals = |keys: Option<&ReadingKeys>, are_required| Seals {
        keys: keys.cloned(),
        are_required,
    };
    let mut opening = judge(&key, &[]).with_seals(seals(Some(&keys), true));
    for (number, (message, expected)) in cases.iter().enumerate() {
        let verdict = opening.judge(message);
        assert_eq!(rules(&verdict), *expected, "case {number}: {verdict:?}");
        assert!(!format!("{verdict:?}").contains("7100"), "no value is repeated");
    }
    assert_eq!(opening.missing(), []);
    let mut outside = judge(&key, &[]).with_seals(seals(None, false));
    for (message, expected) in [(&cases[0].0, "sealed"), (&cases[4].0, "sealed"), (&cut, "malformed")] {
        let verdict = outside.judge(message);
        assert_eq!(rules(&verdict), [expected]);
        assert_eq!(verdict.findings[0].is_fault, expected == "malformed");
    }
    assert_eq!(rules(&outside.judge(&message(OWN, &good(1)))), Vec::<&str>::new());
}
