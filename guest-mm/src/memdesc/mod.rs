//! Eight bytes per page frame: what the frame is, and who owns it.
//!
//! Every frame of RAM has one [`Word`] in the [`WordTable`]. Its low four bits
//! are a [`Tag`]; the rest is inline data or a pointer to a descriptor.
//! [`Word::decode`] is the only reader of the bits and [`Memdesc::encode`] the
//! only writer. A frame changes hands by one compare-and-swap
//! ([`WordCell::transition`]) between states that the static table of
//! [`transition`] connects; there is no reference count in a word, no lock and
//! no list of "busy" frames.
//!
//! The head word of a block carries its type and order; the other frames hold
//! [`Tail`], whose value depends on the frame number alone, so that neither
//! splitting nor merging rewrites them (`docs/guest-mm.md`).

mod body;
mod cell;
mod codec;
mod isolation;
mod kind;
#[cfg(loom)]
pub mod mutant;
mod order;
mod section;
mod table;
pub mod transition;
mod word;

pub use body::{
    Block, BlockKind, Buddy, Descriptor, DescriptorKind, DriverId, Memdesc, MigrateType, Offline,
    Pcp, Tail, Transit,
};
pub use cell::WordCell;
pub use isolation::{Claim, NotIsolated, PutBack};
pub use kind::{Hold, Kind, State, Tag};
pub use order::{Order, OrderTooLarge};
pub(crate) use section::Sections;
pub use section::{HotBlock, SECTION_ORDER, SECTION_PAGES};
pub use table::{LookupError, MAX_REGIONS, OutOfMap, Region, WordTable};
pub use transition::TransitionError;
pub use word::{Link, UnknownWord, Word, ZONE_MAX_PAGES};

#[cfg(test)]
mod tests;
