//! Processes on the host, their programs' accesses, and a census of all of it.

use core::sync::atomic::{AtomicU64, Ordering};

use abi::{PAGE_SHIFT, PAGE_SIZE};

use crate::addr::{PMD_SIZE, VaRange, VirtAddr};
use crate::fault::{FaultAccess, FaultError};
use crate::folio::FolioRef;
use crate::mm::{Base, Mm};
use crate::pagecache::FileMapping;
use crate::pgtable::{Entry, Found, LeafState, PmdState, Pte, PteState, SizedLeaf};
use crate::platform::Platform;
use crate::space::{AddressSpace, Advice, MapFlags, MapSource, MmapArgs, SpaceRef};
use crate::testing::{self, TestPlatform};

pub(crate) type Space = SpaceRef<'static, TestPlatform>;

/// A machine.
pub(crate) struct World {
    pub(crate) mm: Mm<'static, TestPlatform>,
    free_before: u64,
}

impl World {
    pub(crate) fn new(pages: u64) -> Self {
        // Leaked: handles borrow it for as long as they like.
        let base = Box::leak(Box::new(Base::new(testing::memory(pages)).unwrap()));
        let mm = Mm::new(base);
        Self { mm, free_before: base.memory.free_pages().get() }
    }

    pub(crate) fn platform(&self) -> &'static TestPlatform {
        self.mm.platform()
    }

    pub(crate) fn space(&self) -> Space {
        self.mm.new_space().unwrap()
    }

    /// Maps private zeros anywhere.
    pub(crate) fn map(&self, space: &Space, pages: u64) -> u64 {
        self.mm.mmap(space, MmapArgs::anonymous(pages * PAGE_SIZE)).unwrap().get()
    }

    /// Maps 2 MiB of private zeros, at an address where one leaf can map them.
    pub(crate) fn map_huge(&self, space: &Space) -> u64 {
        let args = MmapArgs::anonymous(PMD_SIZE).fixed(1 << 32);
        let at = self.mm.mmap(space, args).unwrap().get();
        self.mm.madvise(space, at, PMD_SIZE, Advice::HugePage).unwrap();
        at
    }

    /// Maps `pages` of a file from page `first` on.
    pub(crate) fn map_file(
        &self,
        space: &Space,
        file: &FileMapping<'static, TestPlatform>,
        (first, pages): (u64, u64),
        flags: MapFlags,
    ) -> u64 {
        let offset = first * PAGE_SIZE;
        let source = MapSource { file, offset, readable: true, writable: true };
        let args = MmapArgs::anonymous(pages * PAGE_SIZE);
        self.mm.mmap(space, MmapArgs { flags, source: Some(source), ..args }).unwrap().get()
    }

    pub(crate) fn store(&self, space: &Space, at: u64, value: u64) -> Result<(), FaultError> {
        self.access(space, at, Some(value)).map(drop)
    }

    pub(crate) fn load(&self, space: &Space, at: u64) -> Result<u64, FaultError> {
        self.access(space, at, None)
    }

    /// One access of a program, by an MMU without a TLB: faults until it succeeds,
    /// which happens with the leaf locked, as if at one instant.
    fn access(&self, space: &Space, at: u64, store: Option<u64>) -> Result<u64, FaultError> {
        let wanted = if store.is_some() { FaultAccess::Write } else { FaultAccess::Read };
        for _ in 0..1000 {
            let page = va(at).align_down(PAGE_SHIFT);
            let allowed = |pte: Pte| pte.prot().contains(wanted.needed());
            let run = |pte: Pte| {
                let word = self.word(pte, at);
                match store {
                    Some(value) => word.swap(value, Ordering::Relaxed),
                    None => word.load(Ordering::Relaxed),
                }
            };
            if let Ok(mut guard) = space.tables().lock_pte(page)
                && let PteState::Present(pte) = guard.load(page).pte()
                && allowed(pte)
            {
                let value = run(pte);
                guard.update(page, |_| touched(pte, store.is_some()).entry());
                return Ok(value);
            }
            if let Ok(guard) = space.tables().lock_pmd(page)
                && let PmdState::Present(pmd) = guard.load(page).pmd()
                && let Some(pte) = pmd.split(page.page() % 512)
                && allowed(pte)
            {
                return Ok(run(pte));
            }
            self.mm.handle_fault(space, va(at), wanted)?;
        }
        panic!("{at:#x} faults for ever");
    }

    fn word(&self, pte: Pte, at: u64) -> &AtomicU64 {
        let offset = usize::try_from(at % PAGE_SIZE).unwrap();
        let frame = self.platform().frame_ptr(pte.pfn());
        // SAFETY: inside the frame.
        let word = unsafe { frame.add(offset) }.cast::<AtomicU64>();
        // SAFETY: aligned by the caller, in RAM for as long as the platform lives.
        unsafe { word.as_ref() }
    }

    pub(crate) fn entry(&self, space: &AddressSpace<'static, TestPlatform>, at: u64) -> Entry {
        let section = self.mm.base().rcu.read(self.platform().cpu());
        match space.tables().walk(&section, va(at)) {
            Found::Pte { entry, .. } | Found::Pmd { entry, .. } => entry,
            Found::Hole | Found::Unknown(_) => Entry::NONE,
        }
    }

    /// The leaf at an address; of a larger one, what it says of the page there.
    pub(crate) fn leaf(&self, space: &Space, at: u64) -> Option<LeafState> {
        let entry = self.entry(space, at);
        if let PmdState::Present(pmd) = entry.pmd()
            && let Some(pte) = pmd.split(va(at).page() % 512)
        {
            return Some(LeafState::Present(pte));
        }
        Some(SizedLeaf::of_pte(entry).ok()??.state)
    }

    pub(crate) fn pte(&self, space: &Space, at: u64) -> Pte {
        let PteState::Present(pte) = self.entry(space, at).pte() else {
            panic!("{at:#x}: {:?}", self.entry(space, at))
        };
        pte
    }

    /// The folio that is mapped at an address, with a reference.
    pub(crate) fn folio(&self, space: &Space, at: u64) -> FolioRef<'static> {
        let Some(LeafState::Present(pte)) = self.leaf(space, at) else { panic!("{at:#x}") };
        self.mm.folio_of(pte.pfn()).unwrap()
    }

    pub(crate) fn zap(&self, space: &Space, at: u64, pages: u64) {
        let range = VaRange::new(va(at), va(at + pages * PAGE_SIZE)).unwrap();
        self.mm.zap_leaves(space, range, crate::pgtable::ZapRules::DISCARD).unwrap();
    }

    pub(crate) fn assert_consistent(&self) {
        self.mm.base().settle();
        let census = self.mm.census(&[]);
        let found: Vec<String> = census.discrepancies().iter().map(ToString::to_string).collect();
        assert!(census.is_consistent(), "{found:#?}");
    }

    /// Nothing is left of anything, and all books agree.
    pub(crate) fn end(self, spaces: impl IntoIterator<Item = Space>) {
        spaces.into_iter().for_each(|space| self.mm.exit_space(space));
        self.mm.reap_spaces();
        self.assert_consistent();
        assert_eq!(self.mm.memory().free_pages().get(), self.free_before, "pages kept");
    }
}

/// What the MMU makes of a leaf.
fn touched(pte: Pte, written: bool) -> Pte {
    if written { pte.mk_young().mk_dirty() } else { pte.mk_young() }
}

pub(crate) fn va(at: u64) -> VirtAddr {
    VirtAddr::new(at).unwrap()
}
