//! Proves at start, on the fresh mapping, that the backing really frees memory.
//!
//! For each way to call the kernel: write scattered pages, see the source of
//! truth rise, release them, see it fall by exactly as much and the bytes read
//! zero. The first way that passes is used. A kernel that accepts the call and
//! frees nothing (as `MADV_DONTNEED` on a shared file does) fails here and not
//! in front of a client.

use crate::backing::Backing;
use crate::error::{HostRamError, TruthError};
use crate::mapping::{HostRange, Mapping};
use crate::release::{HostCalls, Method, release_pieces};

/// Pages written in each mapping, every second one, so that a batch has several pieces.
const PAGES: usize = 4;

/// Finds the best release method that works on `mappings`.
///
/// # Errors
/// [`HostRamError::CannotRelease`] with what came of each method tried, or
/// [`HostRamError::Truth`] when the source of truth cannot be read.
pub(crate) fn choose_method(
    backing: &dyn Backing,
    mappings: &[Mapping],
) -> Result<Method, HostRamError> {
    let candidates = [Ok(Method::BatchedSelf), Method::open_pidfd(), Ok(Method::PerPiece)];
    let mut reasons = Vec::new();
    for candidate in candidates {
        let method = match candidate {
            Ok(method) => method,
            Err(error) => {
                reasons.push(format!("pidfd_open: {error}"));
                continue;
            }
        };
        match try_method(backing, &method, mappings) {
            Ok(None) => return Ok(method),
            Ok(Some(reason)) => {
                log::debug!("guest-ram: {} is not usable: {reason}", method.name());
                reasons.push(format!("{}: {reason}", method.name()));
            }
            Err(source) => return Err(HostRamError::Truth { backing: backing.kind(), source }),
        }
    }
    Err(HostRamError::CannotRelease { backing: backing.kind(), reason: reasons.join("; ") })
}

/// `None` if `method` passed, else why it did not.
fn try_method(
    backing: &dyn Backing,
    method: &Method,
    mappings: &[Mapping],
) -> Result<Option<String>, TruthError> {
    let whole: Vec<HostRange> = mappings.iter().map(Mapping::range).collect();
    let truth = || backing.resident_bytes(&whole);
    let page = backing.page_bytes();
    let offsets = || (0..PAGES).map(move |n| 2 * n * page);
    let in_mapping = |mapping: &Mapping, offset: usize| offset + page <= mapping.len();

    let before = truth()?;
    let mut pieces = Vec::new();
    for mapping in mappings {
        for offset in offsets().filter(|&offset| in_mapping(mapping, offset)) {
            mapping.write_byte(offset, 0xa5);
            mapping.write_byte(offset + page - 1, 0x5a);
            pieces.extend(mapping.slice(offset, page));
        }
    }
    let written = truth()?;
    // SAFETY: the pieces are slices of `mappings`, which are borrowed and thus live, at multiples
    // of the backing's page; no Rust reference covers guest RAM.
    let calls = unsafe { HostCalls::new(backing, method) };
    let outcome = release_pieces(&calls, &pieces);
    let after = truth()?;
    let zero = mappings.iter().all(|mapping| {
        let mut offsets = offsets().filter(|&offset| in_mapping(mapping, offset));
        offsets.all(|at| mapping.read_byte(at) == 0 && mapping.read_byte(at + page - 1) == 0)
    });
    // Reading a hole of a file fills it again.
    drop(release_pieces(&calls, &pieces));

    let bytes = (pieces.len() * page) as u64;
    let batch_failed = !pieces.is_empty() && outcome.calls > batch_calls(method, pieces.len());
    Ok(if let Some((_, error)) = outcome.refused {
        Some(error.to_string())
    } else if batch_failed {
        Some("the kernel does not take the batch".to_owned())
    } else if !zero {
        Some("released bytes do not read as zero".to_owned())
    } else {
        verdict(before, written, after, bytes)
    })
}

/// Calls that the method needs for so many pieces when nothing fails.
fn batch_calls(method: &Method, pieces: usize) -> u64 {
    match method {
        Method::BatchedSelf | Method::BatchedPidfd(_) => 1,
        Method::PerPiece => pieces as u64,
    }
}

/// Compares the source of truth before, with `bytes` written, and after their release.
fn verdict(
    before: Option<u64>,
    written: Option<u64>,
    after: Option<u64>,
    bytes: u64,
) -> Option<String> {
    let (before, written, after) = match (before, written, after) {
        (Some(before), Some(written), Some(after)) => (before, written, after),
        // A backing without a source of truth is said to be unverified wherever it is shown.
        _ => return None,
    };
    if written < before + bytes {
        return Some(format!(
            "{bytes} B were written and the source of truth went from {before} to {written} B"
        ));
    }
    if after > before {
        return Some(format!(
            "the call succeeded, but of {} B the host still holds {} B",
            written - before,
            after - before
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::backing::{self, BackingKind};
    use crate::mapping::Source;

    /// A backing whose release call succeeds and frees nothing.
    #[derive(Debug)]
    struct Liar {
        honest_truth: Box<dyn Backing>,
    }

    impl Backing for Liar {
        fn kind(&self) -> BackingKind {
            BackingKind::Memfd
        }
        fn page_bytes(&self) -> usize {
            4096
        }
        fn batch_advice(&self) -> Option<libc::c_int> {
            Some(libc::MADV_DONTNEED)
        }
        unsafe fn release_one(&self, piece: HostRange) -> io::Result<()> {
            // SAFETY: the caller's contract is that of `madvise`.
            unsafe { backing::madvise(piece, libc::MADV_DONTNEED) }
        }
        fn truth_name(&self) -> &'static str {
            self.honest_truth.truth_name()
        }
        fn resident_bytes(&self, mappings: &[HostRange]) -> Result<Option<u64>, TruthError> {
            self.honest_truth.resident_bytes(mappings)
        }
    }

    #[test]
    fn shared_file_with_dontneed_is_refused() {
        let (honest_truth, mappings) = backing::map(BackingKind::Memfd, &[1 << 20]).expect("memfd");
        let error = choose_method(&Liar { honest_truth }, &mappings).expect_err("it frees nothing");
        let text = error.to_string();
        assert!(text.contains("memfd") && text.contains("read as zero"), "{text}");
    }

    #[test]
    fn locked_memory_is_refused_with_the_reason() {
        let mapping = Mapping::new(1 << 16, Source::Anonymous).expect("a small mapping");
        // SAFETY: mlock only pins pages of a mapping that this test owns.
        let locked = unsafe { libc::mlock(mapping.as_ptr().cast(), mapping.len()) };
        if locked != 0 {
            eprintln!("SKIPPED: mlock is not allowed here");
            return;
        }
        let error = choose_method(&crate::anon::Anon, &[mapping]).expect_err("locked pages stay");
        assert!(error.to_string().contains("Invalid argument"), "{error}");
    }

    #[test]
    fn call_that_leaves_bytes_behind_is_named() {
        assert_eq!(verdict(Some(0), Some(8), Some(0), 8), None);
        assert_eq!(verdict(None, None, None, 8), None);
        assert!(verdict(Some(0), Some(8), Some(4), 8).is_some_and(|reason| reason.contains("4 B")));
        assert!(verdict(Some(0), Some(4), Some(0), 8).is_some());
    }
}
