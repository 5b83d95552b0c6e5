//! How far the chain is projected, and how many rows that made: one row that this node has signed for.

use ledger::block::Height;

use super::{Error, database::Session, statement::Statement, tag::TagKey};

/// The one row of `progress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) projected: Height,
    pub(super) observations: u64,
    pub(super) gap_reports: u64,
    pub(super) duplicates: u64,
}

impl Progress {
    /// What stands there, if this node wrote it. An index that nobody has used is at its beginning.
    pub(super) async fn read(session: &mut Session, tags: &TagKey) -> Result<Self, Error> {
        let row = session
            .one(Statement::new("SELECT * FROM progress WHERE name = 'index'"))
            .await;
        let row = row.map_err(unsaid)?;
        let progress = Self {
            projected: Height(row.integer("projected").map_err(unsaid)?.cast_unsigned()),
            observations: row.integer("observations")?.cast_unsigned(),
            gap_reports: row.integer("gap_reports")?.cast_unsigned(),
            duplicates: row.integer("duplicates")?.cast_unsigned(),
        };
        let owner = row.bytes("owner")?;
        if owner.is_empty() {
            return Ok(Self::default());
        }
        if owner != tags.owner() {
            return Err(Error::Unusable(
                "its rows are another node's, or index.key is not the one they were written with: give each node a \
                 database of its own, put index.key back, or run `fog-node reindex`"
                    .to_owned(),
            ));
        }
        if row.bytes("tag")? != progress.tag(tags) {
            return Err(Error::Altered("how far it is projected was not written by this node"));
        }
        Ok(progress)
    }

    fn tag(&self, tags: &TagKey) -> Vec<u8> {
        tags.of_progress([self.projected.0, self.observations, self.gap_reports])
    }

    pub(super) async fn write(&self, session: &mut Session, tags: &TagKey) -> Result<(), Error> {
        let statement = Statement::new(
            "UPDATE progress SET projected = ?, observations = ?, gap_reports = ?, duplicates = ?, owner = ?, tag = ? \
             WHERE name = 'index'",
        );
        let statement = statement
            .bind(self.projected.0.cast_signed())
            .bind(self.observations.cast_signed())
            .bind(self.gap_reports.cast_signed())
            .bind(self.duplicates.cast_signed())
            .bind(tags.owner().to_vec())
            .bind(self.tag(tags));
        match session.execute(statement).await? {
            1 => Ok(()),
            _ => Err(Error::Altered("it does not say how far it is projected")),
        }
    }
}

/// There is no such row, or it has other columns.
fn unsaid(error: Error) -> Error {
    match error {
        Error::Damaged(_) => Error::Altered("it does not say how far it is projected"),
        error => error,
    }
}
