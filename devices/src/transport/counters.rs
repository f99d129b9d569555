//! What a transport counts.

use crate::counters::counters;

counters! {
    /// Events of one transport since the VM started; a reset does not clear them.
    ///
    /// Everything from `access_odd` on names something that the driver did wrong.
    pub struct TransportCounters {
        /// Resets by the driver or the host.
        resets,
        /// Times that the device was started (DRIVER_OK).
        activations,
        /// Kicks that reached the device.
        kicks,
        /// Kicks before DRIVER_OK; the queues are served at DRIVER_OK anyway.
        kicks_early,
        /// Times that DEVICE_NEEDS_RESET was set by the transport.
        needs_reset,
        /// The driver set FAILED.
        driver_failed,
        /// Register access of another width than 4 bytes, misaligned, or beyond the window.
        access_odd,
        /// Access to an offset without a register, or against its direction.
        access_unknown,
        /// A status write that was refused.
        status_refused,
        /// A write of driver features at the wrong time.
        features_untimely,
        /// FEATURES_OK refused: a feature was not offered, or one that is needed is missing.
        features_refused,
        /// A queue register write refused because of the device status.
        queue_untimely,
        /// A queue register write refused because the queue does not exist.
        queue_unknown,
        /// A queue register write refused because the queue was enabled already.
        queue_already_ready,
        /// A queue size or flag that is no valid value.
        queue_bad_value,
        /// A queue that was not enabled because its ring is misaligned, outside RAM or has no size.
        queue_bad_layout,
        /// A configuration write at the wrong time.
        config_untimely,
        /// A configuration write that the device refused.
        config_refused,
        /// A kick for a queue that does not exist or is not enabled.
        kick_bad_queue,
        /// A kick while only a reset helps.
        kick_broken,
        /// The device found a ring unusable.
        ring_unusable,
        /// The device could not start with what the driver set up.
        activation_refused,
    }
}
