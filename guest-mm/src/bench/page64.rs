//! The baseline of the experiments about migration: a page descriptor of 64 bytes
//! with flags, a list head and a reference count, and isolation as Linux does it
//! with one (`mm/migrate.c`, `mm/balloon.c`, 6.17 to 7.0): get a reference unless
//! there is none, try the page lock, look at the flags, let the owner take the page off
//! its list, below the owner's lock, and set the flag.

use crate::platform::Platform;
use crate::sync::shim::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{LockClass, SpinLock};

/// Bits of [`Page64::flags`].
const LOCKED: u64 = 1 << 0;
/// The page has an owner who lets it move.
const MOVABLE: u64 = 1 << 1;
/// Migration has it.
const ISOLATED: u64 = 1 << 2;

/// A page's descriptor. All zeros: free.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Page64 {
    flags: AtomicU64,
    /// Index of the next and the previous page of a list, plus 1; 0 ends it. Stands for
    /// a list head of two pointers.
    next: AtomicU64,
    prev: AtomicU64,
    mapping: AtomicU64,
    index: AtomicU64,
    private: AtomicU64,
    kind: AtomicU32,
    refcount: AtomicU32,
    memcg: AtomicU64,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Page64>() == 64);

/// What an owner does when a page of its is isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Nothing.
    Idle,
    /// Takes the page off its list, as Linux's balloon does.
    Lists,
}

impl Page64 {
    /// Makes it a movable page with one reference: its owner's.
    pub fn begin(&self) {
        self.refcount.store(1, Ordering::Relaxed);
        self.flags.store(MOVABLE, Ordering::Release);
    }

    /// What a walk over a batch reads of it.
    pub fn flags(&self) -> u64 {
        self.flags.load(Ordering::Acquire)
    }

    fn try_get(&self) -> bool {
        let mut count = self.refcount.load(Ordering::Relaxed);
        while count != 0 {
            let swapped = self.refcount.compare_exchange_weak(
                count,
                count + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            match swapped {
                Ok(_) => return true,
                Err(now) => count = now,
            }
        }
        false
    }

    fn put(&self) {
        self.refcount.fetch_sub(1, Ordering::AcqRel);
    }

    fn try_lock(&self) -> bool {
        self.flags.fetch_or(LOCKED, Ordering::Acquire) & LOCKED == 0
    }

    fn unlock(&self) {
        self.flags.fetch_and(!LOCKED, Ordering::Release);
    }
}

/// A list of pages, by index.
#[derive(Debug, Default)]
pub struct PageList {
    /// Index plus 1.
    first: u64,
    last: u64,
    len: u64,
}

impl PageList {
    /// No page.
    pub const fn new() -> Self {
        Self { first: 0, last: 0, len: 0 }
    }

    /// Pages in it.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds `pages[at]` at the end (`list_add_tail`).
    pub fn add(&mut self, pages: &[Page64], at: usize) {
        let link = at as u64 + 1;
        pages[at].prev.store(self.last, Ordering::Relaxed);
        pages[at].next.store(0, Ordering::Relaxed);
        match Self::index(self.last) {
            Some(last) => pages[last].next.store(link, Ordering::Relaxed),
            None => self.first = link,
        }
        self.last = link;
        self.len += 1;
    }

    /// Takes `pages[at]`, which is in it, out (`list_del`).
    pub fn remove(&mut self, pages: &[Page64], at: usize) {
        let next = pages[at].next.load(Ordering::Relaxed);
        let prev = pages[at].prev.load(Ordering::Relaxed);
        match Self::index(prev) {
            Some(prev) => pages[prev].next.store(next, Ordering::Relaxed),
            None => self.first = next,
        }
        match Self::index(next) {
            Some(next) => pages[next].prev.store(prev, Ordering::Relaxed),
            None => self.last = prev,
        }
        self.len -= 1;
    }

    /// The first page.
    pub fn first(&self) -> Option<usize> {
        Self::index(self.first)
    }

    /// The page after `pages[at]`.
    pub fn after(&self, pages: &[Page64], at: usize) -> Option<usize> {
        Self::index(pages[at].next.load(Ordering::Relaxed))
    }

    fn index(link: u64) -> Option<usize> {
        usize::try_from(link.checked_sub(1)?).ok()
    }
}

/// Pages, and their owner's list.
#[derive(Debug)]
pub struct Pages64<'a> {
    pages: &'a [Page64],
    owned: SpinLock<PageList>,
    owner: Owner,
}

impl<'a> Pages64<'a> {
    /// All of `pages`, movable.
    pub fn new<P: Platform>(platform: &P, pages: &'a [Page64], owner: Owner) -> Self {
        let owned = SpinLock::new(LockClass::Lru, PageList::new());
        let mut list = owned.lock(platform);
        for (at, page) in pages.iter().enumerate() {
            page.begin();
            if owner == Owner::Lists {
                list.add(pages, at);
            }
        }
        drop(list);
        Self { pages, owned, owner }
    }

    /// Pages.
    pub const fn pages(&self) -> &'a [Page64] {
        self.pages
    }

    /// Pages on the owner's list.
    pub fn listed<P: Platform>(&self, platform: &P) -> u64 {
        self.owned.lock(platform).len()
    }

    /// Isolates page `at`; `false` if it is isolated already, or somebody has its lock.
    pub fn isolate<P: Platform>(&self, platform: &P, at: usize) -> bool {
        let page = &self.pages[at];
        if !page.try_get() {
            return false;
        }
        if page.flags() & (MOVABLE | ISOLATED) != MOVABLE || !page.try_lock() {
            page.put();
            return false;
        }
        if page.flags() & (MOVABLE | ISOLATED) != MOVABLE {
            page.unlock();
            page.put();
            return false;
        }
        if self.owner == Owner::Lists {
            self.owned.lock(platform).remove(self.pages, at);
        }
        page.flags.fetch_or(ISOLATED, Ordering::Relaxed);
        page.unlock();
        true
    }

    /// Puts an isolated page back.
    pub fn put_back<P: Platform>(&self, platform: &P, at: usize) {
        let page = &self.pages[at];
        while !page.try_lock() {
            platform.relax();
        }
        if self.owner == Owner::Lists {
            self.owned.lock(platform).add(self.pages, at);
        }
        page.flags.fetch_and(!ISOLATED, Ordering::Relaxed);
        page.unlock();
        page.put();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// Zeroed descriptors on the heap.
    fn zeroed<const N: usize>() -> [Page64; N] {
        core::array::from_fn(|_| Page64 {
            flags: 0.into(),
            next: 0.into(),
            prev: 0.into(),
            mapping: 0.into(),
            index: 0.into(),
            private: 0.into(),
            kind: 0.into(),
            refcount: 0.into(),
            memcg: 0.into(),
        })
    }

    #[test]
    fn a_page_is_isolated_once_and_back_as_before() {
        let memory = testing::memory(64);
        let platform = memory.platform();
        for owner in [Owner::Idle, Owner::Lists] {
            let pages = zeroed::<4>();
            let all = Pages64::new(platform, &pages, owner);
            let listed = all.listed(platform);
            assert!(all.isolate(platform, 2));
            assert!(!all.isolate(platform, 2), "isolated already");
            assert_eq!(all.listed(platform), listed.saturating_sub(1));
            all.put_back(platform, 2);
            assert_eq!(all.listed(platform), listed);
            assert!(all.isolate(platform, 2));
            all.put_back(platform, 2);
            assert!(pages.iter().all(|page| page.refcount.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_free_page_is_not_isolated() {
        let memory = testing::memory(64);
        let pages = zeroed::<1>();
        let all = Pages64 {
            pages: &pages,
            owned: SpinLock::new(LockClass::Lru, PageList::new()),
            owner: Owner::Idle,
        };
        assert!(!all.isolate(memory.platform(), 0));
    }

    #[test]
    fn lists_keep_their_order() {
        let pages = zeroed::<5>();
        let mut list = PageList::new();
        [3, 0, 4, 1].into_iter().for_each(|at| list.add(&pages, at));
        list.remove(&pages, 0);
        list.remove(&pages, 1);
        list.add(&pages, 2);
        let mut found = [0; 3];
        let mut at = list.first();
        for slot in &mut found {
            *slot = at.expect("three are left");
            at = list.after(&pages, *slot);
        }
        assert_eq!((found, at, list.len()), ([3, 4, 2], None, 3));
    }
}
