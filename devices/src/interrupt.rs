//! The line a device raises.

/// An edge-triggered interrupt line.
///
/// The VMM writes an irqfd; tests count edges.
pub trait IrqLine: Send + Sync {
    /// Sends one edge. Never blocks and never fails as seen by the device: an
    /// implementation that cannot deliver logs it once.
    fn trigger(&self);
}
