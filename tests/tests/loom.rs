//! Runs the loom models of the lock-free parts: they need a build of their own.

use std::process::Command;

use system_tests::binary::workspace_root;
use system_tests::lab::inside_lab;

/// Test targets that hold models, and at least how many each must run.
///
/// The arguments of `cargo test`; the devices' few states are not worth an optimised build.
const MODELS: &[(&[&str], usize)] = &[
    (&["--package", "guest-mm", "--release", "--lib", "loom"], 8),
    (&["--package", "guest-mm", "--release", "--test", "loom_rcu"], 7),
    (&["--package", "guest-mm", "--release", "--test", "loom"], 8),
    (&["--package", "guest-mm", "--release", "--test", "loom_xarray"], 13),
    (&["--package", "guest-mm", "--release", "--test", "loom_mailbox"], 5),
    (&["--package", "guest-mm", "--release", "--test", "loom_gup"], 10),
    (&["--package", "guest-mm", "--release", "--test", "loom_folio"], 14),
    (&["--package", "guest-mm", "--release", "--test", "loom_sleeper"], 3),
    (&["--package", "guest-mm", "--release", "--test", "loom_migrate"], 8),
    (&["--package", "guest-mm", "--release", "--test", "loom_balloon"], 4),
    (&["--package", "devices", "--lib", "loom"], 3),
];

#[test]
fn lock_free_models_hold_under_loom() {
    if inside_lab() {
        return;
    }
    for (target, expected) in MODELS {
        let ran = run_models(target);
        assert!(ran >= *expected, "{target:?} ran {ran} models, fewer than {expected}");
    }
}

/// Runs the models of one target and returns how many passed.
///
/// `target`: the arguments that select it, then, for a library, the filter.
fn run_models(target: &[&str]) -> usize {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["test", "--locked"])
        .args(target)
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_TARGET_DIR", workspace_root().join("target/loom"))
        .current_dir(workspace_root())
        .output()
        .expect("cargo starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    text.lines().filter_map(passed).sum()
}

/// The number in `test result: ok. N passed; …`.
fn passed(line: &str) -> Option<usize> {
    line.strip_prefix("test result: ok. ")?.split_whitespace().next()?.parse().ok()
}
