//! Carrying out a batch of requests without the device's lock.
//!
//! Disks are slow, and a vCPU that reads a register should not wait for one.
//! So the work is a value: the device hands out an [`IoJob`], whoever runs it
//! need not hold the device, and the device answers its driver when it gets
//! [`IoDone`] back. The job runs in steps inside the device's life, so a reset
//! waits for at most one step, and none follows it.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::backend::{BackendError, BlockBackend, DiskRange};
use super::request::{Operation, Zeroing};
use crate::life::LifeGate;
use crate::ram::GuestRam;
use crate::ring::CheckedDesc;

/// Bytes that one call of the backend moves at most: a reset waits for no more.
pub(super) const STEP_BYTES: u64 = 1 << 20;

/// What becomes of one operation.
pub(super) type Outcome = Result<(), BackendError>;

/// A batch of requests to be carried out.
///
/// Their chains stay with the device and are returned to the driver only after
/// [`IoDone`] has come back. Dropping a job leaves them with the device until
/// the next reset.
#[must_use = "the driver waits for its requests"]
pub struct IoJob {
    pub(super) ram: Arc<dyn GuestRam>,
    pub(super) backend: Arc<dyn BlockBackend>,
    pub(super) gate: Arc<LifeGate>,
    pub(super) life: u64,
    /// Whether a write is permanent when it is answered, without a flush by the driver.
    pub(super) is_write_through: bool,
    pub(super) operations: Vec<Operation>,
}

/// What became of an [`IoJob`].
#[must_use = "hand it back to the device, which then answers the driver"]
#[derive(Debug)]
pub struct IoDone {
    pub(super) life: u64,
    /// One for each operation, in order.
    pub(super) outcomes: Vec<Outcome>,
    pub(super) calls: Calls,
}

/// How the backend was called.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Calls {
    /// Requests that shared the call of one before.
    pub(super) merged: u64,
    pub(super) flushes: u64,
}

/// The life that the job belongs to has ended: what is left of it is void.
struct Void;

impl IoJob {
    /// Carries out every operation; one that fails does not stop the others.
    ///
    /// Does nothing more as soon as the device has been reset. Blocks for as long as
    /// the backend does, and blocks a reset of the device for one step of that.
    pub fn run(self) -> IoDone {
        let mut calls = Calls::default();
        let mut outcomes = Vec::with_capacity(self.operations.len());
        // When void, the device has no use for the outcomes.
        self.run_all(&mut outcomes, &mut calls).unwrap_or_else(|Void| outcomes.clear());
        IoDone { life: self.life, outcomes, calls }
    }

    fn run_all(&self, outcomes: &mut Vec<Outcome>, calls: &mut Calls) -> Result<(), Void> {
        let mut groups: Vec<Group<'_>> =
            self.operations.chunk_by(follows).map(Group::new).collect();
        self.read_what_is_there(&mut groups)?;
        for group in &groups {
            self.run_group(group, outcomes, calls)?;
        }
        self.make_permanent(outcomes, calls)
    }

    /// The reads that need no waiting, and the start of those that do, if there are several.
    fn read_what_is_there(&self, groups: &mut [Group<'_>]) -> Result<(), Void> {
        let is_read = |group: &&mut Group<'_>| matches!(group.whole(), Some(Operation::Read(..)));
        if groups.iter_mut().filter(is_read).count() < 2 {
            return Ok(());
        }
        for group in groups.iter_mut() {
            if let Some(Operation::Read(range, to)) = group.whole()
                && range.len() <= STEP_BYTES
            {
                let (backend, mem) = (&*self.backend, &*self.ram.present());
                let read = self.gate.run(self.life, || backend.try_read(*range, mem, to));
                // One that failed is tried again by itself, and tells why.
                group.is_done = read.ok_or(Void)?.unwrap_or(false);
            }
        }
        Ok(())
    }

    /// Neighbouring transfers as one; each by itself if that fails, so that one which cannot be
    /// done costs its neighbours nothing.
    fn run_group(
        &self,
        group: &Group<'_>,
        outcomes: &mut Vec<Outcome>,
        calls: &mut Calls,
    ) -> Result<(), Void> {
        let all_done = match &group.joined {
            _ if group.is_done => true,
            Some(joined) => self.run_one(joined)?.is_ok(),
            None => false,
        };
        if all_done {
            calls.merged += group.operations.len() as u64 - 1;
            outcomes.extend(group.operations.iter().map(|_| Ok(())));
            return Ok(());
        }
        for operation in group.operations {
            outcomes.push(self.run_one(operation)?);
        }
        Ok(())
    }

    fn run_one(&self, operation: &Operation) -> Result<Outcome, Void> {
        let backend = &*self.backend;
        match operation {
            Operation::Read(range, to) => {
                self.transfer(*range, to, |range, mem, to| backend.read(range, mem, to))
            }
            Operation::Write(range, from) => {
                self.transfer(*range, from, |range, mem, from| backend.write(range, mem, from))
            }
            // All at once, in `make_permanent`.
            Operation::Flush => Ok(Ok(())),
            Operation::Discard(ranges) => self.each(ranges, |range| backend.discard(*range)),
            Operation::WriteZeroes(parts) => self.each(parts, |Zeroing { range, may_unmap }| {
                backend.write_zeroes(*range, *may_unmap)
            }),
        }
    }

    /// Moves `range` in steps.
    fn transfer(
        &self,
        range: DiskRange,
        buffers: &[CheckedDesc],
        call: impl Fn(DiskRange, &GuestMemoryMmap, &[CheckedDesc]) -> Outcome,
    ) -> Result<Outcome, Void> {
        let mem = &*self.ram.present();
        if range.len() <= STEP_BYTES {
            return self.step(|| call(range, mem, buffers));
        }
        let mut rest = range;
        let mut source = Source { buffers: buffers.iter(), begun: None };
        while !rest.is_empty() {
            let (now, later) = rest.split_at(STEP_BYTES);
            let parts = source.take(now.len());
            let outcome = self.step(|| call(now, mem, &parts))?;
            if outcome.is_err() {
                return Ok(outcome);
            }
            rest = later;
        }
        Ok(Ok(()))
    }

    fn each<T>(&self, parts: &[T], call: impl Fn(&T) -> Outcome) -> Result<Outcome, Void> {
        for part in parts {
            let outcome = self.step(|| call(part))?;
            if outcome.is_err() {
                return Ok(outcome);
            }
        }
        Ok(Ok(()))
    }

    /// Flushes once for every operation that asks for it.
    ///
    /// At the end, which is late enough for all: a flush covers the writes that were answered before
    /// it was submitted, and none of this batch has been (§5.2.6.2).
    fn make_permanent(&self, outcomes: &mut [Outcome], calls: &mut Calls) -> Result<(), Void> {
        let asks = |operation: &Operation| match operation {
            Operation::Flush => true,
            Operation::Write(..) | Operation::WriteZeroes(_) => self.is_write_through,
            Operation::Read(..) | Operation::Discard(_) => false,
        };
        if !self.operations.iter().any(asks) {
            return Ok(());
        }
        calls.flushes += 1;
        if let Err(error) = self.step(|| self.backend.flush())? {
            for (outcome, _) in
                outcomes.iter_mut().zip(&self.operations).filter(|(_, operation)| asks(operation))
            {
                *outcome = outcome.and(Err(error));
            }
        }
        Ok(())
    }

    fn step(&self, call: impl FnOnce() -> Outcome) -> Result<Outcome, Void> {
        self.gate.run(self.life, call).ok_or(Void)
    }
}

/// Operations of which each continues where the one before ends.
struct Group<'a> {
    operations: &'a [Operation],
    /// All of them as one transfer, if they are several.
    joined: Option<Operation>,
    /// They have been carried out.
    is_done: bool,
}

impl<'a> Group<'a> {
    fn new(operations: &'a [Operation]) -> Self {
        let joined = if operations.len() > 1 { join(operations) } else { None };
        Self { operations, joined, is_done: false }
    }

    /// The operation that does all of it.
    fn whole(&self) -> Option<&Operation> {
        match (&self.joined, self.operations) {
            (Some(joined), _) => Some(joined),
            (None, [one]) => Some(one),
            (None, _) => None,
        }
    }
}

/// Whether `next` continues on the disk, in the same direction, where `this` ends.
fn follows(this: &Operation, next: &Operation) -> bool {
    match (this, next) {
        (Operation::Read(this, _), Operation::Read(next, _))
        | (Operation::Write(this, _), Operation::Write(next, _)) => this.join(*next).is_some(),
        _ => false,
    }
}

/// One transfer of a group of which each follows the one before.
fn join(group: &[Operation]) -> Option<Operation> {
    let mut all = Vec::new();
    let mut joined: Option<DiskRange> = None;
    for operation in group {
        let (Operation::Read(range, buffers) | Operation::Write(range, buffers)) = operation else {
            return None;
        };
        joined = Some(match joined {
            None => *range,
            Some(before) => before.join(*range)?,
        });
        all.extend_from_slice(buffers);
    }
    match group.first()? {
        Operation::Read(..) => Some(Operation::Read(joined?, all)),
        Operation::Write(..) => Some(Operation::Write(joined?, all)),
        Operation::Flush | Operation::Discard(_) | Operation::WriteZeroes(_) => None,
    }
}

/// Buffers to take bytes from, piece by piece.
struct Source<'a> {
    buffers: std::slice::Iter<'a, CheckedDesc>,
    /// What is left of a buffer of which a part has been taken.
    begun: Option<CheckedDesc>,
}

impl Source<'_> {
    /// The next `bytes`, at most a step's.
    fn take(&mut self, bytes: u64) -> Vec<CheckedDesc> {
        let mut left = u32::try_from(bytes).unwrap_or(u32::MAX);
        let mut parts = Vec::new();
        while left > 0
            && let Some(buffer) = self.begun.take().or_else(|| self.buffers.next().copied())
        {
            let Some(part) = buffer.part(0, left) else { break };
            self.begun = buffer.part(part.len(), u32::MAX);
            left -= part.len();
            parts.push(part);
        }
        parts
    }
}
