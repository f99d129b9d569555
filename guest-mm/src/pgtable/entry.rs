//! Entries of page tables, typed by what they may mean.
//!
//! | bit | present leaf | table |
//! |---|---|---|
//! | 0 | P | P |
//! | 1 | W | W, always set |
//! | 2 | U: readable | U, always set |
//! | 5 | A: young | A, set from the start so that a walk never changes the entry |
//! | 6 | D: dirty | – |
//! | 7 | PS: set in a 2 MiB leaf, clear in a 4 KiB one | clear |
//! | 9 | special: no folio behind it (the zero page) | – |
//! | 10 | userfaultfd write-protected | – |
//! | 11 | soft-dirty | – |
//! | 12–51 | frame | frame |
//! | 52 | anon-exclusive | – |
//! | 63 | NX | – |
//!
//! All other bits are zero; an entry with one of them set is corrupt. Every
//! mapping is for ring 3, where the kernel runs too, so a page that nobody may
//! touch (`PROT_NONE`) stays present with U clear: no second encoding, and the
//! MMU refuses it by itself.
//!
//! Bits by Intel SDM volume 3, tables 5-17 to 5-20.

use core::fmt;
use core::marker::PhantomData;

use abi::{PAGE_SHIFT, PageCount, Pfn};
use bitflags::bitflags;

use super::softleaf::{Leaf, PmdLeaf, UnknownLeaf};

const P: u64 = 1 << 0;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const SPECIAL: u64 = 1 << 9;
const UFFD_WP: u64 = 1 << 10;
const SOFT_DIRTY: u64 = 1 << 11;
const ANON_EXCLUSIVE: u64 = 1 << 52;
const NX: u64 = 1 << 63;

const ADDRESS: u64 = ((1 << 52) - 1) & !((1 << PAGE_SHIFT) - 1);
/// One past the largest frame number that an entry can hold.
const PFN_LIMIT: u64 = 1 << (52 - PAGE_SHIFT);
/// What a table entry says besides its frame.
const TABLE: u64 = P | W | U | A;
/// Bits that a present leaf may have set, besides its frame and PS.
const LEAF_BITS: u64 = P | W | U | A | D | SPECIAL | UFFD_WP | SOFT_DIRTY | ANON_EXCLUSIVE | NX;

bitflags! {
    /// What the MMU shall let a program do with a page.
    ///
    /// x86 knows no page that can be written or executed but not read: with
    /// WRITE or EXEC alone the page is readable too.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct PageProt: u8 {
        /// Loads.
        const READ = 1;
        /// Stores.
        const WRITE = 2;
        /// Instruction fetches.
        const EXEC = 4;
    }
}

impl PageProt {
    const fn bits_of_entry(self) -> u64 {
        let readable = if self.is_empty() { 0 } else { U };
        let writable = if self.contains(Self::WRITE) { W } else { 0 };
        let no_exec = if self.contains(Self::EXEC) { 0 } else { NX };
        readable | writable | no_exec
    }
}

/// What stands in one slot of a page table: 64 bits of whatever meaning.
///
/// The level decides what they mean: [`Self::pte`], [`Self::pmd`],
/// [`Self::upper`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Entry(u64);

impl Entry {
    /// Nothing: no mapping, no table.
    pub const NONE: Self = Self(0);

    /// The entry with these bits, which may be malformed.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether nothing stands here.
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether the MMU follows the entry.
    pub const fn is_present(self) -> bool {
        self.0 & P != 0
    }

    /// The entry that leads to the table in frame `pfn`; `None` if the frame
    /// number does not fit an entry.
    pub const fn table(pfn: Pfn) -> Option<Self> {
        if pfn.number() < PFN_LIMIT { Some(Self(pfn.gpa() | TABLE)) } else { None }
    }

    /// The table that the entry leads to, at a level where it may.
    const fn as_table(self) -> Option<Pfn> {
        // A is the only bit that the MMU sets in such an entry; it is set already.
        if self.0 & !ADDRESS == TABLE { Some(Pfn::containing(self.0 & ADDRESS)) } else { None }
    }

    /// What the entry means in a PTE table (4 KiB leaves only).
    pub const fn pte(self) -> PteState {
        if self.is_none() {
            return PteState::None;
        }
        if self.is_present() {
            return match Pte::from_entry(self) {
                Some(pte) => PteState::Present(pte),
                None => PteState::Unknown(UnknownLeaf(self)),
            };
        }
        match Leaf::decode(self) {
            Ok(leaf) => PteState::Soft(leaf),
            Err(unknown) => PteState::Unknown(unknown),
        }
    }

    /// What the entry means in a page directory (PTE tables and 2 MiB leaves).
    pub const fn pmd(self) -> PmdState {
        if self.is_none() {
            return PmdState::None;
        }
        if self.is_present() {
            return match (self.as_table(), Pmd::from_entry(self)) {
                (Some(table), _) => PmdState::Table(table),
                (None, Some(pmd)) => PmdState::Present(pmd),
                (None, None) => PmdState::Unknown(UnknownLeaf(self)),
            };
        }
        match PmdLeaf::decode(self) {
            Ok(leaf) => PmdState::Soft(leaf),
            Err(unknown) => PmdState::Unknown(unknown),
        }
    }

    /// What the entry means in a PML4 or a page-directory-pointer table, which
    /// hold tables only.
    pub const fn upper(self) -> UpperState {
        if self.is_none() {
            return UpperState::None;
        }
        match self.as_table() {
            Some(table) => UpperState::Table(table),
            None => UpperState::Unknown(UnknownLeaf(self)),
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry:{:016x}", self.0)
    }
}

/// What an entry of a PTE table means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PteState {
    /// Nothing.
    None,
    /// A mapped page.
    Present(Pte),
    /// A page that is elsewhere, or a note about a page.
    Soft(Leaf),
    /// Malformed. A fault here is a bus error; nobody follows it.
    Unknown(UnknownLeaf),
}

/// What an entry of a page directory means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PmdState {
    /// Nothing.
    None,
    /// The PTE table in this frame.
    Table(Pfn),
    /// 512 mapped pages.
    Present(Pmd),
    /// 512 pages that are elsewhere.
    Soft(PmdLeaf),
    /// Malformed.
    Unknown(UnknownLeaf),
}

/// What an entry of the two upper levels means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpperState {
    /// Nothing.
    None,
    /// The table in this frame.
    Table(Pfn),
    /// Malformed.
    Unknown(UnknownLeaf),
}

/// The size of a mapping, as a type.
pub trait LeafSize: Copy + Eq + fmt::Debug {
    /// log2 of the pages.
    const ORDER: u32;
    /// What tells the MMU the size.
    #[doc(hidden)]
    const SIZE_BIT: u64;
}

/// One page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Size4K;

/// 512 pages: one entry of a page directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Size2M;

impl LeafSize for Size4K {
    const ORDER: u32 = 0;
    const SIZE_BIT: u64 = 0;
}

impl LeafSize for Size2M {
    const ORDER: u32 = 9;
    const SIZE_BIT: u64 = PS;
}

/// A present mapping of one size: [`Pte`] or [`Pmd`].
///
/// Holding one proves that the bits are well-formed, not that the frame exists:
/// tables refuse to hold mappings of frames beyond the map.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct HwLeaf<S>(u64, PhantomData<S>);

/// A mapped page.
pub type Pte = HwLeaf<Size4K>;
/// A mapped block of 512 pages.
pub type Pmd = HwLeaf<Size2M>;

impl<S: LeafSize> HwLeaf<S> {
    const FIXED: u64 = P | S::SIZE_BIT;

    /// A mapping of the block at `pfn`: old, clean, not exclusive, not special.
    ///
    /// `None` if `pfn` does not fit an entry or is not aligned to the size.
    pub const fn new(pfn: Pfn, prot: PageProt) -> Option<Self> {
        if pfn.number() >= PFN_LIMIT || !pfn.is_aligned(S::ORDER) {
            return None;
        }
        Some(Self::of(pfn.gpa() | Self::FIXED | prot.bits_of_entry()))
    }

    const fn of(bits: u64) -> Self {
        Self(bits, PhantomData)
    }

    const fn from_entry(entry: Entry) -> Option<Self> {
        let bits = entry.bits();
        let pfn = Pfn::containing(bits & ADDRESS);
        let known = bits & !(ADDRESS | LEAF_BITS | S::SIZE_BIT) == 0;
        // The MMU would take W without U for a supervisor's page.
        let sane = bits & U != 0 || bits & W == 0;
        if known && sane && bits & Self::FIXED == Self::FIXED && pfn.is_aligned(S::ORDER) {
            Some(Self::of(bits))
        } else {
            None
        }
    }

    /// The entry that says this.
    pub const fn entry(self) -> Entry {
        Entry(self.0)
    }

    /// The first frame.
    pub const fn pfn(self) -> Pfn {
        Pfn::containing(self.0 & ADDRESS)
    }

    /// What the MMU lets programs do.
    pub fn prot(self) -> PageProt {
        let mut prot = PageProt::empty();
        prot.set(PageProt::READ, self.is_readable());
        prot.set(PageProt::WRITE, self.is_writable());
        prot.set(PageProt::EXEC, self.is_readable() && self.0 & NX == 0);
        prot
    }

    /// Whether loads pass: `false` for `PROT_NONE`.
    pub const fn is_readable(self) -> bool {
        self.0 & U != 0
    }

    /// Whether stores pass.
    pub const fn is_writable(self) -> bool {
        self.0 & W != 0
    }

    /// Whether the page was used since [`Self::mk_old`].
    pub const fn is_young(self) -> bool {
        self.0 & A != 0
    }

    /// Whether the page was written through this mapping since [`Self::mk_clean`].
    pub const fn is_dirty(self) -> bool {
        self.0 & D != 0
    }

    /// Whether the page was written, or the mapping made or moved, since
    /// soft-dirty bits were last cleared.
    pub const fn is_soft_dirty(self) -> bool {
        self.0 & SOFT_DIRTY != 0
    }

    /// Whether userfaultfd waits for a write.
    pub const fn is_uffd_wp(self) -> bool {
        self.0 & UFFD_WP != 0
    }

    /// Whether there is no folio to count behind it: the zero page.
    pub const fn is_special(self) -> bool {
        self.0 & SPECIAL != 0
    }

    /// Whether the anonymous page belongs to this mapping alone, so that a
    /// write fault may reuse it and a pin may be taken.
    pub const fn is_anon_exclusive(self) -> bool {
        self.0 & ANON_EXCLUSIVE != 0
    }

    const fn with(self, bits: u64) -> Self {
        Self::of(self.0 | bits)
    }

    const fn without(self, bits: u64) -> Self {
        Self::of(self.0 & !bits)
    }

    /// Used.
    pub const fn mk_young(self) -> Self {
        self.with(A)
    }

    /// Not used so far. The MMU may go on without setting the bit until its
    /// translation is flushed.
    pub const fn mk_old(self) -> Self {
        self.without(A)
    }

    /// Written, for both kinds of book-keeping.
    pub const fn mk_dirty(self) -> Self {
        self.with(D | SOFT_DIRTY)
    }

    /// Written back. Soft-dirty stays: it belongs to another reader.
    pub const fn mk_clean(self) -> Self {
        self.without(D)
    }

    /// Stores pass, and therefore loads.
    pub const fn mk_write(self) -> Self {
        self.with(W | U)
    }

    /// Stores fault. Keeps A, D and every software bit.
    pub const fn wrprotect(self) -> Self {
        self.without(W)
    }

    /// Written or moved, in the eyes of who watches soft-dirty bits.
    pub const fn mk_soft_dirty(self) -> Self {
        self.with(SOFT_DIRTY)
    }

    /// Starts a new round of soft-dirty tracking: write-protected too, because
    /// the MMU does not know this bit and the next write has to fault.
    pub const fn clear_soft_dirty(self) -> Self {
        self.without(SOFT_DIRTY | W)
    }

    /// Belongs to this mapping alone.
    pub const fn mk_anon_exclusive(self) -> Self {
        self.with(ANON_EXCLUSIVE)
    }

    /// May be shared.
    pub const fn clear_anon_exclusive(self) -> Self {
        self.without(ANON_EXCLUSIVE)
    }

    /// userfaultfd waits for a write, so stores fault.
    pub const fn mk_uffd_wp(self) -> Self {
        self.without(W).with(UFFD_WP)
    }

    /// userfaultfd waits no longer. Stores go on faulting until somebody says
    /// [`Self::mk_write`].
    pub const fn clear_uffd_wp(self) -> Self {
        self.without(UFFD_WP)
    }

    /// No folio behind it.
    pub const fn mk_special(self) -> Self {
        self.with(SPECIAL)
    }

    /// The same page under other permissions; A, D and software bits stay.
    pub const fn with_prot(self, prot: PageProt) -> Self {
        self.without(W | U | NX).with(prot.bits_of_entry())
    }

    /// The same page state over another block, as migration and copying need:
    /// everything but the frame. `None` as for [`Self::new`].
    pub const fn with_pfn(self, pfn: Pfn) -> Option<Self> {
        if pfn.number() >= PFN_LIMIT || !pfn.is_aligned(S::ORDER) {
            return None;
        }
        Some(self.without(ADDRESS).with(pfn.gpa()))
    }
}

impl Pmd {
    /// The mapping of page `index` of the block, with every bit of this one.
    /// `None` from 512 on.
    pub const fn split(self, index: u64) -> Option<Pte> {
        if index >> Size2M::ORDER != 0 {
            return None;
        }
        match self.pfn().checked_add(PageCount::new(index)) {
            Some(pfn) => Some(Pte::of(self.0 & !(ADDRESS | PS) | pfn.gpa())),
            None => None,
        }
    }
}

impl Pte {
    /// The 2 MiB mapping with the bits of this one, for a page that starts an
    /// aligned block.
    pub const fn collapse(self) -> Option<Pmd> {
        if self.pfn().is_aligned(Size2M::ORDER) { Some(Pmd::of(self.0 | PS)) } else { None }
    }
}

impl<S: LeafSize> From<HwLeaf<S>> for Entry {
    fn from(leaf: HwLeaf<S>) -> Self {
        leaf.entry()
    }
}

impl<S: LeafSize> fmt::Debug for HwLeaf<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}+{} ", self.pfn(), 1u64 << S::ORDER)?;
        let bits = [
            ('r', U),
            ('w', W),
            ('a', A),
            ('d', D),
            ('s', SOFT_DIRTY),
            ('x', ANON_EXCLUSIVE),
            ('z', SPECIAL),
            ('u', UFFD_WP),
        ];
        for (letter, bit) in bits {
            write!(f, "{}", if self.0 & bit != 0 { letter } else { '-' })?;
        }
        f.write_str(if self.0 & NX != 0 { "-" } else { "e" })
    }
}

#[cfg(test)]
mod tests;
