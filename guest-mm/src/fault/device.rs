//! Pages that a device has.

use super::{Fault, FaultError, FaultEvent, FaultOutcome, Round};
use crate::addr::VirtAddr;
use crate::mm::Mm;
use crate::pgtable::Leaf;
use crate::platform::Platform;
use crate::space::{AddressSpace, Vma};
use crate::sync::{LockClass, SpinLock};

/// Gives pages back that a device has: `migrate_to_ram` for device-private
/// memory, and the end of a device's exclusive access.
pub trait DeviceFaults<P: Platform>: Sync {
    /// Makes the page at `page`, whose leaf is `leaf`, present or nothing again,
    /// keeping its contents, and the leaf's state.
    ///
    /// Called with `vma` locked for reading and no other lock; may wait. Two
    /// CPUs may call it for one leaf at once: the second waits for the first, and
    /// finds the leaf changed, which is success.
    ///
    /// # Errors
    /// [`FaultError::Bus`]: the device failed, and the leaf stays; `Oom`.
    fn bring_back<'m>(
        &self,
        mm: &Mm<'m, P>,
        space: &AddressSpace<'m, P>,
        vma: &Vma<'m, P>,
        page: VirtAddr,
        leaf: Leaf,
    ) -> Result<(), FaultError>;
}

/// Who serves faults on pages of devices, if anybody does.
pub(crate) struct DeviceSlot<'m, P: Platform>(SpinLock<Option<&'m dyn DeviceFaults<P>>>);

impl<P: Platform> DeviceSlot<'_, P> {
    pub(crate) const fn new() -> Self {
        // Nothing is locked below it.
        Self(SpinLock::new(LockClass::Zone, None))
    }
}

impl<'m, P: Platform> Fault<'_, 'm, P> {
    /// The page, or the 2 MiB around it, is a device's.
    pub(super) fn bring_back_from_device(&self, leaf: Leaf) -> Round<'m> {
        let Some(devices) = self.mm.device_faults() else {
            return self.fail(FaultError::Bus, Some(FaultEvent::NoDevice));
        };
        devices.bring_back(self.mm, self.space, self.vma, self.page, leaf)?;
        Ok(FaultOutcome::Device)
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Makes `devices` serve faults on pages of devices; there is one for all.
    /// Later calls change nothing and return `false`.
    pub fn register_device_faults(&self, devices: &'m dyn DeviceFaults<P>) -> bool {
        let mut slot = self.devices.0.lock(self.platform());
        let vacant = slot.is_none();
        if vacant {
            *slot = Some(devices);
        }
        vacant
    }

    fn device_faults(&self) -> Option<&'m dyn DeviceFaults<P>> {
        *self.devices.0.lock(self.platform())
    }
}
