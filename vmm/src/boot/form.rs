//! The forms in which kernels come.

use std::fmt;

use super::payload::Compression;

/// A form in which a kernel can be booted, or that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An ELF file, whatever its entry.
    Elf,
    /// An ELF file with a PVH note.
    ElfPvh,
    /// An ELF file that is entered in long mode, as Linux's 64-bit boot protocol says.
    Elf64,
    /// A Linux bzImage, whatever is done with it.
    BzImage,
    /// The ELF file inside a bzImage, decompressed here.
    Payload(Compression),
    /// The ELF file inside a bzImage, decompressed here, by its PVH note.
    PayloadPvh(Compression),
    /// The ELF file inside a bzImage, decompressed here, entered in long mode.
    Payload64(Compression),
    /// A bzImage by the 64-bit boot protocol; its own decompressor runs.
    BzImage64,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf => f.write_str("ELF"),
            Self::ElfPvh => f.write_str("ELF by PVH"),
            Self::Elf64 => f.write_str("ELF by the 64-bit protocol"),
            Self::BzImage => f.write_str("bzImage"),
            Self::Payload(compression) => write!(f, "bzImage's {compression} payload"),
            Self::PayloadPvh(compression) => write!(f, "bzImage's {compression} payload by PVH"),
            Self::Payload64(compression) => {
                write!(f, "bzImage's {compression} payload by the 64-bit protocol")
            }
            Self::BzImage64 => f.write_str("bzImage by the 64-bit protocol"),
        }
    }
}
