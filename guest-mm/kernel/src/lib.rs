//! What the guest kernel is made of, as far as it needs no machine: tested on the host.
#![cfg_attr(not(test), no_std)]

pub mod layout;
