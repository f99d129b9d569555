//! Our guest on QEMU's microvm under KVM: QEMU's devices, nobody's special case.

use system_tests::kvm::kvm_or_skip;
use system_tests::qemu::courses::{
    a_cpu_that_does_not_come_is_left_out,
    a_device_that_insists_on_an_unknown_feature_costs_itself_only,
    a_panic_is_seen_by_the_panic_device, a_second_cpu_comes_up_and_holds,
    balloon_goes_and_comes_back_exactly, legacy_devices_are_skipped_by_name,
    offers_are_declined_and_nothing_changes,
};
use system_tests::qemu::{Accelerator, qemu_or_skip};

const KVM: Accelerator = Accelerator::Kvm;

#[test]
fn the_balloon_goes_to_the_half_and_back_exactly() {
    if kvm_or_skip() && qemu_or_skip() {
        balloon_goes_and_comes_back_exactly(KVM, 1);
    }
}

#[test]
fn the_balloon_goes_to_the_half_and_back_exactly_with_four_vcpus() {
    if kvm_or_skip() && qemu_or_skip() {
        balloon_goes_and_comes_back_exactly(KVM, 4);
    }
}

#[test]
fn packed_rings_and_other_offers_are_declined() {
    if kvm_or_skip() && qemu_or_skip() {
        offers_are_declined_and_nothing_changes(KVM);
    }
}

#[test]
fn legacy_devices_are_named_and_skipped() {
    if kvm_or_skip() && qemu_or_skip() {
        legacy_devices_are_skipped_by_name(KVM);
    }
}

#[test]
fn a_device_that_insists_costs_itself_only() {
    if kvm_or_skip() && qemu_or_skip() {
        a_device_that_insists_on_an_unknown_feature_costs_itself_only(KVM);
    }
}

#[test]
fn a_panic_reaches_the_panic_device() {
    if kvm_or_skip() && qemu_or_skip() {
        a_panic_is_seen_by_the_panic_device(KVM);
    }
}

#[test]
fn a_second_cpu_comes_up_and_is_stressed() {
    if kvm_or_skip() && qemu_or_skip() {
        a_second_cpu_comes_up_and_holds(KVM);
    }
}

#[test]
fn a_cpu_that_was_announced_and_does_not_come_is_left_out() {
    if kvm_or_skip() && qemu_or_skip() {
        a_cpu_that_does_not_come_is_left_out(KVM);
    }
}
