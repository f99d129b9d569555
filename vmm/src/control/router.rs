//! Which request means what.

use hyper::Method;

/// Everything that the control socket can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// `GET /`
    Instance,
    /// `GET /version`
    Version,
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
    /// `GET /guest/scenarios`
    Scenarios,
    /// `POST /guest/scenarios`
    Exec,
    /// `PUT /actions`
    Action,
    /// `GET /metrics`
    Metrics,
    /// What Firecracker allows before the VM starts only.
    PreBootOnly,
}

/// Every route: verb, path, whether Firecracker has it too. The OpenAPI document lists the same.
const ROUTES: [(Method, &str, bool, Route); 22] = [
    (Method::GET, "/", true, Route::Instance),
    (Method::GET, "/version", true, Route::Version),
    (Method::PATCH, "/vm", true, Route::SetRunState),
    (Method::GET, "/vm/config", true, Route::VmConfig),
    (Method::GET, "/vm/info", false, Route::VmStatus),
    (Method::PUT, "/vm/stop", false, Route::Stop),
    (Method::GET, "/machine-config", true, Route::MachineConfig),
    (Method::PUT, "/machine-config", true, Route::PreBootOnly),
    (Method::PATCH, "/machine-config", true, Route::PreBootOnly),
    (Method::PUT, "/boot-source", true, Route::PreBootOnly),
    (Method::GET, "/balloon", true, Route::BalloonConfig),
    (Method::PUT, "/balloon", true, Route::PreBootOnly),
    (Method::PATCH, "/balloon", true, Route::UpdateBalloon),
    (Method::GET, "/balloon/status", false, Route::BalloonStatus),
    (Method::GET, "/balloon/operation", false, Route::Operation),
    (Method::PUT, "/balloon/operation", false, Route::BeginOperation),
    (Method::GET, "/guest/scenarios", false, Route::Scenarios),
    (Method::POST, "/guest/scenarios", false, Route::Exec),
    (Method::PUT, "/actions", true, Route::Action),
    (Method::GET, "/metrics", false, Route::Metrics),
    (Method::PUT, "/metrics", true, Route::PreBootOnly),
    (Method::PUT, "/logger", true, Route::PreBootOnly),
];

/// A route that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) route: Route,
    /// Firecracker has this endpoint: its status codes hold.
    pub(super) is_firecracker: bool,
}

/// Finds the route of a request; a slash at the end of the path means nothing, as in Firecracker.
pub(super) fn find(method: &Method, path: &str) -> Option<Found> {
    let path = if path.len() > 1 { path.strip_suffix('/').unwrap_or(path) } else { path };
    ROUTES
        .iter()
        .find(|(m, p, _, _)| m == method && *p == path)
        .map(|&(_, _, is_firecracker, route)| Found { route, is_firecracker })
}

/// Verb and path of every route, for the document that describes them.
pub fn endpoints() -> impl Iterator<Item = (&'static str, &'static str)> {
    const { &ROUTES }.iter().map(|(method, path, _, _)| (method.as_str(), *path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_found_and_no_two_clash() {
        for (method, path, is_firecracker, route) in &ROUTES {
            let (route, is_firecracker) = (*route, *is_firecracker);
            assert_eq!(
                find(method, path),
                Some(Found { route, is_firecracker }),
                "{method} {path}"
            );
        }
    }

    #[test]
    fn a_known_path_with_another_verb_is_not_found() {
        assert_eq!(find(&Method::DELETE, "/balloon"), None);
        assert_eq!(find(&Method::GET, "/vm"), None);
        assert_eq!(find(&Method::GET, "//"), None.or(find(&Method::GET, "/")));
    }

    #[test]
    fn a_slash_at_the_end_means_nothing() {
        assert_eq!(find(&Method::GET, "/balloon/"), find(&Method::GET, "/balloon"));
    }
}
