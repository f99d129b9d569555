//! Checks an ELF kernel before anything is loaded from it.
//!
//! The file is hostile input: every offset and length is checked against the
//! file and against RAM, in 128-bit arithmetic where a sum of two of its values
//! is formed. Source: System V ABI, chapters "ELF header"
//! and "Program header".

use std::io::{Read, Seek, SeekFrom};

use abi::PfnRange;

use super::error::FormError;
use super::notes::{self, Notes};
use super::{layout, le64};

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
    /// Whether it carries Linux's own notes.
    pub(super) is_linux: bool,
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
    check_disjoint(&segments)?;
    let inside = |entry| match segments.iter().any(|s| (s.start..s.end).contains(&entry)) {
        true => layout::reachable(entry),
        false => {
            let segments = layout::list(segments.iter().map(|s| (s.start, s.end)));
            Err(FormError::EntryOutsideKernel { entry, segments })
        }
    };
    let notes = read_notes(image, &notes)?;
    let pvh = notes.pvh_entry.unwrap_or(Err(FormError::NoPvhNote)).and_then(inside);
    let long_mode = inside(le64(&ehdr[24..32]));
    Ok(ElfKernel { segments, pvh, long_mode, is_linux: notes.is_linux })
}

/// Segments that overlap are no kernel's, and thousands of them would be copied for minutes.
fn check_disjoint(segments: &[Segment]) -> Result<(), FormError> {
    let mut ranges: Vec<_> = segments.iter().map(|s| (s.start, s.end)).collect();
    ranges.sort_unstable();
    match ranges.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        Some(pair) => Err(FormError::Overlap { segments: layout::list(pair.iter().copied()) }),
        None => Ok(()),
    }
}

/// What the notes of all `segments` say.
fn read_notes<F: Read + Seek>(image: &mut F, segments: &[Phdr]) -> Result<Notes, FormError> {
    let mut notes = Notes::default();
    let bytes = segments.iter().map(|phdr| phdr.file_bytes).fold(0, u64::saturating_add);
    if bytes > notes::MAX_BYTES {
        return Err(FormError::NotesTooLarge { bytes, max: notes::MAX_BYTES });
    }
    for phdr in segments {
        image.seek(SeekFrom::Start(phdr.offset))?;
        let mut bytes = Vec::new();
        image.by_ref().take(phdr.file_bytes).read_to_end(&mut bytes)?;
        notes.read(&bytes, phdr.alignment);
    }
    Ok(notes)
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
