//! Which steps fail.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::platform::FaultSite;

/// Number of fault sites.
const SITES: usize = 8;

const fn index(site: FaultSite) -> usize {
    match site {
        FaultSite::BuddyAlloc => 0,
        FaultSite::SlabAlloc => 1,
        FaultSite::StoreReserve => 2,
        FaultSite::QueueAdd => 3,
        FaultSite::MapBlock => 4,
        FaultSite::MigrateIsolate => 5,
        FaultSite::MigrateDestination => 6,
        FaultSite::MigrateCallback => 7,
    }
}

/// Faults by site: one at a counted step, or at random from a seed.
#[derive(Debug)]
pub struct FaultPlan {
    /// Steps until the one that fails; 0 = none.
    countdown: [AtomicU64; SITES],
    /// One step in so many fails; 0 = none.
    one_in: [AtomicU64; SITES],
    struck: [AtomicU64; SITES],
    state: AtomicU64,
}

impl FaultPlan {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            countdown: Default::default(),
            one_in: Default::default(),
            struck: Default::default(),
            state: AtomicU64::new(seed),
        }
    }

    /// Makes the `nth` step at `site` from now fail, once; 1 is the next one,
    /// 0 takes the plan back.
    pub fn fail_nth(&self, site: FaultSite, nth: u64) {
        self.countdown[index(site)].store(nth, Ordering::Relaxed);
    }

    /// Makes one step in `one_in` at `site` fail, at random; 0 switches it off.
    pub fn fail_randomly(&self, site: FaultSite, one_in: u64) {
        self.one_in[index(site)].store(one_in, Ordering::Relaxed);
    }

    /// Faults that have struck at `site`.
    pub fn struck(&self, site: FaultSite) -> u64 {
        self.struck[index(site)].load(Ordering::Relaxed)
    }

    pub(super) fn strikes(&self, site: FaultSite) -> bool {
        let strikes = self.counted(index(site)) || self.random(index(site));
        if strikes {
            self.struck[index(site)].fetch_add(1, Ordering::Relaxed);
        }
        strikes
    }

    fn counted(&self, site: usize) -> bool {
        let before =
            self.countdown[site]
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        before == Ok(1)
    }

    fn random(&self, site: usize) -> bool {
        let one_in = self.one_in[site].load(Ordering::Relaxed);
        if one_in == 0 {
            return false;
        }
        // SplitMix64 (Steele, Lea, Flood 2014): any seed will do, threads may share it.
        let step = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.state.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).is_multiple_of(one_in)
    }
}
