//! Where a pin may stay for ever.

use abi::Pfn;

use crate::errno::Errno;
use crate::folio::{Folio, FolioKind};
use crate::memdesc::MigrateType;
use crate::mm::Mm;
use crate::platform::Platform;

impl<P: Platform> Mm<'_, P> {
    /// Whether a page may be pinned for ever where it is.
    ///
    /// # Errors
    /// ENOMEM: the frame has been promised to others who expect it to be movable,
    /// and nothing can move it yet. EOPNOTSUPP: device memory, which its device
    /// takes back when it likes.
    pub(super) fn check_longterm(&self, folio: &Folio, pfn: Pfn) -> Result<(), Errno> {
        match folio.kind() {
            FolioKind::Device => return Err(Errno::EOPNOTSUPP),
            FolioKind::File | FolioKind::Anon => {}
        }
        match self.memory().map().pageblocks.get(pfn) {
            MigrateType::Cma | MigrateType::Isolate => Err(Errno::ENOMEM),
            // Movable: a hint to the allocator, as in Linux; only the zone promises.
            MigrateType::Unmovable
            | MigrateType::Movable
            | MigrateType::Reclaimable
            | MigrateType::HighAtomic => Ok(()),
        }
    }
}
