//! Parts of split folios that are to be tried again.

use core::ptr::NonNull;

use super::IsolatedFolio;
use crate::folio::{Folio, FolioRef};
use crate::sync::shim::Ordering;

/// Isolated pages that wait for the next pass, last come first.
///
/// They are more than a batch has room for: 512 of one folio. While they are isolated
/// the `lru` links of their descriptors are ours, so that waiting takes no memory.
#[derive(Debug, Default)]
pub(in crate::migrate) struct WaitingParts<'m> {
    first: Option<IsolatedFolio<'m>>,
}

impl<'m> WaitingParts<'m> {
    pub(in crate::migrate) const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn push(&mut self, part: IsolatedFolio<'m>) {
        let next = self.first.take().map(|next| next.into_reference().into_raw());
        let next = next.map_or(0, |next| next.as_ptr().expose_provenance() as u64);
        // Who isolated it has its links, and all others look at its flags below the
        // lock of the LRU first.
        part.folio().lru[0].store(next, Ordering::Relaxed);
        self.first = Some(part);
    }

    pub(in crate::migrate) fn pop(&mut self) -> Option<IsolatedFolio<'m>> {
        let part = self.first.take()?;
        let next = usize::try_from(part.folio().lru[0].swap(0, Ordering::Relaxed)).unwrap_or(0);
        let next = NonNull::new(core::ptr::with_exposed_provenance_mut::<Folio>(next));
        self.first = next.map(|next| {
            // SAFETY: `push` gave up its handle, of a cache that lives for `'m`, but neither
            // the reference nor the isolation; the link was the only trace of it.
            IsolatedFolio::own(unsafe { FolioRef::from_raw(next) })
        });
        Some(part)
    }
}
