//! Token buckets: how much a guest may ask of the host in a time, as Firecracker's `rate_limiter` says it.
//!
//! A pure state machine: the caller brings the time ([`crate::clock::Clock`]) and waits by itself.
//! Arithmetic is exact, in tokens times nanoseconds, so no rate drifts however often a bucket is asked.

use std::time::Duration;

/// A bucket of tokens that fills up again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBucket {
    /// Tokens that it holds when it is full.
    size: u64,
    /// Nanoseconds from empty to full.
    refill_ns: u64,
    /// Tokens beyond `size` that can be taken once in the bucket's life, before all others.
    burst: u64,
    /// What is in it, in tokens times `refill_ns`; below 0 after a request larger than the bucket.
    level: i128,
    /// When `level` was true.
    updated: Duration,
}

impl TokenBucket {
    /// A full bucket of `size` tokens that takes `refill_time` to fill up again, with `one_time_burst`
    /// tokens on top that do not come back. `now`: the clock's time.
    ///
    /// `None`, which limits nothing, when `size` or `refill_time` is 0, as in Firecracker.
    pub fn new(
        size: u64,
        one_time_burst: u64,
        refill_time: Duration,
        now: Duration,
    ) -> Option<Self> {
        let refill_ns = u64::try_from(refill_time.as_nanos()).unwrap_or(u64::MAX);
        if size == 0 || refill_ns == 0 {
            return None;
        }
        let mut bucket = Self { size, refill_ns, burst: one_time_burst, level: 0, updated: now };
        bucket.level = bucket.full();
        Some(bucket)
    }

    /// How long from `now` until `tokens` can be taken; zero: they can be taken.
    ///
    /// A request larger than the bucket waits until it is full, and leaves it in debt.
    fn wait(&mut self, tokens: u64, now: Duration) -> Duration {
        self.refill(now);
        let needed = self.weight(tokens.saturating_sub(self.burst).min(self.size));
        let missing = u128::try_from(needed.saturating_sub(self.level)).unwrap_or(0);
        let ns = missing.div_ceil(u128::from(self.size));
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    fn take(&mut self, tokens: u64) {
        let of_burst = tokens.min(self.burst);
        self.burst -= of_burst;
        self.level = self.level.saturating_sub(self.weight(tokens - of_burst));
    }

    fn refill(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.updated);
        self.updated = self.updated.max(now);
        let ns = i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX);
        let gained = ns.saturating_mul(i128::from(self.size));
        self.level = self.level.saturating_add(gained).min(self.full());
    }

    fn full(&self) -> i128 {
        self.weight(self.size)
    }

    fn weight(&self, tokens: u64) -> i128 {
        i128::from(tokens).saturating_mul(i128::from(self.refill_ns))
    }
}

/// Limits on bytes and on requests; without a bucket a limit is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RateLimiter {
    /// A token is a byte.
    pub bandwidth: Option<TokenBucket>,
    /// A token is a request.
    pub ops: Option<TokenBucket>,
}

impl RateLimiter {
    /// Takes what a request of `bytes` costs, from both buckets or from none.
    ///
    /// # Errors
    /// When to ask again, on the same clock.
    pub fn take(&mut self, bytes: u64, now: Duration) -> Result<(), Duration> {
        let buckets = [(&mut self.bandwidth, bytes), (&mut self.ops, 1)];
        let mut buckets = buckets.map(|(bucket, tokens)| (bucket.as_mut(), tokens));
        let mut wait = Duration::ZERO;
        for (bucket, tokens) in &mut buckets {
            if let Some(bucket) = bucket {
                wait = wait.max(bucket.wait(*tokens, now));
            }
        }
        if !wait.is_zero() {
            return Err(now.saturating_add(wait));
        }
        for (bucket, tokens) in buckets {
            if let Some(bucket) = bucket {
                bucket.take(tokens);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limiter(bandwidth: Option<TokenBucket>, ops: Option<TokenBucket>) -> RateLimiter {
        RateLimiter { bandwidth, ops }
    }

    fn bytes(size: u64, burst: u64) -> RateLimiter {
        limiter(TokenBucket::new(size, burst, SECOND, Duration::ZERO), None)
    }

    #[test]
    fn no_bucket_limits_nothing_and_neither_does_one_of_size_or_time_0() {
        assert_eq!(TokenBucket::new(0, 5, SECOND, Duration::ZERO), None);
        assert_eq!(TokenBucket::new(5, 5, Duration::ZERO, Duration::ZERO), None);
        assert_eq!(RateLimiter::default().take(u64::MAX, Duration::ZERO), Ok(()));
    }

    #[test]
    fn a_bucket_gives_what_it_holds_and_then_what_time_brings() {
        let mut limiter = bytes(1000, 0);
        assert_eq!(limiter.take(1000, Duration::ZERO), Ok(()));
        let later = Duration::from_millis(10);
        assert_eq!(limiter.take(10, Duration::ZERO), Err(later));
        assert_eq!(limiter.take(10, later), Ok(()));
        assert_eq!(limiter.take(1, later), Err(later + Duration::from_millis(1)));
    }

    #[test]
    fn a_bucket_never_holds_more_than_its_size() {
        let mut limiter = bytes(1000, 0);
        let late = 100 * SECOND;
        assert_eq!(limiter.take(1000, late), Ok(()));
        assert!(limiter.take(1, late).is_err());
    }

    #[test]
    fn the_burst_is_taken_first_and_once() {
        let mut limiter = bytes(1000, 500);
        assert_eq!(limiter.take(500, Duration::ZERO), Ok(()));
        assert_eq!(limiter.take(1000, Duration::ZERO), Ok(()));
        assert!(limiter.take(1, Duration::ZERO).is_err());
        assert_eq!(limiter.take(1000, 9 * SECOND), Ok(()));
        assert!(limiter.take(1, 9 * SECOND).is_err(), "the burst has not come back");
    }

    #[test]
    fn a_request_larger_than_the_bucket_passes_and_is_paid_for_afterwards() {
        let mut limiter = bytes(1000, 0);
        assert_eq!(limiter.take(3000, Duration::ZERO), Ok(()));
        assert_eq!(limiter.take(1000, SECOND), Err(3 * SECOND));
        assert_eq!(limiter.take(1000, 3 * SECOND), Ok(()));
    }

    #[test]
    fn a_request_that_one_bucket_refuses_costs_nothing_in_the_other() {
        let ops = TokenBucket::new(1, 0, SECOND, Duration::ZERO);
        let mut limiter = limiter(TokenBucket::new(1000, 0, SECOND, Duration::ZERO), ops);
        assert_eq!(limiter.take(1, Duration::ZERO), Ok(()));
        assert_eq!(limiter.take(999, Duration::ZERO), Err(SECOND), "ops");
        limiter.ops = None;
        assert_eq!(limiter.take(999, Duration::ZERO), Ok(()), "the bytes are still there");
    }

    #[test]
    fn a_clock_that_stands_still_or_steps_back_brings_nothing() {
        let mut limiter = bytes(1, 0);
        assert_eq!(limiter.take(1, SECOND), Ok(()));
        assert!(limiter.take(1, Duration::ZERO).is_err());
        assert!(limiter.take(1, SECOND).is_err());
    }

    proptest! {
        /// In any time, no more passes than the bucket, its burst and its rate allow; and whoever comes
        /// when he was told to come is served.
        #[test]
        fn the_rate_holds_whatever_is_asked(
            size in 1..10_000u64,
            burst in 0..1_000u64,
            refill_ms in 1..10_000u64,
            asks in prop::collection::vec((0..20_000u64, 0..50_000_000u64), 1..100),
        ) {
            let refill = Duration::from_millis(refill_ms);
            let mut limiter = limiter(TokenBucket::new(size, burst, refill, Duration::ZERO), None);
            let (mut now, mut passed, mut largest) = (Duration::ZERO, 0u128, 0u128);
            for (tokens, pause_ns) in asks {
                now += Duration::from_nanos(pause_ns);
                if let Err(when) = limiter.take(tokens, now) {
                    prop_assert!(when > now);
                    now = when;
                    prop_assert_eq!(limiter.take(tokens, now), Ok(()));
                }
                passed += u128::from(tokens);
                largest = largest.max(u128::from(tokens));
                let earned = now.as_nanos() * u128::from(size) / refill.as_nanos();
                prop_assert!(passed <= u128::from(size) + u128::from(burst) + earned + largest);
            }
        }

        #[test]
        fn no_numbers_make_it_panic(
            size: u64, burst: u64, refill: u64, asks: Vec<(u64, u64)>,
        ) {
            let refill = Duration::from_secs(refill);
            let mut limiter = limiter(TokenBucket::new(size, burst, refill, Duration::ZERO), None);
            for (tokens, at) in asks {
                limiter.take(tokens, Duration::from_secs(at)).ok();
            }
        }
    }
}
