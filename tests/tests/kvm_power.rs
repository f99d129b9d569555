//! Power management with kernels of a few instructions: the power button, its interrupt, and what a reboot forgets.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::Duration;

use abi::platform::{
    IOAPIC_BASE, LOCAL_APIC_BASE, PM1A_CONTROL_PORT, PM1A_ENABLE_PORT, PM1A_STATUS_PORT, SCI_GSI,
};
use aerostat::vm::config::OnReset;
use aerostat::vm::exit::ExitReason;
use aerostat::vm::handle::{VmError, VmRequest};
use system_tests::kvm::kvm_or_skip;
use system_tests::machine::{Running, config, start, start_with_input};
use system_tests::payload::Payload;
use tokio::sync::oneshot;

/// PWRBTN_STS and PWRBTN_EN.
const POWER_BUTTON: u16 = 1 << 8;
/// Any vector, and the word of the local APIC's IRR that has it as its lowest bit.
const VECTOR: u32 = 0x40;
const IRR: u32 = LOCAL_APIC_BASE + 0x200 + VECTOR / 32 * 0x10;
/// Redirection entry: level-triggered.
const LEVEL: u32 = 1 << 15;
/// Redirection entry: masked.
const MASKED: u32 = 1 << 16;

/// Longer than any guest here needs; the guest ends first.
const GRACE: Duration = Duration::from_secs(60);

trait Steps {
    fn enable_power_button(self) -> Self;
    fn redirect_sci(self, entry: u32) -> Self;
}

impl Steps for Payload {
    fn enable_power_button(self) -> Self {
        self.out16(PM1A_ENABLE_PORT, POWER_BUTTON)
    }

    /// Writes the lower half of the SCI's redirection entry; the upper half is zero: the boot vCPU.
    fn redirect_sci(self, entry: u32) -> Self {
        self.store32(IOAPIC_BASE, 0x10 + 2 * SCI_GSI).store32(IOAPIC_BASE + 0x10, entry)
    }
}

/// Turns the local APIC on; the vCPU takes no interrupts, so that one stays to be seen in IRR.
fn with_local_apic() -> Payload {
    Payload::new().store32(LOCAL_APIC_BASE + 0xf0, 0x1ff)
}

fn stop(vm: &Running) -> bool {
    vm.ask(|reply| VmRequest::Stop { timeout: GRACE, reply }).expect("the VM answers")
}

/// Asks for a stop, and does not wait for the answer.
fn post_stop(vm: &Running) -> oneshot::Receiver<Result<bool, VmError>> {
    let (reply, answer) = oneshot::channel();
    vm.handle().post(VmRequest::Stop { timeout: GRACE, reply }).expect("the VM lives");
    answer
}

#[test]
fn a_stop_presses_the_power_button_of_a_guest_that_has_enabled_it() {
    if !kvm_or_skip() {
        return;
    }
    let payload = Payload::new()
        .enable_power_button()
        .print("armed")
        .wait_port16(PM1A_STATUS_PORT, POWER_BUTTON)
        .out16(PM1A_STATUS_PORT, POWER_BUTTON)
        .in32(PM1A_STATUS_PORT)
        .print_eax()
        .power_off();
    let vm = start(config(&payload)).printed("armed");
    assert!(stop(&vm), "the guest powered off by itself");
    let (reason, output) = vm.end_raw();
    assert_eq!((&reason, reason.exit_code()), (&ExitReason::Stopped { by_guest: true }, 0));
    assert_eq!(output, b"armed\0\0\0\x01", "the status is cleared, the enable bit stays");
}

#[test]
fn a_guest_that_has_not_enabled_the_power_button_is_ended_without_a_wait() {
    if !kvm_or_skip() {
        return;
    }
    let payload = Payload::new().out16(PM1A_ENABLE_PORT, !POWER_BUTTON).print("deaf").spin();
    let vm = start(config(&payload)).printed("deaf");
    assert_eq!(vm.ask(VmRequest::PressPowerButton), Err(VmError::NoPowerButton));
    assert!(!stop(&vm));
    assert_eq!(vm.end().0, ExitReason::Stopped { by_guest: false });
}

#[test]
fn a_press_alone_waits_for_nothing_and_the_guest_may_power_off() {
    if !kvm_or_skip() {
        return;
    }
    let payload = Payload::new()
        .enable_power_button()
        .print("armed")
        .wait_port16(PM1A_STATUS_PORT, POWER_BUTTON)
        .power_off();
    let vm = start(config(&payload)).printed("armed");
    vm.ask(VmRequest::Pause).expect("paused");
    assert_eq!(vm.ask(VmRequest::PressPowerButton), Err(VmError::Paused));
    vm.ask(VmRequest::Resume).expect("running");
    assert_eq!(vm.ask(VmRequest::PressPowerButton), Ok(()));
    assert_eq!(vm.end().0, ExitReason::PowerOff);
}

/// A kernel that powers off disables the button first: whoever asks again then must not end it.
#[test]
fn a_second_stop_does_not_cut_short_a_guest_that_is_powering_off() {
    if !kvm_or_skip() {
        return;
    }
    let payload = Payload::new()
        .enable_power_button()
        .print("armed")
        .wait_port16(PM1A_STATUS_PORT, POWER_BUTTON)
        .out16(PM1A_ENABLE_PORT, 0)
        .print("; off soon")
        .echo_until_q()
        .power_off();
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let reader = File::from(OwnedFd::from(reader));
    let vm = start_with_input(config(&payload), Some(reader)).printed("armed");
    let first = post_stop(&vm);
    let vm = vm.printed("off soon");
    let second = post_stop(&vm);
    writer.write_all(b"q").expect("write");
    assert_eq!(first.blocking_recv(), Ok(Ok(true)));
    assert_eq!(second.blocking_recv(), Ok(Ok(true)));
    assert_eq!(vm.end().0, ExitReason::Stopped { by_guest: true });
}

#[test]
fn a_press_asserts_the_system_control_interrupt() {
    if !kvm_or_skip() {
        return;
    }
    let payload = with_local_apic()
        .redirect_sci(LEVEL | VECTOR)
        .enable_power_button()
        .load32(IRR)
        .print_eax()
        .print("armed")
        .wait_memory32(IRR)
        .print_eax()
        .power_off();
    let vm = start(config(&payload)).printed("armed");
    assert!(stop(&vm));
    assert_eq!(vm.end_raw().1, b"\0\0\0\0armed\x01\0\0\0");
}

/// A pulse would be lost here: the line must stay asserted until the guest has seen to it.
#[test]
fn a_press_while_the_interrupt_is_masked_is_delivered_when_it_is_unmasked() {
    if !kvm_or_skip() {
        return;
    }
    let payload = with_local_apic()
        .redirect_sci(LEVEL | MASKED | VECTOR)
        .enable_power_button()
        .print("armed")
        .wait_port16(PM1A_STATUS_PORT, POWER_BUTTON)
        .load32(IRR)
        .print_eax()
        .redirect_sci(LEVEL | VECTOR)
        .wait_memory32(IRR)
        .print_eax()
        .power_off();
    let vm = start(config(&payload)).printed("armed");
    assert!(stop(&vm));
    assert_eq!(vm.end_raw().1, b"armed\0\0\0\0\x01\0\0\0");
}

#[test]
fn a_reboot_forgets_who_listened_to_the_power_button() {
    if !kvm_or_skip() {
        return;
    }
    // Prints status and enable, enables, resets; each boot says the same.
    let payload = Payload::new().in32(PM1A_STATUS_PORT).print_eax().enable_power_button().reset();
    let mut config = config(&payload);
    config.on_reset = OnReset::Reboot;
    let vm = start(config).printed("\0\0\0\0\0\0\0\0\0\0\0\0");
    let (_, output) = vm.stop();
    assert!(output.bytes().all(|byte| byte == 0), "{output:?}");
}

#[test]
fn hostile_accesses_to_power_management_are_survived() {
    if !kvm_or_skip() {
        return;
    }
    // Bytes, words and dwords of ones everywhere but in the control register's upper byte, and a string of
    // words: mov esi, code; mov ecx, 8; mov dx, status; rep outsw.
    let string = [0xbe, 0, 0, 0x10, 0, 0xb9, 8, 0, 0, 0, 0x66, 0xba, 0, 6, 0xf3, 0x66, 0x6f];
    let mut payload = Payload::new();
    for port in PM1A_STATUS_PORT..=PM1A_CONTROL_PORT {
        payload = payload.out8(port, 0xff).in32(port);
    }
    for port in [PM1A_STATUS_PORT, PM1A_ENABLE_PORT] {
        payload = payload.out16(port, 0xffff).in32(port + 3);
    }
    let vm = start(config(&payload.raw(&string).print("alive").spin())).printed("alive");
    // It has enabled everything, the power button too, and never answers.
    assert_eq!(vm.stop().0, ExitReason::Stopped { by_guest: false });
}
