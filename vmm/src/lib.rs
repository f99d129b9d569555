//! The aerostat VMM: KVM, boot, memory slots, vCPUs, event loop, control server and CLI.

pub mod acpi;
mod agent;
pub mod boot;
pub mod cli;
pub mod control;
pub mod drive;
pub mod exit_code;
pub mod guest_image;
pub mod kvm;
mod line;
mod line_file;
mod logger;
pub mod serial;
pub mod serve;
pub mod vm;
