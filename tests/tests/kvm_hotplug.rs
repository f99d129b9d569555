//! Hotplug memory, host-observable: our guest plugs it, uses it and gives it back.
//!
//! The host's memory is read from `/proc` by the test itself, never from what the VMM claims.

use std::time::Duration;

use aerostat_api::balloon::DriverState;
use aerostat_api::machine::RunState;
use system_tests::kvm::kvm_or_skip;
use system_tests::vm::{TestVm, scaled, wait_for};

const MIB: u64 = 1 << 20;
const RAM: u64 = 64 * MIB;
/// Another size than RAM's, by which its mapping is found.
const REGION: u64 = 384 * MIB;

fn start(options: &[&str]) -> TestVm {
    let region = REGION.to_string();
    let vm = TestVm::start(RAM, &[&["--hotplug-memory", &region], options].concat());
    wait_for("the driver", || {
        let status = vm.client().hotplug_status().expect("an answer");
        (status.driver == DriverState::Ready).then_some(())
    });
    vm
}

/// What metric `name`, with its labels, says.
fn metric(vm: &TestVm, name: &str) -> u64 {
    let metrics = vm.client().metrics().expect("an answer");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}: {metrics}"))
}

fn event(vm: &TestVm, event: &str) -> u64 {
    metric(vm, &format!("aerostat_hotplug_events_total{{event=\"{event}\"}}"))
}

fn plugged(vm: &TestVm) -> u64 {
    vm.client().hotplug_status().expect("an answer").plugged_bytes
}

#[test]
fn memory_plugged_while_the_guest_runs_is_used_and_given_back() {
    if !kvm_or_skip() {
        return;
    }
    let vm = start(&[]);
    assert_eq!(vm.hotplug_host_bytes(REGION), 0, "a region that nobody has touched costs nothing");
    vm.resize_hotplug(64 * MIB);
    assert_eq!(event(&vm, "plugged_blocks"), 32);
    // Everything that the guest can get: more than its RAM.
    vm.exec_ok("touch", &["all"]);
    let held = vm.hotplug_host_bytes(REGION);
    assert!((60 * MIB..=64 * MIB).contains(&held), "{held} B of 64 MiB are held");
    let told = vm.client().hotplug_status().expect("an answer").host_resident_bytes;
    assert_eq!(told, Some(held), "VMM and kernel agree");
    vm.resize_hotplug(0);
    assert_eq!(vm.hotplug_host_bytes(REGION), 0, "all of it is given back");
    vm.exec_ok("verify", &[]);
    vm.exec_ok("census", &[]);
    for reason in ["errors", "busies", "chain_bad", "release_failed"] {
        assert_eq!(event(&vm, reason), 0, "{reason}");
    }
    assert_eq!(metric(&vm, "aerostat_hotplug_unplugged_accesses_total"), 0);
}

#[test]
fn memory_comes_and_goes_many_times_on_a_memfd() {
    if !kvm_or_skip() {
        return;
    }
    let vm = start(&["--backing", "memfd"]);
    let before = vm.host_bytes("memfd");
    for _ in 0..scaled(3, 1) {
        for mib in [128, 32, 96, 2, 0] {
            vm.resize_hotplug(mib * MIB);
            assert_eq!(plugged(&vm), mib * MIB);
        }
    }
    vm.exec_ok("census", &[]);
    let after = vm.host_bytes("memfd");
    assert!(after <= before + 8 * MIB, "{before} B before, {after} B after");
    assert_eq!(event(&vm, "errors"), 0);
}

#[test]
fn a_paused_guest_plugs_when_it_runs_again() {
    if !kvm_or_skip() {
        return;
    }
    let vm = start(&[]);
    vm.client().set_run_state(RunState::Paused).expect("it can pause");
    vm.client().update_hotplug_memory(32).expect("a valid size");
    let operation = vm.client().hotplug_operation(None).expect("an answer").expect("it began");
    assert_eq!((operation.actual_bytes, operation.note.as_deref()), (0, Some("VM is paused")));
    vm.client().set_run_state(RunState::Resumed).expect("it can resume");
    wait_for("32 MiB", || (plugged(&vm) == 32 * MIB).then_some(()));
}

#[test]
fn blocks_that_are_slots_work_as_well() {
    if !kvm_or_skip() {
        return;
    }
    let region = format!("{REGION},slot=2M");
    let vm = TestVm::start(RAM, &["--hotplug-memory", &region]);
    vm.resize_hotplug(64 * MIB);
    vm.exec_ok("touch", &["all"]);
    vm.resize_hotplug(0);
    assert_eq!(vm.hotplug_host_bytes(REGION), 0);
    vm.exec_ok("census", &[]);
}

/// The store of the balloon ended where the RAM of the start did, and with the first plugged page in its way the balloon grew no more.
///
/// What it holds in a block that goes moves to another frame: inflated there, deflated here.
#[test]
fn plugged_memory_goes_into_the_balloon_and_ballooned_pages_move_out_when_it_is_unplugged() {
    balloon_plugged_memory(&[]);
}

/// The bitmap ended where the RAM of the start did still: with a plugged page in its way the balloon tried that one again and again.
#[test]
fn plugged_memory_goes_into_a_balloon_whose_store_is_a_bitmap() {
    balloon_plugged_memory(&["--cmdline", "balloon.store=bitmap"]);
}

fn balloon_plugged_memory(options: &[&str]) {
    if !kvm_or_skip() {
        return;
    }
    let vm = start(options);
    vm.resize_hotplug(128 * MIB);
    vm.exec_ok("touch", &["all"]);
    let full = vm.hotplug_host_bytes(REGION);
    vm.resize(40 * MIB);
    let ballooned = full - vm.hotplug_host_bytes(REGION);
    assert!(ballooned >= 8 * MIB, "{ballooned} B of plugged memory are in the balloon");
    // There are no zones: a page of a slab, one of the balloon's own store for instance, may keep its piece, and with it the tables.
    let left = match vm.try_resize_hotplug(0, Duration::from_secs(20)) {
        Ok(_) => 0,
        Err(stuck) => stuck.actual_bytes,
    };
    assert!(left <= 16 * MIB, "{left} B stay");
    let region = vm.hotplug_host_bytes(REGION);
    assert!(region <= left, "{region} B are held for {left} B");
    // The region's mapping is large enough to count as RAM here.
    let held = vm.host_bytes("anon");
    assert!(held <= RAM + left - 40 * MIB, "{held} B are held beside a balloon of 40 MiB");
    vm.exec_ok("census", &[]);
    vm.resize(0);
    vm.exec_ok("touch", &["all"]);
    vm.exec_ok("census", &[]);
}
