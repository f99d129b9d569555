//! A block device over a disk that fails at times, with resets and disk changes in mid-flight.

use std::sync::Arc;

use devices::block::{BackendError, BackendProperties, Block};
use devices::ram::GuestRam;
use devices::testing::{DiskFault, MemoryDisk};
use vm_memory::{Bytes, GuestAddress};

use super::input::Input;
use super::machine::{Machine, RINGS_END};

/// Requests that the host's action makes: header, data and status in pages of their own.
const HEADER: u64 = RINGS_END;
const DATA: u64 = RINGS_END + 0x1000;
const STATUS: u64 = RINGS_END + 0xf000;

/// Acts an input out; afterwards every request has been answered. The disk itself sees to it that
/// nothing outside it, and nothing of a read-only one, is touched.
pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let how = input.u8();
    let disk = disk(how);
    let device = Block::new(disk.clone(), "fuzzed");
    let mut machine = Machine::new(device, carry_out, &mut input);
    machine.act(&mut input, |machine, input| match input.u8() % 8 {
        0 => disk.set_fault(fault(input)),
        1 => {
            // The same kind of disk, or one that must be refused.
            let other = input.u8();
            let refused = machine.transport.device_mut().replace_backend(self::disk(other));
            if refused.is_ok() {
                machine.transport.config_changed();
            }
        }
        2 => {
            // A batch is under way while the driver does something else, a reset for instance.
            let job = machine.transport.device_mut().take_io();
            match input.u8() {
                how @ 0..64 => machine.start(how),
                64..128 => machine.transport.reset(),
                _ => {}
            }
            if let Some(job) = job {
                machine.transport.device_mut().io_done(job.run());
            }
        }
        _ => offer_request(machine, input),
    });
    let left = machine.outstanding(0);
    assert!(left.is_none_or(|heads| heads == 0), "requests were kept: {left:?}");
}

/// What the VMM's worker does.
fn carry_out(machine: &mut Machine<Block>) {
    if let Some(job) = machine.transport.device_mut().take_io() {
        machine.transport.device_mut().io_done(job.run());
    }
}

fn disk(how: u8) -> Arc<MemoryDisk> {
    Arc::new(MemoryDisk::with(BackendProperties {
        sectors: 1 + u64::from(how >> 3),
        is_read_only: how & 1 != 0,
        can_discard: how & 2 != 0,
        physical_block_bytes: if how & 4 != 0 { 4096 } else { 512 },
    }))
}

fn fault(input: &mut Input<'_>) -> Option<DiskFault> {
    let errors = [
        BackendError::PastEnd,
        BackendError::NoSpace(28),
        BackendError::Unsupported,
        BackendError::Host(5),
    ];
    let how = input.u8();
    let error = errors.get(usize::from(how & 3)).copied()?;
    match how >> 2 & 3 {
        0 => None,
        1 => Some(DiskFault::Flush(error)),
        _ => Some(DiskFault::Sector(u64::from(how >> 4), error)),
    }
}

/// Something that is nearly a request.
fn offer_request(machine: &mut Machine<Block>, input: &mut Input<'_>) {
    const KINDS: [u32; 8] = [0, 1, 4, 8, 11, 13, 0, 99];
    let how = input.u8();
    let kind = KINDS.get(usize::from(how & 7)).copied().unwrap_or_default();
    let sector = if how & 8 == 0 { u64::from(input.u8() & 0x1f) } else { input.u64() };
    let len = match how >> 4 & 3 {
        0 => 512 * u32::from(input.u8() & 7),
        1 => 16 * u32::from(input.u8() & 3),
        2 => 20,
        _ => u32::from(input.u16()),
    };
    let header = [kind.to_le_bytes(), [0; 4]].concat();
    let memory = machine.ram.memory();
    memory.write_slice(&header, GuestAddress(HEADER)).expect("RAM");
    memory.write_obj(sector.to_le(), GuestAddress(HEADER + 8)).expect("RAM");
    memory.write_slice(input.bytes(32), GuestAddress(DATA)).expect("RAM");
    // Mostly of the right direction.
    let is_writable = matches!(kind, 0 | 8 | 99) != (how & 0xc0 == 0xc0);
    let mut chain = vec![(HEADER, 16, false)];
    if len > 0 {
        chain.push((DATA, len, is_writable));
    }
    chain.push((STATUS, 1, true));
    machine.offer_buffers(0, &chain);
}
