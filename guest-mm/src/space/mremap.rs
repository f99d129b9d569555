//! mremap: mappings that grow, shrink and move.

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
use crate::platform::Platform;
use crate::sync::shim::Ordering;

bitflags! {
    /// How a mapping may be changed (`MREMAP_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct RemapFlags: u32 {
        /// It may move.
        const MAYMOVE = 1;
        /// It shall move exactly to the address; what is there goes.
        const FIXED = 2;
        /// The old place stays mapped, empty.
        const DONTUNMAP = 4;
    }
}

/// What mremap is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemapArgs {
    /// Where the mapping is.
    pub old: u64,
    /// Its bytes; 0 asks for a second mapping of shared memory.
    pub old_bytes: u64,
    /// The bytes it shall have.
    pub new_bytes: u64,
    /// How.
    pub flags: RemapFlags,
    /// Where it shall go: an order with FIXED, a wish with DONTUNMAP alone.
    pub new: u64,
}

/// Checked arguments.
struct Call {
    old: VirtAddr,
    old_bytes: u64,
    new_bytes: u64,
    flags: RemapFlags,
    new: u64,
}

impl Call {
    fn old_range(&self) -> Option<VaRange> {
        VaRange::new(self.old, self.old.checked_add(self.old_bytes)?)
    }

    const fn must_move(&self) -> bool {
        self.flags.intersects(RemapFlags::FIXED.union(RemapFlags::DONTUNMAP))
    }
}

fn range_at(start: u64, bytes: u64) -> Option<VaRange> {
    let start = VirtAddr::new(start)?;
    VaRange::new(start, start.checked_add(bytes)?)
}

/// Checks what needs no look at the space, in Linux's order.
fn check(args: &RemapArgs) -> Result<Call, Errno> {
    let flags = args.flags;
    let may_move = flags.contains(RemapFlags::MAYMOVE);
    let round = |bytes: u64| bytes.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::EINVAL);
    let (old_bytes, new_bytes) = (round(args.old_bytes)?, round(args.new_bytes)?);
    let bad_flags = !RemapFlags::all().contains(flags)
        || flags.contains(RemapFlags::FIXED) && !may_move
        || flags.contains(RemapFlags::DONTUNMAP) && (!may_move || old_bytes != new_bytes);
    if bad_flags || !args.old.is_multiple_of(PAGE_SIZE) || new_bytes == 0 {
        return Err(Errno::EINVAL);
    }
    // Nothing is mapped beyond the user half.
    let old = VirtAddr::new(args.old).ok_or(Errno::EFAULT)?;
    let call = Call { old, old_bytes, new_bytes, flags, new: args.new };
    if call.must_move() {
        let target = range_at(args.new, new_bytes).ok_or(Errno::EINVAL)?;
        let source = call.old_range();
        if source.is_some_and(|source| source.intersection(target).is_some()) {
            return Err(Errno::EINVAL);
        }
        if flags.contains(RemapFlags::FIXED) && args.new < USER_START {
            return Err(Errno::EPERM);
        }
    }
    Ok(call)
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Makes a mapping larger or smaller, or moves it; returns where it is then.
    ///
    /// # Errors
    /// * EINVAL: flags that do not go together; addresses not page-aligned; no new bytes; a target that
    ///   leaves the user half or overlaps the mapping; no old bytes of a private mapping; an
    ///   offset beyond the largest.
    /// * EFAULT: nothing is mapped at `old`, or not all of the old range by one VMA.
    /// * ENOMEM: no room, no memory, too many VMAs or pages; or it cannot grow where it is and may not move.
    /// * EPERM: FIXED below the lowest address that may be mapped.
    ///
    /// Nothing is changed then, but that with FIXED the target may have been
    /// unmapped and a longer mapping shortened, as on Linux.
    pub fn mremap(&self, space: &AddressSpace<'m, P>, args: RemapArgs) -> Result<VirtAddr, Errno> {
        let call = check(&args)?;
        let at = self.remap_locked(&space.write(), &call)?;
        self.fault_in_grown(space, &call, at);
        Ok(at)
    }

    /// Faults in what was added to memory that is locked; as on Linux nobody hears if that fails.
    fn fault_in_grown(&self, space: &AddressSpace<'m, P>, call: &Call, at: VirtAddr) {
        let added = call.new_bytes.checked_sub(call.old_bytes).filter(|added| *added > 0);
        let Some(added) =
            added.and_then(|added| range_at(at.get().checked_add(call.old_bytes)?, added))
        else {
            return;
        };
        let is_locked = {
            let guard = space.read();
            let vma = guard.lookup(added.start());
            vma.is_some_and(|vma| vma.flags().contains(VmFlags::LOCKED))
        };
        if is_locked {
            match self.fault_in_range(space, added) {
                Ok(()) | Err(_) => {}
            }
        }
    }

    fn remap_locked(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        call: &Call,
    ) -> Result<VirtAddr, Errno> {
        let vma = guard.lookup(call.old).ok_or(Errno::EFAULT)?;
        if call.must_move() {
            return self.remap_to(guard, vma, call);
        }
        if call.old_bytes >= call.new_bytes {
            self.cut_tail(guard, call)?;
            return Ok(call.old);
        }
        check_resize(guard, vma, call)?;
        if self.grow_in_place(guard, vma, call) {
            return Ok(call.old);
        }
        if !call.flags.contains(RemapFlags::MAYMOVE) {
            return Err(Errno::ENOMEM);
        }
        let room = room_like(vma, call);
        let to = guard.find_gap(room).or_else(|| guard.find_gap(Room::of(call.new_bytes)));
        self.move_vma(guard, call, to.ok_or(Errno::ENOMEM)?)
    }

    /// Unmaps what a shorter mapping has too much.
    fn cut_tail(&self, guard: &SpaceWriteGuard<'_, 'm, P>, call: &Call) -> Result<(), Errno> {
        if call.old_bytes <= call.new_bytes {
            return Ok(());
        }
        let tail = call
            .old_range()
            .and_then(|old| VaRange::new(call.old.checked_add(call.new_bytes)?, old.end()));
        self.unmap_locked(guard, tail.ok_or(Errno::EINVAL)?)
    }

    /// FIXED and DONTUNMAP.
    fn remap_to(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        vma: &Vma<'m, P>,
        call: &Call,
    ) -> Result<VirtAddr, Errno> {
        // Target and tail may each leave a VMA more than before.
        if guard.space().map_count() + 2 >= MAX_MAP_COUNT - 3 {
            return Err(Errno::ENOMEM);
        }
        check_resize(guard, vma, call)?;
        let kept = Call { old_bytes: call.old_bytes.min(call.new_bytes), ..*call };
        let target = range_at(call.new, call.new_bytes).ok_or(Errno::EINVAL)?;
        if call.flags.contains(RemapFlags::FIXED) {
            self.unmap_locked(guard, target)?;
        }
        self.cut_tail(guard, call)?;
        let wish_is_free = call.new >= USER_START && guard.is_free(target.start(), call.new_bytes);
        let to = if call.flags.contains(RemapFlags::FIXED) || wish_is_free {
            target.start()
        } else {
            let vma = guard.lookup(call.old).ok_or(Errno::EFAULT)?;
            let room = guard.find_gap(room_like(vma, call));
            room.or_else(|| guard.find_gap(Room::of(call.new_bytes))).ok_or(Errno::ENOMEM)?
        };
        self.move_vma(guard, &kept, to)
    }

    /// Lets the VMA end later, if it ends where the old range does and there is room.
    fn grow_in_place(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        vma: &Vma<'m, P>,
        call: &Call,
    ) -> bool {
        let (Some(old), Some(end)) = (call.old_range(), call.old.checked_add(call.new_bytes))
        else {
            return false;
        };
        let Some(whole) = VaRange::new(vma.start(), end) else { return false };
        if vma.end() != old.end() || !guard.is_free(old.end(), call.new_bytes - call.old_bytes) {
            return false;
        }
        guard.lock_vma(vma);
        if guard.move_key(vma, end).is_err() {
            return false;
        }
        let pgoff = vma.pgoff();
        vma.set_flags(vma.flags() | VmFlags::SOFTDIRTY);
        self.adjust_vmas(&[vma], || vma.set_span(whole, pgoff));
        guard.count(0, ((call.new_bytes - call.old_bytes) >> PAGE_SHIFT).cast_signed());
        self.merge_at(guard, end);
        true
    }

    /// Moves `old_bytes` to `to`, where `new_bytes` are free.
    ///
    /// # Errors
    /// ENOMEM; everything is where it was.
    fn move_vma(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        call: &Call,
        to: VirtAddr,
    ) -> Result<VirtAddr, Errno> {
        let space = guard.space();
        if space.map_count() >= MAX_MAP_COUNT - 3 {
            return Err(Errno::ENOMEM);
        }
        let target = range_at(to.get(), call.new_bytes).ok_or(Errno::ENOMEM)?;
        let source = call.old_range().ok_or(Errno::EFAULT)?;
        if source.is_empty() {
            return self.map_again(guard, call.old, target);
        }
        self.isolate(guard, source)?;
        let moved = self.move_isolated(guard, source, target);
        let Ok(()) = moved else {
            self.merge_ends(guard, source);
            return Err(Errno::ENOMEM);
        };
        if call.flags.contains(RemapFlags::DONTUNMAP) {
            self.empty_source(guard, source);
        } else {
            self.remove(guard, source);
        }
        self.merge_ends(guard, target);
        Ok(to)
    }

    /// Makes a VMA over `target` that continues the one over `source`, and moves the leaves.
    fn move_isolated(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        source: VaRange,
        target: VaRange,
    ) -> Result<(), Errno> {
        let old = guard.lookup(source.start()).ok_or(Errno::EFAULT)?;
        guard.lock_vma(old);
        let new = self.continue_vma(guard, old, source.start(), target)?;
        // Reverse maps wait meanwhile: no leaf is between its two places for them.
        let moved = self
            .adjust_vmas(&[old, new], || self.move_leaves(guard.space(), source, target.start()));
        let Err(error) = moved else { return Ok(()) };
        self.adjust_vmas(&[old, new], || self.move_back(guard, source, target, error.moved));
        self.remove(guard, target);
        Err(Errno::ENOMEM)
    }

    /// Undoes the first `moved` bytes of a move.
    fn move_back(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        source: VaRange,
        target: VaRange,
        moved: u64,
    ) {
        let Some(part) = range_at(target.start().get(), moved) else { return };
        let back = self.move_leaves(guard.space(), part, source.start());
        debug_assert!(back.is_ok(), "the tables that they came from are still there: {back:?}");
    }

    /// A VMA over `target` whose first page is what `old` has at `from`.
    fn continue_vma<'g>(
        &self,
        guard: &'g SpaceWriteGuard<'_, 'm, P>,
        old: &Vma<'m, P>,
        from: VirtAddr,
        target: VaRange,
    ) -> Result<&'g Vma<'m, P>, Errno> {
        // Anonymous memory without a folio so far counts from where it is.
        let fresh = old.is_anonymous() && old.anon_vma().is_none();
        let pgoff = if fresh { target.start().page() } else { old.linear_index(from) };
        // What has moved counts as written, also where a whole table moves unseen.
        let flags = old.flags() | VmFlags::SOFTDIRTY;
        let new = NewVma::new(self, guard.space(), target, pgoff, flags, old.file())?;
        self.anon_vma_clone(new.vma(), old)?;
        let new = guard.insert(new)?;
        self.vma_link_file(new);
        Ok(new)
    }

    /// A second mapping of shared memory: what mremap of no bytes asks for.
    fn map_again(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        from: VirtAddr,
        target: VaRange,
    ) -> Result<VirtAddr, Errno> {
        let old = guard.lookup(from).ok_or(Errno::EFAULT)?;
        self.continue_vma(guard, old, from, target)?;
        self.merge_ends(guard, target);
        Ok(target.start())
    }

    /// What DONTUNMAP leaves: a VMA without pages, and for itself.
    fn empty_source(&self, guard: &SpaceWriteGuard<'_, 'm, P>, source: VaRange) {
        let freed = self.unmap_leaves(guard.space(), source);
        debug_assert!(freed.is_ok(), "nothing is left there: {freed:?}");
        if let Some(vma) = guard.lookup(source.start()) {
            vma.set_flags(vma.flags() - VmFlags::LOCKED);
            self.anon_vma_unlink(vma);
        }
        self.merge_ends(guard, source);
    }
}

/// Whether the mapping may have `new_bytes` at all.
fn check_resize<P: Platform>(
    guard: &SpaceWriteGuard<'_, '_, P>,
    vma: &Vma<'_, P>,
    call: &Call,
) -> Result<(), Errno> {
    let flags = vma.flags();
    if call.old_bytes == 0 && !flags.contains(VmFlags::SHARED) {
        return Err(Errno::EINVAL);
    }
    let special = flags.contains(VmFlags::PFNMAP);
    if special && call.flags.contains(RemapFlags::DONTUNMAP) {
        return Err(Errno::EINVAL);
    }
    if call.old_range().is_none_or(|old| old.end() > vma.end()) {
        return Err(Errno::EFAULT);
    }
    let pages = call.new_bytes >> PAGE_SHIFT;
    let end = vma.linear_index(call.old).checked_add(pages);
    if end.is_none_or(|end| end > 1 << (64 - PAGE_SHIFT)) {
        return Err(Errno::EINVAL);
    }
    let more = if call.flags.contains(RemapFlags::DONTUNMAP) {
        pages
    } else {
        pages.saturating_sub(call.old_bytes >> PAGE_SHIFT)
    };
    if special && more > 0 {
        return Err(Errno::EFAULT);
    }
    let space = guard.space();
    if more > 0 && space.total_pages().get() + more > space.max_pages.load(Ordering::Relaxed)
        || call.new_bytes > USER_END
    {
        return Err(Errno::ENOMEM);
    }
    Ok(())
}

/// Room where 2 MiB blocks stay blocks.
fn room_like<P: Platform>(vma: &Vma<'_, P>, call: &Call) -> Room {
    let residue = match vma.is_anonymous() {
        true => call.old.get(),
        false => vma.linear_index(call.old) << PAGE_SHIFT,
    };
    if call.new_bytes < PMD_SIZE {
        return Room::of(call.new_bytes);
    }
    Room { bytes: call.new_bytes, align: PMD_SIZE, residue: residue & (PMD_SIZE - 1) }
}
