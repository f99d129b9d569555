//! From a chain's buffers to a request that can be carried out, or the rule that it breaks.
//!
//! Nothing is assumed about how a driver cuts a request into descriptors
//! (§2.7.4.1): the header is the first 16 readable bytes, the status the last
//! writable one, the data what is between them. Everything is checked before
//! anything is done, so a bad request has no effect but its status.

use abi::block::request::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use abi::block::status::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP};
use abi::block::{HEADER_BYTES, ID_BYTES, SEGMENT_BYTES, WRITE_ZEROES_FLAG_UNMAP, feature};
use vm_memory::GuestMemoryMmap;

use super::BackendProperties;
use super::backend::{DiskRange, RangeFault};
use super::config::{MAX_DISCARD_SECTORS, MAX_SEGMENTS, MAX_ZEROED_SECTORS};
use crate::ring::{Buffers, CheckedDesc};

/// Bytes of the header, as buffers count.
const HEADER: u32 = 16;
const _: () = assert!(HEADER as usize == HEADER_BYTES);
/// Bytes of a segment.
const SEGMENT: u32 = 16;
const _: () = assert!(SEGMENT as usize == SEGMENT_BYTES);
/// Bytes of the segments of one request.
const MAX_SEGMENT_BYTES: usize = MAX_SEGMENTS as usize * SEGMENT_BYTES;

/// A request that the disk can carry out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Needs nothing but the device itself.
    GetId,
    /// Needs the backend.
    Operation(Operation),
}

/// Work for the backend; every range is inside the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read(DiskRange, Vec<CheckedDesc>),
    Write(DiskRange, Vec<CheckedDesc>),
    Flush,
    Discard(Vec<DiskRange>),
    WriteZeroes(Vec<Zeroing>),
}

/// A range that is to read as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Zeroing {
    pub(super) range: DiskRange,
    pub(super) may_unmap: bool,
}

/// Why a request is refused. Its chain is returned all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestFault {
    #[error("The request has {bytes} readable bytes; its header needs 16")]
    HeaderShort { bytes: u32 },
    #[error("The request has no writable byte for its status")]
    StatusMissing,
    #[error("A request of type {kind} has data of the wrong direction")]
    DataWrongDirection { kind: u32 },
    #[error("A request of type {kind} has no data")]
    DataMissing { kind: u32 },
    #[error("The request has {bytes} bytes of data, which are no whole number of sectors")]
    DataUnaligned { bytes: u32 },
    #[error("{bytes} bytes from sector {sector} on have no end below 2^64")]
    SectorOverflow { sector: u64, bytes: u64 },
    #[error("{bytes} bytes from sector {sector} on end beyond the disk of {sectors} sectors")]
    OutOfRange { sector: u64, bytes: u64, sectors: u64 },
    #[error("A request of type {kind} would write to a read-only disk")]
    ReadOnly { kind: u32 },
    #[error("Request type {kind} is unknown or was not negotiated")]
    UnknownType { kind: u32 },
    #[error("A discard or write-zeroes request has {bytes} bytes; allowed: 1 to 32 segments of 16")]
    SegmentsBad { bytes: u32 },
    #[error("A segment has {sectors} sectors; allowed: 0 to {max}")]
    SegmentTooLong { sectors: u32, max: u32 },
    #[error("A segment has flags {flags:#x} that its request does not know")]
    FlagsUnknown { flags: u32 },
    #[error("An identification has {bytes} bytes of room; it needs 20")]
    IdBufferShort { bytes: u32 },
    #[error("The request's memory could not be read")]
    Inaccessible,
}

impl RequestFault {
    /// Name of the reason, for counters.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::HeaderShort { .. } => "header_short",
            Self::StatusMissing => "status_missing",
            Self::DataWrongDirection { .. } => "data_wrong_direction",
            Self::DataMissing { .. } => "data_missing",
            Self::DataUnaligned { .. } => "data_unaligned",
            Self::SectorOverflow { .. } => "sector_overflow",
            Self::OutOfRange { .. } => "out_of_range",
            Self::ReadOnly { .. } => "read_only",
            Self::UnknownType { .. } => "unknown_type",
            Self::SegmentsBad { .. } => "segments_bad",
            Self::SegmentTooLong { .. } => "segment_too_long",
            Self::FlagsUnknown { .. } => "flags_unknown",
            Self::IdBufferShort { .. } => "id_buffer_short",
            Self::Inaccessible => "inaccessible",
        }
    }

    /// What the driver is told; §5.2.6.2 asks for UNSUPP where the device does not know something.
    pub(super) const fn status(self) -> u8 {
        match self {
            Self::UnknownType { .. } | Self::FlagsUnknown { .. } => VIRTIO_BLK_S_UNSUPP,
            Self::HeaderShort { .. }
            | Self::StatusMissing
            | Self::DataWrongDirection { .. }
            | Self::DataMissing { .. }
            | Self::DataUnaligned { .. }
            | Self::SectorOverflow { .. }
            | Self::OutOfRange { .. }
            | Self::ReadOnly { .. }
            | Self::SegmentsBad { .. }
            | Self::SegmentTooLong { .. }
            | Self::IdBufferShort { .. }
            | Self::Inaccessible => VIRTIO_BLK_S_IOERR,
        }
    }
}

/// The disk as a request sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk {
    pub(super) properties: BackendProperties,
    /// Features that the driver has acknowledged.
    pub(super) features: u64,
}

impl Disk {
    fn range(&self, sector: u64, bytes: u64) -> Result<DiskRange, RequestFault> {
        let BackendProperties { sectors, .. } = self.properties;
        DiskRange::new(sector, bytes, self.properties.bytes()).map_err(|fault| match fault {
            RangeFault::Unaligned => {
                RequestFault::DataUnaligned { bytes: u32::try_from(bytes).unwrap_or(u32::MAX) }
            }
            RangeFault::Overflow => RequestFault::SectorOverflow { sector, bytes },
            RangeFault::OutOfRange => RequestFault::OutOfRange { sector, bytes, sectors },
        })
    }
}

/// A request's header and what surrounds it.
struct Frame<'a> {
    buffers: &'a Buffers,
    kind: u32,
    sector: u64,
    /// Readable bytes after the header.
    data_out: u32,
    /// Writable bytes before the status.
    data_in: u32,
}

/// Reads and checks a request.
///
/// # Errors
/// [`RequestFault`]: the first rule that it breaks.
///
/// Spec: VirtIO 1.2 §5.2.6.
pub(super) fn parse(
    buffers: &Buffers,
    mem: &GuestMemoryMmap,
    disk: &Disk,
) -> Result<Request, RequestFault> {
    let frame = Frame::read(buffers, mem)?;
    let negotiated = |feature: u64| disk.features & feature != 0;
    let operation = match frame.kind {
        VIRTIO_BLK_T_IN => frame.transfer_in(disk)?,
        VIRTIO_BLK_T_OUT => frame.transfer_out(disk)?,
        // Data and sector mean nothing here.
        VIRTIO_BLK_T_FLUSH => Operation::Flush,
        VIRTIO_BLK_T_GET_ID => return frame.get_id(),
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if disk.properties.is_read_only => {
            return Err(RequestFault::ReadOnly { kind: frame.kind });
        }
        VIRTIO_BLK_T_DISCARD if negotiated(feature::DISCARD) => {
            let ranges = frame.segments(mem, disk, MAX_DISCARD_SECTORS, 0)?;
            Operation::Discard(ranges.into_iter().map(|zeroing| zeroing.range).collect())
        }
        VIRTIO_BLK_T_WRITE_ZEROES if negotiated(feature::WRITE_ZEROES) => {
            let flags = WRITE_ZEROES_FLAG_UNMAP;
            Operation::WriteZeroes(frame.segments(mem, disk, MAX_ZEROED_SECTORS, flags)?)
        }
        kind => return Err(RequestFault::UnknownType { kind }),
    };
    Ok(Request::Operation(operation))
}

impl<'a> Frame<'a> {
    fn read(buffers: &'a Buffers, mem: &GuestMemoryMmap) -> Result<Self, RequestFault> {
        let data_in = buffers.writable_bytes().checked_sub(1).ok_or(RequestFault::StatusMissing)?;
        let short = RequestFault::HeaderShort { bytes: buffers.readable_bytes() };
        let data_out = buffers.readable_bytes().checked_sub(HEADER).ok_or(short)?;
        let mut header = [0; HEADER_BYTES];
        buffers.read(mem, 0, &mut header).map_err(|_| RequestFault::Inaccessible)?;
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        Ok(Self {
            buffers,
            kind: u32::from_le_bytes([k0, k1, k2, k3]),
            sector: u64::from_le_bytes(sector),
            data_out,
            data_in,
        })
    }

    fn transfer_in(&self, disk: &Disk) -> Result<Operation, RequestFault> {
        self.only_in()?;
        let range = disk.range(self.sector, self.data_in.into())?;
        Ok(Operation::Read(range, self.buffers.writable_part(0, self.data_in).collect()))
    }

    fn transfer_out(&self, disk: &Disk) -> Result<Operation, RequestFault> {
        // §5.2.6.2: whatever else is wrong with it.
        if disk.properties.is_read_only {
            return Err(RequestFault::ReadOnly { kind: self.kind });
        }
        self.only_out()?;
        let range = disk.range(self.sector, self.data_out.into())?;
        Ok(Operation::Write(range, self.buffers.readable_part(HEADER, self.data_out).collect()))
    }

    fn get_id(&self) -> Result<Request, RequestFault> {
        self.only_in()?;
        if u64::from(self.data_in) < ID_BYTES as u64 {
            return Err(RequestFault::IdBufferShort { bytes: self.data_in });
        }
        Ok(Request::GetId)
    }

    /// The segments of a discard or write-zeroes request; every one is checked.
    fn segments(
        &self,
        mem: &GuestMemoryMmap,
        disk: &Disk,
        max_sectors: u32,
        known_flags: u32,
    ) -> Result<Vec<Zeroing>, RequestFault> {
        self.only_out()?;
        let bytes = self.data_out;
        if !bytes.is_multiple_of(SEGMENT) || bytes > MAX_SEGMENTS * SEGMENT {
            return Err(RequestFault::SegmentsBad { bytes });
        }
        let mut copy = [0; MAX_SEGMENT_BYTES];
        let read = self.buffers.read(mem, HEADER, &mut copy);
        let read = read.map_err(|_| RequestFault::Inaccessible)?;
        let (segments, _) = copy.get(..read).unwrap_or_default().as_chunks::<SEGMENT_BYTES>();
        segments
            .iter()
            .map(|segment| {
                let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = *segment;
                let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
                let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
                let flags = u32::from_le_bytes(flags);
                if flags & !known_flags != 0 {
                    return Err(RequestFault::FlagsUnknown { flags });
                }
                if sectors > max_sectors {
                    return Err(RequestFault::SegmentTooLong { sectors, max: max_sectors });
                }
                let range = disk.range(sector, u64::from(sectors) * 512)?;
                Ok(Zeroing { range, may_unmap: flags & WRITE_ZEROES_FLAG_UNMAP != 0 })
            })
            .collect()
    }

    /// The request's data is for the driver, and there is some.
    fn only_in(&self) -> Result<(), RequestFault> {
        self.one_way(self.data_in, self.data_out)
    }

    /// The request's data is from the driver, and there is some.
    fn only_out(&self) -> Result<(), RequestFault> {
        self.one_way(self.data_out, self.data_in)
    }

    fn one_way(&self, wanted: u32, other: u32) -> Result<(), RequestFault> {
        match (wanted, other) {
            (_, 1..) => Err(RequestFault::DataWrongDirection { kind: self.kind }),
            (0, 0) => Err(RequestFault::DataMissing { kind: self.kind }),
            (1.., 0) => Ok(()),
        }
    }
}
