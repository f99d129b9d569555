//! The embedded guest kernel.

/// The guest kernel's ELF file, built by this package's build script: static, with a PVH note, for any VMM that
/// loads such files.
pub static GUEST_ELF: &[u8] = include_bytes!(env!("AEROSTAT_GUEST_ELF"));
