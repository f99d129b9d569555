//! From TSC ticks to nanoseconds and back.

/// Fraction bits of [`TscRate`].
const FRACTION: u32 = 40;

/// How long a TSC tick is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TscRate {
    /// Nanoseconds per tick, with [`FRACTION`] bits after the point; not 0.
    ns_per_tick: u64,
}

impl TscRate {
    /// The rate of a frequency; `None` for 0 and for what no CPU has (1 THz and above).
    pub const fn from_hz(hz: u64) -> Option<Self> {
        if hz == 0 || hz >= 1_000_000_000_000 {
            return None;
        }
        let ratio = (1_000_000_000u128 << FRACTION) / hz as u128;
        if ratio > u64::MAX as u128 {
            return None;
        }
        Some(Self { ns_per_tick: low_half(ratio) })
    }

    /// The rate in a kvmclock page: `ns = ((ticks << shift) * mul) >> 32`, a negative shift meaning right.
    ///
    /// `None` for values that no host writes.
    pub const fn from_kvmclock(mul: u32, shift: i8) -> Option<Self> {
        let total = shift as i32 + FRACTION as i32 - 32;
        if total <= -32 || total >= 32 {
            return None;
        }
        let ratio = if total < 0 {
            mul as u64 >> total.unsigned_abs()
        } else {
            (mul as u64) << total.unsigned_abs()
        };
        if ratio == 0 { None } else { Some(Self { ns_per_tick: ratio }) }
    }

    /// Nanoseconds of `ticks`, saturating.
    pub const fn ns(self, ticks: u64) -> u64 {
        let ns = (ticks as u128 * self.ns_per_tick as u128) >> FRACTION;
        if ns > u64::MAX as u128 { u64::MAX } else { low_half(ns) }
    }

    /// Ticks of `ns`, saturating.
    pub const fn ticks(self, ns: u64) -> u64 {
        let ticks = ((ns as u128) << FRACTION) / self.ns_per_tick as u128;
        if ticks > u64::MAX as u128 { u64::MAX } else { low_half(ticks) }
    }

    /// Ticks per second.
    pub const fn hz(self) -> u64 {
        self.ticks(1_000_000_000)
    }
}

/// The low 64 bits.
#[expect(clippy::cast_possible_truncation, reason = "the callers have compared with u64::MAX")]
const fn low_half(value: u128) -> u64 {
    value as u64
}

/// Periods that a PIT channel counts in a second.
const PIT_HZ: u128 = 1_193_182;

/// A look at a PIT channel that counts down, and at the TSC on both sides of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PitLook {
    /// What the channel had left.
    pub left: u16,
    /// The TSC before the channel was asked.
    pub before: u64,
    /// The TSC after it.
    pub after: u64,
}

impl PitLook {
    /// Periods that the channel has counted since `first`.
    pub const fn counted_since(self, first: Self) -> u16 {
        first.left.wrapping_sub(self.left)
    }

    /// The TSC's rate, from `first` to this look.
    ///
    /// `None` if nothing was counted, or if the looks took so long (a CPU that was taken away meanwhile) that the rate
    /// would be off by more than three in a hundred.
    pub fn hz_since(self, first: Self) -> Option<u64> {
        let counted = u128::from(self.counted_since(first));
        let ticks = self.before.checked_sub(first.before)?;
        let doubt = self.after.checked_sub(self.before)? + first.after.checked_sub(first.before)?;
        if counted == 0 || doubt > ticks / 32 {
            return None;
        }
        u64::try_from(u128::from(ticks) * PIT_HZ / counted).ok().filter(|hz| *hz > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_second_of_ticks_is_a_second() {
        for hz in [1_000_000, 1_000_000_000, 2_596_123_000, 5_000_000_000] {
            let rate = TscRate::from_hz(hz).unwrap();
            assert!(rate.ns(hz).abs_diff(1_000_000_000) <= 10, "{hz}: {}", rate.ns(hz));
        }
    }

    #[test]
    fn kvmclock_factors_mean_what_the_host_means() {
        // 2 GHz: half a nanosecond per tick = 2^31 / 2^32, or 2^32-ish shifted right once.
        assert_eq!(TscRate::from_kvmclock(1 << 31, 0).unwrap().ns(2_000_000_000), 1_000_000_000);
        assert_eq!(TscRate::from_kvmclock(1 << 31, -1).unwrap().ns(4_000_000_000), 1_000_000_000);
        assert_eq!(TscRate::from_kvmclock(1 << 31, 1).unwrap().ns(1_000_000_000), 1_000_000_000);
    }

    #[test]
    fn absurd_factors_are_refused() {
        assert_eq!(TscRate::from_kvmclock(0, 0), None);
        assert_eq!(TscRate::from_kvmclock(1, -128), None);
        assert_eq!(TscRate::from_kvmclock(1, 127), None);
        assert_eq!(TscRate::from_hz(0), None);
        assert_eq!(TscRate::from_hz(u64::MAX), None);
    }

    #[test]
    fn looks_at_a_pit_give_the_rate_and_slow_ones_none() {
        let look = |left, before, after| PitLook { left, before, after };
        let first = look(0xffff, 1_000, 1_500);
        let ten_ms = look(0xffff - 11_932, 11_933_000, 11_933_200);
        assert_eq!(ten_ms.counted_since(first), 11_932);
        assert_eq!(ten_ms.hz_since(first), Some(1_193_182_000));
        // Nothing counts, nothing passes, time goes backwards, a look that took a tenth of the time.
        assert_eq!(look(0xffff, 11_933_000, 11_933_200).hz_since(first), None);
        assert_eq!(look(0xfffe, 1_000, 1_000).hz_since(look(0xffff, 1_000, 1_000)), None);
        assert_eq!(look(0xf000, 10, 20).hz_since(first), None);
        assert_eq!(look(0xffff - 11_932, 11_933_000, 13_000_000).hz_since(first), None);
    }

    proptest! {
        #[test]
        fn ticks_and_ns_are_inverse_within_a_tick(mhz in 100u64..6000, ns in 0u64..1 << 50) {
            let rate = TscRate::from_hz(mhz * 1_000_000).unwrap();
            prop_assert!(rate.ns(rate.ticks(ns)).abs_diff(ns) <= 11);
        }

        #[test]
        fn time_never_runs_backwards(mul in 1u32.., shift in -20i8..20, a: u64, b: u64) {
            if let Some(rate) = TscRate::from_kvmclock(mul, shift) {
                prop_assert!(rate.ns(a.min(b)) <= rate.ns(a.max(b)));
            }
        }
    }
}
