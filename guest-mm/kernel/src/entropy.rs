//! Whether bytes from an entropy source can be random.
//!
//! No test proves randomness. These find a source that cannot be one: stuck at
//! a value, repeating itself, leaning to one side. A good source fails one of
//! them by chance once in 10⁸ samples or less.

use core::fmt;

/// What is wrong with a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Every byte is the same.
    Stuck {
        /// The byte.
        byte: u8,
    },
    /// Eight bytes came again at once.
    Repeated {
        /// Index of the second copy's first byte.
        at: u64,
    },
    /// Ones and zeros are too unequal in number.
    Biased {
        /// Bits that are one.
        ones: u64,
        /// Bits.
        bits: u64,
    },
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stuck { byte } => write!(f, "every byte is {byte:#04x}"),
            Self::Repeated { at } => write!(f, "the eight bytes at {at} repeat those before"),
            Self::Biased { ones, bits } => write!(f, "{ones} of {bits} bits are one"),
        }
    }
}

impl core::error::Error for Flaw {}

/// What is known of the bytes so far.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    bytes: u64,
    ones: u64,
    /// The first byte, and whether another was different.
    first: Option<u8>,
    differs: bool,
    /// The last whole word, and the one that is being filled.
    last: Option<u64>,
    word: u64,
    repeated_at: Option<u64>,
}

impl Sample {
    /// Adds a byte.
    pub fn push(&mut self, byte: u8) {
        self.differs |= *self.first.get_or_insert(byte) != byte;
        self.ones += u64::from(byte.count_ones());
        self.bytes += 1;
        self.word = self.word << 8 | u64::from(byte);
        if self.bytes.is_multiple_of(8) {
            if self.last == Some(self.word) {
                self.repeated_at.get_or_insert(self.bytes - 8);
            }
            self.last = Some(self.word);
        }
    }

    /// Bits that are one.
    pub const fn ones(&self) -> u64 {
        self.ones
    }

    /// Bits.
    pub const fn bits(&self) -> u64 {
        8 * self.bytes
    }

    /// Judges a sample of [`crate::scenario::MIN_ENTROPY_BYTES`] or more.
    ///
    /// # Errors
    /// [`Flaw`].
    pub fn judge(&self) -> Result<(), Flaw> {
        if let Some(byte) = self.first.filter(|_| !self.differs) {
            return Err(Flaw::Stuck { byte });
        }
        if let Some(at) = self.repeated_at {
            return Err(Flaw::Repeated { at });
        }
        // The standard deviation of the number of ones is √bits/2; six of them on either side: 2·10⁻⁹.
        let (ones, bits) = (self.ones, self.bits());
        let off = (2 * ones).abs_diff(bits);
        if off * off > 36 * bits {
            return Err(Flaw::Biased { ones, bits });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(bytes: impl IntoIterator<Item = u8>) -> Result<(), Flaw> {
        let mut sample = Sample::default();
        bytes.into_iter().for_each(|byte| sample.push(byte));
        sample.judge()
    }

    /// A generator that is good enough to look random.
    fn noise(seed: u64) -> impl Iterator<Item = u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        core::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes()[0]
        })
    }

    #[test]
    fn noise_of_every_length_passes() {
        for seed in 0..200 {
            for len in [32, 33, 64, 1000, 4096] {
                assert_eq!(judged(noise(seed).take(len)), Ok(()), "{seed} {len}");
            }
        }
    }

    #[test]
    fn a_source_that_is_stuck_is_found() {
        for byte in [0, 0xff, 0x5a] {
            assert_eq!(judged([byte; 32]), Err(Flaw::Stuck { byte }));
        }
    }

    #[test]
    fn a_buffer_that_was_not_filled_to_its_end_is_found() {
        let bytes = noise(1).take(64).chain([0; 64]).chain(noise(2).take(64));
        assert_eq!(judged(bytes), Err(Flaw::Repeated { at: 72 }));
    }

    #[test]
    fn a_source_that_leans_is_found() {
        let leaning = noise(3).zip(noise(4)).map(|(a, b)| a | b).take(256);
        assert!(matches!(judged(leaning), Err(Flaw::Biased { bits: 2048, .. })));
    }
}
