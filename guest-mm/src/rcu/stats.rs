//! How long grace periods took and how much memory waited for them.

use core::sync::atomic::{AtomicU64, Ordering};

/// Buckets of the histogram: four to an octave, up to 2^40 ns.
const BUCKETS: usize = 160;
/// log2 of the buckets per octave.
const SUB_BITS: u32 = 2;

/// Durations in nanoseconds, to a quarter of an octave.
#[derive(Debug)]
struct Histogram([AtomicU64; BUCKETS]);

impl Histogram {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKETS])
    }

    fn add(&self, ns: u64) {
        self.0[bucket(ns)].fetch_add(1, Ordering::Relaxed);
    }

    fn durations(&self) -> Durations {
        let counts: [u64; BUCKETS] = core::array::from_fn(|i| self.0[i].load(Ordering::Relaxed));
        let count: u64 = counts.iter().sum();
        let quantile = |permille: u64| {
            let rank = (count * permille).div_ceil(1000).max(1);
            let mut seen = 0;
            let at = counts.iter().position(|&n| {
                seen += n;
                seen >= rank
            });
            at.map_or(0, upper_bound)
        };
        Durations { count, p50_ns: quantile(500), p99_ns: quantile(990) }
    }
}

/// The bucket of a duration.
fn bucket(ns: u64) -> usize {
    let octave = (ns | 1 << SUB_BITS).ilog2();
    let within = ns >> (octave - SUB_BITS) & ((1 << SUB_BITS) - 1);
    let first = u64::from(octave - SUB_BITS) << SUB_BITS;
    let below = if ns < 1 << SUB_BITS { ns } else { first + (1 << SUB_BITS) + within };
    usize::try_from(below).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The longest duration in a bucket.
fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let sub = 1 << SUB_BITS;
    if bucket < sub {
        return bucket;
    }
    let shift = (bucket - sub) >> SUB_BITS;
    ((sub + (bucket & (sub - 1)) + 1) << shift) - 1
}

/// What a domain counts. Relaxed throughout: figures, not conditions; and not
/// the model checker's business.
#[derive(Debug)]
pub(super) struct Counters {
    normal: Histogram,
    expedited: Histogram,
    kicks: AtomicU64,
    bytes: AtomicU64,
    peak_bytes: AtomicU64,
}

impl Counters {
    pub(super) const fn new() -> Self {
        Self {
            normal: Histogram::new(),
            expedited: Histogram::new(),
            kicks: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            peak_bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn kicked(&self) {
        self.kicks.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn expedited(&self, ns: u64) {
        self.expedited.add(ns);
    }
}

/// Durations of grace periods, to a quarter of an octave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Durations {
    /// Grace periods.
    pub count: u64,
    /// Nanoseconds that half of them did not exceed; 0 without any.
    pub p50_ns: u64,
    /// Nanoseconds that 99 % of them did not exceed.
    pub p99_ns: u64,
}

/// What a domain's grace periods cost. Those are counted that somebody waited
/// for or gathered a batch for; an object with a stamp of its own is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GraceStats {
    /// From the stamp until somebody found them over.
    pub normal: Durations,
    /// Waits by [`Rcu::synchronize_expedited`](super::Rcu::synchronize_expedited).
    pub expedited: Durations,
    /// Times that expedited waits asked CPUs to hurry.
    pub kicks: u64,
    /// Memory that waits now, in bytes.
    pub deferred_bytes: u64,
    /// The most that ever waited.
    pub peak_deferred_bytes: u64,
}

impl super::Rcu {
    /// What grace periods cost so far.
    pub fn stats(&self) -> GraceStats {
        GraceStats {
            normal: self.counters.normal.durations(),
            expedited: self.counters.expedited.durations(),
            kicks: self.counters.kicks.load(Ordering::Relaxed),
            deferred_bytes: self.counters.bytes.load(Ordering::Relaxed),
            peak_deferred_bytes: self.counters.peak_bytes.load(Ordering::Relaxed),
        }
    }

    /// Counts a grace period that took `ns`.
    pub(crate) fn note_grace_period(&self, ns: u64) {
        self.counters.normal.add(ns);
    }

    /// Counts memory that starts to wait for a grace period.
    pub(crate) fn note_deferred(&self, bytes: u64) {
        let now = self.counters.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Mostly a load: peaks are rare.
        if now > self.counters.peak_bytes.load(Ordering::Relaxed) {
            self.counters.peak_bytes.fetch_max(now, Ordering::Relaxed);
        }
    }

    /// Counts memory that waits no more.
    pub(crate) fn note_reclaimed(&self, bytes: u64) {
        self.counters.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_bound_their_durations() {
        let mut last = 0;
        for ns in (0..5000).chain((13..40).flat_map(|bit| [(1 << bit) - 1, 1 << bit, 3 << bit])) {
            let at = bucket(ns);
            assert!(upper_bound(at) >= ns, "{ns} in bucket {at}");
            assert!(at == 0 || upper_bound(at - 1) < ns, "{ns} in bucket {at}");
            if ns < 5000 {
                assert!(at >= last, "{ns}");
                last = at;
            }
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_sample_to_a_quarter_of_an_octave() {
        let histogram = Histogram::new();
        assert_eq!(histogram.durations(), Durations::default());
        for ns in 1..=1000 {
            histogram.add(ns);
        }
        let Durations { count, p50_ns, p99_ns } = histogram.durations();
        assert_eq!(count, 1000);
        assert!((500..=511 + 64).contains(&p50_ns), "{p50_ns}");
        assert!((990..=1023).contains(&p99_ns), "{p99_ns}");
    }
}
