//! What an operator does with what was refused: looks at it, and hands it in again.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use rumqttc::PubAckReason;
use serde_json::Value;

use crate::{
    Run,
    disks::publish,
    home::Home,
    publisher::{Answer, Device},
};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("is there").permissions().mode() & 0o777
}

/// Takes a device off the home's list, and gives the list as it was.
fn unlist(list: &Path, device: &Device) -> String {
    let whole = fs::read_to_string(list).expect("the list");
    let mut devices: Vec<Value> = serde_json::from_str(&whole).expect("JSON");
    devices.retain(|one| one["device"] != device.id.as_str());
    fs::write(list, Value::from(devices).to_string()).expect("written");
    whole
}

/// A device was forgotten on the list: what was refused of it is there, opens with the key alone, and is handed in again.
pub(crate) fn handed_in_again() -> Run {
    let home = Home::found(2);
    let (list, key) = (home.beside("enrolment.json"), home.beside("quarantine.key"));
    let (mut forgotten, mut other) = (home.device(0), home.device(1));
    let whole = unlist(&list, &forgotten);
    let gateway = home.start();
    for seq in 1..=2 {
        let answer = home.runtime.block_on(forgotten.publish(seq));
        assert_eq!(answer, Answer::Refused(PubAckReason::NotAuthorized));
    }
    publish(&home, &gateway, std::slice::from_mut(&mut other), 1);
    let (is_done, said) = home.run(&["quarantine", "list"]);
    assert!(!is_done && said.contains("stop it first"), "{said}");
    gateway.stop();

    let (is_done, listed) = home.run(&["quarantine", "list"]);
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split('\t').collect()).collect();
    let bytes = forgotten.reading(1).len().to_string();
    assert!(is_done && rows.len() == 2, "{listed}");
    assert_eq!(rows[0][2..6], ["unknown-device", forgotten.id.as_str(), &bytes, "kept"]);
    let none = home.run(&["quarantine", "list", "--device", other.id.as_str()]);
    assert_eq!(none, (true, String::new()));
    let secret = key.to_str().expect("a path");
    let show = |secret: &str| home.run(&["quarantine", "show", "--number", rows[0][0], "--key", secret]);
    let (is_done, said) = show(secret);
    let signed = hex::encode(forgotten.reading(1));
    assert!(is_done && said.contains(&format!("hex\t{signed}\n")), "{said}");
    let wrong = home.scratch().join("wrong.key");
    fs::write(&wrong, "17".repeat(32)).expect("written");
    fs::set_permissions(&wrong, Permissions::from_mode(0o600)).expect("set");
    let wrong = wrong.to_str().expect("a path");
    let (is_done, said) = show(wrong);
    assert!(
        !is_done && said.contains("does not open it") && !said.contains(&signed),
        "{said}"
    );
    fs::set_permissions(wrong, Permissions::from_mode(0o644)).expect("set");
    assert!(show(wrong).1.contains("0600"));

    let carried = home.scratch().join("refused");
    let to = carried.to_str().expect("a path");
    let export = || {
        let order = [
            "quarantine",
            "export",
            "--reason",
            "unknown-device",
            "--key",
            secret,
            "--to",
            to,
        ];
        home.run(&order)
    };
    let (is_done, said) = export();
    assert!(is_done && said.starts_with("2 messages"), "{said}");
    assert_eq!(mode(&carried), 0o600, "it can be read");
    let (is_done, said) = export();
    assert!(!is_done && said.contains("name a new file"), "{said}");
    fs::write(&list, whole).expect("written");
    let gateway = home.start();
    for said in ["new 2, known 0, refused 0\n", "new 0, known 2, refused 0\n"] {
        assert_eq!(home.run(&["resync", "--from", to]), (true, said.to_owned()));
    }
    home.until("nothing is missing", |status| {
        status["acknowledged"] == 3 && status["gaps"].as_array().is_some_and(Vec::is_empty)
    });
    gateway.stop();
    assert_eq!(home.run(&["quarantine", "list"]), (true, listed.clone()), "as it was");
    Run::Done
}
