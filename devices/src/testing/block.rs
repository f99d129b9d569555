//! A disk in memory, and a block device with a driver in front of it.

use std::sync::{Arc, Mutex};

use abi::block::SECTOR_BYTES;
use abi::virtio::VIRTIO_F_VERSION_1;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{CountingIrq, DriverQueue, DriverRegisters};
use crate::block::{BackendError, BackendProperties, Block, BlockBackend, DiskRange};
use crate::ram::GuestRam;
use crate::ring::CheckedDesc;
use crate::transport::MmioTransport;
use crate::virtio::QueueProgress;

/// Bytes of a request's header.
const HEADER_LEN: u32 = 16;

/// A disk in memory that can be told to fail, and counts.
pub struct MemoryDisk {
    properties: BackendProperties,
    state: Mutex<DiskState>,
}

struct DiskState {
    bytes: Vec<u8>,
    fault: Option<DiskFault>,
    calls: u64,
    flushes: u64,
    /// Written and not flushed.
    dirty: bool,
    /// Read without waiting.
    cached_sectors: u64,
}

/// What a [`MemoryDisk`] refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFault {
    /// Everything that touches this sector.
    Sector(u64, BackendError),
    /// Flushes.
    Flush(BackendError),
}

impl MemoryDisk {
    /// A disk of `sectors` zeros that can be written and discarded.
    pub fn new(sectors: u64) -> Self {
        Self::with(BackendProperties {
            sectors,
            is_read_only: false,
            can_discard: true,
            physical_block_bytes: 4096,
        })
    }

    /// A disk of zeros with these properties.
    pub fn with(properties: BackendProperties) -> Self {
        let bytes = vec![0; usize::try_from(properties.bytes()).expect("a small disk")];
        let state =
            DiskState { bytes, fault: None, calls: 0, flushes: 0, dirty: false, cached_sectors: 0 };
        Self { properties, state: Mutex::new(state) }
    }

    /// From now on fails so, or not any more.
    pub fn set_fault(&self, fault: Option<DiskFault>) {
        self.lock().fault = fault;
    }

    /// A copy of what the disk holds.
    pub fn contents(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// Puts `data` at `offset`.
    pub fn fill(&self, offset: usize, data: &[u8]) {
        let mut state = self.lock();
        let place = state.bytes.get_mut(offset..offset + data.len());
        place.expect("inside the disk").copy_from_slice(data);
    }

    /// Calls so far, flushes not counted.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Flushes so far.
    pub fn flushes(&self) -> u64 {
        self.lock().flushes
    }

    /// From now on sectors below this one are read without waiting.
    pub fn set_cached_sectors(&self, sectors: u64) {
        self.lock().cached_sectors = sectors;
    }

    /// Whether something was written after the last flush.
    pub fn is_dirty(&self) -> bool {
        self.lock().dirty
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, DiskState> {
        self.state.lock().expect("no panic")
    }
}

impl DiskState {
    fn call(&mut self, range: DiskRange) -> Result<&mut [u8], BackendError> {
        self.calls += 1;
        if let Some(DiskFault::Sector(sector, error)) = self.fault {
            let at = sector * SECTOR_BYTES;
            if range.offset() <= at && at < range.end() {
                return Err(error);
            }
        }
        let (from, to) = (usize::try_from(range.offset()), usize::try_from(range.end()));
        let bytes = self.bytes.get_mut(from.expect("small")..to.expect("small"));
        Ok(bytes.expect("a device stays inside its disk"))
    }
}

impl BlockBackend for MemoryDisk {
    fn properties(&self) -> BackendProperties {
        self.properties
    }

    fn read(
        &self,
        range: DiskRange,
        memory: &GuestMemoryMmap,
        to: &[CheckedDesc],
    ) -> Result<(), BackendError> {
        let mut state = self.lock();
        let mut bytes = &*state.call(range)?;
        for buffer in to {
            let (now, later) = bytes.split_at(buffer.len() as usize);
            memory.write_slice(now, buffer.addr()).expect("checked buffers");
            bytes = later;
        }
        assert!(bytes.is_empty(), "buffers have as many bytes as the range");
        Ok(())
    }

    fn try_read(
        &self,
        range: DiskRange,
        memory: &GuestMemoryMmap,
        to: &[CheckedDesc],
    ) -> Result<bool, BackendError> {
        if range.end() > self.lock().cached_sectors * SECTOR_BYTES {
            return Ok(false);
        }
        self.read(range, memory, to).map(|()| true)
    }

    fn write(
        &self,
        range: DiskRange,
        memory: &GuestMemoryMmap,
        from: &[CheckedDesc],
    ) -> Result<(), BackendError> {
        assert!(!self.properties.is_read_only, "a read-only disk is never written");
        let mut state = self.lock();
        let mut bytes = state.call(range)?;
        for buffer in from {
            let (now, later) = bytes.split_at_mut(buffer.len() as usize);
            memory.read_slice(now, buffer.addr()).expect("checked buffers");
            bytes = later;
        }
        assert!(bytes.is_empty(), "buffers have as many bytes as the range");
        state.dirty = true;
        Ok(())
    }

    fn flush(&self) -> Result<(), BackendError> {
        let mut state = self.lock();
        state.flushes += 1;
        if let Some(DiskFault::Flush(error)) = state.fault {
            return Err(error);
        }
        state.dirty = false;
        Ok(())
    }

    fn discard(&self, range: DiskRange) -> Result<(), BackendError> {
        assert!(!self.properties.is_read_only, "a read-only disk is never written");
        // Anything may be read afterwards; files give zeros.
        self.lock().call(range)?.fill(0);
        Ok(())
    }

    fn write_zeroes(&self, range: DiskRange, _may_unmap: bool) -> Result<(), BackendError> {
        assert!(!self.properties.is_read_only, "a read-only disk is never written");
        let mut state = self.lock();
        state.call(range)?.fill(0);
        state.dirty = true;
        Ok(())
    }
}

/// What a driver finds when a request has come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockAnswer {
    /// The status byte; 0xff if it was not written.
    pub status: u8,
    /// Length in the used ring.
    pub written: u32,
}

/// Device, transport and driver in one. The ring is at 0x1000, headers and status bytes follow it;
/// memory from [`Self::DATA`] on is for data.
pub struct BlockMachine {
    ram: Arc<dyn GuestRam>,
    transport: MmioTransport<Block>,
    queue: DriverQueue,
    next_head: u16,
}

impl BlockMachine {
    /// Where data may lie.
    pub const DATA: u64 = 0x1_0000;
    /// Entries of the ring.
    pub const ENTRIES: u16 = 256;
    const HEADERS: u64 = 0x8000;
    const STATUSES: u64 = 0xa000;

    /// A started device over `backend`; the driver takes of `features` what is offered.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn new(ram: Arc<dyn GuestRam>, backend: Arc<dyn BlockBackend>, features: u64) -> Self {
        let device = Block::new(backend, "drive0");
        let irq = Arc::new(CountingIrq::default());
        let transport = MmioTransport::new(device, ram.clone(), irq);
        let queue = DriverQueue::new(ram.memory(), 0x1000, Self::ENTRIES);
        let mut machine = Self { ram, transport, queue, next_head: 0 };
        machine.start(features);
        machine
    }

    /// Resets the device and starts it anew, with a fresh ring.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start(&mut self, features: u64) {
        self.queue = DriverQueue::new(self.ram.memory(), 0x1000, Self::ENTRIES);
        self.next_head = 0;
        let offered = self.transport.offered_features();
        self.transport.negotiate(offered & (VIRTIO_F_VERSION_1 | features));
        self.transport.enable_queue(0, self.queue.layout());
        self.transport.start();
        assert!(self.transport.is_running(), "the device comes up");
    }

    /// The transport.
    pub fn transport(&mut self) -> &mut MmioTransport<Block> {
        &mut self.transport
    }

    /// The device.
    pub fn device(&self) -> &Block {
        self.transport.device()
    }

    /// The driver's side of the ring.
    pub fn queue(&mut self) -> &mut DriverQueue {
        &mut self.queue
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        self.ram.memory()
    }

    /// Makes a request available: header, `(addr, len, writable)` data, status. No kick.
    ///
    /// # Panics
    /// If the ring is full.
    pub fn offer(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_head;
        let count = u16::try_from(data.len() + 2).expect("a short chain");
        assert!(head + count <= Self::ENTRIES, "the ring is full");
        self.next_head += count;
        let header = Self::HEADERS + u64::from(head) * u64::from(HEADER_LEN);
        let status = Self::STATUSES + u64::from(head);
        let bytes = [kind.to_le_bytes(), [0; 4]].concat();
        let bytes = [bytes, sector.to_le_bytes().to_vec()].concat();
        self.memory().write_slice(&bytes, GuestAddress(header)).expect("RAM");
        self.memory().write_slice(&[0xff], GuestAddress(status)).expect("RAM");
        let mut chain = vec![(header, HEADER_LEN, false)];
        chain.extend_from_slice(data);
        chain.push((status, 1, true));
        self.queue.offer_chain(head, &chain);
        head
    }

    /// Kicks, and serves the device as its owner does until nothing is pending.
    pub fn kick(&mut self) {
        let mut progress = self.transport.queue_notified(0);
        while progress == QueueProgress::Pending {
            progress = self.serve();
        }
    }

    /// One turn of the owner: carries a batch out if one waits.
    pub fn serve(&mut self) -> QueueProgress {
        if let Some(job) = self.transport.device_mut().take_io() {
            let done = job.run();
            self.transport.device_mut().io_done(done);
        }
        self.transport.serve_pending()
    }

    /// Takes the answers to all requests, which must have come back, in order of their heads.
    pub fn answers(&mut self) -> Vec<(u16, BlockAnswer)> {
        let used = self.queue.take_all_used();
        let mut answers: Vec<_> = used
            .into_iter()
            .map(|element| {
                let at = GuestAddress(Self::STATUSES + u64::from(element.head));
                let status = self.memory().read_obj(at).expect("RAM");
                let head = u16::try_from(element.head).expect("a head");
                (head, BlockAnswer { status, written: element.written })
            })
            .collect();
        answers.sort_unstable_by_key(|(head, _)| *head);
        self.next_head = 0;
        answers
    }

    /// One request from offer to answer.
    ///
    /// # Panics
    /// If it does not come back.
    pub fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> BlockAnswer {
        let head = self.offer(kind, sector, data);
        self.kick();
        match self.answers()[..] {
            [(got, answer)] if got == head => answer,
            ref other => panic!("one request, one answer: {other:?}"),
        }
    }
}
