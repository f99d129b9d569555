//! A balloon device for scenarios on the host: registers and two queues by the
//! book, answered at once by whatever CPU rings.
//!
//! It discards what it is given, so that whoever still uses a page notices, and
//! keeps the set of pages that it holds: a page that comes twice, or goes without
//! having come, is a panic. Answers that take their time, several at once or
//! wrong ones are the simulated machine's, which has the real device.

use core::fmt;
use core::ptr::NonNull;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use abi::balloon::{CONFIG_ACTUAL, CONFIG_NUM_PAGES, feature};
use abi::virtio::{VIRTIO_F_VERSION_1, VIRTIO_ID_BALLOON};
use abi::{PAGE_SIZE, Pfn, mmio};

use super::TestPlatform;
use crate::platform::Platform;
use crate::virtio::MmioBus;

/// Queues: inflate and deflate.
const QUEUES: usize = 2;
/// Entries of each at most.
const ENTRIES: u32 = 256;

#[derive(Debug, Default)]
struct Queue {
    entries: u32,
    is_ready: bool,
    /// Descriptors, available ring, used ring.
    addresses: [u64; 3],
    next_available: u16,
    next_used: u16,
}

#[derive(Debug, Default)]
struct State {
    features_select: u32,
    queue_select: u32,
    queues: [Queue; QUEUES],
    status: u32,
    interrupt: u32,
    num_pages: u32,
    actual: u32,
    held: BTreeSet<u32>,
}

/// The device; the driver reaches it as its [`MmioBus`].
pub struct BalloonDevice<'m> {
    platform: &'m TestPlatform,
    state: Mutex<State>,
}

impl<'m> BalloonDevice<'m> {
    /// A balloon with target 0 that offers DEFLATE_ON_OOM.
    pub fn new(platform: &'m TestPlatform) -> Self {
        Self { platform, state: Mutex::new(State::default()) }
    }

    /// Sets the target, in pages, and announces it.
    pub fn set_target(&self, pages: u32) {
        let mut state = self.state();
        state.num_pages = pages;
        state.interrupt |= mmio::INT_CONFIG;
    }

    /// Whether the device has told the guest something that it has not acknowledged.
    pub fn has_interrupt(&self) -> bool {
        self.state().interrupt != 0
    }

    /// Pages that the host holds.
    pub fn held(&self) -> u64 {
        self.state().held.len() as u64
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A CPU that panics below it has ended the test.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves every buffer of `queue`.
    fn serve(&self, state: &mut State, queue: usize) {
        let State { queues, held, interrupt, .. } = state;
        let Some(ring) = queues.get_mut(queue).filter(|ring| ring.is_ready) else { return };
        let [descriptors, available, used] = ring.addresses;
        while self.read::<u16>(available + 2) != ring.next_available {
            let slot = u64::from(u32::from(ring.next_available) % ring.entries);
            let head = self.read::<u16>(available + 4 + 2 * slot);
            ring.next_available = ring.next_available.wrapping_add(1);
            let at = descriptors + 16 * u64::from(head);
            let (gpa, len) = (self.read::<u64>(at), self.read::<u32>(at + 8));
            for pfn in (0..u64::from(len) / 4).map(|n| self.read::<u32>(gpa + 4 * n)) {
                if queue == 0 {
                    assert!(held.insert(pfn), "page {pfn:#x} came twice");
                    let page = self.platform.frame_ptr(Pfn::from_u32(pfn));
                    // SAFETY: a page of RAM that the driver has given away.
                    unsafe { page.as_ptr().write_bytes(0, 4096) };
                } else {
                    assert!(held.remove(&pfn), "page {pfn:#x} goes and was not there");
                }
            }
            let slot = u64::from(u32::from(ring.next_used) % ring.entries);
            self.write(used + 4 + 8 * slot, u32::from(head));
            self.write(used + 8 + 8 * slot, 0u32);
            ring.next_used = ring.next_used.wrapping_add(1);
            self.write(used + 2, ring.next_used);
            *interrupt |= mmio::INT_VRING;
        }
    }

    fn pointer<T>(&self, gpa: u64) -> NonNull<T> {
        let frame = self.platform.frame_ptr(Pfn::containing(gpa));
        let offset = usize::try_from(gpa % PAGE_SIZE).unwrap_or_default();
        assert!(offset + size_of::<T>() <= 4096, "access across a page");
        // SAFETY: inside the page, checked above.
        unsafe { frame.add(offset) }.cast()
    }

    fn read<T: Copy>(&self, gpa: u64) -> T {
        let pointer = self.pointer::<T>(gpa);
        // SAFETY: inside a page of RAM lent to the device; `T` is an integer.
        unsafe { pointer.read_volatile() }
    }

    fn write<T: Copy>(&self, gpa: u64, value: T) {
        let pointer = self.pointer::<T>(gpa);
        // SAFETY: as for `read`.
        unsafe { pointer.write_volatile(value) }
    }
}

/// Half of a 64-bit value.
const fn half(value: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

impl MmioBus for BalloonDevice<'_> {
    fn read32(&self, offset: u64) -> u32 {
        let state = self.state();
        let queue = usize::try_from(state.queue_select).ok().and_then(|q| state.queues.get(q));
        match offset {
            mmio::MAGIC_VALUE => mmio::MAGIC,
            mmio::VERSION => mmio::VERSION_2,
            mmio::DEVICE_ID => VIRTIO_ID_BALLOON,
            mmio::DEVICE_FEATURES => {
                half(VIRTIO_F_VERSION_1 | feature::DEFLATE_ON_OOM, state.features_select)
            }
            mmio::QUEUE_NUM_MAX => queue.map_or(0, |_| ENTRIES),
            mmio::QUEUE_READY => queue.map_or(0, |queue| u32::from(queue.is_ready)),
            mmio::INTERRUPT_STATUS => state.interrupt,
            mmio::STATUS => state.status,
            mmio::CONFIG.. if offset == mmio::CONFIG + CONFIG_NUM_PAGES => state.num_pages,
            mmio::CONFIG.. if offset == mmio::CONFIG + CONFIG_ACTUAL => state.actual,
            _ => 0,
        }
    }

    fn write32(&self, offset: u64, value: u32) {
        let mut state = self.state();
        let select = usize::try_from(state.queue_select).unwrap_or(QUEUES);
        match offset {
            mmio::DEVICE_FEATURES_SEL => state.features_select = value,
            mmio::QUEUE_SEL => state.queue_select = value,
            mmio::QUEUE_NOTIFY => {
                self.serve(&mut state, usize::try_from(value).unwrap_or(QUEUES));
            }
            mmio::INTERRUPT_ACK => state.interrupt &= !value,
            mmio::STATUS if value == 0 => {
                let num_pages = state.num_pages;
                *state = State { num_pages, ..State::default() };
            }
            mmio::STATUS => state.status = value,
            mmio::CONFIG.. if offset == mmio::CONFIG + CONFIG_ACTUAL => state.actual = value,
            _ => {
                if let Some(queue) = state.queues.get_mut(select) {
                    set_queue(queue, offset, value);
                }
            }
        }
    }

    fn read8(&self, offset: u64) -> u8 {
        let [byte, ..] =
            self.read32(offset & !3).rotate_right(8 * half(offset & 3, 0)).to_le_bytes();
        byte
    }
}

/// A register of the selected queue.
fn set_queue(queue: &mut Queue, offset: u64, value: u32) {
    let (index, is_high) = match offset {
        mmio::QUEUE_NUM => return queue.entries = value,
        mmio::QUEUE_READY => return queue.is_ready = value == 1,
        mmio::QUEUE_DESC_LOW => (0, false),
        mmio::QUEUE_DESC_HIGH => (0, true),
        mmio::QUEUE_DRIVER_LOW => (1, false),
        mmio::QUEUE_DRIVER_HIGH => (1, true),
        mmio::QUEUE_DEVICE_LOW => (2, false),
        mmio::QUEUE_DEVICE_HIGH => (2, true),
        _ => return,
    };
    let address = &mut queue.addresses[index];
    *address = if is_high {
        *address & 0xffff_ffff | u64::from(value) << 32
    } else {
        *address & !0xffff_ffff | u64::from(value)
    };
}

impl fmt::Debug for BalloonDevice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalloonDevice").field("state", &self.state).finish_non_exhaustive()
    }
}
