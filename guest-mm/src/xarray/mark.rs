//! The three marks that a user may set on entries.

/// Marks per entry.
pub(super) const MARKS: usize = 3;

/// A mark: a bit beside an entry, by which searches can skip whole subtrees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mark {
    /// The first.
    M0,
    /// The second.
    M1,
    /// The third.
    M2,
}

impl Mark {
    /// All of them.
    pub const ALL: [Self; MARKS] = [Self::M0, Self::M1, Self::M2];

    pub(super) const fn index(self) -> usize {
        match self {
            Self::M0 => 0,
            Self::M1 => 1,
            Self::M2 => 2,
        }
    }
}
