//! `/fhir/Patient`: the people an organisation may see something of.

use std::sync::Arc;

use record::fhir::{Patient, SYSTEM};

use super::{
    super::{
        FORM_BYTES_MAX, answer,
        fault::Fault,
        parameters::Parameters,
        route::{Answered, Request, Route},
        token::Right,
    },
    Server, expect_json, is_client, is_strict, parameters,
    search::{self, CURSOR, Page, SearchParameter},
};

/// What a search for patients takes.
pub const PARAMETERS: &[SearchParameter] = &[
    SearchParameter {
        name: "_id",
        kind: "token",
        documentation: "Logical ids, separated by commas",
    },
    SearchParameter {
        name: "identifier",
        kind: "token",
        documentation: "urn:vitalfog:subject|pseudonym, or the pseudonym alone",
    },
    SearchParameter {
        name: "name",
        kind: "string",
        documentation: "Beginning of the family or given name",
    },
];

/// What is served here.
#[must_use]
pub fn routes<S: Server>() -> Vec<Route<S>> {
    let routes = vec![
        Route::get("/fhir/Patient", |context, request| Box::pin(find(context, request))).is("Patient", "search-type"),
        Route::<S>::post("/fhir/Patient/_search", FORM_BYTES_MAX, |context, request| {
            Box::pin(find(context, request))
        })
        .from(is_client),
        Route::get("/fhir/Patient/{id}", |context, request| {
            Box::pin(read(context, request))
        })
        .is("Patient", "read"),
    ];
    routes.into_iter().map(Route::for_all).collect()
}

async fn read<S: Server>(context: Arc<S>, request: Request) -> Answered {
    expect_json(&request)?;
    let reader = context.caller(&request)?.reader("Patient", Right::Read)?;
    let subject = search::patient(context.fhir_base(), request.place());
    let patient = subject.and_then(|subject| context.query().patient(&reader, subject));
    let patient =
        patient.ok_or_else(|| Fault::not_found("no such patient is visible to your organization on this node"))?;
    Ok(answer::fhir(&patient.resource()))
}

async fn find<S: Server>(context: Arc<S>, request: Request) -> Answered {
    expect_json(&request)?;
    let reader = context.caller(&request)?.reader("Patient", Right::Search)?;
    let mut parameters = parameters(&request)?;
    let count = search::count(&parameters)?;
    parameters.remove(search::SUMMARY);
    search::check(PARAMETERS, &parameters, is_strict(&request.headers))?;
    let mut matches = context.query().patients(&reader)?;
    matches.retain(|patient| meets(patient, &parameters));
    let total = matches.len() as u64;
    // They are ordered by id, so the last id of a page is where the next begins.
    if let Some(after) = parameters.last(CURSOR) {
        matches.retain(|patient| patient.id.to_string().as_str() > after);
    }
    let on_page = usize::try_from(count).unwrap_or(usize::MAX);
    let more = matches.len() > on_page;
    matches.truncate(on_page);
    let next = matches.last().filter(|_| more).map(|patient| patient.id.to_string());
    let page = Page {
        base: context.fhir_base(),
        resource: "Patient",
        parameters: &parameters,
        known: PARAMETERS,
    };
    let resources = matches.iter().map(Patient::resource).collect();
    Ok(answer::fhir(&page.bundle(total, resources, next.as_deref())))
}

fn meets(patient: &Patient, parameters: &Parameters) -> bool {
    let id = patient.id.to_string();
    let identifier = format!("{SYSTEM}:subject|{id}");
    let names = [patient.family.to_lowercase(), patient.given.to_lowercase()];
    let begins = |beginning: &str| names.iter().any(|name| name.starts_with(&beginning.to_lowercase()));
    parameters
        .all("_id")
        .all(|value| search::list(value).any(|one| one == id))
        && parameters
            .all("identifier")
            .all(|value| search::list(value).any(|one| one == id || one == identifier))
        && parameters.all("name").all(|value| search::list(value).any(begins))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_must_hold() {
        let id = "7d8f2c1e-5b1a-4c3d-9e0f-112233445566";
        let (family, given) = ("Jansen".to_owned(), "Mieke".to_owned());
        let patient = Patient {
            id: id.parse().expect("an id"),
            family,
            given,
            gender: "female".to_owned(),
            birth_date: "1950-01-01".to_owned(),
        };
        let meets = |query: &str| meets(&patient, &Parameters::parse(query));
        assert!(meets(""));
        assert!(meets("name=jan"));
        assert!(meets(&format!(
            "_id=x,{id}&name=MIE&identifier=urn:vitalfog:subject|{id}"
        )));
        assert!(!meets("name=sen"));
        assert!(!meets(&format!("_id={id}&name=piet")));
        assert!(!meets(&format!("identifier=urn:other|{id}")));
    }
}
