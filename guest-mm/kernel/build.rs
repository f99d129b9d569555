//! Turns the binary into the guest image when the VMM's build asks for it.
//!
//! An environment variable rather than a feature or a profile decides, so that
//! `--all-features`, `--all-targets` and any profile still build the host stub.

use std::env;

fn main() {
    println!("cargo:rustc-check-cfg=cfg(guest_image)");
    println!("cargo:rerun-if-env-changed=AEROSTAT_GUEST_IMAGE");
    println!("cargo:rerun-if-env-changed=AEROSTAT_NUCLEUS_MUTANT");
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("AEROSTAT_GUEST_IMAGE").is_none() {
        return;
    }
    println!("cargo:rustc-cfg=guest_image");
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let script = format!("{manifest}/../../resources/guest.ld");
    println!("cargo:rerun-if-changed={script}");
    for arg in [
        "-nostartfiles",
        "-nodefaultlibs",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,max-page-size=4096",
    ] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    println!("cargo:rustc-link-arg-bins=-Wl,-T{script}");
}
