//! Guest images with a deliberate fault: the negative controls of the stresses.

use std::fs;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::binary::workspace_root;

/// The guest image with the fault called `name` in it (`guest-mm/kernel/src/image/nucleus.rs`).
///
/// # Panics
/// If it cannot be built.
pub fn guest_image(name: &str) -> Vec<u8> {
    // One image at a time: the next one takes its place.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let test = std::env::current_exe().expect("a test has a path");
    let target = test.ancestors().nth(3).expect("tests lie in target/PROFILE/deps");
    // Test binaries run at once too.
    let target_dir = target.join("guest-mutants").join(name);
    let triple = "x86_64-unknown-linux-gnu";
    let mut build = Command::new(cargo);
    build
        .current_dir(workspace_root())
        .args(["build", "--package", "guest-kernel", "--bin", "guest-kernel", "--profile", "guest"])
        .args(["--target", triple, "--target-dir"])
        .arg(&target_dir)
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C force-frame-pointers=yes")
        .env("AEROSTAT_GUEST_IMAGE", "1")
        .env("AEROSTAT_NUCLEUS_MUTANT", name);
    let output = build.output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read(target_dir.join(triple).join("guest/guest-kernel")).expect("the image was built")
}
