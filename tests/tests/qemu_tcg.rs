//! Our guest on QEMU's microvm without KVM: QEMU emulates the CPU too.

use system_tests::mutant::guest_image;
use system_tests::qemu::courses::{
    a_cpu_that_does_not_come_is_left_out,
    a_device_that_insists_on_an_unknown_feature_costs_itself_only,
    a_panic_is_seen_by_the_panic_device, a_second_cpu_comes_up_and_holds,
    balloon_goes_and_comes_back_exactly, legacy_devices_are_skipped_by_name,
    offers_are_declined_and_nothing_changes, run_to_the_end,
};
use system_tests::qemu::{Accelerator, QemuOptions, qemu_or_skip};
use system_tests::stress::SmpStress;

const TCG: Accelerator = Accelerator::Tcg;

#[test]
fn the_balloon_goes_to_the_half_and_back_exactly() {
    if qemu_or_skip() {
        balloon_goes_and_comes_back_exactly(TCG, 1);
    }
}

#[test]
fn the_balloon_goes_to_the_half_and_back_exactly_with_four_vcpus() {
    if qemu_or_skip() {
        balloon_goes_and_comes_back_exactly(TCG, 4);
    }
}

#[test]
fn packed_rings_and_other_offers_are_declined() {
    if qemu_or_skip() {
        offers_are_declined_and_nothing_changes(TCG);
    }
}

#[test]
fn legacy_devices_are_named_and_skipped() {
    if qemu_or_skip() {
        legacy_devices_are_skipped_by_name(TCG);
    }
}

#[test]
fn a_device_that_insists_costs_itself_only() {
    if qemu_or_skip() {
        a_device_that_insists_on_an_unknown_feature_costs_itself_only(TCG);
    }
}

#[test]
fn a_panic_reaches_the_panic_device() {
    if qemu_or_skip() {
        a_panic_is_seen_by_the_panic_device(TCG);
    }
}

#[test]
fn a_second_cpu_comes_up_and_is_stressed() {
    if qemu_or_skip() {
        a_second_cpu_comes_up_and_holds(TCG);
    }
}

#[test]
fn a_cpu_that_was_announced_and_does_not_come_is_left_out() {
    if qemu_or_skip() {
        a_cpu_that_does_not_come_is_left_out(TCG);
    }
}

/// The negative control of `smp-stress`. On a software KVM it cannot be found: there one vCPU's INVLPG drops the shadow
/// page's entry, and with it the translation of all. QEMU's emulated CPUs have a TLB each.
#[test]
fn a_flush_that_other_cpus_leave_undone_is_found() {
    if !qemu_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let kernel = dir.path().join("guest.elf");
    std::fs::write(&kernel, guest_image("no-remote-flush")).expect("a file in it");
    let options = QemuOptions {
        vcpus: 2,
        kernel: Some(kernel),
        cmdline: "cpus=2 exec=smp-stress,4 exec=poweroff",
        ..QemuOptions::new(TCG)
    };
    let (serial, _) = run_to_the_end(&options);
    assert!(serial.contains("smp-stress,4: exit 1"), "{serial}");
    let figures = SmpStress::of(&serial.lines().collect::<Vec<_>>());
    assert!(figures.figure("stale") > 0, "found as something else: {serial}");
}
