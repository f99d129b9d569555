//! What a scanner makes of a word.

use abi::{PageCount, Pfn};

use crate::memdesc::{BlockKind, DescriptorKind, Hold, Kind, Memdesc, Order, Word, WordTable};

/// What stands at a frame. A snapshot: whoever acts on it looks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Free, or about to be: on a list, or being reported.
    Free,
    /// May perhaps be isolated.
    Movable,
    /// Could move another time: its owner holds it, or migration does already.
    Busy(Kind),
    /// Stays where it is.
    Immovable(Kind),
    /// No RAM.
    Hole,
}

/// Looks at the frame `at`. Returns also how many frames from there on are the
/// same thing, `end` at the latest, at least one.
///
/// Lockless: an order is read from a word that decodes, so it is at most 10, and
/// what it says beyond `end` counts for nothing. A folio's frames are those with its
/// word, so its descriptor need not be looked at.
pub(super) fn look(words: &WordTable, at: Pfn, end: Pfn) -> (Look, PageCount) {
    let Ok(word) = words.load(at) else { return (Look::Hole, PageCount::new(1)) };
    let Ok(memdesc) = words.decode(at) else {
        return (Look::Immovable(Kind::Empty), PageCount::new(1));
    };
    let left = end.offset_from(at).unwrap_or(PageCount::ZERO);
    let block = |order: Order| order.pages().min(left).max(PageCount::new(1));
    match memdesc {
        Memdesc::Buddy(buddy) => (Look::Free, block(buddy.order)),
        Memdesc::Pcp(pcp) => (Look::Free, block(pcp.order)),
        Memdesc::Transit(transit) => (Look::Busy(Kind::Transit), block(transit.order)),
        Memdesc::Tail(_) => (Look::Busy(Kind::Tail), PageCount::new(1)),
        Memdesc::Block(found) => {
            let look = match found.kind {
                BlockKind::Report => Look::Free,
                BlockKind::Frozen => Look::Busy(Kind::Frozen),
                BlockKind::Empty
                | BlockKind::Zero
                | BlockKind::Driver
                | BlockKind::Vmalloc
                | BlockKind::Guard
                | BlockKind::LargeKmalloc
                | BlockKind::Exact
                | BlockKind::Brd
                | BlockKind::Reserved => Look::Immovable(found.kind.kind()),
            };
            (look, block(found.order))
        }
        Memdesc::Offline(offline) => (held(Kind::Offline, offline.hold), block(offline.order)),
        Memdesc::Descriptor(found) => match found.kind {
            DescriptorKind::File | DescriptorKind::Anon => {
                (Look::Movable, run_of(words, word, at, end))
            }
            DescriptorKind::Movable | DescriptorKind::ZpDesc => {
                (held(found.kind.kind(), found.hold), PageCount::new(1))
            }
            DescriptorKind::Ksm
            | DescriptorKind::Slab
            | DescriptorKind::PtDesc
            | DescriptorKind::HwPoison
            | DescriptorKind::DevFolio => (Look::Immovable(found.kind.kind()), PageCount::new(1)),
        },
    }
}

fn held(kind: Kind, hold: Hold) -> Look {
    if hold == Hold::Movable { Look::Movable } else { Look::Busy(kind) }
}

/// Frames from `at` on with the same word.
fn run_of(words: &WordTable, word: Word, at: Pfn, end: Pfn) -> PageCount {
    let mut pages = PageCount::new(1);
    while let Some(next) = at.checked_add(pages)
        && next < end
        && words.load(next) == Ok(word)
    {
        pages = pages.saturating_add(PageCount::new(1));
    }
    pages
}
