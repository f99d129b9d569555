//! Checks a kernel file before anything is loaded from it.
//!
//! The file is hostile input: every offset and length is checked against the
//! file and against RAM, in 128-bit arithmetic where a sum of two of its values
//! is formed. Source: System V ABI, chapters "ELF header" and "Program header".

use std::io::{Read, Seek, SeekFrom};

use abi::PfnRange;

use super::{BootError, KERNEL_FLOOR};

/// Bytes of an ELF64 header.
const EHDR_BYTES: usize = 64;
/// Bytes of an ELF64 program header.
const PHDR_BYTES: usize = 56;
const MAGIC: [u8; 4] = [0x7f, b'E', b'L', b'F'];
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// Where a checked kernel will lie in RAM.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KernelLayout {
    /// Guest-physical (start, end) of each loadable segment.
    segments: Vec<(u64, u64)>,
}

impl KernelLayout {
    /// Whether `gpa` lies in a loaded segment.
    pub(super) fn contains(&self, gpa: u64) -> bool {
        self.segments.iter().any(|&(start, end)| (start..end).contains(&gpa))
    }
}

/// Checks that the file is a kernel that fits into `ram`.
pub(super) fn check<F: Read + Seek>(
    image: &mut F,
    ram: &[PfnRange],
) -> Result<KernelLayout, BootError> {
    let len = image.seek(SeekFrom::End(0))?;
    image.rewind()?;
    let mut start = Vec::with_capacity(EHDR_BYTES);
    image.by_ref().take(EHDR_BYTES as u64).read_to_end(&mut start)?;
    if !start.starts_with(&MAGIC) {
        start.truncate(MAGIC.len());
        return Err(BootError::NotElf { found: start });
    }
    let Ok(ehdr) = <[u8; EHDR_BYTES]>::try_from(start) else {
        return Err(truncated("the ELF header", EHDR_BYTES as u128, len));
    };
    let phdrs = program_headers(image, &ehdr, len)?;
    let mut segments = Vec::new();
    for phdr in phdrs.chunks_exact(PHDR_BYTES) {
        let phdr = Phdr::parse(phdr);
        if phdr.kind != PT_LOAD && phdr.kind != PT_NOTE {
            continue;
        }
        let end = u128::from(phdr.offset) + u128::from(phdr.file_bytes);
        if end > u128::from(len) {
            return Err(truncated(
                if phdr.kind == PT_LOAD { "a segment" } else { "a note" },
                end,
                len,
            ));
        }
        // One without memory but with bytes in the file would be copied all the same.
        if phdr.kind == PT_LOAD && phdr.memory_bytes.max(phdr.file_bytes) > 0 {
            segments.push(place(&phdr, ram)?);
        }
    }
    Ok(KernelLayout { segments })
}

fn truncated(what: &'static str, end: u128, len: u64) -> BootError {
    BootError::Truncated { what, end, len }
}

/// The program header table, whole entries of [`PHDR_BYTES`].
fn program_headers<F: Read + Seek>(
    image: &mut F,
    ehdr: &[u8; EHDR_BYTES],
    len: u64,
) -> Result<Vec<u8>, BootError> {
    let wrong = |what, found: u16| Err(BootError::WrongElf { what, found });
    let half = |at: usize| u16::from_le_bytes([ehdr[at], ehdr[at + 1]]);
    if ehdr[4] != ELFCLASS64 {
        return wrong("EI_CLASS", ehdr[4].into());
    }
    if ehdr[5] != ELFDATA2LSB {
        return wrong("EI_DATA", ehdr[5].into());
    }
    let (kind, machine, entry_bytes, count) = (half(16), half(18), half(54), half(56));
    if kind != ET_EXEC && kind != ET_DYN {
        return wrong("e_type", kind);
    }
    if machine != EM_X86_64 {
        return wrong("e_machine", machine);
    }
    if usize::from(entry_bytes) != PHDR_BYTES {
        return wrong("e_phentsize", entry_bytes);
    }
    let offset = le64(&ehdr[32..40]);
    let bytes = usize::from(count) * PHDR_BYTES;
    let end = u128::from(offset) + bytes as u128;
    if end > u128::from(len) {
        return Err(truncated("the program header table", end, len));
    }
    image.seek(SeekFrom::Start(offset))?;
    let mut table = vec![0; bytes];
    image.read_exact(&mut table)?;
    Ok(table)
}

/// The fields of a program header that matter here.
struct Phdr {
    kind: u32,
    offset: u64,
    gpa: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

impl Phdr {
    /// `bytes`: [`PHDR_BYTES`] of them.
    fn parse(bytes: &[u8]) -> Self {
        Self {
            kind: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            offset: le64(&bytes[8..16]),
            gpa: le64(&bytes[24..32]),
            file_bytes: le64(&bytes[32..40]),
            memory_bytes: le64(&bytes[40..48]),
        }
    }
}

/// `bytes`: eight of them.
fn le64(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// The segment's guest-physical range, if RAM has it at or above [`KERNEL_FLOOR`].
fn place(phdr: &Phdr, ram: &[PfnRange]) -> Result<(u64, u64), BootError> {
    if phdr.file_bytes > phdr.memory_bytes {
        return Err(BootError::BadSegment {
            file_bytes: phdr.file_bytes,
            memory_bytes: phdr.memory_bytes,
        });
    }
    let usable = || ram.iter().map(|r| (r.start().gpa().max(KERNEL_FLOOR), r.end().gpa()));
    let start = phdr.gpa;
    let end = u128::from(start) + u128::from(phdr.memory_bytes);
    let fits = usable().any(|(low, high)| start >= low && end <= u128::from(high));
    match u64::try_from(end) {
        Ok(end) if fits => Ok((start, end)),
        _ => {
            let ram: Vec<_> = usable().map(|(low, high)| format!("{low:#x}..{high:#x}")).collect();
            Err(BootError::DoesNotFit { start, end, ram: ram.join(", ") })
        }
    }
}
