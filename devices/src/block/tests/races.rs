//! Resets while requests are under way, in every order that a seed picks, and on real threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;

use abi::block::request::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use abi::block::status::VIRTIO_BLK_S_OK;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vm_memory::GuestMemoryMmap;

use super::*;
use crate::block::{BackendError, BackendProperties, BlockBackend, DiskRange, IoDone, IoJob};
use crate::ring::CheckedDesc;

/// A worker whose steps a test takes one by one.
#[derive(Default)]
enum Worker {
    #[default]
    Idle,
    Has(IoJob),
    Ran(IoDone),
}

impl Worker {
    fn step(&mut self, machine: &mut BlockMachine) {
        let device = machine.transport();
        *self = match std::mem::take(self) {
            Self::Idle => device.device_mut().take_io().map_or(Self::Idle, Self::Has),
            Self::Has(job) => Self::Ran(job.run()),
            Self::Ran(done) => {
                device.device_mut().io_done(done);
                let _progress = device.serve_pending();
                Self::Idle
            }
        };
    }
}

/// After any reset, late jobs and late answers of the life before touch neither memory, disk nor ring.
#[test]
fn nothing_of_a_former_life_reaches_memory_disk_or_ring() {
    for seed in 0..400 {
        let mut random = StdRng::seed_from_u64(seed);
        let (mut machine, disk) = machine(64);
        disk.fill(0, &[0xdd; 64 * 512]);
        let mut worker = Worker::default();
        let mut offered = 0;
        for _ in 0..60 {
            match random.random_range(0..10) {
                0..3 => {
                    let sector = random.random_range(0..64);
                    let write = random.random_bool(0.5);
                    let kind = if write { VIRTIO_BLK_T_OUT } else { VIRTIO_BLK_T_IN };
                    if offered < 60 {
                        machine.offer(kind, sector, &[(DATA + sector * 512, 512, !write)]);
                        offered += 1;
                    }
                }
                3 | 4 => {
                    let _progress = machine.transport().queue_notified(0);
                }
                5..9 => worker.step(&mut machine),
                _ => {
                    machine.start(u64::MAX);
                    offered = 0;
                    let memory = get(&machine, DATA, 64 * 512);
                    let contents = disk.contents();
                    let ring = machine.queue().used_index();
                    // Whatever the worker still has comes to nothing.
                    worker.step(&mut machine);
                    worker.step(&mut machine);
                    assert!(get(&machine, DATA, 64 * 512) == memory, "seed {seed}: memory");
                    assert!(disk.contents() == contents, "seed {seed}: disk");
                    assert_eq!(machine.queue().used_index(), ring, "seed {seed}: ring");
                }
            }
        }
        // What is left is finished, and each chain has come back once.
        let _progress = machine.transport().queue_notified(0);
        for _ in 0..200 {
            worker.step(&mut machine);
        }
        let heads: Vec<u16> = machine
            .answers()
            .iter()
            .map(|(head, answer)| {
                assert_eq!(answer.status, VIRTIO_BLK_S_OK, "seed {seed}");
                *head
            })
            .collect();
        let expected: Vec<u16> = (0..offered).map(|number| number * 3).collect();
        assert_eq!(heads, expected, "seed {seed}: every head, exactly once");
    }
}

#[test]
fn a_job_that_is_dropped_leaves_its_chains_to_the_reset() {
    let (mut machine, disk) = machine(64);
    machine.offer(VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]);
    let _progress = machine.transport().queue_notified(0);
    drop(machine.transport().device_mut().take_io());
    assert_eq!(machine.transport().serve_pending(), crate::virtio::QueueProgress::Pending);
    machine.start(u64::MAX);
    let answer = machine.request(VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]);
    assert_eq!((answer.status, disk.calls()), (VIRTIO_BLK_S_OK, 1));
}

/// A disk whose first step waits until it is let go, and that tells what ran after a mark.
struct SlowDisk {
    disk: MemoryDisk,
    state: Mutex<(bool, bool)>,
    changed: Condvar,
    /// The device has been reset: no call may come any more.
    is_over: AtomicBool,
}

impl SlowDisk {
    fn new() -> Self {
        Self {
            disk: MemoryDisk::new(64),
            state: Mutex::default(),
            changed: Condvar::new(),
            is_over: AtomicBool::new(false),
        }
    }

    /// Waits until a step has begun.
    fn wait_begun(&self) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |(begun, _)| !*begun).unwrap());
    }

    fn let_go(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    fn step(&self) {
        assert!(!self.is_over.load(Ordering::SeqCst), "a step after the reset");
        let mut state = self.state.lock().unwrap();
        state.0 = true;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(_, free)| !*free).unwrap());
        assert!(!self.is_over.load(Ordering::SeqCst), "the reset did not wait for the step");
    }
}

impl BlockBackend for SlowDisk {
    fn properties(&self) -> BackendProperties {
        self.disk.properties()
    }

    fn read(
        &self,
        range: DiskRange,
        memory: &GuestMemoryMmap,
        to: &[CheckedDesc],
    ) -> Result<(), BackendError> {
        self.step();
        self.disk.read(range, memory, to)
    }

    fn write(
        &self,
        range: DiskRange,
        memory: &GuestMemoryMmap,
        from: &[CheckedDesc],
    ) -> Result<(), BackendError> {
        self.step();
        self.disk.write(range, memory, from)
    }

    fn flush(&self) -> Result<(), BackendError> {
        self.disk.flush()
    }

    fn discard(&self, range: DiskRange) -> Result<(), BackendError> {
        self.disk.discard(range)
    }

    fn write_zeroes(&self, range: DiskRange, may_unmap: bool) -> Result<(), BackendError> {
        self.disk.write_zeroes(range, may_unmap)
    }
}

/// A reset on one thread while another carries a batch out: it waits for the step under way, and
/// the steps after it never come.
#[test]
fn a_reset_waits_for_the_step_under_way_and_voids_the_rest() {
    let disk = Arc::new(SlowDisk::new());
    let ram = Arc::new(TestRam::new(&REGIONS));
    let mut machine = BlockMachine::new(ram, disk.clone(), u64::MAX);
    put(&machine, DATA, &[0x11; 3 * 512]);
    // Not neighbours on the disk: three steps.
    for sector in [0u64, 10, 20] {
        machine.offer(VIRTIO_BLK_T_OUT, sector, &[(DATA, 512, false)]);
    }
    let _progress = machine.transport().queue_notified(0);
    let job = machine.transport().device_mut().take_io().expect("a batch");
    let worker = thread::spawn(move || job.run());
    disk.wait_begun();
    let resetter = thread::spawn({
        let disk = disk.clone();
        move || {
            machine.transport().reset();
            disk.is_over.store(true, Ordering::SeqCst);
            machine
        }
    });
    disk.let_go();
    let mut machine = resetter.join().expect("no panic");
    let done = worker.join().expect("no step after the reset");
    machine.transport().device_mut().io_done(done);
    assert_eq!(machine.queue().used_index(), 0);
}
