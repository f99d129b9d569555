//! The lists of folios that can be reclaimed, in the order in which they will be looked at.
//!
//! Four lists: anonymous and file folios, each active and inactive. A folio
//! enters an inactive list at its young end and is looked at when it has come to
//! the old one; what was used meanwhile becomes active. Lists hold no
//! references: a folio leaves its list, under the lock, before its descriptor is freed.

use core::fmt;
use core::ptr::NonNull;

use crate::folio::{Folio, FolioFlags, FolioKind, FolioRef};
use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::shim::Ordering;
use crate::sync::{LockClass, SpinLock};

/// One of the lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LruList {
    /// Anonymous folios that are next to be looked at.
    InactiveAnon,
    /// Anonymous folios that were used.
    ActiveAnon,
    /// File folios that are next to be looked at.
    InactiveFile,
    /// File folios that were used.
    ActiveFile,
}

impl LruList {
    /// Number of lists.
    pub const COUNT: usize = 4;
    /// Every list, by number.
    pub const ALL: [Self; Self::COUNT] =
        [Self::InactiveAnon, Self::ActiveAnon, Self::InactiveFile, Self::ActiveFile];

    /// The list that a folio's flags name.
    fn of(folio: &Folio) -> Self {
        match (folio.is_anon(), folio.has(FolioFlags::ACTIVE)) {
            (true, false) => Self::InactiveAnon,
            (true, true) => Self::ActiveAnon,
            (false, false) => Self::InactiveFile,
            (false, true) => Self::ActiveFile,
        }
    }
}

/// Folios in a row, youngest first. Links are the `lru` field: younger, older.
#[derive(Debug, Default)]
struct List {
    youngest: Option<NonNull<Folio>>,
    oldest: Option<NonNull<Folio>>,
    folios: u64,
    pages: u64,
}

/// All lists of a manager.
pub(crate) struct Lru(SpinLock<Lists>);

struct Lists([List; LruList::COUNT]);

// SAFETY: descriptors are shared between CPUs by nature, their fields are
// atomic, and links change below the lock.
unsafe impl Send for Lists {}

const YOUNGER: usize = 0;
const OLDER: usize = 1;

impl Lru {
    pub(crate) const fn new() -> Self {
        const EMPTY: List = List { youngest: None, oldest: None, folios: 0, pages: 0 };
        Self(SpinLock::new(LockClass::Lru, Lists([EMPTY; LruList::COUNT])))
    }
}

impl fmt::Debug for Lru {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lru")
    }
}

/// A descriptor that a list names.
///
/// # Safety
/// The lock of the lists is held for as long as the result is used.
unsafe fn at<'a>(folio: NonNull<Folio>) -> &'a Folio {
    // SAFETY: a folio leaves its list under the lock before its descriptor is freed.
    unsafe { folio.as_ref() }
}

fn link(folio: &Folio, side: usize) -> Option<NonNull<Folio>> {
    let address = usize::try_from(folio.lru[side].load(Ordering::Relaxed)).ok()?;
    NonNull::new(core::ptr::with_exposed_provenance_mut(address))
}

fn set_link(folio: &Folio, side: usize, to: Option<NonNull<Folio>>) {
    let address = to.map_or(0, |folio| folio.as_ptr().expose_provenance() as u64);
    folio.lru[side].store(address, Ordering::Relaxed);
}

impl List {
    fn push_youngest(&mut self, folio: &Folio) {
        let this = NonNull::from(folio);
        set_link(folio, YOUNGER, None);
        set_link(folio, OLDER, self.youngest);
        match self.youngest {
            // SAFETY: `&mut self` is had by the lock alone.
            Some(second) => set_link(unsafe { at(second) }, YOUNGER, Some(this)),
            None => self.oldest = Some(this),
        }
        self.youngest = Some(this);
        self.folios += 1;
        self.pages += folio.pages().get();
    }

    fn unlink(&mut self, folio: &Folio) {
        let (younger, older) = (link(folio, YOUNGER), link(folio, OLDER));
        match younger {
            // SAFETY: as above.
            Some(younger) => set_link(unsafe { at(younger) }, OLDER, older),
            None => self.youngest = older,
        }
        match older {
            // SAFETY: as above.
            Some(older) => set_link(unsafe { at(older) }, YOUNGER, younger),
            None => self.oldest = younger,
        }
        set_link(folio, YOUNGER, None);
        set_link(folio, OLDER, None);
        self.folios -= 1;
        self.pages = self.pages.saturating_sub(folio.pages().get());
    }
}

impl Lists {
    fn add(&mut self, folio: &Folio) {
        self.0[LruList::of(folio) as usize].push_youngest(folio);
    }

    fn remove(&mut self, folio: &Folio) {
        self.0[LruList::of(folio) as usize].unlink(folio);
    }
}

/// What the lists hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LruCounts {
    /// Folios, by [`LruList`].
    pub folios: [u64; LruList::COUNT],
    /// Their pages.
    pub pages: [u64; LruList::COUNT],
}

impl LruCounts {
    /// Pages of one list.
    pub const fn pages_of(&self, list: LruList) -> u64 {
        self.pages[list as usize]
    }

    /// Pages of all lists.
    pub fn total_pages(&self) -> u64 {
        self.pages.iter().sum()
    }
}

/// Folios taken off a list at once.
pub(super) const BATCH: usize = 32;

/// Folios off their list, each with a reference, marked ISOLATED.
pub(super) struct Isolated<'m> {
    folios: [Option<FolioRef<'m>>; BATCH],
    len: usize,
}

impl<'m> Isolated<'m> {
    pub(super) const fn new() -> Self {
        Self { folios: [const { None }; BATCH], len: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Adds one; there is room for [`BATCH`].
    pub(super) fn push(&mut self, folio: FolioRef<'m>) {
        self.folios[self.len] = Some(folio);
        self.len += 1;
    }

    pub(super) fn pop(&mut self) -> Option<FolioRef<'m>> {
        self.len = self.len.checked_sub(1)?;
        self.folios[self.len].take()
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// What the LRU lists hold.
    pub fn lru_counts(&self) -> LruCounts {
        let lists = self.lru.0.lock(self.platform());
        LruCounts {
            folios: [0, 1, 2, 3].map(|list: usize| lists.0[list].folios),
            pages: [0, 1, 2, 3].map(|list: usize| lists.0[list].pages),
        }
    }

    /// Puts a folio on the list that its flags name, as the youngest. Nothing if
    /// it is on one already, isolated, or device memory.
    ///
    /// The caller has a reference. May be called below page-table locks.
    pub fn lru_add(&self, folio: &Folio) {
        if folio.kind() == FolioKind::Device {
            return;
        }
        let mut lists = self.lru.0.lock(self.platform());
        if !folio.flags().intersects(FolioFlags::LRU | FolioFlags::ISOLATED) {
            folio.set_flags(FolioFlags::LRU);
            lists.add(folio);
        }
    }

    /// Takes a folio off its list for good: it is being freed, or changes its size or kind.
    pub fn lru_remove(&self, folio: &Folio) {
        if !folio.has(FolioFlags::LRU) {
            return;
        }
        let mut lists = self.lru.0.lock(self.platform());
        // Somebody may have isolated it before we had the lock.
        if folio.has(FolioFlags::LRU) {
            lists.remove(folio);
            folio.clear_flags(FolioFlags::LRU);
        }
    }

    /// Takes a folio off its list for a while; `false` if it is on none.
    /// Whoever isolates it puts it back.
    pub fn lru_isolate(&self, folio: &FolioRef<'m>) -> bool {
        let mut lists = self.lru.0.lock(self.platform());
        if !folio.has(FolioFlags::LRU) {
            return false;
        }
        lists.remove(folio);
        folio.set_flags(FolioFlags::ISOLATED);
        folio.clear_flags(FolioFlags::LRU);
        true
    }

    /// Puts an isolated folio back on the list that its flags name, as the youngest.
    pub fn lru_putback(&self, folio: &Folio) {
        let mut lists = self.lru.0.lock(self.platform());
        let before = folio.clear_flags(FolioFlags::ISOLATED);
        debug_assert!(before.contains(FolioFlags::ISOLATED), "{folio:?} is not isolated");
        folio.set_flags(FolioFlags::LRU);
        lists.add(folio);
    }

    /// Notes that a folio was used otherwise than by a leaf: read, written, pinned.
    /// Twice makes it active.
    pub fn mark_accessed(&self, folio: &Folio) {
        if !folio.set_flags(FolioFlags::REFERENCED).contains(FolioFlags::REFERENCED) {
            return;
        }
        self.lru_activate(folio);
    }

    /// Makes a folio on an inactive list active.
    pub fn lru_activate(&self, folio: &Folio) {
        if folio.has(FolioFlags::ACTIVE) || !folio.has(FolioFlags::LRU) {
            return;
        }
        let mut lists = self.lru.0.lock(self.platform());
        if folio.has(FolioFlags::LRU) && !folio.has(FolioFlags::ACTIVE) {
            lists.remove(folio);
            folio.clear_flags(FolioFlags::REFERENCED);
            folio.set_flags(FolioFlags::ACTIVE);
            lists.add(folio);
        }
    }

    /// Makes a folio the next to be looked at (MADV_COLD): inactive, oldest, unused.
    pub fn lru_deactivate(&self, folio: &Folio) {
        let mut lists = self.lru.0.lock(self.platform());
        let was_listed = folio.has(FolioFlags::LRU);
        if was_listed {
            lists.remove(folio);
        }
        folio.clear_flags(FolioFlags::ACTIVE | FolioFlags::REFERENCED);
        if was_listed {
            lists.0[LruList::of(folio) as usize].push_oldest(folio);
        }
    }

    /// Isolates up to [`BATCH`] folios from the old end of `list`. Returns how
    /// many folios were looked at.
    pub(super) fn lru_isolate_oldest(
        &self,
        list: LruList,
        most: usize,
        out: &mut Isolated<'m>,
    ) -> u64 {
        let mut lists = self.lru.0.lock(self.platform());
        let mut next = lists.0[list as usize].oldest;
        let mut seen = 0;
        while let Some(folio) = next
            && out.len() < most.min(BATCH)
            && seen < 2 * BATCH as u64
        {
            seen += 1;
            // SAFETY: the lock is held; the descriptor's cache lives for `'m`, and the
            // borrow is kept only if a reference was had.
            let folio: &'m Folio = unsafe { at(folio) };
            next = link(folio, YOUNGER);
            // One that is being freed or frozen takes itself off, or stays.
            let Some(folio) = FolioRef::try_get(folio) else { continue };
            lists.0[list as usize].unlink(&folio);
            folio.set_flags(FolioFlags::ISOLATED);
            folio.clear_flags(FolioFlags::LRU);
            out.push(folio);
        }
        seen
    }

    /// Walks all lists; calls `each` for each folio, and whether its flags name the
    /// list that it is on. Returns whether counts and links agree.
    pub fn lru_census(&self, each: &mut dyn FnMut(&Folio, bool)) -> bool {
        let lists = self.lru.0.lock(self.platform());
        let mut agrees = true;
        for list in LruList::ALL {
            let here = &lists.0[list as usize];
            let (mut folios, mut pages, mut older) = (0, 0, None);
            let mut next = here.oldest;
            while let Some(this) = next {
                // SAFETY: the lock is held.
                let folio = unsafe { at(this) };
                let flags = folio.flags();
                let is_here = flags.contains(FolioFlags::LRU)
                    && !flags.contains(FolioFlags::ISOLATED)
                    && LruList::of(folio) == list
                    && link(folio, OLDER) == older;
                each(folio, is_here);
                agrees &= is_here;
                folios += 1;
                pages += folio.pages().get();
                if folios > here.folios {
                    break;
                }
                older = Some(this);
                next = link(folio, YOUNGER);
            }
            agrees &= (folios, pages, older) == (here.folios, here.pages, here.youngest);
        }
        agrees
    }
}

impl List {
    fn push_oldest(&mut self, folio: &Folio) {
        let this = NonNull::from(folio);
        set_link(folio, OLDER, None);
        set_link(folio, YOUNGER, self.oldest);
        match self.oldest {
            // SAFETY: `&mut self` is had by the lock alone.
            Some(second) => set_link(unsafe { at(second) }, OLDER, Some(this)),
            None => self.youngest = Some(this),
        }
        self.oldest = Some(this);
        self.folios += 1;
        self.pages += folio.pages().get();
    }
}
