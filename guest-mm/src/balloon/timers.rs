//! Retrying without spinning, and noticing a device that does not answer.

use super::options::Wake;

/// First pause after a failure.
const FIRST_PAUSE_NS: u64 = 20_000_000;
/// Longest pause: what a guest that frees memory waits at most for the balloon to notice.
const LONGEST_PAUSE_NS: u64 = 640_000_000;

/// Pauses that double from failure to failure until something succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    pause_ns: u64,
    until: Option<u64>,
}

impl Backoff {
    pub(crate) const fn new() -> Self {
        Self { pause_ns: FIRST_PAUSE_NS, until: None }
    }

    /// A step failed.
    pub(crate) fn failed(&mut self, now: u64) {
        self.until = Some(now.saturating_add(self.pause_ns));
        self.pause_ns = (2 * self.pause_ns).min(LONGEST_PAUSE_NS);
    }

    /// A step succeeded, or circumstances changed: the next failure pauses briefly.
    pub(crate) fn reset(&mut self) {
        *self = Self::new();
    }

    /// Something succeeded during the pause: the pause goes on, the next one starts short.
    pub(crate) fn shorten(&mut self) {
        self.pause_ns = FIRST_PAUSE_NS;
    }

    /// Whether the pause is over (or there is none).
    pub(crate) fn is_over(&mut self, now: u64) -> bool {
        if self.until.is_some_and(|until| now < until) {
            return false;
        }
        self.until = None;
        true
    }

    /// When the pause ends, if there is one.
    pub(crate) fn wake(&self, now: u64) -> Wake {
        self.until.filter(|&until| until > now).map_or(Wake::OnInterrupt, Wake::At)
    }
}

/// Ticks that make up a timeout.
const TICKS: u32 = 10;

/// Counts time in which the device owes an answer.
///
/// A timeout takes [`TICKS`] ticks that the driver has really seen, so a guest
/// that was paused for an hour finds one tick gone, not a timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watchdog {
    tick_ns: u64,
    ticks: u32,
    next: Option<u64>,
}

impl Watchdog {
    pub(crate) const fn new(timeout_ns: u64) -> Self {
        Self { tick_ns: timeout_ns / TICKS as u64 + 1, ticks: 0, next: None }
    }

    /// The device has answered.
    pub(crate) fn answered(&mut self) {
        self.ticks = 0;
        self.next = None;
    }

    /// Whether the device has been silent for too long.
    pub(crate) const fn has_expired(&self) -> bool {
        self.ticks >= TICKS
    }

    /// Looks at the clock while the device owes an answer; returns whether a tick has passed.
    pub(crate) fn watch(&mut self, now: u64) -> bool {
        let due = self.next.is_some_and(|next| now >= next);
        if due {
            self.ticks = self.ticks.saturating_add(1);
        }
        if due || self.next.is_none() {
            self.next = Some(now.saturating_add(self.tick_ns));
        }
        due
    }

    pub(crate) fn wake(&self) -> Wake {
        self.next.map_or(Wake::OnInterrupt, Wake::At)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_success_shortens_them() {
        let mut backoff = Backoff::new();
        let mut pauses = std::vec::Vec::new();
        for _ in 0..7 {
            backoff.failed(1000);
            let Wake::At(at) = backoff.wake(1000) else { panic!("no pause") };
            pauses.push((at - 1000) / 1_000_000);
            assert!(!backoff.is_over(at - 1));
            assert!(backoff.is_over(at));
        }
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 640]);
        backoff.reset();
        backoff.failed(0);
        assert_eq!(backoff.wake(0), Wake::At(FIRST_PAUSE_NS));
        assert_eq!(backoff.wake(FIRST_PAUSE_NS), Wake::OnInterrupt);
    }

    #[test]
    fn a_silent_device_expires_after_ten_ticks_seen() {
        let mut watchdog = Watchdog::new(1000);
        let mut now = 0;
        assert!(!watchdog.watch(now));
        for tick in 1..=10 {
            assert!(!watchdog.has_expired(), "tick {tick}");
            now += 101;
            assert!(watchdog.watch(now));
        }
        assert!(watchdog.has_expired());
        watchdog.answered();
        assert!(!watchdog.has_expired());
    }

    #[test]
    fn a_long_pause_of_the_guest_is_one_tick() {
        let mut watchdog = Watchdog::new(1000);
        watchdog.watch(0);
        assert!(watchdog.watch(u64::MAX / 2));
        assert!(!watchdog.has_expired());
    }
}
