//! Split virtqueues seen from the device, over memory that the guest may change at any moment.
//!
//! `virtio-queue`'s `Queue` holds the ring state (addresses, indices, the used
//! ring); this module adds what a hostile driver makes necessary:
//!
//! * [`RingLayout`] → [`Virtqueue`]: the only door from register values to a usable ring;
//! * [`RawDesc`] → [`CheckedDesc`]: every descriptor is copied from guest memory
//!   once, and the copy is validated;
//! * [`PoppedChain`]: owns a head that the driver has handed over, until
//!   [`Virtqueue::complete`] returns it. It cannot be cloned, and dropping one
//!   without returning it is a bug that debug builds catch.
//!
//! Three outcomes stay apart all the way: *no buffer* (`Ok(None)`), *a bad
//! buffer* ([`ChainFault`], inside a chain that is still returned), and *a bad
//! ring* (`Err(GuestFault::BadRing)`, after which only a reset helps).
//!
//! No locks: a `Virtqueue` belongs to one device. Deliberately absent: packed
//! rings, IOMMU translation, out-of-order publication beyond what the
//! specification lets a device do.
//!
//! Spec: VirtIO 1.2 §2.7.

mod chain;
mod desc;
mod layout;
mod virtqueue;

#[cfg(test)]
mod tests;

pub use chain::{Buffers, ChainFault};
pub use desc::{CheckedDesc, RawDesc};
pub use layout::{LayoutFault, RingArea, RingLayout};
pub use virtqueue::{PoppedChain, RingFault, Virtqueue};
