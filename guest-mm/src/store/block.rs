//! [`Block`]: an aligned power-of-two run of frames, and its state in a store.

use abi::{PageCount, Pfn, PfnRange};

/// Largest order of a stored block: the buddy allocator's largest.
pub const MAX_BLOCK_ORDER: u32 = 10;

/// `2^order` frames from a head that is aligned to as many.
///
/// Holding one proves the alignment, an order of at most [`MAX_BLOCK_ORDER`],
/// and that its last frame has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block {
    head: Pfn,
    order: u32,
}

impl Block {
    /// The block, or `None` if the order is too large or the head misaligned.
    pub const fn new(head: Pfn, order: u32) -> Option<Self> {
        if order <= MAX_BLOCK_ORDER && head.is_aligned(order) {
            Some(Self { head, order })
        } else {
            None
        }
    }

    /// The block of `order` that contains `pfn`, or `None` if the order is too large.
    pub const fn containing(pfn: Pfn, order: u32) -> Option<Self> {
        if order <= MAX_BLOCK_ORDER { Self::new(pfn.align_down(order), order) } else { None }
    }

    /// Its first frame.
    pub const fn head(self) -> Pfn {
        self.head
    }

    /// log2 of its frames.
    pub const fn order(self) -> u32 {
        self.order
    }

    /// Its number of frames.
    pub const fn pages(self) -> PageCount {
        PageCount::of_order(self.order)
    }

    /// Whether it contains `pfn`.
    pub const fn contains(self, pfn: Pfn) -> bool {
        // The subtraction cannot wrap: the first test decides.
        self.head.number() <= pfn.number() && pfn.number() - self.head.number() < self.pages().get()
    }

    /// Its frames, or `None` for the one block that ends with the last frame of
    /// the address space, whose end has no number.
    pub const fn range(self) -> Option<PfnRange> {
        PfnRange::from_start(self.head, self.pages())
    }
}

/// Where a stored block stands between guest and host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockState {
    /// A buffer that names the block is with the host, or about to be: it may
    /// be neither moved nor deflated.
    InFlight,
    /// The host has used the block's inflate buffer: it may be moved or deflated.
    Settled,
}

/// A block in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StoredBlock {
    /// The frames.
    pub block: Block,
    /// Their state.
    pub state: BlockState,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_aligned_blocks_of_a_buddy_order_exist() {
        let pfn = |n| Pfn::new(n).unwrap();
        assert!(Block::new(pfn(1024), 10).is_some());
        assert!(Block::new(pfn(512), 10).is_none());
        assert!(Block::new(pfn(0), 11).is_none());
        assert_eq!(Block::containing(pfn(1023), 9), Block::new(pfn(512), 9));
        assert!(Block::containing(pfn(0), 64).is_none());
    }

    #[test]
    fn a_block_contains_its_frames_and_no_other() {
        let block = Block::new(Pfn::new(8).unwrap(), 2).unwrap();
        let inside: Vec<u64> = (0..20).filter(|&n| block.contains(Pfn::new(n).unwrap())).collect();
        assert_eq!(inside, [8, 9, 10, 11]);
        assert_eq!(block.range().unwrap().len(), block.pages());
        let last = Block::new(Pfn::containing(u64::MAX), 0).unwrap();
        assert!(last.contains(Pfn::containing(u64::MAX)));
        assert!(last.range().is_none());
    }
}
