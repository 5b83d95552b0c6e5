//! The house rules as tests: each is held over the whole repository, and each is shown to catch its violation.

#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;

use std::path::Path;

use rules::Violations;
use source::File;

/// What is read: code, manifests, documents, scripts.
const ENDINGS: [&str; 15] = [
    "LICENSE", ".rs", ".toml", ".md", ".sh", ".py", ".sql", ".json", ".yml", ".conf", ".acl", "run", ".cddl", ".js",
    ".c",
];

fn house() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("each crate lies in the root");
    source::files(root, &ENDINGS)
}

fn file(path: &str, text: &str) -> File {
    File {
        path: path.to_owned(),
        text: text.to_owned(),
    }
}

fn held(rule: fn(&[File]) -> Violations) {
    let found = rule(&house());
    assert!(found.is_empty(), "{} violation(s):\n{}", found.len(), found.join("\n"));
}

/// Whether the rule finds exactly this many violations in one small file.
fn finds(rule: fn(&[File]) -> Violations, path: &str, text: &str) -> usize {
    rule(&[file(path, text)]).len()
}

#[test]
fn the_whole_house_is_read() {
    let house = house();
    for path in [
        "Cargo.toml",
        "record/src/reading.rs",
        "fog-node/src/lib.rs",
        "tests/tidy.rs",
        "tests/run",
        ".ci/run",
        "docs/GLOSSARY.md",
    ] {
        assert!(house.iter().any(|f| f.path == path), "{path}");
    }
    assert!(house.iter().all(|f| !f.path.contains("target/")));
}

#[test]
fn every_file_says_what_it_is_for() {
    held(rules::purpose);
    assert_eq!(finds(rules::purpose, "x/src/a.rs", "use std::fmt;\n"), 1);
    assert_eq!(finds(rules::purpose, "x/src/a.rs", "//! A.\n"), 1);
    assert_eq!(finds(rules::purpose, "x/src/a.rs", "//! What a is for.\n"), 0);
}

#[test]
fn no_file_is_longer_than_one_reads() {
    held(rules::length);
    assert_eq!(finds(rules::length, "x/src/a.rs", &"let x;\n".repeat(401)), 1);
    let apart = [
        file("x/src/a.rs", "#[cfg(test)]\nmod tests;\n"),
        file("x/src/a/tests.rs", &"let x;\n".repeat(401)),
    ];
    assert_eq!(rules::length(&apart).len(), 0);
    assert_eq!(rules::length(&apart[1..]).len(), 1);
    let tests = format!(
        "{}#[cfg(test)]\nmod tests {{\n{}}}\n",
        "let x;\n".repeat(400),
        "let x;\n".repeat(100)
    );
    assert_eq!(finds(rules::length, "x/src/a.rs", &tests), 0);
}

#[test]
fn every_module_is_named_after_a_thing() {
    held(rules::names);
    assert_eq!(finds(rules::names, "x/src/a/mod.rs", ""), 1);
    assert_eq!(finds(rules::names, "x/src/utils.rs", ""), 1);
    assert_eq!(finds(rules::names, "x/src/helpers/a.rs", ""), 1);
    assert_eq!(finds(rules::names, "x/src/a.rs", "mod common {}"), 1);
    assert_eq!(finds(rules::names, "x/src/a.rs", "// mod common {}"), 0);
}

#[test]
fn doors_open_inwards() {
    held(rules::doors);
    let outwards = [
        ("fog-node/src/vault.rs", "use crate::http::Fault;"),
        ("fog-node/src/vault/embedded.rs", "fn a() { crate::intake::b(); }"),
        ("fog-node/src/index.rs", "use crate::{telemetry, chain::Chain};"),
        ("fog-node/src/chain.rs", "use super::mempool::Mempool;"),
        ("fog-node/src/http.rs", "use crate::config::Config;"),
        ("fog-node/src/attic.rs", ""),
    ];
    for (path, text) in outwards {
        assert_eq!(finds(rules::doors, path, text), 1, "{path}: {text}");
    }
    let inwards = [
        (
            "fog-node/src/http/bundles.rs",
            "use crate::{http::fault::Fault, intake, vault::{Held, Vault}};",
        ),
        ("fog-node/src/node.rs", "use crate::{config::Config, consensus, http};"),
        (
            "fog-node/src/vault.rs",
            "#[cfg(test)]\nmod tests { use crate::http::Fault; }",
        ),
        (
            "fog-node/src/vault.rs",
            "//! Unlike `crate::http::x`.\nconst A: &str = \"crate::http\";",
        ),
    ];
    for (path, text) in inwards {
        assert_eq!(finds(rules::doors, path, text), 0, "{path}: {text}");
    }
}

#[test]
fn engines_stay_behind_their_fences() {
    held(rules::fences);
    assert_eq!(
        finds(
            rules::fences,
            "fog-node/src/node.rs",
            "use commonware_runtime::Spawner;"
        ),
        1
    );
    assert_eq!(
        finds(rules::fences, "fog-node/src/query.rs", "fn a() { sqlx::query(); }"),
        1
    );
    assert_eq!(finds(rules::fences, "gateway/src/intake.rs", "use rumqttc::v5;"), 1);
    assert_eq!(
        finds(rules::fences, "firmware-sim/src/fleet.rs", "use rumqttc as mqtt;"),
        1
    );
    assert_eq!(finds(rules::fences, "fog-node/src/httpish.rs", "use warp::Filter;"), 1);
    assert_eq!(
        finds(rules::fences, "fog-node/src/http/server.rs", "use warp::Filter;"),
        0
    );
    assert_eq!(
        finds(rules::fences, "fog-node/src/consensus.rs", "use commonware_p2p::x;"),
        0
    );
    assert_eq!(
        finds(
            rules::fences,
            "fog-node/src/chain.rs",
            "// the time warp::x\nlet warp = 9;"
        ),
        0
    );
}

#[test]
fn no_room_is_entered_twice() {
    held(rules::cycles);
    let circle = [
        file("x/src/a.rs", "use crate::b::B;"),
        file("x/src/b/inner.rs", "fn f() { crate::c::f() }"),
        file("x/src/c.rs", "use super::a;"),
    ];
    assert_eq!(rules::cycles(&circle).len(), 1);
    assert_eq!(rules::cycles(&circle[..2]).len(), 0);
    let within = [
        file("x/src/a.rs", "use crate::a::inner;"),
        file("x/src/a/inner.rs", "use crate::a::A; use super::B;"),
    ];
    assert_eq!(rules::cycles(&within).len(), 0);
}

#[test]
fn nothing_is_unfinished_or_unbounded() {
    held(rules::forbidden_code);
    let found = [
        "fn f() { x.unwrap(); }",
        "fn f() { todo!() }",
        "fn f() { unimplemented!(\"later\") }",
        "#[allow(dead_code)] fn f() {}",
        "let (a, b) = mpsc::unbounded_channel();",
    ];
    for text in found {
        assert_eq!(finds(rules::forbidden_code, "x/src/a.rs", text), 1, "{text}");
    }
    let fine = [
        "// x.unwrap()",
        "let s = \"todo!()\";",
        "#[cfg(test)]\nmod tests { fn f() { x.unwrap() } }",
        "x.unwrap_or_default()",
    ];
    for text in fine {
        assert_eq!(finds(rules::forbidden_code, "x/src/a.rs", text), 0, "{text}");
    }
}

#[test]
fn a_shared_lock_says_why() {
    held(rules::shared_locks);
    assert_eq!(
        finds(
            rules::shared_locks,
            "x/src/a.rs",
            "struct A {\n    b: Arc<Mutex<u8>>,\n}"
        ),
        1
    );
    assert_eq!(
        finds(
            rules::shared_locks,
            "x/src/a.rs",
            "struct A {\n    // Written by a callback that cannot wait.\n    b: Arc<Mutex<u8>>,\n}"
        ),
        0
    );
}

#[test]
fn nothing_names_a_folder_of_a_machine() {
    held(rules::machine_paths);
    let path = ["", "root", ".cargo"].join("/");
    assert_eq!(finds(rules::machine_paths, "docs/x.md", &format!("see {path}")), 1);
    assert_eq!(
        finds(rules::machine_paths, "docs/x.md", &format!("see target{path}")),
        0
    );
}

#[test]
fn every_dependency_has_a_reason() {
    held(rules::dependencies);
    let manifest = |line: &str| format!("[workspace.dependencies]\n{line}\n");
    assert_eq!(finds(rules::dependencies, "Cargo.toml", &manifest("serde = \"1\"")), 1);
    assert_eq!(
        finds(
            rules::dependencies,
            "Cargo.toml",
            &manifest("serde = \"1\" # encodes everything")
        ),
        0
    );
    assert_eq!(
        finds(
            rules::dependencies,
            "Cargo.toml",
            &manifest("record = { path = \"record\" }")
        ),
        0
    );
    assert_eq!(
        finds(rules::dependencies, "x/Cargo.toml", "[dependencies]\nserde = \"1\"\n"),
        1
    );
    assert_eq!(
        finds(
            rules::dependencies,
            "x/Cargo.toml",
            "[dev-dependencies]\nserde.workspace = true\n"
        ),
        0
    );
}

#[test]
fn the_documents_name_what_exists() {
    held(documents::documents);
    let broken = "See `x/src/gone.rs`, [that](gone.md) and test `a_thing_that_never_was`.";
    let fine = "See `x/src/a.rs`, [this](x/src/a.rs), [out](https://example.org) and `a_thing_that_is`.";
    let code = file("x/src/a.rs", "fn a_thing_that_is() {}");
    assert_eq!(
        documents::documents(&[file("README.md", broken), code.clone()]).len(),
        3
    );
    assert_eq!(documents::documents(&[file("README.md", fine), code]).len(), 0);
}
