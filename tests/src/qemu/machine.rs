//! One QEMU with our guest in it.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::qemu_path;
use crate::agent::Agent;
use crate::binary::aerostat;
use crate::qmp::Qmp;
use crate::vm::{last_words, wait_for};

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's KVM.
    Kvm,
    /// QEMU itself.
    Tcg,
}

/// How a [`QemuGuest`] is started.
#[derive(Debug, Clone)]
pub struct QemuOptions {
    /// What runs it.
    pub accelerator: Accelerator,
    /// MiB of RAM.
    pub memory_mib: u64,
    /// vCPUs.
    pub vcpus: u8,
    /// Whether there are ACPI tables.
    pub acpi: bool,
    /// The guest's ELF, if it is not the embedded one.
    pub kernel: Option<PathBuf>,
    /// Whether every virtio-mmio window is of version 1.
    pub legacy: bool,
    /// Properties of the balloon, as `,name=value…`.
    pub balloon: &'static str,
    /// Properties of the console.
    pub console: &'static str,
    /// Properties of the entropy device.
    pub entropy: &'static str,
    /// More arguments of QEMU.
    pub more: &'static [&'static str],
    /// The guest's command line, beside the devices that QEMU announces.
    pub cmdline: &'static str,
}

impl QemuOptions {
    /// 256 MiB, one vCPU, all three devices as QEMU makes them.
    pub const fn new(accelerator: Accelerator) -> Self {
        Self {
            accelerator,
            memory_mib: 256,
            vcpus: 1,
            acpi: false,
            kernel: None,
            legacy: false,
            balloon: "",
            console: "",
            entropy: "",
            more: &[],
            cmdline: "",
        }
    }
}

/// A QEMU microvm with our guest; killed on drop.
pub struct QemuGuest {
    child: Child,
    qmp: Qmp,
    dir: TempDir,
}

impl QemuGuest {
    /// Starts QEMU and connects to its monitor; the guest may still be booting.
    ///
    /// # Panics
    /// If QEMU does not start; its output is in the message.
    pub fn start(options: &QemuOptions) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let output = fs::File::create(dir.path().join("qemu")).expect("a file in it");
        let mut child = command(options, &dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .spawn()
            .expect("QEMU starts");
        let socket = dir.path().join("qmp");
        let qmp = wait_for("QEMU's monitor", || {
            let ended = child.try_wait().expect("our own child");
            let said = || fs::read_to_string(dir.path().join("qemu")).unwrap_or_default();
            assert!(ended.is_none(), "QEMU ended: {}", said());
            Qmp::connect(&socket).ok()
        });
        Self { child, qmp, dir }
    }

    /// Lets a machine go that was started with `-S`.
    pub fn go(&mut self) {
        self.execute("cont", json!({}));
    }

    /// Connects to the agent port and waits until the guest is ready.
    ///
    /// # Panics
    /// If it does not get ready; the serial console is in the message.
    pub fn agent(&self) -> Agent {
        let agent = Agent::connect(&self.dir.path().join("agent"));
        agent.unwrap_or_else(|error| panic!("no agent: {error}\n{}", self.serial()))
    }

    /// Executes a command that QEMU must not refuse.
    ///
    /// # Panics
    /// If it does, or ends.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let answer = self.qmp.execute(command, arguments).expect("QEMU answers");
        answer.unwrap_or_else(|refused| panic!("{command}: {refused:?}"))
    }

    /// The monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Bytes that the guest has left, as the balloon's device knows.
    pub fn balloon_actual(&mut self) -> u64 {
        self.execute("query-balloon", json!({}))["actual"].as_u64().expect("a number of bytes")
    }

    /// Sets the balloon so that `bytes` of RAM remain, and waits until the device says that they do.
    pub fn leave(&mut self, bytes: u64) {
        self.execute("balloon", json!({ "value": bytes }));
        wait_for("the balloon", || (self.balloon_actual() == bytes).then_some(()));
    }

    /// What the guest's serial console has printed.
    ///
    /// # Panics
    /// If the file is gone.
    pub fn serial(&self) -> String {
        let bytes = fs::read(self.dir.path().join("serial")).expect("the console's output");
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Waits for the SHUTDOWN event, then for QEMU's end; returns the event's data and the exit status.
    ///
    /// # Panics
    /// If the machine does not end.
    pub fn wait_for_end(&mut self) -> (Value, ExitStatus) {
        let event = self.qmp.wait_for_event(|event| event["event"] == "SHUTDOWN");
        let mut event = event.unwrap_or_else(|error| panic!("no end: {error}\n{}", self.serial()));
        let child = &mut self.child;
        let status = wait_for("QEMU to end", || child.try_wait().expect("our own child"));
        (event["data"].take(), status)
    }
}

impl Drop for QemuGuest {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let serial = fs::read(self.dir.path().join("serial")).unwrap_or_default();
            eprintln!("the guest's last words:\n{}", last_words(&serial));
        }
    }
}

/// The guest's ELF as `aerostat guest --write` gives it, written once a process.
fn guest_image() -> &'static (TempDir, PathBuf) {
    static IMAGE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("guest.elf");
        let output = aerostat().args(["guest", "--write"]).arg(&path).output();
        let output = output.expect("the aerostat binary starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (dir, path)
    })
}

fn command(options: &QemuOptions, dir: &TempDir) -> Command {
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut command = Command::new(qemu_path().expect("qemu_or_skip was asked"));
    let acpi = if options.acpi { "on" } else { "off" };
    command.args(["-M", &format!("microvm,acpi={acpi},auto-kernel-cmdline=on"), "-accel"]);
    command.arg(match options.accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    });
    let legacy = if options.legacy { "true" } else { "false" };
    command.args(["-global", &format!("virtio-mmio.force-legacy={legacy}")]);
    command.args(["-m", &options.memory_mib.to_string(), "-smp", &options.vcpus.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-qmp", &format!("unix:{},server=on,wait=off", path("qmp"))]);
    command.args(["-serial", &format!("file:{}", path("serial"))]);
    let agent = format!("socket,id=agent,path={},server=on,wait=off", path("agent"));
    command.args(["-chardev", &agent]);
    command.args(["-device", &format!("virtio-balloon-device,id=balloon{}", options.balloon)]);
    command.args(["-device", &format!("virtio-serial-device,id=console{}", options.console)]);
    command.args(["-device", "virtserialport,chardev=agent,name=org.aerostat.agent"]);
    command.args(["-device", &format!("virtio-rng-device,id=entropy{}", options.entropy)]);
    command.args(options.more).args(["-kernel"]);
    command.arg(options.kernel.as_ref().unwrap_or(&guest_image().1));
    command.args(["-append", options.cmdline]);
    command
}
