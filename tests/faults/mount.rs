//! A small disk of its own for one gateway, in a mount namespace that ends with the process that holds it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::home::eventually;

const MIB: u64 = 1 << 20;

/// A file system in memory that nobody else sees.
pub(crate) struct Mount {
    holder: Child,
    at: PathBuf,
}

impl Mount {
    /// Mounts one of so many bytes; `None` where that is not allowed.
    pub(crate) fn of(at: &Path, bytes: u64) -> Option<Self> {
        fs::create_dir_all(at).expect("a folder");
        // It ends by itself if nobody ends it.
        let script = format!(
            "mount -t tmpfs -o mode=700,size={bytes} tmpfs '{}' && echo mounted && exec sleep 600",
            at.display()
        );
        let mut holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut said = [0; 7];
        let mut out = holder.stdout.take().expect("piped");
        let is_mounted = std::io::Read::read_exact(&mut out, &mut said).is_ok();
        let mount = Self {
            holder,
            at: at.to_owned(),
        };
        is_mounted.then_some(mount)
    }

    /// What a command begins with that is to see it.
    pub(crate) fn prefix(&self) -> Vec<OsString> {
        let pid = self.holder.id().to_string();
        ["nsenter", "--mount", "--target", &pid].map(OsString::from).to_vec()
    }

    /// A file on it, as this process sees it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.at.strip_prefix("/").expect("absolute")).join(name)
    }

    /// Mounts it anew: `ro` or `rw`.
    pub(crate) fn remount(&self, how: &str) {
        let mut command = Command::new("nsenter");
        command
            .args(&self.prefix()[1..])
            .args(["mount", "-o", &format!("remount,{how}")]);
        assert!(command.arg(&self.at).status().expect("runs").success());
    }

    fn free_bytes(&self) -> u64 {
        let space = rustix::fs::statvfs(self.path("")).expect("is mounted");
        space.f_bavail * space.f_frsize
    }

    /// Writes a file that leaves so many bytes free; with 0 until nothing goes in any more.
    pub(crate) fn fill(&self, name: &str, leave_bytes: u64) {
        let mut file = File::create(self.path(name)).expect("there is room for a name");
        let mut block = vec![7; MIB as usize];
        while self.free_bytes() > leave_bytes {
            let more = (self.free_bytes() - leave_bytes).min(MIB) as usize;
            block.truncate(more);
            if file.write_all(&block).is_err() {
                break;
            }
        }
        eventually("the disk is as full as it was meant to be", || {
            self.free_bytes() <= leave_bytes
        });
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
