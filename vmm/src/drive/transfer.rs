//! Bytes straight between a file and guest memory.

use std::fs::File;
use std::os::fd::AsRawFd;

use devices::block::{BackendError, DiskRange};
use devices::ring::CheckedDesc;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use super::{INTERRUPTED, last_error};

/// Parts that one system call takes (UIO_MAXIOV of `linux/uio.h`).
const MAX_PARTS: usize = 1024;
/// Zeros to write where nothing better is known.
const ZEROS_BYTES: usize = 64 << 10;
static ZEROS: [u8; ZEROS_BYTES] = [0; ZEROS_BYTES];

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    FromFile,
    ToFile,
}

/// Moves `range` of `file` to or from the guest's buffers, which have as many bytes.
pub(super) fn transfer(
    file: &File,
    direction: Direction,
    range: DiskRange,
    memory: &GuestMemoryMmap,
    buffers: &[CheckedDesc],
) -> Result<(), BackendError> {
    let mut parts = host_parts(memory, buffers)?;
    debug_assert_eq!(parts.iter().map(|part| part.iov_len as u64).sum::<u64>(), range.len());
    let mut offset = range.offset();
    let mut rest = parts.as_mut_slice();
    while !rest.is_empty() {
        let moved = call(file, direction, offset, rest)?;
        if moved == 0 {
            return Err(BackendError::PastEnd);
        }
        offset += moved as u64;
        rest = advance(rest, moved);
    }
    Ok(())
}

/// Reads `range` if all of it is in the host's page cache; else tells the kernel to fetch it.
///
/// `None` where the file system cannot say.
pub(super) fn read_cached(
    file: &File,
    range: DiskRange,
    memory: &GuestMemoryMmap,
    buffers: &[CheckedDesc],
) -> Result<Option<bool>, BackendError> {
    let parts = host_parts(memory, buffers)?;
    let offset = i64::try_from(range.offset()).map_err(|_| BackendError::Host(libc::EINVAL))?;
    let len = i64::try_from(range.len()).map_err(|_| BackendError::Host(libc::EINVAL))?;
    if parts.len() > MAX_PARTS {
        return Ok(Some(false));
    }
    let (fd, count) = (file.as_raw_fd(), libc::c_int::try_from(parts.len()).unwrap_or(0));
    // SAFETY: `preadv2` writes to the `count` parts, all there are; they are good for that as in `call`.
    let moved = unsafe { libc::preadv2(fd, parts.as_ptr(), count, offset, libc::RWF_NOWAIT) };
    if i64::try_from(moved) == Ok(len) {
        return Ok(Some(true));
    }
    if moved < 0 && last_error() == BackendError::Unsupported {
        return Ok(None);
    }
    // SAFETY: takes numbers only; the descriptor is open, because `file` is borrowed. It is advice:
    // if it is refused, the read that follows says what is wrong.
    unsafe { libc::posix_fadvise(fd, offset, len, libc::POSIX_FADV_WILLNEED) };
    Ok(Some(false))
}

/// Where the guest's buffers are in this process; good as long as `memory` is borrowed.
fn host_parts(
    memory: &GuestMemoryMmap,
    buffers: &[CheckedDesc],
) -> Result<Vec<libc::iovec>, BackendError> {
    let gone = BackendError::Host(libc::EFAULT);
    let mut parts = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        let len = usize::try_from(buffer.len()).map_err(|_| gone)?;
        // More than one slice where a buffer crosses from one mapping to the next.
        for slice in memory.get_slices(buffer.addr(), len) {
            let slice = slice.map_err(|_| gone)?;
            let guard = slice.ptr_guard_mut();
            parts.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() });
        }
    }
    Ok(parts)
}

/// One system call; `parts` is not empty. Returns the bytes moved, 0 at the end of the file.
fn call(
    file: &File,
    direction: Direction,
    offset: u64,
    parts: &[libc::iovec],
) -> Result<usize, BackendError> {
    let fd = file.as_raw_fd();
    let count = libc::c_int::try_from(parts.len().min(MAX_PARTS)).unwrap_or(1);
    let offset = i64::try_from(offset).map_err(|_| BackendError::Host(libc::EINVAL))?;
    loop {
        let moved = match direction {
            // SAFETY: `preadv` writes to the first `count` parts.
            // - `count` is at most their number;
            // - `host_parts` made each from a slice of guest RAM, whose bounds `get_slices`
            //   checked; `advance` only takes bytes off their front;
            // - live: they come from a borrow of the memory that the caller still holds;
            // - no Rust reference to guest RAM exists: it is reached by volatile access only.
            Direction::FromFile => unsafe { libc::preadv(fd, parts.as_ptr(), count, offset) },
            // SAFETY: as above; `pwritev` reads the parts. The guest may change them meanwhile:
            // then the file gets either bytes, which is the guest's affair.
            Direction::ToFile => unsafe { libc::pwritev(fd, parts.as_ptr(), count, offset) },
        };
        match usize::try_from(moved) {
            Ok(moved) => return Ok(moved),
            Err(_) => {
                let error = last_error();
                if error != INTERRUPTED {
                    return Err(error);
                }
            }
        }
    }
}

/// The parts without their first `moved` bytes.
fn advance(parts: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    let mut done = 0;
    while let Some(part) = parts.get(done)
        && part.iov_len <= moved
    {
        moved -= part.iov_len;
        done += 1;
    }
    let (_, rest) = parts.split_at_mut(done);
    if let Some(first) = rest.first_mut() {
        first.iov_base = first.iov_base.wrapping_byte_add(moved);
        first.iov_len -= moved;
    }
    rest
}

/// Writes zeros to `range`, at the cost of a write: for files that know nothing better.
pub(super) fn write_zeros(file: &File, range: DiskRange) -> Result<(), BackendError> {
    let (mut offset, end) = (range.offset(), range.end());
    while offset < end {
        let len = usize::try_from(end - offset).unwrap_or(ZEROS_BYTES).min(ZEROS_BYTES);
        let at = i64::try_from(offset).map_err(|_| BackendError::Host(libc::EINVAL))?;
        // SAFETY: `pwrite` reads `len` bytes, at most those of `ZEROS`, which is a static.
        let written = unsafe { libc::pwrite(file.as_raw_fd(), ZEROS.as_ptr().cast(), len, at) };
        match u64::try_from(written) {
            Ok(0) => return Err(BackendError::Host(libc::EIO)),
            Ok(written) => offset += written,
            Err(_) => {
                let error = last_error();
                if error != INTERRUPTED {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}
