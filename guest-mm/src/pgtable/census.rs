//! Every table and every leaf of an address space, counted and checked.

use core::fmt;

use abi::Pfn;

use super::entry::{Entry, PmdState, UpperState};
use super::range::{LeafState, SizedLeaf};
use super::softleaf::{Leaf, LeafFlags, Location, Softleaf, SwapSlot};
use super::table::{ENTRIES, ROOT_LEVEL, Tables, USER_ROOT_ENTRIES};
use crate::addr::VirtAddr;
use crate::folio::Folio;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::space::AddressSpace;
use crate::xarray::{Entry as XEntry, NoMemory, XArray};

/// What does not agree in the tables of one space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableDiscrepancy {
    /// An entry leads to a frame that is no table of the level below.
    NoTable {
        /// First address that the entry spans.
        at: VirtAddr,
        /// The frame.
        frame: Pfn,
    },
    /// An entry is malformed.
    Malformed {
        /// First address that the entry spans.
        at: VirtAddr,
        /// The entry.
        entry: Entry,
    },
    /// A table's count of entries is wrong.
    Live {
        /// First address that the table spans.
        at: VirtAddr,
        /// Its level.
        level: u32,
        /// What its descriptor says.
        claimed: u16,
        /// What it holds.
        counted: u16,
    },
    /// A table is linked though its descriptor says that it was unlinked.
    Stray {
        /// First address that the table spans.
        at: VirtAddr,
        /// The frame.
        frame: Pfn,
    },
    /// The space counts another number of tables.
    Tables {
        /// What it counts.
        claimed: u64,
        /// Tables found below the root.
        counted: u64,
    },
}

impl fmt::Display for TableDiscrepancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoTable { at, frame } => write!(f, "{at}: frame {frame} is no table"),
            Self::Malformed { at, entry } => write!(f, "{at}: {entry:?}"),
            Self::Live { at, level, claimed, counted } => {
                write!(f, "{at}: table of level {level} claims {claimed} entries, has {counted}")
            }
            Self::Stray { at, frame } => write!(f, "{at}: stray table {frame} is linked"),
            Self::Tables { claimed, counted } => {
                write!(f, "Space counts {claimed} tables, has {counted}")
            }
        }
    }
}

/// Receives what the walk over all tables meets.
pub trait TableVisitor {
    /// A leaf.
    fn leaf(&mut self, at: VirtAddr, leaf: SizedLeaf);

    /// A table below the root.
    fn table(&mut self, _frame: Pfn, _level: u32) {}

    /// Something is wrong.
    fn discrepancy(&mut self, found: TableDiscrepancy);
}

/// A table on the way down.
#[derive(Clone, Copy)]
struct Node {
    frame: Pfn,
    level: u32,
    /// First address that it spans.
    at: u64,
}

impl Node {
    /// First address that entry `index` spans. The user half ends within its last page.
    fn va(self, index: usize) -> VirtAddr {
        let at = self.at + ((index as u64) << (12 + 9 * self.level));
        VirtAddr::new(at).unwrap_or(VirtAddr::END)
    }
}

impl<P: Platform> Tables<'_, P> {
    /// Visits every table and every leaf of the user half, ascending, and checks
    /// the tables' own books. Takes no lock: exact once the space is quiet.
    /// Returns the number of tables below the root.
    pub fn visit(&self, visitor: &mut dyn TableVisitor) -> u64 {
        let _section = self.base().rcu.read(self.platform().cpu());
        let root = Node { frame: self.root(), level: ROOT_LEVEL, at: 0 };
        // The root itself is not one of the space's counted tables.
        let counted = self.visit_node(root, visitor).saturating_sub(1);
        let claimed = self.table_pages();
        if claimed != counted {
            visitor.discrepancy(TableDiscrepancy::Tables { claimed, counted });
        }
        counted
    }

    /// Calls `each` with every leaf, ascending.
    pub fn for_each_leaf(&self, each: &mut dyn FnMut(VirtAddr, SizedLeaf)) {
        struct Leaves<'f>(&'f mut dyn FnMut(VirtAddr, SizedLeaf));
        impl TableVisitor for Leaves<'_> {
            fn leaf(&mut self, at: VirtAddr, leaf: SizedLeaf) {
                (self.0)(at, leaf);
            }
            fn discrepancy(&mut self, _: TableDiscrepancy) {}
        }
        self.visit(&mut Leaves(each));
    }

    /// Tables at and below `node`.
    fn visit_node(&self, node: Node, visitor: &mut dyn TableVisitor) -> u64 {
        let Some(desc) = self.base().table_desc(node.frame, node.level) else {
            let (at, frame) = (node.va(0), node.frame);
            visitor.discrepancy(TableDiscrepancy::NoTable { at, frame });
            return 0;
        };
        if desc.is_stray() {
            visitor.discrepancy(TableDiscrepancy::Stray { at: node.va(0), frame: node.frame });
        }
        if node.level < ROOT_LEVEL {
            visitor.table(node.frame, node.level);
        }
        let entries = if node.level == ROOT_LEVEL { USER_ROOT_ENTRIES } else { ENTRIES };
        let (mut counted, mut tables) = (0, 1);
        for index in 0..entries {
            let entry = self.load(node.frame, index);
            if !entry.is_none() {
                counted += 1;
                tables += self.visit_entry(node, index, entry, visitor);
            }
        }
        let claimed = desc.live();
        if claimed != counted {
            let (at, level) = (node.va(0), node.level);
            visitor.discrepancy(TableDiscrepancy::Live { at, level, claimed, counted });
        }
        tables
    }

    fn visit_entry(
        &self,
        node: Node,
        index: usize,
        entry: Entry,
        visitor: &mut dyn TableVisitor,
    ) -> u64 {
        let at = node.va(index);
        let below = |frame| Node { frame, level: node.level - 1, at: at.get() };
        let leaf = match node.level {
            0 => SizedLeaf::of_pte(entry),
            1 => match entry.pmd() {
                PmdState::Table(frame) => return self.visit_node(below(frame), visitor),
                PmdState::None
                | PmdState::Present(_)
                | PmdState::Soft(_)
                | PmdState::Unknown(_) => SizedLeaf::of_pmd(entry),
            },
            _ => match entry.upper() {
                UpperState::Table(frame) => return self.visit_node(below(frame), visitor),
                UpperState::None => Ok(None),
                UpperState::Unknown(unknown) => Err(unknown),
            },
        };
        match leaf {
            Ok(Some(leaf)) => visitor.leaf(at, leaf),
            Ok(None) => {}
            Err(_) => visitor.discrepancy(TableDiscrepancy::Malformed { at, entry }),
        }
        0
    }

    /// A number for what the tables say that does not depend on which frames and
    /// swap slots hold it, nor on A bits, which a CPU may set for an access that it
    /// only considers: two machines that did the same have the same. `number` gives
    /// each frame a number by first appearance.
    pub fn digest(&self, number: &mut dyn FnMut(Pfn) -> u64) -> u64 {
        let mut digest = Fnv::new();
        self.for_each_leaf(&mut |at, leaf| {
            digest.add(at.get());
            digest.add(u64::from(leaf.order));
            let (said, frame) = match leaf.state {
                LeafState::Present(pte) => {
                    let said = pte.mk_old().with_pfn(Pfn::ZERO);
                    (said.map_or(0, |pte| pte.entry().bits()), Some(pte.pfn()))
                }
                LeafState::Soft(leaf) => {
                    let leaf = leaf.without_flags(LeafFlags::YOUNG);
                    (leaf.without_place().entry().bits(), leaf.kind().frame())
                }
            };
            digest.add(said);
            digest.add(frame.map_or(u64::MAX, &mut *number));
        });
        digest.0
    }
}

impl Softleaf {
    /// The frame that the leaf names.
    fn frame(self) -> Option<Pfn> {
        match self.location() {
            Some(Location::Pfn(pfn)) => Some(pfn),
            Some(Location::DevOffset(_)) | None => None,
        }
    }
}

impl Leaf {
    /// The leaf with frame 0 or slot 0: what differs between machines taken out.
    fn without_place(self) -> Self {
        let zero = Pfn::ZERO;
        self.with_kind(match self.kind() {
            Softleaf::Swap { slot, exclusive } => {
                Softleaf::Swap { slot: SwapSlot::new(0).unwrap_or(slot), exclusive }
            }
            Softleaf::MigrationRead(_) => Softleaf::MigrationRead(zero),
            Softleaf::MigrationReadExclusive(_) => Softleaf::MigrationReadExclusive(zero),
            Softleaf::MigrationWrite(_) => Softleaf::MigrationWrite(zero),
            Softleaf::DeviceExclusive(_) => Softleaf::DeviceExclusive(zero),
            Softleaf::HwPoison(_) => Softleaf::HwPoison(zero),
            kind @ (Softleaf::None
            | Softleaf::DevicePrivateRead(_)
            | Softleaf::DevicePrivateWrite(_)
            | Softleaf::Marker(_)
            | Softleaf::MigrationDevicePrivateRead(_)
            | Softleaf::MigrationDevicePrivateReadExclusive(_)
            | Softleaf::MigrationDevicePrivateWrite(_)) => kind,
        })
    }
}

impl<P: Platform> Mm<'_, P> {
    /// The digest of a space's leaves ([`Tables::digest`]); the space is quiet.
    ///
    /// # Errors
    /// No memory for the book of frames.
    pub fn leaf_digest(&self, space: &AddressSpace<'_, P>) -> Result<u64, NoMemory> {
        let base = self.base();
        let seen: XArray<'_, _, Folio> = XArray::new(&base.rcu, base.xa_nodes());
        let (mut next, mut failed) = (0usize, None);
        let digest = space.tables().digest(&mut |pfn| {
            if let Some(known) = seen.load(pfn.number()).and_then(|entry| entry.as_value()) {
                return known as u64;
            }
            let number = next;
            next += 1;
            if let Some(entry) = XEntry::value(number)
                && let Err(error) = seen.store(pfn.number(), entry)
            {
                failed = Some(error);
            }
            number as u64
        });
        failed.map_or(Ok(digest), Err)
    }
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo 1991): any mixing function would do.
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, value: u64) {
        for byte in value.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}
