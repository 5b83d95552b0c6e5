//! What the sandbox sets for itself, and with that for every process it starts: rights, limits, and how a panic ends.

use std::{io::Write as _, panic::Location};

use rustix::{
    fs::Mode,
    process::{Resource, Rlimit, getrlimit, setrlimit, umask},
};

/// Files that gateway and fleet have open besides those for devices; measured, it is some twenty.
const FILES_BESIDES: u64 = 256;
/// Files that the gateway has open for each device: from outside, through the door, and to the library behind it.
const FILES_PER_DEVICE: u64 = 3;

/// Files for nobody else, no core dump, as many open files as are allowed, and no run that goes on half dead.
pub fn harden() {
    umask(Mode::RWXG | Mode::RWXO);
    // A core dump would hold the patients' secrets. What cannot be set is inherited as it is.
    let _ = setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    );
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files.maximum,
            ..files
        },
    );
    std::panic::set_hook(Box::new(|panic| {
        let _ = writeln!(std::io::stderr(), "{}", last_words(panic.location()));
        // Every child sees the end of its lifeline.
        std::process::abort();
    }));
}

/// The place and fixed words: a message might hold what was being looked at.
fn last_words(place: Option<&Location<'_>>) -> String {
    let place = place.map(ToString::to_string).unwrap_or_default();
    format!("sandbox: panicked at {place}; it ends, and everything it started with it")
}

/// Why this many devices cannot be served with the open files that a process may have, if they cannot: it may have as many as
/// the system's hard limit says, which only the superuser raises.
#[must_use]
pub fn files_obstacle(devices: u32) -> Option<String> {
    let needed = u64::from(devices) * FILES_PER_DEVICE + FILES_BESIDES;
    let raised = Rlimit {
        current: Some(needed),
        maximum: Some(needed),
    };
    let allowed = getrlimit(Resource::Nofile).maximum?;
    if needed > allowed && setrlimit(Resource::Nofile, raised).is_ok() {
        return None;
    }
    (needed > allowed).then(|| {
        format!(
            "devices: {devices} need {needed} open files in one process, and the system allows {allowed}: raise it \
             (ulimit -Hn {needed}) or ask for fewer"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_the_place_and_no_message() {
        let words = last_words(Some(Location::caller()));
        assert!(words.contains("hardening.rs:"), "{words}");
        assert!(words.ends_with("everything it started with it"), "{words}");
    }

    #[test]
    fn more_devices_than_files_are_refused() {
        assert_eq!(files_obstacle(1), None);
        let allowed = getrlimit(Resource::Nofile).maximum;
        // The kernel allows nobody more than a million, whoever asks.
        assert_eq!(files_obstacle(u32::MAX).is_some(), allowed.is_some());
    }
}
