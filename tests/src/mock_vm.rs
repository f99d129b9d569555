//! An event loop without a VM: it answers the control server's requests from a table.
//!
//! It exists so that server and CLI are tested without KVM. Nothing depends on
//! time: a resize moves by one step whenever somebody asks how it stands.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use abi::PageCount;
use aerostat::control::{ControlServer, ControlSocket, Limits};
use aerostat::serve::{self, Configuration, Failed, Outcome};
use aerostat::vm::config::VmConfig;
use aerostat::vm::handle::{
    BalloonStatus, ExecEvent, HotplugStatus, Metric, OperationState, OperationStatus, Reply,
    VmError, VmHandle, VmInfo, VmRequest, VmState,
};
use aerostat::vm::{Letter, Mailbox};
use aerostat_api as api;
use aerostat_api::Client;
use tokio::sync::mpsc as stream;

/// Guest RAM of the mock.
pub const RAM: PageCount = PageCount::new((512 << 20) / abi::PAGE_SIZE);

/// What the mock's guest does with a new balloon target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Comes nearer by a quarter of the way whenever it is asked, and arrives at the fourth time.
    Follows,
    /// Gives up once the balloon holds this much.
    StallsAt(PageCount),
    /// Never moves: an operation with a deadline times out, one without runs for ever.
    Hangs,
    /// Never moves, and another client takes over.
    LosesToAnother,
    /// The event loop itself hangs: no request is ever answered.
    LoopHangs,
}

/// A control server over a mock VM, in a directory of its own.
pub struct MockVm {
    directory: tempfile::TempDir,
    server: Option<ControlServer>,
    event_loop: Option<JoinHandle<()>>,
    handle: VmHandle,
    /// Requests that change something, as text, oldest first.
    log: Arc<Mutex<Vec<String>>>,
}

impl MockVm {
    /// Serves a VM whose guest behaves like `driver`.
    ///
    /// # Panics
    /// When the system gives no socket, thread or eventfd.
    pub fn start(driver: Driver) -> Self {
        Self::start_with_limits(driver, Limits::default())
    }

    /// Serves a VM with other limits than the default ones.
    ///
    /// # Panics
    /// As [`MockVm::start`].
    pub fn start_with_limits(driver: Driver, limits: Limits) -> Self {
        Self::serve(limits, move |mailbox, log| State::new(driver, log).run(mailbox))
    }

    /// Serves a VM that is to be configured, by what really configures one; `start` makes of its
    /// configuration a running mock, or says why not.
    ///
    /// # Panics
    /// As [`MockVm::start`].
    pub fn unconfigured(
        mut start: impl FnMut(&VmConfig) -> Result<(), String> + Send + 'static,
    ) -> Self {
        Self::serve(Limits::default(), move |mailbox, log| {
            let outcome = serve::configure(
                mailbox,
                Configuration::new("mock"),
                |config, mailbox| match start(&config) {
                    Ok(()) => Ok((config.description, mailbox)),
                    Err(reason) => Err(Failed { reason, mailbox }),
                },
            );
            if let Outcome::Started((description, mailbox)) = outcome.expect("an epoll instance") {
                let description = description.expect("it came in words");
                State { description, ..State::new(Driver::Follows, log) }.run(mailbox);
            }
        })
    }

    fn serve(
        limits: Limits,
        event_loop: impl FnOnce(Mailbox, Arc<Mutex<Vec<String>>>) + Send + 'static,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = ControlSocket::bind(directory.path().join("vm.sock")).expect("a socket");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (sender, receiver) = mpsc::channel();
        let own = Arc::clone(&log);
        let event_loop = thread::spawn(move || {
            // Made here: it blocks signals in the thread that makes it.
            let mailbox = Mailbox::new().expect("a mailbox");
            sender.send(mailbox.handle()).expect("the test waits for it");
            event_loop(mailbox, own);
        });
        let handle = receiver.recv().expect("the mock's handle");
        let server = ControlServer::start_with_limits(socket, handle.clone(), limits)
            .expect("a control server");
        Self { directory, server: Some(server), event_loop: Some(event_loop), handle, log }
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("vm.sock")
    }

    /// A directory that lives as long as the mock.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::new(self.socket())
    }

    /// Requests that changed something, oldest first.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the server but not the event loop.
    pub fn finish_server(&mut self) {
        if let Some(server) = self.server.take() {
            server.finish();
        }
    }

    /// Ends the event loop but not the server, as when a VM ends while clients are served.
    ///
    /// # Panics
    /// If the mock itself panicked.
    pub fn end_event_loop(&mut self) {
        let (reply, _unheard) = tokio::sync::oneshot::channel();
        // An event loop that has ended already has hung up.
        self.handle.post(VmRequest::Stop { timeout: Duration::ZERO, reply }).ok();
        if let Some(event_loop) = self.event_loop.take() {
            event_loop.join().expect("the mock does not panic");
        }
    }
}

impl Drop for MockVm {
    fn drop(&mut self) {
        self.finish_server();
        let (reply, _unheard) = tokio::sync::oneshot::channel();
        self.handle.post(VmRequest::Stop { timeout: Duration::ZERO, reply }).ok();
    }
}

struct State {
    driver: Driver,
    log: Arc<Mutex<Vec<String>>>,
    is_paused: bool,
    balloon: Resizes,
    hotplug: Resizes,
    /// A scenario that never ends, and its output.
    hanging: Option<stream::Sender<ExecEvent>>,
    description: Box<api::VmConfig>,
}

impl State {
    fn new(driver: Driver, log: Arc<Mutex<Vec<String>>>) -> Self {
        let (balloon, hotplug) = (Resizes::default(), Resizes::default());
        let description = Box::new(description());
        Self { driver, log, is_paused: false, balloon, hotplug, hanging: None, description }
    }

    fn run(mut self, mut mailbox: Mailbox) {
        // Requests of a loop that hangs are kept, so that nobody sees their replies dropped.
        let mut unanswered = Vec::new();
        while let Ok(Letter::Request(request)) = mailbox.receive() {
            let is_end = matches!(request, VmRequest::Stop { .. });
            if self.driver == Driver::LoopHangs && !is_end {
                unanswered.push(request);
                continue;
            }
            self.serve(request);
            if is_end {
                break;
            }
        }
    }

    fn note(&self, what: String) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// Answers one request; a requester that is gone is no error.
    fn serve(&mut self, request: VmRequest) {
        match request {
            VmRequest::Info(reply) => answer(reply, Ok(self.info())),
            VmRequest::Configuration(reply) => {
                let mut description = self.description.clone();
                if let (Some(balloon), Some(last)) =
                    (&mut description.balloon, self.balloon.operations.last())
                {
                    balloon.amount_mib =
                        u32::try_from(last.target.bytes() >> 20).unwrap_or(u32::MAX);
                }
                answer(reply, Ok(description));
            }
            VmRequest::Configure { reply, .. } | VmRequest::Start(reply) => {
                answer(reply, Err(VmError::AlreadyStarted));
            }
            VmRequest::FlushMetrics(reply) if self.description.metrics.is_some() => {
                answer(reply, Ok(()));
            }
            VmRequest::FlushMetrics(reply) => answer(reply, Err(VmError::NoMetricsFile)),
            VmRequest::Pause(reply) => {
                self.note("pause".into());
                self.is_paused = true;
                answer(reply, Ok(()));
            }
            VmRequest::Resume(reply) => {
                self.note("resume".into());
                self.is_paused = false;
                answer(reply, Ok(()));
            }
            VmRequest::SetBalloonTarget { target, deadline, reply } => {
                answer(reply, self.begin(target, deadline));
            }
            VmRequest::Balloon(reply) => answer(reply, Ok(self.balloon())),
            VmRequest::Operation { id, reply } => {
                answer(reply, Ok(self.balloon.look(self.driver, id)));
            }
            VmRequest::RequestHotplug { size, deadline, reply } => {
                answer(reply, self.request_hotplug(size, deadline));
            }
            VmRequest::Hotplug(reply) => {
                let status = self.hotplug_status().ok_or(VmError::NoHotplug);
                answer(reply, status);
            }
            VmRequest::HotplugOperation { reply, .. }
                if self.description.memory_hotplug.is_none() =>
            {
                answer(reply, Err(VmError::NoHotplug));
            }
            VmRequest::HotplugOperation { id, reply } => {
                answer(reply, Ok(self.hotplug.look(self.driver, id)));
            }
            VmRequest::Exec { scenario, args, reply, events } => {
                answer(reply, self.exec(&scenario, &args, events));
            }
            VmRequest::Scenarios(reply) => {
                answer(reply, Ok(vec!["echo".into(), "fail".into(), "hang".into()]));
            }
            VmRequest::PressPowerButton(reply) => {
                self.note("power button".into());
                answer(reply, Ok(()));
            }
            VmRequest::Stop { timeout, reply } => {
                self.note(format!("stop {timeout:?}"));
                answer(reply, Ok(true));
            }
            VmRequest::UpdateDrive { id, reply, .. } => {
                answer(reply, Err(VmError::NoSuchDrive { id, known: String::new() }));
            }
            VmRequest::Metrics(reply) => answer(reply, Ok(self.metrics())),
        }
    }

    fn info(&self) -> VmInfo {
        VmInfo {
            id: "mock".into(),
            state: if self.is_paused { VmState::Paused } else { VmState::Running },
            ram: RAM,
            vcpus: 2,
            backing: "anon",
            kvm: "software",
            first_byte_us: Some(2_500),
            ready_us: Some(19_000),
            kernel: "embedded".into(),
            cmdline: "console=ttyS0".into(),
        }
    }

    fn begin(
        &mut self,
        target: PageCount,
        deadline: Option<Duration>,
    ) -> Result<OperationStatus, VmError> {
        if self.description.balloon.is_none() {
            return Err(VmError::NoBalloon);
        }
        if target > RAM {
            let (target_bytes, ram_bytes) = (target.bytes(), RAM.bytes());
            return Err(VmError::TargetAboveRam { target_bytes, ram_bytes });
        }
        self.note(format!("target {} deadline {deadline:?}", target.bytes()));
        Ok(self.balloon.begin(self.driver, target, deadline))
    }

    /// What the device says to sizes.
    fn request_hotplug(
        &mut self,
        size: PageCount,
        deadline: Option<Duration>,
    ) -> Result<OperationStatus, VmError> {
        let config = self.description.memory_hotplug.ok_or(VmError::NoHotplug)?;
        let (bytes, most) = (size.bytes(), config.total_size_mib << 20);
        if bytes > most || !bytes.is_multiple_of(config.block_size_mib << 20) {
            return Err(VmError::HotplugSize(format!("{bytes} B; allowed: 0 to {most} B")));
        }
        self.note(format!("request {bytes} deadline {deadline:?}"));
        Ok(self.hotplug.begin(self.driver, size, deadline))
    }

    fn hotplug_status(&self) -> Option<HotplugStatus> {
        let config = self.description.memory_hotplug?;
        Some(HotplugStatus {
            addr: 4 << 30,
            total_bytes: config.total_size_mib << 20,
            block_bytes: config.block_size_mib << 20,
            slot_bytes: config.slot_size_mib << 20,
            usable_bytes: 256 << 20,
            plugged: self.hotplug.actual,
            requested: self.hotplug.target(),
            host_resident_bytes: Some(self.hotplug.actual.bytes()),
            truth: "smaps Anonymous + Swap",
            acked_features: (self.driver != Driver::Hangs).then_some(1 << 32 | 2),
            driver_ready: self.driver != Driver::Hangs,
            needs_reset: false,
            last_kick: None,
        })
    }

    fn balloon(&self) -> BalloonStatus {
        let actual = self.balloon.actual;
        BalloonStatus {
            ram: RAM,
            target: self.balloon.target(),
            actual,
            claimed: actual,
            host_resident_bytes: Some(RAM.saturating_sub(actual).bytes()),
            truth: "smaps Anonymous + Swap",
            offered_features: 1 << 32 | 1,
            acked_features: (self.driver != Driver::Hangs).then_some(1 << 32),
            driver_ready: self.driver != Driver::Hangs,
            needs_reset: false,
            last_kick: None,
        }
    }

    fn exec(
        &mut self,
        scenario: &str,
        args: &[String],
        events: stream::Sender<ExecEvent>,
    ) -> Result<(), VmError> {
        if self.hanging.is_some() {
            return Err(VmError::Busy { running: "hang".into() });
        }
        // The channel holds more than any test's output: nothing is lost here.
        let send = |event| events.try_send(event).ok();
        match scenario {
            "echo" => {
                for arg in args {
                    send(ExecEvent::Line(arg.clone()));
                }
                send(ExecEvent::Exit { code: 0, lost: 0 });
            }
            "fail" => {
                send(ExecEvent::Line("about to fail".into()));
                send(ExecEvent::Exit { code: 3, lost: 7 });
            }
            "hang" => {
                send(ExecEvent::Line("hanging".into()));
                self.hanging = Some(events);
            }
            name => {
                let known = "echo, fail, hang".into();
                return Err(VmError::NoSuchScenario { name: name.into(), known });
            }
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
    fn metrics(&self) -> Vec<Metric> {
        vec![Metric {
            name: "aerostat_balloon_actual_bytes",
            labels: "device=\"balloon\"".into(),
            help: "What the driver says the balloon holds",
            is_counter: false,
            value: self.balloon.actual.bytes() as f64,
        }]
    }
}

/// What is resized, and its operations.
#[derive(Default)]
struct Resizes {
    operations: Vec<OperationStatus>,
    actual: PageCount,
}

impl Resizes {
    fn target(&self) -> PageCount {
        self.operations.last().map_or(PageCount::ZERO, |operation| operation.target)
    }

    fn begin(
        &mut self,
        driver: Driver,
        target: PageCount,
        deadline: Option<Duration>,
    ) -> OperationStatus {
        if let Some(last) = self.operations.last_mut().filter(|o| is_running(o)) {
            last.state = OperationState::Superseded;
        }
        let status = OperationStatus {
            id: self.operations.len() as u64 + 1,
            state: OperationState::Running,
            from: self.actual,
            target,
            actual: self.actual,
            ram: RAM,
            elapsed: Duration::ZERO,
            since_progress: Duration::ZERO,
            note: (deadline.is_some() && driver == Driver::Hangs).then_some("driver missing"),
        };
        self.operations.push(status.clone());
        status
    }

    fn look(&mut self, driver: Driver, id: Option<u64>) -> Option<OperationStatus> {
        self.step(driver);
        match id {
            Some(id) => self.operations.iter().find(|operation| operation.id == id).cloned(),
            None => self.operations.last().cloned(),
        }
    }

    /// Lets the latest operation come one step further.
    fn step(&mut self, driver: Driver) {
        let Some(last) = self.operations.last_mut().filter(|o| is_running(o)) else { return };
        last.elapsed += Duration::from_millis(40);
        last.since_progress += Duration::from_millis(40);
        let limit = match driver {
            Driver::Follows => last.target,
            Driver::StallsAt(limit) => last.target.min(limit),
            Driver::LosesToAnother => {
                last.state = OperationState::Superseded;
                return;
            }
            Driver::Hangs | Driver::LoopHangs => {
                if last.note.is_some() {
                    last.state = OperationState::TimedOut;
                }
                return;
            }
        };
        let before = last.actual;
        last.actual = nearer(last.from, last.actual, limit);
        self.actual = last.actual;
        if last.actual == last.target {
            last.state = OperationState::Reached;
        } else if last.actual == before {
            last.state = OperationState::Stalled;
        } else {
            last.since_progress = Duration::ZERO;
        }
    }
}

/// 512 MiB, two vCPUs, a balloon, 1 GiB of hotplug memory.
fn description() -> api::VmConfig {
    api::VmConfig {
        balloon: Some(api::BalloonConfig {
            amount_mib: 0,
            deflate_on_oom: false,
            stats_polling_interval_s: 0,
            free_page_hinting: false,
            free_page_reporting: false,
        }),
        memory_hotplug: Some(api::MemoryHotplugConfig {
            total_size_mib: 1024,
            block_size_mib: 2,
            slot_size_mib: 128,
        }),
        boot_source: Some(api::BootSource {
            kernel_image_path: api::BootSource::EMBEDDED.into(),
            initrd_path: None,
            boot_args: None,
        }),
        machine_config: api::MachineConfig {
            vcpu_count: 2,
            mem_size_mib: RAM.bytes() >> 20,
            ..api::MachineConfig::default()
        },
        ..api::VmConfig::default()
    }
}

/// Answers a requester, who may be gone.
fn answer<T>(reply: Reply<T>, value: Result<T, VmError>) {
    reply.send(value).ok();
}

fn is_running(operation: &OperationStatus) -> bool {
    operation.state == OperationState::Running
}

/// A quarter of the whole way nearer to `limit`, and not beyond it.
fn nearer(from: PageCount, now: PageCount, limit: PageCount) -> PageCount {
    let step = PageCount::new(from.get().abs_diff(limit.get()).div_ceil(4));
    if now < limit {
        now.saturating_add(step).min(limit)
    } else {
        now.saturating_sub(step).max(limit)
    }
}
