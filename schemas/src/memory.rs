//! Memory sizes, written as `1GiB`, and the machine's limits.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A size in bytes, written as a whole number and a unit: `512MiB`, `2GB`; a number alone is bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemorySize {
    /// Bytes, never 0.
    pub bytes: u64,
}

/// Error for text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a size; write a number and a unit, such as 512MiB, 1GiB or 2GB")]
pub struct NotASize {
    text: String,
}

/// Largest unit first; a size prints in the largest unit that divides it.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

/// Assumed memory of a machine that does not report its own.
const UNKNOWN_MACHINE_BYTES: u64 = 4 << 30;

impl MemorySize {
    /// Returns a size of `bytes`, at least 1.
    pub const fn bytes(bytes: u64) -> Self {
        Self { bytes: if bytes == 0 { 1 } else { bytes } }
    }

    /// Returns half of the memory that this process may use: the machine's, or its control group's limit if lower. Assumes 4 GiB
    /// if neither is known.
    pub fn half_of_machine() -> Self {
        let read = |path: PathBuf| std::fs::read_to_string(path).ok();
        let total = read("/proc/meminfo".into()).and_then(|text| meminfo_total(&text));
        let groups = read("/proc/self/cgroup".into()).unwrap_or_default();
        let limits = limit_files(&groups).into_iter().filter_map(read);
        let limits = limits.filter_map(|text| text.trim().parse().ok());
        Self::bytes(limits.chain(total).min().unwrap_or(UNKNOWN_MACHINE_BYTES) / 2)
    }
}

/// Returns the bytes in the line `MemTotal:  24576000 kB`.
fn meminfo_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1 << 10)
}

/// Returns the files that may hold a memory limit: of the process's control group and of all groups around it. A container often
/// sees its own group as the outermost.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (mount, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|c| c == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = Path::new(group.trim_start_matches('/'));
        files.extend(group.ancestors().map(|group| Path::new(mount).join(group).join(file)));
    }
    files
}

impl FromStr for MemorySize {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<Self, NotASize> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim() {
            "" => "B",
            unit => unit,
        };
        let factor = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, bytes)| *bytes);
        let bytes = number.parse::<u64>().ok().zip(factor).and_then(|(n, factor)| n.checked_mul(factor));
        bytes
            .filter(|&bytes| bytes > 0)
            .map(|bytes| Self { bytes })
            .ok_or_else(|| NotASize { text: text.into() })
    }
}

impl TryFrom<String> for MemorySize {
    type Error = NotASize;

    fn try_from(text: String) -> Result<Self, NotASize> {
        text.parse()
    }
}

impl From<MemorySize> for String {
    fn from(size: MemorySize) -> Self {
        size.to_string()
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, bytes)| self.bytes.is_multiple_of(*bytes));
        let (name, bytes) = unit.unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.bytes / bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_read_and_print() {
        for (text, bytes) in [("1GiB", 1 << 30), ("512MiB", 512 << 20), ("2GB", 2_000_000_000), ("123B", 123)]
        {
            let size: MemorySize = text.parse().unwrap();
            assert_eq!((size.bytes, size.to_string().as_str()), (bytes, text));
        }
        for (text, bytes) in [("4096", 4_096), ("64 mib", 64 << 20), ("1kb", 1_000)] {
            assert_eq!(text.parse(), Ok(MemorySize { bytes }));
        }
        for wrong in ["", "0", "GiB", "-1GiB", "1.5GiB", "1G", "99999999999TiB"] {
            let error = wrong.parse::<MemorySize>().unwrap_err().to_string();
            assert!(error.contains("512MiB"), "{error}");
        }
    }

    #[test]
    fn the_machine_and_its_control_groups() {
        assert_eq!(meminfo_total("MemTotal:       2048 kB\nMemFree:  1 kB\n"), Some(2 << 20));
        assert_eq!(meminfo_total("nothing"), None);
        let files = limit_files("0::/a/b\n12:cpu,memory:/c\n3:cpuset:/d\n");
        let files: Vec<_> = files.iter().map(|path| path.to_str().unwrap()).collect();
        let expected = [
            "/sys/fs/cgroup/a/b/memory.max",
            "/sys/fs/cgroup/a/memory.max",
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/memory/c/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        ];
        assert_eq!(files, expected);
        assert!(MemorySize::half_of_machine().bytes > 1 << 20);
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_as_the_same(bytes in 1u64..) {
            let size = MemorySize { bytes };
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }
    }
}
