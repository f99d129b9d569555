//! A class's zspages by how full they are.

use super::class::SizeClass;
use super::zspage::{Zspage, zspage_at};
use crate::sync::shim::Ordering;

/// How full a zspage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Fullness {
    /// Up to a quarter of its objects are in use; never none.
    Quarter,
    /// Up to half.
    Half,
    /// Up to three quarters.
    ThreeQuarters,
    /// More, but not all.
    AlmostFull,
    /// All.
    Full,
}

impl Fullness {
    /// Every group, emptiest first.
    pub const ALL: [Self; 5] =
        [Self::Quarter, Self::Half, Self::ThreeQuarters, Self::AlmostFull, Self::Full];

    /// The group of a zspage with `used` objects in use.
    pub(super) const fn of(used: u32, class: &SizeClass) -> Self {
        let (used, objects) = (used as usize, class.objects);
        if used == objects {
            Self::Full
        } else if used * 4 <= objects {
            Self::Quarter
        } else if used * 2 <= objects {
            Self::Half
        } else if used * 4 <= objects * 3 {
            Self::ThreeQuarters
        } else {
            Self::AlmostFull
        }
    }
}

/// The zspages of a class, behind its lock.
#[derive(Debug)]
pub(super) struct Lists {
    /// Address of each group's first zspage, or 0.
    first: [u64; Fullness::ALL.len()],
    pub(super) zspages: u64,
    pub(super) objects: u64,
}

impl Lists {
    pub(super) const EMPTY: Self = Self { first: [0; 5], zspages: 0, objects: 0 };

    /// Adds a zspage to the list of its group.
    pub(super) fn insert(&mut self, zspage: &Zspage, class: &SizeClass) {
        let group = Fullness::of(zspage.used.load(Ordering::Relaxed), class);
        zspage.group.store(group as u32, Ordering::Relaxed);
        let first = &mut self.first[group as usize];
        zspage.previous.store(0, Ordering::Relaxed);
        zspage.next.store(*first, Ordering::Relaxed);
        if let Some(next) = linked(*first) {
            next.previous.store(zspage.address(), Ordering::Relaxed);
        }
        *first = zspage.address();
        self.zspages += 1;
    }

    /// Takes a zspage out of its list.
    pub(super) fn remove(&mut self, zspage: &Zspage) {
        let (next, previous) =
            (zspage.next.load(Ordering::Relaxed), zspage.previous.load(Ordering::Relaxed));
        if let Some(next) = linked(next) {
            next.previous.store(previous, Ordering::Relaxed);
        }
        if let Some(previous) = linked(previous) {
            previous.next.store(next, Ordering::Relaxed);
        } else {
            self.first[zspage.group.load(Ordering::Relaxed) as usize] = next;
        }
        self.zspages -= 1;
    }

    /// Counts an object more or less in a listed zspage, which may move to another list.
    pub(super) fn recount(&mut self, zspage: &Zspage, class: &SizeClass, used: u32) {
        let before = zspage.used.swap(used, Ordering::Relaxed);
        self.objects = self.objects - u64::from(before) + u64::from(used);
        if zspage.group.load(Ordering::Relaxed) != Fullness::of(used, class) as u32 {
            self.remove(zspage);
            self.insert(zspage, class);
        }
    }

    /// The fullest zspage with a free object.
    pub(super) fn fullest<'m>(&self) -> Option<&'m Zspage> {
        let groups = Fullness::ALL.iter().rev().filter(|&&group| group != Fullness::Full);
        groups.copied().find_map(|group| self.first(group))
    }

    /// The emptiest zspage.
    pub(super) fn emptiest<'m>(&self) -> Option<&'m Zspage> {
        Fullness::ALL.iter().copied().find_map(|group| self.first(group))
    }

    /// A group's first zspage.
    pub(super) fn first<'m>(&self, group: Fullness) -> Option<&'m Zspage> {
        linked(self.first[group as usize])
    }

    /// Calls `each` with every zspage and the list that it is in.
    pub(super) fn for_each(&self, each: &mut dyn FnMut(&Zspage, Fullness)) {
        for group in Fullness::ALL {
            let mut at = self.first[group as usize];
            while let Some(zspage) = linked(at) {
                each(zspage, group);
                at = zspage.next.load(Ordering::Relaxed);
            }
        }
    }
}

/// The zspage that a link names.
fn linked<'m>(address: u64) -> Option<&'m Zspage> {
    // SAFETY: zspages leave their list before they are freed, and the caller holds
    // the lock of the lists.
    (address != 0).then(|| unsafe { zspage_at(address) })
}
