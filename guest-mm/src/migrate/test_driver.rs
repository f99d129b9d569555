//! A driver with movable pages and nothing else: the third user of
//! [`MovableOps`], besides balloon and zsmalloc, for tests on host and guest.
//!
//! Its operations have no state. What there is to know of a page is in its
//! 16-byte descriptor, which goes with the page: the owner keeps the descriptor
//! and finds the frame by it.

use core::fmt;

use abi::{PAGE_SIZE, Pfn};

use super::ops::{MigrateError, MigrateMode, Migrated, MovableOps, SourceMemory};
use crate::buddy::Gfp;
use crate::memdesc::{Hold, Order, TransitionError};
use crate::memory::{AllocError, TransitFrames};
use crate::mm::Mm;
use crate::objects::{Described, Freed, MovableDesc, TakeError};
use crate::platform::Platform;
use crate::sync::shim::Ordering;

/// The operations, for [`Mm::set_movable_ops`] with [`Kind::Movable`](crate::memdesc::Kind::Movable).
pub static TEST_MOVABLE: TestMovable = TestMovable(());

/// Moves the driver's pages by copying.
#[derive(Debug)]
pub struct TestMovable(());

impl<P: Platform> MovableOps<P> for TestMovable {
    fn migrate(
        &self,
        mm: &Mm<'_, P>,
        dst: &TransitFrames,
        src: Pfn,
        _mode: MigrateMode,
    ) -> Result<Migrated, MigrateError> {
        copy_page(mm.platform(), dst, src);
        let page = mm.adopt_object::<MovableDesc>(dst, src)?;
        // Release pairs with the Acquire of the owner, who then finds the page where it says.
        page.descriptor().private.store(dst.head().number(), Ordering::Release);
        // Held by us until then, so whoever owns it waits for this.
        mm.let_migrate(page).map_err(|_| MigrateError::NotTaken)?;
        Ok(Migrated::Moved(SourceMemory::Present))
    }
}

fn copy_page<P: Platform>(platform: &P, dst: &TransitFrames, src: Pfn) {
    let (from, to) = (platform.frame_ptr(src), platform.frame_ptr(dst.head()));
    let bytes = usize::try_from(PAGE_SIZE).unwrap_or_else(|_| unreachable!("4 KiB"));
    // SAFETY: two frames of RAM, distinct, since one is in transit and one is isolated.
    // Nobody else touches either: the first nobody can find, and the owner of the
    // second touches it only while he holds it, which he cannot while it is isolated.
    unsafe { from.copy_to_nonoverlapping(to, bytes) };
}

/// A page of the driver's, filled with what its number and its version demand.
///
/// Dropping one leaks it; [`Self::free`] ends it.
#[must_use = "dropping it leaks the page"]
pub struct TestPage<'m> {
    descriptor: &'m MovableDesc,
    version: u64,
}

/// Why a page could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageError {
    /// Migration has it, now: later.
    Isolated,
    /// It does not hold what was written: the first wrong word.
    Corrupt(usize),
    /// Its word is not what it should be: memory corruption.
    Lost(TransitionError),
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Isolated => f.write_str("Page is being migrated"),
            Self::Corrupt(word) => write!(f, "Page has wrong contents from word {word} on"),
            Self::Lost(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for PageError {}

impl<'m> TestPage<'m> {
    /// A new page, number `id`, version 0, movable.
    ///
    /// # Errors
    /// No memory for the page or its descriptor.
    pub fn new<P: Platform>(mm: &Mm<'m, P>, id: u64) -> Result<Self, AllocError> {
        let frames = mm.memory().alloc_frozen(Order::ZERO, Gfp::MOVABLE)?;
        let head = frames.head();
        let described = mm.describe_frames(frames, |new: &MovableDesc| {
            new.owner.store(id, Ordering::Relaxed);
            new.private.store(head.number(), Ordering::Relaxed);
        });
        let mut page = match described {
            Ok(page) => page,
            Err(failed) => {
                mm.memory().free_frozen(failed.frames);
                return Err(failed.cause.unwrap_or(AllocError::OutOfMemory(Order::ZERO)));
            }
        };
        fill(mm.described_bytes(&mut page), id, 0);
        let descriptor = page.descriptor_ref();
        let movable = mm.let_migrate(page);
        debug_assert!(movable.is_ok(), "{movable:?}");
        Ok(Self { descriptor, version: 0 })
    }

    /// Its number.
    pub fn id(&self) -> u64 {
        self.descriptor.owner.load(Ordering::Relaxed)
    }

    /// Where it is, at this moment.
    pub fn frame(&self) -> Pfn {
        // Acquire pairs with the Release in `migrate`.
        Pfn::new(self.descriptor.private.load(Ordering::Acquire)).unwrap_or(Pfn::ZERO)
    }

    /// Claims the page. Waits for a migration only while it hands the page over.
    fn claim<P: Platform>(&self, mm: &Mm<'m, P>) -> Result<Described<'m, MovableDesc>, PageError> {
        loop {
            let frame = self.frame();
            match mm.claim_object::<MovableDesc>(frame) {
                Ok(page) if core::ptr::eq(page.descriptor(), self.descriptor) => return Ok(page),
                // It has moved, and another page of the driver's is there.
                Ok(other) => drop(mm.let_migrate(other).map_err(PageError::Lost)?),
                Err(TakeError::Taken(Hold::Isolated | Hold::Doomed)) if frame == self.frame() => {
                    return Err(PageError::Isolated);
                }
                // Moving this moment: isolated, frozen, or held where it goes.
                Err(_) => {}
            }
            mm.platform().relax();
        }
    }

    /// Looks whether the page holds what was written.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn check<P: Platform>(&self, mm: &Mm<'m, P>) -> Result<(), PageError> {
        let mut page = self.claim(mm)?;
        let found = verify(mm.described_bytes(&mut page), self.id(), self.version);
        mm.let_migrate(page).map_err(PageError::Lost)?;
        found
    }

    /// The same, and writes the next version.
    ///
    /// # Errors
    /// [`PageError`]; then the version stays.
    pub fn update<P: Platform>(&mut self, mm: &Mm<'m, P>) -> Result<(), PageError> {
        let mut page = self.claim(mm)?;
        let bytes = mm.described_bytes(&mut page);
        let found = verify(bytes, self.id(), self.version);
        if found.is_ok() {
            self.version += 1;
            fill(bytes, self.id(), self.version);
        }
        mm.let_migrate(page).map_err(PageError::Lost)?;
        found
    }

    /// Frees the page, or leaves that to migration, if that has it.
    ///
    /// # Errors
    /// [`PageError::Lost`].
    pub fn free<P: Platform>(self, mm: &Mm<'m, P>) -> Result<Freed, PageError> {
        loop {
            let frame = self.frame();
            match mm.free_object(frame, self.descriptor) {
                Ok(freed) => return Ok(freed),
                // Just moved, or moving this moment.
                Err(TransitionError::Raced { .. }) => mm.platform().relax(),
                Err(error) => return Err(PageError::Lost(error)),
            }
        }
    }
}

impl fmt::Debug for TestPage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestPage")
            .field("id", &self.id())
            .field("version", &self.version)
            .field("frame", &self.frame())
            .finish()
    }
}

/// Word `index` of page `id` in `version`.
const fn content(id: u64, version: u64, index: u64) -> u64 {
    let x = id.rotate_left(32) ^ version.rotate_left(16) ^ index;
    (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

fn fill(bytes: &mut [u8], id: u64, version: u64) {
    for (index, word) in (0..).zip(bytes.chunks_exact_mut(8)) {
        word.copy_from_slice(&content(id, version, index).to_le_bytes());
    }
}

fn verify(bytes: &[u8], id: u64, version: u64) -> Result<(), PageError> {
    let wrong = (0..)
        .zip(bytes.chunks_exact(8))
        .position(|(index, word)| word != content(id, version, index).to_le_bytes());
    wrong.map_or(Ok(()), |word| Err(PageError::Corrupt(word)))
}
