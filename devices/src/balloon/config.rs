//! Configuration space: the target is the device's, `actual` the driver's.

use abi::balloon::CONFIG_ACTUAL;

use crate::virtio::{GuestFault, read_config_bytes};

/// What the driver reads and may write. Source: virtio 1.2 §5.5.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct BalloonConfig {
    /// Target in 4 KiB pages; only the device writes it.
    pub(super) num_pages: u32,
    /// 4 KiB pages in the balloon; only the driver writes it, and it may write anything.
    pub(super) actual: u32,
}

impl BalloonConfig {
    /// Bytes from `offset` on; beyond the fields, and in those of features not offered, zeros.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) {
        let fields = [self.num_pages.to_le_bytes(), self.actual.to_le_bytes()];
        read_config_bytes(fields.as_flattened(), offset, out);
    }

    /// Takes a write of `actual`: all four bytes at once, as §4.2.2.2 asks of drivers.
    ///
    /// # Errors
    /// [`GuestFault::ReadOnlyConfig`] for anything else, which changes nothing.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), GuestFault> {
        let refused = GuestFault::ReadOnlyConfig { offset, len: data.len() };
        let value = <[u8; 4]>::try_from(data).map_err(|_| refused)?;
        if offset != CONFIG_ACTUAL {
            return Err(refused);
        }
        self.actual = u32::from_le_bytes(value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_of_any_offset_and_width_see_the_space_and_zeros_beyond() {
        let config = BalloonConfig { num_pages: 0x0403_0201, actual: 0x0807_0605 };
        let model = |at: u64| if at < 8 { u8::try_from(at + 1).unwrap() } else { 0 };
        for offset in (0..20).chain([u64::MAX - 4, u64::MAX]) {
            for len in 0..12u64 {
                let mut out = vec![0xff; usize::try_from(len).unwrap()];
                config.read(offset, &mut out);
                let expected: Vec<u8> = (0..len).map(|n| model(offset.saturating_add(n))).collect();
                assert_eq!(out, expected, "{len} bytes at {offset}");
            }
        }
    }

    #[test]
    fn only_a_whole_write_of_actual_is_taken() {
        let mut config = BalloonConfig { num_pages: 7, actual: 1 };
        for (offset, len) in
            [(0, 4), (0, 8), (4, 1), (4, 2), (4, 8), (5, 4), (8, 4), (12, 4), (4, 0)]
        {
            let before = config;
            assert!(config.write(offset, &vec![0xff; len]).is_err(), "{len} bytes at {offset}");
            assert_eq!(config, before);
        }
        assert_eq!(config.write(4, &u32::MAX.to_le_bytes()), Ok(()));
        assert_eq!(config, BalloonConfig { num_pages: 7, actual: u32::MAX });
    }
}
