//! Taking a run of frames away from its users.

use abi::PfnRange;

use super::driver::HotplugDriver;
use crate::compaction::ContigOptions;
use crate::memory::{ContigFrames, Pass};
use crate::migrate::MigrateMode;
use crate::platform::Platform;

impl<P: Platform, B> HotplugDriver<'_, '_, P, B> {
    /// All of `range`, after its contents were moved elsewhere; `None` if some of it is in use
    /// and stays where it is, or there is no room for it.
    ///
    /// Migration may sleep for a page's lock, but not for what somebody writes out: the driver is polled.
    pub(super) fn take(&self, range: PfnRange) -> Option<ContigFrames> {
        let options = ContigOptions { mode: MigrateMode::SyncLight, pass: Pass::Nothing };
        self.mm.alloc_contig_range(range, options).ok()
    }
}
