//! The parameters of a query string or of a form, decoded, in their order.

/// The parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Reads `a=1&b=2`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// These, then those.
    #[must_use]
    pub fn chain(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Forgets a parameter that has this very value.
    pub fn remove(&mut self, (name, value): (&str, &str)) {
        self.0.retain(|(n, v)| (n.as_str(), v.as_str()) != (name, value));
    }

    /// Every value of a name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.iter().filter(move |(of, _)| *of == name).map(|(_, value)| value)
    }

    /// The last value of a name.
    #[must_use]
    pub fn last(&self, name: &str) -> Option<&str> {
        self.iter().rev().find(|(of, _)| *of == name).map(|(_, value)| value)
    }

    /// All of them.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Those whose names pass, and one more, as a query string.
    #[must_use]
    pub fn link(&self, keep: impl Fn(&str) -> bool, more: Option<(&str, &str)>) -> String {
        let mut text = form_urlencoded::Serializer::new(String::new());
        text.extend_pairs(self.iter().filter(|(name, _)| keep(name)));
        text.extend_pairs(more);
        text.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_keeps_what_was_used() {
        let parameters =
            Parameters::parse("code=http%3A%2F%2Floinc.org%7C8867-4&x=1&date=ge2026&date=lt2027&_cursor=a");
        assert_eq!(parameters.all("date").collect::<Vec<_>>(), ["ge2026", "lt2027"]);
        assert_eq!(parameters.last("code"), Some("http://loinc.org|8867-4"));
        let link = parameters.link(|name| name != "x" && name != "_cursor", Some(("_cursor", "b")));
        assert_eq!(
            link,
            "code=http%3A%2F%2Floinc.org%7C8867-4&date=ge2026&date=lt2027&_cursor=b"
        );
    }
}
