//! Folders of test runs that were killed, which nobody else removes.

use std::{fs, path::Path};

/// Removes what earlier runs left behind: folders called like this one, of test processes that are gone.
pub(super) fn sweep(folder: &Path) {
    let name = folder
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a label and a process id");
    let (label, own) = name.rsplit_once('.').expect("a label and a process id");
    if !Path::new("/proc/self").exists() {
        // Nobody can be asked who is gone.
        return;
    }
    let siblings = folder
        .parent()
        .and_then(|parent| fs::read_dir(parent).ok())
        .into_iter()
        .flatten()
        .flatten();
    for sibling in siblings {
        let name = sibling.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(label)?.strip_prefix('.'))
            .unwrap_or(own);
        if !Path::new("/proc").join(pid).exists() {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(sibling.path());
        }
    }
}
