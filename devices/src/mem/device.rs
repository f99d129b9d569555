//! [`MemoryDevice`]: the device behind the transport.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use abi::mem::{
    CONFIG_ADDR, CONFIG_BLOCK_SIZE, CONFIG_BYTES, CONFIG_PLUGGED_SIZE, CONFIG_REGION_SIZE,
    CONFIG_REQUESTED_SIZE, CONFIG_USABLE_REGION_SIZE, GUEST_REQUEST_QUEUE, REQUEST_BYTES,
    RESPONSE_BYTES, feature,
};
use abi::virtio::VIRTIO_ID_MEM;
use abi::{PageCount, PfnRange};

use super::blocks::{BlockSet, RangeState};
use super::counters::MemCounters;
use super::region::{ClaimFault, MemRegion};
use super::request::{Answer, Claim, Request};
use crate::counters::count;
use crate::ram::GuestRam;
use crate::ring::{Buffers, PoppedChain, Virtqueue};
use crate::virtio::{
    ActivateError, Activation, GuestFault, Interrupt, QueueProgress, VirtioDevice,
    read_config_bytes,
};

/// Entries of the queue: drivers keep one request under way.
const QUEUE_SIZE: u16 = 64;
/// How far the usable part goes beyond what is requested, so that the driver has a choice of blocks.
const USABLE_SLACK_BYTES: u64 = 256 << 20;

/// What makes the memory of blocks come and go.
///
/// `range`, `ranges`: runs of whole blocks of the region, sorted and disjoint. All of them are
/// unplugged before a plug and plugged before an unplug.
pub trait BlockMemory: Send {
    /// Makes `range` memory that reads zero, for vCPUs and devices.
    ///
    /// # Errors
    /// The host's reason; then nothing of it is memory.
    fn plug(&mut self, range: PfnRange) -> io::Result<()>;

    /// Makes `ranges` no memory any more and gives what is behind them back to the host.
    ///
    /// # Errors
    /// The host kept some of it; to the guest all of it is gone.
    fn unplug(&mut self, ranges: &[PfnRange]) -> io::Result<()>;
}

/// A size that cannot be requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestedSizeError {
    /// Above the region.
    #[error("{bytes} B are above the region of hotplug memory; allowed: 0 to {region_bytes} B")]
    AboveRegion {
        /// What was asked.
        bytes: u64,
        /// The most there is.
        region_bytes: u64,
    },
    /// Not whole blocks.
    #[error("{bytes} B are no multiple of the block size of {block_bytes} B")]
    Unaligned {
        /// What was asked.
        bytes: u64,
        /// Bytes of a block.
        block_bytes: u64,
    },
}

/// The memory device.
pub struct MemoryDevice {
    region: MemRegion,
    memory: Box<dyn BlockMemory>,
    plugged: BlockSet,
    requested_bytes: u64,
    usable_bytes: u64,
    active: Option<Active>,
    counters: MemCounters,
}

/// What lives from DRIVER_OK to reset.
struct Active {
    ram: Arc<dyn GuestRam>,
    queue: Virtqueue,
    interrupt: Arc<dyn Interrupt>,
}

impl MemoryDevice {
    /// A device over `region`, nothing of it plugged or requested; `memory` is behind it.
    pub fn new(region: MemRegion, memory: Box<dyn BlockMemory>) -> Self {
        Self {
            plugged: BlockSet::new(region.blocks()),
            region,
            memory,
            requested_bytes: 0,
            usable_bytes: 0,
            active: None,
            counters: MemCounters::default(),
        }
    }

    /// Sets the size that the guest is asked to bring the plugged memory to.
    ///
    /// Returns whether it is another than before; then the caller announces
    /// the new configuration through the transport. Kept over resets. The usable part grows with it
    /// and does not shrink here: the specification leaves that to an unplug of everything.
    ///
    /// # Errors
    /// [`RequestedSizeError`]; nothing has changed.
    pub fn request(&mut self, size: PageCount) -> Result<bool, RequestedSizeError> {
        let (region_bytes, block_bytes) = (self.region.bytes(), self.region.block_bytes());
        let bytes = size.bytes();
        if bytes > region_bytes {
            return Err(RequestedSizeError::AboveRegion { bytes, region_bytes });
        }
        if !bytes.is_multiple_of(block_bytes) {
            return Err(RequestedSizeError::Unaligned { bytes, block_bytes });
        }
        let changed = bytes != self.requested_bytes;
        self.requested_bytes = bytes;
        self.usable_bytes = self.usable_bytes.max(self.wanted_usable());
        Ok(changed)
    }

    /// The region.
    pub const fn region(&self) -> MemRegion {
        self.region
    }

    /// The size that the guest is asked for.
    pub fn requested(&self) -> PageCount {
        PageCount::new(self.requested_bytes / abi::PAGE_SIZE)
    }

    /// The size that is plugged.
    pub fn plugged(&self) -> PageCount {
        PageCount::new(self.plugged_bytes() / abi::PAGE_SIZE)
    }

    /// Bytes from the region's start on in which blocks may be plugged now.
    pub const fn usable_bytes(&self) -> u64 {
        self.usable_bytes
    }

    /// The frames that are plugged, as maximal runs, ascending.
    pub fn plugged_ranges(&self) -> Vec<PfnRange> {
        self.plugged.runs().iter().filter_map(|run| self.region.frames(run)).collect()
    }

    /// All counters.
    pub const fn counters(&self) -> &MemCounters {
        &self.counters
    }

    /// The machine starts anew: unplugs everything, so that no memory is there that the next kernel is not told of.
    ///
    /// What is requested stays, and the next driver plugs it again. Not the device reset of
    /// [`VirtioDevice::reset`], which has to keep blocks and contents.
    pub fn system_reset(&mut self) {
        self.unplug_all();
        self.counters.system_resets += 1;
    }

    fn plugged_bytes(&self) -> u64 {
        self.plugged.count().saturating_mul(self.region.block_bytes())
    }

    /// The usable part for what is requested: some more than that.
    fn wanted_usable(&self) -> u64 {
        if self.requested_bytes == 0 {
            return 0;
        }
        let slack = USABLE_SLACK_BYTES.max(self.region.block_bytes());
        self.requested_bytes.saturating_add(slack).min(self.region.bytes())
    }

    fn carry_out(&mut self, request: Request) -> Answer {
        match request {
            Request::Plug(claim) => {
                self.counters.plug_requests += 1;
                self.checked(claim).map_or(Answer::Error, |blocks| self.plug(&blocks))
            }
            Request::Unplug(claim) => {
                self.counters.unplug_requests += 1;
                self.checked(claim).map_or(Answer::Error, |blocks| self.unplug(&blocks))
            }
            Request::UnplugAll => {
                self.counters.unplug_all_requests += 1;
                self.unplug_all();
                Answer::Ack
            }
            Request::State(claim) => {
                self.counters.state_requests += 1;
                let Some(blocks) = self.checked(claim) else { return Answer::Error };
                Answer::State(self.plugged.state(&blocks))
            }
            Request::Unknown => {
                broke(&mut self.counters.unknown_type, "unknown_type");
                Answer::Error
            }
        }
    }

    /// The blocks of `claim`, or `None` and a count where there are no such.
    fn checked(&mut self, Claim { addr, nb_blocks }: Claim) -> Option<Range<u64>> {
        let counters = &mut self.counters;
        match self.region.claimed(addr, nb_blocks, self.usable_bytes) {
            Ok(blocks) => return Some(blocks),
            Err(ClaimFault::NoBlocks) => broke(&mut counters.no_blocks, "no_blocks"),
            Err(ClaimFault::Unaligned) => broke(&mut counters.unaligned, "unaligned"),
            Err(ClaimFault::OutsideRegion) => broke(&mut counters.outside_region, "outside_region"),
            Err(ClaimFault::OutsideUsable) => broke(&mut counters.outside_usable, "outside_usable"),
        }
        None
    }

    fn plug(&mut self, blocks: &Range<u64>) -> Answer {
        // First, as the specification demands it whatever is requested.
        if self.plugged.state(blocks) != RangeState::Unplugged {
            broke(&mut self.counters.already_plugged, "already_plugged");
            return Answer::Error;
        }
        let number = blocks.end - blocks.start;
        let bytes = number.saturating_mul(self.region.block_bytes());
        if self.plugged_bytes().saturating_add(bytes) > self.requested_bytes {
            return Answer::Nack;
        }
        let Some(frames) = self.region.frames(blocks) else { return Answer::Error };
        if let Err(error) = self.memory.plug(frames) {
            if count(&mut self.counters.busies) {
                log::error!("device=mem The host refused to plug {frames:?}: {error}");
            }
            return Answer::Busy;
        }
        self.plugged.insert(blocks);
        self.counters.plugged_blocks += number;
        Answer::Ack
    }

    fn unplug(&mut self, blocks: &Range<u64>) -> Answer {
        if self.plugged.state(blocks) != RangeState::Plugged {
            broke(&mut self.counters.not_plugged, "not_plugged");
            return Answer::Error;
        }
        self.take_away(std::slice::from_ref(blocks));
        Answer::Ack
    }

    fn unplug_all(&mut self) {
        self.take_away(&self.plugged.runs());
        self.usable_bytes = self.wanted_usable();
    }

    /// Unplugs `runs`, all of which are plugged.
    fn take_away(&mut self, runs: &[Range<u64>]) {
        if runs.is_empty() {
            return;
        }
        let frames: Vec<PfnRange> = runs.iter().filter_map(|run| self.region.frames(run)).collect();
        if let Err(error) = self.memory.unplug(&frames)
            && count(&mut self.counters.release_failed)
        {
            // The guest has given the blocks up and cannot get at them: that the host still
            // holds memory is the host's affair, and shows in its accounts.
            log::error!("device=mem Unplugged memory was not freed: {error}");
        }
        for run in runs {
            self.plugged.remove(run);
            self.counters.unplugged_blocks += run.end - run.start;
        }
    }

    /// Carries out the request in `chain` if its answer has room; returns the bytes written.
    fn answer(&mut self, chain: &PoppedChain, ram: &dyn GuestRam) -> (u32, Cost) {
        let buffers = match chain.buffers() {
            Ok(buffers) => buffers,
            Err(fault) => {
                if count(&mut self.counters.chain_bad) {
                    log::warn!("device=mem {fault}");
                }
                return (0, Cost::Little);
            }
        };
        let room = usize::try_from(buffers.writable_bytes()).unwrap_or(usize::MAX);
        if room < RESPONSE_BYTES {
            broke(&mut self.counters.response_short, "response_short");
            return (0, Cost::Little);
        }
        let changes = self.counters.plugged_blocks + self.counters.unplugged_blocks;
        let answer = match read_request(buffers, ram) {
            Some(request) => self.carry_out(request),
            None => {
                broke(&mut self.counters.request_short, "request_short");
                Answer::Error
            }
        };
        match answer {
            Answer::Ack | Answer::State(_) => self.counters.acks += 1,
            Answer::Nack => self.counters.nacks += 1,
            // Counted where the host refused.
            Answer::Busy => {}
            Answer::Error => self.counters.errors += 1,
        }
        let changed = self.counters.plugged_blocks + self.counters.unplugged_blocks != changes;
        let cost = if changed || answer == Answer::Busy { Cost::HostCalls } else { Cost::Little };
        // A driver may give an answer's room in a block that it has this device unplug: then
        // there is nothing to write to any more.
        let written = buffers.write(&ram.present(), 0, &answer.to_bytes()).unwrap_or(0);
        (u32::try_from(written).unwrap_or(0), cost)
    }

    fn serve(&mut self, active: &mut Active) -> Result<QueueProgress, GuestFault> {
        let Active { ram, queue, interrupt } = active;
        let (mut progress, mut returned) = (QueueProgress::Pending, false);
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop(&ram.present())? else {
                progress = QueueProgress::Idle;
                break;
            };
            let (written, cost) = self.answer(&chain, ram.as_ref());
            queue.complete(&ram.present(), chain, written)?;
            returned = true;
            // Memory that comes or goes takes the host milliseconds: whoever else wants this
            // device has its turn in between.
            if cost == Cost::HostCalls {
                break;
            }
        }
        if returned {
            queue.signal_used(&ram.present(), interrupt.as_ref())?;
        }
        Ok(progress)
    }
}

/// What a request cost the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cost {
    Little,
    HostCalls,
}

/// Copies a request out of guest memory, once; `None` if it is too short.
fn read_request(buffers: &Buffers, ram: &dyn GuestRam) -> Option<Request> {
    let mut bytes = [0; REQUEST_BYTES];
    let got = buffers.read(&ram.present(), 0, &mut bytes).ok()?;
    (got == REQUEST_BYTES).then(|| Request::from_bytes(&bytes))
}

/// Counts a broken rule.
fn broke(counter: &mut u64, reason: &'static str) {
    if count(counter) {
        log::warn!("device=mem fault={reason} count={counter}");
    }
}

impl VirtioDevice for MemoryDevice {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_MEM
    }

    fn device_features(&self) -> u64 {
        feature::VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE
    }

    /// Without it the driver may read unplugged memory, and there is none (§5.15.5).
    fn required_features(&self) -> u64 {
        feature::VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, out: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES];
        for (at, value) in [
            (CONFIG_BLOCK_SIZE, self.region.block_bytes()),
            (CONFIG_ADDR, self.region.addr()),
            (CONFIG_REGION_SIZE, self.region.bytes()),
            (CONFIG_USABLE_REGION_SIZE, self.usable_bytes),
            (CONFIG_PLUGGED_SIZE, self.plugged_bytes()),
            (CONFIG_REQUESTED_SIZE, self.requested_bytes),
        ] {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let field = config.get_mut(at..).and_then(|rest| rest.first_chunk_mut());
            if let Some(field) = field {
                *field = value.to_le_bytes();
            }
        }
        read_config_bytes(&config, offset, out);
    }

    /// # Errors
    /// Always.
    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), GuestFault> {
        self.counters.refused_config_writes += 1;
        Err(GuestFault::ReadOnlyConfig { offset, len: data.len() })
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, queues, interrupt, .. } = activation;
        let queue = queues.into_iter().next().flatten();
        let queue = queue.ok_or(ActivateError::MissingQueue { queue: GUEST_REQUEST_QUEUE })?;
        self.active = Some(Active { ram, queue, interrupt });
        Ok(())
    }

    fn queue_notified(&mut self, index: u16) -> Result<QueueProgress, GuestFault> {
        if index != GUEST_REQUEST_QUEUE {
            return Err(GuestFault::QueueNotReady { queue: index });
        }
        // Taken out, so that both it and the rest of the device can be borrowed.
        let Some(mut active) = self.active.take() else {
            return Err(GuestFault::QueueNotReady { queue: index });
        };
        let progress = self.serve(&mut active);
        self.active = Some(active);
        progress
    }

    /// Keeps every block and its contents (§5.15.5), and what is requested.
    fn reset(&mut self) {
        self.active = None;
        self.counters.device_resets += 1;
    }
}
