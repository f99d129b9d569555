//! Which VMAs may map an anonymous folio.

use core::marker::PhantomData;

use crate::platform::Platform;

/// The VMAs that anonymous folios of one origin may be mapped in: the VMA that
/// faulted them in, and those that fork and split made of it.
pub struct AnonVma<'m, P: Platform> {
    pub(crate) owner: PhantomData<&'m P>,
}
