//! Reading the frame numbers of a chain, in pieces of bounded size.

use abi::Pfn;
use abi::balloon::PFN_BYTES;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::counters::QueueCounters;
use super::page_set::RamIndex;
use crate::ring::{ChainFault, PoppedChain};

/// Frame numbers copied from guest memory at a time.
const PIECE_PFNS: usize = 1024;
const PIECE_BYTES: usize = PIECE_PFNS * PFN_BYTES;

/// A chain whose frame numbers have been read up to `offset`.
#[derive(Debug)]
pub(super) struct ReadingChain {
    chain: PoppedChain,
    offset: u32,
}

/// How far [`ReadingChain::read`] came.
pub(super) enum Reading {
    /// All of it has been read; the chain can be returned.
    Done(PoppedChain),
    /// The budget ended first.
    More(ReadingChain),
}

impl ReadingChain {
    pub(super) const fn new(chain: PoppedChain) -> Self {
        Self { chain, offset: 0 }
    }

    /// Calls `each` with the number (see [`RamIndex`]) of every frame that is
    /// RAM, at most `budget` frame numbers in all; counts everything else by
    /// reason in `counters`.
    ///
    /// `budget` is lowered by what was read. Guest memory is read once, in the
    /// chain's order, through a buffer on the stack.
    pub(super) fn read(
        mut self,
        mem: &GuestMemoryMmap,
        index: &RamIndex,
        budget: &mut usize,
        count: &mut FrameCounts<'_>,
        mut each: impl FnMut(usize),
    ) -> Reading {
        let mut piece = [0; PIECE_BYTES];
        while *budget > 0 {
            let want = PIECE_BYTES.min(*budget * PFN_BYTES);
            let got = match self.read_piece(mem, piece.get_mut(..want).unwrap_or_default()) {
                Ok(got) => got,
                Err(fault) => {
                    count.broke(fault.name(), 1);
                    return Reading::Done(self.chain);
                }
            };
            let (pfns, ragged) = piece.get(..got).unwrap_or_default().as_chunks::<PFN_BYTES>();
            count.frames(mem, index, pfns, &mut each);
            *budget -= pfns.len();
            if got < want || !ragged.is_empty() {
                count.broke("ragged_length", u64::from(!ragged.is_empty()));
                return Reading::Done(self.chain);
            }
        }
        Reading::More(self)
    }

    /// The chain itself, unread.
    pub(super) fn into_chain(self) -> PoppedChain {
        self.chain
    }

    fn read_piece(&mut self, mem: &GuestMemoryMmap, piece: &mut [u8]) -> Result<usize, ChainFault> {
        let got = self.chain.buffers()?.read(mem, self.offset, piece)?;
        // At most the readable bytes, which are a u32.
        self.offset = self.offset.saturating_add(u32::try_from(got).unwrap_or(u32::MAX));
        Ok(got)
    }
}

/// Whether the frame is memory now. Blocks are whole frames, so its first byte tells.
fn is_present(mem: &GuestMemoryMmap, pfn: Pfn) -> bool {
    mem.address_in_range(GuestAddress(pfn.gpa()))
}

/// Where [`ReadingChain::read`] counts.
pub(super) struct FrameCounts<'a> {
    pub(super) queue: &'static str,
    pub(super) counters: &'a mut QueueCounters,
}

impl FrameCounts<'_> {
    /// Sorts wire values into RAM and the reasons why not: the only door from a guest's claim to a frame.
    fn frames(
        &mut self,
        mem: &GuestMemoryMmap,
        index: &RamIndex,
        pfns: &[[u8; PFN_BYTES]],
        each: &mut impl FnMut(usize),
    ) {
        let (mut above, mut hole, mut unplugged) = (0, 0, 0);
        for &wire in pfns {
            let pfn = Pfn::from_u32(u32::from_le_bytes(wire));
            match index.number_of(pfn) {
                Some(_) if index.is_hotplug(pfn) && !is_present(mem, pfn) => unplugged += 1,
                Some(number) => each(number),
                None if index.is_above(pfn) => above += 1,
                None => hole += 1,
            }
        }
        self.counters.pfns += pfns.len() as u64;
        self.broke("pfn_above_ram", above);
        self.broke("pfn_in_hole", hole);
        self.broke("pfn_unplugged", unplugged);
    }

    fn broke(&mut self, reason: &'static str, times: u64) {
        self.counters.broke(self.queue, reason, times);
    }

    /// Counts a chain that the device must not write although its buffers ask for it.
    pub(super) fn check_direction(&mut self, chain: &PoppedChain) {
        let writable = chain.buffers().is_ok_and(|buffers| buffers.writable_bytes() > 0);
        self.broke("writable_buffer", u64::from(writable));
    }
}
