//! The device status machine: which writes of the driver are steps forward.

use abi::virtio::status::{
    ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK,
};

/// What a write to the status register means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StatusWrite {
    /// 0 was written.
    Reset,
    /// Nothing that was not set already.
    Unchanged,
    /// ACKNOWLEDGE, DRIVER or both, in order.
    Recognised(u32),
    /// FEATURES_OK: the features have to be judged.
    FeaturesOk,
    /// DRIVER_OK: the device has to start.
    DriverOk,
    /// FAILED: the driver gives up.
    Failed,
    /// Not allowed in this state; the status stays.
    Refused(StatusFault),
}

/// Why a status write was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StatusFault {
    /// A bit that the specification does not define, or that only the device sets.
    #[error("Status {written:#x} has bits that a driver may not set")]
    ForeignBits {
        /// The value written.
        written: u32,
    },
    /// A bit would be cleared (§2.1.1); only a reset does that.
    #[error("Status {written:#x} clears bits of {current:#x}")]
    ClearsBits {
        /// The status before.
        current: u32,
        /// The value written.
        written: u32,
    },
    /// A step was left out, or two were taken that need an answer between (§3.1.1).
    #[error("Status {written:#x} is no step on from {current:#x}")]
    OutOfOrder {
        /// The status before.
        current: u32,
        /// The value written.
        written: u32,
    },
    /// After FAILED or DEVICE_NEEDS_RESET only a reset helps.
    #[error("Status {written:#x} was written while only a reset helps ({current:#x})")]
    OnlyReset {
        /// The status before.
        current: u32,
        /// The value written.
        written: u32,
    },
}

const RECOGNISED: u32 = ACKNOWLEDGE | DRIVER;
const NEGOTIATED: u32 = RECOGNISED | FEATURES_OK;
const DRIVER_BITS: u32 = NEGOTIATED | DRIVER_OK | FAILED;

/// Judges a write of `written` while the register reads `current`.
///
/// Bits may be written again (a driver reads, sets one, writes), including
/// DEVICE_NEEDS_RESET. ACKNOWLEDGE and DRIVER may come at once, as some drivers
/// do; FEATURES_OK and DRIVER_OK are answered one by one.
///
/// Spec: VirtIO 1.2 §2.1, §3.1.1.
pub(super) const fn judge(current: u32, written: u32) -> StatusWrite {
    if written == 0 {
        return StatusWrite::Reset;
    }
    if written & !(DRIVER_BITS | (current & DEVICE_NEEDS_RESET)) != 0 {
        return StatusWrite::Refused(StatusFault::ForeignBits { written });
    }
    let have = current & DRIVER_BITS;
    if have & !written != 0 {
        return StatusWrite::Refused(StatusFault::ClearsBits { current, written });
    }
    let added = written & DRIVER_BITS & !have;
    if added == 0 {
        return StatusWrite::Unchanged;
    }
    let broken = current & (FAILED | DEVICE_NEEDS_RESET) != 0;
    match (have, added) {
        _ if current & FAILED != 0 => {
            StatusWrite::Refused(StatusFault::OnlyReset { current, written })
        }
        (_, FAILED) => StatusWrite::Failed,
        _ if broken => StatusWrite::Refused(StatusFault::OnlyReset { current, written }),
        (0, ACKNOWLEDGE | RECOGNISED) | (ACKNOWLEDGE, DRIVER) => StatusWrite::Recognised(added),
        (RECOGNISED, FEATURES_OK) => StatusWrite::FeaturesOk,
        (NEGOTIATED, DRIVER_OK) => StatusWrite::DriverOk,
        _ => StatusWrite::Refused(StatusFault::OutOfOrder { current, written }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specified_sequence_is_accepted_step_by_step() {
        assert_eq!(judge(0, 1), StatusWrite::Recognised(1));
        assert_eq!(judge(1, 3), StatusWrite::Recognised(2));
        assert_eq!(judge(3, 11), StatusWrite::FeaturesOk);
        assert_eq!(judge(11, 15), StatusWrite::DriverOk);
    }

    /// From every state, exactly these writes change something (besides 0 and FAILED).
    #[test]
    fn every_other_step_is_refused() {
        let legal = [(0, 1), (0, 3), (1, 3), (3, 11), (11, 15)];
        for current in [0, 1, 3, 11, 15] {
            for written in 1..=u32::from(u8::MAX) {
                let changes = matches!(
                    judge(current, written),
                    StatusWrite::Recognised(_) | StatusWrite::FeaturesOk | StatusWrite::DriverOk
                );
                assert_eq!(changes, legal.contains(&(current, written)), "{current} {written}");
            }
        }
    }

    #[test]
    fn giving_up_is_possible_in_every_state_and_final() {
        for current in [0, 1, 3, 11, 15, 15 | DEVICE_NEEDS_RESET] {
            assert_eq!(judge(current, current | FAILED), StatusWrite::Failed);
            for written in 1..=u32::from(u8::MAX) {
                assert!(
                    matches!(
                        judge(current | FAILED, written),
                        StatusWrite::Unchanged | StatusWrite::Refused(_)
                    ),
                    "{current} {written}"
                );
            }
        }
    }

    #[test]
    fn a_driver_can_neither_set_nor_clear_needs_reset() {
        assert!(matches!(judge(3, 3 | DEVICE_NEEDS_RESET), StatusWrite::Refused(_)));
        assert_eq!(judge(15 | DEVICE_NEEDS_RESET, 15), StatusWrite::Unchanged);
        assert_eq!(judge(15 | DEVICE_NEEDS_RESET, 15 | DEVICE_NEEDS_RESET), StatusWrite::Unchanged);
    }

    #[test]
    fn no_step_is_possible_while_a_reset_is_needed() {
        for (current, written) in [(1, 3), (3, 11), (11, 15)] {
            assert!(matches!(
                judge(current | DEVICE_NEEDS_RESET, written),
                StatusWrite::Refused(StatusFault::OnlyReset { .. })
            ));
        }
    }
}
