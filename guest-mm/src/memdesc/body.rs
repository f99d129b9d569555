//! What words say, as Rust types, and the conversion from and to bits.

use abi::Pfn;

use super::kind::{Hold, Kind, State, Tag};
use super::order::Order;
use super::word::{Link, TAG, UnknownWord, Word, buddy, misc, pointer};

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

    const fn from_kind(kind: Kind) -> Option<Self> {
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

    const fn from_kind(kind: Kind) -> Option<Self> {
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

    /// The descriptor's address.
    pub const fn address(self) -> u64 {
        self.address
    }
}

/// Repeats bit 47 in bits 48–63.
#[expect(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "sign extension is the point"
)]
const fn canonical(address: u64) -> u64 {
    (((address << 16) as i64) >> 16) as u64
}

/// A migration destination that nobody can find yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transit {
    /// The block's order.
    pub order: Order,
}

impl Memdesc {
    /// The word that says this.
    pub const fn encode(self) -> Word {
        match self {
            Self::Block(block) => block.encode(),
            Self::Offline(offline) => offline.encode(),
            Self::Pcp(pcp) => pcp.encode(),
            Self::Tail(tail) => tail.encode(),
            Self::Buddy(buddy) => buddy.encode(),
            Self::Descriptor(descriptor) => descriptor.encode(),
            Self::Transit(transit) => transit.encode(),
        }
    }

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

const fn misc_bits(kind: Kind, order: Order) -> u64 {
    misc::SUBTYPE.put(kind as u64) | misc::ORDER.put(order.get() as u64)
}

// One encoder per type, so that callers who know the type pay no match.

impl Block {
    /// The word that says this.
    #[inline]
    pub const fn encode(self) -> Word {
        let user_mappable = misc::USER_MAPPABLE.put(self.user_mappable as u64);
        Word::from_bits(misc_bits(self.kind.kind(), self.order) | user_mappable)
    }
}

impl Offline {
    /// The word that says this.
    #[inline]
    pub const fn encode(self) -> Word {
        let (movable, isolated, parked) = match self.hold {
            Hold::Held => (0, 0, 0),
            Hold::Parked => (0, 0, 1),
            Hold::Movable => (1, 0, 0),
            Hold::Isolated => (1, 1, 0),
        };
        Word::from_bits(
            misc_bits(Kind::Offline, self.order)
                | misc::MOVABLE.put(movable)
                | misc::ISOLATED.put(isolated)
                | misc::PARKED.put(parked)
                | misc::SKIPPABLE.put(self.skippable as u64)
                | misc::DRIVER.put(self.driver.0 as u64),
        )
    }
}

impl Pcp {
    /// The word that says this.
    #[inline]
    pub const fn encode(self) -> Word {
        Word::from_bits(
            misc_bits(Kind::Pcp, self.order)
                | misc::PCP_MIGRATETYPE.put(self.migratetype as u64)
                | misc::PCP_CPU.put(self.cpu as u64)
                | misc::REPORTED.put(self.reported as u64)
                | misc::PCP_NEXT.put(self.next.bits()),
        )
    }
}

impl Tail {
    /// The word that says this.
    #[inline]
    pub const fn encode(self) -> Word {
        let distance = misc::TAIL_DISTANCE.put(self.distance as u64);
        Word::from_bits(misc_bits(Kind::Tail, self.order) | distance)
    }
}

impl Buddy {
    /// The word that says this.
    #[inline]
    pub const fn encode(self) -> Word {
        Word::from_bits(
            TAG.put(Tag::Buddy as u64)
                | buddy::ORDER.put(self.order.get() as u64)
                | buddy::MIGRATETYPE.put(self.migratetype as u64)
                | buddy::REPORTED.put(self.reported as u64)
                | buddy::PREV.put(self.prev.bits())
                | buddy::NEXT.put(self.next.bits()),
        )
    }
}

impl Descriptor {
    /// The word that says this.
    #[inline]
    pub const fn encode(self) -> Word {
        let (movable, isolated) = match self.hold {
            Hold::Held | Hold::Parked => (0, 0),
            Hold::Movable => (1, 0),
            Hold::Isolated => (1, 1),
        };
        Word::from_bits(
            TAG.put(self.kind.kind().tag() as u64)
                | (self.address & pointer::ADDRESS.mask())
                | pointer::MOVABLE.put(movable)
                | pointer::ISOLATED.put(isolated),
        )
    }
}

impl Transit {
    /// The word that says this.
    #[inline]
    pub const fn encode(self) -> Word {
        Word::from_bits(TAG.put(Tag::Transit as u64) | misc::ORDER.put(self.order.get() as u64))
    }
}

impl Word {
    /// What the word says.
    ///
    /// # Errors
    /// Anything that [`Memdesc::encode`] never produces: an unused tag or
    /// subtype, a value out of its range, or a stray bit.
    pub const fn decode(self) -> Result<Memdesc, UnknownWord> {
        let Some(memdesc) = self.decode_loosely() else { return Err(UnknownWord(self)) };
        // Strict by construction: whatever decoding ignored shows up here.
        if memdesc.encode().bits() == self.bits() { Ok(memdesc) } else { Err(UnknownWord(self)) }
    }

    /// The free block that starts here, if the word is a well-formed Buddy word.
    #[inline]
    pub const fn as_buddy(self) -> Option<Buddy> {
        // The fields of a Buddy word leave no bit over: nothing stray to look for.
        if matches!(self.tag(), Tag::Buddy) { buddy_body(self.bits()) } else { None }
    }

    /// The block of a per-CPU list that starts here, if the word is well-formed.
    #[inline]
    pub const fn as_pcp(self) -> Option<Pcp> {
        const HEAD: u64 = TAG.mask() | misc::SUBTYPE.mask();
        if self.bits() & HEAD != misc::SUBTYPE.put(Kind::Pcp as u64) {
            return None;
        }
        match pcp_body(self.bits()) {
            Some(pcp) if pcp.encode().bits() == self.bits() => Some(pcp),
            _ => None,
        }
    }

    const fn decode_loosely(self) -> Option<Memdesc> {
        let bits = self.bits();
        let Ok(State { kind, hold }) = self.state() else { return None };
        if matches!(kind, Kind::Buddy) {
            return match buddy_body(bits) {
                Some(buddy) => Some(Memdesc::Buddy(buddy)),
                None => None,
            };
        }
        if let Some(kind) = DescriptorKind::from_kind(kind) {
            let address = canonical(bits & pointer::ADDRESS.mask());
            return match Descriptor::new(kind, address) {
                Some(found) => Some(Memdesc::Descriptor(Descriptor { hold, ..found })),
                None => None,
            };
        }
        misc_body(kind, hold, bits)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "fields of at most six bits")]
const fn order_in(field: u64) -> Option<Order> {
    Order::new(field as u8)
}

#[inline]
const fn buddy_body(bits: u64) -> Option<Buddy> {
    let Some(order) = order_in(buddy::ORDER.get(bits)) else { return None };
    #[expect(clippy::cast_possible_truncation, reason = "three bits")]
    let Some(migratetype) = MigrateType::from_index(buddy::MIGRATETYPE.get(bits) as usize) else {
        return None;
    };
    Some(Buddy {
        order,
        migratetype,
        reported: buddy::REPORTED.is_set(bits),
        prev: Link::from_field(buddy::PREV.get(bits)),
        next: Link::from_field(buddy::NEXT.get(bits)),
    })
}

const fn misc_body(kind: Kind, hold: Hold, bits: u64) -> Option<Memdesc> {
    let Some(order) = order_in(misc::ORDER.get(bits)) else { return None };
    if let Some(kind) = BlockKind::from_kind(kind) {
        let user_mappable = misc::USER_MAPPABLE.is_set(bits);
        return Some(Memdesc::Block(Block { kind, order, user_mappable }));
    }
    if matches!(kind, Kind::Pcp) {
        return match pcp_body(bits) {
            Some(pcp) => Some(Memdesc::Pcp(pcp)),
            None => None,
        };
    }
    if matches!(kind, Kind::Transit) {
        return Some(Memdesc::Transit(Transit { order }));
    }
    if matches!(kind, Kind::Tail) {
        #[expect(clippy::cast_possible_truncation, reason = "thirty-two bits")]
        let distance = misc::TAIL_DISTANCE.get(bits) as u32;
        return Some(Memdesc::Tail(Tail { order, distance }));
    }
    #[expect(clippy::cast_possible_truncation, reason = "four bits")]
    let driver = DriverId(misc::DRIVER.get(bits) as u8);
    let skippable = misc::SKIPPABLE.is_set(bits);
    Some(Memdesc::Offline(Offline { order, driver, hold, skippable }))
}

#[inline]
const fn pcp_body(bits: u64) -> Option<Pcp> {
    let Some(order) = order_in(misc::ORDER.get(bits)) else { return None };
    #[expect(clippy::cast_possible_truncation, reason = "three bits")]
    let Some(migratetype) = MigrateType::from_index(misc::PCP_MIGRATETYPE.get(bits) as usize)
    else {
        return None;
    };
    #[expect(clippy::cast_possible_truncation, reason = "two bits")]
    let cpu = misc::PCP_CPU.get(bits) as u8;
    Some(Pcp {
        order,
        migratetype,
        cpu,
        reported: misc::REPORTED.is_set(bits),
        next: Link::from_field(misc::PCP_NEXT.get(bits)),
    })
}
