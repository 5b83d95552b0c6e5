//! The live status: one screen that is drawn over itself on a terminal, a line now and then elsewhere.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use crate::{
    monitor::{NodeView, ProcessView, Snapshot},
    report::Percentiles,
};

/// How often a line is printed where nothing can be drawn over.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Refused messages that are shown.
const REFUSED_SHOWN: usize = 3;
/// Digits of a head that are shown, after the four that name its algorithm.
const HEAD_DIGITS: std::ops::Range<usize> = 4..16;

/// Standard output. What cannot be written there is left out: the run goes on without a reader.
#[derive(Debug)]
pub struct Screen {
    is_terminal: bool,
    drawn: usize,
    started: Instant,
    last_line: Option<Instant>,
}

impl Screen {
    /// The screen of a run that starts now.
    #[must_use]
    pub fn open() -> Self {
        Self {
            is_terminal: io::stdout().is_terminal(),
            drawn: 0,
            started: Instant::now(),
            last_line: None,
        }
    }

    /// Prints lines that stay.
    pub fn say(&mut self, text: &str) {
        let mut out = String::new();
        self.wipe(&mut out);
        let _ = writeln!(out, "{text}");
        print(&out);
    }

    /// Draws the status over the one before, or prints a line of it if the last one is old.
    pub fn show(&mut self, phase: &str, snapshot: &Snapshot) {
        if !self.is_terminal {
            if self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
                self.last_line = Some(Instant::now());
                print(&format!("{}\n", line(phase, self.started.elapsed(), snapshot)));
            }
            return;
        }
        let lines = screen(phase, self.started.elapsed(), snapshot);
        let mut out = String::new();
        self.wipe(&mut out);
        // Without wrapping, a line is a line on a narrow terminal, too.
        out.push_str("\x1b[?7l");
        lines.iter().for_each(|line| {
            let _ = writeln!(out, "{line}");
        });
        out.push_str("\x1b[?7h");
        self.drawn = lines.len();
        print(&out);
    }

    /// Moves to where the last status began and clears from there on.
    fn wipe(&mut self, out: &mut String) {
        if self.drawn > 0 {
            let _ = write!(out, "\x1b[{}A\x1b[J", self.drawn);
            self.drawn = 0;
        }
    }
}

fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// The whole screen.
fn screen(phase: &str, elapsed: Duration, now: &Snapshot) -> Vec<String> {
    let (fleet, gateway) = (&now.fleet, &now.gateway);
    let mut lines = vec![
        format!(
            "-- {} {} {}",
            clock(elapsed),
            phase,
            "-".repeat(60usize.saturating_sub(phase.len()))
        ),
        format!(
            "devices    {} of {} connected   published {}   acknowledged {}",
            fleet.connected, fleet.devices, fleet.published, fleet.acknowledged
        ),
        format!(
            "gateway    spooled {}   in flight {}   final {}   quarantined {}{}",
            gateway.spooled,
            gateway.in_flight,
            gateway.final_readings,
            gateway.quarantined.total,
            reasons(now)
        ),
        format!(
            "latency    to PUBACK {}   to final {}   to visible {}   (p50/p99)",
            latency(&fleet.latency_ms.publish_to_puback),
            latency(&gateway.latency_ms.publish_to_final),
            latency(&now.publish_to_visible)
        ),
        format!(
            "{:<12} {:>8}  {:<14} {:>8} {:>8}  {:>8}",
            "process", "height", "head", "memory", "peak", "restarts"
        ),
    ];
    lines.extend(now.nodes.iter().map(|node| {
        let (height, head) = height_and_head(node);
        row(&node.process, &height, &head)
    }));
    let others = [&now.broker_process, &now.gateway_process, &now.fleet_process];
    let others = others.into_iter().filter(|process| !process.name.is_empty());
    lines.extend(others.map(|process| row(process, "", "")));
    let refused = gateway.quarantined.recent.iter().rev().take(REFUSED_SHOWN);
    lines.extend(refused.map(|refused| {
        let device = refused.device.as_deref().unwrap_or("an unknown device");
        format!("refused    {device}: {}: {}", refused.reason, refused.detail)
    }));
    lines.extend(now.notices.iter().map(|notice| format!("notice     {notice}")));
    lines
}

/// The same in one line.
fn line(phase: &str, elapsed: Duration, now: &Snapshot) -> String {
    let heights: Vec<_> = now.nodes.iter().map(|node| height_and_head(node).0).collect();
    format!(
        "{} {phase}: connected {}/{}, published {}, acknowledged {}, spooled {}, in flight {}, final {}, quarantined {}{}, \
         heights {}, to final {}",
        clock(elapsed),
        now.fleet.connected,
        now.fleet.devices,
        now.fleet.published,
        now.fleet.acknowledged,
        now.gateway.spooled,
        now.gateway.in_flight,
        now.gateway.final_readings,
        now.gateway.quarantined.total,
        reasons(now),
        heights.join("/"),
        latency(&now.gateway.latency_ms.publish_to_final),
    )
}

fn row(process: &ProcessView, height: &str, head: &str) -> String {
    let memory = megabytes(process.rss_bytes);
    let peak = megabytes(process.report.rss_bytes);
    format!(
        "{:<12} {height:>8}  {head:<14} {memory:>8} {peak:>8}  {:>8}",
        process.name, process.report.restarts
    )
}

fn height_and_head(node: &NodeView) -> (String, String) {
    node.head.as_ref().map_or_else(
        || ("-".to_owned(), String::new()),
        |head| (head.height.to_string(), head.digest.to_string()[HEAD_DIGITS].to_owned()),
    )
}

fn reasons(now: &Snapshot) -> String {
    let by_reason = &now.gateway.quarantined.by_reason;
    let all: Vec<_> = by_reason
        .iter()
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    if all.is_empty() {
        String::new()
    } else {
        format!(" ({})", all.join(", "))
    }
}

fn latency(of: &Percentiles) -> String {
    let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}"));
    format!("{}/{} ms", ms(of.p50), ms(of.p99))
}

fn megabytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{} MB", bytes / 1_000_000))
}

fn clock(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Refused;

    fn snapshot() -> Snapshot {
        let mut now = Snapshot {
            nodes: vec![NodeView::default(); 4],
            ..Snapshot::default()
        };
        now.fleet.published = 1_234;
        now.gateway.quarantined.total = 2;
        now.gateway
            .quarantined
            .by_reason
            .insert("wrong-signature".to_owned(), 2);
        now.gateway.quarantined.recent = vec![Refused {
            device: None,
            reason: "wrong-signature".to_owned(),
            detail: "sign it".to_owned(),
        }];
        now.notices
            .push("gateway was started again (signal: 9 (SIGKILL))".to_owned());
        now
    }

    #[test]
    fn the_screen_shows_counters_reasons_and_notices() {
        let text = screen("running", Duration::from_secs(3_661), &snapshot()).join("\n");
        for part in [
            "01:01:01 running",
            "published 1234",
            "quarantined 2 (wrong-signature 2)",
            "sign it",
            "SIGKILL",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn the_line_has_no_line_end() {
        let line = line("running", Duration::ZERO, &snapshot());
        assert!(!line.contains('\n') && line.contains("heights -/-/-/-"), "{line}");
    }
}
