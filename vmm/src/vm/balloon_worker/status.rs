//! What the balloon worker tells about the balloon.

use abi::PageCount;
use devices::balloon::operation::{DriverState, Observation};
use devices::balloon::{BalloonCounters, Histogram};

use super::BalloonWork;
use crate::vm::handle::{BalloonStatus, Metric};
use crate::vm::metrics::{counter, gauge, gauge_with, transport_counters};
use crate::vm::operations::driver_state;

impl BalloonWork {
    /// What an operation needs to see.
    pub(super) fn observation(&self) -> Observation {
        let transport = self.window.lock();
        Observation {
            actual: transport.device().actual(),
            driver: driver_state(&transport),
            is_paused: self.is_paused,
        }
    }

    pub(super) fn status(&self) -> BalloonStatus {
        let host_resident_bytes = self.resident_bytes();
        let transport = self.window.lock();
        let device = transport.device();
        BalloonStatus {
            ram: self.ram.pages(),
            target: device.target(),
            actual: device.actual(),
            claimed: PageCount::new(device.counters().released_pages),
            host_resident_bytes,
            truth: self.ram.truth_name(),
            offered_features: transport.offered_features(),
            acked_features: transport.acked_features(),
            driver_ready: driver_state(&transport) == DriverState::Ready,
            needs_reset: driver_state(&transport) == DriverState::NeedsReset,
            last_kick: self.last_kick.map(|at| at.elapsed()),
        }
    }

    /// The host's own account; a source of truth that cannot be read is "unverified".
    fn resident_bytes(&self) -> Option<u64> {
        self.ram.resident_bytes().unwrap_or_else(|error| {
            log::warn!("guest RAM cannot be measured: {error}");
            None
        })
    }

    pub(super) fn add_metrics(&self, out: &mut Vec<Metric>) {
        let resident = self.resident_bytes();
        let transport = self.window.lock();
        let device = transport.device();
        out.push(gauge(
            "aerostat_balloon_target_bytes",
            "Absolute balloon target",
            device.target().bytes(),
        ));
        out.push(gauge(
            "aerostat_balloon_actual_bytes",
            "What the driver says the balloon holds",
            device.actual().bytes(),
        ));
        out.push(gauge(
            "aerostat_balloon_held_bytes",
            "What the device has seen to be in the balloon",
            device.ballooned().bytes(),
        ));
        if let Some(bytes) = resident {
            out.push(gauge(
                "aerostat_guest_resident_bytes",
                "Guest RAM that the host holds, by the backing's source of truth",
                bytes,
            ));
        }
        device_metrics(device.counters(), out);
        transport_counters("balloon", transport.counters(), out);
    }
}

fn device_metrics(counters: &BalloonCounters, out: &mut Vec<Metric>) {
    let plain = [
        ("aerostat_balloon_inflated_pages_total", "Pages inflated", counters.inflated_pages),
        ("aerostat_balloon_returned_pages_total", "Pages deflated", counters.returned_pages),
        (
            "aerostat_balloon_released_pages_total",
            "Pages whose release the host accepted",
            counters.released_pages,
        ),
        (
            "aerostat_balloon_refused_pages_total",
            "Pages whose release the host refused",
            counters.refused_pages,
        ),
        (
            "aerostat_balloon_repeated_pages_total",
            "Pages named more than once in a window",
            counters.repeated_pages,
        ),
        (
            "aerostat_balloon_discard_calls_total",
            "System calls that releases took",
            counters.discard_calls,
        ),
        (
            "aerostat_balloon_refused_config_writes_total",
            "Writes to configuration fields that the driver does not own",
            counters.refused_config_writes,
        ),
        (
            "aerostat_balloon_implausible_actual_total",
            "Writes of `actual` above guest RAM",
            counters.implausible_actual,
        ),
    ];
    out.extend(plain.map(|(name, help, value)| counter(name, help, String::new(), value)));
    for (queue, queue_counters) in [("inflate", &counters.inflate), ("deflate", &counters.deflate)]
    {
        let labels = format!("queue=\"{queue}\"");
        let plain = [
            ("aerostat_balloon_buffers_total", "Buffers returned", queue_counters.buffers),
            ("aerostat_balloon_pfns_total", "Frame numbers read", queue_counters.pfns),
        ];
        out.extend(plain.map(|(name, help, value)| counter(name, help, labels.clone(), value)));
        for (reason, value) in queue_counters.faults() {
            out.push(counter(
                "aerostat_balloon_faults_total",
                "Rules that the driver broke",
                format!("{labels},reason=\"{reason}\""),
                value,
            ));
        }
    }
    histogram("aerostat_balloon_run_pages", "Pages of a released run", &counters.run_pages, out);
    histogram("aerostat_balloon_window_pages", "Pages of a window", &counters.window_pages, out);
    histogram(
        "aerostat_balloon_release_ns",
        "Nanoseconds to release a window",
        &counters.release_ns,
        out,
    );
}

/// Count, sum and maximum of a histogram.
fn histogram(name: &'static str, help: &'static str, histogram: &Histogram, out: &mut Vec<Metric>) {
    for (part, value) in
        [("count", histogram.count()), ("sum", histogram.sum()), ("max", histogram.max())]
    {
        out.push(gauge_with(name, help, format!("part=\"{part}\""), value));
    }
}
