//! Our guest on QEMU's microvm without KVM: QEMU emulates the CPU too.

use system_tests::qemu::courses::{
    a_device_that_insists_on_an_unknown_feature_costs_itself_only,
    a_panic_is_seen_by_the_panic_device, balloon_goes_and_comes_back_exactly,
    legacy_devices_are_skipped_by_name, offers_are_declined_and_nothing_changes,
};
use system_tests::qemu::{Accelerator, qemu_or_skip};

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
