//! A stock Linux kernel as the guest of `aerostat run`, commanded over its serial console.
//!
//! The guest is Debian's cloud kernel, untouched, with the initramfs of `resources/linux-guest`, whose init runs shell
//! commands. Linux needs a conforming KVM: in the lab, or on a host whose KVM is hardware.

mod balloon;
mod hotplug;
mod image;

use std::cell::Cell;
use std::io::Write as _;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{ChildStdin, Stdio};
use std::time::Duration;

use aerostat::kvm::KvmKind;

pub use balloon::{BalloonCounters, PageSet};
pub use image::{LinuxImage, images};

use crate::kvm::{kvm_or_skip, say_loudly};
use crate::vm::{TestVm, poll_for};

/// How long a guest may take to boot: in the lab it does so on an emulated CPU's nested paging.
const BOOT_PATIENCE: Duration = Duration::from_secs(150);
/// How long a command in the guest may take.
const COMMAND_PATIENCE: Duration = Duration::from_secs(90);
/// Given to every guest: its console, no messages there but emergencies, and what makes the kernel spend time on nothing.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off";

/// Whether a Linux guest can run here; if not, says so loudly.
///
/// A software KVM is no failure under `KVM_TESTS=required`: the lab runs these tests on a hardware KVM.
///
/// # Panics
/// Where there is no usable `/dev/kvm` and `KVM_TESTS=required` is set.
pub fn linux_or_skip() -> bool {
    if !kvm_or_skip() {
        return false;
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let skip = |why: &str| say_loudly(&format!("SKIPPED {test}: {why}; the lab runs it"));
    match KvmKind::of_this_host() {
        Ok(KvmKind::Hardware) if images().is_empty() => skip("there is no stock Debian kernel"),
        Ok(KvmKind::Hardware) => return true,
        Ok(KvmKind::Software) => skip("a software KVM does not run Linux"),
        Err(error) => skip(&format!("the kind of KVM is unknown: {error}")),
    }
    false
}

/// What a Linux guest is started with.
pub struct LinuxConfig<'a> {
    memory_bytes: u64,
    image: &'a LinuxImage,
    cmdline: String,
    options: Vec<String>,
}

impl<'a> LinuxConfig<'a> {
    /// A guest with the newest stock kernel and `memory_bytes` of RAM.
    ///
    /// # Panics
    /// If there is no stock kernel; [`linux_or_skip`] tells.
    pub fn new(memory_bytes: u64) -> Self {
        let image = images().last().expect("a stock kernel");
        Self { memory_bytes, image, cmdline: CMDLINE.to_owned(), options: Vec::new() }
    }

    /// With another kernel.
    #[must_use]
    pub fn image(mut self, image: &'a LinuxImage) -> Self {
        self.image = image;
        self
    }

    /// With more words on the kernel's command line.
    #[must_use]
    pub fn cmdline(mut self, words: &str) -> Self {
        self.cmdline += " ";
        self.cmdline += words;
        self
    }

    /// With more options of `aerostat run`.
    #[must_use]
    pub fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|&option| option.to_owned()));
        self
    }

    /// Starts the VM and waits until its init takes commands.
    ///
    /// # Panics
    /// If it does not come to that; everything that the guest and the VMM printed is in the message.
    pub fn start(self) -> LinuxGuest {
        let mut guest = self.spawn();
        guest.wait_for_ready(0);
        guest
    }

    /// Starts the VM and waits for nothing: for guests that are not to come up.
    ///
    /// # Panics
    /// If the process cannot be started.
    pub fn spawn(self) -> LinuxGuest {
        let path = |path: &Path| path.to_str().expect("paths of tests are text").to_owned();
        let mut options = self.options;
        options.extend(["--kernel".to_owned(), path(&self.image.kernel)]);
        options.extend(["--initrd".to_owned(), path(&self.image.initrd)]);
        options.extend(["--cmdline".to_owned(), self.cmdline]);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let mut vm = TestVm::spawn(self.memory_bytes, &options, Stdio::piped());
        let keys = vm.take_stdin().expect("it was spawned with a pipe");
        LinuxGuest { vm, keys, commands: Cell::new(0) }
    }
}

/// A running Linux guest; killed on drop. What it shares with every VM it has by [`Deref`].
pub struct LinuxGuest {
    vm: TestVm,
    keys: ChildStdin,
    commands: Cell<u32>,
}

impl LinuxGuest {
    /// Runs one line of shell in the guest: its exit status and what it printed on both streams.
    ///
    /// # Panics
    /// If no answer comes, with everything that was printed.
    pub fn run(&self, command: &str) -> (i32, String) {
        let start = self.console_from(0).0;
        let number = self.send(command);
        let answer = self.wait_for_console(start, COMMAND_PATIENCE, |text| answer(text, number));
        answer.unwrap_or_else(|| panic!("no answer to {command:?}:\n{}", self.output()))
    }

    /// Runs one line of shell that must succeed and returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn ok(&self, command: &str) -> String {
        let (status, output) = self.run(command);
        assert_eq!(status, 0, "{command:?} failed: {output}");
        output
    }

    /// Runs a shell command that prints one number.
    ///
    /// # Panics
    /// If it fails or prints something else.
    pub fn number(&self, command: &str) -> u64 {
        let output = self.ok(command);
        output.trim().parse().unwrap_or_else(|e| panic!("{command:?} printed {output:?}: {e}"))
    }

    /// Sends one line of shell and waits for nothing: for commands that end the guest. Returns the command's number.
    ///
    /// # Panics
    /// If the VMM has closed its end.
    pub fn send(&self, command: &str) -> u32 {
        assert!(!command.contains('\n'), "one line: {command:?}");
        let number = self.commands.get() + 1;
        self.commands.set(number);
        let sent = writeln!(&self.keys, "{number} {command}");
        sent.unwrap_or_else(|e| panic!("sending {command:?}: {e}\n{}", self.output()));
        number
    }

    /// Ends the guest by its own `poweroff` and returns the VMM's exit code.
    ///
    /// # Panics
    /// If the VM does not end.
    pub fn power_off(&mut self) -> Option<i32> {
        self.send("poweroff -f");
        self.wait_for_end()
    }

    /// Waits for the VMM's end and returns its exit code.
    ///
    /// # Panics
    /// If it does not end, with everything that was printed.
    pub fn wait_for_end(&mut self) -> Option<i32> {
        let ended = poll_for(COMMAND_PATIENCE, || self.vm.try_wait());
        ended.unwrap_or_else(|| panic!("the VM does not end:\n{}", self.output())).code()
    }

    /// How many bytes the serial console has printed: a place to wait from.
    pub fn console_len(&self) -> usize {
        self.console_from(0).0
    }

    /// Waits until init takes commands, after the first `start` bytes of the console: after a reboot, for instance.
    ///
    /// # Panics
    /// If it does not come to that.
    pub fn wait_for_ready(&mut self, start: usize) {
        // The console of a VM that has ended says no more: look at it after the process.
        let ready = poll_for(BOOT_PATIENCE, || {
            let ended = self.vm.try_wait();
            let ready = self.console_from(start).1.contains("\n@ready ");
            (ready || ended.is_some()).then_some(ready)
        });
        assert_eq!(ready, Some(true), "Linux did not get to its init:\n{}", self.output());
    }

    fn wait_for_console<T>(
        &self,
        start: usize,
        patience: Duration,
        mut probe: impl FnMut(&str) -> Option<T>,
    ) -> Option<T> {
        let mut seen = 0;
        poll_for(patience, || {
            let (length, text) = self.console_from(start);
            if length == std::mem::replace(&mut seen, length) {
                return None;
            }
            probe(&text)
        })
    }
}

impl Deref for LinuxGuest {
    type Target = TestVm;

    fn deref(&self) -> &TestVm {
        &self.vm
    }
}

impl DerefMut for LinuxGuest {
    fn deref_mut(&mut self) -> &mut TestVm {
        &mut self.vm
    }
}

/// The answer to command `number` in a console's text, once it is complete.
fn answer(console: &str, number: u32) -> Option<(i32, String)> {
    let console = console.replace('\r', "");
    let (_, rest) = console.split_once(&format!("\n@{number} begin\n"))?;
    let (output, rest) = rest.rsplit_once(&format!("\n@{number} exit "))?;
    let (status, _) = rest.split_once('\n')?;
    Some((status.parse().ok()?, output.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_what_stands_between_its_two_lines() {
        let console = "boot\r\n\n@1 begin\none\r\ntwo\n@1 exit 0\n\n@2 begin\n\n@2 exit 7\n";
        assert_eq!(answer(console, 1), Some((0, "one\ntwo".to_owned())));
        assert_eq!(answer(console, 2), Some((7, String::new())));
        assert_eq!(answer(console, 3), None);
    }

    #[test]
    fn an_answer_that_is_not_complete_is_none() {
        assert_eq!(answer("\n@1 begin\nhalf", 1), None);
        assert_eq!(answer("\n@1 begin\nwhole\n@1 exit 1", 1), None);
    }
}
