//! A balloon over real memory, timed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::{PageCount, Pfn, PfnRange};
use devices::balloon::{BalloonOptions, queues};
use devices::ram::GuestRam;
use devices::testing::BalloonMachine;
use guest_ram::{BackingKind, HostRam, Prefault};
use vm_memory::{Bytes, GuestAddress};

/// Frames of one inflate: a full ring of 256 buffers of 256.
pub(crate) const PAGES: u32 = 65_536;
/// First frame inflated: 64 MiB.
pub(crate) const FIRST_PFN: u32 = 16_384;
/// Guest RAM: 1 GiB.
const RAM_BYTES: u64 = 1 << 30;

/// One timed iteration.
pub(crate) struct Sample {
    pub(crate) time: Duration,
    pub(crate) calls: u64,
    pub(crate) freed_bytes: u64,
}

pub(crate) struct Rig {
    kind: BackingKind,
    ram: Arc<HostRam>,
    machine: BalloonMachine,
}

impl Rig {
    pub(crate) fn new(kind: BackingKind) -> Self {
        let ram = Arc::new(HostRam::new(RAM_BYTES, kind, Prefault::OnDemand).expect("1 GiB"));
        println!("{kind}: released by {}, verified by {}", ram.release_method(), ram.truth_name());
        let machine = BalloonMachine::new(ram.clone(), BalloonOptions::default());
        Self { kind, ram, machine }
    }

    pub(crate) fn kind(&self) -> BackingKind {
        self.kind
    }

    /// One release call over everything from the first to the last of `frames`, populated before.
    pub(crate) fn floor(&mut self, frames: &[u32]) -> Sample {
        let hull = hull(frames);
        self.populate(frames);
        let before = self.resident_bytes();
        let started = Instant::now();
        let done = self.ram.discard(&[hull]).expect("the host releases");
        let time = started.elapsed();
        Sample { time, calls: done.calls, freed_bytes: before - self.resident_bytes() }
    }

    /// Inflates `frames`, populated before; only the kick is timed.
    pub(crate) fn inflate(&mut self, frames: &[u32]) -> Sample {
        self.populate(frames);
        self.machine.offer_inflate(frames);
        let before = self.resident_bytes();
        let (time, calls) = self.kick(queues::INFLATE);
        let freed_bytes = before - self.resident_bytes();
        assert_eq!(freed_bytes, u64::from(PAGES) * abi::PAGE_SIZE, "every byte was freed");
        Sample { time, calls, freed_bytes }
    }

    /// Deflates `frames`, inflated before; only the kick is timed.
    pub(crate) fn deflate(&mut self, frames: &[u32]) -> Sample {
        self.machine.inflate(frames);
        self.machine.offer_deflate(frames);
        let (time, calls) = self.kick(queues::DEFLATE);
        Sample { time, calls, freed_bytes: 0 }
    }

    /// The time of a kick until all buffers are back, and the release calls it took.
    fn kick(&mut self, queue: u16) -> (Duration, u64) {
        let calls = self.calls();
        let started = Instant::now();
        self.machine.kick(queue);
        let time = started.elapsed();
        assert_eq!(self.machine.take_used(), 256, "every buffer came back");
        (time, self.calls() - calls)
    }

    fn calls(&self) -> u64 {
        self.machine.balloon().counters().discard_calls
    }

    /// Touches each page, in ascending order whatever the order in which the guest will name them:
    /// that order decides where the kernel's page structures lie, and with it half of a release's cost.
    fn populate(&self, frames: &[u32]) {
        let mut ascending = frames.to_vec();
        ascending.sort_unstable();
        for pfn in ascending {
            let at = GuestAddress(Pfn::from_u32(pfn).gpa());
            self.ram.memory().write_obj(0xa5u8, at).expect("in RAM");
        }
    }

    fn resident_bytes(&self) -> u64 {
        self.ram.resident_bytes().expect("readable").expect("verified")
    }
}

fn hull(frames: &[u32]) -> PfnRange {
    let first = frames.iter().min().copied().expect("frames");
    let last = frames.iter().max().copied().expect("frames");
    let len = PageCount::new(u64::from(last - first) + 1);
    PfnRange::from_start(Pfn::from_u32(first), len).expect("in RAM")
}
