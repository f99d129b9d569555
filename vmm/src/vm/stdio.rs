//! The event loop's side of the guest's consoles: the serial port, and `hvc0` if it has the input.
//!
//! One of them gets the input. What both write goes to the same output, each
//! through a bounded queue of its own, so that neither can crowd the other out.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use devices::console::Console;
use vmm_sys_util::eventfd::EventFd;

use super::config::{GuestConsole, SerialPort};
use super::event_loop::Token;
use super::hvc::HvcOutput;
use super::poll::Poller;
use super::signals::ResizeSignal;
use super::window::Window;
use crate::serial::terminal::{self, RawTerminal};
use crate::serial::{Com1, Input, InputEvent, InputSink, Output, QUIT_HINT};

/// How long a stuck reader of the output can hold up the VM's end.
const FINISH_TIMEOUT_MS: i32 = 500;
/// Rounds of up to 64 KiB from `hvc0` at the VM's end: more than an honest driver has under way, and an end for others.
const FINISH_ROUNDS: usize = 4;

/// What the guest's consoles are connected to.
pub(super) struct Stdio {
    com1: Arc<Com1>,
    /// Written by the UART when the guest has read all input.
    drained: Arc<EventFd>,
    console: Arc<Window<Console>>,
    /// `None`: the serial port has the input, and nothing is connected to `hvc0`.
    hvc: Option<HvcOutput>,
    output: Output,
    /// Whether the poller watches the output for room.
    output_watched: bool,
    input: Option<Input>,
    /// How the input is waited for now.
    input_wait: InputWait,
    /// Tells that the terminal behind `hvc0` has another size.
    resize: Option<ResizeSignal>,
    /// Restores the terminal on drop.
    _terminal: Option<RawTerminal>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InputWait {
    /// epoll watches the file.
    File,
    /// The guest's console is full; epoll does not watch the file.
    Guest,
    /// The file cannot be watched, because it is always readable: the guest sets the pace.
    Always,
}

/// What a turn of the consoles came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Turn {
    /// The operator asked to quit.
    pub(super) quit: bool,
    /// There is more to do without another event.
    pub(super) more: bool,
}

impl Stdio {
    /// Opens what `port` names for the guest's consoles; `kind` is the one that gets the input.
    pub(super) fn open(
        port: SerialPort,
        kind: GuestConsole,
        (com1, drained): (Arc<Com1>, Arc<EventFd>),
        console: Arc<Window<Console>>,
    ) -> io::Result<Self> {
        let hvc = match kind {
            GuestConsole::Serial => None,
            GuestConsole::Virtio => {
                let mut hvc = HvcOutput::new(Instant::now())?;
                // Tells the device that it has a reader, before the guest can write.
                hvc.pump(&mut console.lock(), Instant::now());
                Some(hvc)
            }
        };
        let is_sized = matches!((&port, kind), (SerialPort::Stdio, GuestConsole::Virtio));
        let resize = is_sized.then(ResizeSignal::new).transpose()?;
        let mut terminal = None;
        let (input, output) = match port {
            SerialPort::Null => (None, Output::closed()),
            SerialPort::Files { input, output } => {
                (input.map(|file| Input::new(file, false)), Output::new(output)?)
            }
            SerialPort::Stdio => {
                terminal = RawTerminal::enter()?;
                if terminal.is_some() {
                    eprintln!("aerostat: {QUIT_HINT}\r");
                }
                let stdin = duplicate(libc::STDIN_FILENO)?;
                // A terminal that we are not in front of is not ours to read.
                let usable = terminal.is_some() || !is_terminal(&stdin);
                let input = usable.then(|| Input::new(stdin, terminal.is_some()));
                (input, Output::new(duplicate(libc::STDOUT_FILENO)?)?)
            }
        };
        Ok(Self {
            com1,
            drained,
            console,
            hvc,
            output,
            output_watched: false,
            input,
            input_wait: InputWait::Guest,
            resize,
            _terminal: terminal,
        })
    }

    /// Registers what there is to wait for.
    pub(super) fn register(&mut self, poller: &mut Poller<Token>) -> io::Result<()> {
        poller.watch(self.com1.output().wake().as_raw_fd(), Token::SerialOutput)?;
        poller.watch(self.drained.as_raw_fd(), Token::SerialDrained)?;
        if let Some(hvc) = &self.hvc {
            poller.watch(hvc.queue().wake().as_raw_fd(), Token::SerialOutput)?;
        }
        if let Some(resize) = &self.resize {
            poller.watch(resize.fd(), Token::Resized)?;
        }
        if let Some(input) = &self.input {
            self.input_wait = match poller.watch(input.fd(), Token::SerialInput) {
                Ok(()) => InputWait::File,
                // EPERM: a regular file, or the null device.
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => InputWait::Always,
                Err(error) => return Err(error),
            };
            if self.input_wait == InputWait::Always {
                self.drained.write(1)?;
            }
        }
        Ok(())
    }

    /// Writes out what the guest has written, as far as the reader takes it.
    pub(super) fn pump_output(&mut self, poller: &mut Poller<Token>) -> io::Result<()> {
        let fd = self.output.poll_fd();
        let mut finished = true;
        let queues = [Some(&**self.com1.output()), self.hvc.as_ref().map(HvcOutput::queue)];
        for queue in queues.into_iter().flatten() {
            // Only a wake-up; what it stands for is in the queue.
            queue.wake().read().ok();
            finished &= self.output.drain(queue);
        }
        let Some(fd) = fd else { return Ok(()) };
        if finished && self.output_watched {
            self.output_watched = false;
            poller.forget(fd)?;
        } else if !finished && !self.output_watched {
            self.output_watched = true;
            poller.watch_writable(fd, Token::SerialWritable)?;
        }
        Ok(())
    }

    /// The UART has room again.
    pub(super) fn drained(&mut self, poller: &mut Poller<Token>) -> io::Result<Turn> {
        self.drained.read().ok();
        if self.hvc.is_some() { Ok(Turn::default()) } else { self.resume_input(poller) }
    }

    /// Moves what `hvc0` has for the host and the host for it; call it when the console device was
    /// served, when output was written, and at [`Self::deadline`].
    pub(super) fn serve_hvc(&mut self, poller: &mut Poller<Token>) -> io::Result<Turn> {
        let Some(hvc) = &mut self.hvc else { return Ok(Turn::default()) };
        let (more, has_room) = {
            let mut transport = self.console.lock();
            let more = hvc.pump(&mut transport, Instant::now());
            (more, transport.device().console_room() > 0)
        };
        let turn = if has_room { self.resume_input(poller)? } else { Turn::default() };
        Ok(Turn { more: more | turn.more, ..turn })
    }

    /// When [`Self::serve_hvc`] has something to do without an event.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.hvc.as_ref()?.deadline()
    }

    /// The terminal has another size.
    pub(super) fn resized(&mut self) {
        if let Some(resize) = &mut self.resize {
            resize.acknowledge();
        }
        let Some(size) = terminal::size() else { return };
        let mut transport = self.console.lock();
        if transport.device_mut().set_size(size) {
            transport.config_changed();
        }
    }

    /// The guest's console has room: the input is read again.
    fn resume_input(&mut self, poller: &mut Poller<Token>) -> io::Result<Turn> {
        if let Some(input) = &mut self.input {
            match &self.hvc {
                None => input.flush(&mut &*self.com1),
                Some(_) => input.flush(self.console.lock().device_mut()),
            }
        }
        match (self.input_wait, &self.input) {
            (InputWait::Guest, Some(input)) => {
                poller.watch(input.fd(), Token::SerialInput)?;
                self.input_wait = InputWait::File;
                Ok(Turn::default())
            }
            (InputWait::Always, Some(_)) => self.pump_input(poller),
            (InputWait::Guest | InputWait::Always | InputWait::File, _) => Ok(Turn::default()),
        }
    }

    /// Moves input to the guest's console.
    pub(super) fn pump_input(&mut self, poller: &mut Poller<Token>) -> io::Result<Turn> {
        let Some(input) = &mut self.input else { return Ok(Turn::default()) };
        let event = match &self.hvc {
            None => input.pump(&mut &*self.com1),
            Some(_) => input.pump(self.console.lock().device_mut()),
        };
        let watched = self.input_wait == InputWait::File;
        match event {
            InputEvent::WaitForFile => {}
            InputEvent::WaitForGuest if watched => {
                poller.forget(input.fd())?;
                self.input_wait = InputWait::Guest;
            }
            InputEvent::WaitForGuest => {}
            InputEvent::End | InputEvent::Quit => {
                if watched {
                    poller.forget(input.fd())?;
                }
                self.input = None;
            }
        }
        // The UART says when it is empty; nothing says so of a port that has not been filled.
        let unwatched = self.input_wait == InputWait::Always && self.hvc.is_some();
        let more = unwatched && event == InputEvent::WaitForFile;
        Ok(Turn { quit: event == InputEvent::Quit, more })
    }

    /// Writes out the rest at the VM's end.
    pub(super) fn finish(&mut self) {
        self.output.finish(self.com1.output(), FINISH_TIMEOUT_MS);
        if let Some(hvc) = &mut self.hvc {
            for _ in 0..FINISH_ROUNDS {
                hvc.pump(&mut self.console.lock(), Instant::now());
                self.output.finish(hvc.queue(), FINISH_TIMEOUT_MS);
            }
        }
    }
}

impl InputSink for Console {
    fn room(&self) -> usize {
        self.console_room()
    }

    fn enqueue(&mut self, bytes: &[u8]) -> usize {
        self.console_write(bytes)
    }
}

/// Another descriptor of a standard stream, closed on exec.
///
/// Not through `std::io::stdin`, whose buffer would live as long as the process.
fn duplicate(stream: RawFd) -> io::Result<File> {
    // SAFETY: the borrow ends with this function, and nothing closes the standard streams meanwhile.
    // A process that was started without one has the null device there: the runtime opens it.
    let stream = unsafe { BorrowedFd::borrow_raw(stream) };
    stream.try_clone_to_owned().map(File::from)
}

fn is_terminal(file: &File) -> bool {
    io::IsTerminal::is_terminal(file)
}

#[cfg(test)]
mod tests;
