//! Behaviour of the XArray: the groups that Linux tests, a model, exhaustion.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod exhaustion;
mod groups;
mod model;
mod readers;
#[path = "../support/mod.rs"]
mod support;

use guest_mm::xarray::{Entry, XArray};
use support::HeapNodes;

type Array<'a> = XArray<'a, &'a HeapNodes>;

/// The value entry that the tests store at `n`.
fn value(n: u64) -> Entry<usize> {
    Entry::value(usize::try_from(n & (u64::MAX >> 1)).unwrap()).unwrap()
}
