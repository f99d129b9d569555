//! Objects: allocated, written, read, freed.

use super::class::{ALL, class_of};
use super::error::ZsError;
use super::handle::{Entry, Location, Recheck, ZsHandle, lock_named};
use super::pool::{ClassGuard, PoolState};
use super::registry::ZsPool;
use super::stats::ZsEvent;
use super::zspage::{Body, Contents, Header, Zspage, zspage_at};
use crate::buddy::Gfp;
use crate::platform::Platform;
use crate::sync::SpinGuard;
use crate::sync::shim::{AtomicU64, Ordering};

impl<'m, P: Platform> ZsPool<'m, P> {
    /// Makes an object for `bytes` bytes, whose contents are arbitrary. Waits for
    /// nothing but short locks; `gfp` says what it may cost.
    ///
    /// # Errors
    /// [`ZsError::BadSize`] for none, or more than a page; [`ZsError::NoMemory`],
    /// [`ZsError::TooManyObjects`]; [`ZsError::Corrupt`] if the next free object of the
    /// size was overwritten. Nothing is kept.
    pub fn alloc(&self, bytes: usize, gfp: Gfp) -> Result<ZsHandle, ZsError> {
        let state = self.state();
        let allocated = state.alloc(bytes, gfp);
        match allocated {
            Ok(_) => state.counters.count(ZsEvent::Allocated),
            Err(ZsError::BadSize(_) | ZsError::Corrupt(_)) => {
                state.counters.count(ZsEvent::Refused);
            }
            Err(_) => state.counters.count(ZsEvent::FailedAllocation),
        }
        allocated
    }

    /// Makes an object that holds `bytes`.
    ///
    /// # Errors
    /// As for [`Self::alloc`].
    pub fn store(&self, bytes: &[u8], gfp: Gfp) -> Result<ZsHandle, ZsError> {
        let handle = self.alloc(bytes.len(), gfp)?;
        let written = self.write(handle, bytes);
        debug_assert_eq!(written, Ok(()), "an object just made");
        Ok(handle)
    }

    /// Writes the start of an object.
    ///
    /// # Errors
    /// [`ZsError::BadHandle`], [`ZsError::TooLong`].
    pub fn write(&self, handle: ZsHandle, bytes: &[u8]) -> Result<(), ZsError> {
        self.state().with_object(handle, bytes.len(), |contents, object| {
            contents.write(object, bytes);
        })
    }

    /// Reads the start of an object.
    ///
    /// # Errors
    /// [`ZsError::BadHandle`], [`ZsError::TooLong`]; `bytes` is as it was.
    pub fn read(&self, handle: ZsHandle, bytes: &mut [u8]) -> Result<(), ZsError> {
        self.state().with_object(handle, bytes.len(), |contents, object| {
            contents.read(object, bytes);
        })
    }

    /// Frees an object.
    ///
    /// Its zspage, if that was the last of its objects, is freed too; pages that
    /// migration has at the time are freed when they come back.
    ///
    /// # Errors
    /// [`ZsError::BadHandle`]; [`ZsError::Corrupt`] if what is in front of the
    /// object is not its header: the object stays.
    pub fn free(&self, handle: ZsHandle) -> Result<(), ZsError> {
        let state = self.state();
        state.count_refusal(state.free(handle))?;
        state.counters.count(ZsEvent::Freed);
        Ok(())
    }
}

/// A zspage with its class and itself locked.
struct Held<'a, 'm, P: Platform> {
    /// Dropped first: taken last.
    body: SpinGuard<'m, Body, P>,
    guard: ClassGuard<'a, P>,
    class: u32,
    zspage: &'m Zspage,
}

impl<'m, P: Platform> PoolState<'m, P> {
    fn alloc(&self, bytes: usize, gfp: Gfp) -> Result<ZsHandle, ZsError> {
        let class = class_of(bytes).ok_or(ZsError::BadSize(bytes))?;
        let handle = self.handles.take(&self.base.memory, gfp)?;
        let mut placed = self.place(class, None, handle);
        if placed == Ok(false) {
            let made = self.new_zspage(class, gfp);
            placed = made.and_then(|zspage| self.place(class, Some(zspage), handle));
        }
        match placed {
            Ok(_) => Ok(handle),
            Err(error) => {
                self.handles.give_back(self.base.platform(), handle);
                Err(error)
            }
        }
    }

    /// Takes a free object for `handle`: of `new`, a zspage without an object that nobody
    /// knows, else of the fullest that has one. `false` if there is none.
    ///
    /// A new zspage is used whatever has come free since it was made: no zspage is
    /// without an object.
    ///
    /// # Errors
    /// [`ZsError::Corrupt`] if what should be the next free object is not one.
    pub(super) fn place(
        &self,
        class: usize,
        new: Option<&'m Zspage>,
        handle: ZsHandle,
    ) -> Result<bool, ZsError> {
        let mut guard = self.lock_class(class);
        if let Some(zspage) = new {
            zspage.class.store(u32::try_from(class).unwrap_or(0), Ordering::Relaxed);
            guard.lists.insert(zspage, guard.class);
        }
        let Some(zspage) = new.or_else(|| guard.lists.fullest()) else { return Ok(false) };
        let mut body = zspage.body.lock(self.base.platform());
        let taken = self.contents(guard.class, &mut body).take(Header::of(handle));
        let object = taken.ok_or(ZsError::Corrupt(handle))?;
        let used = zspage.used.load(Ordering::Relaxed) + 1;
        guard.lists.recount(zspage, guard.class, used);
        let at = Location { zspage: zspage.address(), object };
        // Release pairs with the Acquire in `lock_named`.
        if let Some(cell) = self.handles.cell(handle) {
            let entry = Entry::used(at, handle.generation());
            cell.store(entry.bits(), Ordering::Release);
        }
        Ok(true)
    }

    /// Runs `act` on the zspage of an object and the object's number, if it has
    /// room for `bytes` bytes. The object can neither move nor be freed meanwhile.
    fn with_object(
        &self,
        handle: ZsHandle,
        bytes: usize,
        act: impl FnOnce(&mut Contents<'_, P>, u32),
    ) -> Result<(), ZsError> {
        let done = self.locked_object(handle).and_then(|(class, object, mut body)| {
            let (class, capacity) = (&ALL[class], ALL[class].capacity());
            if bytes > capacity {
                return Err(ZsError::TooLong { bytes, capacity });
            }
            act(&mut self.contents(class, &mut body), object);
            Ok(())
        });
        self.count_refusal(done)
    }

    /// Locks the zspage of an object: its class, the object's number, the lock.
    pub(super) fn locked_object(
        &self,
        handle: ZsHandle,
    ) -> Result<(usize, u32, SpinGuard<'m, Body, P>), ZsError> {
        let (base, cell) = (self.base, self.cell(handle)?);
        let _section = base.rcu.read(base.platform().cpu());
        let locked = lock_named(cell, handle.generation(), Recheck::Yes, |at| {
            // SAFETY: the entry was read in this section, in which the zspage's memory stays one.
            let zspage: &'m Zspage = unsafe { zspage_at(at.zspage) };
            (zspage, zspage.body.lock(base.platform()))
        });
        let (at, (zspage, body)) = locked.ok_or(ZsError::BadHandle(handle))?;
        // The zspage has an object, so its class does not change.
        Ok((zspage.class.load(Ordering::Relaxed) as usize, at.object, body))
    }

    fn free(&self, handle: ZsHandle) -> Result<(), ZsError> {
        let (base, cell) = (self.base, self.cell(handle)?);
        let _section = base.rcu.read(base.platform().cpu());
        let (at, mut held) = loop {
            let locked = lock_named(cell, handle.generation(), Recheck::Yes, |at| {
                // SAFETY: as in `locked_object`.
                self.lock_both(unsafe { zspage_at(at.zspage) })
            });
            let (at, held) = locked.ok_or(ZsError::BadHandle(handle))?;
            if held.zspage.class.load(Ordering::Relaxed) == held.class {
                break (at, held);
            }
            // Used for another class between the look at its class and the locks, and
            // come back: the wrong class is locked. Once more.
        };
        let class = held.guard.class;
        let mut contents = self.contents(class, &mut held.body);
        if contents.header(at.object) != Header::of(handle) {
            return Err(ZsError::Corrupt(handle));
        }
        contents.give_back(at.object);
        // Of two who free one handle the second finds this.
        let entry = Entry::free(None, handle.generation() + 1);
        cell.store(entry.bits(), Ordering::Relaxed);
        let used = held.zspage.used.load(Ordering::Relaxed) - 1;
        let (is_gone, zspage) = (self.set_used(&mut held, used), held.zspage);
        drop(held);
        if is_gone {
            self.free_zspage(zspage);
        }
        self.handles.give_back(base.platform(), handle);
        Ok(())
    }

    /// Locks the class that a zspage seems to be of, and the zspage.
    fn lock_both(&self, zspage: &'m Zspage) -> Held<'_, 'm, P> {
        let class = zspage.class.load(Ordering::Relaxed);
        let guard = self.lock_class(class as usize);
        let body = zspage.body.lock(self.base.platform());
        Held { body, guard, class, zspage }
    }

    /// Counts the objects of a zspage, and ends it if there is none. Whether that was so.
    fn set_used(&self, held: &mut Held<'_, 'm, P>, used: u32) -> bool {
        held.guard.lists.recount(held.zspage, held.guard.class, used);
        if used == 0 {
            held.guard.lists.remove(held.zspage);
            self.kill(&mut held.body);
        }
        used == 0
    }

    fn cell(&self, handle: ZsHandle) -> Result<&AtomicU64, ZsError> {
        self.handles.cell(handle).ok_or(ZsError::BadHandle(handle))
    }

    fn count_refusal<T>(&self, done: Result<T, ZsError>) -> Result<T, ZsError> {
        done.inspect_err(|_| self.counters.count(ZsEvent::Refused))
    }
}
