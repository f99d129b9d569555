//! The memory device, with a host that resizes, refuses and resets, over memory that checks each call.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use abi::{PageCount, PfnRange};
use devices::mem::{BlockMemory, MemRegion, MemoryDevice};
use devices::ram::GuestRam;
use devices::testing::request_bytes;
use vm_memory::{Bytes, GuestAddress};

use super::input::Input;
use super::machine::Machine;

const BASE: u64 = 1 << 32;
const BLOCK: u64 = 16 << 10;
const BLOCKS: u64 = 100;
/// Requests and answers of good drivers lie from here on, above the rings.
const BUFFERS: u64 = 0x1_8000;

/// What is plugged as the host has it, frame by frame.
#[derive(Default)]
struct Host {
    frames: BTreeSet<u64>,
    refuses: bool,
}

struct Blocks(Arc<Mutex<Host>>);

impl BlockMemory for Blocks {
    fn plug(&mut self, range: PfnRange) -> io::Result<()> {
        let mut host = self.0.lock().expect("not poisoned");
        check_range(range);
        assert!(range.iter().all(|pfn| !host.frames.contains(&pfn.number())), "{range:?}: again");
        if host.refuses {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        host.frames.extend(range.iter().map(abi::Pfn::number));
        Ok(())
    }

    fn unplug(&mut self, ranges: &[PfnRange]) -> io::Result<()> {
        let mut host = self.0.lock().expect("not poisoned");
        for range in ranges {
            check_range(*range);
            for pfn in range.iter() {
                assert!(host.frames.remove(&pfn.number()), "{pfn} was not plugged");
            }
        }
        if host.refuses { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(()) }
    }
}

/// Whole blocks inside the region, and some.
fn check_range(range: PfnRange) {
    let (start, bytes) = (range.start().gpa(), range.len().bytes());
    assert!(start >= BASE && bytes > 0 && start - BASE + bytes <= BLOCKS * BLOCK, "{range:?}");
    assert!(start.is_multiple_of(BLOCK) && bytes.is_multiple_of(BLOCK), "{range:?}");
}

/// Acts an input out; afterwards every request is answered, and host and device agree on what is plugged.
pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let host = Arc::new(Mutex::new(Host::default()));
    let region = MemRegion::new(BASE, BLOCKS * BLOCK, BLOCK).expect("a region");
    let device = MemoryDevice::new(region, Box::new(Blocks(host.clone())));
    let mut machine = Machine::new(device, |_| {}, &mut input);
    machine.act(&mut input, |machine, input| {
        match input.u8() % 8 {
            0 => resize(machine, input),
            1 => machine.transport.device_mut().system_reset(),
            2 => host.lock().expect("not poisoned").refuses = input.u8() & 1 != 0,
            3.. => request(machine, input),
        }
        check(machine, &host);
    });
    check(&machine, &host);
    let left = machine.outstanding(0);
    assert!(left.is_none_or(|heads| heads == 0), "the device kept {left:?}");
}

fn resize(machine: &mut Machine<MemoryDevice>, input: &mut Input<'_>) {
    let pages = PageCount::new(u64::from(input.u8()) * u64::from(input.u8() & 7));
    let possible = machine.transport.device_mut().request(pages).is_ok();
    let fits = pages.bytes() <= BLOCKS * BLOCK && pages.bytes().is_multiple_of(BLOCK);
    assert_eq!(possible, fits, "{pages:?}");
    machine.transport.config_changed();
}

/// A request as drivers make them, its values anything.
fn request(machine: &mut Machine<MemoryDevice>, input: &mut Input<'_>) {
    let (kind, how) = (u16::from(input.u8() % 6), input.u8());
    let addr = if how & 1 == 0 { BASE + u64::from(input.u8()) * BLOCK } else { input.u64() };
    let count = if how & 2 == 0 { u16::from(input.u8() & 15) } else { input.u16() };
    let at = BUFFERS + 64 * u64::from(how >> 2);
    let bytes = request_bytes(kind, addr, count);
    machine.ram.memory().write_slice(&bytes, GuestAddress(at)).expect("inside RAM");
    machine.offer_buffers(0, &[(at, 24, false), (at + 32, 10, true)]);
}

fn check(machine: &Machine<MemoryDevice>, host: &Mutex<Host>) {
    let device = machine.transport.device();
    let host = host.lock().expect("not poisoned");
    assert_eq!(device.plugged().get(), host.frames.len() as u64, "what is plugged");
    assert!(device.usable_bytes() >= device.requested().bytes(), "what is asked for is usable");
    assert!(device.usable_bytes() <= device.region().bytes());
    let runs = device.plugged_ranges();
    let frames = runs.iter().flat_map(|run| run.iter()).map(abi::Pfn::number);
    assert!(frames.eq(host.frames.iter().copied()), "{runs:?}");
}
