//! What the kernel says of a process's memory, read from `/proc` without the process's help.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

/// One mapping of `/proc/PID/smaps`, sizes in bytes.
#[derive(Debug, Clone, Default)]
pub struct Mapping {
    /// Its addresses.
    pub size: u64,
    /// Anonymous memory behind it, swapped out or not.
    pub anonymous: u64,
    /// Memory behind it that the process alone has and has written.
    pub private_dirty: u64,
    /// Its proportional share of the memory behind it.
    pub pss: u64,
}

impl Mapping {
    /// Whether it is the guest's RAM: nothing else in the process comes near half its size.
    pub fn is_ram(&self, ram_bytes: u64) -> bool {
        self.size * 2 >= ram_bytes
    }
}

/// The mappings of process `pid`.
///
/// # Errors
/// If its smaps cannot be read.
pub fn mappings(pid: u32) -> io::Result<Vec<Mapping>> {
    Ok(parse_smaps(&fs::read_to_string(format!("/proc/{pid}/smaps"))?))
}

fn parse_smaps(text: &str) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else { continue };
        if !key.ends_with(':') {
            found.push(Mapping::default());
        }
        let (Some(mapping), Ok(kib)) = (found.last_mut(), value.parse::<u64>()) else { continue };
        match key {
            "Size:" => mapping.size = kib * 1024,
            "Anonymous:" | "Swap:" => mapping.anonymous += kib * 1024,
            "Private_Dirty:" => mapping.private_dirty = kib * 1024,
            "Pss:" => mapping.pss = kib * 1024,
            _ => {}
        }
    }
    found
}

/// Bytes that the memfds of process `pid` hold.
///
/// # Errors
/// If its descriptors cannot be read.
pub fn memfd_bytes(pid: u32) -> io::Result<u64> {
    let mut sum = 0;
    let mut seen = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        let is_memfd =
            fs::read_link(&path).is_ok_and(|l| l.to_string_lossy().starts_with("/memfd:"));
        if is_memfd {
            let meta = fs::metadata(&path)?;
            if !seen.contains(&meta.ino()) {
                seen.push(meta.ino());
                sum += meta.blocks() * 512;
            }
        }
    }
    Ok(sum)
}
