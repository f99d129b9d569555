//! [`DriveFile`]: an open, locked file or block device.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use abi::block::SECTOR_BYTES;
use devices::block::{BackendError, BackendProperties, BlockBackend, DiskRange};
use devices::ring::CheckedDesc;
use vm_memory::GuestMemoryMmap;

use super::error::DriveError;
use super::lock::{Locked, lock};
use super::probe::{self, Kind};
use super::transfer::{Direction, read_cached, transfer, write_zeros};
use super::{INTERRUPTED, backend_error, last_error};

/// Gives the space of a range of a block device back (`linux/fs.h`: `_IO(0x12, 119)`).
const BLKDISCARD: libc::c_ulong = 0x1277;

/// A regular file or block device behind a drive.
///
/// Holding one proves that it was checked and is locked; the lock goes with it.
#[derive(Debug)]
pub struct DriveFile {
    file: File,
    path: PathBuf,
    kind: Kind,
    properties: BackendProperties,
    /// Bytes of the smallest range that can be discarded.
    discard_unit: u64,
    /// FALLOC_FL_ZERO_RANGE was refused: zeros are written.
    writes_zeros: AtomicBool,
    /// RWF_NOWAIT was refused: every read waits for as long as it takes.
    always_waits: AtomicBool,
    /// A flush has failed: the kernel has forgotten which pages it did not write, so no later
    /// flush could promise anything.
    is_unreliable: AtomicBool,
}

impl DriveFile {
    /// Opens, checks and locks what `path` leads to. Never waits for a FIFO's other end.
    ///
    /// # Errors
    /// [`DriveError`] naming the path and the reason; nothing stays open or locked.
    pub fn open(path: &Path, is_read_only: bool) -> Result<Self, DriveError> {
        let open_error = |source| DriveError::Open { path: path.to_owned(), source };
        let kind_error = |kind| DriveError::Kind { path: path.to_owned(), kind };
        // Before it is opened, because that alone can have an effect on a device.
        let seen = fs::metadata(path).map_err(open_error)?;
        let kind = probe::kind(&seen).map_err(kind_error)?;
        let file = open_file(path, kind, is_read_only)?;
        // The path may lead elsewhere by now.
        let metadata = file.metadata().map_err(open_error)?;
        if probe::kind(&metadata).map_err(kind_error)? != kind {
            return Err(open_error(io::Error::from_raw_os_error(libc::ESTALE)));
        }
        match lock(&file, !is_read_only) {
            Ok(Locked::Ours) => {}
            Ok(Locked::Taken) => {
                let (path, for_writing) = (path.to_owned(), !is_read_only);
                return Err(DriveError::Locked { path, for_writing });
            }
            Err(error) => {
                log::warn!(
                    "drive {path:?} cannot be locked, nothing keeps another VM off: {error}"
                );
            }
        }
        let sectors = measure(&file, path)?;
        let can_discard =
            !is_read_only && probe::can_discard(&file, kind, &metadata).map_err(open_error)?;
        let properties = BackendProperties {
            sectors,
            is_read_only,
            can_discard,
            physical_block_bytes: probe::physical_block_bytes(kind, &metadata),
        };
        Ok(Self {
            file,
            path: path.to_owned(),
            kind,
            properties,
            discard_unit: probe::logical_block_bytes(kind, &metadata),
            writes_zeros: AtomicBool::new(false),
            always_waits: AtomicBool::new(false),
            is_unreliable: AtomicBool::new(false),
        })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As after a flush that failed.
    #[cfg(test)]
    pub(crate) fn distrust(&self) {
        self.is_unreliable.store(true, Ordering::Relaxed);
    }

    /// Whether `path` leads to this very file.
    pub fn is_at(&self, path: &Path) -> bool {
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        match (fs::metadata(path), self.file.metadata()) {
            (Ok(there), Ok(here)) => identity(there) == identity(here),
            _ => false,
        }
    }

    /// The same file, under the same lock, with the size that it has now.
    ///
    /// # Errors
    /// [`DriveError`].
    pub fn remeasured(&self) -> Result<Self, DriveError> {
        let open_error = |source| DriveError::Open { path: self.path.clone(), source };
        let file = self.file.try_clone().map_err(open_error)?;
        let sectors = measure(&file, &self.path)?;
        Ok(Self {
            file,
            path: self.path.clone(),
            kind: self.kind,
            properties: BackendProperties { sectors, ..self.properties },
            discard_unit: self.discard_unit,
            writes_zeros: AtomicBool::new(self.writes_zeros.load(Ordering::Relaxed)),
            always_waits: AtomicBool::new(self.always_waits.load(Ordering::Relaxed)),
            is_unreliable: AtomicBool::new(self.is_unreliable.load(Ordering::Relaxed)),
        })
    }

    /// A write beyond the end would make a file that was cut grow again, with zeros in place of
    /// what was lost; a block device refuses by itself.
    fn check_end(&self, range: DiskRange) -> Result<(), BackendError> {
        if self.kind == Kind::BlockDevice {
            return Ok(());
        }
        let metadata = self.file.metadata().map_err(|error| backend_error(&error))?;
        if range.end() > metadata.len() { Err(BackendError::PastEnd) } else { Ok(()) }
    }

    fn fallocate(&self, mode: libc::c_int, range: DiskRange) -> Result<(), BackendError> {
        let too_big = |_| BackendError::Host(libc::EINVAL);
        let offset = i64::try_from(range.offset()).map_err(too_big)?;
        let len = i64::try_from(range.len()).map_err(too_big)?;
        let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
        loop {
            // SAFETY: takes numbers only; the descriptor is open as long as `self.file` lives.
            if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) } == 0 {
                return Ok(());
            }
            let error = last_error();
            if error != INTERRUPTED {
                return Err(error);
            }
        }
    }

    /// Only whole blocks can be discarded; the rest of the range keeps its contents, as it may.
    fn discard_blocks(&self, range: DiskRange) -> Result<(), BackendError> {
        let start = range.offset().next_multiple_of(self.discard_unit);
        let end = range.end() / self.discard_unit * self.discard_unit;
        if start >= end {
            return Ok(());
        }
        let blocks = [start, end - start];
        // SAFETY: BLKDISCARD reads two 64-bit numbers from `blocks`, which lives until it returns;
        // the descriptor is open as long as `self.file` lives.
        let result =
            unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD as _, blocks.as_ptr()) };
        if result == 0 { Ok(()) } else { Err(last_error()) }
    }

    /// Zeros without giving the space back, the cheapest way that the file knows.
    fn zero_in_place(&self, range: DiskRange) -> Result<(), BackendError> {
        // Relaxed: only spares a call that would be refused again.
        if !self.writes_zeros.load(Ordering::Relaxed) {
            match self.fallocate(libc::FALLOC_FL_ZERO_RANGE, range) {
                Err(BackendError::Unsupported) => self.writes_zeros.store(true, Ordering::Relaxed),
                // Ranges that are no whole blocks of a device.
                Err(BackendError::Host(libc::EINVAL)) => {}
                done => return done,
            }
        }
        write_zeros(&self.file, range)
    }
}

/// Sectors of a file or block device.
fn measure(mut file: &File, path: &Path) -> Result<u64, DriveError> {
    let bytes = file
        .seek(SeekFrom::End(0))
        .map_err(|source| DriveError::Open { path: path.to_owned(), source })?;
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(DriveError::Size { path: path.to_owned(), bytes });
    }
    Ok(bytes / SECTOR_BYTES)
}

fn open_file(path: &Path, kind: Kind, is_read_only: bool) -> Result<File, DriveError> {
    // O_NONBLOCK: should a FIFO have taken the path's place, opening it must not wait.
    let mut flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    if kind == Kind::BlockDevice && !is_read_only {
        // On a block device: fail if the host has it mounted or built into another device.
        flags |= libc::O_EXCL;
    }
    let open =
        |write: bool| OpenOptions::new().read(true).write(write).custom_flags(flags).open(path);
    open(!is_read_only).map_err(|source| {
        let path = path.to_owned();
        match source.raw_os_error() {
            Some(libc::EBUSY) if kind == Kind::BlockDevice => DriveError::InUse { path },
            Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY)
                if !is_read_only && File::open(&path).is_ok() =>
            {
                DriveError::NotWritable { path, source }
            }
            _ => DriveError::Open { path, source },
        }
    })
}

impl BlockBackend for DriveFile {
    fn properties(&self) -> BackendProperties {
        self.properties
    }

    fn read(
        &self,
        range: DiskRange,
        memory: &GuestMemoryMmap,
        to: &[CheckedDesc],
    ) -> Result<(), BackendError> {
        transfer(&self.file, Direction::FromFile, range, memory, to)
    }

    fn try_read(
        &self,
        range: DiskRange,
        memory: &GuestMemoryMmap,
        to: &[CheckedDesc],
    ) -> Result<bool, BackendError> {
        // Relaxed: only spares a call that would be refused again.
        if self.always_waits.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let read = read_cached(&self.file, range, memory, to)?;
        self.always_waits.store(read.is_none(), Ordering::Relaxed);
        Ok(read.unwrap_or(false))
    }

    fn write(
        &self,
        range: DiskRange,
        memory: &GuestMemoryMmap,
        from: &[CheckedDesc],
    ) -> Result<(), BackendError> {
        self.check_end(range)?;
        transfer(&self.file, Direction::ToFile, range, memory, from)
    }

    fn flush(&self) -> Result<(), BackendError> {
        if self.properties.is_read_only {
            return Ok(());
        }
        // Relaxed: jobs run one after another, and the final flush follows the last.
        if self.is_unreliable.load(Ordering::Relaxed) {
            return Err(BackendError::Host(libc::EIO));
        }
        self.file.sync_data().map_err(|error| {
            self.is_unreliable.store(true, Ordering::Relaxed);
            backend_error(&error)
        })
    }

    fn discard(&self, range: DiskRange) -> Result<(), BackendError> {
        if range.is_empty() {
            return Ok(());
        }
        match self.kind {
            Kind::File => self.fallocate(libc::FALLOC_FL_PUNCH_HOLE, range),
            Kind::BlockDevice => self.discard_blocks(range),
        }
    }

    fn write_zeroes(&self, range: DiskRange, may_unmap: bool) -> Result<(), BackendError> {
        if range.is_empty() {
            return Ok(());
        }
        self.check_end(range)?;
        if may_unmap && self.properties.can_discard {
            match self.fallocate(libc::FALLOC_FL_PUNCH_HOLE, range) {
                Err(BackendError::Unsupported | BackendError::Host(libc::EINVAL)) => {}
                done => return done,
            }
        }
        self.zero_in_place(range)
    }
}
