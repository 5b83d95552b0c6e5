//! What all searches share: which parameters a type knows, pages, patients' references, and the searchset.

use std::collections::BTreeSet;

use record::{
    fhir::{self, Resource, Searchset},
    ids::SubjectId,
};

use super::super::{fault::Fault, parameters::Parameters};

/// Matches on a page, if the caller does not say.
pub const COUNT_DEFAULT: u32 = 50;
/// Matches on a page, at most.
pub const COUNT_MAX: u32 = 500;
/// Where the next page begins; opaque to callers.
pub const CURSOR: &str = "_cursor";

/// A search parameter of a type, as the CapabilityStatement lists it.
#[derive(Clone, Copy, Debug)]
pub struct SearchParameter {
    /// Its name.
    pub name: &'static str,
    /// FHIR's kind: token, date, reference, string, number.
    pub kind: &'static str,
    /// How we take it.
    pub documentation: &'static str,
}

/// The one summary that is served: the total alone. Other values are passed over, and that is said.
pub const SUMMARY: (&str, &str) = ("_summary", "count");

/// Result parameters that every search takes and no CapabilityStatement lists.
const RESULT_PARAMETERS: [&str; 4] = ["_count", "_format", "_total", CURSOR];

/// Whether a parameter is used: known, and without a modifier.
#[must_use]
pub fn is_used(known: &[SearchParameter], name: &str) -> bool {
    RESULT_PARAMETERS.contains(&name) || known.iter().any(|parameter| parameter.name == name)
}

/// Refuses what would change the meaning if it were passed over: always a modifier we do not know, and under strict handling
/// every unknown parameter.
///
/// # Errors
/// 400.
pub fn check(known: &[SearchParameter], parameters: &Parameters, strict: bool) -> Result<(), Fault> {
    for (name, _) in parameters.iter() {
        if is_used(known, name) {
            continue;
        }
        if let Some((base, modifier)) = name.split_once(':')
            && known.iter().any(|parameter| parameter.name == base)
        {
            return Err(Fault::invalid(format!(
                "{base} does not support the modifier or type {modifier:?}"
            )));
        }
        if strict {
            let names: Vec<_> = known.iter().map(|parameter| parameter.name).collect();
            return Err(Fault::invalid(format!(
                "{name:?} is no parameter of this search; it takes {}",
                names.join(", ")
            )));
        }
    }
    Ok(())
}

/// How many matches on a page; 0 asks for the total alone.
///
/// # Errors
/// 400.
pub fn count(parameters: &Parameters) -> Result<u32, Fault> {
    if parameters.last(SUMMARY.0) == Some(SUMMARY.1) {
        return Ok(0);
    }
    let Some(text) = parameters.last("_count") else {
        return Ok(COUNT_DEFAULT);
    };
    let count: u32 = text
        .parse()
        .map_err(|_| Fault::invalid("_count is a whole number from 0"))?;
    Ok(count.min(COUNT_MAX))
}

/// A patient as it is referred to: `id`, `Patient/id`, or our own absolute URL; what is no id of ours names nobody.
#[must_use]
pub fn patient(base: &str, reference: &str) -> Option<SubjectId> {
    let relative = reference
        .strip_prefix(base)
        .and_then(|rest| rest.strip_prefix('/'))
        .unwrap_or(reference);
    let id: SubjectId = relative.strip_prefix("Patient/").unwrap_or(relative).parse().ok()?;
    // One text per id: other spellings of a UUID are not the logical id.
    relative.ends_with(&id.to_string()).then_some(id)
}

/// The values of a comma list.
pub fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|one| !one.is_empty())
}

/// One page of a searchset.
#[derive(Debug)]
pub struct Page<'a> {
    /// Base of all FHIR URLs.
    pub base: &'a str,
    /// The type that is searched.
    pub resource: &'a str,
    /// What was asked.
    pub parameters: &'a Parameters,
    /// The parameters of this type.
    pub known: &'a [SearchParameter],
}

impl Page<'_> {
    /// The Bundle: matches, total, a self link that names what was used, and the next link if there is more.
    #[must_use]
    pub fn bundle(&self, total: u64, matches: Vec<Resource>, next: Option<&str>) -> Searchset {
        let address = |query: String| {
            let path = format!("{}/{}", self.base, self.resource);
            if query.is_empty() {
                path
            } else {
                format!("{path}?{query}")
            }
        };
        let mut links = vec![(
            "self",
            address(self.parameters.link(|name| is_used(self.known, name), None)),
        )];
        if let Some(cursor) = next {
            let query = self.parameters.link(
                |name| name != CURSOR && is_used(self.known, name),
                Some((CURSOR, cursor)),
            );
            links.push(("next", address(query)));
        }
        let found = fhir::searchset(self.base, total, &links, matches);
        match self.ignored() {
            None => found,
            Some(sentence) => found.with_outcome(&fhir::operation_outcome("warning", "not-supported", &sentence)),
        }
    }

    /// A search that is wider than what was asked must say so: a clinician would take the rows for what they asked for.
    fn ignored(&self) -> Option<String> {
        let names = self.parameters.iter().map(|(name, _)| name);
        let ignored: BTreeSet<_> = names.filter(|name| !is_used(self.known, name)).collect();
        let list = ignored.into_iter().collect::<Vec<_>>().join(", ");
        (!list.is_empty()).then(|| {
            format!(
                "not supported here and passed over: {list}; the self link names what was used, and Prefer: \
                 handling=strict refuses such a search"
            )
        })
    }

    /// The Bundle for a caller who may see nobody of those asked about: the same whether they exist or not.
    #[must_use]
    pub fn nothing_visible(&self) -> Searchset {
        let sentence = "nobody you asked about is visible to your organization on this node";
        let outcome = fhir::operation_outcome("information", "not-found", sentence);
        self.bundle(0, Vec::new(), None).with_outcome(&outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const KNOWN: &[SearchParameter] = &[
        SearchParameter {
            name: "code",
            kind: "token",
            documentation: "",
        },
        SearchParameter {
            name: "patient",
            kind: "reference",
            documentation: "",
        },
    ];

    #[test]
    fn unknown_parameters_are_refused_only_when_that_was_asked_for() {
        let parameters = Parameters::parse("code=1&color=red");
        assert!(check(KNOWN, &parameters, false).is_ok());
        assert_eq!(check(KNOWN, &parameters, true).expect_err("strict").status(), 400);
        assert_eq!(
            check(KNOWN, &Parameters::parse("code:not=1"), false)
                .expect_err("modifier")
                .status(),
            400
        );
    }

    #[test]
    fn a_patient_has_three_references_and_one_spelling() {
        let id = SubjectId::random();
        let base = "https://127.0.0.1:8401/fhir";
        for reference in [format!("{id}"), format!("Patient/{id}"), format!("{base}/Patient/{id}")] {
            assert_eq!(patient(base, &reference), Some(id), "{reference}");
        }
        for reference in [
            "".to_owned(),
            "7".to_owned(),
            format!("Group/{id}"),
            format!("https://elsewhere/fhir/Patient/{id}"),
            id.to_string().replace('-', ""),
        ] {
            assert_eq!(patient(base, &reference), None, "{reference}");
        }
    }

    #[test]
    fn links_name_what_was_used() {
        let parameters = Parameters::parse("code=8867-4&color=red&_cursor=a");
        let page = Page {
            base: "https://h/fhir",
            resource: "Observation",
            parameters: &parameters,
            known: KNOWN,
        };
        let read = |bundle| serde_json::to_value::<Searchset>(bundle).expect("JSON");
        let bundle = read(page.bundle(7, vec![], Some("b")));
        assert_eq!(
            bundle["link"][0]["url"],
            "https://h/fhir/Observation?code=8867-4&_cursor=a"
        );
        assert_eq!(
            bundle["link"][1],
            json!({"relation": "next", "url": "https://h/fhir/Observation?code=8867-4&_cursor=b"})
        );
        assert_eq!(read(page.nothing_visible())["entry"][1]["search"]["mode"], "outcome");
        let told = bundle["entry"][0]["resource"]["issue"][0]["diagnostics"].to_string();
        assert!(told.contains("color") && !told.contains("code"), "{told}");
    }

    #[test]
    fn a_count_is_bounded() {
        assert_eq!(count(&Parameters::parse("")), Ok(COUNT_DEFAULT));
        assert_eq!(count(&Parameters::parse("_count=9999")), Ok(COUNT_MAX));
        assert_eq!(count(&Parameters::parse("_count=0")), Ok(0));
        assert_eq!(count(&Parameters::parse("_count=7&_summary=count")), Ok(0));
        assert!(count(&Parameters::parse("_count=-1")).is_err());
    }
}
