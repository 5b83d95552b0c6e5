//! What is missing, as the outside sees it: an OperationOutcome beside the matches of a search, one issue a device's start.

use serde_json::{Value as Json, json};

use super::{SYSTEM, instant};
use crate::gaps::{GapReport, Range, Start};

/// The outcome of a search in which readings are missing; `None` if none are. `more` says that devices are left out.
#[must_use]
pub fn gaps(reports: &[GapReport], more: bool) -> Option<Json> {
    let mut issues: Vec<_> = reports.iter().flat_map(of_device).collect();
    if more {
        issues.push(json!({
            "severity": "warning",
            "code": "incomplete",
            "diagnostics": "readings of more devices are missing: ask for fewer patients",
        }));
    }
    (!issues.is_empty()).then(|| json!({"resourceType": "OperationOutcome", "issue": issues}))
}

fn of_device(report: &GapReport) -> Vec<Json> {
    let mut issues: Vec<_> = report
        .missing
        .starts
        .iter()
        .map(|start| of_start(report, start))
        .collect();
    if report.missing.more_ranges > 0 {
        let diagnostics = format!(
            "device {}: {} more ranges of its numbers are missing and not named, of starts before these; \
             reported by gateway {} at {}",
            report.device,
            report.missing.more_ranges,
            report.gateway,
            instant(report.at_ms),
        );
        issues.push(json!({"severity": "warning", "code": "incomplete", "diagnostics": diagnostics}));
    }
    issues
}

/// Numbers are text in the extension: FHIR's whole numbers end at 2^31.
fn of_start(report: &GapReport, start: &Start) -> Json {
    let ranges: Vec<_> = start.missing.iter().map(Range::to_string).collect();
    let missing = ranges.join(",");
    let reported = instant(report.at_ms);
    let diagnostics = format!(
        "device {}, start {}: numbers {missing} are missing of those up to {}; reported by gateway {} at {reported}",
        report.device, start.boot, start.high_seq, report.gateway,
    );
    json!({
        "extension": [{"url": format!("{SYSTEM}:gap"), "extension": [
            {"url": "device", "valueString": report.device.as_str()},
            {"url": "boot", "valueString": start.boot.to_string()},
            {"url": "missing", "valueString": missing},
            {"url": "upto", "valueString": start.high_seq.to_string()},
            {"url": "gateway", "valueString": report.gateway.as_str()},
            {"url": "reported", "valueInstant": reported},
        ]}],
        "severity": "warning",
        "code": "incomplete",
        "diagnostics": diagnostics,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gaps::{Missing, tests::report};

    #[test]
    fn each_start_with_a_gap_is_an_issue_that_names_it() {
        let outcome = gaps(&[report()], false).expect("something is missing");
        let issues = outcome["issue"].as_array().expect("issues");
        assert_eq!(issues.len(), 2);
        assert_eq!(
            issues[0]["diagnostics"],
            "device oximeter-1, start 1-0000000000000002: numbers 1-2,5 are missing of those up to 9; reported by \
             gateway home-1 at 2026-09-21T14:13:20.000Z"
        );
        assert_eq!(issues[0]["extension"][0]["extension"][2]["valueString"], "1-2,5");
    }

    #[test]
    fn what_is_not_named_is_said() {
        assert_eq!(gaps(&[], false), None);
        assert!(gaps(&[], true).is_some());
        let mut cut = report();
        cut.missing.more_ranges = 7;
        let outcome = gaps(&[cut.clone()], true).expect("something is missing");
        let issues = outcome["issue"].as_array().expect("issues");
        assert_eq!(issues.len(), 4);
        assert!(
            issues[2]["diagnostics"]
                .as_str()
                .is_some_and(|text| text.contains("7 more ranges"))
        );
        cut.missing = Missing::default();
        assert_eq!(gaps(&[cut], false), None);
    }
}
