//! How many pages stay free.

/// Free-page thresholds, in pages: `min < low < high` unless the zone is tiny.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Watermarks {
    /// Ordinary allocations fail below.
    pub min: u64,
    /// Optional allocations (the balloon's) fail below.
    pub low: u64,
    /// Reclaim would stop above.
    pub high: u64,
}

impl Watermarks {
    /// The thresholds for a zone of `managed` pages.
    ///
    /// Linux's rule, `min = sqrt(16 × KiB) KiB`: 2 MiB of 256 MiB, 32 MiB of
    /// 64 GiB; at most 1/32 of the zone. low and high are 5/4 and 6/4 of min.
    pub const fn of_zone(managed: u64) -> Self {
        let kib = managed.saturating_mul(4);
        let wanted = kib.saturating_mul(16).isqrt() / 4;
        let cap = managed / 32;
        let min = if wanted < cap { wanted } else { cap };
        Self { min, low: min + min / 4, high: min + min / 2 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watermarks_follow_the_square_root_rule() {
        assert_eq!(Watermarks::of_zone(65_536), Watermarks { min: 512, low: 640, high: 768 });
        assert_eq!(Watermarks::of_zone(16 << 20).min, 8_192);
        assert_eq!(Watermarks::of_zone(0), Watermarks::default());
    }

    #[test]
    fn tiny_zones_keep_at_most_a_thirty_second() {
        assert_eq!(Watermarks::of_zone(1024).min, 32);
        assert_eq!(Watermarks::of_zone(31).min, 0);
    }
}
