//! Model checks of GUP-fast's grab against whoever takes the page away.
//!
//! Built and run only by
//! `RUSTFLAGS="--cfg loom" cargo test -p guest-mm --release --test loom_gup`.
//! Loom treats SeqCst as AcqRel and cannot show load buffering: a pass is
//! evidence, not proof.
#![cfg(loom)]

use std::ptr::NonNull;

use guest_mm::folio::mutant::Mutant;
use guest_mm::folio::{Folio, FolioKind, FolioPin, FolioRef, FrozenFolio};
use guest_mm::gup::{Grab, Hold, grab};
use guest_mm::memdesc::{Block, BlockKind, Memdesc, Order, Word, WordCell};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;

/// The leaf that maps frame X, exclusively. The same bits whichever folio is there.
const MAPPED: u64 = 0b11;
/// As fork leaves it.
const SHARED: u64 = 0b01;
const EMPTY: u64 = 0;

fn frozen() -> Word {
    Memdesc::Block(Block::new(BlockKind::Frozen, Order::ZERO)).encode()
}

fn word_of(folio: &Folio) -> Word {
    FolioKind::Anon.word_of(NonNull::from(folio))
}

/// A descriptor for as long as the model's process lives: type-safe memory.
fn descriptor() -> &'static Folio {
    Box::leak(Box::new(Folio::unused()))
}

fn publish(folio: &'static Folio, cell: &WordCell) {
    cell.transition(frozen(), word_of(folio)).expect("the frame is its allocator's");
    // SAFETY: the model's thread has just taken the descriptor, nobody else uses it.
    let map = unsafe { FrozenFolio::own(folio) }.unfreeze(1);
    // The mapping's reference.
    let _ = map.into_raw();
}

/// Two frames, and a leaf that maps X.
struct Machine {
    leaf: AtomicU64,
    x: WordCell,
    y: WordCell,
}

impl Machine {
    fn new(folio: &'static Folio) -> Arc<Self> {
        let machine = Self {
            leaf: AtomicU64::new(EMPTY),
            x: WordCell::new(frozen()),
            y: WordCell::new(frozen()),
        };
        publish(folio, &machine.x);
        machine.leaf.store(MAPPED, Ordering::Release);
        Arc::new(machine)
    }

    /// GUP-fast of the one page: the leaf that it went by, and the hold.
    fn gup<H: Hold<'static>, const RECHECK: bool>(&self) -> Option<(u64, H)> {
        let seen = self.leaf.load(Ordering::Acquire);
        if seen == EMPTY {
            return None;
        }
        let is_same = || self.leaf.load(Ordering::Relaxed) == seen;
        // SAFETY: descriptors are never freed.
        match unsafe { grab::<H, RECHECK>(&self.x, || (), is_same) } {
            Grab::Held(hold) => Some((seen, hold)),
            Grab::Missed(folio) => {
                if let Some(folio) = folio {
                    // Whoever puts the last reference frees the folio; nothing follows here.
                    let _ = folio.release();
                }
                None
            }
        }
    }

    /// Unmaps the page; if that was the last reference, the descriptor goes to a
    /// folio in frame Y, and `other` to one in frame X, mapped where the first was.
    fn unmap_and_reuse(&self, folio: &'static Folio, other: &'static Folio) {
        self.leaf.store(EMPTY, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // SAFETY: the mapping's reference, whose leaf is gone.
        let map = unsafe { FolioRef::from_raw(NonNull::from(folio)) };
        let Some(last) = map.release() else { return };
        self.x.transition(word_of(&last), frozen()).expect("its own word");
        publish(folio, &self.y);
        publish(other, &self.x);
        self.leaf.store(MAPPED, Ordering::Release);
    }
}

fn race_with_reuse<H: Hold<'static> + 'static, const RECHECK: bool>() {
    loom::model(|| {
        let (folio, other) = (descriptor(), descriptor());
        let machine = Machine::new(folio);
        let theirs = Arc::clone(&machine);
        let unmapper = thread::spawn(move || theirs.unmap_and_reuse(folio, other));
        let held = machine.gup::<H, RECHECK>();
        unmapper.join().unwrap();
        if let Some((_, hold)) = held {
            assert_eq!(machine.x.load(), word_of(hold.folio()), "the folio of another frame");
            let _ = hold.untake().release();
        }
    });
}

#[test]
fn a_pin_is_of_the_folio_that_is_mapped_though_frame_and_descriptor_are_reused() {
    race_with_reuse::<FolioPin<'static>, true>();
}

#[test]
fn a_reference_is_to_the_folio_that_is_mapped_though_frame_and_descriptor_are_reused() {
    race_with_reuse::<FolioRef<'static>, true>();
}

#[test]
#[should_panic(expected = "the folio of another frame")]
fn without_the_second_look_at_the_word_the_model_finds_a_wrong_folio() {
    race_with_reuse::<FolioPin<'static>, false>();
}

/// fork: takes exclusiveness away, then shares the page unless it is pinned.
fn fork(machine: &Machine, folio: &Folio) -> bool {
    machine.leaf.store(SHARED, Ordering::Relaxed);
    // Has the barrier between the two.
    !folio.is_pinned()
}

fn pin_against_fork() {
    let folio = descriptor();
    let machine = Machine::new(folio);
    let theirs = Arc::clone(&machine);
    let forker = thread::spawn(move || fork(&theirs, folio));
    let pin = machine.gup::<FolioPin<'static>, true>();
    let is_shared = forker.join().unwrap();
    // A pin by a leaf that was not exclusive is refused by its caller.
    let is_kept = pin.is_some_and(|(seen, _)| seen == MAPPED);
    assert!(!(is_shared && is_kept), "a pinned page is shared");
}

#[test]
fn fork_sees_the_pin_or_the_pin_sees_the_fork() {
    loom::model(pin_against_fork);
}

#[test]
#[should_panic(expected = "a pinned page is shared")]
fn mutant_without_the_barrier_before_the_look_at_pins_a_pinned_page_is_shared() {
    loom::model(|| {
        let _mutant = Mutant::NoBarrierBeforePins.active();
        pin_against_fork();
    });
}

#[test]
#[should_panic(expected = "a pinned page is shared")]
fn with_the_pin_counted_after_the_look_at_the_leaf_the_model_finds_it_shared() {
    loom::model(|| {
        let folio = descriptor();
        let machine = Machine::new(folio);
        let theirs = Arc::clone(&machine);
        let forker = thread::spawn(move || fork(&theirs, folio));
        let pin = FolioRef::try_get(folio)
            .filter(|_| machine.leaf.load(Ordering::Acquire) == MAPPED)
            .map(FolioRef::pin);
        let is_shared = forker.join().unwrap();
        assert!(!(is_shared && pin.is_some()), "a pinned page is shared");
    });
}

/// The page is somewhere else, or on its way.
const ELSEWHERE: u64 = 0b100;

impl Machine {
    /// Moves the page from X to Y: as `Mm::transfer_folio`, whose own reference is
    /// here the one that the mapping had.
    fn migrate(&self, folio: &'static Folio) {
        self.leaf.store(ELSEWHERE, Ordering::Relaxed);
        // Has the barrier between the two.
        if folio.is_pinned() {
            self.leaf.store(MAPPED, Ordering::Release);
            return;
        }
        // SAFETY: the mapping's reference, whose leaf is gone.
        let map = unsafe { FolioRef::from_raw(NonNull::from(folio)) };
        let Ok(alone) = map.freeze(1) else {
            self.leaf.store(MAPPED, Ordering::Release);
            return;
        };
        let left = FolioKind::Anon.left_word_of(NonNull::from(folio));
        let adopt = || self.y.transition(frozen(), word_of(folio)).expect("a destination");
        let leave = || self.x.transition(word_of(folio), left).expect("its own word");
        let to = abi::Pfn::new(1).expect("a small number");
        let _ = alone.relocate(to, 1, adopt, leave).into_raw();
        // The leaf is one of Y now; nobody names X any more.
        self.x.transition(left, frozen()).expect("what it left");
    }
}

fn hold_against_migration<H: Hold<'static> + 'static>() {
    let folio = descriptor();
    let machine = Machine::new(folio);
    let theirs = Arc::clone(&machine);
    let mover = thread::spawn(move || theirs.migrate(folio));
    let held = machine.gup::<H, true>();
    let held = held.filter(|(seen, _)| *seen == MAPPED);
    mover.join().unwrap();
    if let Some((_, hold)) = held {
        assert_eq!(machine.x.load(), word_of(hold.folio()), "a held page has moved");
    }
}

#[test]
fn a_pinned_page_does_not_move() {
    loom::model(hold_against_migration::<FolioPin<'static>>);
}

#[test]
fn a_page_that_somebody_refers_to_does_not_move() {
    loom::model(hold_against_migration::<FolioRef<'static>>);
}

#[test]
#[should_panic(expected = "a held page has moved")]
fn mutant_without_a_freeze_a_page_moves_that_somebody_refers_to() {
    loom::model(|| {
        let _mutant = Mutant::NoFreeze.active();
        hold_against_migration::<FolioRef<'static>>();
    });
}

/// What misleads a PFN walker does not mislead GUP, which looks at the leaf again too.
#[test]
fn a_word_that_is_taken_away_late_does_not_give_gup_a_page_that_has_moved() {
    loom::model(|| {
        let _mutant = Mutant::WordAfterUnfreeze.active();
        hold_against_migration::<FolioRef<'static>>();
    });
}
