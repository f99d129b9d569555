//! `aerostat run` on a terminal: raw while the guest has it, and given back whatever ends the VM.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use system_tests::binary::aerostat;
use system_tests::kvm::kvm_or_skip;
use system_tests::payload::Payload;
use system_tests::vm::wait_for;

/// A VM in the foreground of a terminal of its own, under a shell that outlives it: the death of a
/// session's leader would reset the terminal whatever aerostat did.
struct Session {
    /// The terminal's other end.
    master: File,
    /// The terminal, to look at its settings.
    terminal: File,
    before: libc::termios,
    shell: Child,
    /// What came out of the terminal.
    screen: Arc<Mutex<Vec<u8>>>,
    _dir: tempfile::TempDir,
}

impl Session {
    /// Runs a guest that echoes what is typed, and powers off after a `q`.
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more options of `aerostat run`.
    fn start_with(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let kernel = dir.path().join("echo.elf");
        let payload = Payload::new().print("ready>").echo_until_q().power_off();
        std::fs::write(&kernel, payload.elf()).expect("the kernel is written");
        let (master, terminal) = open_pty();
        let before = settings(&terminal);
        let run = aerostat();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", r#""$@"; echo "ended with $?"; read line"#, "sh"])
            .arg(run.get_program())
            .args(run.get_args())
            .args([OsStr::new("run"), OsStr::new("--memory"), OsStr::new("8M")])
            .args([OsStr::new("--kernel"), kernel.as_os_str(), OsStr::new("--api-sock")])
            .arg(dir.path().join("vm.sock"))
            .args(options)
            .stdin(Stdio::from(terminal.try_clone().expect("dup")))
            .stdout(Stdio::from(terminal.try_clone().expect("dup")))
            .stderr(Stdio::from(terminal.try_clone().expect("dup")));
        // SAFETY: `own_terminal` makes async-signal-safe calls only, as the child of a fork must.
        unsafe { shell.pre_exec(own_terminal) };
        let shell = shell.spawn().expect("the shell starts");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let session = Self { master, terminal, before, shell, screen, _dir: dir };
        session.read_in_background();
        session.wait_for_text("ready>");
        session
    }

    fn read_in_background(&self) {
        let mut master = self.master.try_clone().expect("dup");
        let screen = self.screen.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 256];
            // Ends with EIO when nobody has the terminal open any more.
            while let Ok(read @ 1..) = master.read(&mut bytes) {
                screen.lock().expect("no panic").extend_from_slice(&bytes[..read]);
            }
        });
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("no panic")).into_owned()
    }

    fn wait_for_text(&self, what: &str) {
        let mut seen = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for(what, || {
                seen = self.text();
                seen.contains(what).then_some(())
            });
        }));
        assert!(found.is_ok(), "no {what:?} in {seen:?}");
    }

    fn type_keys(&self, keys: &[u8]) {
        (&self.master).write_all(keys).expect("the terminal takes keys");
    }

    fn is_raw(&self) -> bool {
        settings(&self.terminal).c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }

    /// Waits for the VM's end; the terminal must be as it was before.
    fn ended_with(mut self, code: u32) {
        self.wait_for_text(&format!("ended with {code}"));
        let now = settings(&self.terminal);
        let flags = |t: &libc::termios| (t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag, t.c_cc);
        assert_eq!(flags(&now), flags(&self.before), "the terminal was not restored");
        self.type_keys(b"\n");
        self.shell.wait().expect("the shell ends");
    }

    /// Sends a signal to the VMM, the shell's only child.
    fn signal(&self, signal: libc::c_int) {
        let children = format!("/proc/{0}/task/{0}/children", self.shell.id());
        let children = std::fs::read_to_string(children).expect("the shell's children");
        let pid: libc::pid_t = children.trim().parse().expect("one child");
        // SAFETY: no memory argument; the child is alive, so its number is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }
}

fn open_pty() -> (File, File) {
    let (mut master, mut terminal) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: the two descriptors are valid for writes; name, settings and size are not asked for.
    let opened =
        unsafe { libc::openpty(&mut master, &mut terminal, null, null.cast(), null.cast()) };
    assert_eq!(opened, 0, "openpty: {}", std::io::Error::last_os_error());
    // SAFETY: opened just now, owned by nobody else.
    let own = |fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    (own(master), own(terminal))
}

/// A new session with standard input as its terminal.
fn own_terminal() -> std::io::Result<()> {
    // SAFETY: no memory argument.
    if unsafe { libc::setsid() } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: no memory argument.
    if unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

fn settings(terminal: &File) -> libc::termios {
    let mut settings = MaybeUninit::uninit();
    // SAFETY: valid for a write of one termios.
    let got = unsafe { libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) };
    assert_eq!(got, 0, "tcgetattr: {}", std::io::Error::last_os_error());
    // SAFETY: tcgetattr has filled it in.
    unsafe { settings.assume_init() }
}

#[test]
fn every_key_goes_to_the_guest_and_a_power_off_restores_the_terminal() {
    if !kvm_or_skip() {
        return;
    }
    let session = Session::start();
    assert!(session.is_raw());
    // Ctrl-C, Ctrl-Z and Ctrl-A reach the guest, whose echo shows them.
    session.type_keys(b"hello\x03\x1a\x01\x01.");
    session.wait_for_text("hello\x03\x1a\x01.");
    session.type_keys(b"q");
    session.ended_with(0);
}

#[test]
fn the_quit_key_ends_the_vm_and_restores_the_terminal() {
    if !kvm_or_skip() {
        return;
    }
    let session = Session::start();
    session.type_keys(b"\x01x");
    session.ended_with(0);
}

#[test]
fn with_the_input_on_hvc0_the_serial_output_is_shown_and_the_quit_key_works() {
    if !kvm_or_skip() {
        return;
    }
    let session = Session::start_with(&["--console", "hvc0"]);
    assert!(session.is_raw());
    // Nobody takes these keys: this guest has no virtio console. A new window size finds nobody either.
    session.type_keys(b"hello");
    session.signal(libc::SIGWINCH);
    session.type_keys(b"\x01x");
    session.ended_with(0);
}

#[test]
fn sigterm_ends_the_vm_and_restores_the_terminal() {
    if !kvm_or_skip() {
        return;
    }
    let session = Session::start();
    assert!(session.is_raw());
    session.signal(libc::SIGTERM);
    session.ended_with(0);
}

#[test]
fn an_abort_of_the_vmm_restores_the_terminal() {
    if !kvm_or_skip() {
        return;
    }
    let session = Session::start();
    assert!(session.is_raw());
    session.signal(libc::SIGABRT);
    session.ended_with(128 + 6);
}
