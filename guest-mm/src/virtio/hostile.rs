//! Devices that answer anything: the drivers must come through without a panic, without a hang, and with their books in
//! order. What a device may do that no driver can defend itself against is left out: it does not write to memory that it
//! was not lent, nor after its reset is complete.

use core::cell::RefCell;
use core::ptr::NonNull;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use abi::virtio::ring::VIRTQ_DESC_F_WRITE;
use abi::virtio::{VIRTIO_ID_BALLOON, VIRTIO_ID_CONSOLE, VIRTIO_ID_RNG, status};
use abi::{Pfn, mmio};

use super::MmioBus;
use crate::balloon::tests::map_store::MapStore;
use crate::balloon::{BalloonDriver, BalloonPhase, Options, Wake};
use crate::console::ConsoleDriver;
use crate::entropy::EntropyDriver;
use crate::platform::Platform;
use crate::testing::memory;

/// Machines that each test builds.
const SEEDS: u64 = 300;
const PAGES: u64 = 2048;

/// Numbers without quality.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    /// What devices send when they send nonsense.
    fn odd32(&mut self) -> u32 {
        let noise = u32::try_from(self.next() >> 32).unwrap();
        [0, 1, 2, 255, 256, 0x7fff_ffff, u32::MAX, noise][self.index(8)]
    }

    fn odd16(&mut self) -> u16 {
        u16::try_from(self.odd32() & 0xffff).unwrap()
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }
}

/// Addresses of a queue: descriptors, available, used.
#[derive(Default, Clone, Copy)]
struct Ring {
    addresses: [u64; 3],
    entries: u16,
    /// Buffers taken from the available ring.
    taken: u16,
    used: u16,
    is_ready: bool,
}

struct State {
    random: Random,
    /// One answer in so many is nonsense: some devices are worse than others.
    nonsense_in: u64,
    id: u32,
    status: u32,
    select: u32,
    rings: BTreeMap<u32, Ring>,
    /// Registers are read as all ones: the device has been taken away.
    is_gone: bool,
}

/// The device.
struct Hostile<'m> {
    ram: &'m dyn Platform,
    state: RefCell<State>,
}

impl<'m> Hostile<'m> {
    fn new(ram: &'m dyn Platform, id: u32, seed: u64) -> Self {
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let state = State {
            random,
            nonsense_in: 8 << (seed % 8),
            id,
            status: 0,
            select: 0,
            rings: BTreeMap::new(),
            is_gone: false,
        };
        Self { ram, state: RefCell::new(state) }
    }

    fn random<R>(&self, draw: impl FnOnce(&mut Random) -> R) -> R {
        draw(&mut self.state.borrow_mut().random)
    }

    /// The memory at `gpa`, which lies in a page that was lent.
    fn at<T>(&self, gpa: u64) -> *mut T {
        let frame: NonNull<u8> = self.ram.frame_ptr(Pfn::containing(gpa));
        frame.as_ptr().wrapping_add(usize::try_from(gpa % 4096).unwrap()).cast()
    }

    fn read<T: Copy>(&self, gpa: u64) -> T {
        // SAFETY: a ring or a buffer in a page that the driver has lent; `T` is an integer.
        unsafe { self.at::<T>(gpa).read_volatile() }
    }

    fn write<T: Copy>(&self, gpa: u64, value: T) {
        // SAFETY: as above.
        unsafe { self.at::<T>(gpa).write_volatile(value) }
    }

    /// Does something to one of its queues: returns a buffer that it has, or one that it has not.
    fn act(&self) {
        let mut state = self.state.borrow_mut();
        let State { random, rings, nonsense_in, .. } = &mut *state;
        let Some(number) = rings.keys().copied().nth(random.index(rings.len().max(1))) else {
            return;
        };
        let Some(ring) = rings.get_mut(&number).filter(|ring| ring.is_ready) else { return };
        let [_, available, used] = ring.addresses;
        let head = if random.chance(*nonsense_in) {
            [random.odd32(), u32::from(random.odd16() % ring.entries)][random.index(2)]
        } else if self.read::<u16>(available + 2) == ring.taken {
            return;
        } else {
            let slot = 2 * u64::from(ring.taken % ring.entries);
            ring.taken = ring.taken.wrapping_add(1);
            u32::from(self.read::<u16>(available + 4 + slot))
        };
        let len = self.fill(random, ring, head);
        let slot = 8 * u64::from(ring.used % ring.entries);
        self.write(used + 4 + slot, head);
        self.write(used + 8 + slot, if random.chance(*nonsense_in) { random.odd32() } else { len });
        let step = if random.chance(4 * *nonsense_in) { random.odd16() } else { 1 };
        ring.used = ring.used.wrapping_add(step);
        self.write(used + 2, ring.used);
        self.write(used, if random.chance(4) { random.odd16() } else { 0u16 });
    }

    /// Fills the buffer of descriptor `head` with noise, or with what looks like a message; returns how much.
    fn fill(&self, random: &mut Random, ring: &Ring, head: u32) -> u32 {
        if head >= u32::from(ring.entries) {
            return 0;
        }
        let at = ring.addresses[0] + 16 * u64::from(head);
        let (gpa, len, flags): (u64, u32, u16) =
            (self.read(at), self.read(at + 8), self.read(at + 12));
        if gpa == 0 || (flags & VIRTQ_DESC_F_WRITE == 0 && !random.chance(64)) {
            return 0;
        }
        let len = u32::try_from(random.below(u64::from(len) + 1)).unwrap();
        for offset in 0..len {
            self.write(gpa + u64::from(offset), random.next().to_le_bytes()[5]);
        }
        let name = b"org.aerostat.agent";
        if len >= 8 + 18 && random.chance(2) {
            // A control message: port, event, value, and the name that matters.
            self.write(gpa, u32::try_from(random.below(2)).unwrap());
            self.write(gpa + 4, u16::try_from(random.below(9)).unwrap());
            self.write(gpa + 6, u16::try_from(random.below(2)).unwrap());
            for (at, byte) in (gpa + 8..).zip(name) {
                self.write(at, *byte);
            }
            return 8 + 18;
        }
        len
    }
}

impl State {
    /// Whether this is a moment to ask for a reset.
    fn wants_a_reset(&mut self) -> bool {
        self.random.chance(4 * self.nonsense_in)
    }
}

impl MmioBus for Hostile<'_> {
    fn read32(&self, offset: u64) -> u32 {
        let mut state = self.state.borrow_mut();
        let State { random, nonsense_in: one_in, id, status, select, rings, is_gone } = &mut *state;
        let is_odd = random.chance(8 * *one_in);
        if *is_gone {
            return u32::MAX;
        }
        match offset {
            mmio::MAGIC_VALUE => mmio::MAGIC,
            mmio::VERSION => mmio::VERSION_2,
            mmio::DEVICE_ID => *id,
            _ if is_odd => random.odd32(),
            mmio::DEVICE_FEATURES => u32::MAX,
            mmio::STATUS => *status,
            mmio::QUEUE_NUM_MAX => 256,
            mmio::QUEUE_READY => u32::from(rings.get(select).is_some_and(|ring| ring.is_ready)),
            mmio::INTERRUPT_STATUS => u32::try_from(random.below(4)).unwrap(),
            mmio::CONFIG.. if random.chance(2) => u32::try_from(random.below(PAGES)).unwrap(),
            _ => random.odd32(),
        }
    }

    fn write32(&self, offset: u64, value: u32) {
        let mut state = self.state.borrow_mut();
        let select = state.select;
        match offset {
            mmio::STATUS => {
                state.status = value;
                if value == 0 {
                    state.rings.clear();
                } else if state.wants_a_reset() {
                    state.status |= status::DEVICE_NEEDS_RESET;
                }
            }
            mmio::QUEUE_SEL => state.select = value,
            mmio::QUEUE_NUM => {
                state.rings.entry(select).or_default().entries = u16::try_from(value).unwrap();
            }
            mmio::QUEUE_READY => {
                state.rings.entry(select).or_default().is_ready = value == 1;
            }
            mmio::QUEUE_DESC_LOW | mmio::QUEUE_DRIVER_LOW | mmio::QUEUE_DEVICE_LOW => {
                let part = usize::try_from((offset - mmio::QUEUE_DESC_LOW) / 16).unwrap();
                // Test memory lies below 4 GiB.
                state.rings.entry(select).or_default().addresses[part] = u64::from(value);
            }
            _ => {}
        }
    }

    fn read8(&self, offset: u64) -> u8 {
        self.read32(offset & !3).to_le_bytes()[usize::try_from(offset & 3).unwrap()]
    }
}

#[test]
fn no_entropy_device_breaks_its_driver() {
    let mut read = 0;
    for seed in 0..SEEDS {
        let memory = memory(PAGES);
        let free = memory.free_pages();
        let hostile = Hostile::new(memory.platform(), VIRTIO_ID_RNG, seed);
        let Ok(mut driver) = EntropyDriver::start(&hostile, &memory) else { continue };
        for _ in 0..400 {
            match hostile.random(|random| random.below(4)) {
                0 => driver.interrupt(),
                1 => hostile.act(),
                _ => {
                    let mut out = vec![0; hostile.random(|random| random.index(5000))];
                    read += driver.read(&mut out).unwrap_or(0);
                }
            }
        }
        let is_given_back = driver.shut_down(&memory).is_ok();
        assert!(!is_given_back || memory.free_pages() == free, "seed {seed}");
    }
    assert!(read > 10_000, "the device was too hostile to be talked to: {read}");
}

#[test]
fn no_console_breaks_its_driver() {
    let (mut sent, mut received) = (0, 0);
    for seed in 0..SEEDS {
        let memory = memory(PAGES);
        let free = memory.free_pages();
        let hostile = Hostile::new(memory.platform(), VIRTIO_ID_CONSOLE, seed);
        let Ok(mut driver) = ConsoleDriver::start(&hostile, &memory) else { continue };
        for _ in 0..1000 {
            match hostile.random(|random| random.below(8)) {
                0 => driver.interrupt(),
                1 => drop(driver.poll()),
                2 => sent += driver.send(&[7; 900]).unwrap_or(0),
                3 => received += driver.receive(&mut [0; 700]).unwrap_or(0),
                _ => (0..20).for_each(|_| hostile.act()),
            }
        }
        let is_given_back = driver.shut_down(&memory).is_ok();
        assert!(!is_given_back || memory.free_pages() == free, "seed {seed}");
    }
    assert!(sent > 0 && received > 0, "too hostile to be talked to: {sent} {received}");
}

#[test]
fn no_balloon_breaks_its_driver() {
    let (mut phases, mut settled, mut faults) = (Vec::new(), 0, 0);
    for seed in 0..SEEDS {
        let memory = memory(PAGES);
        let free = memory.free_pages();
        let store = MapStore::default();
        let hostile = Hostile::new(memory.platform(), VIRTIO_ID_BALLOON, seed);
        let started = BalloonDriver::start(&memory, &store, &hostile, Options::default());
        let Ok(mut driver) = started else { continue };
        for _ in 0..600 {
            match hostile.random(|random| random.below(5)) {
                0 => driver.interrupt(),
                1 => hostile.act(),
                2 => memory.platform().advance_ns(hostile.random(|random| random.below(1 << 30))),
                _ => drop(driver.poll()),
            }
        }
        assert_eq!(driver.status().counters.inconsistencies, 0, "seed {seed}");
        driver.unbind();
        for _ in 0..5000 {
            if let Wake::At(at) = driver.poll() {
                let wait = at.saturating_sub(memory.platform().now_ns());
                memory.platform().advance_ns(wait);
            }
        }
        let status = driver.status();
        phases.push(status.phase);
        settled += status.counters.settled_pages;
        faults += status.counters.device_faults;
        match driver.finish() {
            // Unless the last reset was one that never ended, nothing is missing.
            Ok(()) => assert!(
                memory.free_pages() == free || hostile.state.borrow().status != 0,
                "seed {seed}: {status:?}"
            ),
            Err(driver) => {
                assert_eq!(driver.status().phase, BalloonPhase::Failed, "seed {seed}");
            }
        }
    }
    assert!(phases.contains(&BalloonPhase::Down), "too hostile to be talked to");
    assert!(settled > 10_000 && faults > 100, "{settled} pages, {faults} faults");
}

/// Every register reads as all ones, as on a bus from which the device was taken.
#[test]
fn a_device_that_is_taken_away_ends_its_driver_only() {
    let memory = memory(PAGES);
    let gone = |hostile: &Hostile<'_>| hostile.state.borrow_mut().is_gone = true;
    let (mut ended, mut seed) = ([0; 3], 0);
    while ended.iter().any(|count| *count < 10) {
        seed += 1;
        assert!(seed < 1000, "too hostile to be talked to: {ended:?}");
        let hostile = Hostile::new(memory.platform(), VIRTIO_ID_RNG, seed);
        if let Ok(mut driver) = EntropyDriver::start(&hostile, &memory) {
            gone(&hostile);
            driver.interrupt();
            assert!(driver.read(&mut [0; 8]).is_err());
            assert!(driver.shut_down(&memory).is_err(), "it may still write to what it was lent");
            ended[0] += 1;
        }
        let hostile = Hostile::new(memory.platform(), VIRTIO_ID_CONSOLE, seed);
        if let Ok(mut driver) = ConsoleDriver::start(&hostile, &memory) {
            gone(&hostile);
            driver.interrupt();
            assert!(driver.poll().is_err() && driver.send(b"x").is_err());
            ended[1] += 1;
        }
        let store = MapStore::default();
        let hostile = Hostile::new(memory.platform(), VIRTIO_ID_BALLOON, seed);
        let options = Options::default();
        if let Ok(mut driver) = BalloonDriver::start(&memory, &store, &hostile, options) {
            gone(&hostile);
            driver.interrupt();
            for _ in 0..2000 {
                if let Wake::At(at) = driver.poll() {
                    let wait = at.saturating_sub(memory.platform().now_ns());
                    memory.platform().advance_ns(wait);
                }
            }
            assert_eq!(driver.status().phase, BalloonPhase::Failed);
            ended[2] += 1;
        }
    }
}
