//! One statement for either database: its text is put together from texts of this program alone, values are bound.

use record::canonical::Digest;

/// Something that is bound to a `?`.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Integer(i64),
    Text(String),
    Bytes(Vec<u8>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Integer(value.into())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(value)
    }
}

impl From<Digest> for Value {
    fn from(value: Digest) -> Self {
        Self::Bytes(value.as_bytes().to_vec())
    }
}

/// A statement and its values. **Invariant:** the text is made of `&'static str` only: nothing that came from outside can
/// become SQL.
///
/// There are few texts, so that each is prepared once: lists have lengths that are powers of two. (A statement that is prepared
/// for one use is closed without an answer, and over TCP the next one then waits 40 ms for nothing.)
#[derive(Clone, Debug)]
pub(super) struct Statement {
    text: String,
    values: Vec<Value>,
}

impl Statement {
    pub(super) fn new(text: &'static str) -> Self {
        Self {
            text: text.to_owned(),
            values: Vec::new(),
        }
    }

    /// More text.
    pub(super) fn sql(mut self, text: &'static str) -> Self {
        self.text.push_str(text);
        self
    }

    /// The value of the next `?`.
    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Values in brackets, for IN: the last one is repeated. Nothing is in an empty list, as in `(NULL)`.
    pub(super) fn list<V: Into<Value>>(mut self, values: impl IntoIterator<Item = V>) -> Self {
        let mut values: Vec<Value> = values.into_iter().map(Into::into).collect();
        self.text.push('(');
        if let Some(last) = values.last().cloned() {
            values.resize(values.len().next_power_of_two(), last);
            self.text.push_str(&vec!["?"; values.len()].join(", "));
        } else {
            self.text.push_str("NULL");
        }
        self.text.push(')');
        self.values.extend(values);
        self
    }

    pub(super) fn into_parts(self) -> (String, Vec<Value>) {
        (self.text, self.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_is_bound_and_never_text() {
        let hostile = "' OR 1=1; DROP TABLE observation; --";
        let statement = Statement::new("SELECT a FROM b WHERE c = ?")
            .bind(hostile)
            .sql(" AND d IN ")
            .list([hostile, hostile])
            .sql(" AND e IN ")
            .list(Vec::<String>::new());
        let (text, values) = statement.into_parts();
        assert_eq!(text, "SELECT a FROM b WHERE c = ? AND d IN (?, ?) AND e IN (NULL)");
        assert_eq!(values.len(), 3);
        let (text, values) = Statement::new("").list(["a", "b", "c"]).into_parts();
        assert_eq!(
            (text.as_str(), values.len()),
            ("(?, ?, ?, ?)", 4),
            "there are few lengths"
        );
    }
}
