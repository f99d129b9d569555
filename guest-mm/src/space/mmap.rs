//! mmap: new mappings.

use core::ptr::{self, NonNull};

use abi::{PAGE_SHIFT, PAGE_SIZE};
use bitflags::bitflags;

use super::gaps::Room;
use super::lookup::SpaceWriteGuard;
use super::object::NewVma;
use super::structure::{AddressSpace, MAX_MAP_COUNT};
use super::vma::{VmFlags, Vma};
use crate::addr::{PMD_SIZE, USER_END, USER_START, VaRange, VirtAddr};
use crate::errno::Errno;
use crate::mm::Mm;
use crate::pagecache::FileMapping;
use crate::pgtable::PageProt;
use crate::platform::Platform;
use crate::sync::shim::Ordering;

bitflags! {
    /// How to map (`MAP_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct MapFlags: u32 {
        /// Writes are seen by all who map it.
        const SHARED = 0x01;
        /// Writes stay here.
        const PRIVATE = 0x02;
        /// Exactly at the address; what is there goes.
        const FIXED = 0x10;
        /// No file: zeros.
        const ANONYMOUS = 0x20;
        /// Lock in memory.
        const LOCKED = 0x2000;
        /// Fault everything in.
        const POPULATE = 0x8000;
        /// Exactly at the address, if nothing is there.
        const FIXED_NOREPLACE = 0x10_0000;
    }
}

/// A file to map, and what its opener may do with it.
#[derive(Debug)]
pub struct MapSource<'a, 'm, P: Platform> {
    /// The file; the VMA takes a reference of its own.
    pub file: &'a FileMapping<'m, P>,
    /// Where the mapping starts in it, in bytes.
    pub offset: u64,
    /// Opened for reading.
    pub readable: bool,
    /// Opened for writing.
    pub writable: bool,
}

impl<P: Platform> Clone for MapSource<'_, '_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for MapSource<'_, '_, P> {}

/// What mmap is asked for.
#[derive(Debug)]
pub struct MmapArgs<'a, 'm, P: Platform> {
    /// Where: a wish, or with FIXED an order. 0: anywhere.
    pub addr: u64,
    /// How much; rounded up to pages.
    pub bytes: u64,
    /// What it may be used for.
    pub prot: PageProt,
    /// How.
    pub flags: MapFlags,
    /// What, unless ANONYMOUS.
    pub source: Option<MapSource<'a, 'm, P>>,
}

impl<P: Platform> Clone for MmapArgs<'_, '_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for MmapArgs<'_, '_, P> {}

impl<P: Platform> MmapArgs<'_, '_, P> {
    /// Private zeros, readable and writable, anywhere.
    pub const fn anonymous(bytes: u64) -> Self {
        Self {
            addr: 0,
            bytes,
            prot: PageProt::READ.union(PageProt::WRITE),
            flags: MapFlags::PRIVATE.union(MapFlags::ANONYMOUS),
            source: None,
        }
    }

    /// The same exactly at `addr`.
    pub const fn fixed(self, addr: u64) -> Self {
        Self { addr, flags: self.flags.union(MapFlags::FIXED), ..self }
    }

    /// The same with `prot`.
    pub const fn prot(self, prot: PageProt) -> Self {
        Self { prot, ..self }
    }
}

/// What the arguments come to.
struct Plan<'m, P: Platform> {
    bytes: u64,
    flags: VmFlags,
    file: Option<NonNull<FileMapping<'m, P>>>,
    /// Page offset in the file.
    pgoff: u64,
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Maps memory and returns its first address.
    ///
    /// # Errors
    /// * EINVAL: no bytes; an address with FIXED, or an offset, that is not page-aligned; neither
    ///   or both of SHARED and PRIVATE; unknown bits.
    /// * EBADF: no file, and not ANONYMOUS.
    /// * EACCES: the file was not opened for reading, or not for writing and the mapping is to be shared and written.
    /// * EOVERFLOW: the last page lies beyond the largest offset.
    /// * ENOMEM: no room, no memory, [`MAX_MAP_COUNT`] VMAs, or more pages than the space may have;
    ///   with FIXED, an address outside the user half.
    /// * EPERM: FIXED below the lowest address that may be mapped.
    /// * EEXIST: FIXED_NOREPLACE, and something is there.
    ///
    /// Nothing is changed then: what FIXED was to replace is still there.
    pub fn mmap(
        &self,
        space: &AddressSpace<'m, P>,
        args: MmapArgs<'_, 'm, P>,
    ) -> Result<VirtAddr, Errno> {
        let mut plan = plan(&args)?;
        // Shared memory without a name is a file that nobody can open.
        let unnamed = match plan.file {
            None if plan.flags.contains(VmFlags::SHARED) => Some(self.shmem_file(plan.bytes)?),
            None | Some(_) => None,
        };
        if let Some(file) = &unnamed {
            plan.file = Some(NonNull::from(&**file));
        }
        let mapped = self.map_planned(&space.write(), &args, plan);
        if let Some(file) = unnamed {
            self.file_put(file);
        }
        let range = mapped?;
        if args.flags.intersects(MapFlags::POPULATE | MapFlags::LOCKED) {
            match self.fault_in_range(space, range) {
                // As on Linux nobody hears of pages that could not be had.
                Ok(()) | Err(_) => {}
            }
        }
        Ok(range.start())
    }

    fn map_planned(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        args: &MmapArgs<'_, 'm, P>,
        plan: Plan<'m, P>,
    ) -> Result<VaRange, Errno> {
        if guard.space().map_count() > MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        let range = place(guard, args, &plan)?;
        self.map_at(guard, range, plan)?;
        Ok(range)
    }

    /// Makes a VMA over `range`, in place of what is there.
    fn map_at(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        range: VaRange,
        plan: Plan<'m, P>,
    ) -> Result<(), Errno> {
        let space = guard.space();
        let replaced = guard.pages_in(range);
        let limit = space.max_pages.load(Ordering::Relaxed);
        if space.total_pages().get() - replaced + range.pages().get() > limit {
            return Err(Errno::ENOMEM);
        }
        self.isolate(guard, range)?;
        let pgoff = if plan.file.is_some() { plan.pgoff } else { range.start().page() };
        let new = NewVma::new(self, space, range, pgoff, plan.flags, plan.file)
            .and_then(|new| self.replace(guard, range, new))
            .inspect_err(|_| self.merge_ends(guard, range))?;
        self.vma_link_file(new);
        self.merge_ends(guard, range);
        Ok(())
    }

    /// Puts `new` over `range`, in place of the VMAs there, none of which sticks out.
    ///
    /// # Errors
    /// ENOMEM; nothing is changed.
    pub(super) fn replace<'g>(
        &self,
        guard: &'g SpaceWriteGuard<'_, 'm, P>,
        range: VaRange,
        new: NewVma<'_, 'm, P>,
    ) -> Result<&'g Vma<'m, P>, Errno> {
        // The new one takes over the place in the tree of what ends where it does.
        let last = range.end().checked_sub(PAGE_SIZE).and_then(|last| guard.lookup(last));
        let new = guard.insert(new)?;
        let mut removed = 0;
        for vma in guard.overlapping(range).filter(|vma| !ptr::eq(*vma, new)) {
            guard.take_out(vma);
            removed += 1;
        }
        if let Some(last) = last {
            guard.take_out(last);
            removed += 1;
        }
        self.end_removed(guard, range, removed);
        Ok(new)
    }

    /// Merges what was made with its neighbours.
    pub(super) fn merge_ends(&self, guard: &SpaceWriteGuard<'_, 'm, P>, range: VaRange) {
        self.merge_at(guard, range.start());
        self.merge_at(guard, range.end());
    }
}

/// Checks the arguments that need no look at the space.
fn plan<'m, P: Platform>(args: &MmapArgs<'_, 'm, P>) -> Result<Plan<'m, P>, Errno> {
    let known = MapFlags::all().contains(args.flags) && PageProt::all().contains(args.prot);
    if args.bytes == 0 || !known {
        return Err(Errno::EINVAL);
    }
    let bytes = args.bytes.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::ENOMEM)?;
    let shared =
        match (args.flags.contains(MapFlags::SHARED), args.flags.contains(MapFlags::PRIVATE)) {
            (true, false) => true,
            (false, true) => false,
            (true, true) | (false, false) => return Err(Errno::EINVAL),
        };
    let mut flags = VmFlags::of_prot(args.prot) | VmFlags::MAY_ALL | VmFlags::SOFTDIRTY;
    flags.set(VmFlags::SHARED, shared);
    flags.set(VmFlags::LOCKED, args.flags.contains(MapFlags::LOCKED));
    if args.flags.contains(MapFlags::ANONYMOUS) {
        return Ok(Plan { bytes, flags, file: None, pgoff: 0 });
    }
    let source = args.source.ok_or(Errno::EBADF)?;
    let pgoff = source.offset >> PAGE_SHIFT;
    if !source.offset.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    // The last index must be one: 2^52 pages are 2^64 bytes.
    if pgoff.checked_add(bytes >> PAGE_SHIFT).is_none_or(|end| end > 1 << (64 - PAGE_SHIFT)) {
        return Err(Errno::EOVERFLOW);
    }
    if !source.readable {
        return Err(Errno::EACCES);
    }
    if shared && !source.writable {
        if flags.contains(VmFlags::WRITE) {
            return Err(Errno::EACCES);
        }
        flags.remove(VmFlags::MAYWRITE);
    }
    Ok(Plan { bytes, flags, file: Some(NonNull::from(source.file)), pgoff })
}

/// Where the mapping goes.
fn place<P: Platform>(
    guard: &SpaceWriteGuard<'_, '_, P>,
    args: &MmapArgs<'_, '_, P>,
    plan: &Plan<'_, P>,
) -> Result<VaRange, Errno> {
    let range_at = |start: u64| {
        let start = VirtAddr::new(start)?;
        VaRange::new(start, start.checked_add(plan.bytes)?)
    };
    if args.flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE) {
        if plan.bytes > USER_END || args.addr > USER_END - plan.bytes {
            return Err(Errno::ENOMEM);
        }
        let range = range_at(args.addr).ok_or(Errno::EINVAL)?;
        if range.start().get() < USER_START {
            return Err(Errno::EPERM);
        }
        let keep = args.flags.contains(MapFlags::FIXED_NOREPLACE);
        return match keep && !guard.is_free(range.start(), plan.bytes) {
            true => Err(Errno::EEXIST),
            false => Ok(range),
        };
    }
    let wish = args.addr & !(PAGE_SIZE - 1);
    if wish != 0
        && let Some(range) = range_at(wish.max(USER_START))
        && guard.is_free(range.start(), plan.bytes)
    {
        return Ok(range);
    }
    let huge = Room {
        bytes: plan.bytes,
        align: PMD_SIZE,
        residue: (plan.pgoff << PAGE_SHIFT) & (PMD_SIZE - 1),
    };
    // Blocks of 2 MiB can be mapped as such only where addresses and contents agree.
    let start = Some(huge)
        .filter(|_| plan.bytes.is_multiple_of(PMD_SIZE))
        .and_then(|huge| guard.find_gap(huge))
        .or_else(|| guard.find_gap(Room::of(plan.bytes)));
    start.and_then(|start| range_at(start.get())).ok_or(Errno::ENOMEM)
}
