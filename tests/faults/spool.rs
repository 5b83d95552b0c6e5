//! What an operator does with the spool of a stopped gateway: list, inspect, carry away, hand in by hand.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use crate::{
    Run,
    disks::{each_once, publish},
    fog::Fog,
    home::Home,
};

/// The commands as OPERATIONS.md has them, and curl as the hand that carries.
pub(crate) fn by_hand() -> Run {
    if !Command::new("curl")
        .arg("--version")
        .output()
        .is_ok_and(|ran| ran.status.success())
    {
        return Run::NotRun("needs curl");
    }
    let home = Home::found(3);
    let mut devices: Vec<_> = (0..3).map(|index| home.device(index)).collect();
    let gateway = home.start();
    publish(&home, &gateway, &mut devices, 4);
    let (is_done, said) = home.run(&["spool", "list"]);
    assert!(!is_done && said.contains("stop it first"), "{said}");
    gateway.stop();
    let (is_done, listed) = home.run(&["spool", "list"]);
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split('\t').collect()).collect();
    assert!(is_done && !rows.is_empty(), "{listed}");
    let readings: usize = rows.iter().map(|row| row[4].parse::<usize>().expect("a number")).sum();
    assert_eq!(readings, 12, "{listed}");
    let (is_done, inspected) = home.run(&["spool", "inspect", "--bundle", rows[0][0]]);
    assert!(is_done && inspected.contains("payload\tintact"), "{inspected}");
    assert!(
        inspected.contains("signature\tholds") && inspected.contains("category\tvitals"),
        "{inspected}"
    );
    let folder = home.scratch().join("carried");
    let to = folder.to_str().expect("a path");
    let (is_done, said) = home.run(&["spool", "export", "--to", to]);
    assert!(is_done, "{said}");
    let (is_done, said) = home.run(&["spool", "export", "--to", to]);
    assert!(!is_done && said.contains("not empty"), "{said}");
    let mut files: Vec<_> = fs::read_dir(&folder)
        .expect("lists")
        .map(|file| file.expect("lists").path())
        .collect();
    files.sort();
    assert_eq!(files.len(), rows.len());
    let fog = Fog::start(&home, false);
    let tls = &home.network.gateway.tls;
    for file in &files {
        assert_eq!(
            fs::metadata(file).expect("is there").permissions().mode() & 0o777,
            0o600
        );
        let handed = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--cacert"])
            .arg(&home.network.ca_file)
            .arg("--cert")
            .arg(&tls.certificate)
            .arg("--key")
            .arg(&tls.private_key)
            .args(["-H", "Content-Type: application/vnd.ipld.dag-cbor", "--data-binary"])
            .arg(format!("@{}", file.display()))
            .arg(format!("{}/api/v1/bundles", home.network.nodes[0].url))
            .output()
            .expect("runs");
        assert!(handed.status.success(), "{handed:?}");
    }
    each_once(&home, &fog, &devices);
    // The gateway, started again, hands the same bundles in: they are the same, and it forgets them for their receipts.
    let gateway = home.start();
    home.until("all of it is forgotten", |status| status["spooled_bundles"] == 0);
    each_once(&home, &fog, &devices);
    gateway.stop();
    Run::Done
}

/// What the disk has altered is not handed to anybody, and the exit code says so.
pub(crate) fn damaged() -> Run {
    let home = Home::found(1);
    let mut devices = vec![home.device(0)];
    let gateway = home.start();
    publish(&home, &gateway, &mut devices, 3);
    gateway.stop();
    let (_, listed) = home.run(&["spool", "list"]);
    let first = listed.split('\t').next().expect("a bundle");
    let before = home.scratch().join("before");
    assert!(
        home.run(&["spool", "export", "--to", before.to_str().expect("a path")])
            .0
    );
    let exported = fs::read_dir(&before)
        .expect("lists")
        .map(|file| file.expect("lists").path());
    let exported = exported.min().expect("one at least");
    let bundle = fs::read(&exported).expect("reads");
    // One byte of its end, where the store keeps the bundle in one piece.
    let file = home.data_dir().join("outbox.redb");
    let mut spool = fs::read(&file).expect("reads");
    let needle = &bundle[bundle.len() - 64..];
    // The store may still hold an older copy of the page.
    let copies: Vec<_> = (0..spool.len() - 64)
        .filter(|at| spool[*at..].starts_with(needle))
        .collect();
    assert!(!copies.is_empty(), "it is in the file");
    copies.into_iter().for_each(|at| spool[at + 32] ^= 1);
    fs::write(&file, spool).expect("writes");
    let after = home.scratch().join("after");
    let (is_done, said) = home.run(&["spool", "export", "--to", after.to_str().expect("a path")]);
    let (_, inspected) = home.run(&["spool", "inspect", "--bundle", first]);
    // Either the store finds its page altered, or we find the bundle altered: nobody takes it for good.
    assert!(!is_done, "{said}");
    let is_good = inspected.contains("payload\tintact") && inspected.contains("signature\tholds");
    assert!(!is_good, "{inspected}");
    Run::Done
}
