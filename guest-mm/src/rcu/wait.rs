//! Waiting for a grace period.

use super::Rcu;
use crate::platform::Platform;

/// How long readers may take before anybody is asked to hurry: a section that
/// runs is over by then, and a kick would only preempt it.
const KICK_AFTER_NS: u64 = 100_000;
/// Least time between two requests to hurry: a reader that got its turn keeps it.
const KICK_EVERY_NS: u64 = 500_000;

impl Rcu {
    /// Waits until every read section open at the call has ended; calls
    /// [`Platform::relax`] in each iteration of the wait, so that a thread which
    /// was preempted in a section gets its turn in time.
    ///
    /// A caller inside a read section of this domain waits for ever; so may one
    /// that masks interrupts, if the reader is a thread of its own CPU.
    pub fn synchronize<P: Platform>(&self, platform: &P) {
        let since = platform.now_ns();
        let stamp = self.stamp();
        while !self.is_over(stamp) {
            platform.relax();
        }
        self.note_grace_period(platform.now_ns().saturating_sub(since));
    }

    /// As [`Self::synchronize`], and makes CPUs hurry whose sections it waits for.
    ///
    /// A section that *runs* is as long as its code and no interrupt makes it
    /// shorter: readers count themselves, so there is no quiescent state to force
    /// as in Linux. What [`Platform::kick`] cuts short is the time that a
    /// *preempted* reader waits for its CPU: each kick, from 100 µs on and every
    /// 500 µs, ends the time slice of whatever runs there instead. It goes to the CPU
    /// that a section was opened on; a reader that moved on since keeps its normal pace.
    pub fn synchronize_expedited<P: Platform>(&self, platform: &P) {
        let since = platform.now_ns();
        let stamp = self.stamp();
        let mut kick_at = since.saturating_add(KICK_AFTER_NS);
        while !self.is_over(stamp) {
            let now = platform.now_ns();
            if now >= kick_at {
                kick_at = now.saturating_add(KICK_EVERY_NS);
                let holdouts = self.holdouts();
                if !holdouts.is_empty() {
                    self.counters.kicked();
                    platform.kick(holdouts);
                }
            }
            platform.relax();
        }
        self.counters.expedited(platform.now_ns().saturating_sub(since));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::platform::CpuSet;
    use crate::testing::TestPlatform;

    fn waits_for_its_reader(wait: impl FnOnce(&Rcu, &TestPlatform)) -> Rcu {
        let rcu = Rcu::new();
        let platform = TestPlatform::new(&[], 0);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (opened, is_open) = mpsc::channel();
            let (rcu, ended, platform) = (&rcu, &ended, &platform);
            scope.spawn(move || {
                let guard = rcu.read(1);
                opened.send(()).expect("the waiter listens");
                for _ in 0..20 {
                    std::thread::sleep(Duration::from_millis(1));
                    platform.advance_ns(1_000_000);
                }
                ended.store(true, Ordering::Relaxed);
                drop(guard);
            });
            is_open.recv().expect("the reader runs");
            wait(rcu, platform);
            assert!(ended.load(Ordering::Relaxed));
        });
        rcu
    }

    #[test]
    fn synchronize_returns_after_the_reader_left() {
        let rcu = waits_for_its_reader(|rcu, platform| rcu.synchronize(platform));
        assert_eq!((rcu.stats().normal.count, rcu.stats().kicks), (1, 0));
    }

    #[test]
    fn an_expedited_wait_kicks_the_reader_s_cpu_and_returns_after_it_left() {
        let rcu = waits_for_its_reader(|rcu, platform| {
            assert!(!rcu.is_over(rcu.stamp()));
            assert_eq!(rcu.holdouts(), CpuSet::of(1));
            rcu.synchronize_expedited(platform);
        });
        let stats = rcu.stats();
        assert_eq!((stats.expedited.count, stats.normal.count), (1, 0));
        assert!(stats.kicks >= 1);
    }

    #[test]
    fn nobody_is_kicked_without_readers() {
        let rcu = Rcu::new();
        rcu.synchronize_expedited(&TestPlatform::new(&[], 0));
        assert_eq!(rcu.stats().kicks, 0);
    }
}
