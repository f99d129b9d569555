//! One handler a route: decode, ask the event loop, encode.

use std::rc::Rc;
use std::time::Duration;

use abi::{PAGE_SIZE, PageCount};
use aerostat_api as api;
use hyper::StatusCode;
use hyper::body::Bytes;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::answer::{self, Answer, Refusal};
use super::router::Route;
use super::server::Control;
use super::{Limits, configure, convert};
use crate::vm::handle::{Metric, Reply, VmError, VmRequest};

/// Longest scenario name and arguments together, in bytes: the agent's line holds 4096 with its own words.
const EXEC_BYTES: usize = 3 << 10;

/// How much longer than other requests a start may take.
const START_TIME: Duration = Duration::from_secs(60);

/// A request whose head and body have been read.
pub(super) struct Call {
    pub(super) route: Route,
    /// What the path names, where its route has a name in it.
    pub(super) name: String,
    pub(super) query: Option<String>,
    pub(super) body: Bytes,
    pub(super) is_http10: bool,
}

/// Serves one request.
pub(super) async fn serve(control: &Rc<Control>, call: Call) -> Result<Answer, Refusal> {
    let takes_query = matches!(call.route, Route::Operation | Route::HotplugOperation);
    if let (Some(query), false) = (&call.query, takes_query) {
        return Err(Refusal::bad_request(format!("No query is allowed here: {query:?}")));
    }
    match call.route {
        Route::Instance => Ok(ok(&convert::instance(control.ask(VmRequest::Info).await?))),
        Route::Version => Ok(ok(&convert::version())),
        Route::VmState => Ok(ok(&convert::vm_state(&control.ask(VmRequest::Info).await?))),
        Route::SetRunState => set_run_state(control, &call.body).await,
        Route::VmConfig => Ok(ok(&control.ask(VmRequest::Configuration).await?)),
        Route::VmStatus => Ok(ok(&convert::vm_status(control.ask(VmRequest::Info).await?))),
        Route::Stop => stop(control, &call.body).await,
        Route::MachineConfig => {
            Ok(ok(&control.ask(VmRequest::Configuration).await?.machine_config))
        }
        Route::BalloonConfig => {
            let configuration = control.ask(VmRequest::Configuration).await?;
            Ok(ok(&configuration.balloon.ok_or(VmError::NoBalloon)?))
        }
        Route::UpdateBalloon => update_balloon(control, &call.body).await,
        Route::BalloonStatus => balloon_status(control).await,
        Route::Operation => operation(control, call.query.as_deref()).await,
        Route::BeginOperation => begin_operation(control, &call.body).await,
        Route::BalloonExtra(extra) => {
            Err(configure::balloon_extra(control, extra, &call.body).await)
        }
        Route::Hotplug => Ok(ok(&convert::memory_hotplug(&control.ask(VmRequest::Hotplug).await?))),
        Route::UpdateHotplug => update_hotplug(control, &call.body).await,
        Route::HotplugStatus => hotplug_status(control).await,
        Route::HotplugOperation => hotplug_operation(control, call.query.as_deref()).await,
        Route::BeginHotplugOperation => begin_hotplug(control, &call.body).await,
        Route::Scenarios => {
            let scenarios = control.ask(VmRequest::Scenarios).await?;
            Ok(ok(&api::Scenarios { scenarios }))
        }
        Route::Exec => exec(control, &call).await,
        Route::Action => action(control, &call.body).await,
        Route::Metrics => metrics(control).await,
        Route::Configure(section) => configure::change(control, section, &call).await,
        Route::UpdateDrive => configure::update_drive(control, &call).await,
        Route::Unsupported(what) => {
            Err(Refusal::bad_request(format!("{what} not supported by aerostat.")))
        }
    }
}

impl Control {
    /// Asks the event loop and waits for its answer, which does not depend on the guest.
    pub(super) async fn ask<T>(
        &self,
        request: impl FnOnce(Reply<T>) -> VmRequest,
    ) -> Result<T, Refusal> {
        self.ask_for(Duration::ZERO, request).await
    }

    /// Asks the event loop for something that may take `extra` time.
    pub(super) async fn ask_for<T>(
        &self,
        extra: Duration,
        request: impl FnOnce(Reply<T>) -> VmRequest,
    ) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.vm.post(request(reply))?;
        let patience = self.limits.reply_time.saturating_add(extra);
        match timeout(patience, answer).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(_dropped)) => Err(VmError::Gone.into()),
            Err(_elapsed) => Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("The event loop did not answer within {patience:?}"),
            )),
        }
    }
}

async fn set_run_state(control: &Control, body: &[u8]) -> Result<Answer, Refusal> {
    let update: api::VmUpdate = decode(body)?;
    control
        .ask(|reply| match update.state {
            api::RunState::Paused => VmRequest::Pause(reply),
            api::RunState::Resumed => VmRequest::Resume(reply),
        })
        .await?;
    Ok(answer::no_content())
}

async fn stop(control: &Control, body: &[u8]) -> Result<Answer, Refusal> {
    let request: api::StopRequest = decode(body)?;
    if request.timeout_ms > api::StopRequest::MAX_TIMEOUT_MS {
        return Err(Refusal::bad_request(format!(
            "timeout_ms is {}; allowed: 0 to {}",
            request.timeout_ms,
            api::StopRequest::MAX_TIMEOUT_MS
        )));
    }
    let grace = Duration::from_millis(request.timeout_ms);
    let by_guest =
        control.ask_for(grace, |reply| VmRequest::Stop { timeout: grace, reply }).await?;
    Ok(ok(&api::StopOutcome { by_guest }))
}

async fn update_balloon(control: &Control, body: &[u8]) -> Result<Answer, Refusal> {
    let update: api::BalloonUpdate = decode(body)?;
    // 32 bits of MiB are 52 bits of bytes.
    set_target(control, u64::from(update.amount_mib) << 20, None).await?;
    Ok(answer::no_content())
}

async fn begin_operation(control: &Control, body: &[u8]) -> Result<Answer, Refusal> {
    let request: api::OperationRequest = decode(body)?;
    let deadline = request.timeout_ms.map(Duration::from_millis);
    set_target(control, request.target_bytes, deadline).await
}

async fn set_target(
    control: &Control,
    target_bytes: u64,
    deadline: Option<Duration>,
) -> Result<Answer, Refusal> {
    let target = pages(target_bytes)?;
    let status =
        control.ask(|reply| VmRequest::SetBalloonTarget { target, deadline, reply }).await?;
    Ok(ok(&convert::operation(status)))
}

/// `target_bytes` of a request as pages.
fn pages(target_bytes: u64) -> Result<PageCount, Refusal> {
    PageCount::from_bytes_exact(target_bytes).ok_or_else(|| {
        let error = match api::Size::from_bytes(target_bytes).whole_pages() {
            Err(error) => error.to_string(),
            Ok(_) => format!("{target_bytes} B is more than a guest can have"),
        };
        Refusal::bad_request(format!("target_bytes: {error}"))
    })
}

async fn update_hotplug(control: &Control, body: &[u8]) -> Result<Answer, Refusal> {
    let update: api::MemoryHotplugSizeUpdate = decode(body)?;
    // One that does not fit is above every region, and refused as such.
    let size = PageCount::new(update.requested_size_mib.saturating_mul((1 << 20) / PAGE_SIZE));
    control.ask(|reply| VmRequest::RequestHotplug { size, deadline: None, reply }).await?;
    Ok(answer::no_content())
}

async fn begin_hotplug(control: &Control, body: &[u8]) -> Result<Answer, Refusal> {
    let request: api::OperationRequest = decode(body)?;
    let deadline = request.timeout_ms.map(Duration::from_millis);
    let size = pages(request.target_bytes)?;
    let status = control.ask(|reply| VmRequest::RequestHotplug { size, deadline, reply }).await?;
    Ok(ok(&convert::hotplug_operation(status)))
}

async fn hotplug_status(control: &Control) -> Result<Answer, Refusal> {
    let hotplug = control.ask(VmRequest::Hotplug).await?;
    let operation = control.ask(|reply| VmRequest::HotplugOperation { id: None, reply }).await?;
    Ok(ok(&convert::hotplug_status(hotplug, operation)))
}

async fn hotplug_operation(control: &Control, query: Option<&str>) -> Result<Answer, Refusal> {
    let id = query.map(operation_id).transpose()?;
    let status = control.ask(|reply| VmRequest::HotplugOperation { id, reply }).await?;
    told(status.map(convert::hotplug_operation), id)
}

async fn balloon_status(control: &Control) -> Result<Answer, Refusal> {
    let balloon = control.ask(VmRequest::Balloon).await?;
    let operation = control.ask(|reply| VmRequest::Operation { id: None, reply }).await?;
    Ok(ok(&convert::balloon_status(balloon, operation)))
}

async fn operation(control: &Control, query: Option<&str>) -> Result<Answer, Refusal> {
    let id = query.map(operation_id).transpose()?;
    let status = control.ask(|reply| VmRequest::Operation { id, reply }).await?;
    told(status.map(convert::operation), id)
}

/// An operation, or that there is none.
fn told(operation: Option<api::Operation>, id: Option<u64>) -> Result<Answer, Refusal> {
    match (operation, id) {
        (Some(operation), _) => Ok(ok(&operation)),
        (None, None) => Ok(answer::no_content()),
        (None, Some(id)) => Err(Refusal::new(
            StatusCode::NOT_FOUND,
            format!("Operation {id} never was, or is too long ago"),
        )),
    }
}

fn operation_id(query: &str) -> Result<u64, Refusal> {
    query.strip_prefix("id=").and_then(|id| id.parse().ok()).ok_or_else(|| {
        Refusal::bad_request(format!("The query {query:?} is not understood; allowed: id=NUMBER"))
    })
}

async fn exec(control: &Control, call: &Call) -> Result<Answer, Refusal> {
    let request: api::ExecRequest = decode(&call.body)?;
    let bytes =
        request.args.iter().map(|arg| arg.len() + 3).sum::<usize>() + request.scenario.len();
    if bytes > EXEC_BYTES {
        let message = format!("Scenario and arguments are {bytes} B; allowed: {EXEC_BYTES}");
        return Err(Refusal::bad_request(message));
    }
    if call.is_http10 {
        return Err(Refusal::bad_request(
            "The output of a scenario is a stream and needs HTTP/1.1",
        ));
    }
    let (events, output) = mpsc::channel(Limits::EXEC_BACKLOG);
    let api::ExecRequest { scenario, args } = request;
    control.ask(|reply| VmRequest::Exec { scenario, args, reply, events }).await?;
    Ok(answer::exec_stream(output))
}

async fn action(control: &Control, body: &[u8]) -> Result<Answer, Refusal> {
    let action: api::Action = decode(body)?;
    match action.action_type {
        api::ActionType::InstanceStart => control.ask_for(START_TIME, VmRequest::Start).await?,
        api::ActionType::FlushMetrics => control.ask(VmRequest::FlushMetrics).await?,
        api::ActionType::SendCtrlAltDel => control.ask(VmRequest::PressPowerButton).await?,
    }
    Ok(answer::no_content())
}

async fn metrics(control: &Control) -> Result<Answer, Refusal> {
    let mut metrics = control.ask(VmRequest::Metrics).await?;
    metrics.extend(control.counters.metrics());
    Ok(answer::text("text/plain; version=0.0.4", prometheus(metrics)))
}

/// Prometheus' text format: the samples of a name together, under one HELP and TYPE.
fn prometheus(mut metrics: Vec<Metric>) -> String {
    use std::fmt::Write as _;
    metrics.sort_by(|a, b| (a.name, &a.labels).cmp(&(b.name, &b.labels)));
    let mut text = String::new();
    let mut name = "";
    for metric in &metrics {
        // Writing to a String cannot fail.
        if metric.name != name {
            name = metric.name;
            let kind = if metric.is_counter { "counter" } else { "gauge" };
            let help = metric.help.replace('\\', "\\\\").replace('\n', "\\n");
            writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
        }
        writeln!(text, "{} {}", metric.full_name(), metric.value).ok();
    }
    text
}

/// Decodes a body: an object, for serde would take an array of the fields' values for one too.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let refused = |reason: &dyn std::fmt::Display| {
        Refusal::bad_request(format!(
            "An error occurred when deserializing the json body of a request: {reason}."
        ))
    };
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(refused(&"invalid type: sequence, expected an object"));
    }
    serde_json::from_slice(body).map_err(|error| refused(&error))
}

fn ok(value: &impl serde::Serialize) -> Answer {
    answer::json(StatusCode::OK, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &'static str, labels: &str, value: f64) -> Metric {
        Metric { name, labels: labels.into(), help: "Help", is_counter: true, value }
    }

    #[test]
    fn samples_of_one_name_stand_together_under_one_header() {
        let text = prometheus(vec![
            sample("b_total", "", 2.0),
            sample("a_total", "x=\"2\"", 0.5),
            sample("b_total", "y=\"1\"", 3.0),
            sample("a_total", "x=\"1\"", 1e18),
        ]);
        let expected = "# HELP a_total Help\n# TYPE a_total counter\n\
            a_total{x=\"1\"} 1000000000000000000\na_total{x=\"2\"} 0.5\n\
            # HELP b_total Help\n# TYPE b_total counter\nb_total 2\nb_total{y=\"1\"} 3\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_operation_is_asked_for_by_a_number_only() {
        assert_eq!(operation_id("id=7"), Ok(7));
        for query in ["", "id=", "id=-1", "id=x", "i=7", "id=18446744073709551616"] {
            assert!(operation_id(query).is_err(), "{query}");
        }
    }
}
