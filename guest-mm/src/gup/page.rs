//! What a caller of GUP holds.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::{PAGE_SIZE, Pfn};

use super::Hold;
use crate::folio::{FolioFlags, FolioPin, FolioRef};
use crate::mm::Mm;
use crate::platform::Platform;

/// A page of a process, held from outside. Not `Clone`, nothing happens when it
/// is dropped: give it back ([`Mm::unpin_user_page`], [`Mm::put_user_page`]).
#[must_use = "unpin it or put it, or its folio is never freed"]
pub struct UserPage<H> {
    /// `None` for the zero page, which has no folio and counts nothing.
    hold: Option<H>,
    pfn: Pfn,
}

/// A page with a pin: its contents may be used for as long as it is held.
pub type PagePin<'m> = UserPage<FolioPin<'m>>;
/// A page with a reference: its state may be looked at.
pub type PageRef<'m> = UserPage<FolioRef<'m>>;

/// What became of a page while it was pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// The holder wrote to it: it differs from what its file or swap has.
    Written,
    /// The holder only read it.
    Unchanged,
}

impl<H> UserPage<H> {
    pub(super) const fn new(hold: Option<H>, pfn: Pfn) -> Self {
        Self { hold, pfn }
    }

    /// The frame of the page.
    pub const fn pfn(&self) -> Pfn {
        self.pfn
    }

    /// Leaves the hold on its folio alone; `None` for the zero page.
    pub fn into_hold(self) -> Option<H> {
        self.hold
    }

    /// The hold on its folio; `None` for the zero page.
    pub const fn hold(&self) -> Option<&H> {
        self.hold.as_ref()
    }
}

impl<H> fmt::Debug for UserPage<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserPage").field("pfn", &self.pfn).finish_non_exhaustive()
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Gives a pinned page back. One that was written becomes dirty, below its
    /// folio's lock (`unpin_user_pages_dirty_lock`): a pin keeps the folio, but only
    /// the lock keeps it in its file's cache, and so the file. May wait for that lock;
    /// the caller holds no lock that is inside it.
    pub fn unpin_user_page(&self, page: PagePin<'m>, contents: Contents) {
        let Some(pin) = page.hold else { return };
        // Dirty already, it needs no lock: whoever cleans it finds the pin.
        if contents == Contents::Written && !pin.has(FolioFlags::DIRTY) {
            let _locked = pin.lock(self.platform());
            self.mark_folio_dirty(&pin);
        }
        self.unpin(pin);
    }

    /// Gives the pages in `pages` back.
    pub fn unpin_user_pages(&self, pages: &mut [Option<PagePin<'m>>], contents: Contents) {
        for page in pages.iter_mut().filter_map(Option::take) {
            self.unpin_user_page(page, contents);
        }
    }

    /// Gives a referenced page back.
    pub fn put_user_page(&self, page: PageRef<'m>) {
        if let Some(folio) = page.hold {
            self.put(folio);
        }
    }

    /// Gives the pages in `pages` back.
    pub fn put_user_pages(&self, pages: &mut [Option<PageRef<'m>>]) {
        for page in pages.iter_mut().filter_map(Option::take) {
            self.put_user_page(page);
        }
    }

    /// Reads word `index` of a held page, as a device would: atomically, while
    /// the process may be writing.
    ///
    /// # Panics
    /// If `index` is 512 or more.
    pub fn read_user_page<H: Hold<'m>>(&self, page: &UserPage<H>, index: usize) -> u64 {
        self.word_of_page(page, index).load(Ordering::Relaxed)
    }

    /// Writes word `index` of a page that was pinned for writing, as a device would.
    ///
    /// # Panics
    /// If `index` is 512 or more, or the page is the zero page.
    pub fn write_user_page(&self, page: &PagePin<'m>, index: usize, value: u64) {
        assert!(page.hold.is_some(), "the zero page is never pinned for writing");
        self.word_of_page(page, index).store(value, Ordering::Relaxed);
    }

    fn word_of_page<'a, H>(&self, page: &'a UserPage<H>, index: usize) -> &'a AtomicU64 {
        assert!(index < usize::try_from(PAGE_SIZE / 8).unwrap_or(0), "word {index} of a page");
        let words = self.platform().frame_ptr(page.pfn).cast::<AtomicU64>();
        // SAFETY: `index` lies in the frame.
        let word = unsafe { words.add(index) };
        // SAFETY: the frame is RAM for as long as the platform lives, aligned, and
        // user memory is reached by atomic or volatile accesses alone.
        unsafe { word.as_ref() }
    }
}
