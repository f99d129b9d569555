//! Reading bytes for the guest, only as fast as it takes them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};

use super::Com1;
use super::escape::{Escape, Keys};

/// Most bytes that one round moves.
const ROUND_BYTES: usize = 4096;
/// Keys that are read ahead of a guest that does not take them: one of them may be the quit key.
const TYPE_AHEAD_BYTES: usize = 4096;

/// Who takes input for the guest.
pub(crate) trait InputSink {
    /// Bytes that it takes now.
    fn room(&self) -> usize;

    /// Gives it `bytes`; returns how many it took.
    fn enqueue(&mut self, bytes: &[u8]) -> usize;
}

impl InputSink for &Com1 {
    fn room(&self) -> usize {
        self.input_room()
    }

    fn enqueue(&mut self, bytes: &[u8]) -> usize {
        Com1::enqueue(self, bytes)
    }
}

/// Where guest input comes from.
#[derive(Debug)]
pub(crate) struct Input {
    file: File,
    /// `Some` when a person types into a raw terminal: the quit key needs an escape.
    keys: Option<Keys>,
    /// Read, and not yet taken by the guest.
    ahead: VecDeque<u8>,
}

/// What one round of input came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputEvent {
    /// The guest's console took what there was; wait for more bytes.
    WaitForFile,
    /// The guest's console is full; wait until the guest has read it.
    WaitForGuest,
    /// The file has ended.
    End,
    /// The operator asked to quit.
    Quit,
}

impl Input {
    /// Input from `file`; `typed` when it is a terminal in raw mode.
    pub(crate) fn new(file: File, typed: bool) -> Self {
        Self { file, keys: typed.then(Keys::default), ahead: VecDeque::new() }
    }

    /// The file to wait on.
    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Gives the guest what was read before. Call it when the guest may have room again.
    pub(crate) fn flush(&mut self, sink: &mut dyn InputSink) {
        while !self.ahead.is_empty() && sink.room() > 0 {
            let taken = sink.enqueue(self.ahead.make_contiguous());
            if taken == 0 {
                return;
            }
            self.ahead.drain(..taken.min(self.ahead.len()));
        }
    }

    /// Moves at most a page of bytes. Call it when the file is readable.
    pub(crate) fn pump(&mut self, sink: &mut dyn InputSink) -> InputEvent {
        self.flush(sink);
        let room = self.room(sink);
        if room == 0 {
            return InputEvent::WaitForGuest;
        }
        let mut bytes = [0; ROUND_BYTES];
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
                log::warn!("console: input failed: {error}");
                return InputEvent::End;
            }
        };
        for &byte in &bytes[..read] {
            match self.keys.as_mut().map_or(Escape::Byte(byte), |keys| keys.press(byte)) {
                Escape::Byte(byte) => self.ahead.push_back(byte),
                Escape::Nothing => {}
                Escape::Quit => return InputEvent::Quit,
            }
        }
        self.flush(sink);
        if self.room(sink) == 0 { InputEvent::WaitForGuest } else { InputEvent::WaitForFile }
    }

    /// Bytes that may be read now.
    fn room(&self, sink: &dyn InputSink) -> usize {
        let limit = if self.keys.is_some() { TYPE_AHEAD_BYTES } else { sink.room() };
        limit.saturating_sub(self.ahead.len())
    }
}
