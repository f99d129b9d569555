//! Leaves from folios: the folio decides what numbers its pages.

use abi::PageCount;

use super::{Location, MigrationAccess, Softleaf};
use crate::folio::{Folio, FolioKind};

impl Location {
    /// Where page `page` of `folio` is; `None` if it has no such page.
    ///
    /// The one place that knows which kinds of folio are in RAM. All are, so far:
    /// one of device-private memory is to answer with its offset.
    pub fn of_folio(folio: &Folio, page: u64) -> Option<Self> {
        if page >= folio.pages().get() {
            return None;
        }
        match folio.kind() {
            FolioKind::File | FolioKind::Anon | FolioKind::Device => {
                folio.pfn().checked_add(PageCount::new(page)).map(Self::Pfn)
            }
        }
    }
}

impl Softleaf {
    /// The migration leaf of page `page` of `folio`, in RAM or in a device.
    pub fn migration_of(folio: &Folio, page: u64, access: MigrationAccess) -> Option<Self> {
        Some(Self::migration(Location::of_folio(folio, page)?, access))
    }

    /// The leaf of page `page` of `folio` that only a device may reach: of its own
    /// memory, or of RAM that it has to itself for a while.
    pub fn device_of(folio: &Folio, page: u64, writable: bool) -> Option<Self> {
        Some(match Location::of_folio(folio, page)? {
            Location::DevOffset(at) => Self::device_private(at, writable),
            Location::Pfn(pfn) => Self::DeviceExclusive(pfn),
        })
    }

    /// The leaf of a page of `folio` with a memory error. Device-private memory
    /// has none: its errors are the device's.
    pub fn hwpoison_of(folio: &Folio, page: u64) -> Option<Self> {
        match Location::of_folio(folio, page)? {
            Location::Pfn(pfn) => Some(Self::HwPoison(pfn)),
            Location::DevOffset(_) => None,
        }
    }
}
