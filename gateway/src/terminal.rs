//! What strangers wrote, before it is shown in a terminal.

/// Whether a terminal obeys it, or shows what follows in another order.
#[must_use]
pub fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
