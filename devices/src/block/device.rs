//! [`Block`]: the device behind the transport.

use std::sync::Arc;

use abi::block::status::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};
use abi::block::{ID_BYTES, feature};
use abi::virtio::VIRTIO_ID_BLOCK;

use super::backend::{BackendError, BackendProperties, BlockBackend};
use super::config::{self, ConfigSpace, QUEUE_ENTRIES};
use super::counters::{BlockCounters, BlockFaults};
use super::job::{IoDone, IoJob, Outcome};
use super::request::{Disk, Operation, Request, RequestFault, parse};
use crate::counters::count;
use crate::life::LifeGate;
use crate::ram::GuestRam;
use crate::ring::{PoppedChain, Virtqueue};
use crate::virtio::{
    ActivateError, Activation, GuestFault, Interrupt, QueueProgress, VirtioDevice,
};

/// The request queue, the only one.
const REQUESTS: u16 = 0;
/// Bytes that a batch may move before it is handed out; the request that reaches it is the last.
const BATCH_BYTES: u64 = 1 << 20;

/// A block device over a backend.
///
/// The owner serves it like this, on a thread that may wait for the backend:
///
/// ```text
/// loop {
///     { lock; queue_notified(0), or serve_pending(); job = device.take_io() }
///     match job {
///         Some(job) => { done = job.run(); lock; device.io_done(done) }   // then serve_pending
///         None if nothing is pending => break,
///         None => {}
///     }
/// }
/// ```
pub struct Block {
    name: String,
    id: [u8; ID_BYTES],
    backend: Arc<dyn BlockBackend>,
    properties: BackendProperties,
    /// Offered for the life of the device, whatever backend it gets later.
    features: u64,
    config: ConfigSpace,
    counters: BlockCounters,
    faults: BlockFaults,
    gate: Arc<LifeGate>,
    active: Option<Active>,
}

/// A backend that cannot take the place of the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BackendRefused {
    /// Requests are being carried out on the present one.
    #[error("Requests are being carried out")]
    Busy,
    /// The driver knows the disk as writable, or as read-only, and cannot be told otherwise.
    #[error("A disk cannot become read-only or writable while it is in use")]
    ReadOnly,
}

/// What lives from DRIVER_OK to reset.
struct Active {
    ram: Arc<dyn GuestRam>,
    interrupt: Arc<dyn Interrupt>,
    queue: Virtqueue,
    features: u64,
    /// Chains of the batch, in the order in which they were popped.
    taken: Vec<Taken>,
    batch: Batch,
    /// The ring broke while the batch was gathered; reported when it has been answered.
    broken: Option<GuestFault>,
}

/// A chain that has been popped and not been returned.
struct Taken {
    chain: PoppedChain,
    state: State,
}

/// Where a request stands.
enum State {
    /// Part of the job: the next outcome that is not given away is its own.
    Handed(Kind, u64),
    /// Decided without the backend.
    Decided(Answer),
}

/// What the driver gets.
#[derive(Debug, Clone, Copy)]
struct Answer {
    /// The status byte; `None` where there is no place for one.
    status: Option<u8>,
    /// Bytes at the front of the writable buffers that hold what they should.
    data: u32,
}

/// What kind of operation it was, for the counters.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

/// Where the batch's job stands.
enum Batch {
    /// There is none.
    None,
    /// Nobody has taken it.
    Ready(IoJob),
    /// Someone runs it.
    Running,
    /// It has been carried out; the chains can be returned.
    Done(Vec<Outcome>),
}

/// Why gathering ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gathered {
    /// The ring is empty and kicks are armed, or the ring is broken.
    All,
    /// The batch is full; more may be there.
    Full,
}

impl Block {
    /// A device over `backend`. `name` stands in logs, and its first 20 bytes are the identification.
    pub fn new(backend: Arc<dyn BlockBackend>, name: &str) -> Self {
        let properties = backend.properties();
        let mut id = [0; ID_BYTES];
        id.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        Self {
            name: name.to_owned(),
            id,
            backend,
            properties,
            features: config::features(&properties),
            config: ConfigSpace::new(&properties),
            counters: BlockCounters::default(),
            faults: BlockFaults::default(),
            gate: Arc::default(),
            active: None,
        }
    }

    /// The backend's properties.
    pub fn properties(&self) -> &BackendProperties {
        &self.properties
    }

    /// All counters.
    pub fn counters(&self) -> &BlockCounters {
        &self.counters
    }

    /// The rules that the driver broke.
    pub fn faults(&self) -> &BlockFaults {
        &self.faults
    }

    /// Whether the driver makes writes permanent by flushes; else each one is by itself.
    pub fn is_writeback(&self) -> bool {
        !self.active.as_ref().is_some_and(|active| active.is_write_through(&self.config))
    }

    /// Puts another backend in the place of the present one; the caller announces the new
    /// configuration through the transport.
    ///
    /// # Errors
    /// [`BackendRefused`]; nothing changes.
    pub fn replace_backend(
        &mut self,
        backend: Arc<dyn BlockBackend>,
    ) -> Result<(), BackendRefused> {
        let properties = backend.properties();
        if properties.is_read_only != self.properties.is_read_only {
            return Err(BackendRefused::ReadOnly);
        }
        match self.active.as_ref().map(|active| &active.batch) {
            Some(Batch::Ready(_) | Batch::Running) => return Err(BackendRefused::Busy),
            // What a batch that has been carried out left behind are outcomes, which the change does not touch.
            Some(Batch::None | Batch::Done(_)) | None => {}
        }
        let is_writeback = self.config.is_writeback();
        self.config = ConfigSpace::new(&properties);
        self.config.set_writeback(is_writeback);
        (self.backend, self.properties) = (backend, properties);
        Ok(())
    }

    /// The batch that waits to be carried out, if there is one.
    pub fn take_io(&mut self) -> Option<IoJob> {
        let active = self.active.as_mut()?;
        match std::mem::replace(&mut active.batch, Batch::Running) {
            Batch::Ready(job) => Some(job),
            other @ (Batch::None | Batch::Running | Batch::Done(_)) => {
                active.batch = other;
                None
            }
        }
    }

    /// Takes a batch back that has been carried out.
    ///
    /// Then the caller serves pending queues, which answers the driver and gathers the
    /// next batch. A batch from before a reset changes nothing.
    pub fn io_done(&mut self, done: IoDone) {
        let Some(active) = self.active.as_mut().filter(|_| done.life == self.gate.life()) else {
            return;
        };
        self.counters.merged_requests += done.calls.merged;
        self.counters.host_flushes += done.calls.flushes;
        active.batch = Batch::Done(done.outcomes);
    }

    /// Answers the driver for a batch that has been carried out, and gathers the next.
    fn serve(&mut self) -> Result<QueueProgress, GuestFault> {
        let refused = GuestFault::QueueNotReady { queue: REQUESTS };
        let batch = &mut self.active.as_mut().ok_or(refused)?.batch;
        match std::mem::replace(batch, Batch::None) {
            Batch::Done(outcomes) => self.answer(outcomes)?,
            Batch::None => {}
            busy @ (Batch::Ready(_) | Batch::Running) => {
                *batch = busy;
                return Ok(QueueProgress::Pending);
            }
        }
        let (gathered, operations) = self.gather();
        if !operations.is_empty() {
            self.hand_out(operations);
            return Ok(QueueProgress::Pending);
        }
        self.answer(Vec::new())?;
        Ok(match gathered {
            Gathered::All => QueueProgress::Idle,
            Gathered::Full => QueueProgress::Pending,
        })
    }

    /// Takes available chains until the ring is empty or the batch full.
    fn gather(&mut self) -> (Gathered, Vec<Operation>) {
        let mut operations = Vec::new();
        let Some(active) = self.active.as_mut() else { return (Gathered::All, operations) };
        let disk = Disk { properties: self.properties, features: active.features };
        let mut bytes = 0;
        while bytes < BATCH_BYTES && active.taken.len() < usize::from(active.queue.size()) {
            let chain = match active.queue.pop(&active.ram.present()) {
                Ok(Some(chain)) => chain,
                Ok(None) => return (Gathered::All, operations),
                Err(fault) => {
                    active.broken = Some(fault);
                    return (Gathered::All, operations);
                }
            };
            let state = match judge(&chain, &active.ram.present(), &disk) {
                Ok(Request::Operation(operation)) => {
                    let (kind, moved) = describe(&operation);
                    bytes += moved;
                    operations.push(operation);
                    State::Handed(kind, moved)
                }
                Ok(Request::GetId) => {
                    self.counters.identifications += 1;
                    State::Decided(identify(&chain, &active.ram.present(), &self.id))
                }
                Err(fault) => {
                    if self.faults.count(fault.name()) {
                        log::warn!("device=block drive={} {fault}", self.name);
                    }
                    State::Decided(Answer { status: fault.status(), data: 0 })
                }
            };
            active.taken.push(Taken { chain, state });
        }
        (Gathered::Full, operations)
    }

    fn hand_out(&mut self, operations: Vec<Operation>) {
        let Some(active) = self.active.as_mut() else { return };
        self.counters.batches += 1;
        active.batch = Batch::Ready(IoJob {
            ram: Arc::clone(&active.ram),
            backend: Arc::clone(&self.backend),
            gate: Arc::clone(&self.gate),
            life: self.gate.life(),
            is_write_through: active.is_write_through(&self.config),
            operations,
        });
    }

    /// Returns every chain of the batch and calls the driver once.
    fn answer(&mut self, outcomes: Vec<Outcome>) -> Result<(), GuestFault> {
        let Some(active) = self.active.as_mut() else { return Ok(()) };
        let Active { ram, interrupt, queue, taken, broken, .. } = active;
        let mem = &*ram.present();
        let any = !taken.is_empty();
        let mut outcomes = outcomes.into_iter();
        let mut result = Ok(());
        for Taken { chain, state } in taken.drain(..) {
            let answer = match state {
                State::Decided(answer) => answer,
                State::Handed(kind, bytes) => {
                    // A job has an outcome for each of its operations.
                    let outcome = outcomes.next().unwrap_or(Err(BackendError::Unsupported));
                    count_outcome(&mut self.counters, &self.name, kind, bytes, outcome);
                    let data = match (kind, outcome) {
                        (Kind::Read, Ok(())) => u32::try_from(bytes).unwrap_or(0),
                        _ => 0,
                    };
                    Answer { status: Some(status_of(outcome)), data }
                }
            };
            let written = answer.give(&chain, mem);
            result = result.and(queue.complete(mem, chain, written));
        }
        if any {
            result = result.and(queue.signal_used(mem, &**interrupt));
        }
        broken.take().map_or(result, Err)
    }
}

/// A chain's request, or why there is none.
fn judge(
    chain: &PoppedChain,
    mem: &vm_memory::GuestMemoryMmap,
    disk: &Disk,
) -> Result<Request, Refusal> {
    let buffers = chain.buffers().map_err(Refusal::Chain)?;
    parse(buffers, mem, disk).map_err(Refusal::Request)
}

/// Why a chain is returned without effect.
enum Refusal {
    /// Its buffers cannot be used at all.
    Chain(crate::ring::ChainFault),
    /// They hold no request that can be carried out.
    Request(RequestFault),
}

impl Refusal {
    fn name(&self) -> &'static str {
        match self {
            Self::Chain(fault) => fault.name(),
            Self::Request(fault) => fault.name(),
        }
    }

    /// `None` where there is no place for a status.
    fn status(&self) -> Option<u8> {
        match self {
            Self::Chain(_) | Self::Request(RequestFault::StatusMissing) => None,
            Self::Request(fault) => Some(fault.status()),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Chain(fault) => fault.fmt(f),
            Self::Request(fault) => fault.fmt(f),
        }
    }
}

fn identify(chain: &PoppedChain, mem: &vm_memory::GuestMemoryMmap, id: &[u8; ID_BYTES]) -> Answer {
    let written = chain.buffers().and_then(|buffers| buffers.write(mem, 0, id));
    match written {
        Ok(bytes) => {
            Answer { status: Some(VIRTIO_BLK_S_OK), data: u32::try_from(bytes).unwrap_or(0) }
        }
        Err(_) => Answer { status: Some(VIRTIO_BLK_S_IOERR), data: 0 },
    }
}

impl Answer {
    /// Writes the status; returns how many bytes at the front of the writable buffers are valid now.
    fn give(self, chain: &PoppedChain, mem: &vm_memory::GuestMemoryMmap) -> u32 {
        let (Some(status), Ok(buffers)) = (self.status, chain.buffers()) else { return 0 };
        let Some(last) = buffers.writable_bytes().checked_sub(1) else { return 0 };
        match buffers.write(mem, last, &[status]) {
            // The status comes last: it counts if everything before it does (§2.7.8.2).
            Ok(1) if self.data == last => last + 1,
            _ => self.data,
        }
    }
}

/// What an operation is and how many bytes it moves.
fn describe(operation: &Operation) -> (Kind, u64) {
    match operation {
        Operation::Read(range, _) => (Kind::Read, range.len()),
        Operation::Write(range, _) => (Kind::Write, range.len()),
        Operation::Flush => (Kind::Flush, 0),
        Operation::Discard(ranges) => (Kind::Discard, ranges.iter().map(|range| range.len()).sum()),
        Operation::WriteZeroes(parts) => {
            (Kind::WriteZeroes, parts.iter().map(|part| part.range.len()).sum())
        }
    }
}

const fn status_of(outcome: Outcome) -> u8 {
    match outcome {
        Ok(()) => VIRTIO_BLK_S_OK,
        Err(BackendError::Unsupported) => VIRTIO_BLK_S_UNSUPP,
        Err(BackendError::PastEnd | BackendError::NoSpace(_) | BackendError::Host(_)) => {
            VIRTIO_BLK_S_IOERR
        }
    }
}

fn count_outcome(
    counters: &mut BlockCounters,
    name: &str,
    kind: Kind,
    bytes: u64,
    outcome: Outcome,
) {
    let mut none = 0;
    let (done, moved, failed) = match kind {
        Kind::Read => (&mut counters.reads, &mut counters.read_bytes, &mut counters.failed_reads),
        Kind::Write => {
            (&mut counters.writes, &mut counters.written_bytes, &mut counters.failed_writes)
        }
        Kind::Flush => (&mut counters.flushes, &mut none, &mut counters.failed_flushes),
        Kind::Discard => {
            (&mut counters.discards, &mut counters.discarded_bytes, &mut counters.failed_discards)
        }
        Kind::WriteZeroes => {
            (&mut counters.zeroings, &mut counters.zeroed_bytes, &mut counters.failed_zeroings)
        }
    };
    let Err(error) = outcome else {
        *done += 1;
        *moved = moved.saturating_add(bytes);
        return;
    };
    if count(failed) {
        log::error!("device=block drive={name} {kind:?} of {bytes} bytes failed: {error}");
    }
    match error {
        BackendError::PastEnd => counters.past_end += 1,
        BackendError::NoSpace(_) => counters.no_space += 1,
        BackendError::Unsupported | BackendError::Host(_) => {}
    }
}

impl Active {
    /// Whether each write is permanent when it is answered (§5.2.6.2).
    fn is_write_through(&self, config: &ConfigSpace) -> bool {
        let negotiated = |feature: u64| self.features & feature != 0;
        !negotiated(feature::FLUSH) || (negotiated(feature::CONFIG_WCE) && !config.is_writeback())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        // Dropped only at a reset, or when the VM ends.
        self.taken.drain(..).for_each(|taken| taken.chain.abandon_at_reset());
    }
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn device_features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_ENTRIES]
    }

    fn read_config(&self, offset: u64, out: &mut [u8]) {
        self.config.read(offset, out);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), GuestFault> {
        let offered = self.features & feature::CONFIG_WCE != 0;
        let refused = GuestFault::ReadOnlyConfig { offset, len: data.len() };
        let result = if offered { self.config.write(offset, data) } else { Err(refused) };
        self.counters.refused_config_writes += u64::from(result.is_err());
        result
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, queues, interrupt, features } = activation;
        let missing = ActivateError::MissingQueue { queue: REQUESTS };
        let queue = queues.into_iter().next().flatten().ok_or(missing)?;
        // §5.2.5.2: without flushes there is no write-back.
        if features & feature::FLUSH == 0 {
            self.config.set_writeback(false);
        }
        self.active = Some(Active {
            ram,
            interrupt,
            queue,
            features,
            taken: Vec::new(),
            batch: Batch::None,
            broken: None,
        });
        Ok(())
    }

    fn queue_notified(&mut self, index: u16) -> Result<QueueProgress, GuestFault> {
        if index == REQUESTS {
            self.serve()
        } else {
            Err(GuestFault::QueueNotReady { queue: index })
        }
    }

    fn reset(&mut self) {
        // First: a step under way ends, and no other starts any more.
        self.gate.end_life();
        self.active = None;
        self.config.set_writeback(true);
        self.counters.resets += 1;
    }
}
