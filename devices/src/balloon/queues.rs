//! Which virtqueue has which index: the only place that knows.
//!
//! Inflate and deflate are 0 and 1. The other three exist only with their
//! features, and drivers number them in three ways (docs/balloon-device.md):
//! packed by the features that were *acknowledged* (Linux), fixed at 2, 3 and 4
//! (the specification's list), or packed by the features that were *offered*
//! (drivers made for other devices). They differ when a driver acknowledges
//! less than was offered, and then the queues that it has enabled tell which
//! way it counts.

use abi::balloon::feature::{FREE_PAGE_HINT, REPORTING, STATS_VQ};

use crate::virtio::ActivateError;

/// Index of the inflate queue.
pub const INFLATE: u16 = 0;
/// Index of the deflate queue.
pub const DEFLATE: u16 = 1;
/// First index that depends on features.
const FIRST_OPTIONAL: u16 = 2;
/// Features that bring a queue, in the specification's order.
const QUEUE_FEATURES: [u64; 3] = [STATS_VQ, FREE_PAGE_HINT, REPORTING];
/// Queues of a device that offers every feature.
const MAX_QUEUES: usize = 5;
/// Entries of an optional queue: reporting needs at least 32 for Linux.
const OPTIONAL_ENTRIES: u16 = 128;

/// Queue indices of a negotiated balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonQueues {
    /// Statistics, if negotiated.
    pub stats: Option<u16>,
    /// Free page hinting, if negotiated.
    pub hinting: Option<u16>,
    /// Free page reporting, if negotiated.
    pub reporting: Option<u16>,
}

/// What a queue index means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BalloonQueue {
    /// Pages for the host.
    Inflate,
    /// Pages taken back.
    Deflate,
    /// Statistics.
    Stats,
    /// Free page hinting.
    Hinting,
    /// Free page reporting.
    Reporting,
}

/// Largest size of each queue of a device that offers `offered`.
///
/// With any of the optional queues, all five indices are there, because a
/// driver may count in any of the three ways.
pub fn max_sizes(offered: u64) -> &'static [u16] {
    const SIZES: [u16; MAX_QUEUES] = [
        abi::balloon::RING_ENTRIES,
        abi::balloon::RING_ENTRIES,
        OPTIONAL_ENTRIES,
        OPTIONAL_ENTRIES,
        OPTIONAL_ENTRIES,
    ];
    let has_optional = QUEUE_FEATURES.iter().any(|feature| offered & feature != 0);
    let len = if has_optional { MAX_QUEUES } else { usize::from(FIRST_OPTIONAL) };
    SIZES.get(..len).unwrap_or(&SIZES)
}

impl BalloonQueues {
    /// Finds the indices from the features and the queues that the driver has enabled.
    ///
    /// Prefers the numbering that explains the enabled queues exactly; then one
    /// whose queues are all enabled. Where several fit, they are tried in the
    /// order acknowledged, fixed, offered.
    ///
    /// # Errors
    /// [`ActivateError::MissingQueue`] if none fits: a queue of a negotiated
    /// feature is not enabled.
    ///
    /// Spec: VirtIO 1.2 §5.5.2.
    pub fn resolve(
        offered: u64,
        acked: u64,
        is_enabled: impl Fn(u16) -> bool,
    ) -> Result<Self, ActivateError> {
        if let Some(queue) = [INFLATE, DEFLATE].into_iter().find(|&queue| !is_enabled(queue)) {
            return Err(ActivateError::MissingQueue { queue });
        }
        let numberings =
            [Self::packed(acked, acked), Self::fixed(acked), Self::packed(offered, acked)];
        let all_enabled = |queues: &&Self| queues.optional().all(&is_enabled);
        let exact = |queues: &&Self| {
            let optional = FIRST_OPTIONAL..FIRST_OPTIONAL + 3;
            optional.into_iter().all(|at| is_enabled(at) == queues.optional().any(|q| q == at))
        };
        let found = numberings.iter().find(exact).or_else(|| numberings.iter().find(all_enabled));
        let [preferred, ..] = numberings;
        found.copied().ok_or_else(|| ActivateError::MissingQueue {
            queue: preferred.optional().find(|&queue| !is_enabled(queue)).unwrap_or(FIRST_OPTIONAL),
        })
    }

    /// The queue with this index.
    pub fn queue(&self, index: u16) -> Option<BalloonQueue> {
        match index {
            INFLATE => Some(BalloonQueue::Inflate),
            DEFLATE => Some(BalloonQueue::Deflate),
            _ if self.stats == Some(index) => Some(BalloonQueue::Stats),
            _ if self.hinting == Some(index) => Some(BalloonQueue::Hinting),
            _ if self.reporting == Some(index) => Some(BalloonQueue::Reporting),
            _ => None,
        }
    }

    fn optional(&self) -> impl Iterator<Item = u16> {
        [self.stats, self.hinting, self.reporting].into_iter().flatten()
    }

    /// Indices counted over the features in `counted`, for those in `acked`.
    fn packed(counted: u64, acked: u64) -> Self {
        let mut next = FIRST_OPTIONAL;
        let [stats, hinting, reporting] = QUEUE_FEATURES.map(|feature| {
            let index = next;
            next += u16::from(counted & feature != 0);
            (acked & feature != 0).then_some(index)
        });
        Self { stats, hinting, reporting }
    }

    /// The specification's indices, for the features in `acked`.
    fn fixed(acked: u64) -> Self {
        Self::packed(u64::MAX, acked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(offered: u64, acked: u64, enabled: &[u16]) -> Result<BalloonQueues, ActivateError> {
        BalloonQueues::resolve(offered, acked, |queue| enabled.contains(&queue))
    }

    fn indices(queues: BalloonQueues) -> [Option<u16>; 3] {
        [queues.stats, queues.hinting, queues.reporting]
    }

    /// Every acknowledged subset of every offer, numbered in every way, is understood,
    /// unless another way explains the same enabled queues.
    #[test]
    fn every_numbering_of_every_subset_is_understood() {
        let subset = |bits: usize| {
            let chosen = QUEUE_FEATURES.iter().enumerate().filter(|(n, _)| bits >> n & 1 == 1);
            chosen.map(|(_, feature)| feature).sum::<u64>()
        };
        for offered in (0..8).map(subset) {
            for acked in (0..8).map(subset).filter(|acked| acked & !offered == 0) {
                let ways = [
                    BalloonQueues::packed(acked, acked),
                    BalloonQueues::fixed(acked),
                    BalloonQueues::packed(offered, acked),
                ];
                for way in ways {
                    let mut enabled = vec![INFLATE, DEFLATE];
                    enabled.extend(way.optional());
                    let got = resolve(offered, acked, &enabled).expect("all queues are there");
                    let same: Vec<u16> = got.optional().collect();
                    assert_eq!(same, way.optional().collect::<Vec<_>>());
                    assert_eq!(indices(got), indices(way), "offered {offered:#x} acked {acked:#x}");
                }
            }
        }
    }

    #[test]
    fn linux_reporting_alone_is_packed_to_two() {
        let all = STATS_VQ | FREE_PAGE_HINT | REPORTING;
        let queues = resolve(all, REPORTING, &[0, 1, 2]).expect("Linux's numbering");
        assert_eq!(queues.queue(2), Some(BalloonQueue::Reporting));
        assert_eq!(
            (queues.queue(0), queues.queue(1)),
            (Some(BalloonQueue::Inflate), Some(BalloonQueue::Deflate))
        );
        assert_eq!(queues.queue(3), None);
    }

    #[test]
    fn reporting_alone_at_the_specifications_four_is_accepted() {
        let queues =
            resolve(REPORTING, REPORTING, &[0, 1, 4]).expect("the specification's numbering");
        assert_eq!(queues.reporting, Some(4));
    }

    #[test]
    fn numbering_by_the_offer_is_accepted() {
        let offered = STATS_VQ | REPORTING;
        let queues = resolve(offered, REPORTING, &[0, 1, 3]).expect("numbering by the offer");
        assert_eq!(queues.reporting, Some(3));
    }

    #[test]
    fn driver_that_enables_every_queue_is_read_by_what_it_acknowledged() {
        let queues = resolve(REPORTING, REPORTING, &[0, 1, 2, 3, 4]).expect("all are enabled");
        assert_eq!(queues.reporting, Some(2));
    }

    #[test]
    fn missing_queue_is_named() {
        let missing = |queue| Err(ActivateError::MissingQueue { queue });
        assert_eq!(resolve(0, 0, &[1]), missing(0));
        assert_eq!(resolve(0, 0, &[0]), missing(1));
        assert_eq!(resolve(STATS_VQ, STATS_VQ, &[0, 1]), missing(2));
        assert_eq!(resolve(STATS_VQ | REPORTING, STATS_VQ | REPORTING, &[0, 1, 2]), missing(3));
    }

    #[test]
    fn features_without_a_queue_move_no_index() {
        use abi::balloon::feature::{DEFLATE_ON_OOM, MUST_TELL_HOST, PAGE_POISON};
        let others = MUST_TELL_HOST | DEFLATE_ON_OOM | PAGE_POISON;
        let queues =
            resolve(others | REPORTING, others | REPORTING, &[0, 1, 2]).expect("one queue");
        assert_eq!(indices(queues), [None, None, Some(2)]);
        assert_eq!(max_sizes(others).len(), 2);
        assert_eq!(max_sizes(others | STATS_VQ), [256, 256, 128, 128, 128]);
    }
}
