//! Tests of the device as a whole.

mod good_guest;
mod hostile_guest;
mod model;
mod races;

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use crate::testing::{BlockMachine, MemoryDisk, TestRam};

/// RAM with a hole.
const REGIONS: [(u64, usize); 2] = [(0, 0x60_0000), (0x80_0000, 0x10_0000)];
/// Where data of a request lies.
const DATA: u64 = BlockMachine::DATA;

fn machine_over(disk: &Arc<MemoryDisk>) -> BlockMachine {
    BlockMachine::new(Arc::new(TestRam::new(&REGIONS)), disk.clone(), u64::MAX)
}

/// A machine with a disk of `sectors`, and the disk.
fn machine(sectors: u64) -> (BlockMachine, Arc<MemoryDisk>) {
    let disk = Arc::new(MemoryDisk::new(sectors));
    (machine_over(&disk), disk)
}

fn put(machine: &BlockMachine, at: u64, data: &[u8]) {
    machine.memory().write_slice(data, GuestAddress(at)).expect("RAM");
}

fn get(machine: &BlockMachine, at: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    machine.memory().read_slice(&mut data, GuestAddress(at)).expect("RAM");
    data
}

/// `len` bytes that say where they are.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    let low = |number: usize| u8::try_from(number % 256).expect("below 256");
    (0..len).map(|at| low(at / 512) ^ low(at % 251) ^ seed).collect()
}

/// A segment of a discard or write-zeroes request.
fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}
