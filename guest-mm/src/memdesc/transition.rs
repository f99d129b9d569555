//! Which state of a word may follow which: one static table.
//!
//! [`WordCell::transition`](super::WordCell::transition) refuses everything
//! that is not here, so an owner that frees an isolated page, or a free that
//! comes twice, fails at the word and not later in a list.

use core::fmt;

use super::kind::{Hold, Kind, State};
use super::word::{UnknownWord, Word};

/// Why a word did not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransitionError {
    /// The table has no such step.
    Illegal {
        /// State of the expected word.
        from: State,
        /// State of the proposed word.
        to: State,
    },
    /// Another CPU changed the word first; the frame is as `found` says.
    Raced {
        /// The word that is there now.
        found: Word,
    },
    /// One of the words is malformed.
    Unknown(UnknownWord),
}

impl fmt::Display for TransitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Illegal { from, to } => write!(
                f,
                "No transition from {}/{:?} to {}/{:?}",
                from.kind.name(),
                from.hold,
                to.kind.name(),
                to.hold
            ),
            Self::Raced { found } => write!(f, "Word changed to {found:?}"),
            Self::Unknown(unknown) => unknown.fmt(f),
        }
    }
}

impl core::error::Error for TransitionError {}

const fn held(kind: Kind) -> State {
    State::held(kind)
}

const fn offline(hold: Hold) -> State {
    State { kind: Kind::Offline, hold }
}

/// The steps of frames that hold no descriptor.
const STEPS: &[(State, State)] = &[
    // Start of the world.
    (held(Kind::Empty), held(Kind::Reserved)),
    (held(Kind::Empty), held(Kind::Buddy)),
    (held(Kind::Empty), held(Kind::Tail)),
    // Reserved memory that is no longer needed is released.
    (held(Kind::Reserved), held(Kind::Frozen)),
    // Free lists: relink, merge, split, hand out, give to a CPU, report.
    (held(Kind::Buddy), held(Kind::Buddy)),
    (held(Kind::Buddy), held(Kind::Tail)),
    (held(Kind::Tail), held(Kind::Buddy)),
    (held(Kind::Buddy), held(Kind::Frozen)),
    (held(Kind::Buddy), held(Kind::Pcp)),
    (held(Kind::Buddy), held(Kind::Report)),
    (held(Kind::Report), held(Kind::Buddy)),
    (held(Kind::Pcp), held(Kind::Frozen)),
    (held(Kind::Pcp), held(Kind::Buddy)),
    // Allocated blocks: free, split, merge.
    (held(Kind::Frozen), held(Kind::Buddy)),
    (held(Kind::Frozen), held(Kind::Pcp)),
    (held(Kind::Frozen), held(Kind::Frozen)),
    (held(Kind::Frozen), held(Kind::Tail)),
    (held(Kind::Tail), held(Kind::Frozen)),
    // Offline: taken, known by number only, movable, isolated, and back.
    (held(Kind::Frozen), offline(Hold::Held)),
    (offline(Hold::Held), held(Kind::Frozen)),
    (offline(Hold::Held), offline(Hold::Held)),
    (held(Kind::Tail), offline(Hold::Held)),
    (offline(Hold::Held), offline(Hold::Parked)),
    (offline(Hold::Parked), offline(Hold::Held)),
    (offline(Hold::Parked), offline(Hold::Movable)),
    (offline(Hold::Movable), offline(Hold::Held)),
    (offline(Hold::Movable), offline(Hold::Isolated)),
    (offline(Hold::Isolated), offline(Hold::Movable)),
    (offline(Hold::Isolated), held(Kind::Frozen)),
    // An isolated block is cut to the page that shall move, or its driver takes it back.
    (offline(Hold::Isolated), offline(Hold::Isolated)),
    (held(Kind::Tail), offline(Hold::Parked)),
    (offline(Hold::Isolated), offline(Hold::Parked)),
    // Migration destinations.
    (held(Kind::Frozen), held(Kind::Transit)),
    (held(Kind::Transit), held(Kind::Frozen)),
    (held(Kind::Transit), offline(Hold::Parked)),
    // Its owner could not go over after all.
    (offline(Hold::Parked), held(Kind::Transit)),
];

/// Kinds that an allocated block may take on and give up again.
const TYPED: &[Kind] = &[
    Kind::Zero,
    Kind::Driver,
    Kind::Vmalloc,
    Kind::Guard,
    Kind::LargeKmalloc,
    Kind::Exact,
    Kind::Brd,
    Kind::File,
    Kind::Anon,
    Kind::Ksm,
    Kind::Slab,
    Kind::Movable,
    Kind::PtDesc,
    Kind::ZpDesc,
    Kind::DevFolio,
];

/// Kinds whose tails repeat the head's word.
const REPEATED: &[Kind] = &[
    Kind::File,
    Kind::Anon,
    Kind::Ksm,
    Kind::Slab,
    Kind::Movable,
    Kind::PtDesc,
    Kind::ZpDesc,
    Kind::DevFolio,
];

/// Kinds with a descriptor that migration can isolate and receive.
const MIGRATABLE: &[Kind] = &[Kind::File, Kind::Anon, Kind::Movable, Kind::ZpDesc];

/// Those of them that have no reference count: an owner who frees one while it is
/// isolated leaves that to migration.
const UNCOUNTED: &[Kind] = &[Kind::Movable, Kind::ZpDesc];

/// Kinds whose blocks are split under their descriptor: frames go from one
/// descriptor to another of the kind, by whoever has the folio frozen.
const SPLIT: &[Kind] = &[Kind::File, Kind::Anon, Kind::DevFolio];

/// Kinds whose descriptor stays while its frames change: whoever has the folio
/// frozen leaves the old frames isolated until no leaf names them any more.
const RELOCATED: &[Kind] = &[Kind::File, Kind::Anon];

const _: () = assert!(State::COUNT <= 128, "a row of the table is one u128");

/// Bit `to` of row `from`: the step is legal.
static TABLE: [u128; State::COUNT] = build();

const fn build() -> [u128; State::COUNT] {
    let mut table = [0; State::COUNT];
    let mut i = 0;
    while i < STEPS.len() {
        table = allow(table, STEPS[i].0, STEPS[i].1);
        i += 1;
    }
    i = 0;
    while i < TYPED.len() {
        table = allow(table, held(Kind::Frozen), held(TYPED[i]));
        table = allow(table, held(TYPED[i]), held(Kind::Frozen));
        i += 1;
    }
    i = 0;
    while i < REPEATED.len() {
        table = allow(table, held(Kind::Tail), held(REPEATED[i]));
        table = allow(table, held(REPEATED[i]), held(Kind::Tail));
        i += 1;
    }
    i = 0;
    while i < MIGRATABLE.len() {
        let kind = MIGRATABLE[i];
        let movable = State { kind, hold: Hold::Movable };
        let isolated = State { kind, hold: Hold::Isolated };
        table = allow(table, held(kind), movable);
        table = allow(table, movable, held(kind));
        table = allow(table, movable, isolated);
        table = allow(table, isolated, movable);
        table = allow(table, isolated, held(Kind::Frozen));
        table = allow(table, held(Kind::Transit), held(kind));
        i += 1;
    }
    i = 0;
    while i < UNCOUNTED.len() {
        let kind = UNCOUNTED[i];
        let doomed = State { kind, hold: Hold::Doomed };
        table = allow(table, State { kind, hold: Hold::Isolated }, doomed);
        table = allow(table, doomed, held(Kind::Frozen));
        i += 1;
    }
    i = 0;
    while i < SPLIT.len() {
        table = allow(table, held(SPLIT[i]), held(SPLIT[i]));
        i += 1;
    }
    i = 0;
    while i < RELOCATED.len() {
        let kind = RELOCATED[i];
        let isolated = State { kind, hold: Hold::Isolated };
        table = allow(table, held(kind), isolated);
        table = allow(table, isolated, held(Kind::Tail));
        i += 1;
    }
    // A frame with a memory error never comes back.
    allow(table, held(Kind::Frozen), held(Kind::HwPoison))
}

const fn allow(mut table: [u128; State::COUNT], from: State, to: State) -> [u128; State::COUNT] {
    table[from.index()] |= 1 << to.index();
    table
}

/// Whether the table has the step from `from` to `to`.
#[inline]
pub fn is_legal(from: State, to: State) -> bool {
    TABLE.get(from.index()).is_some_and(|row| row >> to.index() & 1 != 0)
}
