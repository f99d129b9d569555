//! Bytes as a sequence of choices.

/// A cursor over fuzz input; past the end everything is 0.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn u8(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// At most `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A guest-physical address: near the RAM of the machine, or anything.
    pub(super) fn address(&mut self) -> u64 {
        match self.u8() {
            0 => self.u64(),
            1 => u64::MAX - u64::from(self.u8()),
            page @ 2.. => (u64::from(page) << 10) | u64::from(self.u16() & 0x3ff),
        }
    }

    /// A length: mostly small, sometimes anything.
    pub(super) fn len(&mut self) -> u32 {
        match self.u8() {
            0 => 0,
            1 => self.u32(),
            2 => 16 * u32::from(self.u8()),
            small @ 3.. => u32::from(small) - 2,
        }
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        for (to, from) in out.iter_mut().zip(self.bytes(N)) {
            *to = *from;
        }
        out
    }
}
