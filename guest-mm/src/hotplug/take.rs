//! Taking a run of frames away from its users.

use abi::PfnRange;

use super::driver::HotplugDriver;
use crate::memory::{ContigFrames, Pass};
use crate::platform::Platform;

impl<P: Platform, B> HotplugDriver<'_, '_, P, B> {
    /// All of `range`; `None` if some of it is in use.
    pub(super) fn take(&self, range: PfnRange) -> Option<ContigFrames> {
        let memory = self.mm.memory();
        let isolated = memory.isolate_range(range).ok()?;
        let taken = memory.take_isolated(&isolated, range, Pass::Nothing);
        memory.unisolate_range(isolated);
        taken.ok()
    }
}
