//! Faults of disks: a gateway on one that is full, read-only or broken, and killed at any moment; fog nodes on full ones.
//!
//! A program of its own, because some of it cannot run everywhere (it needs root, or strace): that is then said, and counted
//! as not run, never as passed. A word on the command line runs the tests whose names contain it; `--measure READINGS
//! READINGS-IN-A-BUNDLE` measures a spool of so many instead.

#![expect(clippy::print_stdout, reason = "a test program prints what it found")]

mod disks;
mod fog;
mod full_nodes;
mod home;
mod kills;
mod mistyped;
mod mount;
mod publisher;
mod quarantine;
mod spool;

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Instant,
};

/// Whether a test could be run at all.
pub(crate) enum Run {
    Done,
    NotRun(&'static str),
}

type Test = (&'static str, fn() -> Run);

const TESTS: [Test; 12] = [
    ("a_full_disk_stops_the_intake_and_nothing_else", disks::full),
    ("a_read_only_disk_is_said_at_the_start", disks::read_only_at_the_start),
    (
        "a_disk_that_becomes_read_only_ends_the_process",
        disks::read_only_while_it_runs,
    ),
    (
        "a_failed_sync_ends_the_process_and_is_never_repeated",
        disks::failed_sync,
    ),
    (
        "a_gateway_killed_at_any_moment_hands_in_each_reading_once",
        kills::at_any_moment,
    ),
    (
        "ten_thousand_spooled_readings_survive_a_kill_in_their_order",
        kills::ten_thousand_spooled,
    ),
    ("a_stopped_spool_is_listed_inspected_and_carried_away", spool::by_hand),
    ("a_damaged_bundle_is_not_carried_away", spool::damaged),
    (
        "what_was_refused_is_shown_to_who_has_the_key_and_handed_in_again",
        quarantine::handed_in_again,
    ),
    (
        "what_is_mistyped_is_refused_with_what_to_write_instead",
        mistyped::refused,
    ),
    (
        "a_fog_node_with_a_full_disk_refuses_aloud_and_comes_back",
        full_nodes::one,
    ),
    (
        "nothing_is_lost_when_the_disks_of_all_fog_nodes_are_full",
        full_nodes::all,
    ),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|word| word == "--measure") {
        kills::measure(&arguments[at + 1..]);
        return ExitCode::SUCCESS;
    }
    let wanted = |name: &str| {
        let mut words = arguments.iter().filter(|word| !word.starts_with('-')).peekable();
        words.peek().is_none() || words.any(|word| name.contains(word.as_str()))
    };
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, test) in TESTS.iter().filter(|(name, _)| wanted(name)) {
        let begin = Instant::now();
        let said = match catch_unwind(AssertUnwindSafe(test)) {
            Ok(Run::Done) => {
                passed += 1;
                "ok".to_owned()
            }
            Ok(Run::NotRun(why)) => {
                skipped += 1;
                format!("not run: {why}")
            }
            Err(_) => {
                failed += 1;
                "FAILED".to_owned()
            }
        };
        println!("{name} ... {said} ({:.1} s)", begin.elapsed().as_secs_f64());
    }
    println!("faults: {passed} passed, {failed} failed, {skipped} skipped");
    let in_ci = env::vars_os().any(|(name, value)| name == "CI" && value == "true");
    ExitCode::from(u8::from(failed > 0 || (in_ci && skipped > 0)))
}
