//! Slabs: frames cut into objects of one size.
//!
//! A slab is one frame. Its 32-byte descriptor ([`SlabDesc`]) sits at the
//! frame's end, the frame's word has tag Slab and points to it, and which
//! objects are free is a bit map in it: no bookkeeping lies in the objects, a
//! double free is seen at once, and an object keeps its contents while free.
//!
//! Debug builds put a red zone behind every object and fill freed objects with
//! poison.
//!
//! Lock: one per cache ([`LockClass::Slab`]); frames are taken and given back
//! outside it.
//!
//! [`LockClass::Slab`]: crate::sync::LockClass::Slab

mod cache;
mod descriptor;
mod guard;

pub use cache::{CacheError, KmemCache, SlabFreeError, SlabOptions, SlabStats};
pub use descriptor::{OBJECT_BYTES_PER_SLAB, SlabDesc, SlabView, objects_per_slab};

pub(crate) use descriptor::view;

#[cfg(test)]
mod tests;
