//! Checks an ELF kernel before anything is loaded from it.
//!
//! The file is hostile input: every offset and length is checked against the
//! file and against RAM, in 128-bit arithmetic where a sum of two of its values
//! is formed. Sources: System V ABI, chapters "ELF header",
//! "Program header" and "Note section"; Xen's public/elfnote.h.

use std::io::{self, Read, Seek, SeekFrom};

use abi::PfnRange;

use super::error::FormError;
use super::layout;

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
/// Bytes of notes that are read of one segment; Linux has a few hundred.
const MAX_NOTE_BYTES: u64 = 1 << 20;
const XEN_NOTE_NAME: &[u8] = b"Xen\0";
/// The note that makes a kernel a PVH kernel: a 32-bit physical entry.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// A part of a kernel: where it comes from and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// Byte of the image.
    pub(super) offset: u64,
    /// Bytes that the image has of it.
    pub(super) file_bytes: u64,
    /// Guest-physical start.
    pub(super) start: u64,
    /// Guest-physical end; the part beyond `file_bytes` is to read zero.
    pub(super) end: u64,
}

/// A checked ELF file and its entries.
#[derive(Debug)]
pub(super) struct ElfKernel {
    pub(super) segments: Vec<Segment>,
    /// The entry by the PVH note.
    pub(super) pvh: Result<u64, FormError>,
    /// The entry in the header, which Linux's boot protocol enters in long mode.
    pub(super) long_mode: Result<u64, FormError>,
}

/// Checks that the file is a kernel that fits into `ram`.
pub(super) fn check<F: Read + Seek>(
    image: &mut F,
    ram: &[PfnRange],
) -> Result<ElfKernel, FormError> {
    let len = image.seek(SeekFrom::End(0))?;
    image.rewind()?;
    let mut start = Vec::with_capacity(EHDR_BYTES);
    image.by_ref().take(EHDR_BYTES as u64).read_to_end(&mut start)?;
    if !start.starts_with(&MAGIC) {
        start.truncate(MAGIC.len());
        return Err(FormError::NotElf { found: start });
    }
    let Ok(ehdr) = <[u8; EHDR_BYTES]>::try_from(start) else {
        return Err(truncated("the ELF header", EHDR_BYTES as u128, len));
    };
    let phdrs = program_headers(image, &ehdr, len)?;
    let (mut segments, mut notes) = (Vec::new(), Vec::new());
    for phdr in phdrs.chunks_exact(PHDR_BYTES) {
        let phdr = Phdr::parse(phdr);
        if phdr.kind != PT_LOAD && phdr.kind != PT_NOTE {
            continue;
        }
        let what = if phdr.kind == PT_LOAD { "a segment" } else { "a note" };
        let end = u128::from(phdr.offset) + u128::from(phdr.file_bytes);
        if end > u128::from(len) {
            return Err(truncated(what, end, len));
        }
        if phdr.kind == PT_NOTE {
            notes.push(phdr);
        // One without memory but with bytes in the file would be copied all the same.
        } else if phdr.memory_bytes.max(phdr.file_bytes) > 0 {
            segments.push(place(&phdr, ram)?);
        }
    }
    let inside = |entry| match segments.iter().any(|s| (s.start..s.end).contains(&entry)) {
        true => Ok(entry),
        false => {
            let segments = layout::list(segments.iter().map(|s| (s.start, s.end)));
            Err(FormError::EntryOutsideKernel { entry, segments })
        }
    };
    let pvh = pvh_entry(image, &notes)?.and_then(inside);
    let long_mode = inside(le64(&ehdr[24..32]));
    Ok(ElfKernel { segments, pvh, long_mode })
}

/// The entry that the first Xen note of type 18 names; the outer error is one of reading.
fn pvh_entry<F: Read + Seek>(image: &mut F, notes: &[Phdr]) -> io::Result<Result<u64, FormError>> {
    for phdr in notes {
        if phdr.file_bytes > MAX_NOTE_BYTES {
            let (bytes, max) = (phdr.file_bytes, MAX_NOTE_BYTES);
            return Ok(Err(FormError::NotesTooLarge { bytes, max }));
        }
        image.seek(SeekFrom::Start(phdr.offset))?;
        let mut bytes = Vec::new();
        image.by_ref().take(phdr.file_bytes).read_to_end(&mut bytes)?;
        if let Some(found) = find_pvh_note(&bytes, phdr.alignment) {
            return Ok(found);
        }
    }
    Ok(Err(FormError::NoPvhNote))
}

/// Walks the notes of one segment. A note is name size, descriptor size, type, name, descriptor; the last
/// two padded to the segment's alignment, which is 4 unless it says 8.
fn find_pvh_note(mut notes: &[u8], alignment: u64) -> Option<Result<u64, FormError>> {
    let pad = if alignment == 8 { 8 } else { 4 };
    while let Some((sizes, rest)) = notes.split_at_checked(12) {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| sizes[at + i]));
        let name_bytes = usize::try_from(word(0)).ok()?;
        let desc_bytes = usize::try_from(word(4)).ok()?;
        // The first padding counts from the start of the note, whose head has 12 bytes.
        let desc_at = name_bytes.checked_add(12)?.checked_next_multiple_of(pad)? - 12;
        let name = rest.get(..name_bytes)?;
        let desc = rest.get(desc_at..)?.get(..desc_bytes)?;
        if name == XEN_NOTE_NAME && word(8) == XEN_ELFNOTE_PHYS32_ENTRY {
            return Some(match desc.len() {
                4 | 8 => Ok(le64(desc)),
                bytes => Err(FormError::BadPvhNote { bytes }),
            });
        }
        let next = desc_at.checked_add(desc_bytes)?.checked_next_multiple_of(pad)?;
        notes = rest.get(next..)?;
    }
    None
}

fn truncated(what: &'static str, end: u128, len: u64) -> FormError {
    FormError::Truncated { what, end, len }
}

/// The program header table, whole entries of [`PHDR_BYTES`].
fn program_headers<F: Read + Seek>(
    image: &mut F,
    ehdr: &[u8; EHDR_BYTES],
    len: u64,
) -> Result<Vec<u8>, FormError> {
    let wrong = |what, found: u16| Err(FormError::WrongElf { what, found });
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
    alignment: u64,
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
            alignment: le64(&bytes[48..56]),
        }
    }
}

/// `bytes`: at most eight of them.
fn le64(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// The segment's guest-physical range, if RAM has it at or above [`layout::KERNEL_FLOOR`].
fn place(phdr: &Phdr, ram: &[PfnRange]) -> Result<Segment, FormError> {
    if phdr.file_bytes > phdr.memory_bytes {
        return Err(FormError::BadSegment {
            file_bytes: phdr.file_bytes,
            memory_bytes: phdr.memory_bytes,
        });
    }
    let end = layout::fits("a segment", phdr.gpa, phdr.memory_bytes, ram)?;
    Ok(Segment { offset: phdr.offset, file_bytes: phdr.file_bytes, start: phdr.gpa, end })
}
