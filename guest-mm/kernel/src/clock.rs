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

/// What a PIT measurement gives: `ticks` of the TSC while its channel counted `count` periods of 1,193,182 Hz.
pub const fn hz_from_pit(ticks: u64, count: u16) -> Option<u64> {
    if count == 0 {
        return None;
    }
    let hz = ticks as u128 * 1_193_182 / count as u128;
    if hz == 0 || hz > u64::MAX as u128 { None } else { Some(low_half(hz)) }
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
        assert_eq!(hz_from_pit(1, 0), None);
        assert_eq!(hz_from_pit(11_932_000, 11_932), Some(1_193_182_000));
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
