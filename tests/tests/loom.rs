//! Runs the loom models of the lock-free parts: they need a build of their own.

use std::process::Command;

use system_tests::binary::workspace_root;

#[test]
fn lock_free_models_hold_under_loom() {
    if std::env::var_os("AEROSTAT_BIN").is_some() {
        eprintln!("skipped: no cargo here (AEROSTAT_BIN is set)");
        return;
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["test", "--package", "guest-mm", "--release", "--lib", "--", "loom"])
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_TARGET_DIR", workspace_root().join("target/loom"))
        .current_dir(workspace_root())
        .output()
        .expect("cargo starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let ran = text
        .lines()
        .filter(|l| l.starts_with("test result: ok."))
        .any(|l| !l.contains(" 0 passed"));
    assert!(ran, "no loom model ran:\n{text}");
}
