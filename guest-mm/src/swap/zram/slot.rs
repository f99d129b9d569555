//! The word of a slot: where its page is.

use crate::zsmalloc::ZsHandle;

const KIND_BITS: u32 = 2;
const LEN_SHIFT: u32 = 48;
const LEN_BITS: u32 = 13;
const VALUE_SHIFT: u32 = 32;
// A handle's largest value needs one bit more than it has.
const _: () = assert!(KIND_BITS + ZsHandle::BITS < LEN_SHIFT && LEN_SHIFT + LEN_BITS <= 64);

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// Nothing.
    Empty,
    /// A page of one value, over and over.
    Same(u32),
    /// An object of `len` bytes: compressed, or a page as it is.
    Object { handle: ZsHandle, len: usize },
}

impl Stored {
    /// Encodes it; 0 is [`Self::Empty`].
    pub(super) fn encode(self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Same(value) => 1 | u64::from(value) << VALUE_SHIFT,
            Self::Object { handle, len } => {
                2 | handle.bits() << KIND_BITS | (len as u64) << LEN_SHIFT
            }
        }
    }

    /// Decodes a word; one that nobody encoded is [`Self::Empty`].
    pub(super) fn decode(word: u64) -> Self {
        match word & 3 {
            1 => Self::Same((word >> VALUE_SHIFT) as u32),
            2 => {
                let bits = word >> KIND_BITS & ((1 << (LEN_SHIFT - KIND_BITS)) - 1);
                let len = (word >> LEN_SHIFT) as usize;
                ZsHandle::from_bits(bits).map_or(Self::Empty, |handle| Self::Object { handle, len })
            }
            _ => Self::Empty,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_what_was_stored() {
        let handles = [1, 77, 1 << ZsHandle::BITS].map(|bits| ZsHandle::from_bits(bits).unwrap());
        let objects = handles.map(|handle| Stored::Object { handle, len: 4096 });
        let others = [Stored::Empty, Stored::Same(0), Stored::Same(u32::MAX)];
        for stored in objects.into_iter().chain(others) {
            assert_eq!(Stored::decode(stored.encode()), stored);
        }
        assert_eq!(Stored::Empty.encode(), 0);
    }
}
