//! Model check: a pageblock is set aside while a page of it is freed to a CPU's list.
//!
//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p guest-mm --test loom_isolate`
//!
//! The real table of pageblocks and the real locks; the lists are one flag each,
//! and both sides do their steps in the order of `memory/pcp.rs` and
//! `memory/contig.rs`.
#![cfg(loom)]

use std::ptr::NonNull;

use abi::Pfn;
use guest_mm::buddy::PageblockTable;
use guest_mm::memdesc::MigrateType;
use guest_mm::sync::shim::AtomicU8;
use guest_mm::sync::{LockClass, SpinLock};
use loom::sync::Arc;
use loom::thread;

#[path = "support/no_ram.rs"]
mod no_ram;

use no_ram::NoRam;

/// Where one page is that is being freed.
struct Machine {
    cells: Box<[AtomicU8; 1]>,
    /// Whether the page is on the CPU's list.
    cpu: SpinLock<bool>,
    /// Whether it is on a list of the zone: of which type.
    zone: SpinLock<Option<MigrateType>>,
}

impl Machine {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            cells: Box::new([AtomicU8::new(MigrateType::Movable as u8)]),
            cpu: SpinLock::new(LockClass::Pcp, false),
            zone: SpinLock::new(LockClass::Zone, None),
        })
    }

    fn pageblocks(&self) -> PageblockTable {
        // SAFETY: the cell lives as long as `self`, which callers borrow for longer than the table.
        unsafe { PageblockTable::new(Pfn::ZERO, NonNull::from(&self.cells[0]), 1) }
    }

    fn give(&self) {
        let mut zone = self.zone.lock(&NoRam);
        *zone = Some(self.pageblocks().get(Pfn::ZERO));
    }

    /// `Memory::free_listed`; the mutant reads the type before it takes the lock.
    fn free<const TYPE_BEFORE_LOCK: bool>(&self) {
        let early = self.pageblocks().get(Pfn::ZERO);
        let mut list = self.cpu.lock(&NoRam);
        let migratetype = if TYPE_BEFORE_LOCK { early } else { self.pageblocks().get(Pfn::ZERO) };
        if migratetype.is_mergeable() {
            *list = true;
        } else {
            drop(list);
            self.give();
        }
    }

    /// `Memory::isolate_range`: the type, under the zone lock, then each CPU's list.
    fn isolate(&self) {
        let mut zone = self.zone.lock(&NoRam);
        self.pageblocks().set(Pfn::ZERO, MigrateType::Isolate);
        if zone.is_some() {
            *zone = Some(MigrateType::Isolate);
        }
        drop(zone);
        let mut list = self.cpu.lock(&NoRam);
        if std::mem::take(&mut *list) {
            self.give();
        }
    }
}

fn model<const TYPE_BEFORE_LOCK: bool>() {
    loom::model(|| {
        let machine = Machine::new();
        let there = Arc::clone(&machine);
        let freeing = thread::spawn(move || there.free::<TYPE_BEFORE_LOCK>());
        machine.isolate();
        freeing.join().unwrap();
        assert!(!*machine.cpu.lock(&NoRam), "free memory that is set aside is on a CPU's list");
        assert_eq!(*machine.zone.lock(&NoRam), Some(MigrateType::Isolate));
    });
}

#[test]
fn a_page_freed_while_its_pageblock_is_isolated_stays_with_the_zone() {
    model::<false>();
}

#[test]
#[should_panic(expected = "set aside")]
fn a_type_read_before_the_lock_leaves_the_page_on_a_list() {
    model::<true>();
}
