//! Whose operations move which pages.

use core::fmt;

use super::ops::{MovableKind, MovableOps};
use crate::errno::Errno;
use crate::memdesc::Kind;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::{LockClass, SpinLock};

/// Why operations were not registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterError {
    /// Words of this kind have no pages that move by operations.
    NotMovable(Kind),
    /// The kind has operations already.
    Busy(MovableKind),
}

impl RegisterError {
    /// Linux's number for it.
    pub const fn errno(self) -> Errno {
        match self {
            Self::NotMovable(_) => Errno::EINVAL,
            Self::Busy(_) => Errno::EBUSY,
        }
    }
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMovable(kind) => write!(
                f,
                "Pages of kind {} do not move by operations; offline, zpdesc and movable do",
                kind.name()
            ),
            Self::Busy(kind) => write!(f, "Operations for {kind:?} are registered already"),
        }
    }
}

impl core::error::Error for RegisterError {}

/// Why operations were not taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnregisterError {
    /// The kind has none, or somebody else's.
    NotRegistered(Kind),
    /// Pages of the kind are isolated, or about to be.
    Busy(MovableKind),
}

impl UnregisterError {
    /// Linux's number for it.
    pub const fn errno(self) -> Errno {
        match self {
            Self::NotRegistered(_) => Errno::EINVAL,
            Self::Busy(_) => Errno::EBUSY,
        }
    }
}

impl fmt::Display for UnregisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRegistered(kind) => {
                write!(f, "Pages of kind {} have no such operations", kind.name())
            }
            Self::Busy(kind) => write!(f, "Pages of kind {kind:?} are isolated"),
        }
    }
}

impl core::error::Error for UnregisterError {}

/// The operations of one kind, and who uses them now.
struct Entry<'m, P: Platform> {
    ops: Option<&'m dyn MovableOps<P>>,
    users: u32,
}

/// The operations of all kinds, by [`MovableKind`].
pub(crate) struct Registry<'m, P: Platform>(SpinLock<[Entry<'m, P>; MovableKind::ALL.len()]>);

impl<P: Platform> Registry<'_, P> {
    pub(crate) const fn new() -> Self {
        // Nothing is locked below it.
        Self(SpinLock::new(
            LockClass::Zone,
            [const { Entry { ops: None, users: 0 } }; MovableKind::ALL.len()],
        ))
    }
}

/// A kind's operations, which cannot be unregistered meanwhile. Whoever has
/// pages of the kind isolated has one.
#[must_use = "the operations may go as soon as it is dropped"]
pub struct OpsGuard<'a, 'm, P: Platform> {
    mm: &'a Mm<'m, P>,
    kind: MovableKind,
    ops: &'m dyn MovableOps<P>,
}

impl<'m, P: Platform> OpsGuard<'_, 'm, P> {
    /// The operations.
    pub const fn ops(&self) -> &'m dyn MovableOps<P> {
        self.ops
    }

    /// Whose they are.
    pub const fn kind(&self) -> MovableKind {
        self.kind
    }
}

impl<P: Platform> Drop for OpsGuard<'_, '_, P> {
    fn drop(&mut self) {
        let mut entries = self.mm.movable_ops.0.lock(self.mm.platform());
        entries[self.kind as usize].users -= 1;
    }
}

impl<P: Platform> fmt::Debug for OpsGuard<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpsGuard").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Makes `ops` those of the pages whose words are of `kind`
    /// (Linux `set_movable_ops`).
    ///
    /// # Errors
    /// `EINVAL`: the kind does not move by operations. `EBUSY`: it has some.
    pub fn set_movable_ops(
        &self,
        kind: Kind,
        ops: &'m dyn MovableOps<P>,
    ) -> Result<(), RegisterError> {
        let movable = MovableKind::of(kind).ok_or(RegisterError::NotMovable(kind))?;
        let mut entries = self.movable_ops.0.lock(self.platform());
        let entry = &mut entries[movable as usize];
        if entry.ops.is_some() {
            return Err(RegisterError::Busy(movable));
        }
        entry.ops = Some(ops);
        Ok(())
    }

    /// Takes the operations of `kind` back; its pages stay where they are from now on.
    ///
    /// # Errors
    /// `EINVAL`: the kind has none. `EBUSY`: pages of it are isolated; later.
    pub fn clear_movable_ops(&self, kind: Kind) -> Result<(), UnregisterError> {
        let movable = MovableKind::of(kind).ok_or(UnregisterError::NotRegistered(kind))?;
        let mut entries = self.movable_ops.0.lock(self.platform());
        let entry = &mut entries[movable as usize];
        if entry.ops.is_none() {
            return Err(UnregisterError::NotRegistered(kind));
        }
        if entry.users > 0 {
            return Err(UnregisterError::Busy(movable));
        }
        entry.ops = None;
        Ok(())
    }

    /// The operations of `kind`, if it has any, to be used until the guard is dropped.
    pub fn movable_ops(&self, kind: MovableKind) -> Option<OpsGuard<'_, 'm, P>> {
        let mut entries = self.movable_ops.0.lock(self.platform());
        let entry = &mut entries[kind as usize];
        let ops = entry.ops?;
        entry.users += 1;
        Some(OpsGuard { mm: self, kind, ops })
    }
}
