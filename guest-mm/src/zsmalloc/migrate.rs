//! Migration of a pool's pages: contents and descriptor go to another frame, and
//! the zspage learns its number. No handle and no object names a frame, so
//! nothing else changes.

use abi::Pfn;

use super::pool::pool_at;
use super::stats::ZsEvent;
use super::zspage::{zpdesc_of, zspage_at};
use crate::memory::TransitFrames;
use crate::migrate::{MigrateError, MigrateMode, Migrated, MovableOps, SourceMemory};
use crate::mm::Mm;
use crate::objects::ZpDesc;
use crate::platform::Platform;
use crate::sync::shim::Ordering;

const PAGE_BYTES: usize = 4096;

/// The operations of pages of kind zpdesc. Isolation never fails: what there is to
/// lock, migration locks.
pub(super) struct ZsMovable;

impl<P: Platform> MovableOps<P> for ZsMovable {
    fn migrate(
        &self,
        mm: &Mm<'_, P>,
        dst: &TransitFrames,
        src: Pfn,
        mode: MigrateMode,
    ) -> Result<Migrated, MigrateError> {
        let (memory, platform) = (mm.memory(), mm.platform());
        // The zspage may be freed until it is locked: then the page is doomed, too.
        let _section = mm.base().rcu.read(platform.cpu());
        // SAFETY: the page is isolated; its descriptor goes when migration frees it.
        let descriptor = unsafe { zpdesc_of(memory, src) }.ok_or(MigrateError::Busy)?;
        // SAFETY: the page was of a zspage when it was isolated, and this is a read section.
        let zspage = unsafe { zspage_at(descriptor.zspage.load(Ordering::Relaxed)) };
        let mut body = match mode {
            MigrateMode::Async => zspage.body.try_lock(platform).ok_or(MigrateError::Again)?,
            MigrateMode::SyncLight | MigrateMode::Sync => zspage.body.lock(platform),
        };
        if !body.frames().contains(&src) {
            // Freed with its zspage meanwhile; the word says so, and the core looks.
            return Err(MigrateError::Again);
        }
        copy_page(platform, src, dst.head());
        let page = mm.adopt_object::<ZpDesc>(dst, src).map_err(MigrateError::from)?;
        let moved = body.replace(src, page.frame());
        debug_assert!(moved, "{src:?} was there");
        // Whoever isolates it waits for the zspage's lock.
        let movable = mm.let_migrate(page);
        debug_assert!(movable.is_ok(), "a page just adopted: {movable:?}");
        // SAFETY: the zspage has pages and is locked.
        let pool = unsafe { pool_at::<P>(zspage.pool.load(Ordering::Relaxed)) };
        pool.counters.count(ZsEvent::PageMigrated);
        Ok(Migrated::Moved(SourceMemory::Present))
    }
}

/// Copies a page whose contents nobody changes to one that nobody knows.
fn copy_page<P: Platform>(platform: &P, src: Pfn, dst: Pfn) {
    let (from, to) = (platform.frame_ptr(src), platform.frame_ptr(dst));
    // SAFETY: two frames; the source's contents change below the zspage's lock only,
    // which the caller holds, and the destination is in transit, which is the caller's.
    unsafe { to.copy_from_nonoverlapping(from, PAGE_BYTES) };
}
