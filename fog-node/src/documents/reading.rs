//! A document for whoever may read it: found by its root on the chain, opened under a permit, a range at a time.

use std::{io, ops::Range};

use bytes::Bytes;
use cid::Cid;
use futures::{StreamExt as _, stream, stream::BoxStream};
use ledger::{
    consent,
    document::{DocumentCommitment, Payload},
    state::Outcome,
};
use record::{
    document::{HEAD_BYTES_MAX, Metadata, Opener},
    ids::{OrganizationId, SubjectId},
};

use super::{Documents, Error};
use crate::{turnstile::Inside, vault::Vault};

/// A document that its reader may read.
#[derive(Debug)]
pub struct Document {
    cid: Cid,
    subject: SubjectId,
    opener: Opener,
    vault: Vault,
    inside: Inside,
}

impl Documents {
    /// The document with this root, if the organisation may read it here; "unknown" and "not yours" are the same answer.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn find(&self, reader: &OrganizationId, cid: &Cid) -> Result<Option<Document>, Error> {
        let inside = self.readers.enter(reader).ok_or(Error::Busy)?;
        let Some(payload) = self.final_payload(cid).await? else {
            return Ok(None);
        };
        let state = self.rooms.chain.state();
        // A key of ours that another member announced as its own opens nothing, as in `query`.
        let is_ours = state
            .subject_key(&payload.key)
            .is_some_and(|known| known.custodian == self.own.organization);
        let permit = consent::authorize(&state, reader, &payload.key)
            .ok()
            .filter(|_| is_ours);
        let held = self
            .rooms
            .keyring
            .secret(&payload.key)
            .zip(self.rooms.keyring.subject_of(&payload.key));
        let (Some(_permit), Some((secret, subject))) = (permit, held) else {
            return Ok(None);
        };
        let vault = self.rooms.vault.clone();
        let (start, bytes) = vault.beginning(cid, HEAD_BYTES_MAX).await?;
        let opener = Opener::open(&state.network, &secret, (&start, bytes))?;
        Ok(Some(Document {
            cid: *cid,
            subject,
            opener,
            vault,
            inside,
        }))
    }

    /// What the chain says of a document that is final.
    async fn final_payload(&self, cid: &Cid) -> Result<Option<Payload>, Error> {
        let id = DocumentCommitment::id_of(cid);
        let placed = self.rooms.chain.bundle(&id).await?;
        let Some(placed) = placed.filter(|placed| placed.outcome == Outcome::Applied) else {
            return Ok(None);
        };
        let payloads = self.rooms.chain.payloads(placed.height).await?.unwrap_or_default();
        Ok(payloads.into_iter().find(|payload| payload.id == id))
    }
}

impl Document {
    /// What is said of it inside its seal.
    #[must_use]
    pub const fn metadata(&self) -> &Metadata {
        self.opener.metadata()
    }

    /// Who it is about.
    #[must_use]
    pub const fn subject(&self) -> SubjectId {
        self.subject
    }

    /// A part of its content as a stream: what comes was checked, and the stream ends with an error where it cannot be had.
    ///
    /// # Errors
    /// [`Error::Contradiction`] for a range that is not within the content; the vault does not have it.
    pub async fn content(self, range: Range<u64>) -> Result<BoxStream<'static, io::Result<Bytes>>, Error> {
        let Self {
            cid,
            opener,
            vault,
            inside,
            ..
        } = self;
        let part = opener.part(range)?;
        let within = part.sealed();
        if within.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let sealed = vault.object(&cid, within).await?.boxed();
        let content = stream::unfold(Some((part, sealed, inside)), |reading| async move {
            let (mut part, mut sealed, inside) = reading?;
            let content = match sealed.next().await {
                Some(piece) => piece
                    .map_err(io::Error::other)
                    .and_then(|piece| part.push(&piece).map_err(io::Error::other)),
                None => match part.finish() {
                    Ok(()) => return None,
                    Err(error) => return Some((Err(io::Error::other(error)), None)),
                },
            };
            let next = content.is_ok().then_some((part, sealed, inside));
            Some((content.map(Bytes::from), next))
        });
        let content =
            content.filter(|piece| futures::future::ready(piece.as_ref().map_or(true, |piece| !piece.is_empty())));
        Ok(content.inspect(move |piece| note(&cid, piece)).boxed())
    }
}

/// A document that breaks off is a failure of this node or of its peers, which the reader sees as a cut connection.
fn note(cid: &Cid, piece: &io::Result<Bytes>) {
    if let Err(error) = piece {
        metrics::counter!("fog_documents_broken_off_total").increment(1);
        tracing::warn!(%cid, %error, "a document broke off while it was read");
    }
}
