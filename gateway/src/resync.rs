//! `gateway resync`: hands a file of readings to the running gateway, part by part, and says what became of them; or has it ask
//! a device for what is missing.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use reqwest::{Client, StatusCode, header::CONTENT_TYPE};

use record::ids::DeviceId;

use crate::{
    http::{
        resend::{self, Asked, Question},
        resync::{LINE_BYTES_MAX, MEDIA_TYPE, PART_BYTES_MAX, PATH, Tally},
    },
    terminal::steers,
    uplink::body,
};

/// A part must be taken within this time.
const PART_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause after the spool took nothing more.
const FULL_PAUSE: Duration = Duration::from_secs(1);
/// Pauses in which not one line was taken, in a row, before it is given up.
const PAUSES_MAX: u32 = 30;

/// More bytes than a sentence of the gateway has.
const SENTENCE_BYTES_MAX: usize = 4_096;

/// Why a file could not be handed in to its end, or a device not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It cannot be read.
    #[error("{0} cannot be read: {1}")]
    File(String, #[source] io::Error),
    /// It is no file of readings.
    #[error("line {0} is longer than any reading: each line is one message, in its JSON form or as base64")]
    Line(u64),
    /// Nobody answers, or not as a gateway does.
    #[error("the gateway at http://{0} does not answer: it must run while readings are handed in ({1})")]
    Gateway(SocketAddr, reqwest::Error),
    /// Somebody else is there.
    #[error("http://{0} answers {1}: http.listen of the configuration must be the running gateway's")]
    Refused(SocketAddr, StatusCode),
    /// There is no such device.
    #[error("{0}")]
    Unknown(String),
    /// The spool is full, and stays so.
    #[error("the gateway's spool takes nothing now; hand the file in again later: {}", summary(.0))]
    Full(Tally),
}

/// One line that says what became of the readings.
pub(crate) fn summary(tally: &Tally) -> String {
    let refused: u64 = tally.refused.values().sum();
    let mut text = format!("new {}, known {}, refused {refused}", tally.new, tally.known);
    for (at, (reason, count)) in tally.refused.iter().enumerate() {
        let before = if at == 0 { " (" } else { ", " };
        // Writing to a text cannot fail.
        let _ = write!(text, "{before}{reason} {count}");
    }
    if refused > 0 {
        text.push(')');
    }
    text
}

/// Has the gateway ask a device.
pub(crate) async fn ask(gateway: SocketAddr, device: DeviceId) -> Result<Asked, Error> {
    let unreachable = |error| Error::Gateway(gateway, error);
    let question = serde_json::to_vec(&Question { device }).expect("plain fields");
    let request = client(gateway)?
        .post(format!("http://{gateway}{}", resend::PATH))
        .header(CONTENT_TYPE, resend::MEDIA_TYPE)
        .body(question);
    let answer = request.send().await.map_err(unreachable)?;
    match answer.status() {
        StatusCode::OK => answer.json().await.map_err(unreachable),
        StatusCode::UNPROCESSABLE_ENTITY => {
            let said = body(answer, SENTENCE_BYTES_MAX).await.unwrap_or_default();
            Err(Error::Unknown(
                String::from_utf8_lossy(&said).trim_end().replace(steers, " "),
            ))
        }
        status => Err(Error::Refused(gateway, status)),
    }
}

/// One line that says what a device was asked for.
pub(crate) fn asked(asked: &Asked) -> String {
    let ranges = || asked.asked.iter().flat_map(|resend| &resend.ranges);
    if ranges().next().is_none() {
        return "nothing is missing of this device".to_owned();
    }
    let numbers: u64 = ranges().map(|(from, to)| to - from + 1).sum();
    let starts = asked.asked.len();
    format!("asked for {numbers} numbers of {starts} starts; what comes closes its gap, see /status")
}

fn client(gateway: SocketAddr) -> Result<Client, Error> {
    let client = Client::builder().no_proxy().timeout(PART_TIMEOUT).build();
    client.map_err(|error| Error::Gateway(gateway, error))
}

/// Hands in every line of a file.
pub(crate) async fn hand_in(gateway: SocketAddr, file: &Path) -> Result<Tally, Error> {
    let unreachable = |error| Error::Gateway(gateway, error);
    let client = client(gateway)?;
    let unreadable = |error| Error::File(file.display().to_string(), error);
    let mut lines = Lines {
        file: BufReader::new(File::open(file).map_err(unreadable)?),
        name: file.display().to_string(),
        number: 0,
    };
    let mut all = Tally::default();
    let (mut part, mut pauses) = (Vec::new(), 0);
    loop {
        lines.fill(&mut part)?;
        if part.is_empty() {
            return Ok(all);
        }
        let url = format!("http://{gateway}{PATH}");
        let request = client.post(url).header(CONTENT_TYPE, MEDIA_TYPE).body(part.concat());
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        if status != StatusCode::OK && status != StatusCode::SERVICE_UNAVAILABLE {
            return Err(Error::Refused(gateway, status));
        }
        let tally: Tally = answer.json().await.map_err(unreachable)?;
        let taken = usize::try_from(tally.lines).unwrap_or(usize::MAX).min(part.len());
        part.drain(..taken);
        all.add(tally);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            pauses = if taken > 0 { 0 } else { pauses + 1 };
            if pauses > PAUSES_MAX {
                return Err(Error::Full(all));
            }
            tokio::time::sleep(FULL_PAUSE).await;
        }
    }
}

/// The lines of a file.
struct Lines {
    file: BufReader<File>,
    name: String,
    number: u64,
}

impl Lines {
    /// Adds lines up to a part's size, each with its line feed.
    fn fill(&mut self, part: &mut Vec<Vec<u8>>) -> Result<(), Error> {
        let mut bytes: usize = part.iter().map(Vec::len).sum();
        while bytes + LINE_BYTES_MAX + 2 <= PART_BYTES_MAX {
            let mut line = Vec::new();
            let mut limited = (&mut self.file).take(LINE_BYTES_MAX as u64 + 2);
            let read = limited.read_until(b'\n', &mut line);
            read.map_err(|error| Error::File(self.name.clone(), error))?;
            self.number += 1;
            match line.last() {
                None => return Ok(()),
                Some(b'\n') => {}
                Some(_) if line.len() > LINE_BYTES_MAX => return Err(Error::Line(self.number)),
                // The last line has no end.
                Some(_) => line.push(b'\n'),
            }
            bytes += line.len();
            part.push(line);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_in_parts_and_a_giant_line_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("readings");
        let line = vec![b'a'; 50_000];
        std::fs::write(&path, [line.as_slice(); 100].join(&b'\n')).expect("written");
        let read = |path: &Path| Lines {
            file: BufReader::new(File::open(path).expect("opens")),
            name: path.display().to_string(),
            number: 0,
        };
        let (mut lines, mut sizes) = (read(&path), Vec::new());
        loop {
            let mut part = Vec::new();
            lines.fill(&mut part).expect("reads");
            if part.is_empty() {
                break;
            }
            assert!(part.concat().len() <= PART_BYTES_MAX && part.iter().all(|line| line.len() == 50_001));
            sizes.push(part.len());
        }
        assert_eq!(sizes.iter().sum::<usize>(), 100);
        std::fs::write(&path, vec![b'a'; LINE_BYTES_MAX + 3]).expect("written");
        assert!(matches!(read(&path).fill(&mut Vec::new()), Err(Error::Line(1))));
    }

    #[test]
    fn what_was_asked_is_counted() {
        let none = Asked { asked: Vec::new() };
        assert_eq!(asked(&none), "nothing is missing of this device");
        let two: Asked = serde_json::from_str(
            r#"{"asked":[{"boot":"7-0000000000000001","ranges":[[4,5],[9,9]]},{"boot":"8-0000000000000001","ranges":[[1,1]]}]}"#,
        )
        .expect("JSON");
        assert!(asked(&two).starts_with("asked for 4 numbers of 2 starts"));
    }

    #[test]
    fn the_summary_names_each_reason() {
        let mut tally = Tally {
            new: 3,
            ..Tally::default()
        };
        assert_eq!(summary(&tally), "new 3, known 0, refused 0");
        tally.refused = [("malformed", 1), ("wrong-unit", 2)]
            .map(|(r, n)| (r.to_owned(), n))
            .into();
        assert_eq!(summary(&tally), "new 3, known 0, refused 3 (malformed 1, wrong-unit 2)");
    }

    #[tokio::test]
    async fn without_a_gateway_it_says_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("readings");
        std::fs::write(&path, "x\n").expect("written");
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let nobody = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .expect("a port");
        let error = hand_in(nobody, &path).await.expect_err("nobody is there");
        assert!(error.to_string().contains("must run"), "{error}");
        let absent = folder.path().join("readnigs");
        let error = hand_in(nobody, &absent).await.expect_err("no such file");
        assert!(error.to_string().contains("readnigs cannot be read"), "{error}");
    }
}
