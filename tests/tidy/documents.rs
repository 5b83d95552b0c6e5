//! What the documents name exists: files, tests, metrics and settings in backticks, targets of links.

use std::collections::BTreeSet;

use crate::{rules::Violations, source::File};

/// Every name and link of every document leads somewhere.
pub(crate) fn documents(files: &[File]) -> Violations {
    let paths: BTreeSet<&str> = files.iter().map(|f| f.path.as_str()).collect();
    let sources = files
        .iter()
        .filter(|f| f.path.ends_with(".rs") || f.path.ends_with(".py"));
    let code: String = sources.map(|f| f.text.as_str()).collect();
    let mut found = Vec::new();
    for file in files.iter().filter(|f| f.path.ends_with(".md")) {
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (number, line) in (1..).zip(file.text.lines()) {
            let names = line.split('`').skip(1).step_by(2);
            let gone = names
                .filter(|name| is_gone(name, &paths, &code))
                .map(|n| format!("names {n:?}"));
            let targets = line
                .split("](")
                .skip(1)
                .filter_map(|rest| rest.split([')', '#']).next());
            let dead = targets
                .filter(|t| is_dead(&resolved(folder, t), t, &paths))
                .map(|t| format!("links to {t:?}"));
            found.extend(
                gone.chain(dead)
                    .map(|what| format!("{}:{number} {what}, which does not exist", file.path)),
            );
        }
    }
    found
}

/// Whether something in backticks looks like a file, test, metric or setting of ours, and is none.
fn is_gone(name: &str, paths: &BTreeSet<&str>, code: &str) -> bool {
    let is_file = name.contains('/')
        && [".rs", ".md", ".toml", ".py"]
            .iter()
            .any(|ending| name.ends_with(ending));
    if is_file && !name.contains(['*', '<', '{', ' ']) {
        return !paths.contains(name);
    }
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let is_ours = name.matches('_').count() >= 3 && name.bytes().all(is_word);
    let forms = [
        format!("fn {name}("),
        format!("def {name}("),
        format!("pub {name}:"),
        format!("\"{name}\""),
    ];
    is_ours && !forms.iter().any(|form| code.contains(form))
}

/// Whether a link inside the repository leads nowhere.
fn is_dead(path: &str, target: &str, paths: &BTreeSet<&str>) -> bool {
    let is_inside = !target.is_empty() && !target.contains(':');
    let is_folder = || paths.iter().any(|p| p.starts_with(&format!("{path}/")));
    is_inside && !paths.contains(path) && !is_folder()
}

/// The path from the root that a link in a document of this folder leads to.
fn resolved(folder: &str, target: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
    for part in target.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}
