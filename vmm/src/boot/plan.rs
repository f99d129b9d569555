//! Decides how a kernel file is booted, before guest RAM is touched.
//!
//! The order of the forms, and why a compressed payload is decompressed here or not: `docs/boot.md`.

use std::io::{Cursor, Read, Seek, SeekFrom};

use abi::PfnRange;
use linux_loader::loader::bootparam::setup_header;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, ReadVolatile};

use super::bzimage::BzImage;
use super::elf::{self, ElfKernel, Segment};
use super::error::{Attempt, BootError, FormError};
use super::form::Form;
use super::payload::{self, Compression};
use super::{cmdline, layout, zero_page};

/// A kernel that can be booted, and how.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) form: Form,
    /// Where the boot vCPU starts.
    pub(super) entry: u64,
    pub(super) protocol: Protocol,
    /// Whether the file says that it is a Linux kernel.
    pub(super) is_linux: bool,
    /// What is copied to guest RAM.
    segments: Vec<Segment>,
    /// What they are copied from, if it is not the file.
    decompressed: Option<Vec<u8>>,
    /// (start, end) of everything that the kernel occupies when it starts.
    pub(super) occupied: Vec<(u64, u64)>,
    /// Longest command line without its NUL.
    pub(super) cmdline_max: usize,
    /// One past the highest address of an initrd.
    pub(super) initrd_end: u64,
}

/// How a kernel is entered and told of its machine.
#[derive(Debug)]
pub(super) enum Protocol {
    /// 32-bit protected mode, start info in EBX.
    Pvh,
    /// Long mode, zero page with this header in RSI.
    Linux64(Box<setup_header>),
}

/// The forms that were tried and failed.
type Tried = Vec<Attempt>;

impl Plan {
    /// Tries every form that the file may have.
    pub(super) fn new<F: Read + Seek>(image: &mut F, ram: &[PfnRange]) -> Result<Self, BootError> {
        let mut tried = Tried::new();
        let plan = Self::elf(image, ram, &mut tried).or_else(|| {
            // A file that begins like an ELF file is nothing else.
            let is_elf = !matches!(tried[..], [Attempt { error: FormError::NotElf { .. }, .. }]);
            if is_elf { None } else { Self::bzimage(image, ram, &mut tried) }
        });
        plan.ok_or(BootError::NoForm { tried })
    }

    fn elf<F: Read + Seek>(image: &mut F, ram: &[PfnRange], tried: &mut Tried) -> Option<Self> {
        let kernel = attempt(Form::Elf, elf::check(image, ram), tried)?;
        Self::of_elf(kernel, [Form::ElfPvh, Form::Elf64], tried)
    }

    /// `forms`: by PVH, by the 64-bit protocol.
    fn of_elf(kernel: ElfKernel, forms: [Form; 2], tried: &mut Tried) -> Option<Self> {
        let [pvh, long_mode] = forms;
        let (form, entry, protocol) = match attempt(pvh, kernel.pvh, tried) {
            Some(entry) => (pvh, entry, Protocol::Pvh),
            None => {
                let entry = attempt(long_mode, kernel.long_mode, tried)?;
                (long_mode, entry, Protocol::Linux64(Box::new(zero_page::header_for_elf())))
            }
        };
        Some(Self {
            form,
            entry,
            protocol,
            is_linux: kernel.is_linux,
            occupied: kernel.segments.iter().map(|s| (s.start, s.end)).collect(),
            segments: kernel.segments,
            decompressed: None,
            cmdline_max: cmdline::MAX_BYTES,
            initrd_end: u64::MAX,
        })
    }

    fn bzimage<F: Read + Seek>(image: &mut F, ram: &[PfnRange], tried: &mut Tried) -> Option<Self> {
        let bzimage = attempt(Form::BzImage, BzImage::parse(image), tried)?;
        let plan = match Self::payload(image, ram, &bzimage, tried) {
            Ok(plan) => plan,
            // The kernel's own decompressor would find the same, and could tell nobody.
            Err(Corrupt) => return None,
        };
        plan.or_else(|| attempt(Form::BzImage64, Self::bzimage_64(&bzimage, ram), tried)).map(
            |plan| Self {
                cmdline_max: bzimage.cmdline_max().min(layout::CMDLINE_ROOM - 1),
                initrd_end: bzimage.initrd_end(),
                is_linux: true,
                ..plan
            },
        )
    }

    /// The ELF file inside a bzImage, if there is one that can be had here.
    fn payload<F: Read + Seek>(
        image: &mut F,
        ram: &[PfnRange],
        bzimage: &BzImage,
        tried: &mut Tried,
    ) -> Result<Option<Self>, Corrupt> {
        let mut compression = Compression::Unknown;
        let decompressed = decompress(image, ram, bzimage, &mut compression);
        let is_corrupt = matches!(decompressed, Err(FormError::CorruptPayload(_)));
        let form = Form::Payload(compression);
        let Some(elf) = attempt(form, decompressed, tried) else {
            return if is_corrupt { Err(Corrupt) } else { Ok(None) };
        };
        let kernel = elf::check(&mut Cursor::new(&elf[..]), ram);
        let Some(kernel) = attempt(form, kernel, tried) else { return Ok(None) };
        let forms = [Form::PayloadPvh(compression), Form::Payload64(compression)];
        Ok(Self::of_elf(kernel, forms, tried).map(|plan| {
            let protocol = match plan.protocol {
                Protocol::Pvh => Protocol::Pvh,
                Protocol::Linux64(_) => Protocol::Linux64(Box::new(bzimage.header)),
            };
            Self { protocol, decompressed: Some(elf), ..plan }
        }))
    }

    fn bzimage_64(bzimage: &BzImage, ram: &[PfnRange]) -> Result<Self, FormError> {
        let (start, bytes) = bzimage.place();
        let end = layout::fits("the kernel with its working memory", start, bytes, ram)?;
        let entry = bzimage.entry_64()?;
        let (offset, file_bytes) = bzimage.kernel();
        Ok(Self {
            form: Form::BzImage64,
            entry,
            protocol: Protocol::Linux64(Box::new(bzimage.header)),
            is_linux: true,
            segments: vec![Segment { offset, file_bytes, start, end }],
            decompressed: None,
            occupied: vec![(start, end)],
            cmdline_max: cmdline::MAX_BYTES,
            initrd_end: u64::MAX,
        })
    }

    /// Copies the kernel to guest RAM, which reads zero where the file has nothing.
    pub(super) fn copy<F: ReadVolatile + Seek>(
        &self,
        image: &mut F,
        memory: &GuestMemoryMmap,
    ) -> Result<(), BootError> {
        match &self.decompressed {
            Some(elf) => copy(&mut Cursor::new(&elf[..]), memory, &self.segments),
            None => copy(image, memory, &self.segments),
        }
    }
}

/// The payload is damaged: no decompressor will do.
struct Corrupt;

/// Notes a failure.
fn attempt<T>(form: Form, result: Result<T, FormError>, tried: &mut Tried) -> Option<T> {
    result.map_err(|error| tried.push(Attempt { form, error })).ok()
}

/// The decompressed payload; `compression` is set as soon as it is known.
fn decompress<F: Read + Seek>(
    image: &mut F,
    ram: &[PfnRange],
    bzimage: &BzImage,
    compression: &mut Compression,
) -> Result<Vec<u8>, FormError> {
    let (offset, bytes) = bzimage.payload()?;
    let start = read(image, offset, bytes.min(payload::MAGIC_BYTES))?;
    *compression = Compression::of(&start);
    if let Some(reason) = compression.left_to_kernel() {
        return Err(FormError::LeftToKernel { reason });
    }
    let ram_bytes = ram.iter().map(|range| range.len().bytes()).sum();
    let limit = bzimage.payload_limit().min(ram_bytes);
    if bytes > limit {
        return Err(FormError::LongPayload { bytes, limit });
    }
    payload::decompress(&read(image, offset, bytes)?, *compression, limit)
}

/// `bytes` of the payload, all of them.
fn read<F: Read + Seek>(image: &mut F, offset: u64, bytes: u64) -> Result<Vec<u8>, FormError> {
    image.seek(SeekFrom::Start(offset))?;
    let mut payload = Vec::new();
    image.by_ref().take(bytes).read_to_end(&mut payload)?;
    if payload.len() as u64 == bytes {
        return Ok(payload);
    }
    let (end, len) = (u128::from(offset) + u128::from(bytes), offset + payload.len() as u64);
    Err(FormError::Truncated { what: "the payload", end, len })
}

fn copy<F: ReadVolatile + Seek>(
    image: &mut F,
    memory: &GuestMemoryMmap,
    segments: &[Segment],
) -> Result<(), BootError> {
    for segment in segments {
        image.seek(SeekFrom::Start(segment.offset)).map_err(BootError::Seek)?;
        // It has been compared with the length of the file.
        let bytes = usize::try_from(segment.file_bytes).unwrap_or(usize::MAX);
        memory
            .read_exact_volatile_from(GuestAddress(segment.start), image, bytes)
            .map_err(BootError::Copy)?;
    }
    Ok(())
}
