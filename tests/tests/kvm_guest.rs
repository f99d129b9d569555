//! What the embedded guest promises of itself, on a real KVM.

use std::process::Stdio;

use abi::platform::{LEGACY_AREA_END, LEGACY_AREA_START};
use aerostat_api::guest::ExecRequest;
use system_tests::binary::aerostat;
use system_tests::kvm::kvm_or_skip;
use system_tests::vm::{TestVm, scaled};

/// Exit code of `aerostat run` when the guest panicked.
const GUEST_PANICKED: i32 = 4;
const MIB: u64 = 1 << 20;

#[test]
fn ring_3_can_neither_read_nor_write_what_is_the_nucleus_own() {
    if !kvm_or_skip() {
        return;
    }
    let vm = TestVm::start(64 * MIB, &[]);
    let lines = vm.exec_ok("protection", &[]);
    assert!(lines.iter().any(|line| line.ends_with("places tried, 0 wrong")), "{lines:?}");
}

/// Each of these vectors has a stack of its own, and the nucleus reports it without ring 3's help. The double fault comes
/// from a fault whose delivery faults; for the machine check, which a guest cannot cause, another vector is sent its way.
#[test]
fn nmi_double_fault_and_machine_check_are_reported_by_the_nucleus_and_end_the_guest() {
    if !kvm_or_skip() {
        return;
    }
    for (scenario, vector) in [("nmi", 2), ("double-fault", 8), ("machine-check", 18)] {
        let mut vm = TestVm::start(64 * MIB, &[]);
        let request = ExecRequest { scenario: scenario.to_owned(), args: Vec::new() };
        // The stream breaks off with the guest.
        let events = vm.client().exec(&request).map_or(0, Iterator::count);
        let status = vm.wait();
        let output = vm.output();
        assert_eq!(status.code(), Some(GUEST_PANICKED), "{events} events, {output}");
        let report = output.lines().find(|line| line.starts_with("nucleus: fatal trap"));
        let values = report.and_then(|line| line.split_once("= ")).expect("a report").1;
        let found = values.split(' ').nth(1).and_then(|word| u64::from_str_radix(word, 16).ok());
        assert_eq!(found, Some(vector), "{scenario}: {output}");
    }
}

/// Below, at and above the gap for devices, and sizes that end in the middle of everything: all of it is there but the legacy area.
#[test]
fn guests_of_odd_sizes_boot_and_their_books_agree() {
    if !kvm_or_skip() {
        return;
    }
    let small = [8 * MIB, 16 * MIB, 65 * MIB + 4096];
    let large = scaled(&[3072 * MIB, 3072 * MIB + 4096, 5120 * MIB][..], &[]);
    for bytes in small.iter().chain(large) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let output = aerostat()
            .args(["run", "--memory", &bytes.to_string()])
            .args(["--cmdline", "exec=touch,4M exec=census exec=verify exec=poweroff"])
            .arg("--api-sock")
            .arg(dir.path().join("vm.sock"))
            .stdin(Stdio::null())
            .output()
            .expect("the aerostat binary starts");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{bytes}: {text}");
        let legacy_area = LEGACY_AREA_END - LEGACY_AREA_START;
        let total = format!("total {} pages", (bytes - legacy_area) / 4096);
        for expected in [&total, "touch,4M: exit 0", "census: exit 0", "verify: exit 0"] {
            assert!(text.contains(expected), "{bytes}: no `{expected}` in\n{text}");
        }
    }
}
