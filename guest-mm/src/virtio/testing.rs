//! A reference device for unit tests: registers and rings by the book, and the
//! means to break the book's rules on purpose.

use core::cell::{Cell, RefCell};
use core::ptr::NonNull;
use std::collections::VecDeque;
use std::vec::Vec;

use abi::virtio::{VIRTIO_F_VERSION_1, status};
use abi::{PAGE_SIZE, Pfn, mmio};

use super::{DmaMemory, DmaPage, MmioBus};
use crate::platform::Platform;

/// Pages on the heap, at guest-physical 0.
pub(crate) struct TestRam {
    pages: NonNull<u8>,
    count: usize,
    next: Cell<u64>,
    returned: Cell<u64>,
}

// SAFETY: a raw view of memory that is never freed; tests are single-threaded.
unsafe impl Sync for TestRam {}

impl TestRam {
    pub(crate) fn new(count: usize) -> Self {
        #[repr(C, align(4096))]
        #[derive(Clone)]
        struct Page([u8; 4096]);
        let pages: &mut [Page] = Vec::leak(std::vec![Page([0; 4096]); count]);
        Self {
            pages: NonNull::from(pages).cast(),
            count,
            next: Cell::new(1),
            returned: Cell::new(0),
        }
    }

    /// Pages lent and not taken back.
    pub(crate) fn lent(&self) -> u64 {
        self.next.get() - 1 - self.returned.get()
    }

    /// Lends the next page.
    pub(crate) fn page(&self) -> DmaPage {
        let pfn = Pfn::new(self.next.replace(self.next.get() + 1)).unwrap();
        // SAFETY: each page is lent once; the memory is never freed.
        unsafe { DmaPage::new(pfn, self.frame_ptr(pfn)) }
    }
}

impl DmaMemory for TestRam {
    fn lend_page(&self) -> Option<DmaPage> {
        (usize::try_from(self.next.get()).unwrap() < self.count).then(|| self.page())
    }

    unsafe fn take_back(&self, page: DmaPage) {
        // SAFETY: the caller's promise.
        let _pfn = unsafe { page.into_pfn() };
        self.returned.set(self.returned.get() + 1);
    }
}

// SAFETY: `frame_ptr` hands out 4096-aligned pages of leaked memory.
unsafe impl Platform for TestRam {
    fn frame_ptr(&self, pfn: Pfn) -> NonNull<u8> {
        let index = usize::try_from(pfn.number()).unwrap();
        assert!(index < self.count, "no RAM at {pfn:?}");
        // SAFETY: inside the allocation, checked above.
        unsafe { self.pages.add(index * 4096) }
    }

    fn frame_of(&self, address: usize) -> Option<Pfn> {
        let index = address.checked_sub(self.pages.addr().get())? / 4096;
        (index < self.count).then(|| Pfn::new(index as u64)).flatten()
    }

    fn cpu(&self) -> usize {
        0
    }

    fn irq_save(&self) -> bool {
        false
    }

    fn irq_restore(&self, _was_masked: bool) {}

    fn now_ns(&self) -> u64 {
        0
    }

    fn relax(&self) {}
}

/// A buffer as the device sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) head: u16,
    pub(crate) gpa: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
}

#[derive(Debug, Default, Clone)]
struct QueueRegisters {
    max: u32,
    num: u32,
    ready: u32,
    addresses: [u64; 3],
    next_available: u16,
    next_used: u16,
}

/// What a test may make the device do wrong.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Misbehaviour {
    pub(crate) refuses_features: bool,
    pub(crate) never_finishes_reset: bool,
    pub(crate) refuses_queues: bool,
    /// The next acknowledgement finds these reasons just raised; with `always`, each one does.
    pub(crate) raises_at_acknowledgement: u32,
    pub(crate) always: bool,
}

#[derive(Debug)]
struct State {
    magic: u32,
    version: u32,
    id: u32,
    offered: u64,
    offered_select: u32,
    accepted: u64,
    accepted_select: u32,
    queue_select: usize,
    queues: Vec<QueueRegisters>,
    status: u32,
    interrupt: u32,
    config: Vec<u8>,
    kicks: VecDeque<u16>,
    misbehaviour: Misbehaviour,
}

/// The device; the driver reaches it as its [`MmioBus`].
pub(crate) struct FakeDevice<'m> {
    ram: &'m dyn Platform,
    state: RefCell<State>,
}

impl<'m> FakeDevice<'m> {
    pub(crate) fn new(ram: &'m dyn Platform, id: u32, offered: u64, queues: &[u32]) -> Self {
        let queues =
            queues.iter().map(|&max| QueueRegisters { max, ..Default::default() }).collect();
        let state = State {
            magic: mmio::MAGIC,
            version: mmio::VERSION_2,
            id,
            offered: offered | VIRTIO_F_VERSION_1,
            offered_select: 0,
            accepted: 0,
            accepted_select: 0,
            queue_select: 0,
            queues,
            status: 0,
            interrupt: 0,
            config: std::vec![0; 16],
            kicks: VecDeque::new(),
            misbehaviour: Misbehaviour::default(),
        };
        Self { ram, state: RefCell::new(state) }
    }

    pub(crate) fn identify_as(&self, magic: u32, version: u32, id: u32) {
        let mut state = self.state.borrow_mut();
        (state.magic, state.version, state.id) = (magic, version, id);
    }

    pub(crate) fn offer_exactly(&self, features: u64) {
        self.state.borrow_mut().offered = features;
    }

    pub(crate) fn misbehave(&self, misbehaviour: Misbehaviour) {
        self.state.borrow_mut().misbehaviour = misbehaviour;
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.state.borrow().accepted
    }

    pub(crate) fn status(&self) -> u32 {
        self.state.borrow().status
    }

    /// The reasons for an interrupt that nobody has acknowledged: a level-driven line is high while there are any.
    pub(crate) fn interrupt_reasons(&self) -> u32 {
        self.state.borrow().interrupt
    }

    pub(crate) fn set_needs_reset(&self) {
        let mut state = self.state.borrow_mut();
        state.status |= status::DEVICE_NEEDS_RESET;
        state.interrupt |= mmio::INT_CONFIG;
    }

    pub(crate) fn config32(&self, offset: usize) -> u32 {
        let state = self.state.borrow();
        u32::from_le_bytes(state.config[offset..offset + 4].try_into().unwrap())
    }

    pub(crate) fn set_config32(&self, offset: usize, value: u32) {
        let mut state = self.state.borrow_mut();
        state.config[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        state.interrupt |= mmio::INT_CONFIG;
    }

    /// The next kick that the driver sent.
    pub(crate) fn kick(&self) -> Option<u16> {
        self.state.borrow_mut().kicks.pop_front()
    }

    /// Takes the next available buffer of `queue`.
    pub(crate) fn take(&self, queue: u16) -> Option<Chain> {
        let mut state = self.state.borrow_mut();
        let registers = state.queues.get_mut(usize::from(queue)).filter(|q| q.ready == 1)?;
        let [descriptors, driver, _] = registers.addresses;
        if self.read::<u16>(driver + 2) == registers.next_available {
            return None;
        }
        let slot = u64::from(registers.next_available) % u64::from(registers.num);
        let head = self.read::<u16>(driver + 4 + 2 * slot);
        registers.next_available = registers.next_available.wrapping_add(1);
        let at = descriptors + 16 * u64::from(head);
        let (gpa, len, flags) = (self.read(at), self.read(at + 8), self.read(at + 12));
        Some(Chain { head, gpa, len, flags })
    }

    /// Returns a buffer, or anything else that a hostile test wants returned.
    pub(crate) fn give_back(&self, queue: u16, head: u32, len: u32) {
        let mut state = self.state.borrow_mut();
        let registers = &mut state.queues[usize::from(queue)];
        let used = registers.addresses[2];
        let slot = u64::from(registers.next_used) % u64::from(registers.num);
        self.write(used + 4 + 8 * slot, head);
        self.write(used + 8 + 8 * slot, len);
        registers.next_used = registers.next_used.wrapping_add(1);
        self.write(used + 2, registers.next_used);
        state.interrupt |= mmio::INT_VRING;
    }

    /// Moves the used index without a used element.
    pub(crate) fn jump_used_index(&self, queue: u16, by: u16) {
        let mut state = self.state.borrow_mut();
        let registers = &mut state.queues[usize::from(queue)];
        registers.next_used = registers.next_used.wrapping_add(by);
        self.write(registers.addresses[2] + 2, registers.next_used);
    }

    /// Sets the used ring's flags.
    pub(crate) fn set_used_flags(&self, queue: u16, flags: u16) {
        let used = self.state.borrow().queues[usize::from(queue)].addresses[2];
        self.write(used, flags);
    }

    /// Bytes of guest memory.
    pub(crate) fn guest_bytes(&self, gpa: u64, len: u32) -> Vec<u8> {
        (0..u64::from(len)).map(|at| self.read(gpa + at)).collect()
    }

    /// Writes guest memory.
    pub(crate) fn write_guest(&self, gpa: u64, bytes: &[u8]) {
        for (at, byte) in (gpa..).zip(bytes) {
            self.write(at, *byte);
        }
    }

    fn pointer<T>(&self, gpa: u64) -> NonNull<T> {
        let frame = self.ram.frame_ptr(Pfn::containing(gpa));
        let offset = usize::try_from(gpa % PAGE_SIZE).unwrap();
        assert!(offset + size_of::<T>() <= 4096, "access across a page");
        // SAFETY: inside the page, checked above.
        unsafe { frame.add(offset) }.cast()
    }

    fn read<T: Copy>(&self, gpa: u64) -> T {
        let pointer = self.pointer::<T>(gpa);
        // SAFETY: inside a live page; `T` is an integer.
        unsafe { pointer.read_volatile() }
    }

    fn write<T: Copy>(&self, gpa: u64, value: T) {
        let pointer = self.pointer::<T>(gpa);
        // SAFETY: inside a live page.
        unsafe { pointer.write_volatile(value) }
    }
}

impl MmioBus for FakeDevice<'_> {
    fn read32(&self, offset: u64) -> u32 {
        let state = self.state.borrow();
        let queue = state.queues.get(state.queue_select);
        match offset {
            mmio::MAGIC_VALUE => state.magic,
            mmio::VERSION => state.version,
            mmio::DEVICE_ID => state.id,
            mmio::DEVICE_FEATURES => half(state.offered, state.offered_select),
            mmio::QUEUE_NUM_MAX => queue.map_or(0, |q| q.max),
            mmio::QUEUE_READY => queue.map_or(0, |q| q.ready),
            mmio::INTERRUPT_STATUS => state.interrupt,
            mmio::STATUS => state.status,
            mmio::CONFIG.. => {
                let at = usize::try_from(offset - mmio::CONFIG).unwrap();
                drop(state);
                self.config32(at)
            }
            _ => panic!("read of register {offset:#x}"),
        }
    }

    fn write32(&self, offset: u64, value: u32) {
        let mut state = self.state.borrow_mut();
        let select = state.queue_select;
        let Misbehaviour { refuses_features, never_finishes_reset, refuses_queues, .. } =
            state.misbehaviour;
        match offset {
            mmio::DEVICE_FEATURES_SEL => state.offered_select = value,
            mmio::DRIVER_FEATURES_SEL => state.accepted_select = value,
            mmio::DRIVER_FEATURES => {
                let shift = 32 * state.accepted_select;
                state.accepted |= u64::from(value) << shift;
            }
            mmio::QUEUE_SEL => state.queue_select = usize::try_from(value).unwrap(),
            mmio::QUEUE_NOTIFY => state.kicks.push_back(u16::try_from(value).unwrap()),
            mmio::INTERRUPT_ACK => {
                state.interrupt =
                    state.interrupt & !value | state.misbehaviour.raises_at_acknowledgement;
                if !state.misbehaviour.always {
                    state.misbehaviour.raises_at_acknowledgement = 0;
                }
            }
            mmio::STATUS if value == 0 && never_finishes_reset => {}
            mmio::STATUS if value == 0 => {
                for queue in &mut state.queues {
                    *queue = QueueRegisters { max: queue.max, ..Default::default() };
                }
                (state.status, state.interrupt, state.accepted) = (0, 0, 0);
                state.kicks.clear();
            }
            mmio::STATUS if refuses_features => state.status = value & !status::FEATURES_OK,
            mmio::STATUS => state.status = value,
            mmio::CONFIG.. => {
                let at = usize::try_from(offset - mmio::CONFIG).unwrap();
                state.config[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            mmio::QUEUE_NUM => state.queues[select].num = value,
            mmio::QUEUE_READY if refuses_queues => {}
            mmio::QUEUE_READY => state.queues[select].ready = value,
            _ => {
                let addresses = &mut state.queues[select].addresses;
                let (index, high) = match offset {
                    mmio::QUEUE_DESC_LOW => (0, false),
                    mmio::QUEUE_DESC_HIGH => (0, true),
                    mmio::QUEUE_DRIVER_LOW => (1, false),
                    mmio::QUEUE_DRIVER_HIGH => (1, true),
                    mmio::QUEUE_DEVICE_LOW => (2, false),
                    mmio::QUEUE_DEVICE_HIGH => (2, true),
                    _ => panic!("write of register {offset:#x}"),
                };
                let address = &mut addresses[index];
                *address = if high {
                    *address & 0xffff_ffff | u64::from(value) << 32
                } else {
                    *address & !0xffff_ffff | u64::from(value)
                };
            }
        }
    }

    fn read8(&self, offset: u64) -> u8 {
        self.state.borrow().config[usize::try_from(offset - mmio::CONFIG).unwrap()]
    }
}

fn half(value: u64, select: u32) -> u32 {
    let shifted = if select < 2 { value >> (32 * select) } else { 0 };
    u32::try_from(shifted & 0xffff_ffff).unwrap()
}
