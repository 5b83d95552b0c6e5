//! `/fhir/metadata`: the CapabilityStatement, made from the table of addresses, so that it cannot promise what is not there.

use std::{collections::BTreeMap, sync::Arc};

use record::fhir::{FHIR_VERSION, instant};
use serde_json::{Value as Json, json};

use super::{
    super::{
        answer,
        route::{Answered, Request, Route},
    },
    Server, expect_json, observation, patient,
    search::SearchParameter,
};

/// What is served here.
#[must_use]
pub fn routes<S: Server>() -> Vec<Route<S>> {
    vec![Route::get("/fhir/metadata", |context, request| {
        Box::pin(capabilities(context, request))
    })]
}

async fn capabilities<S: Server>(context: Arc<S>, request: Request) -> Answered {
    expect_json(&request)?;
    let founded = instant(i64::try_from(context.genesis().founded_ms).unwrap_or(i64::MAX));
    Ok(answer::fhir(&statement(
        context.fhir_base(),
        &founded,
        &super::routes::<S>(),
    )))
}

fn statement<C>(base: &str, date: &str, routes: &[Route<C>]) -> Json {
    let mut types: BTreeMap<&str, Vec<Json>> = BTreeMap::new();
    for (resource, interaction) in routes.iter().filter_map(|route| route.interaction) {
        types.entry(resource).or_default().push(json!({"code": interaction}));
    }
    let resources: Vec<_> = types
        .into_iter()
        .map(|(resource, interactions)| {
            let parameters: Vec<_> = parameters_of(resource)
                .iter()
                .map(|p| json!({"name": p.name, "type": p.kind, "documentation": p.documentation}))
                .collect();
            let mut declared = json!({"type": resource, "interaction": interactions, "versioning": "no-version"});
            // FHIR has no empty lists.
            if !parameters.is_empty() {
                declared["searchParam"] = json!(parameters);
            }
            declared
        })
        .collect();
    let how = "Bearer access token (JWT, EdDSA) signed with the organization's key in the network; aud is the network's id, \
               scope lists system/Observation.rs, system/Patient.rs, and system/Binary.cr for documents.";
    json!({
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": date,
        "kind": "instance",
        "software": {"name": "Vitalfog", "version": env!("CARGO_PKG_VERSION")},
        "implementation": {"description": "A fog node of a Vitalfog network", "url": base},
        "fhirVersion": FHIR_VERSION,
        "format": ["application/fhir+json", "json"],
        "rest": [{"mode": "server", "security": {"cors": false, "description": how}, "resource": resources}],
    })
}

fn parameters_of(resource: &str) -> &'static [SearchParameter] {
    match resource {
        "Observation" => observation::PARAMETERS,
        "Patient" => patient::PARAMETERS,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Context;

    #[test]
    fn every_type_of_the_table_is_declared_with_its_parameters() {
        let statement = statement(
            "https://h/fhir",
            "2026-09-21T14:13:20.123Z",
            &super::super::routes::<Context>(),
        );
        assert_eq!(statement["fhirVersion"], "4.0.1");
        let resources = statement["rest"][0]["resource"].as_array().expect("a list");
        let types: Vec<_> = resources.iter().map(|r| r["type"].as_str().expect("text")).collect();
        assert_eq!(types, ["Binary", "Observation", "Patient"]);
        assert!(
            resources[0].get("searchParam").is_none(),
            "a document is not searched for"
        );
        for resource in &resources[1..] {
            let codes: Vec<_> = resource["interaction"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|i| i["code"].clone())
                .collect();
            assert_eq!(codes, ["search-type", "read"]);
            assert!(!resource["searchParam"].as_array().expect("a list").is_empty());
        }
    }
}
