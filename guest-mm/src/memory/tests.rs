//! Whole-memory tests.

mod contig;
mod frames;
mod init;
mod isolation_race;
mod model;
mod offline;
mod stress;
mod watermarks;

use super::Memory;
use crate::testing::TestPlatform;

/// Fails with the first discrepancies if the books do not agree.
pub(super) fn assert_consistent(memory: &Memory<TestPlatform>) {
    let census = memory.census();
    let found: Vec<_> = census.discrepancies().iter().collect();
    assert!(census.is_consistent(), "{found:#?}");
}
