//! All drives of a VM, as the event loop holds them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use aerostat_api as api;
use devices::block::{Block, BlockBackend};

use super::block_worker::{BlockCommand, BlockWorker};
use super::config::DriveConfig;
use super::handle::{Metric, Reply, VmError};
use super::metrics::{counter, gauge_with, transport_counters};
use super::slots::Slots;
use super::vcpu::VcpuEvents;
use super::window::Window;
use crate::drive::{self, DriveError, DriveFile};

/// An opened drive that has no place in a machine yet.
pub(crate) struct OpenDrive {
    config: DriveConfig,
    file: Arc<DriveFile>,
}

impl OpenDrive {
    /// Opens the files of `drives`, in the order in which the guest finds them.
    ///
    /// # Errors
    /// [`DriveError`] of the first that cannot be opened; those before it are closed.
    pub(crate) fn open_all(drives: &[DriveConfig]) -> Result<Vec<Self>, DriveError> {
        let open = |config: &DriveConfig| {
            let file = Arc::new(DriveFile::open(&config.path, config.is_read_only)?);
            Ok(Self { config: config.clone(), file })
        };
        drives.iter().map(open).collect()
    }

    /// Id, path, size and what the guest may do, for a person.
    pub(crate) fn describe(&self) -> String {
        let DriveConfig { id, path, is_read_only, .. } = &self.config;
        let bytes = api::Size::from_bytes(self.file.properties().bytes());
        let access = if *is_read_only { "read-only" } else { "writable" };
        format!("{id}: {}, {bytes}, {access}", path.display())
    }

    /// Gives it a slot.
    pub(super) fn insert_into(self, slots: &mut Slots) -> io::Result<InsertedDrive> {
        let Self { config, file } = self;
        let window = slots.insert(Block::new(file.clone(), &config.id))?;
        Ok(InsertedDrive { config, file, window })
    }
}

/// A drive in its slot, without a thread that serves it.
pub(super) struct InsertedDrive {
    config: DriveConfig,
    file: Arc<DriveFile>,
    window: Arc<Window<Block>>,
}

/// A drive that is served.
struct Drive {
    config: DriveConfig,
    window: Arc<Window<Block>>,
    worker: BlockWorker,
}

/// Every drive.
pub(super) struct Drives {
    drives: Vec<Drive>,
    /// Counts the pauses; a drive names the one in which it has settled.
    pause: u64,
}

impl Drives {
    /// Starts a thread for each drive.
    pub(super) fn start(inserted: Vec<InsertedDrive>, events: &VcpuEvents) -> io::Result<Self> {
        if !inserted.is_empty() {
            drive::ignore_file_size_signal();
        }
        let start = |drive: InsertedDrive| {
            let InsertedDrive { config, file, window } = drive;
            let worker = BlockWorker::start(&config.id, window.clone(), file, events.clone())?;
            Ok(Drive { config, window, worker })
        };
        let drives = inserted.into_iter().map(start).collect::<io::Result<_>>()?;
        Ok(Self { drives, pause: 0 })
    }

    /// Lets every drive carry out what the paused guest has made available. Called when no vCPU
    /// runs; each drive sends a pause event when it has settled.
    pub(super) fn settle(&mut self) {
        self.pause += 1;
        for drive in &self.drives {
            drive.worker.post(BlockCommand::Settle { pause: self.pause });
        }
    }

    /// Whether all have settled since the last [`Self::settle`].
    pub(super) fn are_settled(&self) -> bool {
        self.drives.iter().all(|drive| drive.worker.settled() == self.pause)
    }

    /// Resets the devices after the vCPUs have stopped.
    pub(super) fn reset(&self) {
        self.drives.iter().for_each(|drive| drive.worker.reset());
    }

    /// Puts another file behind drive `id`, or takes the new size of the present one.
    pub(super) fn update(&self, id: &str, path: Option<PathBuf>, reply: Reply<()>) {
        match self.drives.iter().find(|drive| drive.config.id == id) {
            Some(drive) => drive.worker.post(BlockCommand::Replace { path, reply }),
            None => {
                let known = self.drives.iter().map(|drive| drive.config.id.as_str());
                let known = known.collect::<Vec<_>>().join(", ");
                super::event_loop::answer(
                    reply,
                    Err(VmError::NoSuchDrive { id: id.to_owned(), known }),
                );
            }
        }
    }

    /// Puts the files that the drives have now into `told`, which was said before the start.
    pub(super) fn describe(&self, told: &mut [api::Drive]) {
        for Drive { config, worker, .. } in &self.drives {
            if let Some(told) = told.iter_mut().find(|told| told.drive_id == config.id) {
                told.path_on_host = Some(worker.place().0.display().to_string());
            }
        }
    }

    /// Ends the threads; everything that the guest has written is permanent then.
    ///
    /// # Errors
    /// Why that is not so; one line for all drives.
    pub(super) fn finish(self) -> Result<(), String> {
        let failed: Vec<String> =
            self.drives.into_iter().filter_map(|drive| drive.worker.finish().err()).collect();
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }

    /// Counters of every drive. A drive whose registers are held by a reset that waits for its
    /// disk is left out rather than waited for.
    pub(super) fn add_metrics(&self, out: &mut Vec<Metric>) {
        for Drive { config, window, worker } in &self.drives {
            let labels = format!("drive=\"{}\"", config.id);
            out.push(gauge_with(
                "aerostat_block_bytes",
                "Size of the disk",
                labels.clone(),
                worker.place().1,
            ));
            let Some(transport) = window.lock_soon() else { continue };
            for (event, value) in transport.device().counters().named() {
                out.push(counter(
                    "aerostat_block_events_total",
                    "Events of a block device",
                    format!("{labels},event=\"{event}\""),
                    value,
                ));
            }
            for (reason, value) in transport.device().faults().iter() {
                out.push(counter(
                    "aerostat_block_faults_total",
                    "Rules that the driver broke",
                    format!("{labels},reason=\"{reason}\""),
                    value,
                ));
            }
            transport_counters(&config.id, transport.counters(), out);
        }
    }
}
