//! One challenge sent to one peer, and its answer: bounded in size and time, and from that peer or from nobody.

use std::time::Duration;

use ledger::{
    holding::{ANSWER_BYTES_MAX, Answer, Challenge},
    state::Register,
};
use record::canonical::{Digest, MEDIA_TYPE};
use reqwest::{Response, StatusCode, header};

use crate::{recovery::limited, vault::Peer};

/// Who answered, by the certificate that the connection showed: the digest of its key, as the chain pins it.
pub type Identify = fn(&Response) -> Option<Digest>;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Miss {
    /// It is down, slow, busy, or has no such address yet. That proves nothing against it.
    Failed,
    /// What it sent is no answer of its own to what it was asked.
    Lied,
}

/// The way to the peers.
#[derive(Debug)]
pub(super) struct Asking {
    client: reqwest::Client,
    identify: Identify,
    timeout: Duration,
}

impl Asking {
    pub(super) const fn new(client: reqwest::Client, identify: Identify, timeout: Duration) -> Self {
        Self {
            client,
            identify,
            timeout,
        }
    }

    /// What a peer says to a challenge. The key that signed it is that of the validator whose certificate the connection shows, so
    /// nobody passes a challenge on to somebody who has the bytes.
    pub(super) async fn ask(&self, peer: &Peer, challenge: &Challenge, register: &Register) -> Result<Answer, Miss> {
        let asked = self
            .client
            .post(format!("{peer}/api/v1/possession"))
            .header(header::CONTENT_TYPE, MEDIA_TYPE)
            .timeout(self.timeout)
            .body(challenge.encode());
        let response = asked.send().await.map_err(|_| Miss::Failed)?;
        if response.status() != StatusCode::OK {
            return Err(Miss::Failed);
        }
        let shown = (self.identify)(&response).ok_or(Miss::Lied)?;
        let validator = register.validator_with_tls(&shown).ok_or(Miss::Lied)?.key;
        let is_too_long = response.content_length() > Some(ANSWER_BYTES_MAX as u64);
        if is_too_long {
            return Err(Miss::Lied);
        }
        let body = limited(response, ANSWER_BYTES_MAX).await.ok_or(Miss::Failed)?;
        let answer = Answer::decode(&body, &register.network, challenge).map_err(|_| Miss::Lied)?;
        if answer.validator == validator {
            Ok(answer)
        } else {
            Err(Miss::Lied)
        }
    }
}
