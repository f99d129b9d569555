//! Linux bzImages made by hand: a setup header, 64-bit code in the place of the decompressor, and a payload.
//!
//! Source: Linux Documentation/arch/x86/boot.rst.

use std::io::Write;

/// Where the protected-mode part asks to be loaded.
pub const LOAD_GPA: u64 = 0x20_0000;
/// `init_size` of an image that says nothing else.
pub const INIT_SIZE: u32 = 0x20_0000;
/// One setup sector after the boot sector.
const KERNEL_OFFSET: usize = 2 * 512;
/// The 64-bit entry in the protected-mode part.
const ENTRY: usize = 0x200;

/// How a payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Legacy frame, as the kernel's build makes it.
    Lz4,
    /// With its own trailer.
    Gzip,
    /// Only the first bytes of such a file.
    Zstd,
    /// Only the first bytes of such a file.
    Xz,
}

impl Packing {
    /// All.
    pub const ALL: [Self; 4] = [Self::Lz4, Self::Gzip, Self::Zstd, Self::Xz];

    /// A payload that becomes `elf`.
    ///
    /// # Panics
    /// If `elf` is larger than a few MiB.
    pub fn pack(self, elf: &[u8]) -> Vec<u8> {
        let size = u32::try_from(elf.len()).expect("a small kernel").to_le_bytes();
        match self {
            Self::Lz4 => {
                let block = lz4_flex::block::compress(elf);
                let bytes = u32::try_from(block.len()).expect("a small kernel").to_le_bytes();
                [&[0x02, 0x21, 0x4c, 0x18][..], &bytes, &block, &size].concat()
            }
            Self::Gzip => {
                let level = flate2::Compression::best();
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(elf).expect("a vector takes everything");
                encoder.finish().expect("a vector takes everything")
            }
            Self::Zstd => [&[0x28, 0xb5, 0x2f, 0xfd][..], &size].concat(),
            Self::Xz => [&[0xfd, b'7', b'z', b'X', b'Z', 0, 0, 4][..], &size].concat(),
        }
    }
}

/// A bzImage in the making.
#[derive(Debug, Clone)]
pub struct BzImage {
    file: Vec<u8>,
}

impl BzImage {
    /// An image whose own "decompressor" is `code`, with `payload` behind it.
    ///
    /// # Panics
    /// If the parts are larger than a few MiB.
    pub fn new(code: &[u8], payload: &[u8]) -> Self {
        let mut kernel = vec![0xf4; ENTRY];
        kernel.extend(code);
        let payload_offset = u32::try_from(kernel.len()).expect("small");
        kernel.extend(payload);
        kernel.resize(kernel.len().next_multiple_of(16), 0);
        let paragraphs = u32::try_from(kernel.len() / 16).expect("small");
        let mut file = vec![0; KERNEL_OFFSET];
        file.extend(kernel);
        Self { file }
            .with(0x1f1, &[1])
            .with(0x1f4, &paragraphs.to_le_bytes())
            .with(0x1fe, &[0x55, 0xaa])
            // A short jump over the header: it ends at 0x202 + 0x6a.
            .with(0x200, &[0xeb, 0x6a])
            .with(0x202, b"HdrS")
            .with(0x206, &0x020fu16.to_le_bytes())
            .with(0x211, &[1])
            .with(0x22c, &0x7fff_ffffu32.to_le_bytes())
            .with(0x230, &0x20_0000u32.to_le_bytes())
            .with(0x236, &1u16.to_le_bytes())
            .with(0x238, &2047u32.to_le_bytes())
            .with(0x248, &payload_offset.to_le_bytes())
            .with(0x24c, &u32::try_from(payload.len()).expect("small").to_le_bytes())
            .with(0x258, &LOAD_GPA.to_le_bytes())
            .with(0x260, &INIT_SIZE.to_le_bytes())
    }

    /// The image with `bytes` at `offset` of the file.
    ///
    /// # Panics
    /// If that is outside the file.
    #[must_use]
    pub fn with(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.file[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The file.
    pub fn file(self) -> Vec<u8> {
        self.file
    }
}
