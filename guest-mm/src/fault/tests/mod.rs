//! Faults on the host: what they leave in the tables, and what programs read afterwards.

mod anon;
mod family;
mod file;
mod huge;
mod rights;
mod swap;

use core::sync::atomic::{AtomicU64, Ordering};

use abi::{PAGE_SHIFT, PAGE_SIZE};

use super::{FaultAccess, FaultError, FaultEvent, FaultOutcome, FaultStats};
use crate::addr::{VaRange, VirtAddr};
use crate::mm::{Base, Mm};
use crate::pgtable::{Entry, Found, PageProt, Pte, PteState};
use crate::platform::Platform;
use crate::space::{AddressSpace, MmapArgs, SpaceRef};
use crate::testing::{self, TestPlatform};

/// A machine of 16 MiB with one process.
pub(super) struct World {
    pub(super) mm: Mm<'static, TestPlatform>,
    pub(super) space: Option<SpaceRef<'static, TestPlatform>>,
    free_before: u64,
}

impl World {
    pub(super) fn new() -> Self {
        Self::of(4096)
    }

    pub(super) fn of(pages: u64) -> Self {
        Self::with(pages, |_| {})
    }

    /// A machine of `pages` pages on which `setup` has taken what [`Self::end_with`] gives back.
    pub(super) fn with(pages: u64, setup: impl FnOnce(&Mm<'static, TestPlatform>)) -> Self {
        // Leaked: handles borrow it for as long as they like.
        let base = Box::leak(Box::new(Base::new(testing::memory(pages)).unwrap()));
        let mm = Mm::new(base);
        let free_before = base.memory.free_pages().get();
        setup(&mm);
        let space = Some(mm.new_space().unwrap());
        Self { mm, space, free_before }
    }

    pub(super) fn space(&self) -> &AddressSpace<'static, TestPlatform> {
        self.space.as_ref().unwrap()
    }

    pub(super) fn base(&self) -> &'static Base<TestPlatform> {
        self.mm.base()
    }

    pub(super) fn platform(&self) -> &TestPlatform {
        self.mm.base().platform()
    }

    /// Maps private zeros.
    pub(super) fn map(&self, pages: u64) -> u64 {
        let args = MmapArgs::anonymous(pages * PAGE_SIZE);
        self.mm.mmap(self.space(), args).unwrap().get()
    }

    pub(super) fn map_as(&self, pages: u64, prot: PageProt) -> u64 {
        let args = MmapArgs::anonymous(pages * PAGE_SIZE).prot(prot);
        self.mm.mmap(self.space(), args).unwrap().get()
    }

    pub(super) fn fault(
        &self,
        address: u64,
        access: FaultAccess,
    ) -> Result<FaultOutcome, FaultError> {
        self.mm.handle_fault(self.space(), va(address), access)
    }

    pub(super) fn entry(&self, address: u64) -> Entry {
        entry_in(&self.mm, self.space(), va(address))
    }

    pub(super) fn pte(&self, address: u64) -> Pte {
        present(self.entry(address))
    }

    /// Changes a present leaf, as mprotect, fork or reclaim would.
    pub(super) fn change(&self, address: u64, change: impl Fn(Pte) -> Pte) {
        let mut guard = self.space().tables().lock_pte(va(address)).unwrap();
        guard.update(va(address), |entry| change(present(entry)).entry());
    }

    /// Overwrites an entry behind the tables' back.
    pub(super) fn poke(&self, address: u64, entry: Entry) {
        let guard = self.space().tables().lock_pte(va(address)).unwrap();
        let table = self.platform().frame_ptr(guard.frame()).cast::<AtomicU64>();
        // SAFETY: below 512 entries of 8 bytes, so inside the frame.
        let slot = unsafe { table.add(va(address).table_index(0)) };
        // SAFETY: a table's word, reached as an atomic only.
        unsafe { slot.as_ref() }.store(entry.bits(), Ordering::Relaxed);
    }

    pub(super) fn load(&self, address: u64) -> Result<u64, FaultError> {
        access(&self.mm, self.space(), address, None)
    }

    pub(super) fn store(&self, address: u64, value: u64) -> Result<(), FaultError> {
        access(&self.mm, self.space(), address, Some(value)).map(drop)
    }

    pub(super) fn count(&self, outcome: FaultOutcome) -> u64 {
        self.stats().outcome(outcome)
    }

    pub(super) fn event(&self, event: FaultEvent) -> u64 {
        self.stats().event(event)
    }

    pub(super) fn stats(&self) -> FaultStats {
        self.mm.fault_stats()
    }

    pub(super) fn anon_rss(&self) -> u64 {
        self.space().rss.anon.load(Ordering::Relaxed)
    }

    /// All books agree; nobody is faulting.
    pub(super) fn check(&self) {
        let census = self.mm.census(&[]);
        assert!(census.is_consistent(), "{:?}", census.discrepancies());
    }

    /// Ends the process: nothing may be left of it, and all books agree.
    pub(super) fn end(self) {
        self.end_with(|_| {});
    }

    /// As [`Self::end`]; `cleanup` runs after the process is gone.
    pub(super) fn end_with(mut self, cleanup: impl FnOnce(&Mm<'static, TestPlatform>)) {
        self.check();
        self.unmap_everything();
        self.mm.exit_space(self.space.take().unwrap());
        cleanup(&self.mm);
        self.settle();
        assert_eq!(self.mm.memory().free_pages().get(), self.free_before, "pages kept");
    }

    fn unmap_everything(&self) {
        let all = VaRange::new(VirtAddr::ZERO, VirtAddr::END).unwrap();
        self.mm.unmap_leaves(self.space(), all).unwrap();
        let vmas = self.space().write();
        vmas.iter().for_each(|vma| self.mm.anon_vma_unlink(vma));
        let rss = &self.space().rss;
        let counted = [&rss.anon, &rss.file, &rss.swap, &rss.tables];
        assert_eq!(counted.map(|counter| counter.load(Ordering::Relaxed)), [0; 4]);
    }

    fn settle(&self) {
        let base = self.mm.base();
        base.rcu.synchronize(base.platform());
        self.mm.reap_spaces();
        base.settle();
        self.check();
    }
}

pub(super) fn va(address: u64) -> VirtAddr {
    VirtAddr::new(address).unwrap()
}

pub(super) fn present(entry: Entry) -> Pte {
    let PteState::Present(pte) = entry.pte() else { panic!("{entry:?}") };
    pte
}

pub(super) fn entry_in(
    mm: &Mm<'static, TestPlatform>,
    space: &AddressSpace<'static, TestPlatform>,
    at: VirtAddr,
) -> Entry {
    let section = mm.base().rcu.read(mm.platform().cpu());
    match space.tables().walk(&section, at) {
        Found::Pte { entry, .. } | Found::Pmd { entry, .. } => entry,
        Found::Hole | Found::Unknown(_) => Entry::NONE,
    }
}

/// One access of a program, by an MMU without a TLB: faults until it succeeds.
/// The store, or the load, happens with the leaf locked, as if at one instant.
pub(super) fn access(
    mm: &Mm<'static, TestPlatform>,
    space: &AddressSpace<'static, TestPlatform>,
    address: u64,
    store: Option<u64>,
) -> Result<u64, FaultError> {
    let page = va(address).align_down(PAGE_SHIFT);
    let wanted = if store.is_some() { FaultAccess::Write } else { FaultAccess::Read };
    for _ in 0..1000 {
        if let Ok(guard) = space.tables().lock_pte(page)
            && let PteState::Present(pte) = guard.load(page).pte()
            && pte.prot().contains(wanted.needed())
        {
            let word = word_at(mm, pte, address);
            return Ok(match store {
                Some(value) => word.swap(value, Ordering::Relaxed),
                None => word.load(Ordering::Relaxed),
            });
        }
        mm.handle_fault(space, va(address), wanted)?;
    }
    panic!("{address:#x} faults for ever");
}

fn word_at<'a>(mm: &Mm<'a, TestPlatform>, pte: Pte, address: u64) -> &'a AtomicU64 {
    assert_eq!(address % 8, 0);
    let offset = usize::try_from(address % PAGE_SIZE).unwrap();
    let frame = mm.platform().frame_ptr(pte.pfn());
    // SAFETY: inside the frame.
    let word = unsafe { frame.add(offset) }.cast::<AtomicU64>();
    // SAFETY: aligned, in RAM for as long as the platform lives.
    unsafe { word.as_ref() }
}
