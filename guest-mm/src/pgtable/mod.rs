//! Page tables: what stands in them, the tables themselves, and walks over them.
//!
//! * [`entry`](Entry): 64 bits of a table, decoded by level into nothing, a
//!   table, a mapping ([`Pte`], [`Pmd`]) or a non-present leaf.
//! * [`softleaf`]: every kind of non-present leaf, one enum.
//! * [`Tables`]: the tables of an address space, made, found, locked, walked.
//! * Operations on ranges: [`Tables::zap_range`], [`Tables::change_protection`],
//!   [`Tables::move_range`], [`Tables::copy_range`], [`Tables::split_pmd`],
//!   [`Tables::free_tables`]; what is behind leaves is a [`LeafOwner`]'s.
//! * [`SpaceLeaves`]: the owner of real address spaces' leaves, and the same
//!   operations as methods of `Mm`.
//! * [`LeafWalk`]: the leaves of one folio, for reverse maps.
//! * [`TlbGather`]: nothing is given away before TLBs have forgotten it.
//!
//! x86-64, four levels, 4 KiB and 2 MiB mappings. The layout of every bit and
//! the rules of the tables are in `docs/page-tables.md`.

mod census;
mod entry;
mod gather;
mod leaf_walk;
mod owner;
mod range;
pub mod softleaf;
mod table;

pub use census::{TableDiscrepancy, TableVisitor};
pub use entry::{
    Entry, HwLeaf, LeafSize, PageProt, Pmd, PmdState, Pte, PteState, Size2M, Size4K, UpperState,
};
pub use gather::TlbGather;
pub use leaf_walk::{LeafWalk, Sought, SoughtLeaves};
pub use owner::{LeafRest, SpaceLeaves};
pub use range::{
    Duplicate, ForkError, ForkRules, LeafOwner, LeafState, MoveError, Protection, SizedLeaf,
    Unmapped, ZapRules,
};
pub use softleaf::{
    DevOffset, ForkLeaf, Leaf, LeafFlags, Location, Marker, MarkerZap, MigrationAccess, Owner,
    PmdLeaf, PmdSoftleaf, Sharing, Softleaf, SwapSlot, Target, UnknownLeaf,
};
pub use table::{
    ENTRIES, Found, MakeTableError, NoTable, PmdGuard, PtDesc, PteGuard, ROOT_LEVEL, RootInUse,
    SlotRef, TableCounters, TableGuard, TableState, Tables, USER_ROOT_ENTRIES, free_root, new_root,
};

#[cfg(test)]
mod tests;
