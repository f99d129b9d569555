//! A naive memory device: registers, one ring, a set of plugged blocks. It can be told to misbehave.

use core::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};

use abi::mem::{request, response, state};
use abi::virtio::{VIRTIO_F_VERSION_1, VIRTIO_ID_MEM, status};
use abi::{Pfn, PfnRange, mmio};

use crate::platform::Platform;
use crate::testing::TestPlatform;
use crate::virtio::MmioBus;

/// What the device does with a request instead of serving it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mischief {
    /// Gives this answer and does nothing.
    Answer(u16),
    /// Does it and says nothing.
    Silence,
    /// Does it, and asks for a reset instead of answering.
    DoneThenReset,
    /// Does nothing, and asks for a reset.
    Reset,
    /// Returns a head that it was never given.
    WrongHead,
    /// Returns the buffer with nothing in it.
    Empty,
}

#[derive(Default)]
struct Registers {
    status: u32,
    select: u32,
    entries: u32,
    ready: u32,
    rings: [u64; 3],
    taken: u16,
    used: u16,
    pending: u32,
    generation: u32,
}

pub(super) struct NaiveDevice<'m> {
    ram: &'m TestPlatform,
    region: PfnRange,
    /// Frames of a block.
    unit: u64,
    registers: RefCell<Registers>,
    /// First frames of the plugged blocks.
    plugged: RefCell<BTreeSet<u64>>,
    requested: Cell<u64>,
    usable: Cell<u64>,
    /// What to do with the next requests.
    pub(super) mischief: RefCell<VecDeque<Mischief>>,
    /// Requests seen: type, first frame, blocks.
    pub(super) seen: RefCell<Vec<(u16, u64, u16)>>,
    /// What `block_size` says, if not the truth.
    pub(super) claimed_unit: Cell<Option<u64>>,
    /// What `region_size` says, if not the truth.
    pub(super) claimed_bytes: Cell<Option<u64>>,
    /// A device whose configuration is another one at every look.
    pub(super) is_restless: Cell<bool>,
    /// A device that forgets what is plugged when it is reset.
    pub(super) forgets: Cell<bool>,
}

impl<'m> NaiveDevice<'m> {
    pub(super) fn new(ram: &'m TestPlatform, region: PfnRange, unit: u64) -> Self {
        Self {
            ram,
            region,
            unit,
            registers: RefCell::default(),
            plugged: RefCell::default(),
            requested: Cell::new(0),
            usable: Cell::new(region.len().get()),
            mischief: RefCell::default(),
            seen: RefCell::default(),
            claimed_unit: Cell::new(None),
            claimed_bytes: Cell::new(None),
            is_restless: Cell::new(false),
            forgets: Cell::new(false),
        }
    }

    /// Asks the driver for `pages` pages.
    pub(super) fn request(&self, pages: u64) {
        self.requested.set(pages);
        self.changed();
    }

    pub(super) fn set_usable(&self, pages: u64) {
        self.usable.set(pages);
        self.changed();
    }

    fn changed(&self) {
        let mut registers = self.registers.borrow_mut();
        registers.generation += 1;
        registers.pending |= mmio::INT_CONFIG;
    }

    /// Pages that are plugged.
    pub(super) fn plugged(&self) -> u64 {
        self.plugged.borrow().len() as u64 * self.unit
    }

    pub(super) fn is_plugged(&self, pfn: Pfn) -> bool {
        self.plugged.borrow().contains(&(pfn.number() / self.unit * self.unit))
    }

    /// Plugs a block that no driver asked for.
    pub(super) fn plug_silently(&self, pfn: u64) {
        self.plugged.borrow_mut().insert(pfn);
    }

    pub(super) fn needs_reset(&self) {
        let mut registers = self.registers.borrow_mut();
        registers.status |= status::DEVICE_NEEDS_RESET;
        registers.pending |= mmio::INT_CONFIG;
    }

    pub(super) fn has_interrupt(&self) -> bool {
        self.registers.borrow().pending != 0
    }

    fn at<T>(&self, gpa: u64) -> *mut T {
        let frame = self.ram.frame_ptr(Pfn::containing(gpa)).as_ptr();
        frame.wrapping_add(usize::try_from(gpa % 4096).unwrap()).cast()
    }

    fn read<T: Copy>(&self, gpa: u64) -> T {
        // SAFETY: in a page that the driver has lent; `T` is an integer.
        unsafe { self.at::<T>(gpa).read_unaligned() }
    }

    fn write<T: Copy>(&self, gpa: u64, value: T) {
        // SAFETY: as above.
        unsafe { self.at::<T>(gpa).write_unaligned(value) }
    }

    /// Serves the requests that wait.
    pub(super) fn serve(&self) {
        while self.serve_one() {}
    }

    fn serve_one(&self) -> bool {
        let (rings, entries, taken) = {
            let registers = self.registers.borrow();
            (registers.rings, registers.entries, registers.taken)
        };
        if self.registers.borrow().ready == 0 || self.read::<u16>(rings[1] + 2) == taken {
            return false;
        }
        self.registers.borrow_mut().taken = taken.wrapping_add(1);
        let slot = u64::from(u32::from(taken) % entries);
        let head: u16 = self.read(rings[1] + 4 + 2 * slot);
        let [first, second] = self.chain(rings[0], head);
        let kind: u16 = self.read(first);
        let (gpa, blocks): (u64, u16) = (self.read(first + 8), self.read(first + 16));
        let start = gpa / 4096;
        self.seen.borrow_mut().push((kind, start, blocks));
        let mischief = self.mischief.borrow_mut().pop_front();
        let ack = response::VIRTIO_MEM_RESP_ACK;
        let (answer, is_done) = match mischief {
            Some(Mischief::Answer(answer)) => (Some(answer), false),
            Some(Mischief::Silence | Mischief::DoneThenReset) => (None, true),
            Some(Mischief::Reset) => (None, false),
            None | Some(Mischief::WrongHead | Mischief::Empty) => (Some(ack), true),
        };
        let mut found = 0xeeee;
        let mut answer = answer;
        if is_done {
            match self.perform(kind, start, u64::from(blocks)) {
                Ok(state) => found = state,
                Err(wrong) => answer = answer.and(Some(wrong)),
            }
        }
        if let Some(Mischief::DoneThenReset | Mischief::Reset) = mischief {
            self.needs_reset();
        }
        if let Some(answer) = answer {
            self.write(second, answer);
            self.write(second + 8, found);
            self.give_back(mischief, head);
        }
        true
    }

    /// The addresses of a chain's two buffers.
    fn chain(&self, table: u64, head: u16) -> [u64; 2] {
        let at = table + 16 * u64::from(head);
        let (len, flags, next): (u32, u16, u16) =
            (self.read(at + 8), self.read(at + 12), self.read(at + 14));
        assert_eq!((len, flags), (24, 1), "a request that is read, and goes on");
        let tail = table + 16 * u64::from(next);
        let (len, flags): (u32, u16) = (self.read(tail + 8), self.read(tail + 12));
        assert_eq!((len, flags), (10, 2), "an answer that is written");
        [self.read(at), self.read(tail)]
    }

    fn give_back(&self, mischief: Option<Mischief>, head: u16) {
        let mut registers = self.registers.borrow_mut();
        let slot = u64::from(u32::from(registers.used) % registers.entries);
        let at = registers.rings[2] + 4 + 8 * slot;
        let head = u32::from(head) + u32::from(mischief == Some(Mischief::WrongHead));
        let len = if mischief == Some(Mischief::Empty) { 0u32 } else { 10 };
        self.write(at, head);
        self.write(at + 4, len);
        registers.used = registers.used.wrapping_add(1);
        self.write(registers.rings[2] + 2, registers.used);
        registers.pending |= mmio::INT_VRING;
    }

    /// What a request comes to: a state, or what is wrong with it.
    fn perform(&self, kind: u16, start: u64, blocks: u64) -> Result<u16, u16> {
        let mut plugged = self.plugged.borrow_mut();
        if kind == request::VIRTIO_MEM_REQ_UNPLUG_ALL {
            plugged.clear();
            return Ok(0);
        }
        let first = self.region.start().number();
        let pages = blocks * self.unit;
        let is_inside = start >= first
            && start.is_multiple_of(self.unit)
            && start + pages <= first + self.usable.get()
            && blocks > 0;
        if !is_inside {
            return Err(response::VIRTIO_MEM_RESP_ERROR);
        }
        let starts = (0..blocks).map(|n| start + n * self.unit);
        let count = starts.clone().filter(|start| plugged.contains(start)).count() as u64;
        match kind {
            request::VIRTIO_MEM_REQ_PLUG if count > 0 => Err(response::VIRTIO_MEM_RESP_ERROR),
            request::VIRTIO_MEM_REQ_PLUG
                if plugged.len() as u64 * self.unit + pages > self.requested.get() =>
            {
                Err(response::VIRTIO_MEM_RESP_NACK)
            }
            request::VIRTIO_MEM_REQ_PLUG => {
                plugged.extend(starts);
                Ok(0)
            }
            request::VIRTIO_MEM_REQ_UNPLUG if count < blocks => {
                Err(response::VIRTIO_MEM_RESP_ERROR)
            }
            request::VIRTIO_MEM_REQ_UNPLUG => {
                for start in starts {
                    plugged.remove(&start);
                    self.scribble(start);
                }
                Ok(0)
            }
            request::VIRTIO_MEM_REQ_STATE if count == blocks => Ok(state::VIRTIO_MEM_STATE_PLUGGED),
            request::VIRTIO_MEM_REQ_STATE if count == 0 => Ok(state::VIRTIO_MEM_STATE_UNPLUGGED),
            request::VIRTIO_MEM_REQ_STATE => Ok(state::VIRTIO_MEM_STATE_MIXED),
            _ => Err(response::VIRTIO_MEM_RESP_ERROR),
        }
    }

    /// Overwrites the first page of each pageblock of what the driver gave away: it uses nothing of it any more.
    fn scribble(&self, start: u64) {
        let spare = self.ram.spare().unwrap();
        let frames = (start..start + self.unit).step_by(64).filter_map(Pfn::new);
        for pfn in frames.filter(|pfn| spare.contains(*pfn)) {
            // SAFETY: spare RAM that the driver has unplugged.
            unsafe { self.ram.spare_ptr(pfn).as_ptr().write_bytes(0x5a, 64) };
        }
    }

    fn config(&self, offset: u64) -> u64 {
        match offset {
            0 => self.claimed_unit.get().unwrap_or(self.unit * 4096),
            16 => self.region.start().gpa(),
            24 => self.claimed_bytes.get().unwrap_or(self.region.len().bytes()),
            32 => self.usable.get() * 4096,
            40 => self.plugged() * 4096,
            48 => self.requested.get() * 4096,
            _ => 0,
        }
    }
}

impl MmioBus for NaiveDevice<'_> {
    fn read32(&self, offset: u64) -> u32 {
        if offset == mmio::CONFIG_GENERATION && self.is_restless.get() {
            self.registers.borrow_mut().generation += 1;
        }
        let registers = self.registers.borrow();
        let half = |value: u64, high: bool| {
            u32::try_from(if high { value >> 32 } else { value & 0xffff_ffff }).unwrap()
        };
        match offset {
            mmio::MAGIC_VALUE => mmio::MAGIC,
            mmio::VERSION => mmio::VERSION_2,
            mmio::DEVICE_ID => VIRTIO_ID_MEM,
            mmio::DEVICE_FEATURES => half(VIRTIO_F_VERSION_1 | 2, registers.select == 1),
            mmio::STATUS => registers.status,
            mmio::QUEUE_NUM_MAX => 128,
            mmio::QUEUE_READY => registers.ready,
            mmio::INTERRUPT_STATUS => registers.pending,
            mmio::CONFIG_GENERATION => registers.generation,
            mmio::CONFIG.. => {
                let at = offset - mmio::CONFIG;
                half(self.config(at / 8 * 8), at % 8 == 4)
            }
            _ => 0,
        }
    }

    fn write32(&self, offset: u64, value: u32) {
        let mut registers = self.registers.borrow_mut();
        match offset {
            mmio::DEVICE_FEATURES_SEL => registers.select = value,
            mmio::STATUS if value == 0 => {
                *registers =
                    Registers { generation: registers.generation + 1, ..Registers::default() };
                if self.forgets.get() {
                    self.plugged.borrow_mut().clear();
                }
            }
            mmio::STATUS => registers.status = value,
            mmio::QUEUE_NUM => registers.entries = value,
            mmio::QUEUE_READY => registers.ready = value,
            mmio::INTERRUPT_ACK => registers.pending &= !value,
            mmio::QUEUE_DESC_LOW | mmio::QUEUE_DRIVER_LOW | mmio::QUEUE_DEVICE_LOW => {
                let part = usize::try_from((offset - mmio::QUEUE_DESC_LOW) / 16).unwrap();
                // Test memory lies below 4 GiB.
                registers.rings[part] = u64::from(value);
            }
            _ => {}
        }
    }

    fn read8(&self, _offset: u64) -> u8 {
        0
    }
}
