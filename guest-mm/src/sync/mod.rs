//! Locks and atomics, with a shim for the loom model checker.
//!
//! Under `--cfg loom` the atomics and cells of [`shim`] are loom's, so the very
//! code that runs in the guest is explored by the models in
//! `tests/loom.rs`. Lock order: [`lock_order`].

pub mod lock_order;
pub mod mailbox;
pub mod rwlock;
pub mod shim;
pub mod sleeper;
pub mod spinlock;

pub use lock_order::{HeldLocks, LockClass};
#[cfg(not(loom))]
pub(crate) use lock_order::{note_held, note_let_go};
pub use mailbox::Mailboxes;
pub use rwlock::{ReadLockGuard, RwLock, WriteLockGuard};
pub use sleeper::Sleeper;
pub use spinlock::{SpinGuard, SpinLock};

#[cfg(test)]
mod tests;
