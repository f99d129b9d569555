//! How a stock Linux guest ends, and that its ACPICA finds nothing wrong with the tables.
//!
//! The button is pressed by `stop` and by SendCtrlAltDel; in the guest the stock `button` driver notices and busybox's `acpid` acts.

use std::time::Duration;

use abi::platform::SCI_GSI;
use aerostat_api::machine::ActionType;
use system_tests::kvm::say_loudly;
use system_tests::linux::{LinuxConfig, LinuxGuest, images, linux_or_skip};

const RAM_BYTES: u64 = 128 << 20;
/// How long the guest may take after a `stop`; it needs a few seconds on the lab's emulated CPU.
const GRACE: Duration = Duration::from_secs(120);
/// A panic, by the kernel's own key for it.
const PANIC: &str = "echo c >/proc/sysrq-trigger";

fn linux() -> LinuxConfig<'static> {
    LinuxConfig::new(RAM_BYTES)
}

/// Starts a guest and waits until its `acpid` has opened the button's input device.
fn start(config: LinuxConfig<'_>) -> LinuxGuest {
    let guest = config.start();
    wait_for_acpid(&guest);
    guest
}

fn wait_for_acpid(guest: &LinuxGuest) {
    guest.ok("until ls -l /proc/$(pidof acpid)/fd | grep -q /dev/input/event; do sleep 0.1; done");
}

/// What the kernel says of the machine that this test is about.
fn check_tables(guest: &LinuxGuest) {
    let log = guest.ok("dmesg");
    let complaint = |line: &&str| {
        line.contains("ACPI")
            && ["rror", "arning", "BUG", "nvalid", "ailed"].iter().any(|word| line.contains(word))
    };
    assert_eq!(log.lines().find(complaint), None, "{log}");
    assert!(log.contains("ACPI: 1 ACPI AML tables successfully acquired and loaded"), "{log}");
    assert!(log.contains("(supports S0 S5)"), "{log}");
    let virtio = guest.ok("ls -d /sys/bus/platform/drivers/virtio-mmio/LNRO0005:* | wc -l");
    let windows = guest.ok("ls -d /sys/bus/acpi/devices/LNRO0005:* | wc -l");
    assert_eq!(virtio, windows, "every window is bound");
    assert_ne!(virtio.trim(), "0");
    guest.ok(
        "test -d /sys/bus/acpi/devices/PNP0501:00 && test -d /sys/bus/acpi/devices/QEMU0001:00",
    );
    guest.ok("test -d /sys/bus/platform/drivers/pvpanic-mmio/QEMU0001:00");
    let interrupts = guest.ok("cat /proc/interrupts");
    let sci = format!(" {SCI_GSI}-fasteoi");
    let line = interrupts.lines().find(|line| line.contains(&sci));
    assert!(line.is_some_and(|line| line.contains("acpi")), "{interrupts}");
}

#[test]
fn linux_powers_off_when_its_power_button_is_pressed_and_every_kernel_likes_the_tables() {
    if !linux_or_skip() {
        return;
    }
    for image in images() {
        let mut guest = start(linux().image(image));
        check_tables(&guest);
        guest.client().action(ActionType::SendCtrlAltDel).expect("the guest listens");
        assert_eq!(guest.wait_for_end(), Some(0), "{}", image.series);
        say_loudly(&format!("Linux {} powered off by its power button", image.series));
    }
}

/// A guest that has unloaded its button driver does not hear it; after a reboot it does again.
#[test]
fn a_linux_that_does_not_listen_is_said_so_and_a_rebooted_one_is_stopped_by_its_power_button() {
    if !linux_or_skip() {
        return;
    }
    let mut guest = start(linux().options(&["--on-reset", "reboot"]));
    guest.ok("killall acpid; while pidof acpid; do sleep 0.1; done; rmmod button");
    let refused = guest.client().action(ActionType::SendCtrlAltDel).expect_err("nobody listens");
    assert!(refused.to_string().contains("nobody there listens"), "{refused}");
    let before = guest.console_len();
    guest.send("reboot -f");
    guest.wait_for_ready(before);
    wait_for_acpid(&guest);
    check_tables(&guest);
    assert!(guest.client().stop(GRACE).expect("an answer").by_guest, "{}", guest.output());
    assert_eq!(guest.wait_for_end(), Some(0));
}

#[test]
fn reboot_of_linux_with_2_vcpus_ends_with_3() {
    if !linux_or_skip() {
        return;
    }
    let mut guest = linux().options(&["--vcpus", "2"]).start();
    assert_eq!(guest.number("nproc"), 2, "the MADT has both");
    guest.send("reboot -f");
    assert_eq!(guest.wait_for_end(), Some(3));
}

#[test]
fn a_panic_of_linux_ends_with_4_by_pvpanic() {
    if !linux_or_skip() {
        return;
    }
    let mut guest = linux().start();
    guest.send(PANIC);
    assert_eq!(guest.wait_for_end(), Some(4));
}

#[test]
fn a_panic_of_linux_without_pvpanic_is_a_reset_and_ends_with_3() {
    if !linux_or_skip() {
        return;
    }
    // The harness gives the kernel panic=-1.
    let mut guest = linux().start();
    guest.ok("rmmod pvpanic_mmio");
    guest.send(PANIC);
    assert_eq!(guest.wait_for_end(), Some(3));
}

#[test]
fn a_triple_fault_of_linux_ends_with_5() {
    if !linux_or_skip() {
        return;
    }
    let mut guest = linux().cmdline("reboot=triple").start();
    guest.send("reboot -f");
    assert_eq!(guest.wait_for_end(), Some(5));
}
