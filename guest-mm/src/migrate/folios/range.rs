//! The pages of a process's range, moved to where the caller wants them (Linux: `move_pages`).

use core::fmt;

use abi::{PAGE_SHIFT, PAGE_SIZE, Pfn};

use crate::addr::{PMD_SHIFT, VaRange, VirtAddr};
use crate::errno::Errno;
use crate::migrate::{Destinations, IsolateError, MigrateBatch, MigrateMode, MigrateStats};
use crate::mm::Mm;
use crate::pgtable::{NoTable, PmdState, PteState};
use crate::platform::Platform;
use crate::space::AddressSpace;

/// Why a range cannot be moved. Nothing has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrateRangeError {
    /// The start is no multiple of a page's size.
    Unaligned {
        /// The start.
        start: u64,
    },
    /// No byte is in it.
    Empty {
        /// The start.
        start: u64,
    },
    /// It ends beyond 2^64, or reaches beyond the user half.
    NotUser {
        /// The start.
        start: u64,
        /// Its length.
        bytes: u64,
    },
}

impl MigrateRangeError {
    /// Linux's number for it.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Unaligned { .. } | Self::Empty { .. } => Errno::EINVAL,
            Self::NotUser { .. } => Errno::EFAULT,
        }
    }
}

impl fmt::Display for MigrateRangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaligned { start } => write!(f, "{start:#x} is not at a page's start"),
            Self::Empty { start } => write!(f, "Range at {start:#x} is empty"),
            Self::NotUser { start, bytes } => {
                write!(f, "{bytes:#x} bytes from {start:#x} are not all of the user half")
            }
        }
    }
}

impl core::error::Error for MigrateRangeError {}

/// What became of a range's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RangeMigrated {
    /// Those that were isolated. A large folio of which the range has a part counts whole.
    pub pages: MigrateStats,
    /// Pages of the range without memory of their own: holes, swapped out, the zero page, on the move.
    pub absent: u64,
    /// Leaves whose folio could not be isolated.
    pub refused: u64,
    /// The first of them, and why.
    pub first_refusal: Option<(VirtAddr, IsolateError)>,
}

/// What lies at an address.
enum At {
    /// Nothing that could move, up to this address.
    Absent(VirtAddr),
    /// A leaf of this folio was met and the folio isolated, before or now; the leaf ends here.
    Isolated(VirtAddr),
    /// The batch is full.
    Full,
    /// The folio stays; the leaf ends here.
    Refused(IsolateError, VirtAddr),
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Moves the pages of `space` from `start` on to `destinations`. Returns how many
    /// moved, and what became of the others: a page that cannot move is no error.
    ///
    /// Faults nothing in. Pages that several processes share move for all. The caller
    /// holds no lock; pages may come and go meanwhile, and are then moved or not.
    ///
    /// # Errors
    /// [`MigrateRangeError`].
    pub fn migrate_range(
        &self,
        space: &AddressSpace<'m, P>,
        start: u64,
        bytes: u64,
        destinations: &mut dyn Destinations,
        mode: MigrateMode,
    ) -> Result<RangeMigrated, MigrateRangeError> {
        let range = check_range(start, bytes)?;
        let mut done = RangeMigrated::default();
        let mut batch = MigrateBatch::<P>::new(self);
        let mut at = range.start();
        while at < range.end() && !space.is_dead() {
            at = self.isolate_range(space, at, range.end(), &mut batch, &mut done);
            done.pages.add(&self.migrate_pages(&mut batch, destinations, mode));
        }
        Ok(done)
    }

    /// Isolates what `[at, end)` maps until the batch is full. Returns where to go on.
    fn isolate_range(
        &self,
        space: &AddressSpace<'m, P>,
        mut at: VirtAddr,
        end: VirtAddr,
        batch: &mut MigrateBatch<'_, 'm, P>,
        done: &mut RangeMigrated,
    ) -> VirtAddr {
        // Mappings and their tables stay; faults go on.
        let _mappings = space.read();
        while at < end {
            let from = at;
            at = match self.isolate_at(space, at, batch) {
                At::Full => break,
                At::Isolated(next) => next,
                At::Absent(next) => {
                    done.absent += next.min(end).page() - from.page();
                    next
                }
                At::Refused(error, next) => {
                    done.refused += 1;
                    done.first_refusal.get_or_insert((from, error));
                    next
                }
            };
        }
        at
    }

    /// Isolates the folio at `at`, whose leaf keeps it there while its table is locked.
    fn isolate_at(
        &self,
        space: &AddressSpace<'m, P>,
        at: VirtAddr,
        batch: &mut MigrateBatch<'_, 'm, P>,
    ) -> At {
        let tables = space.tables();
        let next = |shift: u32| {
            let step = 1 << shift;
            at.align_down(shift).checked_add(step).unwrap_or(VirtAddr::END)
        };
        match tables.lock_pte(at) {
            Ok(table) => match table.load(at).pte() {
                PteState::Present(pte) if !pte.is_special() => {
                    self.isolate_leaf(pte.pfn(), batch, next(PAGE_SHIFT))
                }
                PteState::Present(_)
                | PteState::None
                | PteState::Soft(_)
                | PteState::Unknown(_) => At::Absent(next(PAGE_SHIFT)),
            },
            Err(NoTable::Huge(_)) => {
                let Ok(table) = tables.lock_pmd(at) else { return At::Absent(next(PMD_SHIFT)) };
                match table.load(at).pmd() {
                    PmdState::Present(pmd) if !pmd.is_special() => {
                        self.isolate_leaf(pmd.pfn(), batch, next(PMD_SHIFT))
                    }
                    // Split since the first look: once more, by pages.
                    PmdState::Table(_) => At::Isolated(at),
                    PmdState::Present(_)
                    | PmdState::None
                    | PmdState::Soft(_)
                    | PmdState::Unknown(_) => At::Absent(next(PMD_SHIFT)),
                }
            }
            Err(NoTable::Hole { level }) => At::Absent(next(PAGE_SHIFT + 9 * level)),
            Err(NoTable::Unknown(_)) => At::Absent(next(PMD_SHIFT)),
        }
    }

    fn isolate_leaf(&self, pfn: Pfn, batch: &mut MigrateBatch<'_, 'm, P>, next: VirtAddr) -> At {
        // SAFETY: the leaf is in its table, which is locked.
        let head = unsafe { self.mapped_folio(pfn) }.map(crate::folio::Folio::pfn);
        // Another page of a folio in the batch, which need not be the last: pages of others may lie between.
        if head.is_some_and(|head| batch.entries().contains(&head)) {
            return At::Isolated(next);
        }
        if batch.is_full() {
            return At::Full;
        }
        match self.isolate_for_migration(pfn, batch) {
            Ok(()) => At::Isolated(next),
            Err(error) => At::Refused(error, next),
        }
    }
}

fn check_range(start: u64, bytes: u64) -> Result<VaRange, MigrateRangeError> {
    if !start.is_multiple_of(PAGE_SIZE) {
        return Err(MigrateRangeError::Unaligned { start });
    }
    if bytes == 0 {
        return Err(MigrateRangeError::Empty { start });
    }
    let not_user = MigrateRangeError::NotUser { start, bytes };
    let end = start.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(PAGE_SIZE));
    let bounds = VirtAddr::new(start).zip(end.and_then(VirtAddr::new));
    bounds.and_then(|(start, end)| VaRange::new(start, end)).ok_or(not_user)
}
