//! Hotplug memory as vCPUs reach it: KVM memory slots that come and go with what is plugged.
//!
//! KVM has a slot for each part of the region in which a block is plugged, and
//! none for the rest: an access there finds nothing, as on an empty bus. Within
//! a part that has a slot, unplugged blocks can be reached by a guest that breaks the rules; where blocks
//! and slots have the same size there are none such.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use abi::{PageCount, PfnRange};
use devices::mem::BlockMemory;
use guest_ram::{HostRam, Region};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

/// What has memory slots: a VM.
pub(crate) trait MemorySlots: Send + Sync {
    /// Creates the slot, or deletes it if its size is 0.
    ///
    /// # Safety
    /// `userspace_addr..+memory_size` stays guest memory of this process while the VM has the
    /// slot, and no other slot covers it.
    unsafe fn set_slot(&self, slot: kvm_userspace_memory_region) -> io::Result<()>;
}

impl MemorySlots for VmFd {
    unsafe fn set_slot(&self, slot: kvm_userspace_memory_region) -> io::Result<()> {
        // SAFETY: the caller's contract is the callee's.
        let set = unsafe { self.set_user_memory_region(slot) };
        set.map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

/// The slots of a region.
pub(crate) struct GuestSlots {
    region: Region,
    /// Number of the first.
    first: u32,
    slot_pages: PageCount,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Does not keep the VM open: a reboot closes it.
    vm: Option<Weak<dyn MemorySlots>>,
    /// Which parts have a slot.
    mapped: Vec<bool>,
}

impl GuestSlots {
    /// Slots of `slot_pages` for `region`, a whole number of them, from number `first` on.
    pub(crate) fn new(region: Region, first: u32, slot_pages: PageCount) -> Self {
        Self { region, first, slot_pages, state: Mutex::default() }
    }

    /// Makes them slots of `vm`, in which nothing is plugged yet.
    pub(crate) fn connect<V: MemorySlots + 'static>(&self, vm: &Arc<V>) {
        let parts = self.region.pfns().len().get() / self.slot_pages.get().max(1);
        let mapped = vec![false; usize::try_from(parts).unwrap_or(0)];
        let vm: Weak<V> = Arc::downgrade(vm);
        *self.lock() = State { vm: Some(vm), mapped };
    }

    /// The parts that `range` touches.
    fn parts(&self, range: PfnRange) -> std::ops::Range<usize> {
        let part = |pages: PageCount| {
            let part = pages.get().div_ceil(self.slot_pages.get().max(1));
            usize::try_from(part).unwrap_or(usize::MAX)
        };
        let base = self.region.pfns().start();
        let offset = |pfn: abi::Pfn| pfn.offset_from(base).unwrap_or_default();
        let after_start = offset(range.start()).saturating_add(PageCount::ONE);
        part(after_start).saturating_sub(1)..part(offset(range.end()))
    }

    /// The frames of part number `part`.
    fn frames(&self, part: usize) -> Option<PfnRange> {
        let offset = PageCount::new(self.slot_pages.get().checked_mul(part as u64)?);
        PfnRange::from_start(self.region.pfns().start().checked_add(offset)?, self.slot_pages)
    }

    /// Gives every part that `range` touches a slot; returns those that had none. On an error nothing has changed.
    fn map(&self, range: PfnRange) -> io::Result<Vec<usize>> {
        let mut state = self.lock();
        let mut added = Vec::new();
        for part in self.parts(range) {
            if state.mapped.get(part).copied() != Some(false) {
                continue;
            }
            if let Err(error) = self.set(&state, part, true) {
                self.unmap_locked(&mut state, &added);
                return Err(error);
            }
            state.mapped[part] = true;
            added.push(part);
        }
        Ok(added)
    }

    /// Takes the slots of those of `ranges`' parts for which `is_unused` says so.
    fn unmap_unused(&self, ranges: &[PfnRange], is_unused: impl Fn(PfnRange) -> bool) {
        let mut parts: Vec<usize> = ranges.iter().flat_map(|range| self.parts(*range)).collect();
        parts.dedup();
        parts.retain(|&part| self.frames(part).is_some_and(&is_unused));
        self.unmap(&parts);
    }

    fn unmap(&self, parts: &[usize]) {
        self.unmap_locked(&mut self.lock(), parts);
    }

    fn unmap_locked(&self, state: &mut State, parts: &[usize]) {
        for &part in parts {
            if state.mapped.get(part).copied() != Some(true) {
                continue;
            }
            match self.set(state, part, false) {
                Ok(()) => state.mapped[part] = false,
                // Its memory is released all the same.
                Err(error) => log::error!("Memory slot of part {part} cannot be removed: {error}"),
            }
        }
    }

    /// Creates or deletes the slot of `part`.
    fn set(&self, state: &State, part: usize, is_there: bool) -> io::Result<()> {
        // Without a VM there is nobody who could look.
        let Some(vm) = state.vm.as_ref().and_then(Weak::upgrade) else { return Ok(()) };
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let frames = self.frames(part).ok_or_else(invalid)?;
        let offset = frames.start().gpa() - self.region.gpa();
        let number = u32::try_from(part).map_err(|_| invalid())?;
        let slot = kvm_userspace_memory_region {
            slot: self.first + number,
            flags: 0,
            guest_phys_addr: frames.start().gpa(),
            memory_size: if is_there { frames.len().bytes() } else { 0 },
            userspace_addr: self.region.hva() + offset,
        };
        // SAFETY: KVM needs `userspace_addr..+memory_size` to stay guest memory while the VM has
        // the slot: the part lies in `region`, which belongs to the `HostRam` that `Machine` holds
        // and drops after the VM. No other slot covers it: `first` is above those of RAM, and parts
        // are disjoint.
        unsafe { vm.set_slot(slot) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic between an ioctl and the note of it leaves a slot that is deleted with the VM.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory behind the memory device: the host's, and the slots through which vCPUs see it.
pub(crate) struct HotplugBlocks {
    pub(crate) ram: Arc<HostRam>,
    pub(crate) slots: Arc<GuestSlots>,
}

impl BlockMemory for HotplugBlocks {
    fn plug(&mut self, range: PfnRange) -> io::Result<()> {
        let added = self.slots.map(range)?;
        // Only now do devices see it: what the guest is told of is there for both.
        self.ram.plug(range).inspect_err(|_| self.slots.unmap(&added))
    }

    fn unplug(&mut self, ranges: &[PfnRange]) -> io::Result<()> {
        let (ram, slots) = (&self.ram, &self.slots);
        ram.unplug(ranges, || slots.unmap_unused(ranges, |part| ram.is_unplugged(part)))
    }
}

#[cfg(test)]
mod tests {
    use abi::Pfn;
    use devices::ram::GuestRam;
    use guest_ram::{BackingKind, Prefault};
    use vm_memory::{GuestAddress, GuestMemoryBackend};

    use super::*;

    const MIB: u64 = 1 << 20;
    const BASE: u64 = 4 << 30;

    /// A VM that notes its slots: number and MiB of the region, or none.
    #[derive(Default)]
    struct FakeVm {
        slots: Mutex<Vec<(u32, u64)>>,
        /// The host refuses this slot.
        refused: Mutex<Option<u32>>,
    }

    impl MemorySlots for FakeVm {
        unsafe fn set_slot(&self, slot: kvm_userspace_memory_region) -> io::Result<()> {
            if *self.refused.lock().unwrap() == Some(slot.slot) {
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            }
            let mut slots = self.slots.lock().unwrap();
            slots.retain(|(number, _)| *number != slot.slot);
            if slot.memory_size > 0 {
                assert_eq!(slot.memory_size, 16 * MIB);
                slots.push((slot.slot, (slot.guest_phys_addr - BASE) / MIB));
                slots.sort_unstable();
            }
            Ok(())
        }
    }

    /// 64 MiB of hotplug memory in slots of 16 MiB, from number 3 on.
    fn blocks() -> (HotplugBlocks, Arc<FakeVm>) {
        let ram =
            HostRam::with_hotplug(4 * MIB, BackingKind::Anon, Prefault::OnDemand, Some(64 * MIB));
        let ram = Arc::new(ram.expect("68 MiB"));
        let region = ram.hotplug_region().expect("a region");
        let slots = Arc::new(GuestSlots::new(region, 3, PageCount::new(16 << 8)));
        let vm = Arc::new(FakeVm::default());
        slots.connect(&vm);
        (HotplugBlocks { ram, slots }, vm)
    }

    fn part(at: u64, mib: u64) -> PfnRange {
        PfnRange::from_start(Pfn::containing(BASE + at * MIB), PageCount::new(mib << 8)).unwrap()
    }

    fn slots_of(vm: &FakeVm) -> Vec<(u32, u64)> {
        vm.slots.lock().unwrap().clone()
    }

    #[test]
    fn slots_are_there_while_a_block_in_them_is_plugged() {
        let (mut blocks, vm) = blocks();
        assert_eq!(slots_of(&vm), []);
        blocks.plug(part(0, 2)).unwrap();
        assert_eq!(slots_of(&vm), [(3, 0)]);
        blocks.plug(part(14, 4)).unwrap();
        assert_eq!(slots_of(&vm), [(3, 0), (4, 16)]);
        blocks.plug(part(62, 2)).unwrap();
        assert_eq!(slots_of(&vm), [(3, 0), (4, 16), (6, 48)]);
        blocks.unplug(&[part(14, 4)]).unwrap();
        assert_eq!(slots_of(&vm), [(3, 0), (6, 48)], "0 to 2 MiB are left in the first");
        blocks.unplug(&[part(0, 2), part(62, 2)]).unwrap();
        assert_eq!(slots_of(&vm), []);
    }

    #[test]
    fn a_plug_that_the_host_refuses_leaves_no_slot_and_no_memory() {
        let (mut blocks, vm) = blocks();
        *vm.refused.lock().unwrap() = Some(5);
        assert!(blocks.plug(part(0, 64)).is_err());
        assert_eq!(slots_of(&vm), []);
        assert!(!blocks.ram.present().address_in_range(GuestAddress(BASE)));
        blocks.plug(part(0, 32)).unwrap();
        assert_eq!(slots_of(&vm), [(3, 0), (4, 16)]);
    }

    #[test]
    fn another_machine_starts_without_slots_and_gets_its_own() {
        let (mut blocks, first) = blocks();
        blocks.plug(part(0, 2)).unwrap();
        blocks.unplug(&[part(0, 2)]).unwrap();
        let second = Arc::new(FakeVm::default());
        blocks.slots.connect(&second);
        drop(first);
        blocks.plug(part(16, 2)).unwrap();
        assert_eq!(slots_of(&second), [(4, 16)]);
    }

    #[test]
    fn without_a_machine_memory_still_comes_and_goes() {
        let (mut blocks, vm) = blocks();
        drop(vm);
        blocks.plug(part(0, 2)).unwrap();
        assert!(blocks.ram.present().address_in_range(GuestAddress(BASE)));
        blocks.unplug(&[part(0, 2)]).unwrap();
    }
}
