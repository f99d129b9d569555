//! Faults that models switch on to prove that they would be noticed.

use std::cell::Cell;
use std::thread::LocalKey;

/// Keeps one of the faults `M` switched on.
#[derive(Debug)]
#[must_use = "the mutant is switched off when this is dropped"]
pub struct Active<M: 'static>(&'static LocalKey<Cell<Option<M>>>);

impl<M> Active<M> {
    pub(crate) fn new(slot: &'static LocalKey<Cell<Option<M>>>, fault: M) -> Self {
        slot.set(Some(fault));
        Self(slot)
    }
}

impl<M> Drop for Active<M> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// Makes an enumeration the faults of its module.
macro_rules! mutants {
    ($name:ident) => {
        // A model's threads all run on the thread that explores it.
        std::thread_local! {
            static ACTIVE: std::cell::Cell<Option<$name>> = const { std::cell::Cell::new(None) };
        }

        impl $name {
            /// Switches the fault on.
            pub fn active(self) -> $crate::mutant::Active<Self> {
                $crate::mutant::Active::new(&ACTIVE, self)
            }

            pub(crate) fn is_active(self) -> bool {
                ACTIVE.get() == Some(self)
            }
        }
    };
}

pub(crate) use mutants;
