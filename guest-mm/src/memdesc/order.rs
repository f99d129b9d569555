//! Block orders.

use core::fmt;

use abi::PageCount;

/// log2 of the pages in a block, at most [`Order::MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Order(u8);

/// A block order above [`Order::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderTooLarge(pub u32);

impl Order {
    /// One page.
    pub const ZERO: Self = Self(0);
    /// A pageblock, the unit of migratetypes: 2 MiB.
    pub const PAGEBLOCK: Self = Self(9);
    /// The largest block of the buddy allocator: 4 MiB.
    pub const MAX: Self = Self(10);
    /// Number of orders.
    pub const COUNT: usize = 11;

    /// The order, or `None` above [`Self::MAX`].
    pub const fn new(order: u8) -> Option<Self> {
        if order <= Self::MAX.0 { Some(Self(order)) } else { None }
    }

    /// The order, or [`Self::MAX`] if that is smaller.
    pub const fn saturating(order: u8) -> Self {
        if order <= Self::MAX.0 { Self(order) } else { Self::MAX }
    }

    /// The largest order whose block starts at frame number `number`.
    #[expect(clippy::cast_possible_truncation, reason = "at most 10")]
    pub const fn alignment_of(number: u64) -> Self {
        let zeros = number.trailing_zeros();
        if zeros >= Self::MAX.0 as u32 { Self::MAX } else { Self(zeros as u8) }
    }

    /// The largest order of at most `pages` pages; order 0 for none.
    #[expect(clippy::cast_possible_truncation, reason = "at most 10")]
    pub const fn fitting(pages: u64) -> Self {
        match pages.checked_ilog2() {
            None => Self::ZERO,
            Some(log) if log >= Self::MAX.0 as u32 => Self::MAX,
            Some(log) => Self(log as u8),
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0 as u32
    }

    /// The number, for arrays of [`Self::COUNT`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Pages of a block: `2^order`.
    pub const fn pages(self) -> PageCount {
        PageCount::of_order(self.0 as u32)
    }

    /// The next larger order, or `None` at [`Self::MAX`].
    pub const fn up(self) -> Option<Self> {
        Self::new(self.0 + 1)
    }

    /// The order of a block's halves, or `None` for a single page.
    pub const fn down(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(order) => Some(Self(order)),
            None => None,
        }
    }

    /// `self`, `self + 1`, … up to [`Self::MAX`].
    pub fn and_above(self) -> impl DoubleEndedIterator<Item = Self> {
        (self.0..=Self::MAX.0).map(Self)
    }

    /// All orders, ascending.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        Self::ZERO.and_above()
    }
}

impl TryFrom<u32> for Order {
    type Error = OrderTooLarge;

    fn try_from(order: u32) -> Result<Self, OrderTooLarge> {
        u8::try_from(order).ok().and_then(Self::new).ok_or(OrderTooLarge(order))
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "order:{}", self.0)
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for OrderTooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Order {} is above {}", self.0, Order::MAX)
    }
}

impl core::error::Error for OrderTooLarge {}
