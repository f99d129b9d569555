//! Test support shared by the system tests: the simulated machine and the VM harness.

pub mod agent;
pub mod binary;
pub mod bzimage;
pub mod fuzzing;
pub mod host_memory;
pub mod kvm;
pub mod lab;
pub mod linux;
pub mod machine;
pub mod mock_vm;
pub mod mutant;
pub mod payload;
pub mod qemu;
pub mod qmp;
pub mod sim;
pub mod stress;
pub mod vm;
