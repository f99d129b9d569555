//! Our guest on QEMU's microvm, with QEMU's own devices, driven over QMP and the agent port.

pub mod courses;
mod machine;

pub use machine::{Accelerator, QemuGuest, QemuOptions};

use std::path::{Path, PathBuf};

use crate::kvm::say_loudly;

/// What gives a Debian system QEMU.
const INSTALL: &str = "apt-get install --no-install-recommends qemu-system-x86";

/// Path of `qemu-system-x86_64`: `AEROSTAT_QEMU`, else the search path, else where packages put it.
pub fn qemu_path() -> Option<PathBuf> {
    let is_file = |path: &PathBuf| path.is_file();
    if let Some(named) = std::env::var_os("AEROSTAT_QEMU") {
        return Some(PathBuf::from(named)).filter(is_file);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/bin")])
        .map(|dir| dir.join("qemu-system-x86_64"))
        .find(is_file)
}

/// Whether there is a QEMU here; if not, says so loudly.
///
/// # Panics
/// Where there is none and `KVM_TESTS=required` is set: a skip would then be a lie.
pub fn qemu_or_skip() -> bool {
    if qemu_path().is_some() {
        return true;
    }
    let required = std::env::var("KVM_TESTS").is_ok_and(|v| v == "required");
    assert!(!required, "KVM_TESTS=required, but there is no qemu-system-x86_64: {INSTALL}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    say_loudly(&format!("SKIPPED {test}: no qemu-system-x86_64: {INSTALL}"));
    false
}

/// QEMU, and what its microvm reads when it starts: firmware, and the ROM that boots a PVH kernel. QEMU looks for them
/// where its own place leads it, so that a copy has to keep their places.
pub fn qemu_files() -> impl Iterator<Item = PathBuf> {
    let data = ["qboot.rom", "bios-microvm.bin", "pvh.bin", "linuxboot_dma.bin", "kvmvapic.bin"];
    let data = data.map(|name| Path::new("/usr/share/qemu").join(name));
    qemu_path().into_iter().chain(data).filter(|path| path.is_file())
}
