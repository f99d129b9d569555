//! Histograms with a bucket per power of two.

/// Buckets: one for zero, one for each bit length from 1 to 40, the last for all above.
const BUCKETS: usize = 42;

/// How often values of each magnitude were seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; BUCKETS],
    sum: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts `value`.
    pub fn record(&mut self, value: u64) {
        let bits = (u64::BITS - value.leading_zeros()) as usize;
        if let Some(bucket) = self.buckets.get_mut(bits.min(BUCKETS - 1)) {
            *bucket += 1;
        }
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
    }

    /// Counts everything that `other` has counted.
    pub(super) fn merge(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(to, from)| *to += from);
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Their sum, saturating.
    pub const fn sum(&self) -> u64 {
        self.sum
    }

    /// The largest.
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// The largest value of each bucket and how many were at most that, as Prometheus wants them; the last is unbounded.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut below = 0;
        self.buckets.iter().enumerate().map(move |(bits, &n)| {
            below += n;
            let bound = if bits == BUCKETS - 1 { u64::MAX } else { (1 << bits) - 1 };
            (bound, below)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_at_or_below_their_bound() {
        let mut histogram = Histogram::default();
        let values = [0, 1, 2, 3, 4, 511, 512, 1 << 39, 1 << 50, u64::MAX];
        values.iter().for_each(|&value| histogram.record(value));
        assert_eq!((histogram.count(), histogram.max()), (10, u64::MAX));
        for (bound, below) in histogram.cumulative() {
            assert_eq!(below, values.iter().filter(|&&value| value <= bound).count() as u64);
        }
    }
}
