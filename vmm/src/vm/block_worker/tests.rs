//! The thread over real files, with a driver that rings its doorbell.

use std::fs::{self, File};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use abi::block::feature::FLUSH;
use abi::block::request::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use abi::mmio;
use abi::virtio::VIRTIO_F_VERSION_1;
use devices::block::{BackendError, BackendProperties, DiskRange};
use devices::ram::GuestRam;
use devices::ring::CheckedDesc;
use devices::testing::{DriverQueue, DriverRegisters, TestRam};
use tempfile::TempDir;
use tokio::sync::oneshot;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x9000;
const DATA: u64 = 0x1_0000;

/// A disk whose transfers do what a test says.
struct Scripted<F>(F);

impl<F: Fn(&GuestMemoryMmap, &[CheckedDesc]) + Send + Sync> BlockBackend for Scripted<F> {
    fn properties(&self) -> BackendProperties {
        BackendProperties {
            sectors: 64,
            is_read_only: false,
            can_discard: false,
            physical_block_bytes: 512,
        }
    }

    fn read(
        &self,
        _range: DiskRange,
        memory: &GuestMemoryMmap,
        to: &[CheckedDesc],
    ) -> Result<(), BackendError> {
        (self.0)(memory, to);
        Ok(())
    }

    fn write(
        &self,
        _range: DiskRange,
        memory: &GuestMemoryMmap,
        from: &[CheckedDesc],
    ) -> Result<(), BackendError> {
        (self.0)(memory, from);
        Ok(())
    }

    fn flush(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn discard(&self, _range: DiskRange) -> Result<(), BackendError> {
        Err(BackendError::Unsupported)
    }

    fn write_zeroes(&self, _range: DiskRange, _may_unmap: bool) -> Result<(), BackendError> {
        Err(BackendError::Unsupported)
    }
}

/// A drive with its thread, and a driver.
struct Rig {
    dir: TempDir,
    ram: Arc<TestRam>,
    window: Arc<Window<Block>>,
    queue: DriverQueue,
    events: Receiver<VcpuEvent>,
    worker: BlockWorker,
    file: Arc<DriveFile>,
    offered: u16,
}

impl Rig {
    fn new() -> Self {
        Self::over(|file| file)
    }

    /// Over what `backend` makes of the file.
    fn over(backend: impl FnOnce(Arc<DriveFile>) -> Arc<dyn BlockBackend>) -> Self {
        let dir = TempDir::new().expect("a scratch directory");
        let path = dir.path().join("a.img");
        File::create(&path).unwrap().set_len(64 * 512).unwrap();
        let file = Arc::new(DriveFile::open(&path, false).expect("a drive"));
        let ram = Arc::new(TestRam::new(&[(0, 0x10_0000)]));
        let window = Window::new(Block::new(backend(file.clone()), "disk"), 0, ram.clone());
        let window = Arc::new(window.expect("eventfds"));
        let (sender, events) = mpsc::channel();
        let wake = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("an eventfd"));
        let events_of = VcpuEvents::new(sender, wake);
        let worker = BlockWorker::start("disk", window.clone(), file.clone(), events_of);
        let queue = DriverQueue::new(ram.memory(), 0x1000, 64);
        let worker = worker.expect("a thread");
        let mut rig = Self { dir, ram, window, queue, events, worker, file, offered: 0 };
        rig.start();
        rig
    }

    /// What a driver does at boot.
    fn start(&mut self) {
        self.queue = DriverQueue::new(self.ram.memory(), 0x1000, 64);
        self.offered = 0;
        let mut transport = self.window.lock();
        transport.negotiate(VIRTIO_F_VERSION_1 | FLUSH);
        transport.enable_queue(0, self.queue.layout());
        transport.start();
        assert!(transport.is_running());
    }

    /// Makes a request of one sector available, without a kick.
    fn offer(&mut self, kind: u32, sector: u64) {
        let slot = u64::from(self.offered);
        let header = [kind.to_le_bytes(), [0; 4]].concat();
        let at = HEADER + slot * 16;
        self.ram.memory().write_slice(&header, GuestAddress(at)).unwrap();
        self.ram.memory().write_obj(sector, GuestAddress(at + 8)).unwrap();
        self.ram.memory().write_obj(0xffu8, GuestAddress(STATUS + slot)).unwrap();
        let mut chain = vec![(at, 16, false)];
        if kind != VIRTIO_BLK_T_FLUSH {
            chain.push((DATA + slot * 512, 512, kind == VIRTIO_BLK_T_IN));
        }
        chain.push((STATUS + slot, 1, true));
        self.queue.offer_chain(self.offered * 3, &chain);
        self.offered += 1;
    }

    fn fill(&self, slot: u64, byte: u8) {
        let at = GuestAddress(DATA + slot * 512);
        self.ram.memory().write_slice(&[byte; 512], at).unwrap();
    }

    fn kick(&self) {
        self.window.doorbells()[0].write(1).unwrap();
    }

    fn statuses(&self) -> Vec<u8> {
        let read = |slot: u16| self.ram.memory().read_obj(GuestAddress(STATUS + u64::from(slot)));
        (0..self.offered).map(|slot| read(slot).unwrap()).collect()
    }

    /// Waits until `count` requests have been answered.
    fn wait_used(&self, count: u16) {
        let deadline = Instant::now() + PATIENCE;
        while self.queue.used_index() != count {
            assert!(Instant::now() < deadline, "{} of {count} answered", self.queue.used_index());
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn replace(&self, path: Option<&Path>) -> Result<(), VmError> {
        let (reply, answer) = oneshot::channel();
        self.worker.post(BlockCommand::Replace { path: path.map(Path::to_owned), reply });
        answer.blocking_recv().expect("an answer")
    }

    fn capacity(&self) -> u64 {
        let mut bytes = [0; 8];
        self.window.lock().read(mmio::CONFIG, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn on_disk(&self, sector: usize) -> u8 {
        fs::read(self.file.path()).unwrap()[sector * 512]
    }
}

#[test]
fn a_doorbell_is_enough_to_be_served() {
    let mut rig = Rig::new();
    rig.fill(0, 0x11);
    rig.offer(VIRTIO_BLK_T_OUT, 5);
    rig.kick();
    rig.wait_used(1);
    rig.offer(VIRTIO_BLK_T_FLUSH, 0);
    rig.offer(VIRTIO_BLK_T_IN, 5);
    rig.kick();
    rig.wait_used(3);
    assert_eq!(rig.statuses(), [0, 0, 0]);
    assert_eq!(rig.ram.memory().read_obj::<u8>(GuestAddress(DATA + 2 * 512)).unwrap(), 0x11);
    assert_eq!(rig.worker.finish(), Ok(()));
}

/// A guest that powers off without waiting for its last write has it on the disk all the same.
#[test]
fn the_end_carries_out_what_was_available_and_flushes() {
    let mut rig = Rig::new();
    for sector in 0..10u8 {
        rig.fill(sector.into(), sector + 1);
        rig.offer(VIRTIO_BLK_T_OUT, sector.into());
    }
    // Nobody has rung.
    let Rig { worker, queue, file, dir, window, .. } = rig;
    assert_eq!(worker.finish(), Ok(()));
    assert_eq!(queue.used_index(), 10);
    let contents = fs::read(file.path()).unwrap();
    assert!((0..10).all(|sector| usize::from(contents[sector * 512]) == sector + 1));
    assert_eq!(window.lock().device().counters().writes, 10);
    drop(dir);
}

#[test]
fn a_pause_holds_when_what_was_available_has_been_carried_out() {
    let mut rig = Rig::new();
    rig.fill(0, 0x22);
    rig.offer(VIRTIO_BLK_T_OUT, 1);
    assert_eq!(rig.worker.settled(), 0);
    rig.worker.post(BlockCommand::Settle { pause: 7 });
    assert_eq!(rig.events.recv_timeout(PATIENCE), Ok(VcpuEvent::Paused));
    assert_eq!((rig.worker.settled(), rig.queue.used_index(), rig.on_disk(1)), (7, 1, 0x22));
}

#[test]
fn a_reset_leaves_the_drive_ready_for_the_next_boot() {
    let mut rig = Rig::new();
    for round in 0..20 {
        for sector in 0..8 {
            rig.offer(VIRTIO_BLK_T_OUT, sector);
        }
        // Sometimes while the thread is at it.
        rig.kick();
        rig.worker.reset();
        let used = rig.queue.used_index();
        assert!(!rig.window.lock().is_running());
        rig.start();
        rig.offer(VIRTIO_BLK_T_IN, 0);
        rig.kick();
        rig.wait_used(1);
        assert_eq!(rig.statuses(), [0], "round {round}, {used} answered before");
    }
}

/// The thread carried out the whole batch before it looked at the reset, and the event loop waited.
#[test]
fn a_reset_waits_for_one_step_and_not_for_the_batch() {
    let (permits, wait) = mpsc::channel::<()>();
    let (begun, begins) = mpsc::channel();
    let wait = Mutex::new(wait);
    let mut rig = Rig::over(move |_| {
        Arc::new(Scripted(move |_: &GuestMemoryMmap, _: &[CheckedDesc]| {
            begun.send(()).ok();
            wait.lock().unwrap().recv().ok();
        }))
    });
    // No neighbours, or they would be one step.
    (0..8).for_each(|n| rig.offer(VIRTIO_BLK_T_OUT, 2 * n));
    rig.kick();
    begins.recv_timeout(PATIENCE).expect("the first write begins");
    let (worker, window) = (&rig.worker, &rig.window);
    thread::scope(|scope| {
        // Here, so that a failure lets the writes go.
        let permits = permits;
        let reset = scope.spawn(|| worker.reset());
        let deadline = Instant::now() + PATIENCE;
        // The reset holds the registers while it waits for the step.
        while window.lock_soon().is_some() {
            assert!(Instant::now() < deadline, "the reset waits for the thread");
        }
        permits.send(()).unwrap();
        while !reset.is_finished() {
            assert!(Instant::now() < deadline, "the reset waits for more than a step");
            thread::sleep(Duration::from_millis(1));
        }
        assert!(begins.try_recv().is_err(), "no other write began");
    });
    assert!(!rig.window.lock().is_running());
    rig.start();
    rig.offer(VIRTIO_BLK_T_FLUSH, 0);
    rig.kick();
    rig.wait_used(1);
}

/// A guest can have its last read make the next request, and that one the next: the end never came.
#[test]
fn requests_that_make_new_ones_do_not_hold_up_the_end() {
    let reads = Arc::new(AtomicU64::new(0));
    let counted = reads.clone();
    let mut rig = Rig::over(move |_| {
        Arc::new(Scripted(move |memory: &GuestMemoryMmap, to: &[CheckedDesc]| {
            let before = counted.fetch_add(1, Ordering::Relaxed);
            let next = u16::try_from((before + 2) & 0xffff).unwrap();
            memory.write_obj(next.to_le(), to[0].addr()).unwrap();
        }))
    });
    let index = rig.queue.layout().avail + 2;
    let header = [VIRTIO_BLK_T_IN.to_le_bytes(), [0; 4], [0; 4], [0; 4]].concat();
    rig.ram.memory().write_slice(&header, GuestAddress(HEADER)).unwrap();
    let chain = [(HEADER, 16, false), (index, 2, true), (DATA, 510, true), (STATUS, 1, true)];
    rig.queue.offer_chain(0, &chain);
    assert_eq!(rig.worker.finish(), Ok(()));
    let reads = reads.load(Ordering::Relaxed);
    assert!((64..5000).contains(&reads), "{reads} requests, of a ring of 64");
}

#[test]
fn another_file_takes_the_place_of_the_first_while_the_guest_runs() {
    let mut rig = Rig::new();
    let (first, other) = (rig.dir.path().join("a.img"), rig.dir.path().join("b.img"));
    fs::write(&other, vec![0x33; 128 * 512]).unwrap();
    rig.fill(0, 0x44);
    rig.offer(VIRTIO_BLK_T_OUT, 0);
    // Available before the change: it still goes to the first, or already to the second.
    rig.kick();
    rig.wait_used(1);
    assert_eq!(rig.replace(Some(&other)), Ok(()));
    assert_eq!(rig.capacity(), 128);
    assert_eq!(rig.worker.place(), (other.clone(), 128 * 512));
    rig.offer(VIRTIO_BLK_T_IN, 127);
    rig.kick();
    rig.wait_used(2);
    assert_eq!(rig.ram.memory().read_obj::<u8>(GuestAddress(DATA + 512)).unwrap(), 0x33);
    assert_eq!(fs::read(&first).unwrap()[0], 0x44);
    // What cannot be a drive changes nothing.
    let refused = rig.replace(Some(Path::new("/nonexistent/c.img"))).expect_err("no such file");
    assert!(matches!(&refused, VmError::Drive(said) if said.contains("/nonexistent/c.img")));
    assert_eq!(rig.capacity(), 128);
    // The same file anew: what it has become.
    File::options().write(true).open(&other).unwrap().set_len(16 * 512).unwrap();
    assert_eq!(rig.replace(None), Ok(()));
    assert_eq!(rig.capacity(), 16);
    File::options().write(true).open(&other).unwrap().set_len(32 * 512).unwrap();
    assert_eq!(rig.replace(Some(&other)), Ok(()), "its own lock is no obstacle");
    assert_eq!(rig.capacity(), 32);
    // The first is free again once nobody holds it.
    let Rig { file, .. } = rig;
    drop(file);
    DriveFile::open(&first, false).expect("unlocked");
}

/// The thread carried the batch out, found it unanswered, and tried again for ever.
#[test]
fn another_file_takes_its_place_while_requests_are_under_way() {
    let mut rig = Rig::new();
    let other = rig.dir.path().join("b.img");
    fs::write(&other, vec![0x33; 64 * 512]).unwrap();
    rig.fill(0, 0x44);
    rig.offer(VIRTIO_BLK_T_OUT, 0);
    {
        // As a vCPU's register write gathers them, which wakes the thread only afterwards.
        let mut transport = rig.window.lock();
        assert_eq!(transport.queue_notified(REQUESTS), QueueProgress::Pending);
    }
    assert_eq!(rig.replace(Some(&other)), Ok(()));
    rig.wait_used(1);
    assert_eq!((rig.statuses(), rig.on_disk(0)), (vec![0], 0x44));
    rig.offer(VIRTIO_BLK_T_IN, 0);
    rig.kick();
    rig.wait_used(2);
    assert_eq!(rig.ram.memory().read_obj::<u8>(GuestAddress(DATA + 512)).unwrap(), 0x33);
    assert_eq!(rig.worker.finish(), Ok(()));
}

/// After a flush that failed nobody can say what is on the disk, however the next one ends.
#[test]
fn a_disk_that_lost_something_is_told_of_at_the_end() {
    let mut rig = Rig::new();
    rig.file.distrust();
    rig.offer(VIRTIO_BLK_T_FLUSH, 0);
    rig.offer(VIRTIO_BLK_T_OUT, 0);
    rig.kick();
    rig.wait_used(2);
    assert_eq!(rig.statuses(), [1, 0]);
    let said = rig.worker.finish().expect_err("something may be lost");
    assert!(said.contains("disk") && said.contains("a.img"), "{said}");
}
