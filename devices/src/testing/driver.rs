//! A driver's side of rings and registers, able to misbehave on purpose.

use abi::mmio;
use abi::virtio::ring::{VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use abi::virtio::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::ring::{RawDesc, RingLayout};
use crate::transport::MmioTransport;
use crate::virtio::{QueueProgress, VirtioDevice};

/// One element of a used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsedElement {
    /// Head of the returned chain.
    pub head: u32,
    /// Bytes that the device says it wrote.
    pub written: u32,
}

/// A split ring from the driver's side.
#[derive(Debug, Clone)]
pub struct DriverQueue {
    mem: GuestMemoryMmap,
    layout: RingLayout,
    avail: u16,
    used: u16,
}

impl DriverQueue {
    /// A zeroed ring of `size` entries at `base` (page-aligned), over [`Self::bytes`] bytes.
    pub fn new(mem: &GuestMemoryMmap, base: u64, size: u16) -> Self {
        let avail = base + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let bytes = usize::try_from(Self::bytes(size)).expect("small");
        mem.write_slice(&vec![0; bytes], GuestAddress(base)).expect("ring in RAM");
        let layout = RingLayout { size, desc: base, avail, used };
        Self { mem: mem.clone(), layout, avail: 0, used: 0 }
    }

    /// Bytes that a ring of `size` entries takes.
    pub fn bytes(size: u16) -> u64 {
        let size = u64::from(size);
        16 * size + (6 + 2 * size).next_multiple_of(4) + 6 + 8 * size
    }

    /// Where the ring is.
    pub fn layout(&self) -> RingLayout {
        self.layout
    }

    /// Writes descriptor `index`.
    pub fn set_desc(&self, index: u16, desc: RawDesc) {
        self.set_desc_at(self.layout.desc, index, desc);
    }

    /// Writes descriptor `index` of an (indirect) table at `table`.
    pub fn set_desc_at(&self, table: u64, index: u16, desc: RawDesc) {
        let at = GuestAddress(table + 16 * u64::from(index));
        self.mem.write_slice(&desc.to_le_bytes(), at).expect("table in RAM");
    }

    /// Writes a chain of `(addr, len, writable)` buffers into descriptors from
    /// `head` on and makes it available.
    pub fn offer_chain(&mut self, head: u16, buffers: &[(u64, u32, bool)]) {
        let last = buffers.len().saturating_sub(1);
        for (index, (position, &(addr, len, writable))) in (head..).zip(buffers.iter().enumerate())
        {
            let write = if writable { VIRTQ_DESC_F_WRITE } else { 0 };
            let next = if position < last { VIRTQ_DESC_F_NEXT } else { 0 };
            self.set_desc(index, RawDesc { addr, len, flags: write | next, next: index + 1 });
        }
        self.offer(head);
    }

    /// Makes `head` available, whatever it is.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.avail % self.layout.size);
        self.store(self.layout.avail + 4 + 2 * slot, head);
        self.avail = self.avail.wrapping_add(1);
        self.set_avail_index(self.avail);
    }

    /// Stores the available index, whatever it is.
    pub fn set_avail_index(&self, index: u16) {
        self.store(self.layout.avail + 2, index);
    }

    /// Stores the available ring's flags.
    pub fn set_avail_flags(&self, flags: u16) {
        self.store(self.layout.avail, flags);
    }

    /// Stores `used_event`: the device interrupts once it has used that index.
    pub fn set_used_event(&self, index: u16) {
        self.store(self.layout.avail + 4 + 2 * u64::from(self.layout.size), index);
    }

    /// The used ring's flags.
    pub fn used_flags(&self) -> u16 {
        self.load(self.layout.used)
    }

    /// `avail_event`: the driver kicks once it has made that index available.
    pub fn avail_event(&self) -> u16 {
        self.load(self.layout.used + 4 + 8 * u64::from(self.layout.size))
    }

    /// The used index.
    pub fn used_index(&self) -> u16 {
        self.load(self.layout.used + 2)
    }

    /// Takes the next used element, if there is one.
    pub fn take_used(&mut self) -> Option<UsedElement> {
        if self.used_index() == self.used {
            return None;
        }
        let slot = u64::from(self.used % self.layout.size);
        let at = GuestAddress(self.layout.used + 4 + 8 * slot);
        let [head, written]: [u32; 2] = self.mem.read_obj(at).expect("ring in RAM");
        self.used = self.used.wrapping_add(1);
        Some(UsedElement { head: u32::from_le(head), written: u32::from_le(written) })
    }

    /// Takes all used elements.
    pub fn take_all_used(&mut self) -> Vec<UsedElement> {
        std::iter::from_fn(|| self.take_used()).collect()
    }

    fn store(&self, at: u64, value: u16) {
        self.mem.write_obj(value.to_le(), GuestAddress(at)).expect("ring in RAM");
    }

    fn load(&self, at: u64) -> u16 {
        u16::from_le(self.mem.read_obj(GuestAddress(at)).expect("ring in RAM"))
    }
}

/// The register accesses that drivers make.
pub trait DriverRegisters {
    /// Loads a register.
    fn load(&mut self, offset: u64) -> u32;
    /// Stores a register.
    fn store(&mut self, offset: u64, value: u32) -> QueueProgress;

    /// Resets, negotiates `features` and stops after FEATURES_OK; returns the status then.
    fn negotiate(&mut self, features: u64) -> u32 {
        let halves = [features & u64::from(u32::MAX), features >> 32];
        let mut write = |offset, value| {
            self.store(offset, value);
        };
        write(mmio::STATUS, 0);
        write(mmio::STATUS, ACKNOWLEDGE);
        write(mmio::STATUS, ACKNOWLEDGE | DRIVER);
        for (selector, half) in (0..).zip(halves) {
            write(mmio::DRIVER_FEATURES_SEL, selector);
            write(mmio::DRIVER_FEATURES, u32::try_from(half).expect("32 bits"));
        }
        write(mmio::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.load(mmio::STATUS)
    }

    /// Sets up and enables queue `index`; returns whether it reads as enabled then.
    fn enable_queue(&mut self, index: u16, layout: RingLayout) -> bool {
        let mut write = |offset, value| {
            self.store(offset, value);
        };
        write(mmio::QUEUE_SEL, index.into());
        write(mmio::QUEUE_NUM, layout.size.into());
        for (low, address) in [
            (mmio::QUEUE_DESC_LOW, layout.desc),
            (mmio::QUEUE_DRIVER_LOW, layout.avail),
            (mmio::QUEUE_DEVICE_LOW, layout.used),
        ] {
            write(low, u32::try_from(address & u64::from(u32::MAX)).expect("32 bits"));
            write(low + 4, u32::try_from(address >> 32).expect("32 bits"));
        }
        write(mmio::QUEUE_READY, 1);
        self.load(mmio::QUEUE_READY) == 1
    }

    /// Sets DRIVER_OK; returns the status then.
    fn start(&mut self) -> u32 {
        let status = self.load(mmio::STATUS);
        self.store(mmio::STATUS, status | DRIVER_OK);
        self.load(mmio::STATUS)
    }
}

impl<D: VirtioDevice> DriverRegisters for MmioTransport<D> {
    fn load(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn store(&mut self, offset: u64, value: u32) -> QueueProgress {
        self.write(offset, &value.to_le_bytes())
    }
}
