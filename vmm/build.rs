//! Builds the guest kernel with a nested cargo and embeds it.
//!
//! The guest has its own profile (never unwinds) and must not see the flags,
//! wrappers and profile overrides that the outer build was started with:
//! clippy's wrapper would rebuild it, coverage flags would not link.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const INPUTS: &[&str] =
    &["guest-mm", "devices/abi", "resources/guest.ld", "Cargo.toml", "Cargo.lock"];

/// Variables of the outer build that would change the guest's.
fn leaks_into_the_guest(name: &OsStr) -> bool {
    const NAMES: &[&str] = &[
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CLIPPY_ARGS",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET",
        "CARGO_BUILD_TARGET_DIR",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_INCREMENTAL",
    ];
    const PREFIXES: &[&str] = &[
        "CARGO_PROFILE_",
        "CARGO_FEATURE_",
        "CARGO_CFG_",
        "CARGO_PKG_",
        "CARGO_MANIFEST",
        "LLVM_PROFILE",
        "__CARGO",
    ];
    let name = name.to_string_lossy();
    NAMES.contains(&&*name)
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || (name.starts_with("CARGO_TARGET_") && name.ends_with("_RUSTFLAGS"))
}

/// Runs the nested cargo; on failure its messages are all that the user sees.
fn build_guest(root: &Path, target_dir: &Path) -> PathBuf {
    let cargo = env::var_os("CARGO").expect("cargo sets CARGO");
    let mut command = Command::new(cargo);
    command
        .current_dir(root)
        .args(["build", "--package", "guest-kernel", "--bin", "guest-kernel", "--profile", "guest"])
        .args(["--target", TARGET, "--locked", "--target-dir"])
        .arg(target_dir);
    for (name, _) in env::vars_os().filter(|(name, _)| leaks_into_the_guest(name)) {
        command.env_remove(name);
    }
    // The panic report walks frame pointers.
    command.env("RUSTFLAGS", "-C force-frame-pointers=yes").env("AEROSTAT_GUEST_IMAGE", "1");
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => {
            eprintln!("building the guest kernel failed: {status}");
            exit(1);
        }
        Err(error) => {
            eprintln!("cannot start cargo for the guest kernel: {error}");
            exit(1);
        }
    }
    target_dir.join(TARGET).join("guest/guest-kernel")
}

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let manifest =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let root = manifest.join("..");
    println!("cargo:rerun-if-changed=build.rs");
    for input in INPUTS {
        println!("cargo:rerun-if-changed={}", root.join(input).display());
    }
    // One directory beside the outer profiles, so that dev, release and clippy share one guest.
    let target_dir =
        out.ancestors().nth(4).expect("OUT_DIR lies in a target directory").join("guest-image");
    let built = build_guest(&root, &target_dir);
    let elf = out.join("guest-kernel.elf");
    std::fs::copy(&built, &elf).expect("cannot copy the guest kernel to OUT_DIR");
    println!("cargo:rustc-env=AEROSTAT_GUEST_ELF={}", elf.display());
}
