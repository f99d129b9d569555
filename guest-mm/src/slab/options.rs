//! How a cache is made, what it refuses, and what it holds.

use core::fmt;
use core::ptr::NonNull;

use abi::PageCount;

/// Smallest and default alignment of objects, in bytes: memdesc words keep
/// pointers of this alignment.
pub const MIN_ALIGN: usize = 16;

/// Largest alignment that a cache can be asked for: a cache line.
pub const MAX_ALIGN: usize = 64;

/// What makes an object's bytes valid for the first time.
///
/// Called once per object when its slab is made, before anybody can see it.
///
/// # Safety
/// The pointer starts an object of the cache that nobody else uses.
pub type Constructor = unsafe fn(NonNull<u8>);

/// How a cache treats its objects.
#[derive(Debug, Clone, Copy, Default)]
pub struct SlabOptions {
    /// Lockless readers may look at free objects: they keep their contents, and
    /// a slab goes back to the buddy allocator only after a grace period
    /// (Linux's `SLAB_TYPESAFE_BY_RCU`).
    pub type_safe: bool,
    /// Every CPU keeps a few free objects of its own ([`KmemCache::drain`]).
    ///
    /// [`KmemCache::drain`]: super::KmemCache::drain
    pub per_cpu: bool,
    /// Alignment in bytes, a power of two up to [`MAX_ALIGN`]; less than
    /// [`MIN_ALIGN`] (0, say) means that.
    pub align: usize,
    /// Offset in the object of its [`RcuHead`], for [`KmemCache::free_rcu`].
    ///
    /// [`RcuHead`]: crate::rcu::RcuHead
    /// [`KmemCache::free_rcu`]: super::KmemCache::free_rcu
    pub rcu_head: Option<usize>,
    /// Runs once per object and slab; objects then keep their contents while free.
    pub ctor: Option<Constructor>,
}

/// Why a cache cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheError {
    /// The object size is 0.
    ZeroSize,
    /// Not a single object would fit a slab.
    TooLarge(usize),
    /// Not a power of two, or above [`MAX_ALIGN`].
    BadAlignment(usize),
    /// The RCU head does not lie aligned inside the object, or the cache is
    /// type-safe and needs none.
    BadRcuHead(usize),
    /// The options ask for objects that keep their contents while free, and the
    /// type says nothing of it: [`TypeSafeCache`](super::TypeSafeCache) does.
    NotTypeSafe,
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ZeroSize => f.write_str("Objects of no size"),
            Self::TooLarge(size) => write!(f, "Objects of {size} bytes do not fit a slab"),
            Self::BadAlignment(align) => write!(f, "Objects cannot be aligned to {align} bytes"),
            Self::BadRcuHead(offset) => write!(f, "No place for an RCU head at {offset}"),
            Self::NotTypeSafe => f.write_str("Objects of this type do not keep their contents"),
        }
    }
}

impl core::error::Error for CacheError {}

/// Why an object was not freed. Nothing is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlabFreeError {
    /// The pointer leads outside RAM.
    NotRam,
    /// Its frame is no slab: never was, or was freed with its last object.
    NotSlab,
    /// Its slab belongs to another cache.
    WrongCache,
    /// It does not point to the start of an object.
    NotAnObject,
    /// The object is free already, or waits for a grace period to be.
    DoubleFree,
    /// Somebody wrote beyond the object's end (debug builds).
    Overrun,
}

impl fmt::Display for SlabFreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotRam => "Pointer leads outside RAM",
            Self::NotSlab => "Pointer leads to no slab",
            Self::WrongCache => "Object belongs to another cache",
            Self::NotAnObject => "Pointer is not the start of an object",
            Self::DoubleFree => "Object is free already",
            Self::Overrun => "Bytes behind the object were overwritten",
        })
    }
}

impl core::error::Error for SlabFreeError {}

/// What a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlabStats {
    /// Slabs, one frame each, those in limbo included.
    pub slabs: u64,
    /// Slabs without a used object that wait for a grace period (type-safe
    /// caches only); an allocation takes them up again.
    pub limbo: u64,
    /// Objects in use: neither in a slab nor with a CPU.
    pub in_use: u64,
    /// Free objects that CPUs keep for themselves.
    pub per_cpu: u64,
    /// Objects that fit one slab.
    pub objects_per_slab: u64,
}

impl SlabStats {
    /// Memory that the cache takes from the buddy allocator.
    pub const fn pages(&self) -> PageCount {
        PageCount::new(self.slabs)
    }
}
