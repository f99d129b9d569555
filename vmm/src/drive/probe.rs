//! What a file or block device can do, found out without changing it.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    BlockDevice,
}

/// A drive's kind, or what it is instead.
pub(super) fn kind(metadata: &Metadata) -> Result<Kind, &'static str> {
    let kind = metadata.file_type();
    if kind.is_file() {
        Ok(Kind::File)
    } else if kind.is_block_device() {
        Ok(Kind::BlockDevice)
    } else if kind.is_dir() {
        Err("a directory")
    } else if kind.is_char_device() {
        Err("a character device")
    } else if kind.is_fifo() {
        Err("a FIFO")
    } else if kind.is_socket() {
        Err("a socket")
    } else {
        Err("a special file")
    }
}

/// Whether space can be given back.
pub(super) fn can_discard(file: &File, kind: Kind, metadata: &Metadata) -> io::Result<bool> {
    match kind {
        Kind::File => can_punch_holes(file, metadata.len()),
        Kind::BlockDevice => {
            Ok(device_queue(metadata, "discard_max_bytes").is_some_and(|max| max > 0))
        }
    }
}

/// Tries on a page beyond the end, where there is nothing to lose and nothing is added.
fn can_punch_holes(file: &File, size: u64) -> io::Result<bool> {
    let at = i64::try_from(size).unwrap_or(i64::MAX - 4096);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: takes numbers only; the descriptor is open, because `file` is borrowed.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, at, 4096) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::EFBIG) => Ok(false),
        _ => Err(error),
    }
}

/// Smallest write that needs no read before it, in bytes: what the file system or device says,
/// within what a disk may be.
pub(super) fn physical_block_bytes(kind: Kind, metadata: &Metadata) -> u32 {
    let said = match kind {
        Kind::File => Some(metadata.blksize()),
        Kind::BlockDevice => device_queue(metadata, "physical_block_size"),
    };
    let bytes = said.unwrap_or(512).clamp(512, 64 << 10);
    let bytes = u32::try_from(bytes).unwrap_or(512);
    // A power of two: the largest that is not above it.
    1 << bytes.ilog2()
}

/// Bytes of the smallest range that a block device can discard.
pub(super) fn logical_block_bytes(kind: Kind, metadata: &Metadata) -> u64 {
    match kind {
        Kind::File => 1,
        Kind::BlockDevice => device_queue(metadata, "logical_block_size").unwrap_or(512),
    }
}

/// A figure of a block device's queue; a partition has that of its disk.
fn device_queue(metadata: &Metadata, name: &str) -> Option<u64> {
    let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    let device = format!("/sys/dev/block/{major}:{minor}");
    let read = |path: String| fs::read_to_string(path).ok()?.trim().parse().ok();
    read(format!("{device}/queue/{name}")).or_else(|| read(format!("{device}/../queue/{name}")))
}
