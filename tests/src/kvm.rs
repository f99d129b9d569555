//! Whether this machine can run the KVM tests.

use std::io::Write as _;

/// Whether a KVM test can run here; if not, says so loudly.
///
/// # Panics
/// Where there is no usable `/dev/kvm` and `KVM_TESTS=required` is set: a skip would then be a lie.
pub fn kvm_or_skip() -> bool {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let Err(error) = opened else { return true };
    let required = std::env::var("KVM_TESTS").is_ok_and(|v| v == "required");
    assert!(!required, "KVM_TESTS=required, but /dev/kvm cannot be opened: {error}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    say_loudly(&format!("SKIPPED {test}: /dev/kvm cannot be opened: {error}"));
    false
}

/// Prints a line that the test harness does not capture, as it does with `eprintln!` in a test that passes.
pub fn say_loudly(line: &str) {
    // Nobody is left to tell if standard error is gone.
    writeln!(std::io::stderr(), "{line}").ok();
}
