//! The bytes and digests of every encoded type, pinned: changing one is a decision (a new version), never a fix.
//!
//! `bytes.hex` holds the binary forms, `texts.txt` the JSON ones; each line is a name and the form. All keys and inputs are
//! fixed. After a decision to change a format, `GOLDEN=rewrite cargo test --release --workspace --test golden` writes both
//! files anew; the diff of them is what is to be reviewed.

mod agreed;
mod measured;

use std::{fs, path::PathBuf};

use record::{canonical, signature::SigningKey};
use serde::{Serialize, de::DeserializeOwned};

/// One form of one value.
pub(crate) struct Form {
    name: &'static str,
    bytes: Vec<u8>,
    /// Whether the bytes give the same value back.
    survives: bool,
}

/// The canonical form of a value.
pub(crate) fn form<T: Serialize + DeserializeOwned + PartialEq>(name: &'static str, value: &T) -> Form {
    let bytes = canonical::encode(value);
    let survives = canonical::decode::<T>(&bytes, bytes.len()).is_ok_and(|read| read == *value);
    Form { name, bytes, survives }
}

/// A form that is not read back by itself: a digest, a signed message.
pub(crate) fn fixed(name: &'static str, bytes: &[u8]) -> Form {
    Form {
        name,
        bytes: bytes.to_vec(),
        survives: true,
    }
}

/// The JSON form of a value.
pub(crate) fn text<T: Serialize + DeserializeOwned + PartialEq>(name: &'static str, value: &T) -> Form {
    let bytes = serde_json::to_vec(value).expect("our types have a JSON form");
    let survives = serde_json::from_slice::<T>(&bytes).is_ok_and(|read| read == *value);
    Form { name, bytes, survives }
}

/// A key that is the same in every run.
pub(crate) fn key(seed: u8) -> SigningKey {
    use ed25519_dalek::pkcs8::{EncodePrivateKey as _, spki::der::pem::LineEnding};
    let key = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
    let pem = key.to_pkcs8_pem(LineEnding::LF).expect("encodes");
    SigningKey::from_pem(&pem).expect("a key of our own making")
}

/// Reads a name, a digest or anything else that has a text.
pub(crate) fn named<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("well formed")
}

fn path(file: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "golden", file]
        .iter()
        .collect()
}

/// The golden form with this name, if the file has one.
pub(crate) fn golden(file: &str, name: &str) -> Option<String> {
    let lines = fs::read_to_string(path(file)).ok()?;
    lines
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(n, _)| *n == name)
        .map(|(_, form)| form.to_owned())
}

/// Whether somebody has decided to write the files anew.
pub(crate) fn is_rewritten() -> bool {
    std::env::var_os("GOLDEN").is_some_and(|v| v == "rewrite")
}

/// Compares forms with their file, or writes it.
fn compare(file: &str, forms: &[Form], print: fn(&[u8]) -> String) {
    let lines: Vec<String> = forms
        .iter()
        .map(|f| format!("{} {}", f.name, print(&f.bytes)))
        .collect();
    if is_rewritten() {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI compares golden files, it never writes them"
        );
        fs::write(path(file), lines.join("\n") + "\n").expect("writable");
        return;
    }
    let golden = fs::read_to_string(path(file)).expect("the golden file is committed");
    let golden: Vec<&str> = golden.lines().collect();
    let changed: Vec<_> = lines.iter().filter(|line| !golden.contains(&line.as_str())).collect();
    let gone: Vec<_> = golden.iter().filter(|line| !lines.iter().any(|l| l == *line)).collect();
    assert!(
        changed.is_empty() && gone.is_empty(),
        "{file}: now\n{changed:#?}\nbut pinned is\n{gone:#?}"
    );
    assert_eq!(lines, golden, "{file}: the order changed");
}

fn utf8(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("JSON is UTF-8")
}

fn bytes() -> Vec<Form> {
    measured::bytes().into_iter().chain(agreed::bytes()).collect()
}

fn texts() -> Vec<Form> {
    measured::texts().into_iter().chain(agreed::texts()).collect()
}

#[test]
fn every_binary_form_is_as_pinned() {
    compare("bytes.hex", &bytes(), |bytes| hex::encode(bytes));
}

#[test]
fn every_text_form_is_as_pinned() {
    compare("texts.txt", &texts(), utf8);
}

#[test]
fn every_form_gives_the_value_back() {
    let lost: Vec<_> = bytes()
        .iter()
        .chain(&texts())
        .filter(|f| !f.survives)
        .map(|f| f.name)
        .collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[test]
fn no_name_and_no_form_stands_twice() {
    for forms in [bytes(), texts()] {
        for (at, form) in forms.iter().enumerate() {
            let twin = forms[..at]
                .iter()
                .find(|other| other.name == form.name || other.bytes == form.bytes);
            assert!(twin.is_none(), "{} is {}", form.name, twin.map_or("", |t| t.name));
        }
    }
}
