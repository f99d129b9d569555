//! `get_user_pages`: holding on to the pages of a process from outside it.
//!
//! [`Mm::pin_user_pages`](crate::mm::Mm::pin_user_pages) and its relatives give
//! a [`PagePin`] per page, or a [`PageRef`] to whoever only looks at the page's
//! state. `docs/gup.md` says what a pin promises and why the fast path
//! (`gup/grab.rs`) looks twice.
//!
//! Lock order: the slow path takes a VMA's lock, then a table's; the fast path none.

#[cfg(not(loom))]
mod fast;
mod grab;
#[cfg(not(loom))]
mod longterm;
#[cfg(not(loom))]
mod page;
#[cfg(not(loom))]
mod slow;

#[cfg(not(loom))]
use abi::PAGE_SIZE;
#[cfg(not(loom))]
use bitflags::bitflags;

#[cfg(not(loom))]
use crate::addr::VirtAddr;
#[cfg(not(loom))]
use crate::errno::Errno;

pub use grab::{Grab, Hold, grab};
#[cfg(not(loom))]
pub use page::{Contents, PagePin, PageRef, UserPage};

#[cfg(not(loom))]
bitflags! {
    /// How pages are wanted (`FOLL_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct GupFlags: u32 {
        /// The holder writes to them.
        const WRITE = 1 << 0;
        /// The holder may keep them for ever. Pins only.
        const LONGTERM = 1 << 1;
        /// Only those that can be had without a page fault.
        const NOFAULT = 1 << 2;
    }
}

/// Checks a request for `pages` pages from `va` on, in the order and with the errors of Linux.
///
/// # Errors
/// EINVAL: LONGTERM without a pin. EOVERFLOW: the range ends beyond 2^64.
/// EFAULT: it leaves the user half.
#[cfg(not(loom))]
fn check(va: u64, pages: usize, flags: GupFlags, is_pin: bool) -> Result<VirtAddr, Errno> {
    if flags.contains(GupFlags::LONGTERM) && !is_pin {
        return Err(Errno::EINVAL);
    }
    let start = va & !(PAGE_SIZE - 1);
    let bytes = (pages as u64).checked_mul(PAGE_SIZE).ok_or(Errno::EOVERFLOW)?;
    let end = start.checked_add(bytes).ok_or(Errno::EOVERFLOW)?;
    VirtAddr::new(end).and(VirtAddr::new(start)).ok_or(Errno::EFAULT)
}

#[cfg(all(test, not(loom)))]
mod tests;
