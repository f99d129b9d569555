//! What faults did, counted.

use core::sync::atomic::{AtomicU64, Ordering};

use super::FaultOutcome;
use crate::mm::Mm;
use crate::platform::{MAX_CPUS, Platform};

/// Events beside the outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FaultEvent {
    /// An attempt that ended in a wait, and was followed by another.
    Retry,
    /// The VMA's own lock could not be had, so the mmap lock was taken.
    MmapLock,
    /// No 2 MiB folio to be had: the fault was served by a PTE.
    ThpFallback,
    /// Neighbours of a file fault, mapped along.
    FaultAround,
    /// A PMD leaf split by a write-protect fault.
    PmdSplit,
    /// A leaf that makes no sense, or names a frame beyond RAM.
    UnknownLeaf,
    /// A leaf of a device that nobody has registered.
    NoDevice,
    /// A fault that ended in an error.
    Failed,
}

impl FaultEvent {
    /// Number of events.
    pub const COUNT: usize = Self::ALL.len();
    /// Every event, by number.
    pub const ALL: [Self; 8] = [
        Self::Retry,
        Self::MmapLock,
        Self::ThpFallback,
        Self::FaultAround,
        Self::PmdSplit,
        Self::UnknownLeaf,
        Self::NoDevice,
        Self::Failed,
    ];

    /// The event's lower-case name, for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::MmapLock => "mmap-lock",
            Self::ThpFallback => "thp-fallback",
            Self::FaultAround => "fault-around",
            Self::PmdSplit => "pmd-split",
            Self::UnknownLeaf => "unknown-leaf",
            Self::NoDevice => "no-device",
            Self::Failed => "failed",
        }
    }
}

/// One CPU's counters, on cache lines of their own.
#[derive(Debug)]
#[repr(align(64))]
struct CpuCounters {
    outcomes: [AtomicU64; FaultOutcome::COUNT],
    events: [AtomicU64; FaultEvent::COUNT],
}

/// Counters of all faults since start.
#[derive(Debug)]
pub struct FaultCounters([CpuCounters; MAX_CPUS]);

impl FaultCounters {
    /// No fault yet.
    pub const fn new() -> Self {
        Self(
            [const {
                CpuCounters {
                    outcomes: [const { AtomicU64::new(0) }; FaultOutcome::COUNT],
                    events: [const { AtomicU64::new(0) }; FaultEvent::COUNT],
                }
            }; MAX_CPUS],
        )
    }

    pub(super) fn note_outcome(&self, cpu: usize, outcome: FaultOutcome) {
        self.0[cpu % MAX_CPUS].outcomes[outcome.index()].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note(&self, cpu: usize, event: FaultEvent, times: u64) {
        self.0[cpu % MAX_CPUS].events[event as usize].fetch_add(times, Ordering::Relaxed);
    }

    /// The sums over all CPUs; exact only while nobody faults.
    pub fn snapshot(&self) -> FaultStats {
        let mut stats = FaultStats::default();
        for cpu in &self.0 {
            for (sum, counter) in stats.outcomes.iter_mut().zip(&cpu.outcomes) {
                *sum += counter.load(Ordering::Relaxed);
            }
            for (sum, counter) in stats.events.iter_mut().zip(&cpu.events) {
                *sum += counter.load(Ordering::Relaxed);
            }
        }
        stats
    }
}

impl Default for FaultCounters {
    fn default() -> Self {
        Self::new()
    }
}

/// What faults have done since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultStats {
    outcomes: [u64; FaultOutcome::COUNT],
    events: [u64; FaultEvent::COUNT],
}

impl FaultStats {
    /// Faults that ended so.
    pub const fn outcome(&self, outcome: FaultOutcome) -> u64 {
        self.outcomes[outcome.index()]
    }

    /// Times that it happened.
    pub const fn event(&self, event: FaultEvent) -> u64 {
        self.events[event as usize]
    }

    /// Faults that were served.
    pub fn served(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    /// Faults that needed input.
    pub fn major(&self) -> u64 {
        FaultOutcome::ALL
            .into_iter()
            .filter(|outcome| outcome.is_major())
            .map(|outcome| self.outcome(outcome))
            .sum()
    }

    /// Faults that were served from memory.
    pub fn minor(&self) -> u64 {
        self.served() - self.major()
    }
}

impl<P: Platform> Mm<'_, P> {
    /// What page faults have done since start.
    pub fn fault_stats(&self) -> FaultStats {
        self.faults.snapshot()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_cpus_add_up() {
        let counters = FaultCounters::new();
        for cpu in 0..MAX_CPUS + 1 {
            counters.note_outcome(cpu, FaultOutcome::AnonPage);
            counters.note(cpu, FaultEvent::FaultAround, 3);
        }
        counters.note_outcome(0, FaultOutcome::SwapMajor);
        let stats = counters.snapshot();
        let cpus = MAX_CPUS as u64 + 1;
        assert_eq!(stats.outcome(FaultOutcome::AnonPage), cpus);
        assert_eq!(stats.event(FaultEvent::FaultAround), 3 * cpus);
        assert_eq!((stats.major(), stats.minor()), (1, cpus));
    }

    #[test]
    fn numbers_are_places_in_the_tables() {
        for (index, outcome) in FaultOutcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome.index(), index);
        }
        for (index, event) in FaultEvent::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, index);
        }
    }
}
