//! A swap device in RAM: for machines without another, and for tests.

use core::ptr::NonNull;

use abi::{PageCount, Pfn};

use super::device::{SlotBytes, SwapDevice, SwapIoError};
use super::error::SwapError;
use crate::buddy::Gfp;
use crate::memdesc::{BlockKind, Order};
use crate::memory::{FrozenFrames, Memory};
use crate::platform::Platform;

/// Blocks that a device is made of at most.
const MAX_BLOCKS: usize = 64;

/// Slots in frames that were taken when the device was made.
#[derive(Debug)]
pub struct RamSwap<'m, P> {
    memory: &'m Memory<P>,
    blocks: [Option<FrozenFrames>; MAX_BLOCKS],
    order: Order,
    slots: u32,
}

impl<'m, P: Platform> RamSwap<'m, P> {
    /// A device of `slots` pages.
    ///
    /// # Errors
    /// [`SwapError::BadSize`] for none, or more than 64 of the largest blocks;
    /// [`SwapError::NoMemory`], with nothing kept.
    pub fn new(memory: &'m Memory<P>, slots: u32) -> Result<Self, SwapError> {
        let per_block = slots.div_ceil(u32::try_from(MAX_BLOCKS).unwrap_or(1)).next_power_of_two();
        let order = Order::try_from(per_block.ilog2()).map_err(|_| SwapError::BadSize)?;
        if slots == 0 {
            return Err(SwapError::BadSize);
        }
        let mut device = Self { memory, blocks: [const { None }; MAX_BLOCKS], order, slots };
        let count = usize::try_from(slots.div_ceil(per_block)).unwrap_or(MAX_BLOCKS);
        for at in 0..count {
            match memory.alloc_frozen(order, Gfp::KERNEL) {
                Ok(mut frames) => {
                    let typed = memory.retype(&mut frames, BlockKind::Brd);
                    debug_assert!(typed.is_ok(), "a frozen block becomes a RAM disk: {typed:?}");
                    device.blocks[at] = Some(frames);
                }
                Err(error) => {
                    device.free();
                    return Err(error.into());
                }
            }
        }
        Ok(device)
    }

    /// Gives its frames back, with what is in them.
    pub fn free(mut self) {
        for block in self.blocks.iter_mut().filter_map(Option::take) {
            self.memory.free_frozen(block);
        }
    }

    /// The bytes of a slot.
    fn bytes(&self, slot: u32) -> Result<NonNull<SlotBytes>, SwapIoError> {
        let missing = SwapIoError::NoSlot(slot);
        let at = usize::try_from(slot >> self.order.get()).map_err(|_| missing)?;
        let block = self.blocks.get(at).and_then(Option::as_ref);
        let block = block.filter(|_| slot < self.slots).ok_or(missing)?;
        let within = PageCount::new(u64::from(slot & ((1 << self.order.get()) - 1)));
        let pfn: Pfn = block.head().checked_add(within).ok_or(missing)?;
        Ok(self.memory.platform().frame_ptr(pfn).cast())
    }
}

impl<P: Platform> SwapDevice for RamSwap<'_, P> {
    fn slots(&self) -> u32 {
        self.slots
    }

    fn read(&self, slot: u32, page: &mut SlotBytes) -> Result<(), SwapIoError> {
        let bytes = self.bytes(slot)?;
        // SAFETY: a frame of the device's own; the caller keeps writers of this slot away.
        *page = unsafe { bytes.read() };
        Ok(())
    }

    fn write(&self, slot: u32, page: &SlotBytes) -> Result<(), SwapIoError> {
        let bytes = self.bytes(slot)?;
        // SAFETY: a frame of the device's own; the caller keeps readers and other
        // writers of this slot away.
        unsafe { bytes.write(*page) };
        Ok(())
    }

    fn discard(&self, _slot: u32) {}
}
