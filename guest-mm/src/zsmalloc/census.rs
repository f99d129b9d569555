//! Every pool's lists, zspages, headers and handles against each other.

use core::fmt;

use abi::Pfn;

use super::class::{ALL as ALL_CLASSES, CLASSES};
use super::handle::ZsHandle;
use super::lists::Fullness;
use super::pool::PoolState;
use super::registry::ZsPool;
use super::zspage::{Contents, Header, Zspage, zpdesc_of};
use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::shim::Ordering;

/// What does not agree in a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZsDiscrepancy {
    /// A zspage of this page is in the list of another fullness than its objects make up.
    Group(Pfn),
    /// A zspage of this page has another number of used and free objects than its class.
    Objects {
        /// First page.
        page: Pfn,
        /// Objects in use by its count.
        used: u32,
        /// Objects in use by their headers.
        found: u32,
        /// Free ones by the list.
        free: u32,
    },
    /// A page whose word or descriptor does not say that it is its zspage's.
    Page(Pfn),
    /// A handle's entry names an object that is not the handle's.
    Handle(ZsHandle),
    /// Objects by the pool's count, its lists and its handles.
    Counts {
        /// By the count.
        counted: u64,
        /// By the lists.
        listed: u64,
        /// By the handles.
        named: u64,
    },
    /// Zspages or pages are more or fewer than the pool counts.
    Pages {
        /// Zspages and pages by the count.
        counted: [u64; 2],
        /// By the lists.
        found: [u64; 2],
    },
}

impl fmt::Display for ZsDiscrepancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(page) => write!(f, "zspage of frame {page} is in a wrong list"),
            Self::Objects { page, used, found, free } => write!(
                f,
                "zspage of frame {page} counts {used} objects, has {found}, and {free} free ones"
            ),
            Self::Page(page) => write!(f, "frame {page} does not know its zspage"),
            Self::Handle(handle) => write!(f, "handle {handle:?} leads to another's object"),
            Self::Counts { counted, listed, named } => write!(
                f,
                "a pool counts {counted} objects, its lists {listed}, its handles {named}"
            ),
            Self::Pages { counted, found } => {
                write!(f, "a pool counts zspages and pages {counted:?}, and has {found:?}")
            }
        }
    }
}

/// What a census of pools found. Exact when nobody allocates, frees or compacts; sound whoever does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ZsCensus {
    /// Pools.
    pub pools: u64,
    /// Objects.
    pub objects: u64,
    /// Zspages.
    pub zspages: u64,
    /// Their pages.
    pub pages: u64,
    /// Discrepancies.
    pub discrepancies: u64,
}

impl<P: Platform> Mm<'_, P> {
    /// Walks all pools. Calls `tell` with each discrepancy.
    pub fn zs_census(&self, tell: &mut dyn FnMut(ZsDiscrepancy)) -> ZsCensus {
        let mut census = ZsCensus::default();
        self.for_each_zs_pool(&mut |pool| {
            census.pools += 1;
            pool.census(&mut census, tell);
        });
        census
    }
}

impl<P: Platform> ZsPool<'_, P> {
    /// Walks this pool. Calls `tell` with each discrepancy.
    pub fn census(&self, tell: &mut dyn FnMut(ZsDiscrepancy)) -> ZsCensus {
        let mut census = ZsCensus { pools: 1, ..ZsCensus::default() };
        self.state().census(&mut census, tell);
        census
    }

    /// Calls `each` with every page of the pool, which may cease to be one at any time.
    pub fn for_each_page(&self, each: &mut dyn FnMut(Pfn)) {
        let state = self.state();
        for class in 0..CLASSES {
            state.lock_class(class).lists.for_each(&mut |zspage, _| {
                let body = zspage.body.lock(state.base.platform());
                body.frames().iter().for_each(|&frame| each(frame));
            });
        }
    }
}

impl<P: Platform> PoolState<'_, P> {
    fn census(&self, census: &mut ZsCensus, tell: &mut dyn FnMut(ZsDiscrepancy)) {
        let mut discrepancies = 0;
        let mut wrong = |found| {
            discrepancies += 1;
            tell(found);
        };
        let (mut listed, mut zspages, mut pages) = (0, 0, 0);
        for class in 0..CLASSES {
            let guard = self.lock_class(class);
            listed += guard.lists.objects;
            guard.lists.for_each(&mut |zspage, group| {
                zspages += 1;
                pages += self.check_zspage(class, zspage, group, &mut wrong);
            });
        }
        let mut named = 0;
        self.handles.for_each_used(&mut |handle| {
            // Or freed meanwhile.
            let Ok((class, object, mut body)) = self.locked_object(handle) else { return };
            named += 1;
            if self.contents(&ALL_CLASSES[class], &mut body).header(object) != Header::of(handle) {
                wrong(ZsDiscrepancy::Handle(handle));
            }
        });
        let stats = self.counters.snapshot();
        if stats.objects != listed || listed != named {
            wrong(ZsDiscrepancy::Counts { counted: stats.objects, listed, named });
        }
        let (counted, found) = ([stats.zspages, stats.pages], [zspages, pages]);
        if counted != found {
            wrong(ZsDiscrepancy::Pages { counted, found });
        }
        census.objects += listed;
        census.zspages += zspages;
        census.pages += pages;
        census.discrepancies += discrepancies;
    }

    /// Checks a zspage of a locked class. Returns its pages.
    fn check_zspage(
        &self,
        class: usize,
        zspage: &Zspage,
        group: Fullness,
        wrong: &mut dyn FnMut(ZsDiscrepancy),
    ) -> u64 {
        let definition = &ALL_CLASSES[class];
        let mut body = zspage.body.lock(self.base.platform());
        let pages = body.frames().len() as u64;
        let Some(&page) = body.frames().first() else { return 0 };
        for (place, &frame) in body.frames().iter().enumerate() {
            if !self.knows_its_zspage(frame, zspage, place) {
                wrong(ZsDiscrepancy::Page(frame));
                // Its contents cannot be relied on either.
                return pages;
            }
        }
        let used = zspage.used.load(Ordering::Relaxed);
        let is_placed = zspage.group.load(Ordering::Relaxed) == group as u32
            && Fullness::of(used, definition) == group
            && zspage.class.load(Ordering::Relaxed) as usize == class;
        if !is_placed || used == 0 {
            wrong(ZsDiscrepancy::Group(page));
        }
        let contents = self.contents(definition, &mut body);
        let (found, free) = (count_used(&contents), contents.count_free());
        let free = u32::try_from(free).unwrap_or(u32::MAX);
        if used != found || (used + free) as usize != definition.objects {
            wrong(ZsDiscrepancy::Objects { page, used, found, free });
        }
        pages
    }

    fn knows_its_zspage(&self, frame: Pfn, zspage: &Zspage, place: usize) -> bool {
        // SAFETY: a page of a zspage whose lock is held.
        let descriptor = unsafe { zpdesc_of(&self.base.memory, frame) };
        descriptor.is_some_and(|descriptor| {
            descriptor.zspage.load(Ordering::Relaxed) == zspage.address()
                && descriptor.place.load(Ordering::Relaxed) as usize == place
        })
    }
}

/// Objects in use by their headers.
fn count_used<P: Platform>(contents: &Contents<'_, P>) -> u32 {
    let used = (0..contents.body.fresh())
        .filter(|&object| matches!(contents.header(object), Header::Used(_)));
    u32::try_from(used.count()).unwrap_or(u32::MAX)
}
