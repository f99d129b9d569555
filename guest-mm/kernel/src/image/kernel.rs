//! The kernel as a whole: memory, drivers, the agent, and the loop that serves them.
//!
//! Run to completion: interrupts only leave a mark, everything happens in
//! [`Kernel::serve`], and a scenario that takes long calls it in between.

use core::fmt;

use guest_kernel::protocol::{Event, LineReader, MAX_LINE_BYTES, Request};
use guest_kernel::scenario::{self, Call};
use guest_mm::balloon::Wake;
use guest_mm::console::{AgentState, ConsoleDriver};
use guest_mm::entropy::EntropyDriver;
use guest_mm::hotplug::HotplugDriver;
use guest_mm::memory::Memory;
use guest_mm::mm::Mm;
use guest_mm::store::PfnStore;

use super::devices::{Causes, Served};
use super::log::error;
use super::platform::Machine;
use super::sentinel::Sentinels;
use super::serial::Serial;
use super::shared_balloon::SharedBalloon;
use super::smp::idle;
use super::window::Window;
use super::{irq, power};

/// Longest line of scenario output; the rest is cut off.
const MAX_TEXT_BYTES: usize = 512;
/// Bytes towards the agent that may wait for room in the port.
const OUT_BYTES: usize = 2 * MAX_LINE_BYTES;
/// Bytes taken from the port at once.
const RECEIVE_BYTES: usize = 256;

/// Where a scenario's output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    /// To the agent, as part of this request.
    Agent(u64),
    /// To the serial console: a scenario from the command line.
    Serial,
}

/// A request that waits for the main loop.
struct Pending {
    line: [u8; MAX_LINE_BYTES],
    len: usize,
}

/// Bytes on their way to the agent.
struct Out {
    bytes: [u8; OUT_BYTES],
    len: usize,
}

/// The kernel.
pub(super) struct Kernel<'m, S> {
    /// All of memory.
    pub(super) memory: &'m Memory<Machine>,
    /// What the balloon holds.
    pub(super) store: &'m S,
    /// The memory manager over it.
    pub(super) mm: &'m Mm<'m, Machine>,
    /// Pages that must never change.
    pub(super) sentinels: Sentinels,
    /// The balloon's driver.
    pub(super) balloon: &'m SharedBalloon<'m, S>,
    /// The console's driver.
    pub(super) console: Option<Served<ConsoleDriver<Window>>>,
    /// The entropy source's driver.
    pub(super) entropy: Option<Served<EntropyDriver<Window>>>,
    /// The memory device's driver.
    pub(super) hotplug: Option<Served<HotplugDriver<'m, 'm, Machine, Window>>>,
    reader: LineReader,
    pending: Pending,
    out: Out,
    announced: bool,
    destination: Option<Destination>,
    bad_lines: u64,
}

impl<'m, S: PfnStore> Kernel<'m, S> {
    /// The kernel without any device.
    pub(super) fn new(
        mm: &'m Mm<'m, Machine>,
        store: &'m S,
        balloon: &'m SharedBalloon<'m, S>,
    ) -> Self {
        let memory = mm.memory();
        Self {
            memory,
            mm,
            store,
            sentinels: Sentinels::place(memory),
            balloon,
            console: None,
            entropy: None,
            hotplug: None,
            reader: LineReader::new(),
            pending: Pending { line: [0; MAX_LINE_BYTES], len: 0 },
            out: Out { bytes: [0; OUT_BYTES], len: 0 },
            announced: false,
            destination: None,
            bad_lines: 0,
        }
    }

    /// Serves every device once; returns when it wants to be called again.
    pub(super) fn serve(&mut self) -> Wake {
        irq::take_work();
        let mut wake = self.balloon.serve(self.mm).earlier(self.serve_hotplug());
        self.serve_console();
        if let Some(entropy) = &mut self.entropy
            && entropy.fired()
        {
            entropy.driver.interrupt();
        }
        // The reclaim thread: a piece of its work whenever nobody else has any.
        if self.mm.kswapd_poll() {
            wake = Wake::Now;
        }
        // The compaction thread, likewise: after reclaim, which makes the room that it needs.
        if self.mm.kcompactd_poll() {
            wake = Wake::Now;
        }
        if wake != Wake::Now {
            // About to sleep: what waits for readers need not wait for the next writer too.
            self.mm.base().poll_rcu();
        }
        wake
    }

    /// Serves the memory device.
    fn serve_hotplug(&mut self) -> Wake {
        let Some(hotplug) = &mut self.hotplug else { return Wake::OnInterrupt };
        if hotplug.fired() {
            hotplug.driver.interrupt();
        }
        hotplug.driver.poll()
    }

    /// Serves the console; one that fails is given up.
    fn serve_console(&mut self) {
        let Some(console) = &mut self.console else { return };
        if console.fired() {
            console.driver.interrupt();
        }
        if let Err(error) = console.driver.poll() {
            error!("console: {}", Causes(&error));
            self.give_console_up();
            return;
        }
        match console.driver.agent() {
            AgentState::Open => {}
            AgentState::Absent | AgentState::Waiting | AgentState::Closed => {
                // Nobody listens: what was said so far is not kept for the next listener, who gets a new `ready`.
                self.announced = false;
                self.out.len = 0;
                return;
            }
        }
        if !self.announced {
            self.announced = true;
            let free_pages = self.memory.free_pages().get();
            self.queue(&Event::Ready { free_pages, scenarios: scenario::NAMES });
        }
        self.flush();
        self.receive();
    }

    /// Resets a failed console and takes its memory back.
    fn give_console_up(&mut self) {
        if let Some(console) = self.console.take() {
            // A device stuck in reset may still write to the pages: they stay lent.
            let _stuck = console.driver.shut_down(self.memory);
        }
    }

    /// Appends an event to what is on its way; one that does not fit is dropped.
    fn queue(&mut self, event: &Event<'_>) -> bool {
        let Some(room) = self.out.bytes.get_mut(self.out.len..) else { return false };
        match event.encode(room) {
            Some(len) => self.out.len += len,
            None => return false,
        }
        true
    }

    /// Gives the port as much as it takes.
    fn flush(&mut self) {
        let Some(console) = &mut self.console else { return };
        let waiting = self.out.bytes.get(..self.out.len).unwrap_or(&[]);
        if waiting.is_empty() {
            return;
        }
        // A failed console is seen by the next poll.
        let sent = console.driver.send(waiting).unwrap_or(0);
        self.out.bytes.copy_within(sent..self.out.len, 0);
        self.out.len -= sent;
    }

    /// Takes bytes from the port. Those beyond a request that waits stay there: the host is not read faster than it is
    /// served. While a scenario runs they are read, so that `poweroff` is heard.
    fn receive(&mut self) {
        while self.pending.len == 0 {
            let Some(console) = &mut self.console else { return };
            let mut bytes = [0; RECEIVE_BYTES];
            let count = console.driver.receive(&mut bytes).unwrap_or(0);
            if count == 0 {
                return;
            }
            for byte in bytes.iter().take(count) {
                self.take_byte(*byte);
            }
        }
    }

    fn take_byte(&mut self, byte: u8) {
        let Some(line) = self.reader.push(byte) else { return };
        let Some(request) = Request::parse(line) else {
            self.bad_lines += 1;
            return;
        };
        if request.exec == "poweroff" && request.args() == Some(&[]) {
            power::off();
        }
        let id = request.id;
        if self.destination.is_some() || self.pending.len != 0 {
            // The host promised one at a time.
            let text = "another scenario is running";
            self.queue(&Event::Line { id, text });
            self.queue(&Event::Exit { id, code: scenario::FAILURE });
            return;
        }
        if let Some(slot) = self.pending.line.get_mut(..line.len()) {
            slot.copy_from_slice(line);
            self.pending.len = line.len();
        }
    }

    /// Serves for ever.
    pub(super) fn run(&mut self) -> ! {
        loop {
            let wake = self.serve();
            if self.pending.len != 0 {
                self.run_pending();
                continue;
            }
            idle(wake);
        }
    }

    /// Runs the request that waits.
    fn run_pending(&mut self) {
        let line = self.pending.line;
        let len = core::mem::take(&mut self.pending.len);
        let Some(request) = line.get(..len).and_then(Request::parse) else { return };
        let Some(args) = request.args() else {
            self.answer(request.id, Err(scenario::BadCall::Usage("at most 16 arguments")));
            return;
        };
        let call = Call::parse(request.exec, args);
        self.answer(request.id, call);
    }

    /// Runs a call for the agent, or says what is wrong with it.
    fn answer(&mut self, id: u64, call: Result<Call, scenario::BadCall>) {
        self.destination = Some(Destination::Agent(id));
        let code = match call {
            Ok(call) => self.execute(call),
            Err(error) => {
                self.print(format_args!("{error}"));
                error.code()
            }
        };
        self.send_event(&Event::Exit { id, code });
        self.destination = None;
    }

    /// Runs a scenario of the command line, `NAME[,ARG]…`, its output on the serial console.
    pub(super) fn run_from_cmdline(&mut self, words: &str) {
        self.destination = Some(Destination::Serial);
        let mut args = [""; 8];
        let mut count = 0;
        let (name, rest) = words.split_once(',').unwrap_or((words, ""));
        for arg in rest.split(',').filter(|arg| !arg.is_empty()).take(args.len()) {
            if let Some(slot) = args.get_mut(count) {
                *slot = arg;
                count += 1;
            }
        }
        let code = match Call::parse(name, args.get(..count).unwrap_or(&[])) {
            Ok(call) => self.execute(call),
            Err(error) => {
                self.print(format_args!("{error}"));
                error.code()
            }
        };
        self.print(format_args!("{words}: exit {code}"));
        self.destination = None;
    }

    /// Prints a line of a scenario's output.
    pub(super) fn print(&mut self, message: fmt::Arguments<'_>) {
        match self.destination {
            None => {}
            Some(Destination::Serial) => {
                // Writing to the serial port cannot fail.
                _ = fmt::Write::write_fmt(&mut Serial, format_args!("{message}\n"));
            }
            Some(Destination::Agent(id)) => {
                let mut text = Text { bytes: [0; MAX_TEXT_BYTES], len: 0 };
                // Cut off what does not fit.
                _ = fmt::Write::write_fmt(&mut text, message);
                let text = text.bytes.get(..text.len).unwrap_or(&[]);
                let text = core::str::from_utf8(text).unwrap_or("(not text)");
                self.send_event(&Event::Line { id, text });
            }
        }
    }

    /// Queues an event, serving until there is room; a listener that goes away loses it.
    fn send_event(&mut self, event: &Event<'_>) {
        while !self.queue(event) {
            let wake = self.serve();
            if self.console.is_none() || self.out.len == 0 {
                return;
            }
            idle(wake);
        }
        self.flush();
    }
}

/// Text in place, cut off at its capacity.
struct Text {
    bytes: [u8; MAX_TEXT_BYTES],
    len: usize,
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let end = self.len + character.len_utf8();
            let slot = self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?;
            character.encode_utf8(slot);
            self.len = end;
        }
        Ok(())
    }
}
