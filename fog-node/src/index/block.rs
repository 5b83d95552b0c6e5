//! The rows of one block: read, removed, looked for elsewhere. For whoever compares the index with the chain.

use std::collections::HashSet;

use ledger::block::Height;

use super::{
    Error, Row,
    database::Session,
    rows::{CHUNK_ROWS, by_id, kept},
    statement::Statement,
    tag::TagKey,
};

/// The rows of a block that this node wrote, and how many others stand there.
pub(super) async fn at(session: &mut Session, tags: &TagKey, at: Height) -> Result<(Vec<Row>, u64), Error> {
    let statement = Statement::new("SELECT * FROM observation WHERE height = ?").bind(at.0.cast_signed());
    let found = session.fetch(statement).await?;
    let read: Vec<_> = found
        .iter()
        .filter_map(|of| kept(of, tags).ok().map(|kept| kept.row))
        .collect();
    let strange = (found.len() - read.len()) as u64;
    Ok((read, strange))
}

/// Removes all rows of a block, and rows elsewhere that stand in the way of these.
pub(super) async fn clear(session: &mut Session, at: Height, rows: &[Row]) -> Result<(), Error> {
    session
        .execute(Statement::new("DELETE FROM observation WHERE height = ?").bind(at.0.cast_signed()))
        .await?;
    for chunk in rows.chunks(CHUNK_ROWS) {
        let ids = chunk.iter().map(|row| row.id.as_str());
        session
            .execute(Statement::new("DELETE FROM observation WHERE id IN ").list(ids))
            .await?;
    }
    Ok(())
}

/// Of these rows, the ids of those that stand at another height, written by this node.
pub(super) async fn elsewhere(session: &mut Session, tags: &TagKey, rows: &[Row]) -> Result<HashSet<String>, Error> {
    let mut elsewhere = HashSet::new();
    for chunk in rows.chunks(CHUNK_ROWS) {
        let there = by_id(session, tags, chunk).await?;
        for row in chunk {
            let known = there.get(&row.id).and_then(Option::as_ref);
            if known.is_some_and(|known| known.height != row.height) {
                elsewhere.insert(row.id.clone());
            }
        }
    }
    Ok(elsewhere)
}
