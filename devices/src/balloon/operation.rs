//! How a resize operation stands: a state machine over what is observed, and when.
//!
//! Pure: it knows no clock, no device and no client. Whoever owns it feeds it
//! an [`Observation`] whenever something changed (the driver wrote `actual`,
//! the VM was paused or resumed, the driver came or went) and whenever
//! [`ResizeOperation::next_check`] is due.
//!
//! ```text
//!            progress                    reached, timed out, superseded: ends;
//!           ┌────────┐                   nothing changes them any more
//! Running ──┴▶ Running ──▶ Reached
//!    │ no progress for the stall time
//!    ▼
//! Stalled ──▶ Running (progress), Reached, TimedOut, Superseded
//! ```
//!
//! *Stalled* is where a waiting client stops waiting, but the target stands
//! and the driver may still get there.
//!
//! The stall time is counted in looks: no single one adds more than a part of
//! it, however long ago the one before was. A host that stood still for
//! minutes, or gave this process no CPU, gave the guest none either; after it
//! the guest still has nearly all of its time.

use std::time::Duration;

use abi::PageCount;

/// Looks that a stall takes at least.
const STALL_LOOKS: u32 = 8;

/// What is seen of the balloon at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// Pages that the driver says are in the balloon.
    pub actual: PageCount,
    /// Whether a driver works on it.
    pub driver: DriverState,
    /// Whether the vCPUs are stopped.
    pub is_paused: bool,
}

/// Whether a driver works on the balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverState {
    /// No driver has set DRIVER_OK since the last reset.
    Missing,
    /// A driver runs.
    Ready,
    /// The device can go on only after a reset.
    NeedsReset,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeState {
    /// The driver is at it.
    Running,
    /// `actual` is the target.
    Reached,
    /// No progress for the stall time.
    Stalled,
    /// The deadline passed first.
    TimedOut,
    /// A later target took its place.
    Superseded,
}

impl ResizeState {
    /// Whether the operation is over.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Reached | Self::TimedOut | Self::Superseded => true,
            Self::Running | Self::Stalled => false,
        }
    }
}

/// How long an operation may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResizeLimits {
    /// Without progress for so long it has stalled. Not counted: time in which the VM was paused, and
    /// what one look finds to have passed beyond an eighth of this.
    pub stall_after: Duration,
    /// After so long it has timed out, paused or not: a promise to the client, not to the guest.
    pub deadline: Option<Duration>,
}

/// Why a resize goes no further, as a person would say it of this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StallNotes {
    /// `actual` stays below the target.
    pub below: &'static str,
    /// `actual` stays above the target.
    pub above: &'static str,
}

impl StallNotes {
    /// Of a balloon.
    pub const BALLOON: Self = Self {
        below: "the guest gives no more memory",
        above: "the guest takes no more memory back",
    };
    /// Of hotplug memory, where `actual` is what is plugged.
    pub const HOTPLUG: Self =
        Self { below: "the guest plugs no more memory", above: "the guest unplugs no more memory" };
}

/// A resize operation, from a target to its end.
#[derive(Debug, Clone)]
pub struct ResizeOperation {
    id: u64,
    from: PageCount,
    target: PageCount,
    limits: ResizeLimits,
    state: ResizeState,
    started: Duration,
    /// When it was last observed; the end once it is over.
    now: Duration,
    seen: Observation,
    /// The smallest distance to the target since the driver last came.
    nearest: u64,
    /// Time since progress as far as it counts: without pauses and without time in which nobody looked.
    idle: Duration,
    /// When progress was last seen, by the caller's clock.
    progressed_at: Duration,
}

impl ResizeOperation {
    /// Begins at `now`; may have reached its target at once.
    ///
    /// `now`, here and below: any clock that does not go back; a step back counts as no time.
    pub fn begin(
        id: u64,
        target: PageCount,
        limits: ResizeLimits,
        now: Duration,
        seen: Observation,
    ) -> Self {
        let mut operation = Self {
            id,
            from: seen.actual,
            target,
            limits,
            state: ResizeState::Running,
            started: now,
            now,
            seen,
            nearest: distance(seen.actual, target),
            idle: Duration::ZERO,
            progressed_at: now,
        };
        operation.state = operation.judge();
        operation
    }

    /// Takes in what is seen at `now`; returns the state.
    ///
    /// The time since the last observation counts as it was then: paused if
    /// the VM was paused.
    pub fn observe(&mut self, now: Duration, seen: Observation) -> ResizeState {
        if self.state.is_final() {
            return self.state;
        }
        self.pass_time(now);
        let distance = distance(seen.actual, self.target);
        // A driver that has come back starts from an empty balloon: measured against what the
        // one before had reached, its work would not count as progress.
        let driver_changed = seen.driver != self.seen.driver;
        if distance < self.nearest {
            self.idle = Duration::ZERO;
            self.progressed_at = self.now;
            self.state = ResizeState::Running;
        }
        self.nearest = if driver_changed { distance } else { self.nearest.min(distance) };
        self.seen = seen;
        self.state = self.judge();
        self.state
    }

    /// Ends the operation because another target has been set, unless it is over already.
    pub fn supersede(&mut self, now: Duration) {
        if !self.state.is_final() {
            self.pass_time(now);
            self.state = ResizeState::Superseded;
        }
    }

    /// When to observe again even if nothing is heard: the next part of the stall time, or the deadline; `None` if
    /// neither can come.
    pub fn next_check(&self) -> Option<Duration> {
        if self.state.is_final() {
            return None;
        }
        let deadline = self.limits.deadline.map(|limit| self.started.saturating_add(limit));
        let may_stall = self.state == ResizeState::Running && !self.seen.is_paused;
        let left = self.limits.stall_after.saturating_sub(self.idle).min(self.most_per_look());
        let stall = may_stall.then(|| self.now.saturating_add(left));
        deadline.into_iter().chain(stall).min()
    }

    fn pass_time(&mut self, now: Duration) {
        if !self.seen.is_paused {
            let passed = now.saturating_sub(self.now).min(self.most_per_look());
            self.idle = self.idle.saturating_add(passed);
        }
        self.now = self.now.max(now);
    }

    /// What one look may add to the time without progress.
    fn most_per_look(&self) -> Duration {
        // Never 0, which would count nothing for ever.
        (self.limits.stall_after / STALL_LOOKS).max(Duration::from_nanos(1))
    }

    /// The state by what is known now. Reaching the target beats the deadline.
    fn judge(&self) -> ResizeState {
        if self.seen.actual == self.target {
            return ResizeState::Reached;
        }
        if self.limits.deadline.is_some_and(|limit| self.elapsed() >= limit) {
            return ResizeState::TimedOut;
        }
        if self.idle >= self.limits.stall_after && !self.seen.is_paused {
            return ResizeState::Stalled;
        }
        self.state
    }

    /// Its number.
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Where it stands, as of the last observation.
    pub const fn state(&self) -> ResizeState {
        self.state
    }

    /// `actual` when it began.
    pub const fn from(&self) -> PageCount {
        self.from
    }

    /// The size asked for.
    pub const fn target(&self) -> PageCount {
        self.target
    }

    /// `actual` as last observed, or at the end.
    pub const fn actual(&self) -> PageCount {
        self.seen.actual
    }

    /// Pages between `actual` and the target: the deficit of an operation that has stalled.
    pub const fn deficit(&self) -> PageCount {
        PageCount::new(distance(self.seen.actual, self.target))
    }

    /// From the beginning to the last observation, or to the end.
    pub const fn elapsed(&self) -> Duration {
        self.now.saturating_sub(self.started)
    }

    /// Since `actual` last came nearer to the target, or since the beginning; pauses count here.
    pub const fn since_progress(&self) -> Duration {
        self.now.saturating_sub(self.progressed_at)
    }

    /// When `actual` last came nearer to the target than before, by the caller's clock; the beginning if never.
    pub const fn progressed_at(&self) -> Duration {
        self.progressed_at
    }

    /// What holds the operation up, for a person.
    pub const fn note(&self, notes: StallNotes) -> Option<&'static str> {
        if self.state.is_final() && !matches!(self.state, ResizeState::TimedOut) {
            return None;
        }
        if self.seen.is_paused {
            return Some("VM is paused");
        }
        match self.seen.driver {
            DriverState::Missing => Some("driver missing"),
            DriverState::NeedsReset => Some("device needs a reset"),
            DriverState::Ready => match self.state {
                ResizeState::Stalled | ResizeState::TimedOut => Some(self.stall_note(notes)),
                ResizeState::Running | ResizeState::Reached | ResizeState::Superseded => None,
            },
        }
    }

    const fn stall_note(&self, notes: StallNotes) -> &'static str {
        if self.seen.actual.get() < self.target.get() { notes.below } else { notes.above }
    }
}

const fn distance(actual: PageCount, target: PageCount) -> u64 {
    actual.get().abs_diff(target.get())
}

#[cfg(test)]
mod tests;
