//! What the guest kernel is made of, as far as it needs no machine: tested on the host.
#![cfg_attr(not(test), no_std)]

pub mod clock;
pub mod cmdline;
pub mod direct_map;
pub mod entropy;
pub mod firmware;
pub mod layout;
pub mod level;
pub mod memory_map;
pub mod protocol;
pub mod scenario;
pub mod size;
pub mod start_info;
