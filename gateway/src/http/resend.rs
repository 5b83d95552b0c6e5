//! `POST /resend`: a device is asked now for what is missing of it.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, Response, StatusCode, body::Incoming, header::CONTENT_TYPE};
use record::ids::DeviceId;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::response;
use crate::{
    directory::Directory,
    mqtt::resend::{Asker, Resend},
};

/// Where it is.
pub const PATH: &str = "/resend";
/// What is handed in; a page in a browser on this machine may not send this type without asking first.
pub const MEDIA_TYPE: &str = "application/json";
/// Bytes of a question, at most.
const BODY_BYTES_MAX: usize = 1_024;
/// A question must have arrived within this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The device.
    pub device: DeviceId,
}

/// What it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// By start of the device; nothing if nothing is missing.
    pub asked: Vec<Resend>,
}

/// Has the device asked, and says for what. One that nobody knows is not asked: nothing would be missing of it.
pub(super) async fn answer(
    (asker, devices): (&Asker, &Directory),
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let is_right = request.headers().get(CONTENT_TYPE).is_some_and(|of| of == MEDIA_TYPE);
    if !is_right {
        return response(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "text/plain",
            "send application/json\n",
        );
    }
    let body = timeout(
        BODY_TIMEOUT,
        Limited::new(request.into_body(), BODY_BYTES_MAX).collect(),
    )
    .await;
    let question = match body {
        Ok(Ok(body)) => serde_json::from_slice::<Question>(&body.to_bytes()).ok(),
        _ => None,
    };
    let Some(Question { device }) = question else {
        let say = "send {\"device\": NAME}\n";
        return response(StatusCode::BAD_REQUEST, "text/plain", say);
    };
    if let Err(unknown) = devices.spelt(&device) {
        return response(StatusCode::UNPROCESSABLE_ENTITY, "text/plain", unknown + "\n");
    }
    match asker.ask(device).await {
        Some(asked) => {
            let text = serde_json::to_string(&Asked { asked }).expect("plain fields");
            response(StatusCode::OK, "application/json", text)
        }
        None => response(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "busy: ask again\n"),
    }
}
