//! Which request means what.

use hyper::Method;

/// Everything that the control socket can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// `GET /`
    Instance,
    /// `GET /version`
    Version,
    /// `GET /vm`
    VmState,
    /// `PATCH /vm`
    SetRunState,
    /// `GET /vm/config`
    VmConfig,
    /// `GET /vm/info`
    VmStatus,
    /// `PUT /vm/stop`
    Stop,
    /// `GET /machine-config`
    MachineConfig,
    /// `GET /balloon`
    BalloonConfig,
    /// `PATCH /balloon`
    UpdateBalloon,
    /// `GET /balloon/status`
    BalloonStatus,
    /// `GET /balloon/operation`
    Operation,
    /// `PUT /balloon/operation`
    BeginOperation,
    /// A part of the balloon that only some balloons have.
    BalloonExtra(BalloonExtra),
    /// `GET /hotplug/memory`
    Hotplug,
    /// `PATCH /hotplug/memory`
    UpdateHotplug,
    /// `GET /hotplug/memory/status`
    HotplugStatus,
    /// `GET /hotplug/memory/operation`
    HotplugOperation,
    /// `PUT /hotplug/memory/operation`
    BeginHotplugOperation,
    /// `GET /guest/scenarios`
    Scenarios,
    /// `POST /guest/scenarios`
    Exec,
    /// `PUT /actions`
    Action,
    /// `GET /metrics`
    Metrics,
    /// A change to the configuration before the start.
    Configure(Section),
    /// `PATCH /drives/{drive_id}`
    UpdateDrive,
    /// What Firecracker has and aerostat does not support: what it is.
    Unsupported(&'static str),
}

impl Route {
    /// Whether a request that is no GET may come without a body.
    pub(super) fn takes_no_body(self) -> bool {
        use BalloonExtra::{Hinting, StartHinting};
        matches!(self, Self::BalloonExtra(StartHinting | Hinting))
    }
}

/// A section of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    /// `PUT /machine-config`
    Machine,
    /// `PATCH /machine-config`
    MachineUpdate,
    /// `PUT /boot-source`
    BootSource,
    /// `PUT /drives/{drive_id}`
    Drive,
    /// `PUT /balloon`
    Balloon,
    /// `PUT /hotplug/memory`
    Hotplug,
    /// `PUT /entropy`
    Entropy,
    /// `PUT /logger`
    Logger,
    /// `PUT /metrics`
    Metrics,
    /// `PUT /serial`
    Serial,
}

/// A part of the balloon that only some balloons have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BalloonExtra {
    /// `GET /balloon/statistics`
    Statistics,
    /// `PATCH /balloon/statistics`
    SetStatisticsInterval,
    /// `PATCH /balloon/hinting/start`
    StartHinting,
    /// `GET /balloon/hinting/status`, `PATCH /balloon/hinting/stop`
    Hinting,
}

/// A route as the table has it.
struct Entry(Method, &'static str, Api, Route);

/// Whose an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Api {
    Firecracker,
    Ours,
}

/// Every route: verb, path, whose it is. The OpenAPI document lists the same. A path's last part may
/// stand in braces for any name.
const ROUTES: [Entry; 50] = {
    use Api::{Firecracker, Ours};
    const NETWORK: Route = Route::Unsupported("Network interfaces are");
    const PMEM: Route = Route::Unsupported("Persistent memory devices (pmem) are");
    const SNAPSHOT: Route = Route::Unsupported("Snapshots are");
    const MMDS: Route = Route::Unsupported("The metadata service (MMDS) is");
    const CPU: Route = Route::Unsupported("CPU configurations (cpu-config) are");
    const VSOCK: Route = Route::Unsupported("A vsock device is");
    [
        Entry(Method::GET, "/", Firecracker, Route::Instance),
        Entry(Method::GET, "/version", Firecracker, Route::Version),
        Entry(Method::GET, "/vm", Ours, Route::VmState),
        Entry(Method::PATCH, "/vm", Firecracker, Route::SetRunState),
        Entry(Method::GET, "/vm/config", Firecracker, Route::VmConfig),
        Entry(Method::GET, "/vm/info", Ours, Route::VmStatus),
        Entry(Method::PUT, "/vm/stop", Ours, Route::Stop),
        Entry(Method::GET, "/machine-config", Firecracker, Route::MachineConfig),
        Entry(Method::PUT, "/machine-config", Firecracker, Route::Configure(Section::Machine)),
        Entry(
            Method::PATCH,
            "/machine-config",
            Firecracker,
            Route::Configure(Section::MachineUpdate),
        ),
        Entry(Method::PUT, "/boot-source", Firecracker, Route::Configure(Section::BootSource)),
        Entry(Method::PUT, "/drives/{drive_id}", Firecracker, Route::Configure(Section::Drive)),
        Entry(Method::PATCH, "/drives/{drive_id}", Firecracker, Route::UpdateDrive),
        Entry(Method::PUT, "/entropy", Firecracker, Route::Configure(Section::Entropy)),
        Entry(Method::PUT, "/serial", Firecracker, Route::Configure(Section::Serial)),
        Entry(Method::GET, "/balloon", Firecracker, Route::BalloonConfig),
        Entry(Method::PUT, "/balloon", Firecracker, Route::Configure(Section::Balloon)),
        Entry(Method::PATCH, "/balloon", Firecracker, Route::UpdateBalloon),
        Entry(
            Method::GET,
            "/balloon/statistics",
            Firecracker,
            Route::BalloonExtra(BalloonExtra::Statistics),
        ),
        Entry(
            Method::PATCH,
            "/balloon/statistics",
            Firecracker,
            Route::BalloonExtra(BalloonExtra::SetStatisticsInterval),
        ),
        Entry(
            Method::PATCH,
            "/balloon/hinting/start",
            Firecracker,
            Route::BalloonExtra(BalloonExtra::StartHinting),
        ),
        Entry(
            Method::GET,
            "/balloon/hinting/status",
            Firecracker,
            Route::BalloonExtra(BalloonExtra::Hinting),
        ),
        Entry(
            Method::PATCH,
            "/balloon/hinting/stop",
            Firecracker,
            Route::BalloonExtra(BalloonExtra::Hinting),
        ),
        Entry(Method::GET, "/balloon/status", Ours, Route::BalloonStatus),
        Entry(Method::GET, "/balloon/operation", Ours, Route::Operation),
        Entry(Method::PUT, "/balloon/operation", Ours, Route::BeginOperation),
        Entry(Method::GET, "/guest/scenarios", Ours, Route::Scenarios),
        Entry(Method::POST, "/guest/scenarios", Ours, Route::Exec),
        Entry(Method::PUT, "/actions", Firecracker, Route::Action),
        Entry(Method::GET, "/metrics", Ours, Route::Metrics),
        Entry(Method::PUT, "/metrics", Firecracker, Route::Configure(Section::Metrics)),
        Entry(Method::PUT, "/logger", Firecracker, Route::Configure(Section::Logger)),
        Entry(Method::PUT, "/network-interfaces/{iface_id}", Firecracker, NETWORK),
        Entry(Method::PATCH, "/network-interfaces/{iface_id}", Firecracker, NETWORK),
        Entry(Method::PUT, "/pmem/{id}", Firecracker, PMEM),
        Entry(Method::PATCH, "/pmem/{id}", Firecracker, PMEM),
        Entry(Method::GET, "/hotplug/memory", Firecracker, Route::Hotplug),
        Entry(Method::PUT, "/hotplug/memory", Firecracker, Route::Configure(Section::Hotplug)),
        Entry(Method::PATCH, "/hotplug/memory", Firecracker, Route::UpdateHotplug),
        Entry(Method::GET, "/hotplug/memory/status", Ours, Route::HotplugStatus),
        Entry(Method::GET, "/hotplug/memory/operation", Ours, Route::HotplugOperation),
        Entry(Method::PUT, "/hotplug/memory/operation", Ours, Route::BeginHotplugOperation),
        Entry(Method::PUT, "/snapshot/create", Firecracker, SNAPSHOT),
        Entry(Method::PUT, "/snapshot/load", Firecracker, SNAPSHOT),
        Entry(Method::GET, "/mmds", Firecracker, MMDS),
        Entry(Method::PUT, "/mmds", Firecracker, MMDS),
        Entry(Method::PATCH, "/mmds", Firecracker, MMDS),
        Entry(Method::PUT, "/mmds/config", Firecracker, MMDS),
        Entry(Method::PUT, "/cpu-config", Firecracker, CPU),
        Entry(Method::PUT, "/vsock", Firecracker, VSOCK),
    ]
};

/// A route that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found<'a> {
    pub(super) route: Route,
    /// What stands for the part of the route's path in braces; empty where there is none.
    pub(super) name: &'a str,
    /// Firecracker has this endpoint: its status codes hold.
    pub(super) is_firecracker: bool,
}

/// Finds the route of a request; a slash at the end of the path means nothing, as in Firecracker.
pub(super) fn find<'a>(method: &Method, path: &'a str) -> Option<Found<'a>> {
    let path = if path.len() > 1 { path.strip_suffix('/').unwrap_or(path) } else { path };
    ROUTES.iter().filter(|entry| entry.0 == method).find_map(|&Entry(_, pattern, api, route)| {
        let name = name_in(pattern, path)?;
        Some(Found { route, name, is_firecracker: api == Api::Firecracker })
    })
}

/// What stands in `path` for the part of `pattern` in braces; `None` when it is another path.
fn name_in<'a>(pattern: &str, path: &'a str) -> Option<&'a str> {
    let Some((before, _name)) = pattern.split_once("/{") else {
        return (pattern == path).then_some("");
    };
    match path.strip_prefix(before)? {
        // A path that ends before its name: whoever serves it says that the name is missing.
        "" => Some(""),
        rest => rest.strip_prefix('/').filter(|name| !name.contains('/')),
    }
}

/// Verb and path of every route, for the document that describes them.
pub fn endpoints() -> impl Iterator<Item = (&'static str, &'static str)> {
    const { &ROUTES }.iter().map(|Entry(method, path, _, _)| (method.as_str(), *path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_found_and_no_two_clash() {
        for Entry(method, pattern, api, route) in &ROUTES {
            let path = pattern.split_once('{').map_or(*pattern, |(before, _)| before).to_owned();
            let name = if path == *pattern { "" } else { "a_1" };
            let (route, is_firecracker) = (*route, *api == Api::Firecracker);
            let path = path + name;
            let found = Found { route, name, is_firecracker };
            assert_eq!(find(method, &path), Some(found), "{method} {path}");
        }
    }

    #[test]
    fn a_known_path_with_another_verb_is_not_found() {
        assert_eq!(find(&Method::DELETE, "/balloon"), None);
        assert_eq!(find(&Method::GET, "/drives/a"), None);
        assert_eq!(find(&Method::GET, "//"), find(&Method::GET, "/"));
    }

    #[test]
    fn a_slash_at_the_end_means_nothing() {
        assert_eq!(find(&Method::GET, "/balloon/"), find(&Method::GET, "/balloon"));
        assert_eq!(find(&Method::PUT, "/drives/a/"), find(&Method::PUT, "/drives/a"));
    }

    #[test]
    fn a_name_is_one_part_of_the_path() {
        assert_eq!(find(&Method::PUT, "/drives/rootfs").unwrap().name, "rootfs");
        for missing in ["/drives", "/drives/"] {
            assert_eq!(find(&Method::PUT, missing).unwrap().name, "");
        }
        assert_eq!(find(&Method::PUT, "/drives/a/b"), None);
        assert_eq!(find(&Method::PUT, "/drivesa"), None);
    }
}
