//! What the request path of a drive costs beside the bare system calls.
//!
//! A driver makes requests available in guest memory, one notification goes
//! through the transport, the batch is carried out over the real file, and the
//! answers are taken from the used ring: everything but the wake-up of the
//! worker's thread. The floor is one `preadv` or `pwritev` for each request, of
//! the same places of the same file and the same guest memory. Both alternate,
//! round by round, so that a line and its floor have seen the same machine. The
//! file is in the page cache: the disk is not what is measured.
//!
//! `cargo bench -p aerostat --bench block`

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::block::feature::FLUSH;
use abi::block::request::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use aerostat::drive::DriveFile;
use devices::ram::GuestRam;
use devices::testing::{BlockMachine, TestRam};
use vm_memory::{GuestAddress, GuestMemoryBackend};

const FILE_BYTES: u64 = 128 << 20;
const RAM_BYTES: usize = 64 << 20;
const ROUNDS: usize = 41;
const MIB: u64 = 1 << 20;

/// One line of the table.
struct Work {
    name: &'static str,
    is_write: bool,
    is_random: bool,
    request_bytes: u64,
    /// Requests that one notification announces.
    depth: u16,
    /// Bytes of a round.
    round_bytes: u64,
}

const WORK: [Work; 8] = [
    Work {
        name: "4 KiB random read",
        is_write: false,
        is_random: true,
        request_bytes: 4096,
        depth: 1,
        round_bytes: 4 * MIB,
    },
    Work {
        name: "4 KiB random read",
        is_write: false,
        is_random: true,
        request_bytes: 4096,
        depth: 32,
        round_bytes: 4 * MIB,
    },
    Work {
        name: "4 KiB random write",
        is_write: true,
        is_random: true,
        request_bytes: 4096,
        depth: 1,
        round_bytes: 4 * MIB,
    },
    Work {
        name: "4 KiB random write",
        is_write: true,
        is_random: true,
        request_bytes: 4096,
        depth: 32,
        round_bytes: 4 * MIB,
    },
    Work {
        name: "4 KiB sequential read",
        is_write: false,
        is_random: false,
        request_bytes: 4096,
        depth: 32,
        round_bytes: 4 * MIB,
    },
    Work {
        name: "4 KiB sequential write",
        is_write: true,
        is_random: false,
        request_bytes: 4096,
        depth: 32,
        round_bytes: 4 * MIB,
    },
    Work {
        name: "1 MiB sequential read",
        is_write: false,
        is_random: false,
        request_bytes: MIB,
        depth: 4,
        round_bytes: 64 * MIB,
    },
    Work {
        name: "1 MiB sequential write",
        is_write: true,
        is_random: false,
        request_bytes: MIB,
        depth: 4,
        round_bytes: 64 * MIB,
    },
];

fn main() {
    let dir = tempfile::TempDir::new_in("/tmp").expect("a scratch directory");
    let path = dir.path().join("disk.img");
    std::fs::write(&path, vec![0x5a; usize::try_from(FILE_BYTES).expect("fits")]).expect("a file");
    let ram = Arc::new(TestRam::new(&[(0, RAM_BYTES)]));
    // Populated, so that no round pays for its pages.
    touch(&ram);
    let file = File::options().read(true).write(true).open(&path).expect("my own file");
    let drive = Arc::new(DriveFile::open(&path, false).expect("a drive"));
    let mut machine = BlockMachine::new(ram.clone(), drive, FLUSH);
    println!(
        "| request | depth | device ns/request, min / median / max | bare system call | × bare | MiB/s |"
    );
    println!("|---|---:|---|---|---:|---:|");
    for work in &WORK {
        let mut device = Vec::new();
        let mut bare = Vec::new();
        for round in 0..ROUNDS {
            let places = work.places(round as u64);
            bare.push(time(|| bare_round(work, &file, &ram, &places)));
            device.push(time(|| device_round(work, &mut machine, &places)));
        }
        work.say(device, bare);
    }
}

impl Work {
    /// Offsets in the file of one round.
    fn places(&self, round: u64) -> Vec<u64> {
        let count = self.round_bytes / self.request_bytes;
        let slots = FILE_BYTES / self.request_bytes;
        // A full-period step visits places all over the file; SplitMix's constant is odd.
        let step = if self.is_random { 0x9e37_79b9_7f4a_7c15 } else { 1 };
        let at = |n: u64| (n.wrapping_add(round * 7919)).wrapping_mul(step) % slots;
        (0..count).map(|n| at(n) * self.request_bytes).collect()
    }

    fn kind(&self) -> u32 {
        if self.is_write { VIRTIO_BLK_T_OUT } else { VIRTIO_BLK_T_IN }
    }

    /// Guest memory of the `n`th request of a batch.
    fn buffer(&self, n: usize) -> u64 {
        (1 << 20) + n as u64 * self.request_bytes
    }

    fn say(&self, device: Vec<Duration>, bare: Vec<Duration>) {
        let requests = self.round_bytes / self.request_bytes;
        let [device, bare] = [device, bare].map(|times| spread(times, requests));
        println!(
            "| {} | {} | {:.0} / {:.0} / {:.0} | {:.0} / {:.0} / {:.0} | {:.2} | {:.0} |",
            self.name,
            self.depth,
            device[0],
            device[1],
            device[2],
            bare[0],
            bare[1],
            bare[2],
            device[1] / bare[1],
            bytes_per_ns(self.request_bytes, device[1]) * 1e9 / (1 << 20) as f64,
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn bytes_per_ns(bytes: u64, ns: f64) -> f64 {
    bytes as f64 / ns
}

/// Minimum, median and maximum in nanoseconds per request.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn spread(mut times: Vec<Duration>, requests: u64) -> [f64; 3] {
    times.sort_unstable();
    let per_request = |time: &Duration| time.as_nanos() as f64 / requests as f64;
    [&times[0], &times[times.len() / 2], &times[times.len() - 1]].map(per_request)
}

fn time(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

fn touch(ram: &TestRam) {
    for page in (0..RAM_BYTES as u64).step_by(4096) {
        vm_memory::Bytes::write_obj(ram.memory(), 1u8, GuestAddress(page)).expect("RAM");
    }
}

fn device_round(work: &Work, machine: &mut BlockMachine, places: &[u64]) {
    let len = u32::try_from(work.request_bytes).expect("small");
    for batch in places.chunks(work.depth.into()) {
        for (n, place) in batch.iter().enumerate() {
            let data = (work.buffer(n), len, !work.is_write);
            machine.offer(work.kind(), place / 512, &[data]);
        }
        machine.kick();
        let answers = machine.answers();
        assert_eq!(answers.len(), batch.len(), "every request is answered");
        assert!(answers.iter().all(|(_, answer)| answer.status == 0), "with success");
    }
}

fn bare_round(work: &Work, file: &File, ram: &TestRam, places: &[u64]) {
    let len = usize::try_from(work.request_bytes).expect("small");
    for batch in places.chunks(work.depth.into()) {
        for (n, place) in batch.iter().enumerate() {
            let at = GuestAddress(work.buffer(n));
            let slice = ram.memory().get_slice(at, len).expect("RAM");
            let guard = slice.ptr_guard_mut();
            let part = libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: len };
            let offset = i64::try_from(*place).expect("small");
            let fd = file.as_raw_fd();
            let moved = if work.is_write {
                // SAFETY: reads `len` bytes of the slice, which lives until the end of the block.
                unsafe { libc::pwritev(fd, &raw const part, 1, offset) }
            } else {
                // SAFETY: writes `len` bytes of the slice, which nothing else refers to.
                unsafe { libc::preadv(fd, &raw const part, 1, offset) }
            };
            assert_eq!(usize::try_from(moved), Ok(len));
        }
    }
}
