//! Sizes as people write and read them.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

/// Unit of every balloon size.
const PAGE_BYTES: u64 = 4096;

/// Binary units, largest first.
const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// A number of bytes, written `268435456`, `262144K`, `256M` or `1G`.
///
/// Suffixes are powers of 1024. Nothing is ever rounded: what is not exact is
/// refused. [`fmt::Display`] prints bytes and a human form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// A size of `bytes`.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The size, if it is a whole number of 4 KiB pages.
    ///
    /// # Errors
    /// [`SizeError::NotWholePages`], with the neighbours that are.
    pub fn whole_pages(self) -> Result<Self, SizeError> {
        if self.0.is_multiple_of(PAGE_BYTES) {
            return Ok(self);
        }
        let below = self.0 - self.0 % PAGE_BYTES;
        Err(SizeError::NotWholePages { size: self.0, below, above: below.checked_add(PAGE_BYTES) })
    }

    /// The size, if it is more than zero.
    ///
    /// # Errors
    /// [`SizeError::Zero`].
    pub fn nonzero(self) -> Result<Self, SizeError> {
        NonZeroU64::new(self.0).map(|n| Self(n.get())).ok_or(SizeError::Zero)
    }

    /// The human form alone: `256 MiB`; with two decimals where the unit does not divide the size.
    pub fn human(self) -> String {
        let Some((unit, shift)) = UNITS.iter().find(|(_, shift)| self.0 >> shift > 0) else {
            return format!("{} B", self.0);
        };
        let one = 1_u64 << shift;
        if self.0.is_multiple_of(one) {
            return format!("{} {unit}", self.0 >> shift);
        }
        let hundredths = u128::from(self.0 % one) * 100 / u128::from(one);
        format!("{}.{hundredths:02} {unit}", self.0 >> shift)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes @ 0..1024 => write!(f, "{bytes} B"),
            bytes => write!(f, "{bytes} B ({})", self.human()),
        }
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        if number.is_empty() {
            return Err(SizeError::NoDigits(text.to_owned()));
        }
        let shift = match suffix {
            "" => 0,
            "K" | "k" => 10,
            "M" | "m" => 20,
            "G" | "g" => 30,
            other => return Err(SizeError::Suffix(text.to_owned(), other.to_owned())),
        };
        let too_large = || SizeError::TooLarge(text.to_owned());
        let number: u64 = number.parse().map_err(|_| too_large())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(too_large)
    }
}

/// Why a size was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It does not begin with a digit: empty, negative, or no number at all.
    #[error(
        "{0:?} is no size; write a whole number of bytes, or one with K, M or G (powers of 1024): 256M"
    )]
    NoDigits(String),
    /// What follows the digits is no suffix that is known.
    #[error("{0:?} has the unknown suffix {1:?}; allowed: none (bytes), K, M, G (powers of 1024)")]
    Suffix(String, String),
    /// More bytes than 64 bits can say.
    #[error("{0:?} is more than {max} B (2^64-1)", max = u64::MAX)]
    TooLarge(String),
    /// Zero where something is needed.
    #[error("A size of 0 does nothing here; allowed: 4K or more, in steps of 4K")]
    Zero,
    /// Not a multiple of the page size.
    #[error(
        "{size} B is no multiple of 4 KiB (4096 B); nearest: {below} B{}",
        above.map(|a| format!(" or {a} B")).unwrap_or_default()
    )]
    NotWholePages {
        /// What was asked.
        size: u64,
        /// The largest multiple below it.
        below: u64,
        /// The smallest multiple above it, if 64 bits can say it.
        above: Option<u64>,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<u64, SizeError> {
        text.parse::<Size>().map(Size::bytes)
    }

    #[test]
    fn suffixes_are_powers_of_1024() {
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("4K"), Ok(4096));
        assert_eq!(parse("256M"), Ok(256 << 20));
        assert_eq!(parse("64G"), Ok(64 << 30));
        assert_eq!(parse("17592186048512"), Ok((1 << 44) + 4096));
    }

    #[test]
    fn what_is_no_size_is_refused_with_its_reason() {
        assert_eq!(parse("12Q"), Err(SizeError::Suffix("12Q".into(), "Q".into())));
        for text in ["1.5G", "1 G", "1GiB", "0x10", "1e3", "5\u{664}"] {
            assert!(matches!(parse(text), Err(SizeError::Suffix(..))), "{text}");
        }
        for text in ["", "-4K", "+4K", "K", " 4K", "\u{664}K"] {
            assert!(matches!(parse(text), Err(SizeError::NoDigits(_))), "{text}");
        }
    }

    #[test]
    fn sizes_beyond_64_bits_are_refused_not_wrapped() {
        assert_eq!(parse("18446744073709551615"), Ok(u64::MAX));
        for text in ["18446744073709551616", "17179869184G", "99999999999999999999999999M"] {
            assert!(matches!(parse(text), Err(SizeError::TooLarge(_))), "{text}");
        }
    }

    #[test]
    fn sizes_print_bytes_and_a_human_form() {
        assert_eq!(Size(0).to_string(), "0 B");
        assert_eq!(Size(1023).to_string(), "1023 B");
        assert_eq!(Size(256 << 20).to_string(), "268435456 B (256 MiB)");
        assert_eq!(Size((1 << 44) + 4096).to_string(), "17592186048512 B (16.00 TiB)");
        assert_eq!(Size(300 << 20).human(), "300 MiB");
        assert_eq!(Size(1536).human(), "1.50 KiB");
    }

    #[test]
    fn a_size_between_pages_is_refused_and_names_its_neighbours() {
        let message = Size(5000).whole_pages().unwrap_err().to_string();
        assert!(message.contains("5000 B") && message.contains("4096 B or 8192 B"), "{message}");
        assert!(Size(u64::MAX).whole_pages().is_err());
        assert_eq!(Size(0).whole_pages(), Ok(Size(0)));
        assert_eq!(Size(0).nonzero(), Err(SizeError::Zero));
    }

    proptest! {
        #[test]
        fn what_parses_is_exactly_what_was_written(n in any::<u64>(), unit in 0_usize..4) {
            let (suffix, factor) = [("", 1_u128), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30)][unit];
            let exact = u128::from(n) * factor;
            match parse(&format!("{n}{suffix}")) {
                Ok(bytes) => prop_assert_eq!(u128::from(bytes), exact),
                Err(error) => {
                    prop_assert!(exact > u128::from(u64::MAX));
                    prop_assert!(matches!(error, SizeError::TooLarge(_)));
                }
            }
        }

        #[test]
        fn any_text_either_parses_or_is_refused_and_never_panics(text in ".{0,24}") {
            if let Ok(bytes) = parse(&text) {
                prop_assert!(text.starts_with(|c: char| c.is_ascii_digit()));
                prop_assert!(text.len() <= 24 && bytes == parse(&text).unwrap());
            }
        }

        #[test]
        fn bytes_survive_printing(n in any::<u64>()) {
            let printed = Size(n).to_string();
            prop_assert_eq!(parse(printed.split(' ').next().unwrap()), Ok(n));
        }
    }
}
