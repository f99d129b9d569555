//! Page tables: what stands in them, the tables themselves, and walks over them.
//!
//! * [`entry`](Entry): 64 bits of a table, decoded by level into nothing, a
//!   table, a mapping ([`Pte`], [`Pmd`]) or a non-present leaf.
//! * [`softleaf`]: every kind of non-present leaf, one enum.
//!
//! x86-64, four levels, 4 KiB and 2 MiB mappings. The layout of every bit and
//! the rules of the tables are in `docs/page-tables.md`.

mod entry;
pub mod softleaf;

pub use entry::{
    Entry, HwLeaf, LeafSize, PageProt, Pmd, PmdState, Pte, PteState, Size2M, Size4K, UpperState,
};
pub use softleaf::{
    DevOffset, ForkLeaf, Leaf, LeafFlags, Location, Marker, MarkerZap, MigrationAccess, Owner,
    PmdLeaf, PmdSoftleaf, Sharing, Softleaf, SwapSlot, Target, UnknownLeaf,
};
