//! Requests and answers as bytes. Source: virtio 1.2 §5.15.6.

use abi::mem::{
    REQUEST_ADDR, REQUEST_BYTES, REQUEST_NB_BLOCKS, REQUEST_TYPE, RESPONSE_BYTES, request,
    response, state,
};

use super::blocks::RangeState;

/// A request, its values not yet compared with anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Plug(Claim),
    Unplug(Claim),
    UnplugAll,
    State(Claim),
    Unknown,
}

/// The blocks that a driver speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) addr: u64,
    pub(super) nb_blocks: u16,
}

impl Request {
    /// Decodes a copy; padding is ignored, and so is what a type has no use for.
    pub(super) fn from_bytes(bytes: &[u8; REQUEST_BYTES]) -> Self {
        let claim = Claim {
            addr: u64::from_le_bytes(field(bytes, REQUEST_ADDR)),
            nb_blocks: u16::from_le_bytes(field(bytes, REQUEST_NB_BLOCKS)),
        };
        match u16::from_le_bytes(field(bytes, REQUEST_TYPE)) {
            request::VIRTIO_MEM_REQ_PLUG => Self::Plug(claim),
            request::VIRTIO_MEM_REQ_UNPLUG => Self::Unplug(claim),
            request::VIRTIO_MEM_REQ_UNPLUG_ALL => Self::UnplugAll,
            request::VIRTIO_MEM_REQ_STATE => Self::State(claim),
            _ => Self::Unknown,
        }
    }
}

/// `N` bytes at `at`, which is inside.
fn field<const N: usize>(bytes: &[u8; REQUEST_BYTES], at: usize) -> [u8; N] {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
    field.copied().unwrap_or([0; N])
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Ack,
    State(RangeState),
    Nack,
    Busy,
    Error,
}

impl Answer {
    /// Encodes it; what an answer has no use for is 0.
    pub(super) const fn to_bytes(self) -> [u8; RESPONSE_BYTES] {
        let (kind, state) = match self {
            Self::Ack => (response::VIRTIO_MEM_RESP_ACK, 0),
            Self::State(RangeState::Plugged) => {
                (response::VIRTIO_MEM_RESP_ACK, state::VIRTIO_MEM_STATE_PLUGGED)
            }
            Self::State(RangeState::Unplugged) => {
                (response::VIRTIO_MEM_RESP_ACK, state::VIRTIO_MEM_STATE_UNPLUGGED)
            }
            Self::State(RangeState::Mixed) => {
                (response::VIRTIO_MEM_RESP_ACK, state::VIRTIO_MEM_STATE_MIXED)
            }
            Self::Nack => (response::VIRTIO_MEM_RESP_NACK, 0),
            Self::Busy => (response::VIRTIO_MEM_RESP_BUSY, 0),
            Self::Error => (response::VIRTIO_MEM_RESP_ERROR, 0),
        };
        let ([k0, k1], [s0, s1]) = (kind.to_le_bytes(), state.to_le_bytes());
        [k0, k1, 0, 0, 0, 0, 0, 0, s0, s1]
    }
}
