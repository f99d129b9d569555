//! Memory that comes to life after the start: hot-plugged blocks, and the virtio-mem device that has them.
//!
//! A block is up to 128 MiB of guest-physical address space that no boot map names. All that the
//! memory manager needs for it lies in the block itself: the words of its frames, the types of its pageblocks, the
//! bitmap of the frames that are not alive, a page for the direct map's tables. So adding a
//! block takes no memory, and cannot fail for want of it. Its frames start *offline*, owned by
//! [`DriverId::HOTPLUG`](crate::memdesc::DriverId::HOTPLUG) and skippable; they come to life, and are laid to rest again, in
//! pieces of the device's block size.
//!
//! * [`BlockLayout`]: what lies where in a block;
//! * [`Memory::add_block`](crate::memory::Memory::add_block), `bring_to_life`, `lay_to_rest`, `take_block_out`: blocks without a device;
//! * [`OfflineBits`]: the bitmap;
//! * [`HotplugDriver`]: the virtio-mem driver.
//!
//! docs/come-to-life.md tells the whole.

mod add;
mod answer;
mod census;
mod driver;
mod error;
mod layout;
mod life;
mod plan;
mod remove;
mod reset;
mod rest;
mod status;
mod store;
mod take;
mod turn;
mod wire;

pub use add::NewBlock;
pub use driver::HotplugDriver;
pub use error::HotplugError;
pub use layout::{BlockLayout, MAX_BLOCK_PAGES};
pub use remove::DyingBlock;
pub use status::{DriverError, HotplugCounters, HotplugOptions, HotplugPhase, HotplugStatus};
pub use store::OfflineBits;
pub use wire::{RegionError, region_of};

pub(crate) use census::check as census_check;
pub(crate) use turn::TurnFlag;

#[cfg(test)]
mod tests;
