//! Somebody who asks a running sandbox over HTTP, with a token or without.

use record::ids::SubjectId;
use reqwest::{StatusCode, header};
use serde_json::Value as Json;

use crate::{client::Node, report::Report};

/// Somebody who asks a sandbox over HTTP.
#[derive(Clone, Debug)]
pub struct Visitor {
    /// The report when the visit began.
    pub report: Report,
    pub(super) http: reqwest::Client,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// `Content-Type`.
    pub content_type: String,
    /// The body.
    pub text: String,
}

impl Answer {
    /// The body as JSON; null if it is none.
    #[must_use]
    pub fn json(&self) -> Json {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// The matches of a searchset.
    #[must_use]
    pub fn matches(&self) -> Vec<Json> {
        let entries = self.json()["entry"].as_array().cloned().unwrap_or_default();
        let matches = entries.into_iter().filter(|entry| entry["search"]["mode"] == "match");
        matches.map(|entry| entry["resource"].clone()).collect()
    }
}

impl Visitor {
    /// One of the nodes, by its place.
    ///
    /// # Panics
    /// If there is no such node.
    #[must_use]
    pub fn node(&self, index: usize) -> Node {
        Node::at(self.http.clone(), &self.report.nodes[index].http)
    }

    /// GET of a whole address, with a bearer token if there is one.
    ///
    /// # Panics
    /// If nobody answers.
    pub async fn get(&self, url: &str, token: Option<&str>) -> Answer {
        self.try_get(url, token).await.expect("the node answers to the end")
    }

    /// The same; `None` if nobody answers.
    pub async fn try_get(&self, url: &str, token: Option<&str>) -> Option<Answer> {
        let request = self.http.get(url);
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let answer = request.send().await.ok()?;
        let content_type = answer
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_owned();
        Some(Answer {
            status: answer.status(),
            content_type,
            text: answer.text().await.ok()?,
        })
    }

    /// GET below the hospital's FHIR base, as the hospital.
    pub async fn fhir(&self, path: &str) -> Answer {
        self.get(
            &format!("{}/{path}", self.report.hospital.fhir),
            Some(&self.report.hospital.token),
        )
        .await
    }

    /// All observations of a patient, over all pages.
    ///
    /// # Panics
    /// If the hospital's node does not answer as promised.
    pub async fn observations(&self, patient: SubjectId) -> Vec<Json> {
        let (node, mut next, mut all) = (self.node(0), None, Vec::new());
        loop {
            let page = node
                .observations(patient, &self.report.hospital.token, next.as_deref())
                .await;
            let page = page.expect("the hospital may read its patients");
            all.extend(
                page.resources
                    .iter()
                    .map(|text| serde_json::from_str::<Json>(text.get()).expect("JSON")),
            );
            next = page.next;
            if next.is_none() {
                return all;
            }
        }
    }

    /// The gateway's status.
    pub async fn gateway_status(&self) -> Json {
        self.get(&format!("{}/status", self.report.gateway.http), None)
            .await
            .json()
    }
}
