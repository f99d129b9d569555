//! A process for scenarios to play with.

use core::fmt;
use core::mem::ManuallyDrop;

use abi::PAGE_SIZE;

use super::{Access, Machine, Outcome, Signal, check_eq};
use crate::errno::Errno;
use crate::mm::Mm;
use crate::pgtable::PageProt;
use crate::space::{AddressSpace, Advice, MmapArgs, RemapArgs, SpaceRef};

/// An address space, and accesses to its memory by whatever thread calls.
///
/// Ends when it is dropped, so that a case that fails half-way leaves nothing;
/// the other threads that used it have left it by then.
pub struct Process<'a, 'm, M: Machine> {
    mm: &'a Mm<'m, M>,
    space: ManuallyDrop<SpaceRef<'m, M>>,
}

impl<'a, 'm, M: Machine> Process<'a, 'm, M> {
    /// A process without mappings.
    ///
    /// # Errors
    /// As [`Mm::new_space`].
    pub fn new(mm: &'a Mm<'m, M>) -> Result<Self, Errno> {
        Ok(Self::of(mm, mm.new_space()?))
    }

    /// The process of a space.
    pub const fn of(mm: &'a Mm<'m, M>, space: SpaceRef<'m, M>) -> Self {
        Self { mm, space: ManuallyDrop::new(space) }
    }

    /// The space.
    pub fn space(&self) -> &AddressSpace<'m, M> {
        &self.space
    }

    /// The memory manager.
    pub const fn mm(&self) -> &'a Mm<'m, M> {
        self.mm
    }

    /// Maps memory.
    ///
    /// # Errors
    /// As [`Mm::mmap`].
    pub fn mmap(&self, args: MmapArgs<'_, 'm, M>) -> Result<u64, Errno> {
        Ok(self.mm.mmap(&self.space, args)?.get())
    }

    /// Unmaps memory.
    ///
    /// # Errors
    /// As [`Mm::munmap`].
    pub fn munmap(&self, start: u64, bytes: u64) -> Result<(), Errno> {
        self.mm.munmap(&self.space, start, bytes)
    }

    /// Changes rights.
    ///
    /// # Errors
    /// As [`Mm::mprotect`].
    pub fn mprotect(&self, start: u64, bytes: u64, prot: PageProt) -> Result<(), Errno> {
        self.mm.mprotect(&self.space, start, bytes, prot)
    }

    /// Gives advice.
    ///
    /// # Errors
    /// As [`Mm::madvise`].
    pub fn madvise(&self, start: u64, bytes: u64, advice: Advice) -> Result<(), Errno> {
        self.mm.madvise(&self.space, start, bytes, advice)
    }

    /// Moves or resizes a mapping.
    ///
    /// # Errors
    /// As [`Mm::mremap`].
    pub fn mremap(&self, args: RemapArgs) -> Result<u64, Errno> {
        Ok(self.mm.mremap(&self.space, args)?.get())
    }

    /// Makes a child.
    ///
    /// # Errors
    /// As [`Mm::fork`].
    pub fn fork(&self) -> Result<Self, Errno> {
        Ok(Self::of(self.mm, self.mm.fork(&self.space)?))
    }

    fn access(&self, va: u64, access: Access) -> Result<u64, Signal> {
        self.mm.platform().access(self.mm, &self.space, va, access)
    }

    /// Reads the eight bytes at `va`, a multiple of 8.
    ///
    /// # Errors
    /// The signal that the process gets.
    pub fn load(&self, va: u64) -> Result<u64, Signal> {
        self.access(va, Access::LoadU64)
    }

    /// Writes the eight bytes at `va`, a multiple of 8.
    ///
    /// # Errors
    /// The signal that the process gets.
    pub fn store(&self, va: u64, value: u64) -> Result<(), Signal> {
        self.access(va, Access::StoreU64(value)).map(drop)
    }

    /// Reads a byte.
    ///
    /// # Errors
    /// The signal that the process gets.
    pub fn load_u8(&self, va: u64) -> Result<u8, Signal> {
        let value = self.access(va, Access::LoadU8)?;
        Ok(u8::try_from(value).unwrap_or_else(|_| unreachable!("a byte")))
    }

    /// Writes a byte.
    ///
    /// # Errors
    /// The signal that the process gets.
    pub fn store_u8(&self, va: u64, value: u8) -> Result<(), Signal> {
        self.access(va, Access::StoreU8(value)).map(drop)
    }

    /// Writes `new` to the eight bytes at `va` if they are `current`; returns what they were.
    ///
    /// # Errors
    /// The signal that the process gets.
    pub fn compare_exchange(&self, va: u64, current: u64, new: u64) -> Result<u64, Signal> {
        self.access(va, Access::CompareExchangeU64 { current, new })
    }

    /// Writes a pattern of `tag` to the first and last word of `pages` pages.
    ///
    /// # Errors
    /// The signal that the process gets.
    pub fn fill(&self, va: u64, pages: u64, tag: u64) -> Result<(), Signal> {
        for page in 0..pages {
            for at in words_of(va, page) {
                self.store(at, pattern(tag, page, at))?;
            }
        }
        Ok(())
    }

    /// Fails unless `pages` pages hold what [`Self::fill`] wrote to `va` with `tag`,
    /// wherever they were moved since.
    ///
    /// # Errors
    /// The failure, or the signal that the process gets.
    #[track_caller]
    pub fn expect(&self, va: u64, pages: u64, tag: u64) -> Outcome {
        for page in 0..pages {
            for at in words_of(va, page) {
                check_eq(self.load(at)?, pattern(tag, page, at), "the pattern of a page")?;
            }
        }
        Ok(())
    }
}

/// The first and the last word of page `page` from `va` on.
fn words_of(va: u64, page: u64) -> [u64; 2] {
    let start = va + page * PAGE_SIZE;
    [start, start + PAGE_SIZE - 8]
}

/// What [`Process::fill`] with `tag` writes to page `page`, at address or offset
/// `at`: it tells tag, page and place in the page apart, and is never 0.
pub const fn pattern(tag: u64, page: u64, at: u64) -> u64 {
    (tag << 40) | (page << 16) | (at % PAGE_SIZE) | 1
}

impl<M: Machine> fmt::Debug for Process<'_, '_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.space.fmt(f)
    }
}

impl<M: Machine> Drop for Process<'_, '_, M> {
    fn drop(&mut self) {
        self.mm.platform().leave();
        // SAFETY: taken once, here; nobody uses the process after its drop.
        let space = unsafe { ManuallyDrop::take(&mut self.space) };
        self.mm.exit_space(space);
    }
}
