//! What the commands say of what is mistyped.

use std::fs;

use crate::{Run, home::Home};

/// What nobody knows or understands changes nothing, and the answer says what to write instead.
pub(crate) fn refused() -> Run {
    let home = Home::found(2);
    let key = home.beside("quarantine.key");
    let (id, key) = (home.device(0).id, key.to_str().expect("a path"));
    let (mistyped, meant) = (&id.as_str()[1..], format!("did you mean {id}"));
    let drawn = home.scratch().join("code.svg");
    fs::write(&drawn, "somebody's").expect("written");
    let drawn = drawn.to_str().expect("a path");
    let absent = home.scratch().join("readnigs");
    let absent = absent.to_str().expect("a path");
    let nothing = record::canonical::Digest::ZERO.to_string();
    let refused = |words: &[&str], parts: &[&str]| {
        let (is_done, said) = home.run(words);
        let is_said = parts.iter().all(|part| said.contains(part));
        assert!(!is_done && is_said, "{words:?} says: {said}\nand not: {parts:?}");
    };
    let gateway = home.start();
    refused(
        &["resync", "--device", mistyped],
        &[&meant, "enrolment.json", "claim list"],
    );
    refused(&["resync", "--from", absent], &["readnigs cannot be read"]);
    refused(
        &["assign", "--nobody", "--device", mistyped],
        &[&meant, "enrolment.json"],
    );
    let late = ["assign", "--nobody", "--device", id.as_str(), "--from", "yesterday"];
    refused(&late, &["--from", "yesterday", "2026-11-26T08:00:00Z"]);
    for url in ["http://broker.example:80", "mqtts://broker.example"] {
        let order = ["claim", "new", "--device", "new-1", "--url", url];
        refused(&order, &["--url", url, "mqtts://HOST:PORT"]);
    }
    refused(&["claim", "new", "--device", "New 1"], &["--device", "a-z, 0-9"]);
    refused(
        &["claim", "new", "--device", "new-1", "--svg", drawn],
        &["--svg", "code.svg", "new file"],
    );
    refused(&["reading-key", "drop", "--id", "12fg"], &["--id", "68 lower-case"]);
    assert_eq!(home.run(&["assignments"]), (true, String::new()));
    assert_eq!(
        home.run(&["claim", "list"]),
        (true, String::new()),
        "no code that nobody has"
    );
    gateway.stop();
    refused(&["spool", "inspect", "--bundle", "12"], &["--bundle", "68 lower-case"]);
    refused(&["spool", "inspect", "--bundle", &nothing], &["is not in the queue"]);
    refused(&["refused", "requeue", "--bundle", &nothing], &["gateway refused list"]);
    refused(
        &["quarantine", "list", "--reason", "unkown-device"],
        &["--reason", "`unknown-device`"],
    );
    refused(
        &["quarantine", "show", "--number", "7", "--key", key],
        &["gateway quarantine list"],
    );
    Run::Done
}
