//! F11 to F13: a disk that is full, read-only, or says that a sync has failed.

use std::{ffi::OsString, fs, path::Path, process::Command, time::Instant};

use rumqttc::PubAckReason;

use crate::{
    Run,
    fog::Fog,
    home::{EVENTUALLY, Gateway, Home, eventually},
    mount::Mount,
    publisher::{Answer, Device},
};

const NO_MOUNT: Run = Run::NotRun("needs root, and unshare and nsenter of util-linux");
const NO_STRACE: Run = Run::NotRun("needs strace, and the right to trace");
/// What the log says when the spool's disk fails.
const FAILED: &str = "the spool's disk failed";
const RESERVE_BYTES: u64 = 2 << 20;
const DEVICES: usize = 4;

/// F11: keeps the oldest, refuses the newest, says so once, and goes on by itself; killed meanwhile, it starts all the same.
pub(crate) fn full() -> Run {
    let home = Home::found(DEVICES).set("GATEWAY_OUTBOX__DISK_RESERVE_BYTES", RESERVE_BYTES);
    let Some(disk) = Mount::of(home.data_dir(), 12 << 20) else {
        return NO_MOUNT;
    };
    let mut gateway = home.start_within(&disk.prefix());
    let mut devices: Vec<_> = (0..DEVICES).map(|index| home.device(index)).collect();
    publish(&home, &gateway, &mut devices, 20);
    disk.fill("ballast", RESERVE_BYTES + (1 << 20));
    let refused = publish_until_refused(&home, &mut devices);
    assert_eq!(refused, Answer::Refused(PubAckReason::QuotaExceeded));
    home.until("the status says so", |status| status["full"] == "disk");
    assert_eq!(gateway.says("the disk is full"), 1, "{}", gateway.log());
    // Somebody else takes the rest, too. What becomes final now cannot even be forgotten.
    disk.fill("more", 0);
    let fog = Fog::start(&home, false);
    eventually("all of it is final", || {
        fog.readings(&home).0.values().map(Vec::len).sum::<usize>() >= total(&devices)
    });
    assert!(gateway.is_running(), "{}", gateway.log());
    home.until("it is still full", |status| status["full"] == "disk");
    gateway.kill();
    gateway = home.start_within(&disk.prefix());
    let mut again = Answer::Lost;
    eventually("it answers on a full disk", || {
        again = home.runtime.block_on(devices[0].publish(1));
        again != Answer::Lost
    });
    assert_eq!(again, Answer::Acknowledged, "what it has is known on a full disk, too");
    assert!(matches!(publish_until_refused(&home, &mut devices), Answer::Refused(_)));
    fs::remove_file(disk.path("more")).expect("is there");
    fs::remove_file(disk.path("ballast")).expect("is there");
    home.until("it takes readings again", |status| status["full"].is_null());
    publish(&home, &gateway, &mut devices, 5);
    home.until("all of it is forgotten", |status| status["spooled_bundles"] == 0);
    assert!(gateway.is_running(), "{}", gateway.log());
    assert_eq!(
        gateway.says("there is room again: new readings"),
        1,
        "{}",
        gateway.log()
    );
    each_once(&home, &fog, &devices);
    Run::Done
}

/// F13 at the start: a clear message, nothing is touched, and mounted writable it goes on.
pub(crate) fn read_only_at_the_start() -> Run {
    let home = Home::found(DEVICES).set("GATEWAY_OUTBOX__DISK_RESERVE_BYTES", RESERVE_BYTES);
    let Some(disk) = Mount::of(home.data_dir(), 12 << 20) else {
        return NO_MOUNT;
    };
    let gateway = home.start_within(&disk.prefix());
    let mut devices = vec![home.device(0)];
    publish(&home, &gateway, &mut devices, 5);
    gateway.kill();
    let before = fs::read(disk.path("outbox.redb")).expect("is there");
    disk.remount("ro");
    let mut refused = home.spawn(&disk.prefix());
    assert_eq!(refused.wait().code(), Some(1));
    assert_eq!(refused.says("its disk is mounted read-only"), 1, "{}", refused.log());
    assert!(
        before == fs::read(disk.path("outbox.redb")).expect("is there"),
        "it was touched"
    );
    disk.remount("rw");
    let gateway = home.start_within(&disk.prefix());
    let fog = Fog::start(&home, false);
    home.until("all of it is forgotten", |status| status["spooled_bundles"] == 0);
    each_once(&home, &fog, &devices);
    gateway.stop();
    Run::Done
}

/// F13 while it runs: every write fails as on a disk that the kernel has remounted.
pub(crate) fn read_only_while_it_runs() -> Run {
    broken("pwrite64", "EROFS", 120)
}

/// F12: the process ends at once, syncs never again, says it once; everything acknowledged is there after the restart.
pub(crate) fn failed_sync() -> Run {
    broken("fdatasync,fsync", "EIO", 40)
}

fn broken(calls: &str, error: &str, from: u32) -> Run {
    let home = Home::found(DEVICES);
    let trace = home.scratch().join("trace");
    if !may_trace(home.scratch()) {
        return NO_STRACE;
    }
    // Counted for each thread: the one that opens makes fewer calls than that, the one that commits soon more.
    let inject = format!("inject={calls}:error={error}:when={from}+");
    let trace_calls = format!("trace={calls}");
    let prefix = [
        "strace",
        "-f",
        "-qq",
        "-o",
        trace.to_str().expect("a path"),
        "-e",
        &trace_calls,
        "-e",
        &inject,
    ];
    let mut gateway = home.start_within(&prefix.map(OsString::from));
    let mut devices: Vec<_> = (0..DEVICES).map(|index| home.device(index)).collect();
    let lost = publish_until_refused(&home, &mut devices);
    assert_eq!(lost, Answer::Lost, "{}", gateway.log());
    let ended = gateway.wait();
    assert!(!ended.success(), "{ended:?}");
    assert_eq!(gateway.says(FAILED), 1, "{}", gateway.log());
    let trace = fs::read_to_string(&trace).expect("a trace");
    assert_eq!(
        trace.matches("(INJECTED)").count(),
        1,
        "the first failure is the last call:\n{trace}"
    );
    assert!(total(&devices) > 0, "some were acknowledged before");
    let fog = Fog::start(&home, true);
    let gateway = home.start();
    publish(&home, &gateway, &mut devices, 3);
    home.until("all of it is forgotten", |status| status["spooled_bundles"] == 0);
    each_once(&home, &fog, &devices);
    gateway.stop();
    Run::Done
}

fn may_trace(folder: &Path) -> bool {
    let traced = Command::new("strace")
        .args(["-qq", "-o"])
        .arg(folder.join("probe"))
        .args(["-e", "inject=fsync:error=EIO:when=1+", "true"])
        .status();
    traced.is_ok_and(|status| status.success())
}

/// Each device publishes so many more readings, and all are acknowledged, each in its time.
pub(crate) fn publish(home: &Home, gateway: &Gateway, devices: &mut [Device], readings: u64) {
    let each = devices.iter_mut().map(|device| async move {
        let until = device.last_seq + readings;
        let mut since = Instant::now();
        while device.last_seq < until {
            match device.publish_next().await {
                Answer::Acknowledged => since = Instant::now(),
                // The connection broke; a gateway that lives takes the next one.
                Answer::Lost if since.elapsed() < EVENTUALLY => {}
                answer => panic!(
                    "{} of {}: {answer:?} after {:?}; the gateway's last words:\n{}",
                    device.last_seq + 1,
                    device.id,
                    since.elapsed(),
                    gateway.last_words()
                ),
            }
        }
    });
    home.runtime.block_on(futures::future::join_all(each));
}

/// Publishes until one is not acknowledged, and says why not.
fn publish_until_refused(home: &Home, devices: &mut [Device]) -> Answer {
    let each = devices.iter_mut().map(|device| async move {
        loop {
            let answer = device.publish_next().await;
            if answer != Answer::Acknowledged {
                return answer;
            }
            assert!(device.last_seq < 20_000, "never refused");
        }
    });
    let mut answers = home.runtime.block_on(futures::future::join_all(each));
    answers.swap_remove(0)
}

pub(crate) fn total(devices: &[Device]) -> usize {
    devices.iter().map(|device| device.acknowledged.len()).sum()
}

/// Each reading that was acknowledged was handed in, in one bundle only, and none that was never made.
pub(crate) fn each_once(home: &Home, fog: &Fog, devices: &[Device]) {
    let (readings, _) = fog.readings(home);
    for device in devices {
        let mut seqs = readings.get(&device.id).cloned().unwrap_or_default();
        seqs.sort_unstable();
        assert!(
            seqs.is_sorted_by(|a, b| a < b),
            "{} handed one in twice: {seqs:?}",
            device.id
        );
        assert!(
            seqs.last().is_none_or(|last| *last <= device.last_seq + 1),
            "{} never made it",
            device.id
        );
        for seq in &device.acknowledged {
            assert!(seqs.binary_search(seq).is_ok(), "{} lost {seq}", device.id);
        }
    }
}

/// For tests that start it several times.
pub(crate) fn kill_after(gateway: Gateway, pause: std::time::Duration) {
    std::thread::sleep(pause);
    gateway.kill();
}
