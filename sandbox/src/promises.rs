//! The promises of a run, checked from the outside: what was acknowledged, what the chain holds, what the hospital is served.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use record::{
    canonical::Digest,
    decimal::Decimal,
    ids::{BootId, DeviceId, ReadingId},
    reading::Samples,
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Readings named in a sentence, at most.
const EXAMPLES_MAX: usize = 3;

/// What the fleet says was acknowledged to it: each reading, with the values it sent.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged(BTreeMap<ReadingId, Vec<Measured>>);

/// A value as it was sent.
#[derive(Clone, Debug, Deserialize)]
pub struct Measured {
    code: String,
    #[serde(default)]
    value: Option<Box<RawValue>>,
    #[serde(default)]
    samples: Option<Digest>,
}

/// What is compared: a number with its exact digits, or a block of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Number(Decimal),
    Samples(Digest),
}

impl Measured {
    fn content(&self) -> Option<Content> {
        let number = self.value.as_ref().and_then(|number| number.get().parse().ok());
        number
            .map(Content::Number)
            .or_else(|| self.samples.map(Content::Samples))
    }
}

#[derive(Deserialize)]
struct Line {
    device: DeviceId,
    boot: BootId,
    seq: u64,
    #[serde(default)]
    observations: Vec<Measured>,
}

impl Acknowledged {
    /// Reads the fleet's list, one JSON object a line. A last line without its end was being written when the fleet was
    /// killed: it is left out, its reading counts as not acknowledged.
    ///
    /// # Errors
    /// Which line is not of the promised shape.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut readings = BTreeMap::new();
        for (number, line) in text
            .split_inclusive('\n')
            .enumerate()
            .filter(|(_, line)| line.ends_with('\n'))
        {
            let line: Line = serde_json::from_str(line).map_err(|e| format!("line {}: {e}", number + 1))?;
            let id = ReadingId {
                device: line.device,
                boot: line.boot,
                seq: line.seq,
            };
            readings.insert(id, line.observations);
        }
        Ok(Self(readings))
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }
}

/// What an auditor found on the chain: how often each reading is committed to, and what does not hold.
#[derive(Clone, Debug, Default)]
pub struct OnChain {
    readings: BTreeMap<ReadingId, u64>,
    faults: Vec<String>,
}

impl OnChain {
    /// A reading inside a final bundle.
    pub fn found(&mut self, reading: ReadingId) {
        *self.readings.entry(reading).or_default() += 1;
    }

    /// Something that does not hold.
    pub fn fault(&mut self, sentence: String) {
        self.faults.push(sentence);
    }

    /// Readings committed to, each time counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.readings.values().sum()
    }

    /// How often a reading is committed to.
    #[must_use]
    pub fn times(&self, reading: &ReadingId) -> u64 {
        self.readings.get(reading).copied().unwrap_or_default()
    }

    /// What does not hold.
    #[must_use]
    pub fn faults(&self) -> &[String] {
        &self.faults
    }
}

/// What the hospital is served.
#[derive(Clone, Debug, Default)]
pub struct Served {
    observations: HashMap<String, u64>,
    contents: BTreeMap<ReadingId, Vec<(BTreeSet<String>, Content)>>,
    faults: Vec<String>,
}

#[derive(Deserialize)]
struct Resource {
    id: String,
    identifier: Vec<Identifier>,
    code: Concept,
    #[serde(rename = "valueQuantity")]
    quantity: Option<Quantity>,
    #[serde(rename = "valueSampledData")]
    sampled: Option<SampledData>,
    #[serde(default)]
    component: Vec<Part>,
}

#[derive(Deserialize)]
struct Identifier {
    value: String,
}

#[derive(Deserialize)]
struct Part {
    code: Concept,
    #[serde(rename = "valueQuantity")]
    quantity: Option<Quantity>,
    #[serde(rename = "valueSampledData")]
    sampled: Option<SampledData>,
}

#[derive(Deserialize)]
struct SampledData {
    origin: Origin,
    period: Decimal,
    factor: Decimal,
    data: String,
}

#[derive(Deserialize)]
struct Origin {
    value: Decimal,
    code: String,
}

#[derive(Deserialize)]
struct Concept {
    coding: Vec<Coding>,
}

#[derive(Deserialize)]
struct Coding {
    code: String,
}

#[derive(Deserialize)]
struct Quantity {
    value: Box<RawValue>,
}

impl Served {
    /// Takes in one Observation resource of an answer.
    pub fn take_in(&mut self, resource: &RawValue) {
        let read = serde_json::from_str::<Resource>(resource.get()).map_err(|e| e.to_string());
        let read = read.and_then(|r| Ok((reading_id(r.identifier.first().map_or("", |i| &i.value))?, r)));
        match read {
            Err(e) => self
                .faults
                .push(format!("an Observation is not of the promised shape: {e}")),
            Ok((reading, resource)) => {
                let contents = self.contents.entry(reading).or_default();
                let main = Part {
                    code: resource.code,
                    quantity: resource.quantity,
                    sampled: resource.sampled,
                };
                contents.extend(
                    std::iter::once(main)
                        .chain(resource.component)
                        .filter_map(Part::content),
                );
                *self.observations.entry(resource.id).or_default() += 1;
            }
        }
    }

    /// A patient's observations could not be read to the end.
    pub fn fault(&mut self, sentence: String) {
        self.faults.push(sentence);
    }

    fn repeated(&self) -> u64 {
        self.observations.values().map(|times| times - 1).sum()
    }
}

impl Part {
    fn content(self) -> Option<(BTreeSet<String>, Content)> {
        let content = match (self.quantity, self.sampled) {
            (Some(quantity), _) => Content::Number(quantity.value.get().parse().ok()?),
            (None, sampled) => Content::Samples(sampled?.digest()?),
        };
        let codes = self.code.coding.into_iter().map(|coding| coding.code);
        Some((codes.collect(), content))
    }
}

impl SampledData {
    fn digest(self) -> Option<Digest> {
        let data: Result<Vec<i32>, _> = self.data.split(' ').map(str::parse).collect();
        let samples = Samples {
            origin: self.origin.value,
            period_ms: self.period,
            factor: self.factor,
            data: data.ok()?,
        };
        Some(samples.digest(&self.origin.code))
    }
}

fn reading_id(text: &str) -> Result<ReadingId, String> {
    let parts: Vec<_> = text.split('/').collect();
    let [device, boot, seq] = parts[..] else {
        return Err("its identifier is not device/boot/seq".to_owned());
    };
    Ok(ReadingId {
        device: device.parse().map_err(|e: record::ids::BadName| e.to_string())?,
        boot: boot.parse()?,
        seq: seq.parse().map_err(|_| "its sequence number is no number".to_owned())?,
    })
}

/// What became of the promises about readings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Readings acknowledged: to the fleet, and to whoever published by hand.
    pub acknowledged: u64,
    /// Readings on the chain, each time counted.
    pub final_readings: u64,
    /// Of these, readings of devices' starts that are not the fleet's: published by hand.
    pub by_hand: u64,
    /// Readings on the chain of which the fleet does not know that they were acknowledged: it was killed in between.
    pub unconfirmed: u64,
    /// Extra occurrences, on the chain or in the hospital's answers.
    pub duplicates: u64,
    /// Acknowledged readings that are missing on the chain or in the hospital's answers.
    pub gaps: u64,
    /// Every promise that does not hold, in a sentence.
    pub failures: Vec<String>,
}

/// Compares the three lists.
#[must_use]
pub fn judge(acknowledged: &Acknowledged, chain: &OnChain, served: &Served) -> Verdict {
    let starts: BTreeSet<_> = acknowledged.0.keys().map(|id| (&id.device, id.boot)).collect();
    let unknown: Vec<_> = chain
        .readings
        .keys()
        .filter(|id| !acknowledged.0.contains_key(id))
        .collect();
    let (by_fleet, by_hand): (Vec<&ReadingId>, Vec<_>) = unknown
        .into_iter()
        .partition(|id| starts.contains(&(&id.device, id.boot)));
    let everything: BTreeSet<&ReadingId> = acknowledged.0.keys().chain(by_hand.iter().copied()).collect();
    let missing_in =
        |held: &dyn Fn(&ReadingId) -> bool| everything.iter().copied().filter(|id| !held(id)).collect::<Vec<_>>();
    let off_chain = missing_in(&|id| chain.readings.contains_key(id));
    let unserved = missing_in(&|id| served.contents.contains_key(id));
    let unbacked: Vec<_> = served
        .contents
        .keys()
        .filter(|id| !chain.readings.contains_key(id))
        .collect();
    let twice: Vec<_> = chain
        .readings
        .iter()
        .filter(|(_, times)| **times > 1)
        .map(|(id, _)| id)
        .collect();
    let altered: Vec<_> = acknowledged
        .0
        .iter()
        .filter(|(id, sent)| served.alters(id, sent))
        .map(|(id, _)| id)
        .collect();
    let mut failures: Vec<_> = [
        sentence("acknowledged but not on the chain", &off_chain),
        sentence("acknowledged but not served to the hospital", &unserved),
        sentence("on the chain more than once", &twice),
        sentence("served to the hospital but not on the chain", &unbacked),
        sentence("served with a value that is not the one measured", &altered),
    ]
    .into_iter()
    .flatten()
    .collect();
    let repeated = served.repeated();
    if repeated > 0 {
        failures.push(format!("{repeated} observations were served more than once"));
    }
    failures.extend(chain.faults.iter().chain(&served.faults).cloned());
    let missing: BTreeSet<_> = off_chain.into_iter().chain(unserved).collect();
    Verdict {
        acknowledged: everything.len() as u64,
        final_readings: chain.count(),
        by_hand: by_hand.len() as u64,
        unconfirmed: by_fleet.len() as u64,
        duplicates: chain.count() - chain.readings.len() as u64 + repeated,
        gaps: missing.len() as u64,
        failures,
    }
}

impl Served {
    /// Whether a reading is served with another value than was sent; a reading that is not served is another failure.
    fn alters(&self, id: &ReadingId, sent: &[Measured]) -> bool {
        self.contents.get(id).is_some_and(|contents| {
            sent.iter()
                .filter_map(|m| Some((&m.code, m.content()?)))
                .any(|(code, sent)| {
                    !contents
                        .iter()
                        .any(|(codes, content)| codes.contains(code) && *content == sent)
                })
        })
    }
}

fn sentence(what: &str, readings: &[&ReadingId]) -> Option<String> {
    let examples: Vec<_> = readings.iter().take(EXAMPLES_MAX).map(ToString::to_string).collect();
    let (count, examples) = (readings.len(), examples.join(", "));
    (count > 0).then(|| format!("{count} readings are {what}, e.g. {examples}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: &str = r#"{"device":"oximeter-1","boot":"1-0000000000000002","seq":1,"observations":[{"code":"59408-5","value":97.0}]}
{"device":"oximeter-1","boot":"1-0000000000000002","seq":2,"observations":[{"code":"11524-6"}]}
"#;

    fn id(boot: u32, seq: u64) -> ReadingId {
        ReadingId {
            device: "oximeter-1".parse().expect("good"),
            boot: BootId {
                counter: boot,
                random: 2,
            },
            seq,
        }
    }

    fn chain(readings: &[ReadingId]) -> OnChain {
        let mut chain = OnChain::default();
        readings.iter().cloned().for_each(|reading| chain.found(reading));
        chain
    }

    fn served(readings: &[(ReadingId, &str)]) -> Served {
        let mut served = Served::default();
        for (reading, value) in readings {
            let text = format!(
                r#"{{"resourceType":"Observation","id":"{reading}","identifier":[{{"value":"{reading}"}}],
                "code":{{"coding":[{{"code":"2708-6"}},{{"code":"59408-5"}}]}},"valueQuantity":{{"value":{value}}}}}"#
            );
            served.take_in(&RawValue::from_string(text).expect("JSON"));
        }
        served
    }

    #[test]
    fn everything_in_its_place_is_no_failure() {
        let sent = Acknowledged::parse(SENT).expect("parses");
        let verdict = judge(
            &sent,
            &chain(&[id(1, 1), id(1, 2)]),
            &served(&[(id(1, 1), "97.0"), (id(1, 2), "0")]),
        );
        assert_eq!(
            verdict,
            Verdict {
                acknowledged: 2,
                final_readings: 2,
                ..Verdict::default()
            }
        );
    }

    #[test]
    fn a_missing_reading_is_a_gap_once() {
        let sent = Acknowledged::parse(SENT).expect("parses");
        let verdict = judge(&sent, &chain(&[id(1, 1)]), &served(&[(id(1, 1), "97.0")]));
        assert_eq!((verdict.gaps, verdict.failures.len()), (1, 2));
        assert!(
            verdict.failures[0].contains("oximeter-1/1-0000000000000002/2"),
            "{:?}",
            verdict.failures
        );
    }

    #[test]
    fn what_happens_twice_is_counted() {
        let sent = Acknowledged::parse(SENT).expect("parses");
        let chain = chain(&[id(1, 1), id(1, 2), id(1, 2)]);
        let verdict = judge(
            &sent,
            &chain,
            &served(&[(id(1, 1), "97.0"), (id(1, 1), "97.0"), (id(1, 2), "0")]),
        );
        assert_eq!(
            (verdict.duplicates, verdict.final_readings, verdict.failures.len()),
            (2, 3, 2)
        );
    }

    #[test]
    fn an_altered_value_is_found() {
        let sent = Acknowledged::parse(SENT).expect("parses");
        // Another number, and the same with other digits.
        for value in ["97.1", "97", "97.00"] {
            let served = served(&[(id(1, 1), value), (id(1, 2), "0")]);
            let verdict = judge(&sent, &chain(&[id(1, 1), id(1, 2)]), &served);
            assert!(
                verdict.failures[0].contains("not the one measured"),
                "{value}: {:?}",
                verdict.failures
            );
        }
    }

    #[test]
    fn an_altered_waveform_is_found() {
        let block = Samples {
            origin: Decimal::whole(0),
            period_ms: "2.778".parse().expect("decimal"),
            factor: "0.0050".parse().expect("decimal"),
            data: vec![-3, 0, 12],
        };
        let line = SENT.lines().nth(1).expect("a waveform").replace(
            r#""11524-6""#,
            &format!(r#""11524-6","samples":"{}""#, block.digest("mV")),
        );
        let sent = Acknowledged::parse(&(line + "\n")).expect("parses");
        let verdict = |data: &str, factor: &str, unit: &str| {
            let reading = id(1, 2);
            let text = format!(
                r#"{{"resourceType":"Observation","id":"{reading}","identifier":[{{"value":"{reading}"}}],
                "code":{{"coding":[{{"code":"11524-6"}}]}},"valueSampledData":{{"origin":{{"value":0,"code":"{unit}"}},
                "period":2.778,"factor":{factor},"dimensions":1,"data":"{data}"}}}}"#
            );
            let mut served = Served::default();
            served.take_in(&RawValue::from_string(text).expect("JSON"));
            judge(&sent, &chain(&[reading]), &served).failures
        };
        assert_eq!(verdict("-3 0 12", "0.0050", "mV"), Vec::<String>::new());
        for failures in [
            verdict("-3 0 13", "0.0050", "mV"),
            verdict("-3 0", "0.0050", "mV"),
            verdict("", "0.0050", "mV"),
            verdict("-3 0 12", "0.005", "mV"),
            verdict("-3 0 12", "0.0050", "uV"),
        ] {
            assert!(failures[0].contains("not the one measured"), "{failures:?}");
        }
    }

    #[test]
    fn a_reading_published_by_hand_counts_as_acknowledged() {
        let sent = Acknowledged::parse(SENT).expect("parses");
        let all = [id(1, 1), id(1, 2), id(9, 1)];
        let verdict = judge(&sent, &chain(&all), &served(&all.clone().map(|id| (id, "97.0"))));
        assert_eq!(
            (verdict.acknowledged, verdict.final_readings, verdict.by_hand),
            (3, 3, 1)
        );
        assert_eq!(verdict.failures, Vec::<String>::new());
    }

    #[test]
    fn what_the_chain_does_not_hold_must_not_be_served() {
        let verdict = judge(
            &Acknowledged::default(),
            &OnChain::default(),
            &served(&[(id(1, 1), "97.0")]),
        );
        assert!(
            verdict.failures[0].contains("not on the chain"),
            "{:?}",
            verdict.failures
        );
    }

    #[test]
    fn a_half_written_last_line_is_not_acknowledged() {
        let half = &SENT[..SENT.len() - 10];
        assert_eq!(Acknowledged::parse(half).expect("parses").count(), 1);
        assert!(
            Acknowledged::parse("{\"device\":1}\n")
                .expect_err("no shape")
                .starts_with("line 1")
        );
    }
}
