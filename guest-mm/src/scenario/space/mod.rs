//! Scenarios of address spaces: calls, their contents, and other CPUs meanwhile.

pub(super) mod fork_cow;
pub(super) mod mprotect;
pub(super) mod mremap;
pub(super) mod mremap_test;
