//! The data folder of one run: new or empty, readable by its owner alone, files replaced whole or not at all.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::fault::Fault;

/// The folder that holds everything of one run.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Why this path cannot become the data folder, if it cannot.
    #[must_use]
    pub fn obstacle(path: &Path) -> Option<String> {
        match fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_some().then(|| {
                let path = path.display();
                format!("--data-dir {path} is not empty: each run founds a network of its own, name a new or an empty folder")
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => Some(format!("--data-dir {}: {e}", path.display())),
        }
    }

    /// Makes the folder, for its owner alone, and returns it with its absolute path.
    ///
    /// # Errors
    /// [`Fault::File`].
    pub fn create(path: &Path) -> Result<Self, Fault> {
        make_dir(path)?;
        path.canonicalize().map(Self).map_err(Fault::file(path))
    }

    /// The absolute path of a file or folder inside.
    #[must_use]
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.0.join(inside)
    }

    /// The absolute path of the folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// Writes a file inside, readable by its owner alone, and returns its path.
    ///
    /// # Errors
    /// [`Fault::File`].
    pub fn write(&self, inside: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<PathBuf, Fault> {
        let path = self.path(inside);
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        let mut file = private().create_new(true).open(&path).map_err(Fault::file(&path))?;
        file.write_all(bytes.as_ref()).map_err(Fault::file(&path))?;
        Ok(path)
    }

    /// Writes a configuration file inside: TOML of the same shape as the value.
    ///
    /// # Errors
    /// [`Fault::File`].
    pub fn write_toml(&self, inside: impl AsRef<Path>, config: &serde_json::Value) -> Result<PathBuf, Fault> {
        let config = toml::Value::try_from(config).expect("a configuration has no nulls");
        self.write(inside, toml::to_string(&config).expect("a table prints as TOML"))
    }

    /// A file to which a process appends what it prints.
    ///
    /// # Errors
    /// [`Fault::File`].
    pub fn log(&self, name: &str) -> Result<PathBuf, Fault> {
        self.write(Path::new("logs").join(format!("{name}.log")), "")
    }
}

fn make_dir(path: &Path) -> Result<(), Fault> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Fault::file(path))
}

fn private() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

/// Replaces a file by the JSON of a value: a reader sees the old text or the new one, never a half.
///
/// # Errors
/// [`Fault::File`].
pub fn replace_json(path: &Path, value: &impl Serialize) -> Result<(), Fault> {
    let mut text = serde_json::to_vec_pretty(value).expect("a report has string keys");
    text.push(b'\n');
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let written = private()
        .create(true)
        .truncate(true)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()
        });
    written
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(Fault::file(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_folder_with_something_in_it_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(Folder::obstacle(dir.path()), None);
        assert_eq!(Folder::obstacle(&dir.path().join("new")), None);
        fs::write(dir.path().join("letter"), "mine").expect("writes");
        assert!(Folder::obstacle(dir.path()).expect("an obstacle").contains("not empty"));
        assert!(Folder::obstacle(&dir.path().join("letter")).is_some());
    }

    #[test]
    fn what_is_written_is_its_owners_alone() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::create(&dir.path().join("run")).expect("creates");
        let key = folder.write("keys/a.pem", "secret").expect("writes");
        let mode = |path: &Path| fs::metadata(path).expect("exists").permissions().mode() & 0o777;
        assert_eq!(
            (mode(&key), mode(folder.root()), mode(&folder.path("keys"))),
            (0o600, 0o700, 0o700)
        );
        assert!(
            folder.write("keys/a.pem", "again").is_err(),
            "a key is never overwritten"
        );
    }

    #[test]
    fn a_report_is_replaced_whole() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("report.json");
        for ready in [false, true] {
            replace_json(&path, &serde_json::json!({"ready": ready})).expect("writes");
            let text = fs::read_to_string(&path).expect("exists");
            assert_eq!(
                serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["ready"],
                ready
            );
        }
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1);
    }
}
