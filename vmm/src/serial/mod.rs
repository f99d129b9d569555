//! The serial console: a 16550 on COM1 between the guest and two files of the host.
//!
//! A vCPU must never wait for a terminal. So its bytes go into a bounded
//! `OutputQueue`; the event loop empties that into the output file without
//! blocking (`Output`). When the queue is full, bytes are dropped and counted.
//! Input flows the other way only as fast as the guest reads it (`Input`).
//! Queue, files and terminal serve the virtio console as well (`vm::stdio`).
//!
//! Lock order: UART, then output queue. Neither is held across a system call
//! that can block.

mod escape;
mod input;
mod output;
mod queue;
pub mod terminal;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use devices::interrupt::IrqLine;
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

pub(crate) use escape::HINT as QUIT_HINT;
pub(crate) use input::{Input, InputEvent, InputSink};
pub(crate) use output::Output;
#[cfg(test)]
pub(crate) use queue::CAPACITY as OUTPUT_CAPACITY;
pub(crate) use queue::OutputQueue;

use crate::line::Line;

/// Registers of a 16550.
pub(crate) const REGISTERS: u16 = 8;

/// The UART and what leaves it.
pub(crate) struct Com1 {
    uart: Mutex<Uart>,
    line: Arc<Line>,
    drained: Arc<EventFd>,
    output: Arc<OutputQueue>,
}

type Uart = Serial<UartLine, Drained, QueueWriter>;

impl Com1 {
    /// A UART in its reset state that interrupts on `line`.
    ///
    /// `started`: the origin of the first byte's time stamp. `drained` is
    /// written whenever the guest has read all input that the UART held.
    pub(crate) fn new(
        line: Arc<Line>,
        drained: Arc<EventFd>,
        started: Instant,
    ) -> io::Result<Self> {
        let output = Arc::new(OutputQueue::new(started)?);
        let uart = Mutex::new(new_uart(&line, &drained, &output));
        Ok(Self { uart, line, drained, output })
    }

    /// The guest writes `value` to register `register`.
    pub(crate) fn write(&self, register: u8, value: u8) {
        if let Err(error) = self.lock().write(register, value) {
            log::warn!("serial: write register={register}: {error}");
        }
    }

    /// The guest reads register `register`.
    pub(crate) fn read(&self, register: u8) -> u8 {
        self.lock().read(register)
    }

    /// Room for input, in bytes.
    pub(crate) fn input_room(&self) -> usize {
        self.lock().fifo_capacity()
    }

    /// Gives the guest input; returns how many bytes it took.
    pub(crate) fn enqueue(&self, bytes: &[u8]) -> usize {
        // A full FIFO is an error of the crate; here it is "took nothing".
        self.lock().enqueue_raw_bytes(bytes).unwrap_or(0)
    }

    /// Back to the state after power-on; output that the guest has written stays queued.
    pub(crate) fn reset(&self) {
        *self.lock() = new_uart(&self.line, &self.drained, &self.output);
    }

    /// What the guest has written.
    pub(crate) fn output(&self) -> &Arc<OutputQueue> {
        &self.output
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        // A panic in the UART leaves registers of some state, which is all they ever are.
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_uart(line: &Arc<Line>, drained: &Arc<EventFd>, output: &Arc<OutputQueue>) -> Uart {
    Serial::with_events(
        UartLine(line.clone()),
        Drained(drained.clone()),
        QueueWriter(output.clone()),
    )
}

/// The UART's interrupt.
struct UartLine(Arc<Line>);

impl Trigger for UartLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        IrqLine::trigger(&*self.0);
        Ok(())
    }
}

/// Tells the event loop that there is room for input.
struct Drained(Arc<EventFd>);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // Cannot fail but by overflow, and then the event loop has a wake-up pending already.
        self.0.write(1).ok();
    }
}

/// The UART's transmit side.
struct QueueWriter(Arc<OutputQueue>);

impl io::Write for QueueWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
