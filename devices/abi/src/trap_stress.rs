//! The page through which a host test and the guest's `trap-stress` scenario meet.
//!
//! The guest prints a line `trap-stress: gpa=0xADDRESS …`. The host then sends
//! MSIs (destination 0, fixed delivery) on the vectors that the page names:
//! before each it increments the vector's sequence number, and later requires
//! the guest's acknowledgement to reach it. All values are little-endian.

/// Offset of [`MAGIC`], u64.
pub const MAGIC_OFFSET: u64 = 0;
/// "trapstrs": the page is set up.
pub const MAGIC: u64 = u64::from_le_bytes(*b"trapstrs");
/// Offset of the phase, u32; written by the guest.
pub const PHASE_OFFSET: u64 = 8;
/// Offset of the number of vectors, u32.
pub const VECTORS_OFFSET: u64 = 12;
/// Offset of the first vector, u32; they follow each other.
pub const FIRST_VECTOR_OFFSET: u64 = 16;
/// Offset of the sequence numbers, u64 each; written by the host.
pub const SEQUENCE_OFFSET: u64 = 0x100;
/// Offset of the acknowledgements, u64 each; written by the guest.
pub const ACKNOWLEDGED_OFFSET: u64 = 0x200;
/// Most vectors that the page has room for.
pub const MAX_VECTORS: u32 = 16;

/// Phase: send nothing.
pub const PHASE_IDLE: u32 = 0;
/// Phase: the guest computes and faults; send as many as you like.
pub const PHASE_FLOOD: u32 = 1;
/// Phase: the guest halts; send one, wait for its acknowledgement, repeat.
pub const PHASE_HALT: u32 = 2;
/// Phase: over.
pub const PHASE_DONE: u32 = 3;
