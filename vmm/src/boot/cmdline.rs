//! The kernel command line.

use abi::mmio;

/// Longest command line in bytes, without its NUL, of a kernel that says nothing of it: Linux's
/// COMMAND_LINE_SIZE less one.
pub const MAX_BYTES: usize = 2047;

/// What a kernel from a file gets when the operator gives no command line: Linux's serial console, no
/// probing of what this machine does not have, a reset instead of a hang after a panic.
pub const DEFAULT_FOR_FILES: &str = "console=ttyS0 reboot=k panic=1";

/// The same with the console on virtio. The serial port speaks until its driver is there, as a boot
/// console, which Linux drops then without printing everything twice.
pub const DEFAULT_FOR_FILES_ON_HVC: &str =
    "console=hvc0 earlycon=uart8250,io,0x3f8 reboot=k panic=1";

/// The words that announce a virtio-mmio window, as Linux's `virtio_mmio.device=` takes them.
///
/// Source: Linux Documentation/admin-guide/kernel-parameters.txt.
pub fn announce(base: u64, gsi: u32) -> String {
    format!("virtio_mmio.device={}K@{base:#x}:{gsi}", mmio::WINDOW_BYTES >> 10)
}

/// `words` with single spaces between them; empty ones leave no trace.
pub fn join<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// Whether a kernel that takes `max` bytes can be given `cmdline`.
///
/// # Errors
/// [`CmdlineError`] with the values.
pub fn check(cmdline: &str, max: usize) -> Result<(), CmdlineError> {
    if cmdline.len() > max {
        return Err(CmdlineError::TooLong { len: cmdline.len(), max });
    }
    match cmdline.bytes().position(|byte| !(b' '..=b'~').contains(&byte)) {
        Some(at) => Err(CmdlineError::BadByte { at, byte: cmdline.as_bytes()[at] }),
        None => Ok(()),
    }
}

/// A command line that no kernel can be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// Longer than kernels read.
    #[error(
        "The kernel command line has {len} B with the device announcements; this kernel takes at most {max} B"
    )]
    TooLong {
        /// Its length.
        len: usize,
        /// The kernel's limit.
        max: usize,
    },
    /// Not printable ASCII.
    #[error(
        "The kernel command line has byte {byte:#04x} at {at}; only printable ASCII is possible"
    )]
    BadByte {
        /// Where.
        at: usize,
        /// What.
        byte: u8,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_announced_as_linux_and_firecracker_spell_them() {
        assert_eq!(announce(0xd000_0000, 5), "virtio_mmio.device=4K@0xd0000000:5");
    }

    #[test]
    fn words_are_joined_without_stray_spaces() {
        assert_eq!(join(["", "a", "", "b c"]), "a b c");
    }

    #[test]
    fn the_longest_command_line_passes_and_one_byte_more_does_not() {
        assert_eq!(check(&"x".repeat(MAX_BYTES), MAX_BYTES), Ok(()));
        let len = MAX_BYTES + 1;
        assert_eq!(
            check(&"x".repeat(len), MAX_BYTES),
            Err(CmdlineError::TooLong { len, max: MAX_BYTES })
        );
    }

    #[test]
    fn control_and_non_ascii_bytes_are_named_with_their_place() {
        assert_eq!(check("a\0b", MAX_BYTES), Err(CmdlineError::BadByte { at: 1, byte: 0 }));
        assert_eq!(check("a\nb", MAX_BYTES), Err(CmdlineError::BadByte { at: 1, byte: b'\n' }));
        assert_eq!(check("é", MAX_BYTES), Err(CmdlineError::BadByte { at: 0, byte: 0xc3 }));
    }
}
