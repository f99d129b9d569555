//! A machine without RAM: enough for locks, read sections and models.
#![allow(unreachable_pub, reason = "part of several test binaries")]

use std::ptr::NonNull;

use abi::Pfn;
use guest_mm::platform::Platform;

#[cfg(loom)]
use loom::thread;
#[cfg(not(loom))]
use std::thread;

/// A machine whose every frame number is wrong.
#[derive(Debug, Default)]
pub struct NoRam;

// SAFETY: `frame_ptr` never returns.
unsafe impl Platform for NoRam {
    fn frame_ptr(&self, pfn: Pfn) -> NonNull<u8> {
        panic!("{pfn} is no frame: this platform has no RAM")
    }

    fn frame_of(&self, _address: usize) -> Option<Pfn> {
        None
    }

    fn cpu(&self) -> usize {
        0
    }

    fn irq_save(&self) -> bool {
        false
    }

    fn irq_restore(&self, _was_masked: bool) {}

    fn now_ns(&self) -> u64 {
        0
    }

    fn relax(&self) {
        thread::yield_now();
    }
}
