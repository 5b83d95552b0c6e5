//! A source file as the rules see it: comments and literals blanked, test code cut out, names as tokens.

use std::{fs, path::Path};

/// A file of the repository, by its path from the root with `/` between the parts.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// The files under the root whose names end in one of `endings`, without build output and hidden folders (but `.ci`).
pub(crate) fn files(root: &Path, endings: &[&str]) -> Vec<File> {
    let mut found = Vec::new();
    walk(root, root, endings, &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn walk(root: &Path, folder: &Path, endings: &[&str], found: &mut Vec<File>) {
    for entry in fs::read_dir(folder).expect("the repository is readable") {
        let path = entry.expect("the repository is readable").path();
        let name = path.file_name().and_then(|n| n.to_str()).expect("names are UTF-8");
        let skipped =
            (name.starts_with('.') && name != ".ci") || ["target", "vitalfog-data", "__pycache__"].contains(&name);
        if skipped || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, endings, found);
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            let relative = path
                .strip_prefix(root)
                .expect("below the root")
                .to_str()
                .expect("names are UTF-8");
            let text = fs::read_to_string(&path).expect("text files are UTF-8");
            found.push(File {
                path: relative.replace('\\', "/"),
                text,
            });
        }
    }
}

impl File {
    /// The code alone: comments, strings and characters are spaces, lines stay where they are, `#[cfg(test)]` items are gone.
    pub(crate) fn code(&self) -> String {
        without_tests(&blanked(&self.text))
    }

    /// Names and punctuation of the code, each with its line, from 1.
    pub(crate) fn tokens(&self) -> Vec<(usize, String)> {
        let mut tokens = Vec::new();
        for (number, line) in (1..).zip(self.code().lines()) {
            let mut rest = line;
            while let Some(first) = rest.chars().next() {
                let is_name = |c: char| c.is_alphanumeric() || c == '_';
                let length = match first {
                    c if is_name(c) => rest.find(|c| !is_name(c)).unwrap_or(rest.len()),
                    ':' if rest.starts_with("::") => 2,
                    c => c.len_utf8(),
                };
                if !first.is_whitespace() {
                    tokens.push((number, rest[..length].to_owned()));
                }
                rest = &rest[length..];
            }
        }
        tokens
    }

    /// The crate and the module at the top of it: `fog-node/src/vault/embedded.rs` is in `fog-node`, room `vault`.
    pub(crate) fn room(&self) -> Option<(&str, &str)> {
        let (krate, inside) = self.path.split_once("/src/")?;
        Some((krate, inside.split('/').next()?.trim_end_matches(".rs")))
    }

    /// The files of the modules it declares under `#[cfg(test)]`.
    pub(crate) fn test_modules(&self) -> Vec<String> {
        let folder = match self.path.rsplit_once('/') {
            Some((folder, "lib.rs" | "main.rs")) => folder,
            _ => self.path.trim_end_matches(".rs"),
        };
        let code = blanked(&self.text);
        let declared = code.split("#[cfg(test)]").skip(1).filter_map(|rest| {
            let (item, _) = rest.split_once([';', '{'])?;
            let name = item
                .trim()
                .strip_prefix("pub(crate)")
                .unwrap_or(item)
                .trim()
                .strip_prefix("mod ")?;
            rest[item.len()..]
                .starts_with(';')
                .then(|| format!("{folder}/{}.rs", name.trim()))
        });
        declared.collect()
    }

    /// The modules of its own crate that it names, each with the line: through `crate::x`, `crate::{x, y}` or, at the top
    /// of a crate, `super::x`.
    pub(crate) fn rooms_used(&self) -> Vec<(usize, String)> {
        let tokens = self.tokens();
        let is_top = self
            .path
            .split_once("/src/")
            .is_some_and(|(_, inside)| !inside.contains('/'));
        let mut used = Vec::new();
        for (at, (_, token)) in tokens.iter().enumerate() {
            let starts = token == "crate" || (is_top && token == "super");
            if starts && tokens.get(at + 1).is_some_and(|(_, next)| next == "::") {
                used.extend(first_names(&tokens[at + 2..]));
            }
        }
        used
    }
}

/// The first name after `crate::`, or each first name in the braces that follow it.
fn first_names(tokens: &[(usize, String)]) -> Vec<(usize, String)> {
    let Some((_, first)) = tokens.first() else {
        return Vec::new();
    };
    if first != "{" {
        return vec![tokens[0].clone()];
    }
    let (mut names, mut depth, mut at_start) = (Vec::new(), 0, true);
    for (line, token) in tokens {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 1 => at_start = true,
            name if depth == 1 && at_start => {
                names.push((*line, name.to_owned()));
                at_start = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// The text with comments and the contents of literals replaced by spaces; line feeds stay.
fn blanked(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at).unwrap_or(at);
        if end > at {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

/// Where the comment or literal that starts here ends; `None` if none starts here.
fn literal_end(chars: &[char], at: usize) -> Option<usize> {
    let next = chars.get(at + 1).copied();
    let in_name = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match chars[at] {
        '/' if next == Some('/') => Some(find(chars, at, |c| *c == '\n')),
        '/' if next == Some('*') => Some(comment_end(chars, at)),
        '"' => Some(string_end(chars, at + 1)),
        'r' if !in_name || chars[at - 1] == 'b' => raw_string_end(chars, at),
        '\'' if next == Some('\\') => Some(find(chars, at + 3, |c| *c == '\'') + 1),
        '\'' if chars.get(at + 2) == Some(&'\'') => Some(at + 3),
        _ => None,
    }
}

fn find(chars: &[char], from: usize, stop: impl Fn(&char) -> bool) -> usize {
    chars.iter().skip(from).position(stop).map_or(chars.len(), |n| from + n)
}

fn comment_end(chars: &[char], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    if chars.get(at + 1 + hashes) != Some(&'"') {
        return None;
    }
    let mut end = at + 2 + hashes;
    while end < chars.len() {
        let closing =
            chars[end] == '"' && chars[end + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
        if closing {
            return Some(end + 1 + hashes);
        }
        end += 1;
    }
    Some(chars.len())
}

/// The code with every item under `#[cfg(test)]` blanked; a file that is all test (`#![cfg(test)]`) is blank.
fn without_tests(code: &str) -> String {
    if code.contains("#![cfg(test)]") {
        return code.lines().map(|_| "\n").collect();
    }
    let mut out = code.to_owned();
    while let Some(start) = out.find("#[cfg(test)]") {
        let end = start + item_end(&out[start..]);
        let blank: String = out[start..end]
            .chars()
            .map(|c| if c == '\n' { '\n' } else { ' ' })
            .collect();
        out.replace_range(start..end, &blank);
    }
    out
}

/// Length of the item that starts here: up to its closing brace, or to a semicolon outside any bracket.
fn item_end(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '{' | '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}
