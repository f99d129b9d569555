//! Reading bytes for the guest, only as fast as it takes them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};

use super::Com1;
use super::escape::{Escape, Keys};

/// Where guest input comes from.
#[derive(Debug)]
pub(crate) struct Input {
    file: File,
    /// `Some` when a person types into a raw terminal: the quit key needs an escape.
    keys: Option<Keys>,
}

/// What one round of input came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputEvent {
    /// The UART took what there was; wait for more bytes.
    WaitForFile,
    /// The UART is full; wait until the guest has read it.
    WaitForGuest,
    /// The file has ended.
    End,
    /// The operator asked to quit.
    Quit,
}

impl Input {
    /// Input from `file`; `typed` when it is a terminal in raw mode.
    pub(crate) fn new(file: File, typed: bool) -> Self {
        Self { file, keys: typed.then(Keys::default) }
    }

    /// The file to wait on.
    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Moves at most one UART's worth of bytes. Call it when the file is readable.
    pub(crate) fn pump(&mut self, com1: &Com1) -> InputEvent {
        let room = com1.input_room();
        if room == 0 {
            return InputEvent::WaitForGuest;
        }
        let mut bytes = [0; 64];
        let room = room.min(bytes.len());
        let read = match self.file.read(&mut bytes[..room]) {
            Ok(0) => return InputEvent::End,
            Ok(read) => read,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return InputEvent::WaitForFile;
            }
            Err(error) => {
                log::warn!("serial: input failed: {error}");
                return InputEvent::End;
            }
        };
        let mut quit = false;
        let mut kept = Vec::with_capacity(read);
        for &byte in &bytes[..read] {
            match self.keys.as_mut().map_or(Escape::Byte(byte), |keys| keys.press(byte)) {
                Escape::Byte(byte) => kept.push(byte),
                Escape::Nothing => {}
                Escape::Quit => quit = true,
            }
        }
        // Never more than the room that was measured: only this thread adds input.
        com1.enqueue(&kept);
        if quit {
            InputEvent::Quit
        } else if com1.input_room() == 0 {
            InputEvent::WaitForGuest
        } else {
            InputEvent::WaitForFile
        }
    }
}
