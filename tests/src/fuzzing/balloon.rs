//! The balloon, with a host that changes its mind about the target.

use std::sync::Arc;
use std::time::Duration;

use abi::PageCount;
use devices::balloon::{Balloon, BalloonOptions, ReleaseMode};
use devices::clock::Clock;
use devices::ram::GuestRam;

use super::input::Input;
use super::machine::{Machine, RINGS_END};

/// Pages of the machine's RAM.
const RAM_PAGES: PageCount = PageCount::new(0x30);

/// A clock that stands still: what a balloon does never depends on time.
struct Standstill;

impl Clock for Standstill {
    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

/// Acts an input out; afterwards every buffer has been returned, and nothing
/// outside RAM was released.
pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let how = input.u8();
    let options = BalloonOptions {
        must_tell_host: how & 1 != 0,
        deflate_on_oom: how & 2 != 0,
        release: if how & 4 != 0 { ReleaseMode::Deferred } else { ReleaseMode::Inline },
    };
    let balloon = Balloon::new(RAM_PAGES, options, Arc::new(Standstill));
    let mut machine = Machine::new(balloon, release, &mut input);
    machine.act(&mut input, |machine, input| {
        let pages = PageCount::new(input.u16().into());
        let balloon = machine.transport.device_mut();
        let possible = balloon.set_target(pages).is_ok();
        assert_eq!(possible, pages <= RAM_PAGES);
        machine.transport.config_changed();
        check(machine);
    });
    check(&mut machine);
    for queue in 0..2 {
        let left = machine.outstanding(queue);
        assert!(left.is_none_or(|heads| heads == 0), "queue {queue} kept {left:?}");
    }
}

/// What the VMM's worker does with a deferred release.
fn release(machine: &mut Machine<Balloon>) {
    if let Some(job) = machine.transport.device_mut().take_release() {
        machine.transport.device_mut().release_done(job.run());
    }
}

fn check(machine: &mut Machine<Balloon>) {
    let balloon = machine.transport.device();
    assert!(balloon.actual() <= RAM_PAGES && balloon.ballooned() <= RAM_PAGES);
    for run in machine.ram.discards() {
        let inside = machine.ram.ram_ranges().iter().any(|ram| ram.contains_range(run));
        assert!(inside, "{run:?} was released and is not RAM");
        // A guest that gives its own rings away has zeroed them.
        machine.tampered |= run.start().gpa() < RINGS_END;
    }
}
