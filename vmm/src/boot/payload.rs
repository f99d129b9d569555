//! Decompresses the kernel inside a bzImage, as hostile input.
//!
//! LZ4 and gzip only: `docs/boot.md` says why, with figures. The last four bytes of every payload are the size that it becomes. Output is bounded by that, by the header's
//! `init_size`, and by guest RAM; a decompressor that has more to give, or less, has found a corrupt payload.
//!
//! Sources: Linux scripts/Makefile.lib (how payloads are made), lib/decompress.c (their magic numbers),
//! lib/decompress_unlz4.c (LZ4's legacy frame), RFC 1952.

use std::fmt;
use std::io::Read;

use super::error::FormError;

/// How a payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// LZ4, legacy frame.
    Lz4,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// XZ.
    Xz,
    /// bzip2.
    Bzip2,
    /// LZMA alone.
    Lzma,
    /// lzop.
    Lzo,
    /// An ELF file as it is.
    Uncompressed,
    /// None of these.
    Unknown,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lz4 => "lz4",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
            Self::Uncompressed => "uncompressed",
            Self::Unknown => "unknown",
        })
    }
}

/// Bytes that tell the compressions apart.
pub(super) const MAGIC_BYTES: u64 = 6;
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// A block of LZ4's legacy frame becomes at most this.
const LZ4_BLOCK_BYTES: usize = 8 << 20;

impl Compression {
    /// By the first bytes of `payload`.
    pub(super) fn of(payload: &[u8]) -> Self {
        const MAGIC: [(&[u8], Compression); 8] = [
            (&LZ4_LEGACY_MAGIC, Compression::Lz4),
            (&[0x1f, 0x8b], Compression::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
            (b"BZh", Compression::Bzip2),
            (&[0x5d, 0, 0], Compression::Lzma),
            (&[0x89, b'L', b'Z', b'O'], Compression::Lzo),
            (&[0x7f, b'E', b'L', b'F'], Compression::Uncompressed),
        ];
        MAGIC
            .iter()
            .find(|(magic, _)| payload.starts_with(magic))
            .map_or(Self::Unknown, |&(_, compression)| compression)
    }

    /// Why such a payload is not decompressed here.
    pub(super) const fn left_to_kernel(self) -> Option<&'static str> {
        match self {
            Self::Lz4 | Self::Gzip => None,
            Self::Zstd => Some("it is no slower at it"),
            Self::Xz | Self::Bzip2 | Self::Lzma | Self::Lzo => Some("rarely used"),
            Self::Uncompressed => Some("it is not compressed"),
            Self::Unknown => Some("its first bytes are not known"),
        }
    }
}

/// What `payload` becomes; `limit` bytes at most. Only what is not left to the kernel is decompressed.
pub(super) fn decompress(
    payload: &[u8],
    compression: Compression,
    limit: u64,
) -> Result<Vec<u8>, FormError> {
    let Some((stream, size)) = payload.split_last_chunk::<4>() else {
        return Err(corrupt("it has less than 4 B"));
    };
    let size = u32::from_le_bytes(*size);
    if size == 0 || u64::from(size) > limit {
        return Err(FormError::BadPayloadSize { bytes: size.into(), limit });
    }
    let mut out = zeroed(size)?;
    match compression {
        Compression::Lz4 => lz4(stream, &mut out)?,
        // gzip's own trailer ends with the size.
        Compression::Gzip => gzip(payload, &mut out)?,
        Compression::Zstd
        | Compression::Xz
        | Compression::Bzip2
        | Compression::Lzma
        | Compression::Lzo
        | Compression::Uncompressed
        | Compression::Unknown => return Err(FormError::LeftToKernel { reason: "not known here" }),
    }
    Ok(out)
}

/// The host may refuse, where an ordinary `Vec` would abort.
fn zeroed(size: u32) -> Result<Vec<u8>, FormError> {
    let no_memory = || FormError::NoMemory { bytes: size.into() };
    let len = usize::try_from(size).map_err(|_| no_memory())?;
    // Asked for and given back: only a zeroed allocation leaves untouched pages to the host.
    Vec::<u8>::new().try_reserve_exact(len).map_err(|_| no_memory())?;
    Ok(vec![0; len])
}

fn corrupt(why: impl Into<String>) -> FormError {
    FormError::CorruptPayload(why.into())
}

/// Whether all of the output was written.
fn complete(written: usize, out: &[u8]) -> Result<(), FormError> {
    if written == out.len() {
        return Ok(());
    }
    Err(corrupt(format!("it becomes {written} B and claims {} B", out.len())))
}

/// LZ4's legacy frame: a magic number, then blocks with their compressed size in front.
fn lz4(stream: &[u8], out: &mut [u8]) -> Result<(), FormError> {
    let mut rest = stream.get(LZ4_LEGACY_MAGIC.len()..).unwrap_or_default();
    let mut written = 0;
    while let Some((size, blocks)) = rest.split_first_chunk::<4>() {
        // Frames may follow each other.
        if *size == LZ4_LEGACY_MAGIC {
            rest = blocks;
            continue;
        }
        let bytes = u32::from_le_bytes(*size);
        let block = usize::try_from(bytes).ok().and_then(|bytes| blocks.split_at_checked(bytes));
        let Some((block, after)) = block else {
            return Err(corrupt(format!("a block of {bytes} B in {} B", blocks.len())));
        };
        let end = out.len().min(written + LZ4_BLOCK_BYTES);
        written += lz4_flex::block::decompress_into(block, &mut out[written..end])
            .map_err(|error| corrupt(format!("block at output byte {written}: {error}")))?;
        rest = after;
    }
    complete(written, out)
}

fn gzip(payload: &[u8], out: &mut [u8]) -> Result<(), FormError> {
    let mut stream = flate2::bufread::GzDecoder::new(payload);
    stream.read_exact(out).map_err(|error| corrupt(error.to_string()))?;
    // Reads the end, with which the checksum is compared.
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(corrupt(format!("it becomes more than the {} B that it claims", out.len()))),
        Err(error) => Err(corrupt(error.to_string())),
    }
}
