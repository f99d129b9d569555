//! What ACPI tables cost the start of a VM: making them and writing them to guest RAM.
//!
//! `cargo bench -p aerostat --bench acpi`

use std::hint::black_box;
use std::time::{Duration, Instant};

use abi::mmio::WINDOW_BYTES;
use abi::platform::{MAX_VCPUS, VIRTIO_MMIO_BASE, VIRTIO_MMIO_SLOTS, virtio_mmio_gsi};
use aerostat::acpi::{MachineDescription, Tables, VirtioSlot};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const RUNS: usize = 2001;

fn main() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).expect("2 MiB");
    println!(
        "{:>6} {:>6} {:>8} {:>10} {:>10} {:>10}",
        "vcpus", "slots", "bytes", "first", "median", "maximum"
    );
    for (vcpus, count) in [(1, 2), (MAX_VCPUS, VIRTIO_MMIO_SLOTS)] {
        let slots: Vec<_> = (0..count).filter_map(slot).collect();
        let machine = MachineDescription { vcpus, slots: &slots };
        let bytes = Tables::new(&machine).expect("a possible machine").bytes().len();
        let mut times: Vec<_> = (0..RUNS).map(|_| once(&machine, &memory)).collect();
        let first = times[0];
        times.sort_unstable();
        let (median, maximum) = (times[RUNS / 2], times[RUNS - 1]);
        println!(
            "{vcpus:>6} {count:>6} {bytes:>8} {first:>10.1?} {median:>10.1?} {maximum:>10.1?}"
        );
    }
}

fn slot(slot: u16) -> Option<VirtioSlot> {
    let base = VIRTIO_MMIO_BASE + u64::from(slot) * WINDOW_BYTES;
    Some(VirtioSlot { base, gsi: virtio_mmio_gsi(slot)? })
}

fn once(machine: &MachineDescription<'_>, memory: &GuestMemoryMmap) -> Duration {
    let start = Instant::now();
    let tables = Tables::new(black_box(machine)).expect("a possible machine");
    black_box(tables.write(memory).expect("room"));
    start.elapsed()
}
