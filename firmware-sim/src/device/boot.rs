//! Which start of a device this is: a counter on disk, and random bits in case the disk forgets it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use record::ids::{BootId, DeviceId};

/// Counts a start of the device; the counter is durable when this returns, so that no boot id is ever used twice.
///
/// # Errors
/// When the counter cannot be read or made durable.
pub(crate) fn start(data_dir: &Path, device: &DeviceId) -> io::Result<BootId> {
    let path = data_dir.join(format!("{device}.boot"));
    let counter = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse::<u32>().ok().and_then(|last| last.checked_add(1)).unwrap_or_else(|| {
            tracing::warn!(%device, "the boot counter is damaged; counting from 1 again, the random bits keep boots apart");
            1
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 1,
        Err(error) => return Err(error),
    };
    let next = data_dir.join(format!("{device}.boot.next"));
    let mut file = File::create(&next)?;
    writeln!(file, "{counter}")?;
    file.sync_all()?;
    fs::rename(&next, &path)?;
    // The rename is durable when the folder is.
    File::open(data_dir)?.sync_all()?;
    Ok(BootId {
        counter,
        random: rand::random(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_survives_a_restart_and_no_two_boots_are_equal() {
        let folder = tempfile::tempdir().expect("a folder");
        let (one, two) = ("scale-1".parse().expect("good"), "scale-2".parse().expect("good"));
        let boots: Vec<_> = (0..3).map(|_| start(folder.path(), &one).expect("durable")).collect();
        assert_eq!(boots.iter().map(|boot| boot.counter).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(start(folder.path(), &two).expect("durable").counter, 1);
        assert_ne!(boots[0].random, boots[1].random);
    }

    #[test]
    fn a_damaged_counter_does_not_stop_the_device() {
        let folder = tempfile::tempdir().expect("a folder");
        let device = "scale-1".parse().expect("good");
        fs::write(folder.path().join("scale-1.boot"), "\0garbage").expect("written");
        assert_eq!(start(folder.path(), &device).expect("durable").counter, 1);
        assert_eq!(start(folder.path(), &device).expect("durable").counter, 2);
    }
}
