//! A measurement that somebody may interrupt: whatever it started is stopped, and what failed is said and reported.

use std::path::Path;

use serde_json::Value;

use crate::{fault::Fault, folder::replace_json, interruption, processes::Processes, status::Screen};

/// What it came to.
pub(super) struct Ended<T> {
    pub(super) figures: T,
    /// What the processes did wrong.
    pub(super) failures: Vec<String>,
    pub(super) screen: Screen,
}

/// Measures until it is done, or somebody interrupts.
pub(super) async fn attend<T>(
    measure: impl AsyncFnOnce(&mut Processes, &mut Screen) -> Result<T, Fault>,
) -> Result<Ended<T>, Fault> {
    let interrupted = interruption::listen()?;
    let (mut screen, mut processes) = (Screen::open(), Processes::default());
    let measured = tokio::select! {
        measured = measure(&mut processes, &mut screen) => measured,
        () = interrupted.cancelled() => Err(Fault::Interrupted),
    };
    let failures = processes.stop().await;
    Ok(Ended {
        figures: measured?,
        failures,
        screen,
    })
}

/// Says what failed, and writes the report if one is wished.
pub(super) fn conclude<'a>(
    screen: &mut Screen,
    failures: impl IntoIterator<Item = &'a String>,
    report: Option<&Path>,
    figures: &Value,
) -> Result<(), Fault> {
    for failure in failures {
        screen.say(&format!("FAILED: {failure}"));
    }
    report.map_or(Ok(()), |path| replace_json(path, figures))
}
