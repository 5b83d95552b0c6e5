//! `/fhir/Observation`: what home devices measured, for those who were granted it.

use std::{collections::BTreeSet, sync::Arc};

use record::{
    fhir,
    ids::SubjectId,
    vital::{SIGNS, Sign},
};

use super::{
    super::{
        FORM_BYTES_MAX, answer,
        fault::Fault,
        parameters::Parameters,
        route::{Answered, Request, Route},
        token::Right,
    },
    Server, date, expect_json, is_client, is_strict, parameters,
    search::{self, CURSOR, Page, SearchParameter},
};
use crate::query::Question;

/// What a search for observations takes.
pub const PARAMETERS: &[SearchParameter] = &[
    SearchParameter {
        name: "_id",
        kind: "token",
        documentation: "Logical ids, separated by commas",
    },
    SearchParameter {
        name: "patient",
        kind: "reference",
        documentation: "Patients, as id or Patient/id, separated by commas",
    },
    SearchParameter {
        name: "subject",
        kind: "reference",
        documentation: "The same as patient",
    },
    SearchParameter {
        name: "code",
        kind: "token",
        documentation: "code or system|code, separated by commas",
    },
    SearchParameter {
        name: "category",
        kind: "token",
        documentation: "vital-signs, laboratory, procedure, activity",
    },
    SearchParameter {
        name: "date",
        kind: "date",
        documentation: "Effective time, with prefix eq, gt, lt, ge, le, sa or eb; repeat it for a span",
    },
];

/// The order in which observations come; the only one, so asking for it changes nothing.
const NEWEST_FIRST: (&str, &str) = ("_sort", "-date");
/// Observations named in one search, at most.
const IDS_MAX: usize = 500;

/// What is served here.
#[must_use]
pub fn routes<S: Server>() -> Vec<Route<S>> {
    let routes = vec![
        Route::get("/fhir/Observation", |context, request| Box::pin(find(context, request)))
            .is("Observation", "search-type"),
        Route::<S>::post("/fhir/Observation/_search", FORM_BYTES_MAX, |context, request| {
            Box::pin(find(context, request))
        })
        .from(is_client),
        Route::get("/fhir/Observation/{id}", |context, request| {
            Box::pin(read(context, request))
        })
        .is("Observation", "read"),
    ];
    routes.into_iter().map(Route::for_all).collect()
}

async fn read<S: Server>(context: Arc<S>, request: Request) -> Answered {
    expect_json(&request)?;
    let reader = context.caller(&request)?.reader("Observation", Right::Read)?;
    let question = Question {
        ids: vec![request.place().to_owned()],
        count: 1,
        ..Question::default()
    };
    let answer = context.query().observations(&reader, question).await?;
    context.is_current(answer.projected)?;
    let observation = answer.observations.first();
    let observation = observation
        .ok_or_else(|| Fault::not_found("no such observation is visible to your organization on this node"))?;
    Ok(answer::fhir(observation))
}

async fn find<S: Server>(context: Arc<S>, request: Request) -> Answered {
    expect_json(&request)?;
    let reader = context.caller(&request)?.reader("Observation", Right::Search)?;
    let mut parameters = parameters(&request)?;
    parameters.remove(NEWEST_FIRST);
    let question = question(context.fhir_base(), &parameters)?;
    parameters.remove(search::SUMMARY);
    search::check(PARAMETERS, &parameters, is_strict(&request.headers))?;
    let answer = context.query().observations(&reader, question).await?;
    context.is_current(answer.projected)?;
    let page = Page {
        base: context.fhir_base(),
        resource: "Observation",
        parameters: &parameters,
        known: PARAMETERS,
    };
    if !answer.visible {
        return Ok(answer::fhir(&page.nothing_visible()));
    }
    let next = answer.next.map(|cursor| cursor.to_string());
    let found = page.bundle(answer.total, answer.observations, next.as_deref());
    Ok(match fhir::gaps(&answer.gaps, answer.more_gaps) {
        None => answer::fhir(&found),
        Some(outcome) => answer::fhir(&found.with_outcome(&outcome)),
    })
}

fn question(base: &str, parameters: &Parameters) -> Result<Question, Fault> {
    let dates: Result<Vec<_>, _> = parameters
        .all("date")
        .map(|text| date::parse(text).map_err(Fault::invalid))
        .collect();
    let cursor = parameters.last(CURSOR).map(str::parse).transpose();
    let ids: Vec<_> = parameters
        .all("_id")
        .flat_map(search::list)
        .map(str::to_owned)
        .collect();
    if ids.len() > IDS_MAX {
        return Err(Fault::invalid(format!("_id takes at most {IDS_MAX} ids")));
    }
    Ok(Question {
        subjects: subjects(base, parameters),
        codes: codes(parameters),
        dates: dates?,
        ids,
        count: search::count(parameters)?,
        cursor: cursor.map_err(|error: crate::index::BadCursor| Fault::invalid(error.to_string()))?,
    })
}

/// One of a comma list; in each of the lists, if the parameter is repeated. `None` if nobody was named.
fn subjects(base: &str, parameters: &Parameters) -> Option<BTreeSet<SubjectId>> {
    let named = parameters.all("patient").chain(parameters.all("subject"));
    let each = named.map(|value| {
        search::list(value)
            .filter_map(|one| search::patient(base, one))
            .collect::<BTreeSet<_>>()
    });
    each.reduce(|both, next| both.intersection(&next).copied().collect())
}

/// The index's codes for what `code` and `category` ask; `None` if neither was given.
fn codes(parameters: &Parameters) -> Option<Vec<String>> {
    let by_code = parameters
        .all("code")
        .map(|value| search::list(value).flat_map(signs).collect::<Vec<_>>());
    let by_category = parameters
        .all("category")
        .map(|value| search::list(value).flat_map(of_category).collect::<Vec<_>>());
    let each = by_code
        .chain(by_category)
        .map(|signs| signs.into_iter().map(|sign| sign.code).collect::<BTreeSet<_>>());
    let both = each.reduce(|both, next| both.intersection(&next).copied().collect())?;
    Some(both.into_iter().map(str::to_owned).collect())
}

/// The signs that a token names: a code, `system|code`, or `system|` for every code of a system. FHIR's second code for a
/// sign names it too.
fn signs(token: &str) -> Vec<&'static Sign> {
    let (system, code) = token
        .split_once('|')
        .map_or((None, token), |(system, code)| (Some(system), code));
    let of_system = |sign: &&Sign| system.is_none_or(|system| system == sign.system.uri());
    if system.is_some() && code.is_empty() {
        return SIGNS.iter().filter(of_system).collect();
    }
    Sign::of(code).into_iter().filter(of_system).collect()
}

fn of_category(token: &str) -> impl Iterator<Item = &'static Sign> {
    const SYSTEM: &str = "http://terminology.hl7.org/CodeSystem/observation-category";
    let (system, code) = token.split_once('|').unwrap_or((SYSTEM, token));
    SIGNS
        .iter()
        .filter(move |sign| system == SYSTEM && sign.class.code() == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes_of(query: &str) -> Option<Vec<String>> {
        codes(&Parameters::parse(query))
    }

    #[test]
    fn a_code_is_found_with_or_without_its_system_and_under_both_names() {
        let oxygen = Some(vec!["2708-6".to_owned()]);
        assert_eq!(codes_of("code=2708-6"), oxygen);
        assert_eq!(codes_of("code=59408-5"), oxygen);
        assert_eq!(codes_of("code=http://loinc.org|59408-5"), oxygen);
        assert_eq!(codes_of("code=urn:iso:std:iso:11073:10101|59408-5"), Some(vec![]));
        assert_eq!(codes_of("code=8867-4,2708-6").map(|codes| codes.len()), Some(2));
        assert!(codes_of("code=http://loinc.org|").is_some_and(|codes| codes.len() > 5));
        assert_eq!(codes_of("code=urn:other|"), Some(vec![]));
        assert_eq!(codes_of("patient=x"), None);
    }

    #[test]
    fn a_category_narrows_codes() {
        assert_eq!(
            codes_of("category=vital-signs&code=8867-4,11524-6"),
            Some(vec!["8867-4".to_owned()])
        );
        assert_eq!(codes_of("category=procedure").map(|codes| codes.len()), Some(2));
        assert_eq!(codes_of("category=social-history"), Some(vec![]));
    }

    #[test]
    fn named_people_are_joined_by_comma_and_narrowed_by_repetition() {
        let (a, b) = (SubjectId::random(), SubjectId::random());
        let of = |query: String| subjects("https://h/fhir", &Parameters::parse(&query));
        assert_eq!(of(String::new()), None);
        assert_eq!(of(format!("patient={a},{b}")), Some(BTreeSet::from([a, b])));
        assert_eq!(
            of(format!("patient={a},{b}&subject=Patient/{b}")),
            Some(BTreeSet::from([b]))
        );
        assert_eq!(of("patient=nobody".to_owned()), Some(BTreeSet::new()));
    }

    #[test]
    fn a_bad_date_or_cursor_is_the_callers_fault() {
        for query in ["date=soon", "_cursor=x", "_count=x"] {
            assert_eq!(question("", &Parameters::parse(query)).expect_err(query).status(), 400);
        }
    }
}
