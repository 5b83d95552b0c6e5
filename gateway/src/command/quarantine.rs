//! What an operator does with what a stopped gateway has refused: list it, look into it with the quarantine's key, carry it away
//! to hand it in again when what was wrong is mended. Nothing of it is changed.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use record::{bundle::SubjectSecret, ids::DeviceId, reading::Reason};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use serde::{
    Deserialize as _,
    de::{IntoDeserializer, value::Error as WordError},
};
use zeroize::Zeroizing;

use super::{
    home::at,
    spool::{Failure, Opened, with_shelf},
};
use crate::{
    kept::{new_file, sync_name},
    outbox::{NotOpened, Quarantined},
    secret,
    terminal::steers,
};

/// What a private X25519 key begins with as PKCS#8 (RFC 8410), before its 32 bytes.
const PKCS8_X25519: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6e, 0x04, 0x22, 0x04, 0x20,
];
/// Bytes of a private X25519 key.
const KEY_BYTES: usize = 32;

/// What was refused; the gateway must be stopped.
#[derive(Debug, Subcommand)]
pub(super) enum Quarantine {
    /// One line each, the oldest first: number, when, reason, device, bytes, whether the message is kept, what to change.
    List {
        /// The gateway's configuration, TOML.
        #[arg(long)]
        config: PathBuf,
        #[command(flatten)]
        which: Which,
    },
    /// Opens one message with the quarantine's key, and shows it: as text, or in hexadecimal if it is none.
    Show {
        /// The gateway's configuration, TOML.
        #[arg(long)]
        config: PathBuf,
        /// Its number in the list.
        #[arg(long)]
        number: u64,
        /// The private half of `quarantine.key`: 64 hexadecimal digits or PEM, readable by nobody else.
        #[arg(long)]
        key: PathBuf,
    },
    /// Opens them with the quarantine's key, and writes them to a file that `gateway resync --from` hands in. It is readable: it
    /// has what was measured.
    Export {
        /// The gateway's configuration, TOML.
        #[arg(long)]
        config: PathBuf,
        /// The private half of `quarantine.key`: 64 hexadecimal digits or PEM, readable by nobody else.
        #[arg(long)]
        key: PathBuf,
        /// A new file.
        #[arg(long)]
        to: PathBuf,
        #[command(flatten)]
        which: Which,
    },
}

/// Which of them.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// Those refused for this reason alone, e.g. unknown-device.
    #[arg(long, value_parser = reason)]
    reason: Option<Reason>,
    /// Those of this device alone.
    #[arg(long)]
    device: Option<DeviceId>,
}

impl Which {
    fn includes(&self, one: &Quarantined) -> bool {
        self.reason.is_none_or(|reason| reason == one.reason())
            && self.device.as_ref().is_none_or(|device| Some(device) == one.device())
    }
}

impl Quarantine {
    pub(super) fn run(self) -> ExitCode {
        match self {
            Self::List { config, which } => with_shelf(&config, |opened, out| {
                opened.shelf.each_quarantined(|one| {
                    if which.includes(&one) {
                        out.write_all(line(&one).as_bytes())?;
                    }
                    Ok(())
                })
            }),
            Self::Show { config, number, key } => with_shelf(&config, |opened, out| {
                let key = read_key(&key).map_err(Failure::Said)?;
                let one = opened.shelf.quarantined(number)?;
                let one = one.ok_or_else(|| {
                    Failure::Said(format!(
                        "there is no message {number}: `gateway quarantine list` shows those that are there"
                    ))
                })?;
                out.write_all(fields(&one).as_bytes())?;
                let message = one.open(&opened.network, &key);
                let message = message.map_err(|why| Failure::Said(format!("message {number}: {why}")))?;
                Ok(out.write_all(shown(&message).as_bytes())?)
            }),
            Self::Export { config, key, to, which } => with_shelf(&config, |opened, out| {
                let key = read_key(&key).map_err(Failure::Said)?;
                let said = export(opened, (&key, &which), &to)?;
                writeln!(out, "{} messages are in {}", said.written, to.display())?;
                said.complaint()
                    .map_or(Ok(()), |complaint| Err(Failure::Said(complaint)))
            }),
        }
    }
}

/// What an export wrote, and what it could not.
#[derive(Debug, Default)]
struct Carried {
    written: u64,
    not_kept: u64,
    not_opened: u64,
}

impl Carried {
    fn complaint(&self) -> Option<String> {
        let (not_kept, not_opened) = (self.not_kept, self.not_opened);
        (not_kept + not_opened > 0).then(|| {
            format!(
                "{} were left out: of {not_kept} only the reason was kept, {not_opened} do not open with this key or are damaged",
                not_kept + not_opened
            )
        })
    }
}

/// Writes the messages, a line each as `gateway resync` reads them, for nobody else to read; durable on return.
fn export(opened: &Opened, chosen: (&SubjectSecret, &Which), to: &Path) -> Result<Carried, Failure> {
    let failed = |error: io::Error| Failure::Said(format!("--to {}: {error}; name a new file", to.display()));
    let file = new_file(to).map_err(failed)?;
    let carried = carry(opened, chosen, file, failed).and_then(|carried| {
        sync_name(to).map_err(failed)?;
        Ok(carried)
    });
    // Half of it would be readable, and stand in the way of the next try.
    carried.inspect_err(|_| drop(fs::remove_file(to)))
}

fn carry(
    opened: &Opened,
    (key, which): (&SubjectSecret, &Which),
    file: fs::File,
    failed: impl Fn(io::Error) -> Failure,
) -> Result<Carried, Failure> {
    let mut lines = io::BufWriter::new(file);
    let mut carried = Carried::default();
    opened.shelf.each_quarantined(|one| {
        if !which.includes(&one) {
            return Ok(());
        }
        match one.open(&opened.network, key) {
            Ok(message) => {
                writeln!(lines, "{}", STANDARD.encode(&message)).map_err(&failed)?;
                carried.written += 1;
            }
            Err(NotOpened::NotKept) => carried.not_kept += 1,
            Err(NotOpened::OtherKey | NotOpened::Damaged) => carried.not_opened += 1,
        }
        Ok::<_, Failure>(())
    })?;
    let file = lines.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    Ok(carried)
}

fn reason(text: &str) -> Result<Reason, String> {
    let read = Reason::deserialize(IntoDeserializer::<WordError>::into_deserializer(text));
    read.map_err(|error| error.to_string())
}

/// The private half of the quarantine's key.
fn read_key(path: &Path) -> Result<SubjectSecret, String> {
    let sentence = |why: String| format!("--key {}: {why}", path.display());
    let text = Zeroizing::new(secret::read(path).map_err(sentence)?);
    let bytes = match PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()) {
        Ok(pem) => pem.secret_pkcs8_der().strip_prefix(&PKCS8_X25519).map(<[u8]>::to_vec),
        Err(_) => hex::decode(text.trim()).ok(),
    };
    let bytes = bytes.map(Zeroizing::new).filter(|bytes| bytes.len() == KEY_BYTES);
    let expected = "expected the private half of quarantine.key, an X25519 key: 64 hexadecimal digits, or PEM";
    bytes
        .map(SubjectSecret::from_bytes)
        .ok_or_else(|| sentence(expected.to_owned()))
}

fn device(one: &Quarantined) -> &str {
    one.device().map_or("-", DeviceId::as_str)
}

const fn kept(one: &Quarantined) -> &'static str {
    if one.is_kept() { "kept" } else { "not-kept" }
}

fn line(one: &Quarantined) -> String {
    let (when, reason) = (at(one.at_ms()), one.reason().as_str());
    let (number, device, bytes, kept) = (one.number(), device(one), one.size_bytes(), kept(one));
    format!(
        "{number}\t{when}\t{reason}\t{device}\t{bytes}\t{kept}\t{}\n",
        one.detail()
    )
}

fn fields(one: &Quarantined) -> String {
    let lines = [
        ("number", one.number().to_string()),
        ("at", at(one.at_ms())),
        ("reason", one.reason().as_str().to_owned()),
        ("detail", one.detail()),
        ("device", device(one).to_owned()),
        ("bytes", one.size_bytes().to_string()),
    ];
    lines.iter().map(|(name, value)| format!("{name}\t{value}\n")).collect()
}

/// A stranger may have written it, and a terminal would obey what is in it: only text is shown as text.
fn shown(message: &[u8]) -> String {
    let is_text = |text: &&str| !text.chars().any(|c| steers(c) && !matches!(c, '\n' | '\t'));
    match std::str::from_utf8(message).ok().filter(is_text) {
        Some(text) => format!("message\t{text}\n"),
        None => format!("hex\t{}\n", hex::encode(message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::tests::write;

    #[test]
    fn a_key_is_read_in_both_forms_and_anything_else_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("quarantine.key");
        let read = |text: &str| {
            write(&path, text);
            read_key(&path).map(|key| hex::encode(key.secret_bytes()))
        };
        let digits = "70076d0a7318a57d3c16c17251b26645df4c2f92ebc099fbb6a1e8f0f7a1c2b8";
        assert_eq!(read(digits).as_deref(), Ok(digits));
        assert_eq!(read(&format!("{digits}\n")).as_deref(), Ok(digits));
        let pem = |start: &[u8]| {
            let der = [start, &hex::decode(digits).expect("hex")].concat();
            let text = STANDARD.encode(der);
            format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
        };
        assert_eq!(read(&pem(&PKCS8_X25519)).as_deref(), Ok(digits));
        let mut ed25519 = PKCS8_X25519;
        ed25519[11] = 0x70;
        for bad in ["", "ab", &digits[2..], &pem(&ed25519), &pem(&[])] {
            let said = read(bad).expect_err("no key");
            assert!(said.contains("quarantine.key, an X25519 key"), "{said}");
            assert!(bad.len() < 4 || !said.contains(bad), "a secret is not repeated");
        }
    }

    #[test]
    fn what_would_steer_a_terminal_is_shown_in_hexadecimal() {
        assert_eq!(shown(b"{\"reading\":\n\t{}}"), "message\t{\"reading\":\n\t{}}\n");
        assert_eq!(shown(b"\x1b[2J"), "hex\t1b5b324a\n");
        assert_eq!(shown("\u{9b}2J".as_bytes()), "hex\tc29b324a\n");
        assert_eq!(shown(b"a\rb"), "hex\t610d62\n");
        assert_eq!(shown("a\u{202e}b".as_bytes()), "hex\t61e280ae62\n");
        assert_eq!(shown(&[0xff, 0xfe]), "hex\tfffe\n");
    }

    #[test]
    fn a_reason_is_one_of_the_words_that_the_list_shows() {
        assert_eq!(reason("unknown-device"), Ok(Reason::UnknownDevice));
        let said = reason("unkown-device").expect_err("no such word");
        assert!(
            said.contains("unkown-device") && said.contains("`unknown-device`"),
            "{said}"
        );
    }
}
