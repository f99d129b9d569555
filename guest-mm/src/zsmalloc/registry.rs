//! Pools coming and going, and who finds them: compaction, the census.

use core::fmt;
use core::ptr::NonNull;

use super::error::ZsError;
use super::migrate::ZsMovable;
use super::pool::PoolState;
use super::stats::ZsStats;
use crate::memdesc::Kind;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::{LockClass, SpinLock};

/// Pools that a manager can have.
pub const MAX_POOLS: usize = 8;

/// A pool's place in the registry.
struct Place<'m, P: Platform> {
    pool: Option<NonNull<PoolState<'m, P>>>,
    /// Who looks at the pool without owning it.
    users: u32,
}

// SAFETY: a pool is shared by CPUs: all of it is atomic or behind a lock.
unsafe impl<P: Platform> Send for Place<'_, P> {}

struct Pools<'m, P: Platform> {
    places: [Place<'m, P>; MAX_POOLS],
    /// Whether the operations of the kind are zsmalloc's.
    is_registered: bool,
}

/// The pools of a manager.
pub(crate) struct ZsRegistry<'m, P: Platform>(SpinLock<Pools<'m, P>>);

impl<P: Platform> ZsRegistry<'_, P> {
    pub(crate) const fn new() -> Self {
        let places = [const { Place { pool: None, users: 0 } }; MAX_POOLS];
        let pools = Pools { places, is_registered: false };
        Self(SpinLock::new(LockClass::ZsClass, pools))
    }
}

/// A pool of objects of 1 to 4096 bytes, packed into pages that can be migrated.
///
/// Objects are known by handles and reached by copying: where they are may
/// change at any time. All calls may come from any CPU, masked or not.
#[must_use = "dropping a pool leaks it; destroy it"]
pub struct ZsPool<'m, P: Platform> {
    state: NonNull<PoolState<'m, P>>,
    place: usize,
}

// SAFETY: the state is made for all CPUs: atomics, and locks around the rest.
unsafe impl<P: Platform> Send for ZsPool<'_, P> {}
// SAFETY: as for `Send`.
unsafe impl<P: Platform> Sync for ZsPool<'_, P> {}

impl<'m, P: Platform> ZsPool<'m, P> {
    pub(super) const fn state(&self) -> &PoolState<'m, P> {
        // SAFETY: freed when this handle is given up, in `Mm::zs_destroy_pool`.
        unsafe { self.state.as_ref() }
    }

    /// What it has and has done.
    pub fn stats(&self) -> ZsStats {
        let state = self.state();
        ZsStats { own_pages: state.own_pages(), ..state.counters.snapshot() }
    }
}

impl<P: Platform> fmt::Debug for ZsPool<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZsPool").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Makes an empty pool.
    ///
    /// # Errors
    /// [`ZsError::NoMemory`]; [`ZsError::TooManyPools`]; [`ZsError::Movable`] if
    /// somebody else moves pages of kind zpdesc. Nothing is kept.
    pub fn zs_create_pool(&self) -> Result<ZsPool<'m, P>, ZsError> {
        let state = PoolState::create(self.base())?;
        let entered = self.zs_enter_pool(state);
        match entered {
            Ok(place) => Ok(ZsPool { state, place }),
            Err(error) => {
                // SAFETY: made above, and nobody knows it.
                unsafe { PoolState::destroy(state) };
                Err(error)
            }
        }
    }

    fn zs_enter_pool(&self, state: NonNull<PoolState<'m, P>>) -> Result<usize, ZsError> {
        let mut pools = self.zs_pools.0.lock(self.platform());
        let mut free = pools.places.iter().enumerate();
        let free = free.find(|(_, place)| place.pool.is_none());
        let (at, _) = free.ok_or(ZsError::TooManyPools)?;
        if !pools.is_registered {
            self.set_movable_ops(Kind::ZpDesc, &ZsMovable).map_err(ZsError::Movable)?;
            pools.is_registered = true;
        }
        pools.places[at].pool = Some(state);
        Ok(at)
    }

    /// Frees an empty pool.
    ///
    /// The caller holds no lock.
    ///
    /// # Errors
    /// [`ZsError::InUse`] if it has objects; it comes back.
    pub fn zs_destroy_pool(&self, pool: ZsPool<'m, P>) -> Result<(), (ZsPool<'m, P>, ZsError)> {
        let objects = pool.stats().objects;
        if objects > 0 {
            return Err((pool, ZsError::InUse(objects)));
        }
        self.zs_leave_pool(pool.place);
        // SAFETY: the handle is given up, nobody finds the pool by the registry, and
        // without an object it has no zspage that would name it.
        unsafe { PoolState::destroy(pool.state) };
        Ok(())
    }

    /// Takes a pool out of the registry when nobody looks at it, and the
    /// operations back with the last one.
    fn zs_leave_pool(&self, at: usize) {
        loop {
            let mut pools = self.zs_pools.0.lock(self.platform());
            if pools.places[at].users == 0 {
                pools.places[at].pool = None;
                if pools.places.iter().all(|place| place.pool.is_none()) {
                    // Busy while migration has pages that nobody needs any more: the
                    // next pool finds the operations in place.
                    pools.is_registered = self.clear_movable_ops(Kind::ZpDesc).is_err();
                }
                return;
            }
            drop(pools);
            self.platform().relax();
        }
    }

    /// Runs `act` on every pool, without a lock.
    pub(super) fn for_each_zs_pool(&self, act: &mut dyn FnMut(&PoolState<'m, P>)) {
        for at in 0..MAX_POOLS {
            let pool = {
                let place = &mut self.zs_pools.0.lock(self.platform()).places[at];
                place.users += u32::from(place.pool.is_some());
                place.pool
            };
            let Some(pool) = pool else { continue };
            // SAFETY: it is not freed while somebody is counted as its user.
            act(unsafe { pool.as_ref() });
            self.zs_pools.0.lock(self.platform()).places[at].users -= 1;
        }
    }
}
