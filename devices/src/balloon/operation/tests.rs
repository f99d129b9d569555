//! Resize operations against a clock moved by hand.

use proptest::prelude::*;

use super::*;

const LIMITS: ResizeLimits = ResizeLimits { stall_after: secs(5), deadline: Some(secs(60)) };
const TARGET: PageCount = PageCount::new(1000);

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn seen(actual: u64) -> Observation {
    Observation { actual: PageCount::new(actual), driver: DriverState::Ready, is_paused: false }
}

const fn paused(actual: u64) -> Observation {
    Observation { is_paused: true, ..seen(actual) }
}

const fn without_driver(actual: u64) -> Observation {
    Observation { driver: DriverState::Missing, ..seen(actual) }
}

fn begin(first: Observation) -> ResizeOperation {
    ResizeOperation::begin(1, TARGET, LIMITS, secs(100), first)
}

/// Looks whenever a look is due, and at `until`.
fn watch(operation: &mut ResizeOperation, until: Duration, seen: Observation) -> ResizeState {
    while let Some(check) = operation.next_check().filter(|check| *check < until) {
        operation.observe(check, seen);
    }
    operation.observe(until, seen)
}

#[test]
fn target_is_reached_exactly_and_for_good() {
    let mut operation = begin(seen(0));
    assert_eq!(operation.observe(secs(101), seen(999)), ResizeState::Running);
    assert_eq!(operation.observe(secs(102), seen(1000)), ResizeState::Reached);
    assert_eq!(operation.elapsed(), secs(2));
    assert_eq!(operation.observe(secs(500), seen(3)), ResizeState::Reached);
    operation.supersede(secs(501));
    assert_eq!((operation.state(), operation.actual()), (ResizeState::Reached, TARGET));
    assert_eq!((operation.next_check(), operation.note(StallNotes::BALLOON)), (None, None));
}

#[test]
fn target_that_is_met_already_is_reached_at_once() {
    assert_eq!(begin(seen(1000)).state(), ResizeState::Reached);
    assert_eq!(begin(without_driver(1000)).state(), ResizeState::Reached);
}

#[test]
fn no_progress_for_the_stall_time_stalls_with_the_deficit() {
    let mut operation = begin(seen(0));
    operation.observe(secs(102), seen(400));
    assert_eq!(operation.next_check(), Some(secs(102) + LIMITS.stall_after / STALL_LOOKS));
    assert_eq!(watch(&mut operation, secs(106), seen(400)), ResizeState::Running);
    assert_eq!(watch(&mut operation, secs(107), seen(400)), ResizeState::Stalled);
    assert_eq!(operation.deficit(), PageCount::new(600));
    assert_eq!((operation.since_progress(), operation.progressed_at()), (secs(5), secs(102)));
    assert_eq!(operation.note(StallNotes::BALLOON), Some("the guest gives no more memory"));
    // Only the deadline is left to wait for.
    assert_eq!(operation.next_check(), Some(secs(160)));
}

#[test]
fn stalled_operation_goes_on_when_the_guest_does() {
    let mut operation = begin(seen(0));
    assert_eq!(watch(&mut operation, secs(110), seen(0)), ResizeState::Stalled);
    assert_eq!(operation.observe(secs(111), seen(1)), ResizeState::Running);
    assert_eq!(watch(&mut operation, secs(115), seen(1)), ResizeState::Running);
    assert_eq!(watch(&mut operation, secs(116), seen(1)), ResizeState::Stalled);
    assert_eq!(operation.observe(secs(117), seen(1000)), ResizeState::Reached);
}

/// A host that stood still for longer than the stall time made an operation stall whose guest had had no time at all.
#[test]
fn time_in_which_nobody_looked_is_no_stall() {
    let mut operation = begin(seen(0));
    assert_eq!(operation.observe(secs(150), seen(0)), ResizeState::Running);
    assert_eq!(operation.since_progress(), secs(50));
    // The guest has seven eighths of its time left.
    assert_eq!(watch(&mut operation, secs(154), seen(0)), ResizeState::Running);
    assert_eq!(watch(&mut operation, secs(155), seen(0)), ResizeState::Stalled);
    // The deadline is the client's: it has passed.
    assert_eq!(operation.observe(secs(160), seen(0)), ResizeState::TimedOut);
}

#[test]
fn a_stall_time_of_zero_still_ends() {
    let limits = ResizeLimits { stall_after: Duration::ZERO, deadline: None };
    let mut operation = ResizeOperation::begin(1, TARGET, limits, secs(1), seen(0));
    assert_eq!(watch(&mut operation, secs(2), seen(0)), ResizeState::Stalled);
}

#[test]
fn moving_back_and_forth_is_no_progress() {
    let mut operation = begin(seen(500));
    for second in 101..=104 {
        let actual = if second % 2 == 0 { 500 } else { 244 };
        assert_eq!(watch(&mut operation, secs(second), seen(actual)), ResizeState::Running);
    }
    assert_eq!(watch(&mut operation, secs(105), seen(500)), ResizeState::Stalled);
}

#[test]
fn overshoot_is_not_the_target() {
    let mut operation = begin(seen(0));
    assert_eq!(operation.observe(secs(101), seen(1001)), ResizeState::Running);
    assert_eq!(watch(&mut operation, secs(107), seen(1001)), ResizeState::Stalled);
    assert_eq!(operation.note(StallNotes::BALLOON), Some("the guest takes no more memory back"));
    assert_eq!(operation.observe(secs(108), seen(1000)), ResizeState::Reached);
}

#[test]
fn deadline_ends_it_unless_the_target_is_reached_in_that_moment() {
    let mut operation = begin(seen(0));
    operation.observe(secs(159), seen(900));
    let mut lucky = operation.clone();
    assert_eq!(lucky.observe(secs(160), seen(1000)), ResizeState::Reached);
    assert_eq!(operation.observe(secs(160), seen(999)), ResizeState::TimedOut);
    assert_eq!(operation.observe(secs(161), seen(1000)), ResizeState::TimedOut);
    assert_eq!(operation.actual(), PageCount::new(999));
    assert_eq!(operation.elapsed(), secs(60));
}

#[test]
fn time_in_pause_does_not_stall_but_meets_the_deadline() {
    let mut operation = begin(seen(0));
    watch(&mut operation, secs(103), seen(0));
    operation.observe(secs(103), paused(0));
    assert_eq!(operation.note(StallNotes::BALLOON), Some("VM is paused"));
    assert_eq!(operation.next_check(), Some(secs(160)));
    assert_eq!(operation.observe(secs(150), paused(0)), ResizeState::Running);
    assert_eq!(operation.observe(secs(151), seen(0)), ResizeState::Running);
    // A person who asks when it last moved is told of the pause too.
    assert_eq!(operation.since_progress(), secs(51));
    assert_eq!(watch(&mut operation, secs(153), seen(0)), ResizeState::Stalled);
    assert_eq!(operation.observe(secs(160), paused(0)), ResizeState::TimedOut);
}

#[test]
fn target_set_while_paused_runs_on_after_resume() {
    let mut operation = begin(paused(0));
    assert_eq!(operation.observe(secs(130), paused(0)), ResizeState::Running);
    assert_eq!(operation.observe(secs(131), seen(0)), ResizeState::Running);
    assert_eq!(operation.observe(secs(132), seen(1000)), ResizeState::Reached);
}

#[test]
fn new_target_supersedes_at_that_moment() {
    let mut operation = begin(seen(0));
    operation.observe(secs(102), seen(10));
    operation.supersede(secs(103));
    assert_eq!(operation.state(), ResizeState::Superseded);
    assert_eq!((operation.elapsed(), operation.actual()), (secs(3), PageCount::new(10)));
    assert_eq!(operation.observe(secs(104), seen(1000)), ResizeState::Superseded);
}

#[test]
fn missing_driver_is_said_and_stalls() {
    let mut operation = begin(without_driver(0));
    assert_eq!(operation.note(StallNotes::BALLOON), Some("driver missing"));
    assert_eq!(watch(&mut operation, secs(105), without_driver(0)), ResizeState::Stalled);
    assert_eq!(operation.note(StallNotes::BALLOON), Some("driver missing"));
    let broken = Observation { driver: DriverState::NeedsReset, ..seen(0) };
    operation.observe(secs(106), broken);
    assert_eq!(operation.note(StallNotes::BALLOON), Some("device needs a reset"));
}

#[test]
fn driver_that_starts_over_makes_progress_again() {
    let mut operation = begin(seen(0));
    operation.observe(secs(101), seen(900));
    operation.observe(secs(102), without_driver(0));
    operation.observe(secs(104), seen(0));
    assert_eq!(operation.observe(secs(106), seen(100)), ResizeState::Running);
    assert_eq!((operation.since_progress(), operation.progressed_at()), (secs(0), secs(106)));
    assert_eq!(operation.observe(secs(110), seen(100)), ResizeState::Running);
}

#[test]
fn clock_that_steps_back_counts_as_no_time() {
    let mut operation = begin(seen(0));
    operation.observe(secs(103), seen(0));
    operation.observe(secs(50), seen(0));
    assert_eq!((operation.elapsed(), operation.since_progress()), (secs(3), secs(3)));
}

fn any_driver() -> impl Strategy<Value = DriverState> {
    use DriverState::{Missing, NeedsReset, Ready};
    prop_oneof![Just(Ready), Just(Missing), Just(NeedsReset)]
}

proptest! {
    #[test]
    fn ends_are_final_and_states_tell_the_truth(
        start in 0u64..2000,
        steps in prop::collection::vec((0u64..4, 900u64..1100, any_driver(), any::<bool>(), any::<bool>()), 1..60),
    ) {
        let mut operation = begin(seen(start));
        let mut now = 100;
        let mut end: Option<ResizeState> = operation.state().is_final().then_some(operation.state());
        for (step, actual, driver, is_paused, supersede) in steps {
            now += step;
            let seen = Observation { actual: PageCount::new(actual), driver, is_paused };
            let was_final = operation.state().is_final();
            if supersede && step == 3 {
                operation.supersede(secs(now));
            } else {
                operation.observe(secs(now), seen);
            }
            let state = operation.state();
            if let Some(end) = end {
                prop_assert_eq!(state, end);
            } else if state.is_final() {
                end = Some(state);
            }
            if !was_final {
                prop_assert_eq!(state == ResizeState::Reached, operation.deficit().is_zero() && state != ResizeState::Superseded);
                let is_late = operation.elapsed() >= secs(60);
                prop_assert!(!is_late || state.is_final());
                prop_assert!(state != ResizeState::TimedOut || is_late);
            }
            if let Some(check) = operation.next_check() {
                prop_assert!(!state.is_final());
                prop_assert!(check > secs(now) || is_paused || check >= secs(now));
            }
        }
    }

    #[test]
    fn checking_only_when_due_finds_every_stall_and_timeout(
        stall in 1u64..20, deadline in prop::option::of(1u64..50), progress in prop::collection::vec(1u64..30, 0..8),
    ) {
        let limits = ResizeLimits { stall_after: secs(stall), deadline: deadline.map(secs) };
        let mut operation = ResizeOperation::begin(1, TARGET, limits, secs(0), seen(0));
        let (mut now, mut actual) = (0, 0);
        for gap in progress {
            // Between two signs of progress, only due checks happen.
            let next = now + gap;
            let mut looks = 0;
            while let Some(check) = operation.next_check().filter(|check| *check < secs(next)) {
                operation.observe(check, seen(actual));
                looks += 1;
                prop_assert!(looks <= STALL_LOOKS + 1, "more looks than a stall and a deadline take");
            }
            let should_stall = gap > stall;
            let timed_out = deadline.is_some_and(|d| next > d);
            if !timed_out {
                prop_assert_eq!(operation.state() == ResizeState::Stalled, should_stall);
            }
            now = next;
            actual += 1;
            operation.observe(secs(now), seen(actual));
        }
    }
}
