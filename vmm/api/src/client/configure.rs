//! Requests that make a VM, of a process that `aerostat serve` has started.

use std::time::Duration;

use super::{Client, ClientError};
use crate::balloon::BalloonConfig;
use crate::config::{
    BootSource, Drive, DriveUpdate, Entropy, Logger, MachineConfig, MachineConfigUpdate, Metrics,
    Serial,
};
use crate::hotplug::MemoryHotplugConfig;
use crate::machine::{Action, ActionType};

/// How much longer than other requests a start may take.
const START_TIME: Duration = Duration::from_secs(60);

impl Client {
    /// Sets vCPUs and memory.
    ///
    /// # Errors
    /// Like every request: [`ClientError`].
    pub fn set_machine_config(&self, config: &MachineConfig) -> Result<(), ClientError> {
        self.command("PUT", "/machine-config", config)
    }

    /// Changes some of vCPUs and memory.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn update_machine_config(&self, update: &MachineConfigUpdate) -> Result<(), ClientError> {
        self.command("PATCH", "/machine-config", update)
    }

    /// Says what boots.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn set_boot_source(&self, source: &BootSource) -> Result<(), ClientError> {
        self.command("PUT", "/boot-source", source)
    }

    /// Adds a drive, or replaces the one of the same name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn set_drive(&self, drive: &Drive) -> Result<(), ClientError> {
        self.command("PUT", &format!("/drives/{}", drive.drive_id), drive)
    }

    /// Changes a drive of a running VM.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn update_drive(&self, update: &DriveUpdate) -> Result<(), ClientError> {
        self.command("PATCH", &format!("/drives/{}", update.drive_id), update)
    }

    /// Adds a balloon, or replaces it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn set_balloon(&self, balloon: &BalloonConfig) -> Result<(), ClientError> {
        self.command("PUT", "/balloon", balloon)
    }

    /// Adds hotplug memory, or replaces it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn set_hotplug_memory(&self, config: &MemoryHotplugConfig) -> Result<(), ClientError> {
        self.command("PUT", "/hotplug/memory", config)
    }

    /// Adds an entropy device.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn set_entropy(&self, entropy: &Entropy) -> Result<(), ClientError> {
        self.command("PUT", "/entropy", entropy)
    }

    /// Says where and what to log.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn set_logger(&self, logger: &Logger) -> Result<(), ClientError> {
        self.command("PUT", "/logger", logger)
    }

    /// Says where metrics are written.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn set_metrics(&self, metrics: &Metrics) -> Result<(), ClientError> {
        self.command("PUT", "/metrics", metrics)
    }

    /// Says where the serial console goes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn set_serial(&self, serial: &Serial) -> Result<(), ClientError> {
        self.command("PUT", "/serial", serial)
    }

    /// Boots the configured VM.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn start(&self) -> Result<(), ClientError> {
        // The host may take its time for memory and kernel, and the server waits for it.
        let patience = self.answer_timeout.saturating_add(START_TIME);
        let action = Action { action_type: ActionType::InstanceStart };
        self.send("PUT", "/actions", Some(&action), patience).map(|_answer| ())
    }
}
