//! The house rules that a machine can hold, one function each: files in, violations out.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::File;

/// What a rule found: `path:line what`.
pub(crate) type Violations = Vec<String>;

/// Lines of a file outside its tests, at most.
const FILE_LINES_MAX: usize = 400;
/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 14] = [
    "util", "utils", "common", "models", "types", "helper", "helpers", "service", "services", "manager", "managers",
    "handler", "handlers", "misc",
];
/// The rooms of a fog node from the outside in; a room may name rooms further in, and itself.
const DOORS: [&[&str]; 13] = [
    &["main", "lib", "command"],
    &["observer"],
    &["node"],
    &["audit", "edge", "members", "replace"],
    &["config"],
    &["http", "consensus"],
    &["follow", "possession"],
    &["erasure"],
    &["recovery"],
    &["intake", "documents", "query", "projection", "retention", "disclosure"],
    &["mempool", "proofs"],
    &["chain", "vault", "index", "keyring"],
    &["telemetry", "turnstile", "containment", "decision", "space"],
];
/// Crates (a name, or a beginning with `*`) and the only rooms that may name them.
const FENCES: [(&str, &[&str]); 5] = [
    ("commonware_*", &["fog-node/src/consensus"]),
    ("sqlx", &["fog-node/src/index"]),
    (
        "rumqttc",
        &[
            "gateway/src/mqtt",
            "gateway/src/homeassistant",
            "firmware-sim/src/device",
            "sandbox/src/bench/publisher",
            "sandbox/src/bench/bare",
        ],
    ),
    ("rmqtt", &["gateway/src/mqtt"]),
    ("warp", &["fog-node/src/http"]),
];

fn rust(files: &[File]) -> impl Iterator<Item = &File> {
    files.iter().filter(|f| f.path.ends_with(".rs"))
}

/// What runs outside tests: below `src`, without the modules that exist under `#[cfg(test)]` only.
fn production(files: &[File]) -> impl Iterator<Item = &File> {
    let tests: BTreeSet<String> = rust(files).flat_map(File::test_modules).collect();
    rust(files).filter(move |f| f.path.contains("/src/") && !tests.contains(&f.path))
}

/// The first line of a file is `//! ` and a sentence.
pub(crate) fn purpose(files: &[File]) -> Violations {
    let says = |f: &&File| {
        f.text
            .lines()
            .next()
            .and_then(|l| l.strip_prefix("//! "))
            .is_some_and(|l| l.split(' ').count() >= 3)
    };
    rust(files)
        .filter(|f| !says(f))
        .map(|f| format!("{}:1 does not begin with `//! ` and what it is for", f.path))
        .collect()
}

/// A file stays short enough to be read in one go.
pub(crate) fn length(files: &[File]) -> Violations {
    let lines = |f: &File| f.text.lines().take_while(|l| l.trim() != "#[cfg(test)]").count();
    production(files)
        .filter(|f| lines(f) > FILE_LINES_MAX)
        .map(|f| {
            format!(
                "{} has {} lines before its tests, at most {FILE_LINES_MAX}",
                f.path,
                lines(f)
            )
        })
        .collect()
}

/// A module is `x.rs` (and a folder `x/`), named after a thing of the field.
pub(crate) fn names(files: &[File]) -> Violations {
    let mut found = Vec::new();
    for file in rust(files) {
        let parts: Vec<&str> = file.path.trim_end_matches(".rs").split('/').collect();
        if parts.last() == Some(&"mod") {
            found.push(format!("{} is a mod.rs: call it by its name", file.path));
        }
        found.extend(
            parts
                .iter()
                .filter(|p| EMPTY_NAMES.contains(p))
                .map(|p| format!("{}: {p:?} says nothing", file.path)),
        );
        let tokens = file.tokens();
        for pair in tokens
            .windows(2)
            .filter(|w| w[0].1 == "mod" && EMPTY_NAMES.contains(&w[1].1.as_str()))
        {
            found.push(format!(
                "{}:{} module {:?} says nothing",
                file.path, pair[1].0, pair[1].1
            ));
        }
    }
    found
}

/// The rooms of the fog node open inwards only.
pub(crate) fn doors(files: &[File]) -> Violations {
    let rank = |room: &str| DOORS.iter().position(|rooms| rooms.contains(&room));
    let mut found = Vec::new();
    for file in production(files).filter(|f| f.path.starts_with("fog-node/src/")) {
        let Some((_, room)) = file.room() else { continue };
        let Some(own) = rank(room) else {
            found.push(format!(
                "{}: room {room:?} has no place in the order of rooms (tests/tidy/rules.rs, DOORS)",
                file.path
            ));
            continue;
        };
        for (line, used) in file.rooms_used() {
            if used != room && rank(&used).is_some_and(|other| other <= own) {
                found.push(format!(
                    "{}:{line} {room} may not name {used}: doors open inwards",
                    file.path
                ));
            }
        }
    }
    found
}

/// An engine or library is named in its own room only.
pub(crate) fn fences(files: &[File]) -> Violations {
    let mut found = Vec::new();
    for file in production(files) {
        let tokens = file.tokens();
        for (at, (line, token)) in tokens.iter().enumerate() {
            let is_named = |fence: &str| {
                fence
                    .strip_suffix('*')
                    .map_or(token == fence, |start| token.starts_with(start))
            };
            let Some((_, rooms)) = FENCES.iter().find(|(fence, _)| is_named(fence)) else {
                continue;
            };
            let is_path = tokens.get(at + 1).is_some_and(|(_, next)| next == "::");
            let is_import = at > 0 && ["use", "crate"].contains(&tokens[at - 1].1.as_str());
            let is_inside = rooms
                .iter()
                .any(|room| file.path == format!("{room}.rs") || file.path.starts_with(&format!("{room}/")));
            if (is_path || is_import) && !is_inside {
                found.push(format!(
                    "{}:{line} {token} may be named in {} only",
                    file.path,
                    rooms.join(" and ")
                ));
            }
        }
    }
    found
}

/// Inside a crate the rooms form a line: no room is reached from itself.
pub(crate) fn cycles(files: &[File]) -> Violations {
    let mut crates: BTreeMap<&str, BTreeMap<&str, BTreeSet<String>>> = BTreeMap::new();
    for file in production(files) {
        let Some((krate, room)) = file.room() else { continue };
        if !["lib", "main"].contains(&room) {
            let used = file.rooms_used().into_iter().map(|(_, name)| name);
            let rooms = crates.entry(krate).or_default();
            rooms.entry(room).or_default().extend(used.filter(|name| name != room));
        }
    }
    let circles = crates.into_iter().map(|(krate, rooms)| (krate, in_circles(rooms)));
    circles
        .filter(|(_, rooms)| !rooms.is_empty())
        .map(|(krate, rooms)| format!("{krate}: these rooms name each other in a circle: {rooms:?}"))
        .collect()
}

/// The rooms that are reached from themselves: what is left when rooms that name none of the others, or are named by none of
/// them, have been taken away again and again.
fn in_circles(mut rooms: BTreeMap<&str, BTreeSet<String>>) -> BTreeMap<&str, BTreeSet<String>> {
    loop {
        let before = rooms.len();
        let names: BTreeSet<String> = rooms.keys().map(|&name| name.to_owned()).collect();
        let named: BTreeSet<String> = rooms.values().flatten().cloned().collect();
        rooms.retain(|name, used| named.contains(*name) && !used.is_disjoint(&names));
        if rooms.len() == before {
            return rooms.into_iter().map(|(name, used)| (name, &used & &names)).collect();
        }
    }
}

/// What must not stand in production code.
pub(crate) fn forbidden_code(files: &[File]) -> Violations {
    let mut found = Vec::new();
    for file in production(files) {
        for window in file.tokens().windows(3) {
            let [(line, first), (_, second), (_, third)] = window else {
                continue;
            };
            let what = match (first.as_str(), second.as_str(), third.as_str()) {
                (".", "unwrap", "(") => "unwrap: say why it holds with expect, or handle it",
                ("todo" | "unimplemented" | "dbg", "!", _) => "unfinished code",
                ("#", "[", "allow") | ("!", "[", "allow") => "allow: use expect with a reason",
                ("unbounded_channel" | "unbounded", "(" | "::", _) => {
                    "an unbounded queue: every queue has a named limit"
                }
                _ => continue,
            };
            found.push(format!("{}:{line} {what}", file.path));
        }
    }
    found
}

/// A lock that many share has a comment that says why no task could own the value.
pub(crate) fn shared_locks(files: &[File]) -> Violations {
    let mut found = Vec::new();
    for file in production(files) {
        let (code, text): (Vec<_>, Vec<_>) = (
            file.code().lines().map(str::to_owned).collect(),
            file.text.lines().collect(),
        );
        for (at, line) in code
            .iter()
            .enumerate()
            .filter(|(_, l)| l.contains("Arc<Mutex<") || l.contains("Arc<RwLock<"))
        {
            let above = at.checked_sub(1).map_or("", |n| text[n]).trim_start();
            if !above.starts_with("//") && !text[at].contains(" // ") {
                found.push(format!(
                    "{}:{} shares a lock without a comment that says why: {}",
                    file.path,
                    at + 1,
                    line.trim()
                ));
            }
        }
    }
    found
}

/// Nothing names a folder of the machine it was written on.
pub(crate) fn machine_paths(files: &[File]) -> Violations {
    // Put together here, so that this file does not break its own rule.
    let folders: Vec<String> = ["work", "root", "home", "farm", "studio", "Users"]
        .iter()
        .map(|f| format!("/{f}/"))
        .collect();
    let names = |line: &str, folder: &str| {
        line.match_indices(folder)
            .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-*}".contains(c)))
    };
    let mut found = Vec::new();
    for file in files {
        for (number, line) in (1..).zip(file.text.lines()) {
            if folders.iter().any(|folder| names(line, folder)) {
                found.push(format!("{}:{number} names a folder of a machine", file.path));
            }
        }
    }
    found
}

/// Each dependency of the workspace stands in the root manifest once, with the reason it is there.
pub(crate) fn dependencies(files: &[File]) -> Violations {
    let mut found = Vec::new();
    for file in files.iter().filter(|f| f.path.ends_with("Cargo.toml")) {
        let mut section = "";
        for (number, line) in (1..).zip(file.text.lines()) {
            if line.starts_with('[') {
                section = line.trim();
            } else if section == "[workspace.dependencies]"
                && line.contains('=')
                && !line.starts_with('#')
                && !line.contains("path =")
            {
                let reason = line
                    .rsplit_once(" # ")
                    .map_or(0, |(_, reason)| reason.split_whitespace().count());
                if reason < 2 {
                    found.push(format!("{}:{number} gives no reason for {line:?}", file.path));
                }
            } else if section.ends_with("dependencies]") && section != "[workspace.dependencies]" {
                let is_dependency = line.contains('=') && !line.starts_with('#');
                if is_dependency && !line.contains("workspace = true") {
                    found.push(format!("{}:{number} names a version of its own: {line:?}", file.path));
                }
            }
        }
    }
    found
}
