//! The simplest device that uses everything a transport gives.

use crate::virtio::{
    ActivateError, Activation, GuestFault, QueueProgress, VirtioDevice, read_config_bytes,
};

/// Two queues; returns each chain after filling its writable buffers with 0x5a.
///
/// Configuration space: byte 0–3 belong to the device, 4–7 to the driver.
/// Feature bits 0 and 40. Needs queue 0.
#[derive(Default)]
pub struct ToyDevice {
    active: Option<Activation>,
    config: [u8; 8],
    served: u64,
    activations: u64,
    resets: u64,
}

impl ToyDevice {
    /// Feature bits offered.
    pub const FEATURES: u64 = 1 | 1 << 40;
    /// Largest queue sizes.
    pub const QUEUE_SIZES: [u16; 2] = [8, 4];
    /// The virtio device id.
    pub const DEVICE_ID: u32 = 0x1234;

    /// Chains returned so far.
    pub fn served(&self) -> u64 {
        self.served
    }

    /// Successful activations so far.
    pub fn activations(&self) -> u64 {
        self.activations
    }

    /// Resets so far.
    pub fn resets(&self) -> u64 {
        self.resets
    }

    /// What the last activation brought, while the device is active.
    pub fn activation(&self) -> Option<&Activation> {
        self.active.as_ref()
    }

    /// Sets the device's part of configuration space.
    pub fn set_config(&mut self, value: u32) {
        let [a, b, c, d] = value.to_le_bytes();
        let [_, _, _, _, e, f, g, h] = self.config;
        self.config = [a, b, c, d, e, f, g, h];
    }
}

impl VirtioDevice for ToyDevice {
    fn device_id(&self) -> u32 {
        Self::DEVICE_ID
    }

    fn device_features(&self) -> u64 {
        Self::FEATURES
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &Self::QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, out: &mut [u8]) {
        read_config_bytes(&self.config, offset, out);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), GuestFault> {
        let at = usize::try_from(offset).ok().filter(|&at| at >= 4);
        let field = at
            .and_then(|at| Some(at..at.checked_add(data.len())?))
            .and_then(|range| self.config.get_mut(range));
        match field {
            Some(field) => field.copy_from_slice(data),
            None => return Err(GuestFault::ReadOnlyConfig { offset, len: data.len() }),
        }
        Ok(())
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if !activation.queues.first().is_some_and(Option::is_some) {
            return Err(ActivateError::MissingQueue { queue: 0 });
        }
        self.activations += 1;
        self.active = Some(activation);
        Ok(())
    }

    fn queue_notified(&mut self, index: u16) -> Result<QueueProgress, GuestFault> {
        let active = self.active.as_mut().expect("the transport kicks active devices only");
        let mem = &*active.ram.present();
        let queue = active.queues.get_mut(usize::from(index)).and_then(Option::as_mut);
        let queue = queue.expect("the transport kicks enabled queues only");
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop(mem)? else { return Ok(QueueProgress::Idle) };
            let written = chain.buffers().map_or(0, |buffers| {
                let room = buffers.writable_bytes().min(4096);
                let fill = vec![0x5a; usize::try_from(room).expect("small")];
                let written = buffers.write(mem, 0, &fill).expect("checked buffers");
                u32::try_from(written).expect("small")
            });
            queue.complete(mem, chain, written)?;
            self.served += 1;
            queue.signal_used(mem, active.interrupt.as_ref())?;
        }
        Ok(QueueProgress::Pending)
    }

    fn reset(&mut self) {
        self.active = None;
        self.resets += 1;
    }
}
