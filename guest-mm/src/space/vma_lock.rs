//! The lock of one VMA: readers need nothing of the space's lock.
//!
//! A reader finds a VMA without a lock, under a read section of RCU. By the
//! time it has counted itself, the VMA may be gone from the tree, cover other
//! addresses, or be in a writer's hands; so it counts itself first and looks
//! again then ([`read_covering`]). If anything is not as it hoped it takes the
//! space's lock instead: nothing here waits for a writer.
//!
//! A writer holds the space's lock for writing. Before it touches a VMA it
//! marks it and waits for the readers that are in ([`VmaLock::start_write`]).
//! It never unlocks a VMA: a VMA counts as locked while its number equals its
//! space's [`LockSeq`], and the end of the space's write section counts that
//! on, which unlocks all of them by one store (`include/linux/mmap_lock.h`).

use crate::sync::shim::{AtomicU32, AtomicU64, Ordering};

/// The VMA is in its space's tree.
const ATTACHED: u32 = 1 << 31;
/// A writer is waiting for the readers to leave; no further one gets in.
const WRITER: u32 = 1 << 30;
const READERS: u32 = WRITER - 1;

/// A space's count of write sections: what tells which VMAs are locked.
#[derive(Debug)]
pub struct LockSeq(AtomicU64);

impl LockSeq {
    /// The count of a new space. Zero is no VMA's number.
    #[expect(clippy::new_without_default, reason = "a space has one, made with it")]
    pub fn new() -> Self {
        Self(AtomicU64::new(1))
    }

    /// Unlocks every VMA that [`VmaLock::start_write`] has locked; by the
    /// holder of the space's lock, before it lets go.
    pub fn end_write_section(&self) {
        // The only writer is the holder of the space's lock. Release pairs with the
        // Acquire in `VmaLock::is_write_locked`: who sees the VMA unlocked sees it changed.
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now + 1, Ordering::Release);
    }
}

/// Readers of a VMA, or its writer.
#[derive(Debug)]
pub struct VmaLock {
    /// [`ATTACHED`], [`WRITER`], and the number of readers.
    state: AtomicU32,
    /// The write section that locked it last: it is locked while that lasts.
    seq: AtomicU64,
}

/// What [`read_covering`] needs to know of a VMA.
pub trait Lockable {
    /// Its lock.
    fn vma_lock(&self) -> &VmaLock;
    /// Whether it covers the address. Stable while the lock is held.
    fn covers(&self, address: u64) -> bool;
}

/// Locks `vma` for reading if it is attached, not a writer's, and covers
/// `address`; `false` if it is any other way, and nothing is locked then.
///
/// The caller found it in the tree of the space that `space` belongs to and has
/// been in a read section since, so that the object is still a VMA.
pub fn read_covering<V: Lockable>(vma: &V, space: &LockSeq, address: u64) -> bool {
    let lock = vma.vma_lock();
    if !lock.try_read(space) {
        return false;
    }
    #[cfg(loom)]
    if mutant::Mutant::TrustsRange.is_active() {
        return true;
    }
    if vma.covers(address) {
        return true;
    }
    lock.end_read();
    false
}

impl VmaLock {
    /// The lock of a VMA that is not in the tree yet: its maker's, until the
    /// write section of `space` ends.
    pub fn new(space: &LockSeq) -> Self {
        Self { state: AtomicU32::new(0), seq: AtomicU64::new(space.0.load(Ordering::Relaxed)) }
    }

    fn try_read(&self, space: &LockSeq) -> bool {
        // A look before the step that readers pay for; it proves nothing.
        if self.seq.load(Ordering::Relaxed) == space.0.load(Ordering::Relaxed) {
            return false;
        }
        if !self.count_reader() {
            return false;
        }
        #[cfg(loom)]
        if mutant::Mutant::TrustsFirstLook.is_active() {
            return true;
        }
        if self.is_write_locked(space) {
            self.end_read();
            return false;
        }
        true
    }

    /// Adds a reader unless the VMA has left the tree or a writer waits.
    fn count_reader(&self) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            #[cfg(loom)]
            let detached = state & ATTACHED == 0 && !mutant::Mutant::TrustsTree.is_active();
            #[cfg(not(loom))]
            let detached = state & ATTACHED == 0;
            if detached || state & WRITER != 0 || state & READERS == READERS {
                return false;
            }
            // Acquire pairs with the Release in `start_write`: the section's number is
            // seen with the mark gone.
            match self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
    }

    /// Whether the write section under way has locked it. Exact for the holder of
    /// the space's lock and for a counted reader.
    ///
    /// A counted reader that sees the number of a section also sees that the
    /// space's count has reached it (it happened before the mark went), so an old
    /// count cannot make a locked VMA look unlocked.
    pub fn is_write_locked(&self, space: &LockSeq) -> bool {
        // Acquire pairs with the Release in `end_write_section`.
        self.seq.load(Ordering::Relaxed) == space.0.load(Ordering::Acquire)
    }

    /// Takes a reader off.
    pub fn end_read(&self) {
        // Release pairs with the Acquire in `start_write`.
        let before = self.state.fetch_sub(1, Ordering::Release);
        debug_assert!(before & READERS != 0, "a VMA lock without a reader was unlocked");
    }

    /// Locks the VMA until the write section of `space` ends, for the holder of
    /// the space's lock; waits for its readers, calling `relax` meanwhile. Does
    /// nothing if that was done before in the section.
    pub fn start_write(&self, space: &LockSeq, mut relax: impl FnMut()) {
        let section = space.0.load(Ordering::Relaxed);
        if self.seq.load(Ordering::Relaxed) == section {
            return;
        }
        let mut state = self.state.fetch_or(WRITER, Ordering::Acquire);
        while state & READERS != 0 {
            relax();
            // Acquire pairs with the Release in `end_read`: what readers did came before.
            state = self.state.load(Ordering::Acquire);
        }
        self.seq.store(section, Ordering::Relaxed);
        // Release pairs with the Acquire in `count_reader`.
        self.state.fetch_and(!WRITER, Ordering::Release);
    }

    /// Lets readers in, once the write section has ended.
    pub fn attach(&self) {
        // Release pairs with the Acquire in `count_reader`: a reader sees the VMA made.
        self.state.fetch_or(ATTACHED, Ordering::Release);
    }

    /// Keeps readers out for good. The VMA is write-locked.
    pub fn detach(&self) {
        // Relaxed: `start_write` has seen the readers leave, and who comes later is
        // turned away by the section's number, then by this.
        self.state.fetch_and(!ATTACHED, Ordering::Relaxed);
    }

    /// Whether the VMA is in the tree.
    pub fn is_attached(&self) -> bool {
        self.state.load(Ordering::Relaxed) & ATTACHED != 0
    }

    /// Readers now.
    pub fn readers(&self) -> u32 {
        self.state.load(Ordering::Relaxed) & READERS
    }
}

/// Ways to get it wrong, each of which a model must notice.
#[cfg(loom)]
pub mod mutant {
    /// A step left out.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Mutant {
        /// A reader counts itself without looking whether the VMA is attached.
        TrustsTree,
        /// A counted reader does not look again whether a writer has the VMA.
        TrustsFirstLook,
        /// A counted reader does not look whether the VMA covers the address.
        TrustsRange,
    }

    crate::mutant::mutants!(Mutant);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct Half;

    impl Lockable for (VmaLock, Half) {
        fn vma_lock(&self) -> &VmaLock {
            &self.0
        }

        fn covers(&self, address: u64) -> bool {
            address < 10
        }
    }

    fn attached(space: &LockSeq) -> (VmaLock, Half) {
        let vma = (VmaLock::new(space), Half);
        vma.0.attach();
        vma
    }

    #[test]
    fn a_vma_is_its_writers_until_the_section_ends() {
        let space = LockSeq::new();
        let vma = attached(&space);
        assert!(!read_covering(&vma, &space, 1), "its maker has it");
        space.end_write_section();
        assert!(read_covering(&vma, &space, 1));
        assert!(read_covering(&vma, &space, 2));
        assert_eq!(vma.0.readers(), 2);
        vma.0.end_read();
        vma.0.end_read();
        vma.0.start_write(&space, || panic!("no reader"));
        vma.0.start_write(&space, || panic!("locked already"));
        assert!(!read_covering(&vma, &space, 1));
        space.end_write_section();
        assert!(read_covering(&vma, &space, 1));
    }

    #[test]
    fn a_reader_of_another_address_and_of_a_detached_vma_is_turned_away() {
        let space = LockSeq::new();
        let vma = attached(&space);
        space.end_write_section();
        assert!(!read_covering(&vma, &space, 10));
        vma.0.start_write(&space, || ());
        vma.0.detach();
        space.end_write_section();
        assert!(!read_covering(&vma, &space, 1));
        assert_eq!((vma.0.readers(), vma.0.is_attached()), (0, false));
    }

    #[test]
    fn a_writer_waits_for_the_readers_that_are_in() {
        let space = LockSeq::new();
        let vma = attached(&space);
        space.end_write_section();
        assert!(read_covering(&vma, &space, 1));
        let mut waited = 0;
        vma.0.start_write(&space, || {
            waited += 1;
            assert!(!read_covering(&vma, &space, 1), "no reader gets past a waiting writer");
            if waited == 3 {
                vma.0.end_read();
            }
        });
        assert_eq!(waited, 3);
    }
}
