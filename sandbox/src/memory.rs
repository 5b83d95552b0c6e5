//! How much memory a process uses, as the kernel says; unknown where there is no `/proc`.

use std::fs;

/// Resident memory of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Now.
    pub now_bytes: Option<u64>,
    /// The most it ever used.
    pub peak_bytes: Option<u64>,
}

impl Memory {
    /// Of a running process.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        Self {
            now_bytes: kilobytes(&status, "VmRSS:"),
            peak_bytes: kilobytes(&status, "VmHWM:"),
        }
    }
}

fn kilobytes(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_counts_in_kilobytes() {
        let status = "Name:\tgateway\nVmHWM:\t   61440 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(
            (kilobytes(status, "VmHWM:"), kilobytes(status, "VmRSS:")),
            (Some(62_914_560), Some(1_048_576))
        );
        assert_eq!(kilobytes("Name:\tinit\n", "VmHWM:"), None);
    }

    #[test]
    fn a_process_that_is_gone_uses_none() {
        assert_eq!(Memory::of(u32::MAX), Memory::default());
    }
}
