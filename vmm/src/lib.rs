//! The aerostat VMM: KVM, boot, memory slots, vCPUs, event loop, control server and CLI.

pub mod exit_code;
pub mod kvm;
pub mod guest_image;
pub mod vm;
