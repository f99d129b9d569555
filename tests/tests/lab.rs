//! The KVM tests and the demo once more, on a conforming hardware KVM.
//!
//! One boot of the lab runs everything; each line of its console that names a
//! test appears in this test's output.

use std::path::PathBuf;
use std::process::Command;

use system_tests::binary::workspace_root;
use system_tests::kvm::say_loudly;
use system_tests::lab::{LabRun, PACKAGES_MISSING, inside_lab};

/// Seconds that the whole suite may take on the emulated CPU.
const LIMIT_S: u32 = 900;

#[test]
fn kvm_tests_and_demo_pass_on_hardware_kvm() {
    if inside_lab() {
        return;
    }
    let tests = kvm_test_binaries();
    let mut lab = LabRun::new(LIMIT_S);
    let mut script = String::from("rc=0; /lab/aerostat demo || rc=1; ");
    for test in &tests {
        lab = lab.file(test);
        let name = test.file_name().and_then(|n| n.to_str()).expect("test binaries have names");
        script += &format!("/lab/{name} --test-threads 1 || rc=1; ");
    }
    script += "exit $rc";
    let outcome = lab.run(&script);
    if outcome.status == PACKAGES_MISSING {
        let required = std::env::var("KVM_TESTS").is_ok_and(|v| v == "required");
        assert!(!required, "KVM_TESTS=required, but: {}", outcome.complaints);
        say_loudly(&format!("SKIPPED: no hardware KVM tested: {}", outcome.complaints));
        return;
    }
    println!("{}", outcome.console);
    assert_eq!(outcome.status, 0, "{}\n{}", outcome.console, outcome.complaints);
    let suites = outcome.console.lines().filter(|l| l.starts_with("test result: ok.")).count();
    assert_eq!(suites, tests.len(), "not every suite reported:\n{}", outcome.console);
}

/// The executables of every `kvm_*` test of this package, built with the running profile.
fn kvm_test_binaries() -> Vec<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["test", "--package", "system-tests", "--test", "kvm_*", "--no-run"])
        .args(["--message-format", "json"])
        .current_dir(workspace_root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut found: Vec<PathBuf> = output
        .stdout
        .split(|&b| b == b'\n')
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["kind"][0] == "test")
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no kvm_* test found");
    found
}
