//! Sizes as people write them.

use core::fmt;

/// The bytes of `64M`, `1G`, `4096`, `12K`; `None` for anything else.
pub fn parse(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (text.get(..text.len() - 1)?, 10),
        b'M' | b'm' => (text.get(..text.len() - 1)?, 20),
        b'G' | b'g' => (text.get(..text.len() - 1)?, 30),
        _ => (text, 0),
    };
    if digits.starts_with('+') {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Bytes in the largest unit that divides them, or with one decimal in MiB.
#[derive(Debug, Clone, Copy)]
pub struct Human(pub u64);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
                return write!(f, "{} {unit}", bytes >> shift);
            }
        }
        if bytes >= 1 << 20 {
            return write!(f, "{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20);
        }
        write!(f, "{bytes} bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_multiply_and_nonsense_is_refused() {
        assert_eq!(parse("4096"), Some(4096));
        assert_eq!(parse("12K"), Some(12 << 10));
        assert_eq!(parse("64M"), Some(64 << 20));
        assert_eq!(parse("2g"), Some(2 << 30));
        for text in ["", "M", "12Q", "-1", "+1", "1.5M", "18446744073709551615K", "é"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_printed_for_people() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (4095, "4095 bytes"),
            (4096, "4 KiB"),
            (256 << 20, "256 MiB"),
            (3 << 30, "3 GiB"),
            ((1 << 20) + (512 << 10) + 4096, "1540 KiB"),
            ((10 << 20) + 1, "10.0 MiB"),
        ] {
            assert_eq!(Human(bytes).to_string(), text);
        }
    }
}
