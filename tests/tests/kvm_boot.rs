//! Every form of kernel file, really entered by KVM: kernels of a few instructions print how they were
//! entered and what they were told.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use aerostat::kvm::{Host, KvmKind};
use aerostat::vm::config::{Kernel, OnReset, VmConfig};
use aerostat::vm::exit::ExitReason;
use system_tests::binary::aerostat;
use system_tests::bzimage::{BzImage, Packing};
use system_tests::host_memory::mappings;
use system_tests::kvm::kvm_or_skip;
use system_tests::machine::{config, start, start_with_input};
use system_tests::payload::Payload;

const INITRD: &[u8] = b"RAMdisk of a few bytes";

/// Boots `file` with an initrd and a command line; the text that it prints, after it has powered off.
fn boot(file: Vec<u8>) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let initrd = dir.path().join("initrd");
    fs::write(&initrd, INITRD).expect("a file");
    let (reason, output) = start(VmConfig {
        kernel: Kernel::Image(Arc::from(file)),
        initrd: Some(initrd),
        cmdline: Some(String::from("word=1")),
        // These kernels are so small that every KVM runs them.
        allow_software_kvm: true,
        ..config(&Payload::new())
    })
    .end();
    assert_eq!(reason, ExitReason::PowerOff, "{output:?}");
    output
}

/// Prints `K`, then the first bytes of command line and initrd, from PVH's start info.
fn pvh() -> Payload {
    let payload = Payload::new().print_mode();
    // `mov ebp, ebx` and `mov ebx, ebp`: the start info is needed twice.
    let payload = payload.raw(&[0x89, 0xdd]).follow_start_info(24).load_start_info(0).print_eax();
    let payload = payload.raw(&[0x89, 0xeb]).follow_start_info(16).follow_start_info(0);
    payload.load_start_info(0).print_eax().power_off()
}

/// Prints `L` and the same from Linux's zero page.
fn linux_64() -> Payload {
    let payload = Payload::new().print_mode();
    // `mov ebp, esi` and `mov esi, ebp`.
    let payload = payload.raw(&[0x89, 0xf5]).follow_zero_page(0x228).load_zero_page(0).print_eax();
    let payload = payload.raw(&[0x89, 0xee]).follow_zero_page(0x218).load_zero_page(0).print_eax();
    payload.power_off()
}

/// A kernel that must not be the one that runs.
fn wrong() -> Vec<u8> {
    Payload::new().print("wrong").power_off().code()
}

#[test]
fn an_elf_with_a_pvh_note_is_entered_in_protected_mode() {
    if kvm_or_skip() {
        assert_eq!(boot(pvh().elf()), "KwordRAMd");
    }
}

#[test]
fn an_elf_without_one_is_entered_in_long_mode() {
    if kvm_or_skip() {
        assert_eq!(boot(linux_64().elf_without_pvh()), "LwordRAMd");
    }
}

#[test]
fn the_elf_inside_a_bzimage_runs_instead_of_its_decompressor() {
    if !kvm_or_skip() {
        return;
    }
    for packing in [Packing::Lz4, Packing::Gzip] {
        let image = |elf: &[u8]| BzImage::new(&wrong(), &packing.pack(elf)).file();
        assert_eq!(boot(image(&pvh().elf())), "KwordRAMd", "{packing:?}");
        assert_eq!(boot(image(&linux_64().elf_without_pvh())), "LwordRAMd", "{packing:?}");
    }
}

#[test]
fn a_bzimage_that_is_not_decompressed_here_runs_its_own_code() {
    if !kvm_or_skip() {
        return;
    }
    let image = BzImage::new(&linux_64().code(), &Packing::Xz.pack(&pvh().elf()));
    assert_eq!(boot(image.file()), "LwordRAMd");
}

#[test]
fn everything_below_4_gib_is_mapped_at_a_64_bit_entry() {
    if !kvm_or_skip() {
        return;
    }
    // The first virtio-mmio window says "virt"; `mov esi, 0xd0000000` clears the upper half of RSI.
    let window = Payload::new().raw(&[0xbe]).raw(&0xd000_0000u32.to_le_bytes());
    let payload = window.load_zero_page(0).print_eax().power_off();
    assert_eq!(boot(payload.elf_without_pvh()), "virt");
}

#[test]
fn a_reboot_loads_kernel_and_initrd_again() {
    if !kvm_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let initrd = dir.path().join("initrd");
    fs::write(&initrd, INITRD).expect("a file");
    let print = Payload::new().follow_zero_page(0x218).load_zero_page(0).print_eax();
    // `mov dword [rsi], 0`: what is printed next has been read from the file again.
    let payload = print.raw(&[0xc7, 0x06, 0, 0, 0, 0]).reset();
    let vm = start(VmConfig {
        kernel: Kernel::Image(Arc::from(payload.elf_without_pvh())),
        initrd: Some(initrd.clone()),
        on_reset: OnReset::Reboot,
        ..config(&Payload::new())
    });
    fs::remove_file(initrd).expect("it is open");
    let (_, output) = vm.printed("RAMdRAMdRAMd").stop();
    assert!(output.starts_with("RAMdRAMdRAMd"), "{output}");
}

#[test]
fn a_reboot_does_not_mind_who_else_has_the_old_machine_open() {
    if !kvm_or_skip() {
        return;
    }
    let (input, mut keys) = std::io::pipe().expect("a pipe");
    let payload = Payload::new().print("up").echo_until_q().reset();
    let config = VmConfig { on_reset: OnReset::Reboot, ..config(&payload) };
    let vm = start_with_input(config, Some(fs::File::from(OwnedFd::from(input)))).printed("up");
    // So does a child between its fork and its exec.
    let _open = duplicates_of("anon_inode:kvm-vm");
    keys.write_all(b"q").expect("the VM reads");
    let (_, output) = vm.printed("upqup").stop();
    assert!(output.starts_with("upqup"), "{output}");
}

/// Second descriptors of all files of this process that are called `name`.
fn duplicates_of(name: &str) -> Vec<OwnedFd> {
    let all = fs::read_dir("/proc/self/fd").expect("a directory").flatten();
    let found: Vec<OwnedFd> = all
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|file| file == Path::new(name)))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        // SAFETY: `dup` takes a number and touches no memory; what it returns is ours alone.
        .map(|fd| unsafe { libc::dup(fd) })
        .filter(|&fd| fd >= 0)
        // SAFETY: a new descriptor that nobody else knows.
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .collect();
    assert!(!found.is_empty(), "no {name} is open");
    found
}

/// The allocator used to keep megabytes of it, where a start had given all back.
#[test]
fn a_reboot_gives_back_the_memory_in_which_the_kernel_was_decompressed() {
    if !kvm_or_skip() {
        return;
    }
    const RAM: u64 = 32 << 20;
    let mut elf = Payload::new().print("up").echo_until_q().reset().elf();
    // Noise that no segment has, but every decompression makes.
    let mut state = 1u64;
    elf.extend((0..6 << 20).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_le_bytes()[7]
    }));
    let image = BzImage::new(&wrong(), &Packing::Lz4.pack(&elf));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("vmlinuz");
    fs::write(&file, image.with(0x260, &(16u32 << 20).to_le_bytes()).file()).expect("a file");
    let mut command = aerostat();
    command.args(["run", "--memory", "32M", "--allow-software-kvm", "--on-reset", "reboot"]);
    command.arg("--kernel").arg(&file).arg("--api-sock").arg(dir.path().join("sock"));
    let mut vm = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("aerostat");
    let (mut input, mut output) =
        (vm.stdin.take().expect("piped"), vm.stdout.take().expect("piped"));
    let mut expect = |text: &str| {
        let mut seen = vec![0; text.len()];
        output.read_exact(&mut seen).expect("the VM lives");
        assert_eq!(String::from_utf8_lossy(&seen), text);
    };
    let private = || -> u64 {
        let all = mappings(vm.id()).expect("its smaps");
        all.iter().filter(|m| !m.is_ram(RAM)).map(|m| m.private_dirty).sum()
    };
    expect("up");
    let before = private();
    for _ in 0..2 {
        input.write_all(b"q").expect("the VM reads");
        expect("qup");
    }
    // The guest runs again a moment before the last of it is given back.
    let mut grown = private().saturating_sub(before);
    let patience = Instant::now() + Duration::from_secs(10);
    while grown >= 1 << 20 && Instant::now() < patience {
        thread::sleep(Duration::from_millis(20));
        grown = private().saturating_sub(before);
    }
    vm.kill().expect("it still runs");
    vm.wait().expect("its end");
    assert!(grown < 1 << 20, "grew by {grown} B from {before} B");
}

/// `aerostat run` with `kernel` as its file: exit code, standard output and error.
fn run(kernel: &Payload, options: &[&str]) -> (Option<i32>, String, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("vmlinuz");
    let payload = Packing::Lz4.pack(&kernel.elf_without_pvh());
    fs::write(&file, BzImage::new(&wrong(), &payload).file()).expect("a file");
    let mut command = aerostat();
    command.args(["run", "--memory", "8M", "--kernel"]).arg(&file).args(options);
    command.arg("--api-sock").arg(dir.path().join("sock")).stdin(Stdio::null());
    let output = command.output().expect("the aerostat binary starts");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn is_software_kvm() -> bool {
    Host::open(1).expect("KVM").kind() == KvmKind::Software
}

/// A stock kernel is silent there for five minutes before it meets an instruction that is not interpreted.
#[test]
fn a_software_kvm_refuses_linux_at_once_and_a_hardware_kvm_runs_it() {
    if !kvm_or_skip() {
        return;
    }
    let kernel = Payload::new().print("ran").power_off();
    for options in [&[][..], &["--check"]] {
        let (code, said, complaint) = run(&kernel, options);
        if is_software_kvm() {
            assert_eq!((code, &*said), (Some(6), ""), "{complaint}");
            for part in ["software KVM", "bzImage's lz4 payload", "--allow-software-kvm"] {
                assert!(complaint.contains(part), "{complaint:?} lacks {part:?}");
            }
        } else {
            assert_eq!(code, Some(0), "{complaint}");
            assert!(said.starts_with("ran") || said.contains("bzImage's lz4 payload"), "{said}");
        }
    }
}

/// The refusal used to name an option that `serve` had not.
#[test]
fn serve_starts_linux_on_a_software_kvm_for_who_insists() {
    if !kvm_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (kernel, file) = (dir.path().join("vmlinuz"), dir.path().join("vm.json"));
    fs::write(&kernel, Payload::new().print("ran").power_off().elf_like_linux()).expect("a file");
    let json = format!(
        r#"{{"boot-source":{{"kernel_image_path":{kernel:?}}},"machine-config":{{"vcpu_count":1,"mem_size_mib":8}}}}"#
    );
    fs::write(&file, json).expect("a file");
    let serve = |options: &[&str]| {
        let mut command = aerostat();
        command.args(["serve", "--no-api", "--config-file"]).arg(&file).args(options);
        let output = command.stdin(Stdio::null()).output().expect("the aerostat binary starts");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(serve(&["--allow-software-kvm"]), (Some(0), String::from("ran")));
    if is_software_kvm() {
        assert_eq!(serve(&[]), (Some(6), String::new()));
    }
}

#[test]
fn who_insists_sees_what_a_software_kvm_does() {
    if !kvm_or_skip() {
        return;
    }
    let insist = &["--allow-software-kvm"];
    let (code, said, complaint) = run(&Payload::new().print("ran").power_off(), insist);
    assert_eq!((code, &*said), (Some(0), "ran"), "{complaint}");
    // What ends a stock kernel there: `xrstor64 [rdi]`. A real CPU faults, as nobody has set CR4.OSXSAVE.
    let (code, _, complaint) = run(&Payload::new().raw(&[0x48, 0x0f, 0xae, 0x2f]), insist);
    if is_software_kvm() {
        assert_eq!(code, Some(6), "{complaint}");
        for part in ["KVM_EXIT_INTERNAL_ERROR", "RIP 0x100000", "48 0f ae 2f", "software KVM"] {
            assert!(complaint.contains(part), "{complaint:?} lacks {part:?}");
        }
    } else {
        assert_eq!(code, Some(5), "{complaint}");
    }
}
