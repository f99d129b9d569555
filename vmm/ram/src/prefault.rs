//! Populating guest RAM before the guest starts.

use std::io;

use crate::error::HostRamError;
use crate::mapping::Mapping;

/// Bytes populated per call, so that a failure says how far it got.
const STEP: usize = 256 << 20;

/// Makes the host hold every page of `mappings`; their contents stay.
///
/// # Errors
/// [`HostRamError::Prefault`].
pub(crate) fn populate(mappings: &[Mapping], page_bytes: usize) -> Result<(), HostRamError> {
    let bytes = mappings.iter().map(|mapping| mapping.len() as u64).sum();
    let mut done_bytes = 0;
    for mapping in mappings {
        for offset in (0..mapping.len()).step_by(STEP) {
            let len = STEP.min(mapping.len() - offset);
            populate_piece(mapping, offset, len, page_bytes)
                .map_err(|source| HostRamError::Prefault { bytes, done_bytes, source })?;
            done_bytes += len as u64;
        }
    }
    Ok(())
}

fn populate_piece(
    mapping: &Mapping,
    offset: usize,
    len: usize,
    page_bytes: usize,
) -> io::Result<()> {
    loop {
        let start = mapping.as_ptr().wrapping_add(offset);
        // SAFETY: `populate` keeps `[offset, offset + len)` inside the mapping; the advice keeps
        // contents.
        if unsafe { libc::madvise(start.cast(), len, libc::MADV_POPULATE_WRITE) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN) => {}
            // Linux before 5.14 does not know the advice.
            Some(libc::EINVAL) => {
                touch(mapping, offset, len, page_bytes);
                return Ok(());
            }
            _ => return Err(error),
        }
    }
}

/// Writes one byte of each page, unchanged. Before the guest starts nobody else writes.
fn touch(mapping: &Mapping, offset: usize, len: usize, page_bytes: usize) {
    for at in (offset..offset + len).step_by(page_bytes) {
        mapping.write_byte(at, mapping.read_byte(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::{self, BackingKind};

    #[test]
    fn both_ways_make_the_host_hold_every_page_and_keep_contents() {
        for kind in BackingKind::ALL {
            for by_touch in [false, true] {
                let (backing, mappings) = backing::map(kind, &[1 << 20]).expect("1 MiB");
                mappings[0].write_byte(5000, 9);
                if by_touch {
                    touch(&mappings[0], 0, 1 << 20, 4096);
                } else {
                    populate(&mappings, 4096).expect("1 MiB");
                }
                let held = backing.resident_bytes(&[mappings[0].range()]).expect("readable");
                assert_eq!(held, Some(1 << 20), "{kind} by_touch={by_touch}");
                assert_eq!(mappings[0].read_byte(5000), 9);
            }
        }
    }
}
