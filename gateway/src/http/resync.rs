//! `POST /resync`: missing readings handed in from a file, one a line, through the same sink as those of devices.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, Response, StatusCode, body::Incoming, header::CONTENT_TYPE};
use record::reading::READING_BYTES_MAX;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::response;
use crate::{
    intake::Intake,
    outbox::{NotTaken, Verdict},
};

/// Where it is.
pub const PATH: &str = "/resync";
/// What is handed in; a page in a browser on this machine may not send this type without asking first.
pub const MEDIA_TYPE: &str = "application/x-ndjson";
/// Bytes in one part, at most.
pub const PART_BYTES_MAX: usize = 1 << 20;
/// Bytes in a line, at most: the longest reading in base64.
pub const LINE_BYTES_MAX: usize = READING_BYTES_MAX.div_ceil(3) * 4;
/// Readings that are with the spool at a time: enough to share a commit, and few beside what devices send.
const AT_ONCE_MAX: usize = 64;
/// A part must have arrived within this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What became of the lines of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Lines that were dealt with, in their order.
    pub lines: u64,
    /// Readings that were missing.
    pub new: u64,
    /// Readings that were there already.
    pub known: u64,
    /// Lines that went to quarantine, by reason.
    pub refused: BTreeMap<String, u64>,
}

impl Tally {
    fn count(&mut self, verdict: Option<Verdict>) {
        self.lines += 1;
        match verdict {
            None => {}
            Some(Verdict::Spooled(_)) => self.new += 1,
            Some(Verdict::Duplicate(_)) => self.known += 1,
            Some(Verdict::Quarantined(_, refusal)) => {
                *self.refused.entry(refusal.reason.as_str().to_owned()).or_default() += 1;
            }
        }
    }

    /// Adds what became of further lines.
    pub fn add(&mut self, more: Self) {
        self.lines += more.lines;
        self.new += more.new;
        self.known += more.known;
        for (reason, count) in more.refused {
            *self.refused.entry(reason).or_default() += count;
        }
    }
}

/// Takes one part of a file.
pub(super) async fn answer(intake: &Intake, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let is_right = request.headers().get(CONTENT_TYPE).is_some_and(|of| of == MEDIA_TYPE);
    if !is_right {
        let say = "send lines of application/x-ndjson\n";
        return response(StatusCode::UNSUPPORTED_MEDIA_TYPE, "text/plain", say);
    }
    let body = Limited::new(request.into_body(), PART_BYTES_MAX).collect();
    let Ok(Ok(body)) = timeout(BODY_TIMEOUT, body).await else {
        let say = format!("the part did not come in time, or has more than {PART_BYTES_MAX} bytes\n");
        return response(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", say);
    };
    let (tally, stopped) = hand_in(intake, &body.to_bytes()).await;
    let status = match stopped {
        None => StatusCode::OK,
        Some(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let tally = serde_json::to_string(&tally).expect("a tally has string keys");
    response(status, "application/json", tally)
}

/// Hands in the lines in their order, up to the first that the spool does not take now.
async fn hand_in(intake: &Intake, part: &Bytes) -> (Tally, Option<NotTaken>) {
    // What follows the last line feed is no line.
    let count = part.iter().filter(|byte| **byte == b'\n').count() + usize::from(!part.ends_with(b"\n"));
    let lines = part.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).take(count);
    let messages: Vec<_> = lines.map(|line| (!line.is_empty()).then(|| message(line))).collect();
    let mut verdicts = stream::iter(messages)
        .map(|message| async move {
            match message {
                None => Ok(None),
                Some(message) => intake.take_back(&message).await.map(Some),
            }
        })
        .buffered(AT_ONCE_MAX);
    let mut tally = Tally::default();
    while let Some(verdict) = verdicts.next().await {
        match verdict {
            Ok(verdict) => tally.count(verdict),
            Err(stopped) => return (tally, Some(stopped)),
        }
    }
    (tally, None)
}

/// A line is the JSON form of a message, or the base64 of its bytes.
fn message(line: &[u8]) -> Bytes {
    // What is neither goes to quarantine as it is, with the reason.
    STANDARD
        .decode(line)
        .map_or_else(|_| Bytes::copy_from_slice(line), Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{Config, tests::Home};

    #[tokio::test]
    async fn missing_readings_are_taken_from_lines_as_from_devices() {
        let home = Home::open();
        for seq in [1, 5] {
            home.spool(&home.scale, seq).await;
        }
        let cose = |seq| STANDARD.encode(home.scale.reading(seq, 80).as_bytes());
        let json = {
            let measured = crate::outbox::tests::measured("29463-7", record::decimal::Decimal::whole(80), "kg");
            let text = home.scale.unsigned(3, vec![measured]).sign_json(&home.scale.key);
            String::from_utf8(text.as_bytes().to_vec()).expect("JSON")
        };
        let forged = {
            let mut bytes = home.scale.reading(4, 80).as_bytes().to_vec();
            *bytes.last_mut().expect("bytes") ^= 1;
            STANDARD.encode(&bytes)
        };
        let file = format!("{}\n\n{json}\r\n{forged}\nnot a reading\n{}\n", cose(2), cose(2));
        let (tally, stopped) = hand_in(&home.intake, &Bytes::from(file)).await;
        assert_eq!(stopped, None);
        assert_eq!((tally.lines, tally.new, tally.known), (6, 2, 1), "{tally:?}");
        assert_eq!(
            tally.refused,
            [("malformed", 1), ("wrong-signature", 1)]
                .map(|(r, n)| (r.to_owned(), n))
                .into()
        );
        assert_eq!(home.outbox.gaps().await[0].missing, [(4, 4)]);
        let (last, _) = hand_in(&home.intake, &Bytes::from(cose(4))).await;
        assert_eq!((last.lines, last.new), (1, 1));
        assert_eq!(home.outbox.gaps().await, []);
    }

    #[tokio::test]
    async fn a_full_spool_says_how_far_it_came() {
        let home = Home::with(Config {
            bytes_max: 8_000,
            ..Config::default()
        });
        let lines: Vec<_> = (1..=200)
            .map(|seq| STANDARD.encode(home.scale.reading(seq, 80).as_bytes()))
            .collect();
        let (tally, stopped) = hand_in(&home.intake, &Bytes::from(lines.join("\n"))).await;
        assert_eq!(stopped, Some(NotTaken::Full));
        assert!(
            tally.new > 0 && tally.new == tally.lines && tally.lines < 200,
            "{tally:?}"
        );
        let kept = home.outbox.report().await.expect("runs").counters.acknowledged;
        assert!(kept >= tally.new, "what is counted is durable");
    }
}
