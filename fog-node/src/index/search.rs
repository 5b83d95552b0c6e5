//! What is asked of the index, and a page of its answer.

use ledger::block::Height;

use super::{Cursor, Row, tally::ALWAYS};

/// A span of time: from (inclusive) to (exclusive), in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateRange {
    /// The first millisecond inside.
    pub from_ms: i64,
    /// The first millisecond after.
    pub to_ms: i64,
}

/// What is asked for. Empty lists do not restrict; all that is given must hold.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// With one of these codes.
    pub codes: Vec<String>,
    /// Within each of these spans.
    pub dates: Vec<DateRange>,
    /// With one of these logical ids.
    pub ids: Vec<String>,
    /// Rows on a page; 0 asks for the total alone.
    pub count: u32,
    /// Where the page begins.
    pub cursor: Option<Cursor>,
    /// The chain as of this height; a cursor's own height takes its place.
    pub height: Height,
}

/// One page of a search.
#[derive(Clone, Debug)]
pub struct Page {
    /// The rows, newest effective time first.
    pub rows: Vec<Row>,
    /// How many rows the whole search has for this caller.
    pub total: u64,
    /// Where the next page begins; none on the last.
    pub next: Option<Cursor>,
    /// The height as of which the page was cut.
    pub height: Height,
}

impl Search {
    /// The time that all of its spans have in common.
    pub(super) fn span(&self) -> DateRange {
        self.dates.iter().fold(ALWAYS, |span, date| DateRange {
            from_ms: span.from_ms.max(date.from_ms),
            to_ms: span.to_ms.min(date.to_ms),
        })
    }
}
