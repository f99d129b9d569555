//! Why memory was not added, brought to life, laid to rest or removed.

use core::fmt;

use abi::{PageCount, Pfn, PfnRange};

use crate::memdesc::{LookupError, Memdesc, Order, TransitionError};
use crate::platform::MapError;

/// A step on hot-plugged memory that was refused; nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HotplugError {
    /// A block of memory begins and ends at multiples of 4 MiB and is not empty.
    Misaligned(PfnRange),
    /// The block crosses a multiple of 128 MiB.
    CrossesSection(PfnRange),
    /// The block lies, in part, where the zone's links do not reach: below its first frame, or
    /// 256 GiB or more above.
    OutsideZone {
        /// The block.
        range: PfnRange,
        /// The zone's first frame.
        base: Pfn,
    },
    /// Some of its frames are RAM already.
    Overlap {
        /// The block.
        range: PfnRange,
        /// What is there.
        with: PfnRange,
    },
    /// Its section has a block already.
    SectionTaken {
        /// The block.
        range: PfnRange,
        /// The one that is there.
        by: PfnRange,
    },
    /// The block's own tables do not fit into that part of it which has memory.
    NoRoomForTables {
        /// Pages with memory behind them.
        plugged: PageCount,
        /// Pages of tables.
        needed: PageCount,
    },
    /// The direct map cannot hold the block.
    Map(MapError),
    /// No block of hot-plugged memory has exactly these frames, or contains them.
    NotAdded(PfnRange),
    /// The range begins or ends inside a piece that is one offline block.
    NotWhole {
        /// Where the piece begins.
        head: Pfn,
        /// Its order.
        order: Order,
    },
    /// The frame is not one that waits to come to life.
    NotOffline(Pfn, Memdesc),
    /// The block cannot be removed: this frame is in use or free.
    InUse(Pfn, Memdesc),
    /// The block cannot be removed: somebody has set this pageblock of it aside.
    SetAside(Pfn),
    /// A word of the block could not be read.
    Lookup(LookupError),
    /// A word changed under its owner: memory corruption.
    Transition(Pfn, TransitionError),
    /// Another block is being added or removed.
    Busy,
}

impl fmt::Display for HotplugError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned(range) => {
                write!(f, "Block {range:?} does not begin and end at multiples of 4 MiB")
            }
            Self::CrossesSection(range) => {
                write!(f, "Block {range:?} crosses a multiple of 128 MiB")
            }
            Self::OutsideZone { range, base } => {
                write!(f, "Block {range:?} is outside the 256 GiB from frame {base} on")
            }
            Self::Overlap { range, with } => write!(f, "Block {range:?} overlaps {with:?}"),
            Self::SectionTaken { range, by } => {
                write!(f, "Block {range:?} is in the section of block {by:?}")
            }
            Self::NoRoomForTables { plugged, needed } => write!(
                f,
                "A block's tables take {} pages, of which {} have memory",
                needed.get(),
                plugged.get()
            ),
            Self::Map(error) => error.fmt(f),
            Self::NotAdded(range) => write!(f, "No hot-plugged block has the frames {range:?}"),
            Self::NotWhole { head, order } => {
                write!(f, "The range cuts the offline block of order {order} at frame {head}")
            }
            Self::NotOffline(pfn, found) => write!(f, "Frame {pfn} is not offline: {found:?}"),
            Self::InUse(pfn, found) => write!(f, "Frame {pfn} is in use: {found:?}"),
            Self::SetAside(pfn) => write!(f, "Pageblock of frame {pfn} is set aside"),
            Self::Lookup(error) => error.fmt(f),
            Self::Transition(pfn, error) => write!(f, "Frame {pfn}: {error}"),
            Self::Busy => f.write_str("Another block is being added or removed"),
        }
    }
}

impl core::error::Error for HotplugError {}
