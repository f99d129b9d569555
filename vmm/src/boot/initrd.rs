//! The initial RAM disk: a file, and where it lies in guest RAM.

use std::fs::File;
use std::io::{self, Seek};
use std::path::Path;

use abi::{PAGE_SIZE, PfnRange};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout;

/// An initrd that can be loaded again when the guest reboots.
#[derive(Debug)]
pub struct InitrdFile {
    /// Opened once: its path may be gone at the reboot.
    file: File,
    path: String,
}

/// Where an initrd lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Guest-physical, page-aligned.
    pub(super) gpa: u64,
    pub(super) bytes: u64,
}

impl InitrdFile {
    /// Opens a regular file that is not empty.
    ///
    /// # Errors
    /// [`InitrdError::Open`], [`InitrdError::Empty`].
    pub fn open(path: &Path) -> Result<Self, InitrdError> {
        let name = path.display().to_string();
        let file = super::open_regular(path)
            .map_err(|source| InitrdError::Open { path: name.clone(), source })?;
        let initrd = Self { file, path: name };
        initrd.len()?;
        Ok(initrd)
    }

    /// Its present length, which is not 0.
    fn len(&self) -> Result<u64, InitrdError> {
        let metadata = self.file.metadata();
        let metadata =
            metadata.map_err(|source| InitrdError::Read { path: self.path.clone(), source })?;
        match metadata.len() {
            0 => Err(InitrdError::Empty { path: self.path.clone() }),
            bytes => Ok(bytes),
        }
    }

    /// Where the file, as long as it is now, shall lie: as high as possible below `end` and below the hole for
    /// devices, beside the kernel.
    ///
    /// `kernel`: (start, end) of what the kernel occupies.
    ///
    /// # Errors
    /// [`InitrdError`]; [`InitrdError::DoesNotFit`] when there is no such place.
    pub(super) fn place(
        &self,
        ram: &[PfnRange],
        end: u64,
        kernel: &[(u64, u64)],
    ) -> Result<Place, InitrdError> {
        let bytes = self.len()?;
        let free = || layout::kernel_ram(ram).filter(|&(start, _)| start < end.min(1 << 32));
        let gpa = free().filter_map(|(low, high)| highest(bytes, low, high.min(end), kernel)).max();
        match gpa {
            Some(gpa) => Ok(Place { gpa, bytes }),
            None => Err(InitrdError::DoesNotFit {
                path: self.path.clone(),
                bytes,
                ram: layout::list(free().map(|(low, high)| (low, high.min(end)))),
                kernel: layout::list(kernel.iter().copied()),
            }),
        }
    }

    /// Copies the file into guest RAM.
    ///
    /// # Errors
    /// [`InitrdError::Truncated`] when it has become shorter than `place`.
    pub(super) fn load(
        &mut self,
        memory: &GuestMemoryMmap,
        place: Place,
    ) -> Result<(), InitrdError> {
        let failed = |source| InitrdError::Read { path: self.path.clone(), source };
        self.file.rewind().map_err(failed)?;
        let mut read = 0;
        while read < place.bytes {
            let left = usize::try_from(place.bytes - read).unwrap_or(usize::MAX);
            let to = GuestAddress(place.gpa + read);
            let step = memory.read_volatile_from(to, &mut self.file, left);
            match step.map_err(|error| failed(io::Error::other(error)))? {
                0 => {
                    let path = self.path.clone();
                    return Err(InitrdError::Truncated { path, bytes: place.bytes, read });
                }
                step => read += step as u64,
            }
        }
        Ok(())
    }
}

/// The highest page-aligned address in `low..high` with room for `bytes` that touch no page of `taken`.
///
/// One pass from the highest start down, since a file may have tens of thousands of segments: whoever gives way to
/// one lies below its start, and so below everything that was passed before.
fn highest(bytes: u64, low: u64, mut high: u64, taken: &[(u64, u64)]) -> Option<u64> {
    let mut taken = taken.to_vec();
    taken.sort_unstable();
    let below = |high: u64| Some(high.checked_sub(bytes)? / PAGE_SIZE * PAGE_SIZE);
    let mut gpa = below(high)?;
    for &(start, end) in taken.iter().rev() {
        let last_page_end = gpa + bytes.next_multiple_of(PAGE_SIZE);
        if start < last_page_end && gpa < end {
            // The start may lie in the page that `high` cuts.
            high = start.min(high) / PAGE_SIZE * PAGE_SIZE;
            gpa = below(high)?;
        }
    }
    (gpa >= low).then_some(gpa)
}

/// The initrd cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// The file cannot be opened.
    #[error("Cannot open initrd {path}")]
    Open {
        /// Its path.
        path: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("Cannot read initrd {path}")]
    Read {
        /// Its path.
        path: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The file has no bytes.
    #[error("Initrd {path} is empty")]
    Empty {
        /// Its path.
        path: String,
    },
    /// The file became shorter while it was read.
    #[error("Initrd {path} had {bytes} B and ended after {read} B while it was read")]
    Truncated {
        /// Its path.
        path: String,
        /// What it had.
        bytes: u64,
        /// What was read.
        read: u64,
    },
    /// There is no room beside the kernel.
    #[error(
        "Initrd {path} of {bytes} B does not fit: RAM for it is {ram}, of which the kernel has {kernel}"
    )]
    DoesNotFit {
        /// Its path.
        path: String,
        /// Its length.
        bytes: u64,
        /// The ranges that there are.
        ram: String,
        /// The ranges that the kernel occupies.
        kernel: String,
    },
}

#[cfg(test)]
mod tests {
    use abi::{PageCount, Pfn};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_that_ends_early_is_told_with_both_lengths() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), vec![5; 0x3000]).expect("written");
        let mut initrd = InitrdFile::open(file.path()).expect("an initrd");
        let pages = PageCount::new(512);
        let ram = [PfnRange::from_start(Pfn::ZERO, pages).expect("in range")];
        let place = initrd.place(&ram, u64::MAX, &[]).expect("there is room");
        file.as_file().set_len(0x1234).expect("truncated");
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).expect("2 MiB");
        let error = initrd.load(&memory, place).expect_err("truncated").to_string();
        assert!(error.contains("had 12288 B and ended after 4660 B"), "{error}");
    }

    #[test]
    fn a_limit_at_or_below_the_floor_leaves_no_room() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), [1]).expect("written");
        let initrd = InitrdFile::open(file.path()).expect("an initrd");
        let pages = PageCount::new(512);
        let ram = [PfnRange::from_start(Pfn::ZERO, pages).expect("in range")];
        for end in [0, 1, 0x10_0000, 0x10_0fff] {
            let place = initrd.place(&ram, end, &[]);
            let fits = end > layout::KERNEL_FLOOR;
            assert_eq!(place.is_ok(), fits, "{end:#x}: {place:?}");
        }
    }

    proptest! {
        #[test]
        fn the_place_is_the_highest_whole_pages_that_nobody_has(
            bytes in 1u64..0x9000,
            low in 0u64..8,
            high in 0u64..0x2_0000,
            taken in prop::collection::vec((0u64..0x2_0000, 0u64..0x6000), 0..4),
        ) {
            let low = low * PAGE_SIZE;
            let taken: Vec<_> = taken.into_iter().map(|(start, len)| (start, start + len)).collect();
            let is_free = |gpa: u64| {
                let end = gpa + bytes.next_multiple_of(PAGE_SIZE);
                gpa >= low
                    && gpa + bytes <= high
                    && taken.iter().all(|&(from, to)| to <= gpa || end <= from)
            };
            let wanted = (0..0x20).map(|page| page * PAGE_SIZE).rfind(|&gpa| is_free(gpa));
            prop_assert_eq!(highest(bytes, low, high, &taken), wanted);
        }
    }
}
