//! Hotplug memory of a Linux guest: resizes that end, and what the kernel says of its memory.

use std::time::Duration;

use aerostat_api::balloon::Operation;

use super::LinuxGuest;

/// How long a resize may go no further before the driver is asked again, each time twice as long. Longer than the kernel takes to
/// empty a memory block on the lab's emulated CPU: a driver that is asked in the middle of one begins it anew.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often it is asked.
const ATTEMPTS: u32 = 3;

impl LinuxGuest {
    /// Asks for `bytes` of hotplug memory until exactly that is plugged.
    ///
    /// A driver that has met memory in use, if only for a moment, rests for 50 s, and for twice as long each further time up to
    /// 5 min (Linux, drivers/virtio/virtio_mem.c); asked again, it tries at once.
    ///
    /// # Panics
    /// If it does not come to that, with what the kernel says.
    pub fn resize_hotplug(&self, bytes: u64) -> Operation {
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            match self.try_resize_hotplug(bytes, PATIENCE * (1 << attempt)) {
                Ok(operation) => return operation,
                Err(stuck) => last = Some(stuck),
            }
        }
        let (_, kernel) =
            self.run("dmesg | tail -n 40; grep -E 'zone|free |managed' /proc/zoneinfo");
        panic!("goes no further, asked {ATTEMPTS} times: {last:?}\n{kernel}");
    }

    /// MemTotal in bytes.
    ///
    /// # Panics
    /// If the guest does not answer.
    pub fn mem_total(&self) -> u64 {
        self.number("awk '/MemTotal/ {print $2}' /proc/meminfo") * 1024
    }
}
