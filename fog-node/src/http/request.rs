//! What a request says of itself: its media types, and how long its caller waits.

use std::time::Duration;

use http::header;

use super::{WAIT_MS_MAX, fault::Fault, route::Request};

impl Request {
    /// Refuses a body of another media type.
    ///
    /// # Errors
    /// 415.
    pub fn expect_media_type(&self, expected: &str) -> Result<(), Fault> {
        let media_type = self
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        if media_type.eq_ignore_ascii_case(expected) {
            return Ok(());
        }
        Err(Fault::unsupported_media(format!(
            "send the body as Content-Type: {expected}"
        )))
    }

    /// Whether the caller accepts a media type; without an Accept header nothing in particular.
    #[must_use]
    pub fn accepts(&self, media_type: &str) -> bool {
        let values = self
            .headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let range = parts.next().unwrap_or_default().to_ascii_lowercase();
            let refused = parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
            let family = range
                .strip_suffix("/*")
                .is_some_and(|family| media_type.split('/').next() == Some(family));
            !refused && (range == "*/*" || family || range == media_type)
        })
    }

    /// How long the caller wants to wait (`wait_ms`).
    ///
    /// # Errors
    /// 400.
    pub fn wait(&self) -> Result<Duration, Fault> {
        let Some(text) = self.parameters.last("wait_ms") else {
            return Ok(Duration::ZERO);
        };
        let wait_ms: u64 = text
            .parse()
            .map_err(|_| Fault::invalid("wait_ms is a whole number of milliseconds"))?;
        if wait_ms > WAIT_MS_MAX {
            return Err(Fault::invalid(format!("wait_ms is at most {WAIT_MS_MAX}")));
        }
        Ok(Duration::from_millis(wait_ms))
    }
}
