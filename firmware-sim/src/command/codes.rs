//! The table of codes, units and limits, as the gateway knows them; `docs/DEVICES.md` has it, and a test compares.

use record::vital::{CodeSystem, SIGNS, Sign, Unit};

/// The table in Markdown.
pub(crate) fn codes() -> String {
    let head =
        "| sign | system and code | UCUM unit | flagged outside | refused outside |\n| --- | --- | --- | --- | --- |";
    let rows = SIGNS
        .iter()
        .flat_map(|sign| sign.units.iter().map(move |unit| row(sign, unit)));
    std::iter::once(head.to_owned())
        .chain(rows)
        .collect::<Vec<_>>()
        .join("\n")
}

fn row(sign: &Sign, unit: &Unit) -> String {
    let system = match sign.system {
        CodeSystem::Loinc => "LOINC",
        CodeSystem::Mdc => "MDC",
    };
    let also = sign.also.map(|(code, _)| format!(" or {code}")).unwrap_or_default();
    let waveform = if sign.waveform { ", samples" } else { "" };
    format!(
        "| {}{waveform} | {system} {}{also} | `{}` | {} to {} | {} to {} |",
        sign.display, sign.code, unit.ucum, unit.flag.0, unit.flag.1, unit.plausible.0, unit.plausible.1
    )
}
