//! Reclaim: who gives memory back when there is too little, in which order, and
//! who dies if nothing else helps.
//!
//! Design, order of events and failure cases: `docs/reclaim.md`.

#![allow(dead_code, reason = "until what isolates folios has landed")]

mod lru;

pub(crate) use lru::Lru;
pub use lru::{LruCounts, LruList};

#[cfg(test)]
mod tests;
