//! The setup header of a Linux bzImage, as hostile input.
//!
//! Source: Linux Documentation/arch/x86/boot.rst.

use std::io::{Read, Seek, SeekFrom};

use linux_loader::loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::error::FormError;
use super::layout;

/// Where the setup header begins.
const HEADER_OFFSET: u64 = 0x1f1;
const SECTOR_BYTES: u64 = 512;
/// `setup_sects` of the oldest kernels, which say 0.
const DEFAULT_SETUP_SECTS: u8 = 4;
/// The second instruction byte of `jump` counts from here to the end of the header.
const JUMP_ORIGIN: usize = 0x202;

/// Two bytes at the end of the boot sector.
const BOOT_FLAG: &[u8] = &[0x55, 0xaa];
/// Four bytes at 0x202.
const MAGIC: &[u8] = b"HdrS";

/// Protocol 2.12 has `xloadflags`, and all older fields that are used here.
const NEEDED_VERSION: u16 = 0x20c;
/// `loadflags`: the protected-mode part is loaded at 1 MiB or above; clear in a zImage.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: there is a 64-bit entry at 0x200.
const XLF_KERNEL_64: u16 = 1;
/// Where in the protected-mode part the 64-bit entry is.
const ENTRY_64_OFFSET: u64 = 0x200;

/// A checked bzImage.
#[derive(Debug, Clone, Copy)]
pub(super) struct BzImage {
    pub(super) header: setup_header,
    /// Byte of the file where the protected-mode part begins.
    kernel_offset: u64,
    /// Its bytes.
    kernel_bytes: u64,
}

impl BzImage {
    /// Reads the header and checks what both ways to boot need of it.
    pub(super) fn parse<F: Read + Seek>(image: &mut F) -> Result<Self, FormError> {
        let len = image.seek(SeekFrom::End(0))?;
        image.seek(SeekFrom::Start(HEADER_OFFSET.min(len)))?;
        let mut bytes = Vec::new();
        image.by_ref().take(size_of::<setup_header>() as u64).read_to_end(&mut bytes)?;
        expect(&bytes, "the boot flag", 0x1fe, BOOT_FLAG)?;
        expect(&bytes, "the header's magic", 0x202, MAGIC)?;
        let header = header_from(&bytes);
        let version = header.version;
        if version < NEEDED_VERSION {
            return Err(FormError::OldProtocol { version, needed: NEEDED_VERSION });
        }
        if header.loadflags & LOADED_HIGH == 0 {
            let found = vec![header.loadflags];
            let (what, wanted) = ("loadflags", &[LOADED_HIGH]);
            return Err(FormError::NotBzImage { what, offset: 0x211, found, wanted });
        }
        let sects = if header.setup_sects == 0 { DEFAULT_SETUP_SECTS } else { header.setup_sects };
        let kernel_offset = (u64::from(sects) + 1) * SECTOR_BYTES;
        if kernel_offset >= len {
            let what = "the setup part";
            return Err(FormError::Truncated { what, end: kernel_offset.into(), len });
        }
        // `syssize` counts paragraphs; what lies beyond, such as a signature, is not the kernel's.
        let syssize = header.syssize;
        let wanted = u64::from(syssize) * 16;
        // Older tools rounded up without padding the file.
        if wanted > (len - kernel_offset).next_multiple_of(SECTOR_BYTES) {
            let end = u128::from(kernel_offset) + u128::from(wanted);
            return Err(FormError::Truncated { what: "the kernel", end, len });
        }
        let kernel_bytes = wanted.min(len - kernel_offset);
        Ok(Self { header, kernel_offset, kernel_bytes })
    }

    /// (byte of the file, bytes) of the compressed kernel.
    pub(super) fn payload(&self) -> Result<(u64, u64), FormError> {
        let (offset, bytes) = (self.header.payload_offset, self.header.payload_length);
        let end = u64::from(offset) + u64::from(bytes);
        if end > self.kernel_bytes {
            let (end, len) = (u128::from(end), self.kernel_bytes);
            return Err(FormError::Truncated { what: "the payload", end, len });
        }
        Ok((self.kernel_offset + u64::from(offset), bytes.into()))
    }

    /// Most bytes that the payload may become: the room that the header asks for.
    pub(super) fn payload_limit(&self) -> u64 {
        self.header.init_size.into()
    }

    /// (byte of the file, bytes) of the protected-mode part.
    pub(super) fn kernel(&self) -> (u64, u64) {
        (self.kernel_offset, self.kernel_bytes)
    }

    /// Where the protected-mode part goes, and how much memory from there on it uses before it reads the memory map.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.header.pref_address, u64::from(self.header.init_size).max(self.kernel_bytes))
    }

    /// The 64-bit entry.
    pub(super) fn entry_64(&self) -> Result<u64, FormError> {
        let xloadflags = self.header.xloadflags;
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(FormError::No64BitEntry { xloadflags });
        }
        layout::reachable(self.header.pref_address.saturating_add(ENTRY_64_OFFSET))
    }

    /// Longest command line, without its NUL.
    pub(super) fn cmdline_max(&self) -> usize {
        usize::try_from(self.header.cmdline_size).unwrap_or(usize::MAX)
    }

    /// One past the highest address of an initrd.
    pub(super) fn initrd_end(&self) -> u64 {
        u64::from(self.header.initrd_addr_max) + 1
    }
}

/// `bytes`: what the file has from [`HEADER_OFFSET`] on. Beyond the length that the header gives itself it reads zero.
fn header_from(bytes: &[u8]) -> setup_header {
    let mut header = setup_header::default();
    let origin = JUMP_ORIGIN - 0x1f1;
    // The displacement of the short jump at 0x200.
    let own = bytes.get(0x201 - 0x1f1).map_or(0, |&jump| origin + usize::from(jump));
    let own = own.min(bytes.len());
    let (to, from) = (header.as_mut_slice(), &bytes[..own]);
    let len = to.len().min(from.len());
    to[..len].copy_from_slice(&from[..len]);
    header
}

fn expect(
    bytes: &[u8],
    what: &'static str,
    offset: u64,
    wanted: &'static [u8],
) -> Result<(), FormError> {
    let at = usize::try_from(offset - HEADER_OFFSET).unwrap_or(usize::MAX);
    let found = bytes.get(at..).unwrap_or_default();
    let found = &found[..found.len().min(wanted.len())];
    if found == wanted {
        return Ok(());
    }
    Err(FormError::NotBzImage { what, offset, found: found.to_vec(), wanted })
}
