//! Swap on the host: the table against a model, the cache with folios, a device that fails.

mod cache;
mod table;
mod zram;

use std::sync::Mutex;
use std::vec::Vec;

use super::{SlotBytes, SwapDevice, SwapIoError};

/// A device in the test's own memory whose calls can be made to fail.
pub(crate) struct TestDevice {
    pages: Mutex<Vec<Option<SlotBytes>>>,
    pub(crate) fails: core::sync::atomic::AtomicBool,
    bad: Option<u32>,
}

impl TestDevice {
    pub(crate) fn new(slots: usize, bad: Option<u32>) -> Self {
        Self { pages: Mutex::new(std::vec![None; slots]), fails: false.into(), bad }
    }

    /// Slots that hold something.
    pub(crate) fn written(&self) -> usize {
        self.pages.lock().unwrap().iter().flatten().count()
    }

    fn check(&self) -> Result<(), SwapIoError> {
        let fails = self.fails.load(core::sync::atomic::Ordering::Relaxed);
        if fails { Err(SwapIoError::Device) } else { Ok(()) }
    }
}

impl SwapDevice for TestDevice {
    fn slots(&self) -> u32 {
        u32::try_from(self.pages.lock().unwrap().len()).unwrap()
    }

    fn is_bad(&self, slot: u32) -> bool {
        self.bad == Some(slot)
    }

    fn read(&self, slot: u32, page: &mut SlotBytes) -> Result<(), SwapIoError> {
        self.check()?;
        *page = self.pages.lock().unwrap()[slot as usize].expect("only what was written is read");
        Ok(())
    }

    fn write(&self, slot: u32, page: &SlotBytes) -> Result<(), SwapIoError> {
        self.check()?;
        self.pages.lock().unwrap()[slot as usize] = Some(*page);
        Ok(())
    }

    fn discard(&self, slot: u32) {
        self.pages.lock().unwrap()[slot as usize] = None;
    }
}
