//! `protection`: ring 3 tries to read and write what is the nucleus' own, wherever it could be mapped.

use core::arch::global_asm;

use guest_kernel::layout::{
    ALIAS_DISTANCE, CPUS, DIRECT_MAP, IMAGE_GPA, NUCLEUS, PAGE, PRIVATE_PAGES, STACK_PAGE,
};
use guest_kernel::scenario::{FAILURE, SUCCESS};
use guest_mm::store::PfnStore;

use crate::image::kernel::Kernel;
use crate::image::trap::{self, TrapFrame};

// Each access is one instruction at a known address, so that the fault handler can go on behind it. The store needs
// the right to write but changes nothing: where it should not succeed and does, the machine lives to tell.
global_asm!(
    ".text",
    "protection_read:",
    "mov al, byte ptr [rdi]",
    "xor eax, eax",
    "ret",
    "protection_write:",
    "or byte ptr [rdi], 0",
    "xor eax, eax",
    "ret",
    "protection_refused:",
    "mov eax, 1",
    "ret",
);

unsafe extern "C" {
    /// Loads a byte; 0 if that was allowed.
    fn protection_read(address: u64) -> u32;
    /// Stores the byte that is there; 0 if that was allowed.
    fn protection_write(address: u64) -> u32;
    /// Returns 1 to the caller of either.
    fn protection_refused() -> u32;
}

/// What ring 3 may do with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rights {
    read: bool,
    write: bool,
}

const NOTHING: Rights = Rights { read: false, write: false };
const READ: Rights = Rights { read: true, write: false };
const ALL: Rights = Rights { read: true, write: true };

/// Sends a refused access of ours on its way; no other fault is mended.
fn on_page_fault(frame: &mut TrapFrame) -> bool {
    let at = |function: unsafe extern "C" fn(u64) -> u32| function as usize as u64;
    if frame.rip != at(protection_read) && frame.rip != at(protection_write) {
        return false;
    }
    frame.rip = protection_refused as *const () as usize as u64;
    true
}

/// Tries both accesses.
fn rights(address: u64) -> Rights {
    // SAFETY: a load of a byte that nobody looks at; a fault is mended by `on_page_fault`.
    let read = unsafe { protection_read(address) } == 0;
    // SAFETY: as above; the store leaves the byte as it is. No device register is among the addresses tried.
    let write = unsafe { protection_write(address) } == 0;
    Rights { read, write }
}

/// A page that ring 3 may do anything with: shows that the tries can succeed.
static OWN: core::sync::atomic::AtomicU8 = core::sync::atomic::AtomicU8::new(1);

impl<S: PfnStore> Kernel<'_, S> {
    /// Runs the scenario.
    pub(super) fn protection(&mut self) -> u8 {
        trap::set_page_fault_handler(Some(on_page_fault));
        let (mut tried, mut wrong) = (0, 0);
        let mut expect = |kernel: &mut Self, what: &str, address: u64, expected: Rights| {
            tried += 1;
            let found = rights(address);
            if found != expected {
                wrong += 1;
                kernel.print(format_args!(
                    "WRONG: {what} at {address:#x}: {found:?} instead of {expected:?}"
                ));
            }
        };
        for page in 0..PRIVATE_PAGES {
            let offset = page * PAGE;
            let is_stack = (STACK_PAGE..STACK_PAGE + CPUS as u64).contains(&page);
            expect(self, "nucleus", NUCLEUS + offset, NOTHING);
            expect(self, "nucleus in the direct map", DIRECT_MAP + IMAGE_GPA + offset, NOTHING);
            expect(self, "nucleus in the identity map", IMAGE_GPA + offset, NOTHING);
            let in_view = if is_stack { READ } else { NOTHING };
            expect(self, "view of the entry stacks", NUCLEUS - ALIAS_DISTANCE + offset, in_view);
        }
        let text = rights as *const () as usize as u64;
        expect(self, "text", text, READ);
        expect(self, "text in the direct map", text - NUCLEUS + DIRECT_MAP + IMAGE_GPA, READ);
        expect(self, "null", 0, NOTHING);
        expect(self, "data", OWN.as_ptr().addr() as u64, ALL);
        trap::set_page_fault_handler(None);
        self.print(format_args!("{tried} places tried, {wrong} wrong"));
        if wrong == 0 { SUCCESS } else { FAILURE }
    }
}
