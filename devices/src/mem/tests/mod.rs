//! The memory device behind its transport, driven by a driver that may misbehave.

mod good_guest;
mod hostile_guest;
mod model;

use abi::mem::{feature, request, response, state};
use abi::virtio::VIRTIO_F_VERSION_1;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::ram::GuestRam;
use crate::testing::{DriverRegisters, MemMachine};

const ACK: u16 = response::VIRTIO_MEM_RESP_ACK;
const NACK: u16 = response::VIRTIO_MEM_RESP_NACK;
const BUSY: u16 = response::VIRTIO_MEM_RESP_BUSY;
const ERROR: u16 = response::VIRTIO_MEM_RESP_ERROR;
const PLUG: u16 = request::VIRTIO_MEM_REQ_PLUG;
const UNPLUG: u16 = request::VIRTIO_MEM_REQ_UNPLUG;
const UNPLUG_ALL: u16 = request::VIRTIO_MEM_REQ_UNPLUG_ALL;
const STATE: u16 = request::VIRTIO_MEM_REQ_STATE;

/// Small blocks, so that a region of heap memory has many.
const BLOCK: u64 = 16 << 10;
const BASE: u64 = 1 << 32;
const BLOCKS: u64 = 100;

fn region() -> MemRegion {
    MemRegion::new(BASE, BLOCKS * BLOCK, BLOCK).unwrap()
}

const fn block(number: u64) -> u64 {
    BASE + number * BLOCK
}

/// A started machine of which `blocks` blocks are requested.
fn machine(blocks: u64) -> MemMachine {
    let mut machine = MemMachine::new(region());
    machine.ask_for(blocks * BLOCK);
    machine
}
