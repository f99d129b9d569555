//! Bodies of the fuzz targets: what a driver can do to a device, and a file to the loader, from bytes.
//!
//! Each takes arbitrary bytes, acts them out and panics if an invariant breaks.
//! The fuzz targets (`tests/fuzz`) and the replay of committed seeds
//! (`tests/tests/fuzz_replay.rs`) call the same functions. Nothing here depends
//! on time, threads or addresses of the host, so an input always does the same.

mod balloon;
mod block;
mod console;
mod entropy;
mod input;
mod kernel;
mod machine;
mod mem;
mod ring;
mod transport;

/// One fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name of the target and of the directory of its seeds.
    pub name: &'static str,
    /// Acts an input out.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: [Target; 8] = [
    Target { name: "transport", run: transport::run },
    Target { name: "ring", run: ring::run },
    Target { name: "console", run: console::run },
    Target { name: "balloon", run: balloon::run },
    Target { name: "entropy", run: entropy::run },
    Target { name: "block", run: block::run },
    Target { name: "mem", run: mem::run },
    Target { name: "kernel", run: kernel::run },
];

/// Acts `data` out on the target called `name`.
///
/// # Panics
/// If there is no such target, or an invariant breaks.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of this name").run)(data);
}
