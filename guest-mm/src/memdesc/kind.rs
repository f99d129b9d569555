//! The types that a word can have, as dense numbers.

/// Bits 0–3 of a word.
///
/// 0–13 follow Linux's memdesc plan (kernelnewbies, MatthewWilcox/Memdescs);
/// 14 and 15 are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Tag {
    /// Inline data; bits 4–10 hold a subtype.
    Misc = 0,
    /// A free block on a free list: links inline.
    Buddy = 1,
    /// A page-cache folio: 64-byte descriptor.
    File = 2,
    /// An anonymous folio: 64-byte descriptor.
    Anon = 3,
    /// A KSM page: 32-byte descriptor.
    Ksm = 4,
    /// A slab: 32-byte descriptor.
    Slab = 5,
    /// Reserved by the plan, unused here.
    Bump = 6,
    /// A movable non-folio object: 16-byte descriptor.
    Movable = 7,
    /// A page table: 32-byte descriptor.
    PtDesc = 8,
    /// A frame with a hardware memory error: 16-byte descriptor.
    HwPoison = 9,
    /// Reserved by the plan, unused here.
    PerCpu = 10,
    /// Reserved by the plan, unused here.
    AcctMem = 11,
    /// A page of a compressing allocator: 16-byte descriptor.
    ZpDesc = 12,
    /// Reserved by the plan, unused here.
    Managed = 13,
    /// A folio of CPU-addressable device memory: 64-byte descriptor.
    DevFolio = 14,
    /// A migration destination that nobody can find yet: order inline.
    Transit = 15,
}

impl Tag {
    /// Every tag, by number.
    pub const ALL: [Self; 16] = [
        Self::Misc,
        Self::Buddy,
        Self::File,
        Self::Anon,
        Self::Ksm,
        Self::Slab,
        Self::Bump,
        Self::Movable,
        Self::PtDesc,
        Self::HwPoison,
        Self::PerCpu,
        Self::AcctMem,
        Self::ZpDesc,
        Self::Managed,
        Self::DevFolio,
        Self::Transit,
    ];
}

/// Every type of word: the used tags, and the subtypes of [`Tag::Misc`].
///
/// The discriminants are dense and index the transition table and the census.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Subtype 0: not yet initialised; no frame keeps it after start.
    Empty,
    /// Subtype 1: the zero page.
    Zero,
    /// Subtype 2: pages of a driver (rings, buffers).
    Driver,
    /// Subtype 3: vmalloc area.
    Vmalloc,
    /// Subtype 4: guard page.
    Guard,
    /// Subtype 5: logically offline, owned by a balloon or hot-plug driver.
    Offline,
    /// Subtype 6: large kmalloc.
    LargeKmalloc,
    /// Subtype 7: a run that is no power of two.
    Exact,
    /// Subtype 8: RAM disk.
    Brd,
    /// Subtype 9: never managed: kernel image, this module's tables.
    Reserved,
    /// Subtype 10: free, on a per-CPU list.
    Pcp,
    /// Subtype 11: free, off the lists while it is reported to the host.
    Report,
    /// Subtype 12: not the first frame of its block.
    Tail,
    /// Subtype 13: allocated, owned by a handle, without a type yet.
    Frozen,
    /// [`Tag::Buddy`].
    Buddy,
    /// [`Tag::File`].
    File,
    /// [`Tag::Anon`].
    Anon,
    /// [`Tag::Ksm`].
    Ksm,
    /// [`Tag::Slab`].
    Slab,
    /// [`Tag::Movable`].
    Movable,
    /// [`Tag::PtDesc`].
    PtDesc,
    /// [`Tag::HwPoison`].
    HwPoison,
    /// [`Tag::ZpDesc`].
    ZpDesc,
    /// [`Tag::DevFolio`].
    DevFolio,
    /// [`Tag::Transit`].
    Transit,
}

impl Kind {
    /// Number of kinds.
    pub const COUNT: usize = Self::ALL.len();
    /// Number of Misc subtypes, which come first.
    pub(super) const SUBTYPES: usize = 14;
    /// Every kind, by number.
    pub const ALL: [Self; 25] = [
        Self::Empty,
        Self::Zero,
        Self::Driver,
        Self::Vmalloc,
        Self::Guard,
        Self::Offline,
        Self::LargeKmalloc,
        Self::Exact,
        Self::Brd,
        Self::Reserved,
        Self::Pcp,
        Self::Report,
        Self::Tail,
        Self::Frozen,
        Self::Buddy,
        Self::File,
        Self::Anon,
        Self::Ksm,
        Self::Slab,
        Self::Movable,
        Self::PtDesc,
        Self::HwPoison,
        Self::ZpDesc,
        Self::DevFolio,
        Self::Transit,
    ];

    /// The dense number, below [`Self::COUNT`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The kind's lower-case name, for the census.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Zero => "zero",
            Self::Driver => "driver",
            Self::Vmalloc => "vmalloc",
            Self::Guard => "guard",
            Self::Offline => "offline",
            Self::LargeKmalloc => "large-kmalloc",
            Self::Exact => "exact",
            Self::Brd => "brd",
            Self::Reserved => "reserved",
            Self::Pcp => "pcp",
            Self::Report => "report",
            Self::Tail => "tail",
            Self::Frozen => "frozen",
            Self::Buddy => "buddy",
            Self::File => "file",
            Self::Anon => "anon",
            Self::Ksm => "ksm",
            Self::Slab => "slab",
            Self::Movable => "movable",
            Self::PtDesc => "page-table",
            Self::HwPoison => "hwpoison",
            Self::ZpDesc => "zpdesc",
            Self::DevFolio => "device-folio",
            Self::Transit => "transit",
        }
    }

    /// Whether the kind has the states [`Hold::Movable`] and [`Hold::Isolated`].
    pub const fn can_move(self) -> bool {
        matches!(self, Self::Offline | Self::File | Self::Anon | Self::Movable | Self::ZpDesc)
    }

    /// The tag of the kind's words.
    pub const fn tag(self) -> Tag {
        match self {
            Self::Buddy => Tag::Buddy,
            Self::File => Tag::File,
            Self::Anon => Tag::Anon,
            Self::Ksm => Tag::Ksm,
            Self::Slab => Tag::Slab,
            Self::Movable => Tag::Movable,
            Self::PtDesc => Tag::PtDesc,
            Self::HwPoison => Tag::HwPoison,
            Self::ZpDesc => Tag::ZpDesc,
            Self::DevFolio => Tag::DevFolio,
            Self::Transit => Tag::Transit,
            Self::Empty
            | Self::Zero
            | Self::Driver
            | Self::Vmalloc
            | Self::Guard
            | Self::Offline
            | Self::LargeKmalloc
            | Self::Exact
            | Self::Brd
            | Self::Reserved
            | Self::Pcp
            | Self::Report
            | Self::Tail
            | Self::Frozen => Tag::Misc,
        }
    }
}

/// Who may take a frame away from its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Hold {
    /// The owner holds it; migration may not.
    #[default]
    Held,
    /// Offline only: the owner knows it by frame number and has no handle out.
    Parked,
    /// The owner lets migration isolate it.
    Movable,
    /// Migration has isolated it; the owner may not free it.
    Isolated,
    /// Descriptors only: isolated, and its owner has given it up meanwhile.
    /// Migration frees it instead of putting it back.
    Doomed,
}

impl Hold {
    /// Number of holds.
    pub const COUNT: usize = Self::ALL.len();
    /// Every hold, by number.
    pub const ALL: [Self; 5] =
        [Self::Held, Self::Parked, Self::Movable, Self::Isolated, Self::Doomed];
}

/// A row of the transition table: the type of a word and its hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    /// The word's type.
    pub kind: Kind,
    /// Who may take the frame; `Held` for kinds that cannot move.
    pub hold: Hold,
}

impl State {
    /// Number of states.
    pub const COUNT: usize = Kind::COUNT * Hold::COUNT;

    /// The state of `kind` held by its owner.
    pub const fn held(kind: Kind) -> Self {
        Self { kind, hold: Hold::Held }
    }

    /// The state's number, below [`Self::COUNT`].
    pub const fn index(self) -> usize {
        self.kind as usize * Hold::COUNT + self.hold as usize
    }
}
