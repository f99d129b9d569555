//! The keys that speak to aerostat instead of the guest, as in QEMU: Ctrl-A, then X.

const CTRL_A: u8 = 0x01;

/// Told at start to a person at a terminal.
pub(crate) const HINT: &str = "Ctrl-A X ends the VM, Ctrl-A Ctrl-A sends Ctrl-A";

/// What a key comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Escape {
    /// A byte for the guest.
    Byte(u8),
    /// The first half of an escape, or an unknown one.
    Nothing,
    /// End the VM.
    Quit,
}

/// Remembers whether Ctrl-A was the last key.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    after_ctrl_a: bool,
}

impl Keys {
    /// Takes the next key.
    pub(crate) fn press(&mut self, byte: u8) -> Escape {
        match (std::mem::take(&mut self.after_ctrl_a), byte) {
            (false, CTRL_A) => {
                self.after_ctrl_a = true;
                Escape::Nothing
            }
            (false, byte) | (true, byte @ CTRL_A) => Escape::Byte(byte),
            (true, b'x' | b'X') => Escape::Quit,
            (true, _) => Escape::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> Vec<Escape> {
        let mut state = Keys::default();
        keys.iter().map(|&key| state.press(key)).collect()
    }

    #[test]
    fn ordinary_keys_reach_the_guest_ctrl_c_included() {
        assert_eq!(typed(b"x\x03"), [Escape::Byte(b'x'), Escape::Byte(3)]);
    }

    #[test]
    fn ctrl_a_x_quits_and_ctrl_a_twice_sends_one() {
        assert_eq!(typed(b"\x01x"), [Escape::Nothing, Escape::Quit]);
        assert_eq!(typed(b"\x01\x01x"), [Escape::Nothing, Escape::Byte(1), Escape::Byte(b'x')]);
        assert_eq!(typed(b"\x01qx"), [Escape::Nothing, Escape::Nothing, Escape::Byte(b'x')]);
    }
}
