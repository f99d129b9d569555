//! A compressor: the library's table and a place for its output, in frames that
//! are taken when the device is made.

use core::ptr::NonNull;

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into};

use crate::buddy::Gfp;
use crate::memdesc::{BlockKind, Order};
use crate::memory::{AllocError, FrozenFrames, Memory};
use crate::platform::Platform;
use crate::swap::device::{SLOT_BYTES, SlotBytes};

/// The most that LZ4 makes of a page (`get_maximum_output_size`).
const OUTPUT_BYTES: usize = 16 + 4 + SLOT_BYTES * 110 / 100;

/// What a compressor works in.
struct Workspace {
    table: CompressTable,
    output: [u8; OUTPUT_BYTES],
}

/// log2 of the pages of a workspace.
const ORDER: u8 = 3;
const _: () = assert!(size_of::<Workspace>() <= SLOT_BYTES << ORDER);
const _: () = assert!(align_of::<Workspace>() <= SLOT_BYTES);

/// A compressor. Owns its workspace.
pub(super) struct Stream {
    workspace: NonNull<Workspace>,
    frames: FrozenFrames,
}

// SAFETY: the workspace is the stream's alone, and plain memory.
unsafe impl Send for Stream {}

impl Stream {
    /// A compressor in frames of `memory`.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new<P: Platform>(memory: &Memory<P>) -> Result<Self, AllocError> {
        let order = Order::new(ORDER).unwrap_or_else(|| unreachable!("a small order"));
        let mut frames = memory.alloc_frozen(order, Gfp::KERNEL | Gfp::ZERO)?;
        let typed = memory.retype(&mut frames, BlockKind::LargeKmalloc);
        debug_assert!(typed.is_ok(), "a frozen block becomes the kernel's: {typed:?}");
        let workspace = memory.platform().frame_ptr(frames.head()).cast::<Workspace>();
        // SAFETY: within the frames, which are large enough and ours alone.
        let table = unsafe { &raw mut (*workspace.as_ptr()).table };
        // SAFETY: as above, aligned since frames are; the output is bytes, zeros so far.
        unsafe { table.write(CompressTable::small()) };
        Ok(Self { workspace, frames })
    }

    /// Gives the frames back.
    pub(super) fn free<P: Platform>(mut self, memory: &Memory<P>) {
        let table = &raw mut self.workspace().table;
        // SAFETY: written by `new`, and nobody uses it again. In builds where the
        // library has an allocator the table is on the heap.
        unsafe { table.drop_in_place() };
        memory.free_frozen(self.frames);
    }

    /// Compresses a page. The result is valid until the next call; `None` if it
    /// is longer than `limit` bytes.
    pub(super) fn compress(&mut self, page: &SlotBytes, limit: usize) -> Option<&[u8]> {
        let Workspace { table, output } = self.workspace();
        let len = compress_into_with_table(page, output, table).ok()?;
        output.get(..len).filter(|_| len <= limit)
    }

    /// Decompresses what `fill` puts into the first `len` bytes of its argument.
    /// Whether that gave a page.
    pub(super) fn decompress(
        &mut self,
        len: usize,
        page: &mut SlotBytes,
        fill: impl FnOnce(&mut [u8]) -> bool,
    ) -> bool {
        let Some(input) = self.workspace().output.get_mut(..len) else { return false };
        fill(input) && decompress_into(input, page).is_ok_and(|len| len == SLOT_BYTES)
    }

    fn workspace(&mut self) -> &mut Workspace {
        // SAFETY: initialised by `new`; owned by the stream, which is borrowed exclusively.
        unsafe { self.workspace.as_mut() }
    }
}
