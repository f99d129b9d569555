//! Device windows announced on the kernel command line.
//!
//! `virtio_mmio.device=SIZE@BASE:IRQ[:ID]`, the convention of Linux
//! (`drivers/virtio/virtio_mmio.c`), Firecracker and QEMU microvm. SIZE and
//! BASE are decimal or `0x` hexadecimal and take `K`, `M` and `G`.

use core::fmt;

/// Where one virtio-mmio device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioWindow {
    /// Guest-physical address of the first register.
    pub base: u64,
    /// Bytes of the window, at least [`MIN_WINDOW_BYTES`].
    pub bytes: u64,
    /// Global system interrupt of the device.
    pub gsi: u32,
}

/// The registers up to configuration space and its first field.
pub const MIN_WINDOW_BYTES: u64 = abi::mmio::CONFIG + 0x10;

/// Why an announcement was not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowError {
    /// No `@` after the size.
    MissingBase,
    /// No `:` after the base.
    MissingIrq,
    /// The size, base or interrupt is not a number, or is too large.
    BadNumber,
    /// The window is smaller than the registers.
    TooSmall,
    /// The base is not 4-aligned, or the window wraps around the address space.
    BadBase,
}

impl fmt::Display for WindowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MissingBase => "No @BASE in virtio_mmio.device",
            Self::MissingIrq => "No :IRQ in virtio_mmio.device",
            Self::BadNumber => "Not a number in virtio_mmio.device",
            Self::TooSmall => "The window of virtio_mmio.device is smaller than its registers",
            Self::BadBase => "The base of virtio_mmio.device is unaligned or wraps around",
        })
    }
}

impl core::error::Error for WindowError {}

const KEY: &str = "virtio_mmio.device=";

/// The windows announced on `cmdline`, in order; a bad one does not hide the others.
pub fn windows(cmdline: &str) -> impl Iterator<Item = Result<MmioWindow, WindowError>> {
    // What follows `--` belongs to init, as in Linux.
    cmdline
        .split_ascii_whitespace()
        .take_while(|word| *word != "--")
        .filter_map(|word| word.strip_prefix(KEY))
        .map(parse_window)
}

fn parse_window(text: &str) -> Result<MmioWindow, WindowError> {
    let (size, rest) = text.split_once('@').ok_or(WindowError::MissingBase)?;
    let (base, rest) = rest.split_once(':').ok_or(WindowError::MissingIrq)?;
    let irq = rest.split_once(':').map_or(rest, |(irq, _id)| irq);
    let bytes = parse_size(size).ok_or(WindowError::BadNumber)?;
    let base = parse_size(base).ok_or(WindowError::BadNumber)?;
    let gsi = irq.parse().map_err(|_| WindowError::BadNumber)?;
    if bytes < MIN_WINDOW_BYTES {
        return Err(WindowError::TooSmall);
    }
    if base % 4 != 0 || base.checked_add(bytes).is_none() {
        return Err(WindowError::BadBase);
    }
    Ok(MmioWindow { base, bytes, gsi })
}

fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) if !hex.starts_with('+') => u64::from_str_radix(hex, 16).ok()?,
        None if !digits.starts_with('+') => digits.parse().ok()?,
        Some(_) | None => return None,
    };
    value.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn all(cmdline: &str) -> Vec<Result<MmioWindow, WindowError>> {
        windows(cmdline).collect()
    }

    #[test]
    fn firecracker_and_microvm_announcements_are_found_in_order() {
        let found = all(
            "console=ttyS0 virtio_mmio.device=4K@0xd0000000:5 x virtio_mmio.device=512@0xfeb00e00:12:0",
        );
        let window = |base, bytes, gsi| Ok(MmioWindow { base, bytes, gsi });
        assert_eq!(found, [window(0xd000_0000, 4096, 5), window(0xfeb0_0e00, 512, 12)]);
    }

    #[test]
    fn a_bad_announcement_is_an_error_and_does_not_hide_the_next() {
        let found = all("virtio_mmio.device=4K@:5 virtio_mmio.device=4K@0x1000:6");
        assert_eq!(found[0], Err(WindowError::BadNumber));
        assert_eq!(found[1].map(|w| w.gsi), Ok(6));
    }

    #[test]
    fn each_malformation_has_its_error() {
        for (text, error) in [
            ("4K", WindowError::MissingBase),
            ("4K@0x1000", WindowError::MissingIrq),
            ("4Q@0x1000:5", WindowError::BadNumber),
            ("4K@+4096:5", WindowError::BadNumber),
            ("4K@0x+10:5", WindowError::BadNumber),
            ("4K@0x1000:-1", WindowError::BadNumber),
            ("4K@0x1000:99999999999", WindowError::BadNumber),
            ("18446744073709551615G@0x1000:5", WindowError::BadNumber),
            ("16@0x1000:5", WindowError::TooSmall),
            ("4K@0x1001:5", WindowError::BadBase),
            ("4K@0xfffffffffffffff0:5", WindowError::BadBase),
        ] {
            assert_eq!(parse_window(text), Err(error), "{text}");
        }
    }

    #[test]
    fn what_follows_a_double_dash_belongs_to_init() {
        assert!(all("a -- virtio_mmio.device=4K@0x1000:5").is_empty());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            for found in windows(&text).chain(core::iter::once(parse_window(&text))).flatten() {
                prop_assert!(found.bytes >= MIN_WINDOW_BYTES);
            }
        }

        #[test]
        fn any_valid_window_is_read_back(base in 0u64..1 << 40, kib in 1u64..1 << 20, gsi: u32) {
            let base = base & !3;
            let text = std::format!("virtio_mmio.device={kib}K@{base:#x}:{gsi}");
            prop_assert_eq!(all(&text), [Ok(MmioWindow { base, bytes: kib << 10, gsi })]);
        }
    }
}
