//! Three windows of 2 MiB each in the lower half for every CPU, mapped page by page by its fault handler.

use core::sync::atomic::{AtomicU64, Ordering};

use abi::Pfn;
use guest_kernel::direct_map::{ENTRIES, entry};
use guest_kernel::layout::{BootTable, LARGE_PAGE, PAGE, word};
use guest_mm::buddy::Gfp;
use guest_mm::memdesc::Order;
use guest_mm::memory::{FrozenFrames, Memory};

use crate::image::gate;
use crate::image::paging::direct;
use crate::image::platform::Machine;

/// Root table slot of the first CPU's windows; the next CPU's is the next. The kernel has nothing in the lower half.
const FIRST_ROOT_SLOT: usize = 1;
/// Pages that a round stores to.
const ROUND_PAGES: u64 = 8;
/// How far a round's pointer moves.
pub(super) const ROUND_BYTES: u64 = ROUND_PAGES * PAGE;
/// Tables: PDPT, directory, one table per window.
const TABLES: usize = 5;
/// Frames behind each window; its pages share them in turn.
const FRAMES_PER_WINDOW: usize = 16;
/// All frames: tables, then data.
const FRAMES: usize = TABLES + 3 * FRAMES_PER_WINDOW;

/// Who faults in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Window {
    /// The rounds.
    Main = 0,
    /// Interrupt handlers.
    Interrupts = 1,
    /// The fault handler itself.
    Faults = 2,
}

/// The windows' frames: GPAs, 0 when not installed.
pub(super) struct Windows {
    root_slot: usize,
    frames: [AtomicU64; FRAMES],
}

impl Windows {
    /// Nothing installed.
    pub(super) const fn new(cpu: usize) -> Self {
        let frames = [const { AtomicU64::new(0) }; FRAMES];
        Self { root_slot: FIRST_ROOT_SLOT + cpu, frames }
    }

    /// The first address.
    const fn base(&self) -> u64 {
        (self.root_slot as u64) << 39
    }

    fn frame(&self, index: usize) -> u64 {
        self.frames.get(index).map_or(0, |frame| frame.load(Ordering::Relaxed))
    }

    /// Takes the frames and links the tables; `false`, with nothing taken, without memory.
    pub(super) fn install(&self, memory: &Memory<Machine>) -> bool {
        for slot in &self.frames {
            match memory.alloc_frozen(Order::ZERO, Gfp::KERNEL | Gfp::ZERO) {
                Ok(frame) => slot.store(frame.into_raw().0.gpa(), Ordering::Relaxed),
                Err(_) => {
                    self.free(memory);
                    return false;
                }
            }
        }
        write(BootTable::Pml4.gpa(), self.root_slot, self.frame(0) | entry::TABLE);
        write(self.frame(0), 0, self.frame(1) | entry::TABLE);
        for window in 0..3 {
            write(self.frame(1), window, self.frame(2 + window) | entry::TABLE);
        }
        true
    }

    /// Unlinks the tables and frees everything. Nobody uses the windows any more, but their translations are still cached.
    pub(super) fn remove(&self, memory: &Memory<Machine>) {
        write(BootTable::Pml4.gpa(), self.root_slot, 0);
        self.free(memory);
    }

    fn free(&self, memory: &Memory<Machine>) {
        for slot in &self.frames {
            let gpa = slot.swap(0, Ordering::Relaxed);
            if gpa != 0 {
                // SAFETY: `install` gave the handle of this frame up.
                memory.free_frozen(unsafe {
                    FrozenFrames::from_raw(Pfn::containing(gpa), Order::ZERO)
                });
            }
        }
    }

    /// The window and page of an address.
    fn locate(&self, address: u64) -> Option<(Window, usize)> {
        let offset = address.checked_sub(self.base())?;
        let window = match offset / LARGE_PAGE {
            0 => Window::Main,
            1 => Window::Interrupts,
            2 => Window::Faults,
            _ => return None,
        };
        Some((window, word(offset % LARGE_PAGE / PAGE)))
    }

    /// Maps the page of a faulting address; `None` if it is in no window or mapped already.
    pub(super) fn map(&self, address: u64) -> Option<Window> {
        let (window, page) = self.locate(address)?;
        let table = self.frame(2 + window as usize);
        let frame =
            self.frame(TABLES + window as usize * FRAMES_PER_WINDOW + page % FRAMES_PER_WINDOW);
        if table == 0 || frame == 0 || read(table, page) & entry::PRESENT != 0 {
            return None;
        }
        write(table, page, frame | entry::DATA);
        Some(window)
    }

    /// Takes the mapping of `address` away.
    fn unmap(&self, address: u64) {
        if let Some((window, page)) = self.locate(address) {
            write(self.frame(2 + window as usize), page, 0);
            gate::invlpg(address);
        }
    }

    /// Faults in a window of a handler's, and undoes it.
    pub(super) fn touch(&self, window: Window, salt: u64) {
        let address = self.base() + window as u64 * LARGE_PAGE + salt % ENTRIES as u64 * PAGE;
        let byte = core::ptr::with_exposed_provenance_mut::<u8>(word(address));
        // SAFETY: the fault handler maps the page before the store completes; its frame is ours.
        unsafe { byte.write_volatile(1) };
        self.unmap(address);
    }

    /// Where a round begins: somewhere in the main window, with room for all its pages.
    pub(super) fn round_start(&self, salt: u64) -> *mut u8 {
        let page = salt % (ENTRIES as u64 / ROUND_PAGES) * ROUND_PAGES;
        core::ptr::with_exposed_provenance_mut(word(self.base() + page * PAGE))
    }

    /// Takes the mappings of a round away.
    pub(super) fn unmap_round(&self, start: *mut u8) {
        for page in 0..ROUND_PAGES {
            self.unmap(start.addr() as u64 + page * PAGE);
        }
    }
}

fn slot(table: u64, index: usize) -> *mut u64 {
    direct(table + (index % ENTRIES) as u64 * 8).cast()
}

fn read(table: u64, index: usize) -> u64 {
    // SAFETY: `table` is the root or a frame that `install` took, in the direct map.
    unsafe { slot(table, index).read_volatile() }
}

fn write(table: u64, index: usize, value: u64) {
    // SAFETY: as in `read`; entries map frames that `install` took.
    unsafe { slot(table, index).write_volatile(value) };
}
