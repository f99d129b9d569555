//! Switching swap on and off.

use core::fmt;
use core::ptr::{self, NonNull};

use super::device::{SlotBytes, SwapDevice, SwapIoError};
use super::error::SwapError;
use super::ram::RamSwap;
use super::stats::SwapCounters;
use super::table::SwapTable;
use super::zram::{Zram, ZramStats};
use crate::buddy::Gfp;
use crate::memdesc::{BlockKind, Order};
use crate::memory::{FrozenFrames, Memory};
use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::shim::{AtomicPtr, AtomicU64, Ordering};

/// Swap as a manager has it: on or off.
pub(crate) struct Swap<'m, P: Platform> {
    /// The area that is on, or null. Read in a read section, or by who has a slot in use.
    area: AtomicPtr<SwapArea<'m, P>>,
    pub(super) counters: SwapCounters,
}

impl<P: Platform> Swap<'_, P> {
    /// Off.
    pub(crate) const fn new() -> Self {
        Self { area: AtomicPtr::new(ptr::null_mut()), counters: SwapCounters::new() }
    }
}

/// A device and the words of its slots. Lives in a frame of its own.
pub(super) struct SwapArea<'m, P: Platform> {
    device: Device<'m, P>,
    pub(super) table: SwapTable<'m>,
    words: FrozenFrames,
    /// The frame that this is in.
    frame: FrozenFrames,
}

impl<P: Platform> SwapArea<'_, P> {
    const FITS: () = assert!(size_of::<Self>() <= 4096, "an area fits a frame");
}

#[expect(clippy::large_enum_variant, reason = "there is one, in a frame of its own")]
enum Device<'m, P: Platform> {
    Ram(RamSwap<'m, P>),
    Zram(Zram<'m, P>),
    Other(&'m dyn SwapDevice),
}

impl<P: Platform> SwapArea<'_, P> {
    fn device(&self) -> &dyn SwapDevice {
        match &self.device {
            Device::Ram(device) => device,
            Device::Zram(device) => device,
            Device::Other(device) => *device,
        }
    }

    pub(super) fn read(&self, slot: u32, page: &mut SlotBytes) -> Result<(), SwapIoError> {
        self.device().read(slot, page)
    }

    pub(super) fn write(&self, slot: u32, page: &SlotBytes) -> Result<(), SwapIoError> {
        self.device().write(slot, page)
    }

    /// Ends the use of a slot that nobody uses and that is the caller's.
    pub(super) fn free_slot(&self, platform: &P, slot: u32) {
        self.device().discard(slot);
        self.table.give_back(platform, slot);
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Swaps to `slots` pages of RAM, which are taken now.
    ///
    /// # Errors
    /// [`SwapError::Busy`] if a device is on, [`SwapError::BadSize`], [`SwapError::NoMemory`].
    pub fn swapon_ram(&self, slots: u32) -> Result<(), SwapError> {
        let device = RamSwap::new(self.memory(), slots)?;
        self.swapon_device(slots, Device::Ram(device))
    }

    /// Swaps to `slots` pages of compressed RAM, which is taken as it is needed.
    ///
    /// # Errors
    /// As [`Self::swapon_ram`]; also [`SwapError::Pool`].
    pub fn swapon_zram(&self, slots: u32) -> Result<(), SwapError> {
        let device = Zram::new(self, slots)?;
        self.swapon_device(slots, Device::Zram(device))
    }

    /// What the compressed device has and has done, if it is one that is on.
    pub fn zram_stats(&self) -> Option<ZramStats> {
        self.with_area(|area| match &area.device {
            Device::Zram(device) => Some(device.stats()),
            Device::Ram(_) | Device::Other(_) => None,
        })?
    }

    /// Swaps to `device`.
    ///
    /// # Errors
    /// As [`Self::swapon_ram`].
    pub fn swapon(&self, device: &'m dyn SwapDevice) -> Result<(), SwapError> {
        self.swapon_device(device.slots(), Device::Other(device))
    }

    fn swapon_device(&self, slots: u32, device: Device<'m, P>) -> Result<(), SwapError> {
        let () = SwapArea::<'m, P>::FITS;
        let memory = self.memory();
        let undo = |device, error| {
            self.free_device(device);
            Err(error)
        };
        let words = match alloc_words(memory, slots) {
            Ok(words) => words,
            Err(error) => return undo(device, error),
        };
        let frame = match memory.alloc_frozen(Order::ZERO, Gfp::KERNEL) {
            Ok(frame) => frame,
            Err(error) => {
                memory.free_frozen(words);
                return undo(device, error.into());
            }
        };
        let place = memory.platform().frame_ptr(frame.head()).cast::<SwapArea<'m, P>>();
        let is_bad = |slot| match &device {
            Device::Ram(_) | Device::Zram(_) => false,
            Device::Other(device) => device.is_bad(slot),
        };
        let table = SwapTable::new(words_of(memory, &words, slots), &is_bad);
        // SAFETY: a frame of ours, aligned and large enough (asserted above), that
        // nobody else knows.
        unsafe { place.write(SwapArea { device, table, words, frame }) };
        // Release pairs with the Acquire in `area`.
        let published = self.swap.area.compare_exchange(
            ptr::null_mut(),
            place.as_ptr(),
            Ordering::Release,
            Ordering::Relaxed,
        );
        if published.is_err() {
            self.free_area(place);
            return Err(SwapError::Busy);
        }
        Ok(())
    }

    /// Switches swap off and gives the device's memory back. Folios that are only in the swap cache leave it; locks folios.
    ///
    /// # Errors
    /// [`SwapError::NoDevice`]; [`SwapError::Busy`] while a leaf names a slot, or
    /// reclaim is about to make one do so.
    pub fn swapoff(&self) -> Result<(), SwapError> {
        self.drop_all_unused();
        self.with_area(|area| area.table.close(self.platform())).ok_or(SwapError::NoDevice)??;
        // No slot is in use and none will be: only lookups by leaves that are gone
        // can come, and they are in read sections.
        let area = self.swap.area.swap(ptr::null_mut(), Ordering::AcqRel);
        let area = NonNull::new(area).ok_or(SwapError::NoDevice)?;
        self.base().rcu.synchronize(self.platform());
        self.free_area(area);
        Ok(())
    }

    /// Frees an area that nobody can reach.
    fn free_area(&self, area: NonNull<SwapArea<'m, P>>) {
        // SAFETY: written by `swapon_device`, unreachable now, and read this once.
        let SwapArea { device, words, frame, .. } = unsafe { area.read() };
        self.free_device(device);
        self.memory().free_frozen(words);
        self.memory().free_frozen(frame);
    }

    fn free_device(&self, device: Device<'m, P>) {
        match device {
            Device::Ram(device) => device.free(),
            Device::Zram(device) => device.free(self),
            Device::Other(_) => {}
        }
    }

    /// Runs `act` on the device that is on, for measurements of it: a slot in use is its users'.
    pub fn with_swap_device<R>(&self, act: impl FnOnce(&dyn SwapDevice) -> R) -> Option<R> {
        self.with_area(|area| act(area.device()))
    }

    /// Runs `act` on the area that is on, in a read section.
    pub(super) fn with_area<R>(&self, act: impl FnOnce(&SwapArea<'m, P>) -> R) -> Option<R> {
        let _section = self.base().rcu.read(self.platform().cpu());
        let area = NonNull::new(self.swap.area.load(Ordering::Acquire))?;
        // SAFETY: freed only after a grace period; all that changes in it is atomic or
        // behind a lock.
        Some(act(unsafe { area.as_ref() }))
    }
}

/// Frames for the words of `slots` slots.
pub(super) fn alloc_words<P: Platform>(
    memory: &Memory<P>,
    slots: u32,
) -> Result<FrozenFrames, SwapError> {
    let bytes = u64::from(slots) * size_of::<AtomicU64>() as u64;
    let pages = bytes.div_ceil(abi::PAGE_SIZE);
    let order = Order::try_from(pages.next_power_of_two().ilog2()).ok();
    let order = order.filter(|_| slots > 0).ok_or(SwapError::BadSize)?;
    let mut words = memory.alloc_frozen(order, Gfp::KERNEL)?;
    let typed = memory.retype(&mut words, BlockKind::LargeKmalloc);
    debug_assert!(typed.is_ok(), "a frozen block becomes the kernel's: {typed:?}");
    Ok(words)
}

/// `slots` words in `frames`, all 0.
pub(super) fn words_of<'m, P: Platform>(
    memory: &'m Memory<P>,
    frames: &FrozenFrames,
    slots: u32,
) -> &'m [AtomicU64] {
    let start = memory.platform().frame_ptr(frames.head()).cast::<AtomicU64>();
    let slots = usize::try_from(slots).unwrap_or(0);
    for at in 0..slots {
        // SAFETY: `alloc_words` made room for `slots` words.
        let word = unsafe { start.add(at) };
        // SAFETY: as above; nobody else knows the frames.
        unsafe { word.write(AtomicU64::new(0)) };
    }
    // SAFETY: initialised just now; the frames are the area's until nobody can
    // reach it any more, and the direct map outlives the memory.
    unsafe { core::slice::from_raw_parts(start.as_ptr(), slots) }
}

impl<P: Platform> fmt::Debug for Swap<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Swap").field("counters", &self.counters).finish_non_exhaustive()
    }
}
