//! Handles of allocated frames.

use core::fmt;

use abi::{PageCount, Pfn, PfnRange};

use super::Memory;
use crate::buddy::Gfp;
use crate::memdesc::{Block, BlockKind, Order, State, TransitionError, Word};
use crate::platform::Platform;

/// A block that the holder owns: nobody else may touch, free or move it.
///
/// Made by [`Memory::alloc_frozen`], ended by [`Memory::free_frozen`] and its
/// siblings or by taking the block on into another state. Dropping one leaks
/// its frames, which the census then shows as frozen.
#[must_use = "dropping a handle leaks its frames; free it"]
#[derive(PartialEq, Eq)]
pub struct FrozenFrames {
    head: Pfn,
    order: Order,
    kind: BlockKind,
    reported: bool,
}

impl FrozenFrames {
    /// The handle of a block whose word says frozen.
    pub(super) const fn own(head: Pfn, order: Order, reported: bool) -> Self {
        Self { head, order, kind: BlockKind::Frozen, reported }
    }

    /// Makes the handle again from what [`Self::into_raw`] returned.
    ///
    /// # Safety
    /// The caller owns the block: it was allocated with this order, and its
    /// handle is gone. A wrong value is refused when the block is freed, but
    /// until then two owners may write to the same frames.
    pub const unsafe fn from_raw(head: Pfn, order: Order) -> Self {
        Self::own(head, order, false)
    }

    /// As [`Self::from_raw`], of a block that was retyped ([`Memory::retype`]).
    ///
    /// # Safety
    /// As for [`Self::from_raw`].
    pub const unsafe fn from_raw_as(head: Pfn, order: Order, kind: BlockKind) -> Self {
        Self { head, order, kind, reported: false }
    }

    /// Gives up the handle but not the frames.
    pub const fn into_raw(self) -> (Pfn, Order) {
        (self.head, self.order)
    }

    /// First frame, a multiple of the block's pages.
    pub const fn head(&self) -> Pfn {
        self.head
    }

    /// log2 of the pages.
    pub const fn order(&self) -> Order {
        self.order
    }

    /// Number of pages.
    pub const fn pages(&self) -> PageCount {
        self.order.pages()
    }

    /// The frames.
    pub fn range(&self) -> PfnRange {
        // Blocks lie in RAM, which ends far below 2^64.
        PfnRange::from_start(self.head, self.pages())
            .unwrap_or_else(|| unreachable!("a block of RAM ends below 2^64"))
    }

    /// Whether the host held no memory for any of the frames when they were
    /// allocated, so that they read as zero until somebody writes.
    pub const fn was_reported(&self) -> bool {
        self.reported
    }

    /// What the block's word says it is; see [`Memory::retype`].
    pub const fn kind(&self) -> BlockKind {
        self.kind
    }

    pub(crate) const fn word(&self) -> Word {
        Block::new(self.kind, self.order).encode()
    }
}

impl fmt::Debug for FrozenFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrozenFrames({:?}, {:?}, {:?})", self.head, self.order, self.kind)
    }
}

/// A handle that could not be split: it is a single page, or its word is not
/// what the handle says.
#[derive(Debug)]
pub struct SplitError<B> {
    /// The block, unchanged.
    pub block: B,
    /// `None` for a single page.
    pub cause: Option<TransitionError>,
}

impl<P: Platform> Memory<P> {
    /// The block's bytes.
    pub fn bytes_mut<'a>(&'a self, frames: &'a mut FrozenFrames) -> &'a mut [u8] {
        let len = usize::try_from(frames.pages().bytes())
            .unwrap_or_else(|_| unreachable!("a block is at most 4 MiB"));
        let start = self.platform.frame_ptr(frames.head);
        // SAFETY: the direct map is contiguous over the block and lives as long as
        // the platform (`Platform::frame_ptr`); any byte is a valid u8; the handle
        // owns the frames and is borrowed exclusively, so no other reference exists.
        unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), len) }
    }

    /// The block's bytes, for reading.
    pub fn bytes<'a>(&'a self, frames: &'a FrozenFrames) -> &'a [u8] {
        let len = usize::try_from(frames.pages().bytes())
            .unwrap_or_else(|_| unreachable!("a block is at most 4 MiB"));
        let start = self.platform.frame_ptr(frames.head);
        // SAFETY: as in `bytes_mut`; only the handle's owner can write, and it lends
        // the handle for as long as the slice lives.
        unsafe { core::slice::from_raw_parts(start.as_ptr(), len) }
    }

    /// Notes in the block's word what the owner uses it for.
    ///
    /// # Errors
    /// The table does not let an allocated block become `kind` (only `Driver`,
    /// `Vmalloc` and their like), or the word is not what the handle says.
    pub fn retype(
        &self,
        frames: &mut FrozenFrames,
        kind: BlockKind,
    ) -> Result<(), TransitionError> {
        if frames.kind == kind {
            return Ok(());
        }
        let old = frames.word();
        let frozen = Block::new(BlockKind::Frozen, frames.order).encode();
        let new = Block::new(kind, frames.order).encode();
        if kind == BlockKind::Report || kind == BlockKind::Reserved || kind == BlockKind::Empty {
            return Err(refusal(frames.kind, kind));
        }
        if old != frozen {
            self.transition(frames.head, old, frozen)?;
            frames.kind = BlockKind::Frozen;
        }
        if new != frozen {
            self.transition(frames.head, frozen, new)?;
            frames.kind = kind;
        }
        Ok(())
    }

    /// Cuts a block in two halves, lower first.
    ///
    /// # Errors
    /// The block is a single page or not of kind frozen; it comes back.
    pub fn split_frozen(
        &self,
        frames: FrozenFrames,
    ) -> Result<(FrozenFrames, FrozenFrames), SplitError<FrozenFrames>> {
        let Some(half) = frames.order.down() else {
            return Err(SplitError { block: frames, cause: None });
        };
        if frames.kind != BlockKind::Frozen {
            let cause = Some(refusal(frames.kind, BlockKind::Frozen));
            return Err(SplitError { block: frames, cause });
        }
        let lower = FrozenFrames::own(frames.head, half, frames.reported);
        let upper = FrozenFrames::own(upper_half(frames.head, half), half, frames.reported);
        match self
            .split_words((frames.head, frames.word(), lower.word()), (upper.head, upper.word()))
        {
            Ok(()) => Ok((lower, upper)),
            Err(cause) => Err(SplitError { block: frames, cause: Some(cause) }),
        }
    }

    /// Turns the tail `upper` into a head, then shrinks `lower` from one word
    /// to another: at no time a frame is without a head.
    pub(super) fn split_words(
        &self,
        (lower, old, new): (Pfn, Word, Word),
        (upper, head): (Pfn, Word),
    ) -> Result<(), TransitionError> {
        let tail = crate::buddy::tail_word(upper);
        self.transition(upper, tail, head)?;
        self.transition(lower, old, new)
    }

    /// One step of a frame's word through the transition table.
    pub(crate) fn transition(&self, pfn: Pfn, from: Word, to: Word) -> Result<(), TransitionError> {
        match self.map.words.cell(pfn) {
            Ok(cell) => cell.transition(from, to),
            // A handle of another machine's memory.
            Err(_) => Err(TransitionError::Raced { found: Word::EMPTY }),
        }
    }

    /// Gives a block a descriptor: the words of all its frames become `word`,
    /// the head's last.
    ///
    /// # Errors
    /// A word is not what the handle says; all are as they were.
    pub(crate) fn describe(
        &self,
        frames: &FrozenFrames,
        word: Word,
    ) -> Result<(), TransitionError> {
        let range = frames.range();
        for at in range.iter().skip(1) {
            if let Err(error) = self.transition(at, crate::buddy::tail_word(at), word) {
                let done = range.iter().skip(1).take_while(|&tail| tail != at);
                done.for_each(|tail| self.restore_tail(tail, word));
                return Err(error);
            }
        }
        self.transition(frames.head, frames.word(), word).inspect_err(|_| {
            range.iter().skip(1).for_each(|tail| self.restore_tail(tail, word));
        })
    }

    /// Takes a block's descriptor away, the head's word last.
    ///
    /// # Errors
    /// The words are not `word`, which is a caller's bug; those that were are tails now.
    pub(crate) fn undescribe(
        &self,
        frames: &FrozenFrames,
        word: Word,
    ) -> Result<(), TransitionError> {
        for at in frames.range().iter().skip(1) {
            self.transition(at, word, crate::buddy::tail_word(at))?;
        }
        self.transition(frames.head, word, frames.word())
    }

    /// Gives the frames of `range`, part of a larger block, from one descriptor to another.
    ///
    /// # Errors
    /// A word is not `from`: memory corruption. Those before it have changed.
    #[cfg_attr(loom, allow(dead_code, reason = "splitting is not built for models"))]
    pub(crate) fn redescribe(
        &self,
        range: abi::PfnRange,
        from: Word,
        to: Word,
    ) -> Result<(), TransitionError> {
        range.iter().try_for_each(|at| self.transition(at, from, to))
    }

    fn restore_tail(&self, tail: Pfn, word: Word) {
        let restored = self.transition(tail, word, crate::buddy::tail_word(tail));
        debug_assert!(restored.is_ok(), "{tail:?}: {restored:?}");
    }

    /// Allocates blocks of `pages` in total, the largest first, and calls `each`
    /// with every one. Returns the pages that could not be had.
    pub fn alloc_many(
        &self,
        pages: PageCount,
        largest: Order,
        gfp: Gfp,
        each: &mut dyn FnMut(FrozenFrames),
    ) -> PageCount {
        let mut left = pages;
        let mut order = largest;
        while !left.is_zero() {
            order = order.min(Order::fitting(left.get()));
            match self.alloc_frozen(order, gfp) {
                Ok(frames) => {
                    left = left.saturating_sub(frames.pages());
                    each(frames);
                }
                Err(_) => match order.down() {
                    Some(smaller) => order = smaller,
                    None => break,
                },
            }
        }
        left
    }
}

/// A step that blocks of these kinds must not take.
const fn refusal(from: BlockKind, to: BlockKind) -> TransitionError {
    TransitionError::Illegal { from: State::held(from.kind()), to: State::held(to.kind()) }
}

/// First frame of a block's upper half.
pub(super) fn upper_half(head: Pfn, half: Order) -> Pfn {
    head.checked_add(half.pages()).unwrap_or_else(|| unreachable!("a block of RAM ends below 2^64"))
}
