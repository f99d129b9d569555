//! The bit layout of a word. Every field is tabulated here and nowhere else.

use core::fmt;

use super::kind::{Hold, Kind, State, Tag};

/// A frame's memory descriptor: 8 bytes, 0.2 % of the frame.
///
/// | tag | bits |
/// |---|---|
/// | Misc | 4–10 subtype, 11 user-mappable, 12–17 order, 18 movable, 19 isolated, 20 skippable, 21–24 driver, 25 reported, 26 parked |
/// | Misc/PCP | and 27–29 migratetype, 30–31 CPU, 38–63 next |
/// | Misc/Tail | and 32–63 distance |
/// | Buddy | 4–7 order, 8–10 migratetype, 11 reported, 12–37 previous, 38–63 next |
/// | descriptors | 4–47 pointer bits 4–47, 62 movable, 63 isolated; 63 without 62: doomed |
/// | Transit | 12–17 order |
///
/// Links are frame numbers relative to the zone ([`Link`]). All other bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Word(u64);

const _: () = assert!(size_of::<Word>() == 8, "8 bytes per page");

/// A contiguous group of bits.
#[derive(Clone, Copy)]
pub(super) struct Field {
    pub(super) shift: u32,
    pub(super) width: u32,
}

impl Field {
    const fn new(first: u32, last: u32) -> Self {
        Self { shift: first, width: last - first + 1 }
    }

    /// The field's bits in place.
    #[inline]
    pub(super) const fn mask(self) -> u64 {
        (u64::MAX >> (64 - self.width)) << self.shift
    }

    /// The field's value in `word`.
    #[inline]
    pub(super) const fn get(self, word: u64) -> u64 {
        (word & self.mask()) >> self.shift
    }

    /// Whether any bit of the field is set in `word`.
    #[inline]
    pub(super) const fn is_set(self, word: u64) -> bool {
        word & self.mask() != 0
    }

    /// `value` in place.
    ///
    /// # Panics
    /// In debug builds if `value` does not fit: our bug.
    #[inline]
    pub(super) const fn put(self, value: u64) -> u64 {
        debug_assert!(value <= self.mask() >> self.shift, "field overflow");
        (value << self.shift) & self.mask()
    }
}

pub(super) const TAG: Field = Field::new(0, 3);

pub(super) mod misc {
    //! Fields of [`Tag::Misc`](super::Tag::Misc) and Transit.
    use super::Field;

    pub(in super::super) const SUBTYPE: Field = Field::new(4, 10);
    pub(in super::super) const USER_MAPPABLE: Field = Field::new(11, 11);
    pub(in super::super) const ORDER: Field = Field::new(12, 17);
    pub(in super::super) const MOVABLE: Field = Field::new(18, 18);
    pub(in super::super) const ISOLATED: Field = Field::new(19, 19);
    pub(in super::super) const SKIPPABLE: Field = Field::new(20, 20);
    pub(in super::super) const DRIVER: Field = Field::new(21, 24);
    pub(in super::super) const REPORTED: Field = Field::new(25, 25);
    pub(in super::super) const PARKED: Field = Field::new(26, 26);
    pub(in super::super) const PCP_MIGRATETYPE: Field = Field::new(27, 29);
    pub(in super::super) const PCP_CPU: Field = Field::new(30, 31);
    pub(in super::super) const PCP_NEXT: Field = Field::new(38, 63);
    pub(in super::super) const TAIL_DISTANCE: Field = Field::new(32, 63);
}

pub(super) mod buddy {
    //! Fields of [`Tag::Buddy`](super::Tag::Buddy).
    use super::Field;

    pub(in super::super) const ORDER: Field = Field::new(4, 7);
    pub(in super::super) const MIGRATETYPE: Field = Field::new(8, 10);
    pub(in super::super) const REPORTED: Field = Field::new(11, 11);
    pub(in super::super) const PREV: Field = Field::new(12, 37);
    pub(in super::super) const NEXT: Field = Field::new(38, 63);
}

pub(super) mod pointer {
    //! Fields of descriptor pointers.
    use super::Field;

    pub(in super::super) const ADDRESS: Field = Field::new(4, 47);
    pub(in super::super) const MOVABLE: Field = Field::new(62, 62);
    pub(in super::super) const ISOLATED: Field = Field::new(63, 63);
}

// The layout of a Buddy word leaves no bit over.
const _: () = assert!(
    TAG.mask()
        | buddy::ORDER.mask()
        | buddy::MIGRATETYPE.mask()
        | buddy::REPORTED.mask()
        | buddy::PREV.mask()
        | buddy::NEXT.mask()
        == u64::MAX
);
const _: () = assert!(
    TAG.width
        + buddy::ORDER.width
        + buddy::MIGRATETYPE.width
        + buddy::REPORTED.width
        + buddy::PREV.width
        + buddy::NEXT.width
        == 64
);

/// A word that no encoder produces: an unused tag or subtype, or a stray bit.
///
/// A reader treats its frame as busy and counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownWord(pub Word);

impl Word {
    /// The word of a frame that was never initialised.
    pub const EMPTY: Self = Self(0);

    /// The word with these bits, which may be malformed.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Bits 0–3.
    #[inline]
    pub const fn tag(self) -> Tag {
        Tag::ALL[(self.0 & 0xf) as usize]
    }

    /// The word's type, without looking at the fields of its body.
    ///
    /// # Errors
    /// The tag or subtype is unused.
    #[inline]
    pub const fn kind(self) -> Result<Kind, UnknownWord> {
        Ok(match self.tag() {
            Tag::Misc => {
                #[expect(clippy::cast_possible_truncation, reason = "seven bits")]
                let subtype = misc::SUBTYPE.get(self.0) as usize;
                if subtype >= Kind::SUBTYPES {
                    return Err(UnknownWord(self));
                }
                Kind::ALL[subtype]
            }
            Tag::Buddy => Kind::Buddy,
            Tag::File => Kind::File,
            Tag::Anon => Kind::Anon,
            Tag::Ksm => Kind::Ksm,
            Tag::Slab => Kind::Slab,
            Tag::Movable => Kind::Movable,
            Tag::PtDesc => Kind::PtDesc,
            Tag::HwPoison => Kind::HwPoison,
            Tag::ZpDesc => Kind::ZpDesc,
            Tag::DevFolio => Kind::DevFolio,
            Tag::Transit => Kind::Transit,
            Tag::Bump | Tag::PerCpu | Tag::AcctMem | Tag::Managed => return Err(UnknownWord(self)),
        })
    }

    /// The word's row in the transition table.
    ///
    /// # Errors
    /// The tag or subtype is unused, or the hold bits contradict each other.
    #[inline]
    pub const fn state(self) -> Result<State, UnknownWord> {
        let kind = match self.kind() {
            Ok(kind) => kind,
            Err(unknown) => return Err(unknown),
        };
        let (movable, isolated, parked) = if matches!(kind, Kind::Offline) {
            (
                misc::MOVABLE.is_set(self.0),
                misc::ISOLATED.is_set(self.0),
                misc::PARKED.is_set(self.0),
            )
        } else if kind.can_move() {
            (pointer::MOVABLE.is_set(self.0), pointer::ISOLATED.is_set(self.0), false)
        } else {
            (false, false, false)
        };
        let hold = match (movable, isolated, parked) {
            (false, false, false) => Hold::Held,
            (false, false, true) => Hold::Parked,
            (true, false, false) => Hold::Movable,
            (true, true, false) => Hold::Isolated,
            (false, true, false) if !matches!(kind, Kind::Offline) => Hold::Doomed,
            _ => return Err(UnknownWord(self)),
        };
        Ok(State { kind, hold })
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.decode() {
            Ok(memdesc) => write!(f, "word:{:016x} {memdesc:?}", self.0),
            Err(UnknownWord(_)) => write!(f, "word:{:016x} unknown", self.0),
        }
    }
}

impl fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unknown memory descriptor {:#018x}", self.0.0)
    }
}

impl core::error::Error for UnknownWord {}

/// A frame number relative to the zone, or none: what list links hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Link(u32);

/// Frames that a zone may span: 26-bit links, one value of which means "none".
pub const ZONE_MAX_PAGES: u64 = Link::NONE.0 as u64;

impl Link {
    /// No frame.
    pub const NONE: Self = Self((1 << 26) - 1);

    /// The link to the frame at `index` in its zone, or `None` past the zone's end.
    #[inline]
    pub const fn to(index: u64) -> Option<Self> {
        #[expect(clippy::cast_possible_truncation, reason = "below 2^26")]
        if index < ZONE_MAX_PAGES { Some(Self(index as u32)) } else { None }
    }

    /// The frame's index in its zone, or `None` if this is [`Self::NONE`].
    #[inline]
    pub const fn index(self) -> Option<u64> {
        if self.0 == Self::NONE.0 { None } else { Some(self.0 as u64) }
    }

    pub(super) const fn bits(self) -> u64 {
        self.0 as u64
    }

    #[expect(clippy::cast_possible_truncation, reason = "fields of 26 bits")]
    pub(super) const fn from_field(bits: u64) -> Self {
        Self(bits as u32)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index() {
            Some(index) => write!(f, "link:{index:x}"),
            None => f.write_str("link:none"),
        }
    }
}
