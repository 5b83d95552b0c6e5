//! The blocks of a large record as one CAR stream: all of them, the root alone, or those that a range of its bytes needs; made while it
//! is sent, so that a few blocks are in memory.
//!
//! (Trustless Gateway Specification: `dag-scope`, `entity-bytes`; order depth-first, each block once. A file is one entity, so
//! that `entity` and `all` are the same.)

use std::ops::Range;

use bytes::Bytes;
use cid::Cid;
use futures::{StreamExt as _, stream};
use record::canonical::DAG_CBOR;

use super::super::{body::Body, fault::Fault, route::Request};
use crate::vault::{self, Vault, car};

/// How much of what an identifier names is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Its block alone.
    Block,
    /// All blocks, or those that hold these bytes of a file: an end that is `None` is the file's.
    Bytes(i64, Option<i64>),
}

impl Scope {
    /// By `dag-scope` and `entity-bytes`; everything, if nothing is said.
    pub(super) fn asked(request: &Request) -> Result<Self, Fault> {
        match request.parameters.last("dag-scope") {
            Some("block") => return Ok(Self::Block),
            None | Some("entity" | "all") => {}
            Some(_) => return Err(Fault::invalid("dag-scope is block, entity or all")),
        }
        let Some(text) = request.parameters.last("entity-bytes") else {
            return Ok(Self::Bytes(0, None));
        };
        let bounds = text.split_once(':').and_then(|(from, to)| {
            let to = if to == "*" { None } else { Some(to.parse().ok()?) };
            Some(Self::Bytes(from.parse().ok()?, to))
        });
        bounds.ok_or_else(|| {
            Fault::invalid("entity-bytes is FROM:TO in whole numbers, the last byte included, or FROM:*")
        })
    }

    /// What tells its answer from the others under one identifier.
    pub(super) fn mark(&self) -> String {
        match self {
            Self::Block => ".block".to_owned(),
            Self::Bytes(0, None) => String::new(),
            Self::Bytes(from, None) => format!(".{from}.end"),
            Self::Bytes(from, Some(to)) => format!(".{from}.{to}"),
        }
    }

    /// The bytes meant, of a file of this length: numbers below zero count from its end, and the last byte is included.
    fn range(&self, length: u64) -> Range<u64> {
        let at = |number: i64| match u64::try_from(number) {
            Ok(from_start) => from_start.min(length),
            Err(_) => length.saturating_sub(number.unsigned_abs()),
        };
        match *self {
            Self::Block => 0..0,
            Self::Bytes(from, to) => at(from)..to.map_or(length, |to| at(to).saturating_add(1).min(length)),
        }
    }
}

/// The archive, from this node's own disk; `None` if it does not have the root.
pub(super) async fn of(vault: &Vault, root: &Cid, scope: &Scope) -> Result<Option<Body>, vault::Error> {
    if *scope == Scope::Block || root.codec() == DAG_CBOR {
        // What is sealed has no links.
        let block = vault.local(root).await?;
        return Ok(block.map(|block| of_one(root, &block)));
    }
    let Some(length) = vault.object_bytes(root).await? else {
        return Ok(None);
    };
    let blocks = vault.blocks(root, scope.range(length)).await?;
    let head = stream::iter([Ok(Bytes::from(car::head(root)))]);
    let framed = blocks.flat_map(|step| {
        stream::iter(match step {
            Ok((cid, block)) => vec![Ok(car::before(&cid, block.len()).into()), Ok(block)],
            Err(error) => vec![Err(error)],
        })
    });
    Ok(Some(Body::streamed(head.chain(framed), None)))
}

/// The archive of one block.
pub(super) fn of_one(cid: &Cid, block: &[u8]) -> Body {
    [&car::head(cid)[..], &car::before(cid, block.len()), block]
        .concat()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_an_entity_is_what_the_specification_says() {
        for (from, to, expected) in [
            (0, None, 0..100),
            (10, Some(19), 10..20),
            (10, Some(1_000), 10..100),
            (-10, None, 90..100),
            (-10, Some(-1), 90..100),
            (0, Some(-11), 0..90),
            (-1_000, Some(0), 0..1),
            (100, None, 100..100),
        ] {
            assert_eq!(Scope::Bytes(from, to).range(100), expected, "{from}:{to:?}");
        }
    }
}
