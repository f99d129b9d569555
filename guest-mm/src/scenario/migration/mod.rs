//! `migration` and `rmap`, by the names of Linux's selftests, tested anew: pages move between ranges of
//! frames while processes use them, and all who map a page follow.

mod hammer;
pub(crate) mod pool;
mod tree;

pub(super) use hammer::run as run_migration;
pub(super) use tree::run as run_rmap;

use abi::Pfn;

use super::{Machine, Process};
use crate::addr::VirtAddr;
use crate::pgtable::{Found, PmdState, PteState};

/// The frame that a leaf of either size maps at `va`.
fn frame_at<M: Machine>(process: &Process<'_, '_, M>, va: u64) -> Option<Pfn> {
    let mm = process.mm();
    let at = VirtAddr::new(va)?;
    let section = mm.base().rcu.read(mm.platform().cpu());
    match process.space().tables().walk(&section, at) {
        Found::Pte { entry, .. } => match entry.pte() {
            PteState::Present(pte) => Some(pte.pfn()),
            PteState::None | PteState::Soft(_) | PteState::Unknown(_) => None,
        },
        Found::Pmd { entry, .. } => match entry.pmd() {
            PmdState::Present(pmd) => Some(pmd.split(at.page() % 512)?.pfn()),
            PmdState::None | PmdState::Table(_) | PmdState::Soft(_) | PmdState::Unknown(_) => None,
        },
        Found::Hole | Found::Unknown(_) => None,
    }
}
