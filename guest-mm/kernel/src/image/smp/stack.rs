//! Stacks of the other CPUs and of threads: in slots of their own, each with nothing mapped below it.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_kernel::layout::{self, MAX_STACK_BYTES, PAGE, STACK_SLOT_COUNT, stack_top};
use guest_mm::buddy::Gfp;
use guest_mm::memdesc::Order;
use guest_mm::memory::Memory;

use crate::image::paging;
use crate::image::platform::Machine;

/// Bytes of the stack in each slot; 0: none yet.
static BYTES: [AtomicU64; STACK_SLOT_COUNT] = [const { AtomicU64::new(0) }; STACK_SLOT_COUNT];

/// There was no memory for a stack, or no such slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct NoStack;

/// Puts a stack of `2^order` pages into a slot, for good; one that has a stack keeps it.
pub(super) fn place(memory: &Memory<Machine>, slot: usize, order: Order) -> Result<(), NoStack> {
    let bytes = BYTES.get(slot).ok_or(NoStack)?;
    let wanted = order.pages().get() * PAGE;
    if bytes.load(Ordering::Relaxed) != 0 {
        return Ok(());
    }
    if wanted > MAX_STACK_BYTES {
        return Err(NoStack);
    }
    let frames = memory.alloc_frozen(order, Gfp::KERNEL).map_err(|_| NoStack)?;
    let top = stack_top(slot as u64);
    // Kept for good: a CPU or a thread lives on it from now on.
    let (start, _) = frames.into_raw();
    for page in 0..order.pages().get() {
        let gpa = start.gpa() + page * PAGE;
        let zeroed_table = || {
            let table = memory.alloc_frozen(Order::ZERO, Gfp::KERNEL | Gfp::ZERO).ok()?;
            Some(table.into_raw().0.gpa())
        };
        if !paging::map_stack_page(top - wanted + page * PAGE, gpa, zeroed_table) {
            return Err(NoStack);
        }
    }
    bytes.store(wanted, Ordering::Release);
    Ok(())
}

/// Whether the 16 bytes at `address` lie in a stack of a slot.
pub(in crate::image) fn in_a_stack(address: u64) -> bool {
    (0..STACK_SLOT_COUNT).zip(&BYTES).any(|(slot, bytes)| {
        let (top, bytes) = (stack_top(slot as u64), bytes.load(Ordering::Acquire));
        bytes != 0 && address >= top - bytes && address <= top - 16
    })
}

const _: () = assert!(STACK_SLOT_COUNT > layout::CPUS);
