//! Processes on a machine that is too small for them.

use core::sync::atomic::{AtomicU64, Ordering};

use abi::{PAGE_SHIFT, PAGE_SIZE};

use crate::addr::VirtAddr;
use crate::fault::{FaultAccess, FaultError};
use crate::folio::FolioRef;
use crate::mm::{Base, Mm};
use crate::pgtable::{PageProt, Pte, PteState};
use crate::platform::Platform;
use crate::space::{AddressSpace, MmapArgs, SpaceRef};
use crate::swap::tests::TestDevice;
use crate::testing::{self, TestPlatform};

pub(super) type Space = AddressSpace<'static, TestPlatform>;
pub(super) type Process = SpaceRef<'static, TestPlatform>;

/// A machine and its memory manager.
pub(super) struct World {
    pub(super) mm: Mm<'static, TestPlatform>,
    free_before: u64,
}

impl World {
    pub(super) fn new(pages: u64) -> Self {
        // Leaked: handles borrow it for as long as they like.
        let base = Box::leak(Box::new(Base::new(testing::memory(pages)).unwrap()));
        let mm = Mm::new(base);
        let free_before = base.memory.free_pages().get();
        Self { mm, free_before }
    }

    /// Swaps to a device outside the machine's memory.
    pub(super) fn swap_to(&self, slots: usize) -> &'static TestDevice {
        let device: &'static _ = Box::leak(Box::new(TestDevice::new(slots, None)));
        self.mm.swapon(device).unwrap();
        device
    }

    pub(super) fn process(&self) -> Process {
        self.mm.with_room(|| self.mm.new_space()).unwrap()
    }

    pub(super) fn map(&self, space: &Space, pages: u64) -> u64 {
        let args = MmapArgs::anonymous(pages * PAGE_SIZE);
        self.mm.with_room(|| self.mm.mmap(space, args)).unwrap().get()
    }

    /// Stores a number of its own to each of `pages` pages from `start` on.
    pub(super) fn fill(
        &self,
        space: &Space,
        start: u64,
        pages: u64,
        salt: u64,
    ) -> Result<(), FaultError> {
        (0..pages)
            .try_for_each(|page| self.store(space, start + page * PAGE_SIZE, value(page, salt)))
    }

    /// Checks what [`Self::fill`] has stored.
    pub(super) fn verify(&self, space: &Space, start: u64, pages: u64, salt: u64) {
        for page in 0..pages {
            let found = self.load(space, start + page * PAGE_SIZE).unwrap();
            assert_eq!(found, value(page, salt), "page {page}");
        }
    }

    pub(super) fn load(&self, space: &Space, address: u64) -> Result<u64, FaultError> {
        self.access(space, address, None)
    }

    pub(super) fn store(&self, space: &Space, address: u64, value: u64) -> Result<(), FaultError> {
        self.access(space, address, Some(value)).map(drop)
    }

    /// One access of a program, by an MMU without a TLB: faults until it succeeds.
    fn access(&self, space: &Space, address: u64, store: Option<u64>) -> Result<u64, FaultError> {
        let page = va(address).align_down(PAGE_SHIFT);
        let (wanted, right) = match store {
            Some(_) => (FaultAccess::Write, PageProt::WRITE),
            None => (FaultAccess::Read, PageProt::READ),
        };
        for _ in 0..1000 {
            if let Ok(mut guard) = space.tables().lock_pte(page)
                && let PteState::Present(pte) = guard.load(page).pte()
                && pte.prot().contains(right)
            {
                guard.update(page, |entry| {
                    let PteState::Present(pte) = entry.pte() else { return entry };
                    let pte = pte.mk_young();
                    if store.is_some() { pte.mk_dirty().entry() } else { pte.entry() }
                });
                let word = self.word_at(pte, address);
                return Ok(match store {
                    Some(value) => word.swap(value, Ordering::Relaxed),
                    None => word.load(Ordering::Relaxed),
                });
            }
            self.mm.handle_fault(space, va(address), wanted)?;
        }
        panic!("{address:#x} faults for ever");
    }

    fn word_at(&self, pte: Pte, address: u64) -> &AtomicU64 {
        assert_eq!(address % 8, 0);
        let offset = usize::try_from(address % PAGE_SIZE).unwrap();
        let frame = self.mm.platform().frame_ptr(pte.pfn());
        // SAFETY: inside the frame.
        let word = unsafe { frame.add(offset) }.cast::<AtomicU64>();
        // SAFETY: aligned, in RAM for as long as the platform lives.
        unsafe { word.as_ref() }
    }

    /// The leaf at `address`, if it is present.
    pub(super) fn pte(&self, space: &Space, address: u64) -> Option<Pte> {
        let guard = space.tables().lock_pte(va(address)).ok()?;
        match guard.load(va(address)).pte() {
            PteState::Present(pte) => Some(pte),
            PteState::None | PteState::Soft(_) | PteState::Unknown(_) => None,
        }
    }

    /// Changes a present leaf, as the MMU or a call would.
    pub(super) fn change(&self, space: &Space, address: u64, change: impl Fn(Pte) -> Pte) {
        let mut guard = space.tables().lock_pte(va(address)).unwrap();
        guard.update(va(address), |entry| match entry.pte() {
            PteState::Present(pte) => change(pte).entry(),
            PteState::None | PteState::Soft(_) | PteState::Unknown(_) => panic!("{entry:?}"),
        });
    }

    /// The folio behind `address`, which is brought in.
    pub(super) fn folio(&self, space: &Space, address: u64) -> FolioRef<'static> {
        self.load(space, address).unwrap();
        self.mm.folio_of(self.pte(space, address).unwrap().pfn()).unwrap()
    }

    /// Pages of `pages` from `start` on that are in memory.
    pub(super) fn resident(&self, space: &Space, start: u64, pages: u64) -> u64 {
        (0..pages).map(|page| u64::from(self.pte(space, start + page * PAGE_SIZE).is_some())).sum()
    }

    pub(super) fn exit(&self, process: Process) {
        self.mm.exit_space(process);
    }

    /// All books agree.
    pub(super) fn check(&self) {
        let census = self.mm.census(&[]);
        assert!(census.is_consistent(), "{:?}", census.discrepancies());
        assert!(self.mm.lru_census(&mut |folio, is_here| assert!(is_here, "{folio:?}")));
    }

    /// All processes are gone: nothing may be left of them.
    pub(super) fn end(self) {
        let base = self.mm.base();
        self.check();
        match self.mm.swapoff() {
            Ok(()) | Err(crate::swap::SwapError::NoDevice) => {}
            Err(error) => panic!("{error}"),
        }
        base.rcu.synchronize(base.platform());
        self.mm.reap_spaces();
        base.settle();
        assert_eq!(self.mm.lru_counts().total_pages(), 0, "folios stayed on lists");
        assert_eq!(base.memory.free_pages().get(), self.free_before, "pages kept");
    }
}

pub(super) fn value(page: u64, salt: u64) -> u64 {
    page.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt
}

pub(super) fn va(address: u64) -> VirtAddr {
    VirtAddr::new(address).unwrap()
}
