//! What words say, as Rust types.

use abi::Pfn;

use super::codec::canonical;
use super::kind::{Hold, Kind};
use super::order::Order;
use super::word::{Link, pointer};

/// What a block of free memory is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum MigrateType {
    /// Allocations that stay where they are.
    Unmovable = 0,
    /// Allocations that migration can move: user pages, the balloon's.
    Movable = 1,
    /// Allocations that can be given back on demand.
    Reclaimable = 2,
    /// Kept for high-order allocations that cannot wait.
    HighAtomic = 3,
    /// Lent to movable allocations only.
    Cma = 4,
    /// Handed out to nobody.
    Isolate = 5,
}

impl MigrateType {
    /// Number of migratetypes.
    pub const COUNT: usize = Self::ALL.len();
    /// Every migratetype, by number.
    pub const ALL: [Self; 6] = [
        Self::Unmovable,
        Self::Movable,
        Self::Reclaimable,
        Self::HighAtomic,
        Self::Cma,
        Self::Isolate,
    ];

    /// The number, for arrays of [`Self::COUNT`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The migratetype with this number.
    pub const fn from_index(index: usize) -> Option<Self> {
        if index < Self::COUNT { Some(Self::ALL[index]) } else { None }
    }

    /// Whether blocks of the type merge with, and are taken for, other such types.
    pub const fn is_mergeable(self) -> bool {
        matches!(self, Self::Unmovable | Self::Movable | Self::Reclaimable)
    }
}

/// The driver that owns an Offline block, 0–15.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct DriverId(u8);

impl DriverId {
    /// virtio-balloon.
    pub const BALLOON: Self = Self(1);
    /// virtio-mem.
    pub const HOTPLUG: Self = Self(2);

    /// The driver with this number, or `None` above 15.
    pub const fn new(id: u8) -> Option<Self> {
        if id < 16 { Some(Self(id)) } else { None }
    }

    /// The driver in a word's four bits.
    pub(super) const fn from_field(id: u8) -> Self {
        Self(id & 0xf)
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// A decoded word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memdesc {
    /// Misc: a block with nothing but an order.
    Block(Block),
    /// Misc/Offline.
    Offline(Offline),
    /// Misc/PCP.
    Pcp(Pcp),
    /// Misc/Tail.
    Tail(Tail),
    /// Buddy.
    Buddy(Buddy),
    /// A tag with a pointer.
    Descriptor(Descriptor),
    /// Transit.
    Transit(Transit),
}

/// The head of a block whose word holds only its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// What the block is.
    pub kind: BlockKind,
    /// Its order.
    pub order: Order,
    /// Whether a process may map it.
    pub user_mappable: bool,
}

impl Block {
    /// A block that processes may not map.
    pub const fn new(kind: BlockKind, order: Order) -> Self {
        Self { kind, order, user_mappable: false }
    }
}

/// The Misc subtypes of [`Block`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockKind {
    /// Not yet initialised.
    Empty,
    /// The zero page.
    Zero,
    /// A driver's pages.
    Driver,
    /// vmalloc area.
    Vmalloc,
    /// Guard page.
    Guard,
    /// Large kmalloc.
    LargeKmalloc,
    /// A run that is no power of two.
    Exact,
    /// RAM disk.
    Brd,
    /// Never managed.
    Reserved,
    /// Free, being reported to the host.
    Report,
    /// Allocated, owned by a handle, without a type yet.
    Frozen,
}

impl BlockKind {
    const ALL: [Self; 11] = [
        Self::Empty,
        Self::Zero,
        Self::Driver,
        Self::Vmalloc,
        Self::Guard,
        Self::LargeKmalloc,
        Self::Exact,
        Self::Brd,
        Self::Reserved,
        Self::Report,
        Self::Frozen,
    ];

    pub(super) const fn from_kind(kind: Kind) -> Option<Self> {
        let mut i = 0;
        while i < Self::ALL.len() {
            if Self::ALL[i].kind() as u8 == kind as u8 {
                return Some(Self::ALL[i]);
            }
            i += 1;
        }
        None
    }

    /// The same as a [`Kind`].
    pub const fn kind(self) -> Kind {
        match self {
            Self::Empty => Kind::Empty,
            Self::Zero => Kind::Zero,
            Self::Driver => Kind::Driver,
            Self::Vmalloc => Kind::Vmalloc,
            Self::Guard => Kind::Guard,
            Self::LargeKmalloc => Kind::LargeKmalloc,
            Self::Exact => Kind::Exact,
            Self::Brd => Kind::Brd,
            Self::Reserved => Kind::Reserved,
            Self::Report => Kind::Report,
            Self::Frozen => Kind::Frozen,
        }
    }
}

/// The head of a block that a driver has taken offline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offline {
    /// The block's order.
    pub order: Order,
    /// The owner.
    pub driver: DriverId,
    /// Who may take the block.
    pub hold: Hold,
    /// Whether offlining of a memory section may pass over it.
    pub skippable: bool,
}

/// The head of a free block on a per-CPU list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pcp {
    /// The block's order.
    pub order: Order,
    /// The list's migratetype.
    pub migratetype: MigrateType,
    /// The list's CPU, 0–3.
    pub cpu: u8,
    /// Whether the host holds no memory for the block: it reads as zero.
    pub reported: bool,
    /// The next block on the list.
    pub next: Link,
}

/// A frame that is not the first of its block.
///
/// `distance` leads to the frame with the lowest set bit of the number
/// cleared: the head, or a tail from which the same step leads on to it. The
/// value depends on the frame number alone ([`Tail::of`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Order of the largest block that could start at this frame.
    pub order: Order,
    /// Frames down to the next candidate for the block's head.
    pub distance: u32,
}

impl Tail {
    /// The tail word of frame `pfn`, whatever block it is in.
    pub const fn of(pfn: Pfn) -> Self {
        let order = Order::alignment_of(pfn.number());
        Self { order, distance: 1 << order.get() }
    }
}

/// The head of a free block on a free list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buddy {
    /// The block's order.
    pub order: Order,
    /// The list's migratetype.
    pub migratetype: MigrateType,
    /// Whether the host holds no memory for the block: it reads as zero.
    pub reported: bool,
    /// The previous block on the list.
    pub prev: Link,
    /// The next block on the list.
    pub next: Link,
}

/// A frame with a descriptor of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// The descriptor's type.
    pub kind: DescriptorKind,
    /// Its address: 16-byte aligned, canonical, never 0 unless the kind allows it.
    address: u64,
    /// Who may take the frame; [`Hold::Parked`] does not occur.
    pub hold: Hold,
}

/// The tags with a pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DescriptorKind {
    /// Page-cache folio.
    File,
    /// Anonymous folio.
    Anon,
    /// KSM page; the pointer is optional.
    Ksm,
    /// Slab.
    Slab,
    /// Movable non-folio object.
    Movable,
    /// Page table.
    PtDesc,
    /// Memory error.
    HwPoison,
    /// Compressed pages.
    ZpDesc,
    /// Device folio.
    DevFolio,
}

impl DescriptorKind {
    /// Every tag with a pointer.
    pub const ALL: [Self; 9] = [
        Self::File,
        Self::Anon,
        Self::Ksm,
        Self::Slab,
        Self::Movable,
        Self::PtDesc,
        Self::HwPoison,
        Self::ZpDesc,
        Self::DevFolio,
    ];

    pub(super) const fn from_kind(kind: Kind) -> Option<Self> {
        let mut i = 0;
        while i < Self::ALL.len() {
            if Self::ALL[i].kind() as u8 == kind as u8 {
                return Some(Self::ALL[i]);
            }
            i += 1;
        }
        None
    }

    /// The same as a [`Kind`].
    pub const fn kind(self) -> Kind {
        match self {
            Self::File => Kind::File,
            Self::Anon => Kind::Anon,
            Self::Ksm => Kind::Ksm,
            Self::Slab => Kind::Slab,
            Self::Movable => Kind::Movable,
            Self::PtDesc => Kind::PtDesc,
            Self::HwPoison => Kind::HwPoison,
            Self::ZpDesc => Kind::ZpDesc,
            Self::DevFolio => Kind::DevFolio,
        }
    }

    /// Bytes of the descriptor.
    pub const fn descriptor_bytes(self) -> usize {
        match self {
            Self::File | Self::Anon | Self::DevFolio => 64,
            Self::Ksm | Self::Slab | Self::PtDesc => 32,
            Self::Movable | Self::HwPoison | Self::ZpDesc => 16,
        }
    }

    /// Whether a lockless reader dereferences the pointer after reading the
    /// tag, so that the descriptor's memory keeps its type until a grace
    /// period has passed.
    pub const fn is_type_safe(self) -> bool {
        match self {
            Self::File
            | Self::Anon
            | Self::Ksm
            | Self::Movable
            | Self::PtDesc
            | Self::ZpDesc
            | Self::DevFolio => true,
            Self::Slab | Self::HwPoison => false,
        }
    }
}

impl Descriptor {
    /// A held frame whose descriptor is at `address`; `None` if the address is
    /// unaligned, not canonical, or 0 for another kind than KSM.
    pub const fn new(kind: DescriptorKind, address: u64) -> Option<Self> {
        let optional = matches!(kind, DescriptorKind::Ksm);
        if canonical(pointer::ADDRESS.mask() & address) != address || (address == 0 && !optional) {
            return None;
        }
        Some(Self { kind, address, hold: Hold::Held })
    }

    /// The same descriptor in another hold.
    pub(crate) const fn with_hold(self, hold: Hold) -> Self {
        Self { hold, ..self }
    }

    /// The descriptor's address.
    pub const fn address(self) -> u64 {
        self.address
    }
}

/// A migration destination that nobody can find yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transit {
    /// The block's order.
    pub order: Order,
}

impl Memdesc {
    /// The order of the block that starts here; `None` for a tail, and for a
    /// descriptor, which holds its order itself.
    pub const fn order(self) -> Option<Order> {
        match self {
            Self::Block(block) => Some(block.order),
            Self::Offline(offline) => Some(offline.order),
            Self::Pcp(pcp) => Some(pcp.order),
            Self::Buddy(buddy) => Some(buddy.order),
            Self::Transit(transit) => Some(transit.order),
            Self::Tail(_) | Self::Descriptor(_) => None,
        }
    }
}
