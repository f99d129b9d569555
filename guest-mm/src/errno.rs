//! Linux's error numbers, as far as memory calls return them.

use core::fmt;

/// Why a memory call failed: Linux's names and numbers (`include/uapi/asm-generic/errno-base.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Errno {
    /// Operation not permitted.
    EPERM = 1,
    /// No such entry.
    ENOENT = 2,
    /// The process is being killed.
    EINTR = 4,
    /// Input or output failed.
    EIO = 5,
    /// No file.
    EBADF = 9,
    /// Try again.
    EAGAIN = 11,
    /// Out of memory, or a hole where there should be a mapping.
    ENOMEM = 12,
    /// Access denied.
    EACCES = 13,
    /// Bad address.
    EFAULT = 14,
    /// In use.
    EBUSY = 16,
    /// Exists already.
    EEXIST = 17,
    /// Invalid argument.
    EINVAL = 22,
    /// No space left.
    ENOSPC = 28,
    /// Value too large.
    EOVERFLOW = 75,
    /// Not supported here.
    EOPNOTSUPP = 95,
    /// The page has a memory error.
    EHWPOISON = 133,
}

impl Errno {
    /// Linux's number.
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// The symbol.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EPERM => "EPERM",
            Self::ENOENT => "ENOENT",
            Self::EINTR => "EINTR",
            Self::EIO => "EIO",
            Self::EBADF => "EBADF",
            Self::EAGAIN => "EAGAIN",
            Self::ENOMEM => "ENOMEM",
            Self::EACCES => "EACCES",
            Self::EFAULT => "EFAULT",
            Self::EBUSY => "EBUSY",
            Self::EEXIST => "EEXIST",
            Self::EINVAL => "EINVAL",
            Self::ENOSPC => "ENOSPC",
            Self::EOVERFLOW => "EOVERFLOW",
            Self::EOPNOTSUPP => "EOPNOTSUPP",
            Self::EHWPOISON => "EHWPOISON",
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl core::error::Error for Errno {}

impl From<crate::memory::AllocError> for Errno {
    fn from(_: crate::memory::AllocError) -> Self {
        Self::ENOMEM
    }
}
