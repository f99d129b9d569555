//! What a migration did.

use super::ops::MigrateError;

/// What one call of [`Mm::migrate_pages`](crate::mm::Mm::migrate_pages) did, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MigrateStats {
    /// In new frames; the old ones are free.
    pub migrated: u64,
    /// Their owners gave them up instead ([`Migrated::Released`](super::Migrated::Released)):
    /// deflated, for a balloon. The frames are free.
    pub released: u64,
    /// Their owners had freed them while they were isolated. The frames are free.
    pub freed: u64,
    /// Their owners have taken them back, perhaps with the destinations
    /// ([`Migrated::Kept`](super::Migrated::Kept)).
    pub kept: u64,
    /// Where they were, by reason.
    failed: [u64; MigrateError::ALL.len()],
    /// Times that the batch was gone through.
    pub passes: u32,
}

impl MigrateStats {
    /// Pages that did not move because of `error`.
    pub const fn failed_with(&self, error: MigrateError) -> u64 {
        self.failed[error as usize]
    }

    /// Pages that did not move.
    pub fn failed(&self) -> u64 {
        self.failed.iter().sum()
    }

    /// Frames that became free.
    pub const fn vacated(&self) -> u64 {
        self.migrated + self.released + self.freed
    }

    /// Takes over the counts of another call.
    pub fn add(&mut self, other: &Self) {
        self.migrated += other.migrated;
        self.released += other.released;
        self.freed += other.freed;
        self.kept += other.kept;
        self.passes += other.passes;
        for (mine, others) in self.failed.iter_mut().zip(other.failed) {
            *mine += others;
        }
    }

    pub(super) const fn note_failed(&mut self, error: MigrateError, pages: u64) {
        self.failed[error as usize] += pages;
    }
}
