//! Measurements of the memory manager: what `aerostat bench mm` runs in the
//! guest, and benches on the host.
//!
//! A [`Figure`] is one line of JSON; values are in thousandths of their unit,
//! because the guest's kernel computes with integers. [`layout`] is the
//! experiment about page descriptors of 8, 32 and 64 bytes, [`primitive`] the
//! allocators and grace periods. [`Sample`] is what the experiments of
//! `docs/experiments/` print.

pub mod batch;
pub mod figure;
pub mod isolation;
pub mod layout;
pub mod page64;
pub mod primitive;
pub mod sample;

pub use figure::{Bench, Figure, Spread};
pub use sample::{Experiment, Param, Sample};
