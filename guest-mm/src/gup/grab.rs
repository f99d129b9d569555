//! The step at the heart of the fast path: from a leaf that was read without a
//! lock to a hold on the folio behind it.

use crate::folio::speculative::{Glance, glance_as};
use crate::folio::{Folio, FolioPin, FolioRef};
use crate::memdesc::WordCell;
use crate::sync::shim::{Ordering, fence};

/// In what way a page is held: [`FolioPin`] or [`FolioRef`].
pub trait Hold<'m>: Sized {
    /// Whether it is a pin.
    const IS_PIN: bool;

    /// Makes the hold of a reference.
    fn take(folio: FolioRef<'m>) -> Self;

    /// Undoes [`Self::take`].
    fn untake(self) -> FolioRef<'m>;

    /// The folio that is held.
    fn folio(&self) -> &Folio;
}

impl<'m> Hold<'m> for FolioRef<'m> {
    const IS_PIN: bool = false;

    fn take(folio: Self) -> Self {
        folio
    }

    fn untake(self) -> Self {
        self
    }

    fn folio(&self) -> &Folio {
        self
    }
}

impl<'m> Hold<'m> for FolioPin<'m> {
    const IS_PIN: bool = true;

    fn take(folio: FolioRef<'m>) -> Self {
        folio.pin()
    }

    fn untake(self) -> FolioRef<'m> {
        self.unpin()
    }

    fn folio(&self) -> &Folio {
        self
    }
}

/// What became of a grab.
#[derive(Debug)]
pub enum Grab<'m, H> {
    /// A hold on the folio that the leaf maps.
    Held(H),
    /// Something changed, or the frame is no folio's. A reference that was taken is the caller's to put.
    Missed(Option<FolioRef<'m>>),
}

/// Takes a hold on the folio that `cell`, the word of a frame that a leaf maps,
/// names. `still_mapped` looks at the leaf, and what led to it, again.
///
/// The order is the point, each step's reason is in `docs/gup.md`: word,
/// reference, word again, pin, barrier, leaf again. After the second look at
/// the word the folio is the frame's for as long as the reference is held; and
/// of the barrier here and that of whoever takes the leaf away before he looks
/// at the pins (`Folio::is_pinned`), one comes first.
///
/// Without `RECHECK` the second look at the word is left out: the mutant that
/// tests must notice. `between` runs between word and reference, where the race
/// is; it is empty but in tests.
///
/// # Safety
/// As [`glance`](crate::folio::speculative::glance).
pub unsafe fn grab<'m, H: Hold<'m>, const RECHECK: bool>(
    cell: &WordCell,
    between: impl FnOnce(),
    still_mapped: impl FnOnce() -> bool,
) -> Grab<'m, H> {
    // SAFETY: the caller's promise.
    let folio = match unsafe { glance_as::<RECHECK>(cell, between) } {
        Glance::Folio(folio) => folio,
        Glance::Moved(folio) => return Grab::Missed(Some(folio)),
        Glance::NotFolio(_) | Glance::Frozen => return Grab::Missed(None),
    };
    let hold = H::take(folio);
    // A pin has had this barrier; a reference needs it against whoever freezes.
    fence(Ordering::SeqCst);
    if still_mapped() { Grab::Held(hold) } else { Grab::Missed(Some(hold.untake())) }
}
