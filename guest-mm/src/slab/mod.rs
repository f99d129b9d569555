//! Slabs: frames cut into objects of one size.
//!
//! A slab is one frame. Its 32-byte descriptor ([`SlabDesc`]) sits at the
//! frame's end, the frame's word has tag Slab and points to it, and which
//! objects are free is a bit map in it: no bookkeeping lies in the objects, a
//! double free is seen at once, and an object keeps its contents while free.
//!
//! [`KmemCache`] deals in bytes; [`ObjectCache`] in values of a type, and
//! [`TypeSafeCache`] in objects that readers may still hold when they are used
//! again. CPUs may keep a sheaf of free objects each. docs/slab-rcu.md tells
//! the whole.
//!
//! Debug builds put a red zone behind every object and fill freed objects with
//! poison, unless readers may look at them.
//!
//! Locks: a CPU's sheaf ([`LockClass::Sheaf`]), then the cache
//! ([`LockClass::Slab`]); frames are taken and given back outside both.
//!
//! [`LockClass::Sheaf`]: crate::sync::LockClass::Sheaf
//! [`LockClass::Slab`]: crate::sync::LockClass::Slab

mod cache;
mod descriptor;
mod grace;
mod guard;
mod lists;
mod object;
mod options;
mod sheaf;
mod type_safe;

pub use cache::KmemCache;
pub use descriptor::{OBJECT_BYTES_PER_SLAB, SlabDesc, SlabView, objects_per_slab};
pub use object::ObjectCache;
pub use options::{
    CacheError, Constructor, MAX_ALIGN, MIN_ALIGN, SlabFreeError, SlabOptions, SlabStats,
};
pub use type_safe::{TypeSafe, TypeSafeCache};

pub(crate) use descriptor::view;

#[cfg(all(test, loom))]
mod loom;
#[cfg(test)]
mod tests;
