//! The event loop's side of the serial console.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::config::SerialPort;
use super::event_loop::Token;
use super::poll::Poller;
use crate::serial::terminal::RawTerminal;
use crate::serial::{Com1, Input, InputEvent, Output, QUIT_HINT};

/// How long a stuck reader of the output can hold up the VM's end.
const FINISH_TIMEOUT_MS: i32 = 500;

/// What the guest's console is connected to.
pub(super) struct Stdio {
    com1: Arc<Com1>,
    /// Written by the UART when the guest has read all input.
    drained: Arc<EventFd>,
    output: Output,
    /// Whether the poller watches the output for room.
    output_watched: bool,
    input: Option<Input>,
    /// How the input is waited for now.
    input_wait: InputWait,
    /// Restores the terminal on drop.
    _terminal: Option<RawTerminal>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InputWait {
    /// epoll watches the file.
    File,
    /// The UART is full; epoll does not watch the file.
    Guest,
    /// The file cannot be watched, because it is always readable: the UART sets the pace.
    Always,
}

impl Stdio {
    /// Opens what `port` names.
    pub(super) fn open(
        port: SerialPort,
        com1: Arc<Com1>,
        drained: Arc<EventFd>,
    ) -> io::Result<Self> {
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
            output,
            output_watched: false,
            input,
            input_wait: InputWait::Guest,
            _terminal: terminal,
        })
    }

    /// Registers what there is to wait for.
    pub(super) fn register(&mut self, poller: &mut Poller<Token>) -> io::Result<()> {
        poller.watch(self.com1.output().wake().as_raw_fd(), Token::SerialOutput)?;
        poller.watch(self.drained.as_raw_fd(), Token::SerialDrained)?;
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
        // Only a wake-up; what it stands for is in the queue.
        self.com1.output().wake().read().ok();
        let fd = self.output.poll_fd();
        let finished = self.output.drain(self.com1.output());
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
    pub(super) fn drained(&mut self, poller: &mut Poller<Token>) -> io::Result<bool> {
        self.drained.read().ok();
        match (self.input_wait, &self.input) {
            (InputWait::Guest, Some(input)) => {
                poller.watch(input.fd(), Token::SerialInput)?;
                self.input_wait = InputWait::File;
                Ok(false)
            }
            (InputWait::Always, Some(_)) => self.pump_input(poller),
            (InputWait::Guest | InputWait::Always | InputWait::File, _) => Ok(false),
        }
    }

    /// Moves input to the UART. Returns whether the operator asked to quit.
    pub(super) fn pump_input(&mut self, poller: &mut Poller<Token>) -> io::Result<bool> {
        let Some(input) = &mut self.input else { return Ok(false) };
        let event = input.pump(&self.com1);
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
        Ok(event == InputEvent::Quit)
    }

    /// Writes out the rest at the VM's end.
    pub(super) fn finish(&mut self) {
        self.output.finish(self.com1.output(), FINISH_TIMEOUT_MS);
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
