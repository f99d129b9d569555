//! Counters and gauges as the control thread wants them.

use std::sync::atomic::{AtomicU64, Ordering};

use devices::mem::MemoryDevice;
use devices::transport::{MmioTransport, TransportCounters};

use super::chassis::Chassis;
use super::handle::Metric;
use crate::agent::Agent;

/// A metric that only grows.
pub(super) fn counter(
    name: &'static str,
    help: &'static str,
    labels: String,
    value: u64,
) -> Metric {
    Metric { name, labels, help, is_counter: true, value: to_f64(value) }
}

/// A metric that goes up and down.
pub(super) fn gauge(name: &'static str, help: &'static str, value: u64) -> Metric {
    Metric { name, labels: String::new(), help, is_counter: false, value: to_f64(value) }
}

/// A gauge with labels.
pub(super) fn gauge_with(
    name: &'static str,
    help: &'static str,
    labels: String,
    value: u64,
) -> Metric {
    Metric { labels, ..gauge(name, help, value) }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles; 2^53 is exact")]
fn to_f64(value: u64) -> f64 {
    value as f64
}

/// Every counter of a transport, by event.
pub(super) fn transport_counters(
    device: &str,
    counters: &TransportCounters,
    out: &mut Vec<Metric>,
) {
    for (event, value) in counters.named() {
        out.push(counter(
            "aerostat_virtio_events_total",
            "Events of a virtio-mmio transport",
            format!("device=\"{device}\",event=\"{event}\""),
            value,
        ));
    }
}

/// All metrics but the balloon's.
pub(super) fn collect(chassis: &Chassis, agent: &Agent) -> Vec<Metric> {
    let mut out = Vec::new();
    let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
    let plain = |name, help, value| counter(name, help, String::new(), value);
    out.push(gauge("aerostat_ram_bytes", "Guest RAM", chassis.ram.pages().bytes()));
    if let Some(us) = chassis.com1.output().first_byte_us() {
        out.push(gauge(
            "aerostat_first_byte_us",
            "Microseconds from the start to the guest's first serial byte",
            us,
        ));
    }
    for (vcpu, exits) in chassis.exit_counters.iter().enumerate() {
        for (kind, value) in
            [("port", &exits.port), ("mmio", &exits.mmio), ("interrupted", &exits.interrupted)]
        {
            out.push(counter(
                "aerostat_vcpu_exits_total",
                "Exits from the guest to aerostat",
                format!("vcpu=\"{vcpu}\",kind=\"{kind}\""),
                load(value),
            ));
        }
    }
    let board = chassis.board.counters();
    let output = chassis.com1.output();
    let agent = agent.counters();
    out.extend([
        plain(
            "aerostat_unknown_port_accesses_total",
            "Accesses to ports that nothing answers",
            load(&board.unknown_ports),
        ),
        plain(
            "aerostat_unknown_mmio_accesses_total",
            "Accesses to addresses that nothing answers",
            load(&board.unknown_mmio),
        ),
        plain(
            "aerostat_hotplug_unplugged_accesses_total",
            "Accesses of vCPUs to hotplug memory that is not plugged",
            load(&board.unplugged),
        ),
        plain(
            "aerostat_serial_written_bytes_total",
            "Bytes that the guest wrote to the serial console",
            output.written(),
        ),
        plain(
            "aerostat_serial_dropped_bytes_total",
            "Serial bytes lost because their reader was slow or absent",
            output.dropped(),
        ),
        plain("aerostat_agent_lines_total", "Agent lines understood", agent.lines),
        plain("aerostat_agent_overlong_lines_total", "Agent lines too long", agent.overlong),
        plain(
            "aerostat_agent_malformed_lines_total",
            "Agent lines that are not of the protocol",
            agent.malformed,
        ),
        plain(
            "aerostat_agent_stray_lines_total",
            "Agent answers to a request that does not run",
            agent.stray,
        ),
        plain(
            "aerostat_agent_lost_lines_total",
            "Scenario output that a slow client lost",
            agent.lost,
        ),
    ]);
    if let Some(entropy) = &chassis.entropy {
        let entropy = entropy.lock();
        transport_counters("entropy", entropy.counters(), &mut out);
        for (event, value) in entropy.device().counters().named() {
            out.push(counter(
                "aerostat_entropy_events_total",
                "Events of the entropy device, and bytes that it gave out",
                format!("event=\"{event}\""),
                value,
            ));
        }
    }
    if let Some(hotplug) = &chassis.hotplug {
        // Not while memory comes or goes: the event loop would wait for the host.
        hotplug.window.lock_soon().inspect(|hotplug| hotplug_metrics(hotplug, &mut out));
    }
    let console = chassis.console.lock();
    transport_counters("console", console.counters(), &mut out);
    for (event, value) in console.device().counters().named() {
        out.push(counter(
            "aerostat_console_events_total",
            "Events of the console device",
            format!("event=\"{event}\""),
            value,
        ));
    }
    out
}

fn hotplug_metrics(transport: &MmioTransport<MemoryDevice>, out: &mut Vec<Metric>) {
    let device = transport.device();
    out.extend([
        gauge(
            "aerostat_hotplug_region_bytes",
            "Most hotplug memory that there can be",
            device.region().bytes(),
        ),
        gauge(
            "aerostat_hotplug_usable_bytes",
            "Part of the region in which the guest may plug blocks",
            device.usable_bytes(),
        ),
        gauge(
            "aerostat_hotplug_requested_bytes",
            "Hotplug memory that the guest is asked for",
            device.requested().bytes(),
        ),
        gauge(
            "aerostat_hotplug_plugged_bytes",
            "Hotplug memory that is plugged",
            device.plugged().bytes(),
        ),
    ]);
    for (event, value) in device.counters().named() {
        out.push(counter(
            "aerostat_hotplug_events_total",
            "Requests of the memory device's driver, answers, and rules that it broke",
            format!("event=\"{event}\""),
            value,
        ));
    }
    transport_counters("mem", transport.counters(), out);
}
