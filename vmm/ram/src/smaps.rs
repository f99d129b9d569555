//! `Anonymous` and `Swap` of given mappings from `/proc/self/smaps`.
//!
//! The kernel walks the page tables of every mapping that it prints, so the
//! reader stops at the first mapping above the last one wanted. Source:
//! Linux `Documentation/filesystems/proc.rst`.

use std::fs::File;
use std::io::{BufRead, BufReader};

use crate::error::TruthError;
use crate::mapping::HostRange;

const NAME: &str = "/proc/self/smaps";

/// Bytes of anonymous memory, present or swapped out, in `mappings`.
///
/// # Errors
/// [`TruthError`] if the file cannot be read, or if a mapping is missing from
/// it or merged with a neighbour.
pub(crate) fn anonymous_and_swap_bytes(mappings: &[HostRange]) -> Result<u64, TruthError> {
    let file = File::open(NAME).map_err(|source| TruthError::Read { what: NAME, source })?;
    sum(BufReader::with_capacity(16 << 10, file), mappings)
}

/// The sum over the entries of `smaps` that lie in `mappings`.
fn sum(mut smaps: impl BufRead, mappings: &[HostRange]) -> Result<u64, TruthError> {
    let nonsense = |reason| TruthError::Nonsense { what: NAME, reason };
    let end_of_interest = mappings.iter().map(|m| m.end()).max().unwrap_or(0);
    let (mut total, mut covered, mut ours) = (0u64, 0usize, false);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = smaps.read_until(b'\n', &mut line);
        if read.map_err(|source| TruthError::Read { what: NAME, source })? == 0 {
            break;
        }
        if let Some((start, end)) = parse_header(&line) {
            if start >= end_of_interest {
                break;
            }
            let overlaps = |m: &&HostRange| start < m.end() && m.start() < end;
            ours = match mappings.iter().find(overlaps) {
                None => false,
                Some(m) if m.start() <= start && end <= m.end() => true,
                Some(_) => return Err(nonsense("a mapping was merged with a neighbour")),
            };
            covered += if ours { end - start } else { 0 };
        } else if ours && let Some(bytes) = parse_counted(&line) {
            total = total.saturating_add(bytes);
        }
    }
    if covered == mappings.iter().map(|m| m.len()).sum::<usize>() {
        Ok(total)
    } else {
        Err(nonsense("part of a mapping is missing"))
    }
}

/// The bounds in a line such as `7f5c00000000-7f5c10000000 rw-p 00000000 00:00 0`.
fn parse_header(line: &[u8]) -> Option<(usize, usize)> {
    let bounds = str::from_utf8(line.split(|&byte| byte == b' ').next()?).ok()?;
    let (start, end) = bounds.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

/// The bytes in a line such as `Anonymous:       1024 kB`, if it is one that counts.
fn parse_counted(line: &[u8]) -> Option<u64> {
    let value = line.strip_prefix(b"Anonymous:").or_else(|| line.strip_prefix(b"Swap:"))?;
    let kib = str::from_utf8(value).ok()?.trim().strip_suffix("kB")?.trim_end();
    kib.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
55d0-55d8 r-xp 00000000 08:01 1 /bin/x
Rss: 9 kB
Anonymous: 77 kB
Swap: 0 kB
00010000-00013000 rw-p 00000000 00:00 0
Rss:                  12 kB
Anonymous:             8 kB
AnonHugePages:      2048 kB
Swap:                  4 kB
SwapPss:               4 kB
00013000-00014000 rw-p 00000000 00:00 0
Anonymous: 4 kB
Swap: 0 kB
00020000-00021000 rw-p 00000000 00:00 0
Anonymous: 1 kB
00030000-00031000 rw-p 00000000 00:00 0
not even text
";

    const fn range(start: usize, end: usize) -> HostRange {
        HostRange { start, len: end - start }
    }

    #[test]
    fn only_anonymous_and_swap_of_our_mappings_count() {
        let mappings = [range(0x10000, 0x14000), range(0x20000, 0x21000)];
        assert_eq!(sum(SAMPLE.as_bytes(), &mappings).expect("a good file"), 17 << 10);
    }

    #[test]
    fn merged_or_missing_mappings_are_refused() {
        for mapping in [range(0x10000, 0x12000), range(0x12000, 0x13000), range(0x1f000, 0x21000)] {
            assert!(sum(SAMPLE.as_bytes(), &[mapping]).is_err(), "{mapping:?}");
        }
    }

    #[test]
    fn lines_that_do_not_parse_are_passed_over() {
        assert_eq!(parse_header(b"Anonymous: 4 kB\n"), None);
        assert_eq!(parse_header(b"\xff-\xff rw\n"), None);
        assert_eq!(parse_counted(b"Swap: many kB\n"), None);
        assert_eq!(parse_counted(b"Swap: 99999999999999999999 kB\n"), None);
    }
}
