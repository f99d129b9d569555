//! The resize operations of one device: the one that runs, and those that are remembered.

use std::time::Duration;

use abi::PageCount;
use abi::virtio::status::DEVICE_NEEDS_RESET;
use devices::balloon::operation::{
    DriverState, Observation, ResizeLimits, ResizeOperation, ResizeState, StallNotes,
};
use devices::transport::MmioTransport;
use devices::virtio::VirtioDevice;

use super::handle::{OperationState, OperationStatus};

/// Operations that are remembered after their end.
const HISTORY: usize = 16;

/// Operations of a device, ascending by number; the last one may still run.
pub(super) struct Operations {
    list: Vec<ResizeOperation>,
    stall_after: Duration,
    /// Guest RAM.
    ram: PageCount,
    notes: StallNotes,
}

impl Operations {
    /// None yet. `stall_after`: without progress for so long, one has stalled.
    pub(super) fn new(stall_after: Duration, ram: PageCount, notes: StallNotes) -> Self {
        Self { list: Vec::new(), stall_after, ram, notes }
    }

    /// Begins one in place of the one that runs.
    pub(super) fn begin(
        &mut self,
        target: PageCount,
        deadline: Option<Duration>,
        (now, seen): (Duration, Observation),
    ) -> OperationStatus {
        if let Some(last) = self.list.last_mut() {
            last.supersede(now);
        }
        let id = self.list.last().map_or(1, |last| last.id() + 1);
        let limits = ResizeLimits { stall_after: self.stall_after, deadline };
        let operation = ResizeOperation::begin(id, target, limits, now, seen);
        if self.list.len() == HISTORY {
            self.list.remove(0);
        }
        let status = self.status(&operation);
        self.list.push(operation);
        status
    }

    /// Tells the one that runs what is seen now.
    pub(super) fn observe(&mut self, now: Duration, seen: Observation) {
        if let Some(last) = self.list.last_mut() {
            last.observe(now, seen);
        }
    }

    /// When to observe again even if nothing happens.
    pub(super) fn next_check(&self) -> Option<Duration> {
        self.list.last()?.next_check()
    }

    /// Operation number `id`, or the latest.
    pub(super) fn find(&self, id: Option<u64>) -> Option<OperationStatus> {
        let mut latest_first = self.list.iter().rev();
        let found = latest_first.find(|operation| id.is_none_or(|id| operation.id() == id))?;
        Some(self.status(found))
    }

    fn status(&self, operation: &ResizeOperation) -> OperationStatus {
        OperationStatus {
            id: operation.id(),
            state: match operation.state() {
                ResizeState::Running => OperationState::Running,
                ResizeState::Reached => OperationState::Reached,
                ResizeState::Stalled => OperationState::Stalled,
                ResizeState::TimedOut => OperationState::TimedOut,
                ResizeState::Superseded => OperationState::Superseded,
            },
            from: operation.from(),
            target: operation.target(),
            actual: operation.actual(),
            ram: self.ram,
            elapsed: operation.elapsed(),
            since_progress: operation.since_progress(),
            note: operation.note(self.notes),
        }
    }
}

/// Whether a driver works on a device.
pub(super) fn driver_state<D: VirtioDevice>(transport: &MmioTransport<D>) -> DriverState {
    if transport.is_running() {
        DriverState::Ready
    } else if transport.status() & DEVICE_NEEDS_RESET != 0 {
        DriverState::NeedsReset
    } else {
        DriverState::Missing
    }
}
