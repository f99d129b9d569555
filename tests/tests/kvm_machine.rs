//! The machine around a guest, with kernels of a few instructions: how it ends, what its buses answer,
//! how it pauses, stops and reboots.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use abi::PageCount;
use abi::platform::VIRTIO_MMIO_SLOTS;
use aerostat::drive::DriveFile;
use aerostat::kvm::{Host, KvmKind};
use aerostat::vm::config::{BalloonConfig, DriveConfig, Kernel, OnReset, VmConfig};
use aerostat::vm::exit::{ExitReason, InternalCause};
use aerostat::vm::handle::{OperationState, VmError, VmRequest, VmState};
use aerostat::vm::{StartError, Vm};
use system_tests::kvm::kvm_or_skip;
use system_tests::machine::{config, start, start_with_input};
use system_tests::payload::{Payload, SCRATCH_GPA};
use system_tests::vm::wait_for;
use tokio::sync::oneshot;

const BALLOON_WINDOW: u32 = 0xd000_0000;

fn run(payload: Payload) -> (ExitReason, String) {
    start(config(&payload)).end()
}

#[test]
fn a_guest_that_powers_off_ends_cleanly_and_its_output_is_complete() {
    if !kvm_or_skip() {
        return;
    }
    let (reason, output) = run(Payload::new().print("bye").power_off());
    assert_eq!((&reason, reason.exit_code()), (&ExitReason::PowerOff, 0));
    assert_eq!(output, "bye");
}

#[test]
fn a_guest_that_resets_ends_the_vm() {
    if !kvm_or_skip() {
        return;
    }
    let (reason, _) = run(Payload::new().reset());
    assert_eq!((&reason, reason.exit_code()), (&ExitReason::Reset, 3));
}

#[test]
fn a_guest_that_panics_is_told_from_one_that_resets() {
    if !kvm_or_skip() {
        return;
    }
    let (reason, output) = run(Payload::new().print("panic: ").panic());
    assert_eq!((&reason, reason.exit_code()), (&ExitReason::GuestPanic, 4));
    assert_eq!(output, "panic: ");
}

#[test]
fn a_triple_fault_names_the_vcpu() {
    if !kvm_or_skip() {
        return;
    }
    let (reason, _) = run(Payload::new().triple_fault());
    assert!(matches!(reason, ExitReason::TripleFault { vcpu: 0, .. }), "{reason}");
    assert_eq!(reason.exit_code(), 5);
}

#[test]
fn an_instruction_that_a_software_kvm_lacks_is_reported_with_its_bytes() {
    if !kvm_or_skip() {
        return;
    }
    const POPCNT: [u8; 4] = [0xf3, 0x0f, 0xb8, 0xc0];
    let (reason, _) = run(Payload::new().raw(&POPCNT).power_off());
    match Host::open(1).expect("KVM").kind() {
        KvmKind::Hardware => assert_eq!(reason, ExitReason::PowerOff),
        KvmKind::Software => {
            let ExitReason::InternalError(error) = &reason else {
                panic!("expected an internal error: {reason}");
            };
            assert_eq!(error.cause, InternalCause::Suberror(1));
            assert_eq!(error.rip, Some(system_tests::payload::CODE_GPA));
            assert!(error.instruction.starts_with(&POPCNT), "{reason}");
            assert!(reason.to_string().contains("cannot run the kernel"), "{reason}");
            assert_eq!(reason.exit_code(), 6);
        }
    }
}

#[test]
fn an_empty_bus_reads_all_ones_and_a_virtio_window_its_magic() {
    if !kvm_or_skip() {
        return;
    }
    let payload = Payload::new()
        .in32(0x1234)
        .print_eax()
        .load32(0xc100_0000)
        .print_eax()
        .load32(BALLOON_WINDOW + 0x1000 * u32::from(VIRTIO_MMIO_SLOTS - 1))
        .print_eax()
        .load32(BALLOON_WINDOW)
        .print_eax()
        .power_off();
    let (reason, bytes) = start(config(&payload)).end_raw();
    assert_eq!(reason, ExitReason::PowerOff);
    assert_eq!(&bytes[..12], [0xff; 12]);
    assert_eq!(&bytes[12..], b"virt");
}

#[test]
fn hostile_register_accesses_are_survived_and_counted() {
    if !kvm_or_skip() {
        return;
    }
    let mut payload = Payload::new();
    for offset in [0x00, 0x50, 0x60, 0x64, 0x70, 0x100, 0xffc, 0xffe, 0xfff] {
        let gpa = BALLOON_WINDOW + offset;
        payload = payload.byte_accesses(gpa).word_accesses(gpa).load32(gpa);
        payload = payload.store32(gpa, 0xffff_ffff);
    }
    // DRIVER_OK out of nowhere, a kick of a queue that does not exist, num_pages.
    payload = payload
        .store32(BALLOON_WINDOW + 0x70, 4)
        .store32(BALLOON_WINDOW + 0x50, 0xdead_beef)
        .store32(BALLOON_WINDOW + 0x100, 1)
        .print("alive")
        .spin();
    let vm = start(config(&payload)).printed("alive");
    let balloon = vm.ask(VmRequest::Balloon).expect("a balloon");
    assert_eq!((balloon.target, balloon.actual), (PageCount::ZERO, PageCount::ZERO));
    assert!(!balloon.driver_ready);
    let metrics = vm.ask(VmRequest::Metrics).expect("metrics");
    let odd = "device=\"balloon\",event=\"access_odd\"";
    let odd = metrics.iter().find(|metric| metric.labels == odd);
    assert!(odd.is_some_and(|metric| metric.value > 0.0), "odd accesses are counted");
    assert_eq!(vm.stop().0, ExitReason::Stopped { by_guest: false });
}

#[test]
fn a_paused_guest_prints_nothing_until_it_is_resumed() {
    if !kvm_or_skip() {
        return;
    }
    // Prints for ever: mov dx, COM1; mov al, '.'; out dx, al; jmp back to the out.
    let payload = Payload::new().out8(0x3f8, b'.').raw(&[0xee, 0xeb, 0xfd]);
    let mut config = config(&payload);
    config.vcpus = 4;
    let vm = start(config);
    let written = || {
        let metrics = vm.ask(VmRequest::Metrics).expect("metrics");
        let name = "aerostat_serial_written_bytes_total";
        metrics.iter().find(|metric| metric.name == name).expect("a metric").value
    };
    wait_for("output", || (written() > 0.0).then_some(()));
    for _ in 0..20 {
        vm.ask(VmRequest::Pause).expect("paused");
        vm.ask(VmRequest::Pause).expect("paused already");
        assert_eq!(vm.ask(VmRequest::Info).expect("an answer").state, VmState::Paused);
        let before = written();
        thread::sleep(Duration::from_millis(2));
        assert_eq!(written(), before, "a paused guest does not run");
        vm.ask(VmRequest::Resume).expect("running");
        wait_for("more output", || (written() > before).then_some(()));
    }
    assert_eq!(vm.stop().0, ExitReason::Stopped { by_guest: false });
}

/// A vCPU that has not noticed a resume never leaves the gate, and so does not report a second time
/// that it waits there: the pause after such a resume was never answered.
#[test]
fn a_pause_right_after_a_resume_is_answered() {
    if !kvm_or_skip() {
        return;
    }
    let vm = start(config(&Payload::new().spin()));
    for _ in 0..100 {
        vm.ask(VmRequest::Pause).expect("paused");
        let (resumed, _unheard) = oneshot::channel();
        vm.handle().post(VmRequest::Resume(resumed)).expect("the VM lives");
        let (reply, mut answer) = oneshot::channel();
        vm.handle().post(VmRequest::Pause(reply)).expect("the VM lives");
        wait_for("the second pause", || answer.try_recv().ok()).expect("paused");
        assert_eq!(vm.ask(VmRequest::Info).expect("an answer").state, VmState::Paused);
        vm.ask(VmRequest::Resume).expect("running");
    }
    assert_eq!(vm.stop().0, ExitReason::Stopped { by_guest: false });
}

#[test]
fn a_paused_vm_can_be_stopped() {
    if !kvm_or_skip() {
        return;
    }
    let vm = start(config(&Payload::new().spin()));
    vm.ask(VmRequest::Pause).expect("paused");
    assert_eq!(vm.stop().0, ExitReason::Stopped { by_guest: false });
}

/// A guest that cannot be asked was answered for before its vCPUs had stopped and its disks were flushed.
#[test]
fn a_stop_is_answered_when_the_disks_are_complete_and_free() {
    if !kvm_or_skip() {
        return;
    }
    let image = tempfile::NamedTempFile::new().expect("a scratch file");
    image.as_file().set_len(1 << 20).expect("room");
    let drive = DriveConfig {
        id: "disk".to_owned(),
        path: image.path().to_owned(),
        is_read_only: false,
        is_root_device: false,
    };
    for _ in 0..10 {
        let drives = vec![drive.clone()];
        let vm = start(VmConfig { drives, ..config(&Payload::new().spin()) });
        DriveFile::open(image.path(), false).expect_err("the VM has it");
        vm.ask(|reply| VmRequest::Stop { timeout: Duration::ZERO, reply }).expect("the VM answers");
        DriveFile::open(image.path(), false).expect("the VM has let go of it");
        vm.end();
    }
}

#[test]
fn a_target_without_a_driver_stalls_and_says_why_and_a_later_one_supersedes_it() {
    if !kvm_or_skip() {
        return;
    }
    let mut config = config(&Payload::new().spin());
    config.balloon =
        Some(BalloonConfig { stall_after: Duration::from_millis(10), ..BalloonConfig::default() });
    let vm = start(config);
    let set = |pages: u64| {
        vm.ask(|reply| VmRequest::SetBalloonTarget {
            target: PageCount::new(pages),
            deadline: None,
            reply,
        })
    };
    let get = |id| vm.ask(|reply| VmRequest::Operation { id, reply }).expect("a balloon");
    assert_eq!(get(None), None);
    let begun = set(256).expect("a possible target");
    assert_eq!((begun.id, begun.state), (1, OperationState::Running));
    wait_for("the stall", || {
        (get(Some(1)).expect("known").state == OperationState::Stalled).then_some(())
    });
    assert_eq!(get(None).expect("known").note, Some("driver missing"));
    assert_eq!(set(128).expect("a possible target").id, 2);
    assert_eq!(get(Some(1)).expect("remembered").state, OperationState::Superseded);
    let ram_bytes = 8 << 20;
    assert_eq!(
        set((ram_bytes >> 12) + 1),
        Err(VmError::TargetAboveRam { target_bytes: ram_bytes + 4096, ram_bytes })
    );
    assert_eq!(
        vm.ask(VmRequest::Balloon).expect("a balloon").target,
        PageCount::new(128),
        "the refused one changed nothing"
    );
    vm.stop();
}

#[test]
fn a_reboot_empties_ram_and_keeps_the_target() {
    if !kvm_or_skip() {
        return;
    }
    // Prints what RAM held at boot, changes it, resets.
    let payload =
        Payload::new().load32(SCRATCH_GPA).raw(&[0x04, b'0', 0x66, 0xba, 0xf8, 0x03, 0xee]);
    let payload = payload.store32(SCRATCH_GPA, 7).reset();
    let mut config = config(&payload);
    config.on_reset = OnReset::Reboot;
    config.balloon = Some(BalloonConfig { target: PageCount::new(64), ..BalloonConfig::default() });
    let vm = start(config).printed("000");
    assert_eq!(vm.ask(VmRequest::Balloon).expect("a balloon").target, PageCount::new(64));
    let (reason, output) = vm.stop();
    assert_eq!(reason, ExitReason::Stopped { by_guest: false });
    assert!(output.bytes().all(|byte| byte == b'0'), "{output}");
}

#[test]
fn serial_input_reaches_the_guest_in_order_however_long_it_is() {
    if !kvm_or_skip() {
        return;
    }
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let (reader, mut writer) =
        (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)));
    let payload = Payload::new().echo_until_q().power_off();
    let vm = start_with_input(config(&payload), Some(reader));
    let text: String = ('a'..='p').cycle().take(1000).collect();
    writer.write_all(text.as_bytes()).expect("write");
    writer.write_all(b"q").expect("write");
    let (reason, output) = vm.end();
    assert_eq!(reason, ExitReason::PowerOff);
    assert_eq!(output, text + "q");
}

#[test]
fn input_from_a_regular_file_reaches_the_guest() {
    if !kvm_or_skip() {
        return;
    }
    let mut input = tempfile::tempfile().expect("a temporary file");
    input.write_all(&[b'x'; 200]).expect("write");
    input.write_all(b"q").expect("write");
    input.rewind().expect("rewind");
    let payload = Payload::new().echo_until_q().power_off();
    let (reason, output) = start_with_input(config(&payload), Some(input)).end();
    assert_eq!((reason, output.len()), (ExitReason::PowerOff, 201));
}

#[test]
fn memory_that_the_host_cannot_give_is_refused_with_both_sizes() {
    if !kvm_or_skip() {
        return;
    }
    let mut config = config(&Payload::new());
    config.memory_bytes = 64 << 30;
    config.prefault = true;
    let error = Vm::build(config).err().expect("this test needs a host of less than 64 GiB");
    assert!(matches!(error, StartError::Ram(_)), "{error}");
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains(&(64u64 << 30).to_string()), "{error}");
}

#[test]
fn a_kernel_that_cannot_boot_is_a_bad_argument_with_the_reason() {
    if !kvm_or_skip() {
        return;
    }
    let build = |kernel: Vec<u8>| {
        let config =
            VmConfig { kernel: Kernel::Image(Arc::from(kernel)), ..config(&Payload::new()) };
        let error = Vm::build(config).err().expect("this is no kernel");
        assert_eq!(error.exit_code(), 2);
        assert!(matches!(error, StartError::Boot(_)), "{error}");
        error
    };
    let error = build(b"#!/bin/sh\n".to_vec()).to_string();
    assert!(error.contains("no ELF file") && error.contains("no bzImage"), "{error}");
    let mut elf = Payload::new().elf();
    elf.truncate(elf.len() - 1);
    let error = build(elf).to_string();
    assert!(error.contains("ELF: truncated, a segment ends at"), "{error}");
}

#[test]
fn nothing_is_left_open_after_a_vm_has_ended() {
    if !kvm_or_skip() {
        return;
    }
    let owned = || {
        let names = std::fs::read_dir("/proc/self/fd").expect("procfs").filter_map(|entry| {
            let target = std::fs::read_link(entry.ok()?.path()).ok()?;
            target.to_str().map(str::to_owned)
        });
        names.filter(|name| name.contains("kvm-v")).count()
    };
    // Other tests of this process have VMs of their own: wait for a moment without.
    run(Payload::new().power_off());
    wait_for("all VM and vCPU files to be closed", || (owned() == 0).then_some(()));
}
