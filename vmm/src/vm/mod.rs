//! A running virtual machine and the handle that commands it.

pub mod handle;
