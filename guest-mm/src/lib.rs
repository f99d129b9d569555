//! The memory manager of aerostat's guest: an executable form of where Linux's mm is heading.
//!
//! `no_std` and without a privileged instruction: it reaches the machine only
//! through [`platform::Platform`], so the same code runs in the guest, in the
//! simulated machine and under model checkers.
#![cfg_attr(not(any(test, loom)), no_std)]

#[cfg(not(loom))]
pub mod console;
pub mod platform;
pub mod store;
pub mod virtio;
