//! The conformance run for a foreign device: each captured message is judged, and any fault fails it.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, Read as _, Write},
    path::{Path, PathBuf},
};

use record::{
    ids::{DeviceId, GatewayId, NetworkId},
    signature::PublicKey,
    transit::ReadingKeys,
};
use serde::Deserialize;

use crate::{
    config,
    conformance::{Captured, Finding, Judge, Seals},
};

/// A longer line is no message: four megabytes of hex are more than any broker passes on.
const LINE_BYTES_MAX: u64 = 5 << 20;

/// What to check.
#[derive(Debug, clap::Args)]
pub(super) struct Request {
    /// A JSON line for each message; `-` reads standard input as it comes, e.g. from
    /// `mosquitto_sub .. -F '{"topic":"%t","hex":"%x","qos":%q,"retain":%r}'`.
    capture: PathBuf,
    /// The gateway that the devices belong to.
    #[arg(long)]
    gateway: GatewayId,
    /// A device and its public key in hex, as `keygen` prints it; once for each device.
    #[arg(long, value_name = "NAME=KEY", value_parser = device, required_unless_present = "enrolment")]
    device: Vec<(DeviceId, PublicKey)>,
    /// The gateway's enrolments, JSON, instead of naming devices.
    #[arg(long, value_name = "FILE")]
    enrolment: Option<PathBuf>,
    /// The capture starts while devices run: the first number of a boot need not be 1.
    #[arg(long)]
    from_the_middle: bool,
    /// Say nothing of messages that are good.
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    seals: SealArguments,
}

/// Of gateways to which devices seal their messages.
#[derive(Debug, clap::Args)]
struct SealArguments {
    /// What comes in the clear is a fault, as at a gateway that requires seals.
    #[arg(long)]
    sealed: bool,
    /// The gateway's reading keys (`reading-keys.json` in its data folder), to look into sealed messages: at a desk, never
    /// those of a gateway that people use.
    #[arg(long, value_name = "FILE", requires = "network")]
    reading_keys: Option<PathBuf>,
    /// The network that the gateway belongs to.
    #[arg(long)]
    network: Option<NetworkId>,
}

impl SealArguments {
    fn seals(&self, gateway: &GatewayId) -> Result<Seals, String> {
        let keys = self.reading_keys.as_ref().zip(self.network).map(|(path, network)| {
            let text = config::secret(path)?;
            let keys = ReadingKeys::read(&text, (network, gateway));
            keys.map_err(|e| format!("reading keys {}: {e}", path.display()))
        });
        Ok(Seals {
            keys: keys.transpose()?,
            are_required: self.sealed,
        })
    }
}

fn device(text: &str) -> Result<(DeviceId, PublicKey), String> {
    let (name, key) = text
        .split_once('=')
        .ok_or("it must be NAME=KEY, the key in 64 hex digits")?;
    let key = key.parse().map_err(|e| format!("the key of {name}: {e}"))?;
    Ok((name.parse().map_err(|e| format!("{e}"))?, key))
}

/// What is needed of a line of the enrolments.
#[derive(Deserialize)]
struct Enrolled {
    device: DeviceId,
    key: PublicKey,
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    messages: u64,
    pub(super) faults: u64,
    advice: u64,
}

impl Request {
    /// Judges every message and prints what there is to say.
    ///
    /// # Errors
    /// A sentence: a file cannot be read, or nobody reads what is printed.
    pub(super) fn check(&self, out: &mut impl Write) -> Result<Outcome, String> {
        let judge = Judge::new(self.gateway.clone(), self.keys()?, !self.from_the_middle);
        let mut judge = judge.with_seals(self.seals.seals(&self.gateway)?);
        let mut input = self.open()?;
        let (mut outcome, mut number) = (Outcome::default(), 0_u64);
        while let Some(line) = next_line(&mut input).map_err(|e| format!("{}: {e}", self.capture.display()))? {
            number += 1;
            if line.trim().is_empty() {
                continue;
            }
            outcome.messages += 1;
            let (what, findings) = match Captured::parse(&line) {
                Ok(message) => {
                    let verdict = judge.judge(&message);
                    (verdict.what, verdict.findings)
                }
                Err(error) => (error.to_string(), vec![unreadable()]),
            };
            if !(self.quiet && findings.is_empty()) {
                self.print(out, (&format!("line {number}: {what}"), &findings), &mut outcome)?;
            }
        }
        let missing = judge.missing();
        if !missing.is_empty() {
            self.print(out, ("at the end", &missing), &mut outcome)?;
        }
        let Outcome {
            messages,
            faults,
            advice,
        } = outcome;
        say(
            out,
            &format!("{messages} messages, {faults} faults, {advice} pieces of advice"),
        )?;
        Ok(outcome)
    }

    fn print(
        &self,
        out: &mut impl Write,
        (what, findings): (&str, &[Finding]),
        outcome: &mut Outcome,
    ) -> Result<(), String> {
        let good = if findings.is_empty() { ": good" } else { "" };
        say(out, &format!("{what}{good}"))?;
        for finding in findings {
            *if finding.is_fault {
                &mut outcome.faults
            } else {
                &mut outcome.advice
            } += 1;
            say(out, &format!("  {finding}"))?;
        }
        Ok(())
    }

    fn keys(&self) -> Result<HashMap<DeviceId, PublicKey>, String> {
        let mut keys: HashMap<_, _> = self.device.iter().cloned().collect();
        if let Some(path) = &self.enrolment {
            let text = std::fs::read(path).map_err(|e| format!("enrolment {}: {e}", path.display()))?;
            let enrolled: Vec<Enrolled> =
                serde_json::from_slice(&text).map_err(|e| format!("enrolment {}: {e}", path.display()))?;
            keys.extend(enrolled.into_iter().map(|one| (one.device, one.key)));
        }
        Ok(keys)
    }

    fn open(&self) -> Result<Box<dyn BufRead>, String> {
        if self.capture == Path::new("-") {
            return Ok(Box::new(BufReader::new(io::stdin())));
        }
        let file = File::open(&self.capture).map_err(|e| format!("cannot read {}: {e}", self.capture.display()))?;
        Ok(Box::new(BufReader::new(file)))
    }
}

fn unreadable() -> Finding {
    Finding {
        is_fault: true,
        rule: "capture",
        sentence: "the capture has a line that is no message; nothing can be said about it".to_owned(),
    }
}

/// The next line, or `None` at the end.
fn next_line(input: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.len() as u64 == LINE_BYTES_MAX {
        return Err(io::Error::other(format!("a line has more than {LINE_BYTES_MAX} bytes")));
    }
    Ok(Some(String::from_utf8_lossy(&line).into_owned()))
}

fn say(out: &mut impl Write, text: &str) -> Result<(), String> {
    writeln!(out, "{text}").map_err(|e| format!("writing to standard output: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use record::{
        ids::BootId,
        reading::{Measured, MeasurementState, Reading, TimeQuality, VERSION},
        signature::SigningKey,
    };

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        request: Request,
    }

    fn captured(key: &SigningKey, seq: u64) -> String {
        let reading = Reading {
            v: VERSION,
            device: "scale-1".parse().expect("good"),
            boot: BootId { counter: 1, random: 2 },
            seq,
            up_ms: seq,
            wall: None,
            time_quality: TimeQuality::Relative,
            observations: vec![Measured {
                code: "29463-7".to_owned(),
                value: Some(record::decimal::Decimal::whole(71)),
                samples: None,
                unit: "kg".to_owned(),
                state: MeasurementState::Valid,
            }],
        };
        crate::conformance::captured_line("vitalfog/v1/home-1/scale-1/reading", reading.sign(key).as_bytes(), 1)
    }

    fn check(lines: &[String], key: &SigningKey, flags: &[&str]) -> (Outcome, String) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("capture.ndjson");
        std::fs::write(&path, lines.join("\n")).expect("written");
        let (path, device) = (path.display().to_string(), format!("scale-1={}", key.public()));
        let args = ["check", &path, "--gateway", "home-1", "--device", &device];
        let line = Line::try_parse_from(args.iter().chain(flags)).expect("good");
        let mut out = Vec::new();
        let outcome = line.request.check(&mut out).expect("read");
        (outcome, String::from_utf8(out).expect("text"))
    }

    #[test]
    fn a_good_capture_has_no_fault_and_a_gap_or_a_stranger_has() {
        let (key, other) = (SigningKey::random(), SigningKey::random());
        let good: Vec<_> = (1..=3).map(|seq| captured(&key, seq)).collect();
        assert_eq!(check(&good, &key, &[]).0.faults, 0);
        let (outcome, said) = check(&good[1..], &key, &[]);
        assert!(outcome.faults == 1 && said.contains("1 never came"), "{said}");
        assert_eq!(check(&good[1..], &key, &["--from-the-middle"]).0.faults, 0);
        let (outcome, said) = check(&[captured(&other, 1)], &key, &["--quiet"]);
        assert!(outcome.faults == 1 && said.contains("wrong-signature"), "{said}");
        let (outcome, said) = check(&["Ada is ill".to_owned()], &key, &[]);
        assert!(outcome.faults == 1 && !said.contains("Ada"), "{said}");
    }
}
