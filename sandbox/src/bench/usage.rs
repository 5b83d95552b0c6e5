//! What processes use, as the kernel counts it: processor time, disk, and how busy the machine is.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

/// The kernel tells processor time in hundredths of a second, whatever its own clock does (USER_HZ).
const TICK: Duration = Duration::from_millis(10);
/// The unit of [`std::os::unix::fs::MetadataExt::blocks`].
const DISK_BLOCK_BYTES: u64 = 512;

/// Processor time that a process has used so far, in user and in kernel mode; none if it is gone.
pub(super) fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    ticks(&stat).map_or(Duration::ZERO, |ticks| TICK * ticks)
}

/// `pid (name) state ..`, where the name may hold anything; user and system time are the 14th and 15th field.
fn ticks(stat: &str) -> Option<u32> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let (user, system) = (fields.next()?, fields.next()?);
    Some(user.parse::<u32>().ok()? + system.parse::<u32>().ok()?)
}

/// Bytes that a file, or everything in a folder, takes on the disk; what is not there takes none.
pub(super) fn disk_bytes(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    let inside = fs::read_dir(path).into_iter().flatten().flatten();
    let inside: u64 = inside.map(|entry| disk_bytes(&entry.path())).sum();
    metadata.blocks() * DISK_BLOCK_BYTES + inside
}

/// How many processes wanted a processor, on average over the last minute; none where there is no `/proc`.
pub(super) fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg")
        .ok()?
        .split(' ')
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_that_of_user_and_kernel() {
        let stat = "7 (fog) node) S 1 7 7 0 -1 4194304 900 0 0 0 250 50 3 4 20 0 9 0 100";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("7 (fog-node"), None);
    }

    #[test]
    fn a_folder_takes_what_is_in_it() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let empty = disk_bytes(dir.path());
        fs::create_dir(dir.path().join("inside")).expect("makes it");
        fs::write(dir.path().join("inside/file"), vec![1; 100_000]).expect("writes");
        assert!(disk_bytes(dir.path()) >= empty + 100_000);
        assert_eq!(disk_bytes(&dir.path().join("absent")), 0);
    }
}
