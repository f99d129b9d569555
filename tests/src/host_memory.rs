//! What the kernel says of a process's memory, read from `/proc` without the process's help.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

/// One mapping of `/proc/PID/smaps`, sizes in bytes.
#[derive(Debug, Clone, Default)]
pub struct Mapping {
    /// Where it begins.
    pub start: u64,
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
            let start = key.split('-').next().unwrap_or_default();
            let start = u64::from_str_radix(start, 16).unwrap_or_default();
            found.push(Mapping { start, ..Mapping::default() });
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

/// The 4 KiB pages of `mapping` of process `pid` that have memory behind them, present or swapped out, counted from the
/// mapping's beginning (Linux, Documentation/admin-guide/mm/pagemap.rst).
///
/// # Errors
/// If its pagemap cannot be read.
pub fn populated_pages(pid: u32, mapping: &Mapping) -> io::Result<Vec<u64>> {
    /// Bits 63, present, and 62, swapped out.
    const POPULATED: u64 = 0b11 << 62;
    let mut bytes = vec![0; usize::try_from(mapping.size / 4096 * 8).expect("a mapping fits")];
    let pagemap = fs::File::open(format!("/proc/{pid}/pagemap"))?;
    pagemap.read_exact_at(&mut bytes, mapping.start / 4096 * 8)?;
    let entries = bytes.as_chunks::<8>().0.iter().map(|&entry| u64::from_le_bytes(entry));
    Ok((0..).zip(entries).filter(|(_, entry)| entry & POPULATED != 0).map(|(n, _)| n).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_has_its_place_and_its_sizes() {
        let text = "7f0000000000-7f0000002000 rw-p 00000000 00:00 0 \nSize:                  8 kB\n\
            Pss:                   3 kB\nAnonymous:             4 kB\nSwap:                  4 kB\n";
        let [mapping] = &parse_smaps(text)[..] else { panic!("one mapping") };
        assert_eq!((mapping.start, mapping.size), (0x7f00_0000_0000, 8192));
        assert_eq!((mapping.anonymous, mapping.pss), (8192, 3072));
    }

    #[test]
    fn only_touched_pages_are_populated() {
        let mut memory = vec![0u8; 64 * 4096];
        let start = (memory.as_ptr().addr() as u64).next_multiple_of(4096);
        let first = usize::try_from(start).unwrap() - memory.as_ptr().addr();
        memory[first + 5 * 4096] = 1;
        let mapping = Mapping { start, size: 32 * 4096, ..Mapping::default() };
        let populated = populated_pages(std::process::id(), &mapping).unwrap();
        assert!(populated.contains(&5), "{populated:?}");
        assert!(!populated.contains(&20), "{populated:?}");
    }
}
