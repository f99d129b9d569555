use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

use super::*;

/// Line status register, and its data-ready bit.
const LSR: u8 = 5;
const LSR_DATA_READY: u8 = 1;

fn com1() -> Com1 {
    let drained = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("eventfd"));
    Com1::new(Arc::new(Line::new(4).expect("line")), drained, Instant::now()).expect("com1")
}

fn pipe() -> (File, File) {
    let (reader, writer) = std::io::pipe().expect("pipe");
    (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)))
}

#[test]
fn guest_bytes_arrive_in_order_and_the_first_is_stamped() {
    let com1 = com1();
    assert_eq!(com1.output().first_byte_us(), None);
    b"hello".iter().for_each(|&byte| com1.write(0, byte));
    let (mut reader, writer) = pipe();
    assert!(Output::new(writer).expect("output").drain(com1.output()));
    let mut got = [0; 5];
    reader.read_exact(&mut got).expect("read");
    assert_eq!(&got, b"hello");
    assert!(com1.output().first_byte_us().is_some());
}

#[test]
fn a_reader_that_never_reads_costs_bounded_memory_and_no_waiting() {
    for (reader, writer) in [pipe(), socket_pair()] {
        let com1 = com1();
        let mut output = Output::new(writer).expect("output");
        let total = 4 * queue::CAPACITY;
        for _ in 0..total / 1024 {
            com1.output().push(&[b'x'; 1024]);
            output.drain(com1.output());
        }
        assert_eq!(com1.output().written(), total as u64);
        assert!(com1.output().dropped() > 0, "the pipe and the queue hold less than {total} B");
        output.finish(com1.output(), 0);
        assert!(com1.output().is_empty(), "what the stuck reader leaves is dropped at the end");
        drop(reader);
    }
}

/// A drain once went on for as long as the guest wrote, and the event loop served nobody else.
#[test]
fn a_guest_that_writes_without_end_does_not_hold_the_event_loop() {
    let com1 = com1();
    let queue = com1.output();
    queue.push(b"x");
    queue.wake().read().expect("the first byte wakes");
    let mut offered = 0;
    let drained = queue.drain(|bytes| {
        offered += bytes.len();
        assert!(offered <= 2 * queue::CAPACITY, "the turn has no end");
        queue.push(&[b'x'; 4096]);
        Ok(bytes.len())
    });
    drained.expect("nothing failed");
    assert!(!queue.is_empty());
    assert!(queue.wake().read().is_ok(), "the rest has its turn later");
}

fn socket_pair() -> (File, File) {
    let (a, b) = UnixStream::pair().expect("socket pair");
    (File::from(OwnedFd::from(a)), File::from(OwnedFd::from(b)))
}

#[test]
fn our_output_mode_does_not_leak_into_the_file_we_were_given() {
    let (_reader, writer) = pipe();
    let theirs = writer.try_clone().expect("dup");
    let _output = Output::new(writer).expect("output");
    // SAFETY: no memory argument.
    let flags = unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&theirs), libc::F_GETFL) };
    assert_eq!(flags & libc::O_NONBLOCK, 0);
}

#[test]
fn a_reader_that_left_closes_the_output_and_the_rest_is_dropped() {
    let com1 = com1();
    let (reader, writer) = pipe();
    let mut output = Output::new(writer).expect("output");
    drop(reader);
    com1.output().push(b"lost");
    assert!(output.drain(com1.output()));
    assert!(output.is_closed());
    assert_eq!(com1.output().dropped(), 4);
}

#[test]
fn output_to_a_regular_file_appends_after_what_is_there() {
    let mut file = tempfile::tempfile().expect("tempfile");
    file.write_all(b"before ").expect("write");
    let mut check = file.try_clone().expect("dup");
    let com1 = com1();
    com1.output().push(b"after");
    assert!(Output::new(file).expect("output").drain(com1.output()));
    std::io::Seek::rewind(&mut check).expect("rewind");
    let mut text = String::new();
    check.read_to_string(&mut text).expect("read");
    assert_eq!(text, "before after");
}

#[test]
fn input_waits_for_the_guest_when_the_uart_is_full() {
    let com1 = com1();
    let (reader, mut writer) = pipe();
    let mut input = Input::new(reader, false);
    writer.write_all(&[b'k'; 100]).expect("write");
    assert_eq!(input.pump(&mut &com1), InputEvent::WaitForGuest);
    assert_eq!(input.pump(&mut &com1), InputEvent::WaitForGuest, "nothing more is read");
    let mut read = 0;
    while com1.read(LSR) & LSR_DATA_READY != 0 {
        assert_eq!(com1.read(0), b'k');
        read += 1;
    }
    assert_eq!(read, 64);
    assert_eq!(com1.drained.read().expect("the guest drained the UART"), 1);
    assert_eq!(input.pump(&mut &com1), InputEvent::WaitForFile);
    drop(writer);
    while com1.read(LSR) & LSR_DATA_READY != 0 {
        com1.read(0);
    }
    assert_eq!(input.pump(&mut &com1), InputEvent::End);
}

/// A guest that did not read its full UART kept the operator from ending it.
#[test]
fn the_quit_key_is_heard_though_the_guest_takes_nothing_and_type_ahead_is_not_lost() {
    let com1 = com1();
    let (reader, mut writer) = pipe();
    let mut input = Input::new(reader, true);
    writer.write_all(&[b'k'; 100]).expect("write");
    assert_eq!(input.pump(&mut &com1), InputEvent::WaitForFile);
    let mut read = 0;
    for _ in 0..2 {
        while com1.read(LSR) & LSR_DATA_READY != 0 {
            assert_eq!(com1.read(0), b'k');
            read += 1;
        }
        input.flush(&mut &com1);
    }
    assert_eq!(read, 100);
    writer.write_all(&[b'k'; 200]).expect("write");
    assert_eq!(input.pump(&mut &com1), InputEvent::WaitForFile);
    writer.write_all(b"\x01x").expect("write");
    assert_eq!(input.pump(&mut &com1), InputEvent::Quit);
}

#[test]
fn type_ahead_is_bounded() {
    let com1 = com1();
    let (reader, mut writer) = pipe();
    let mut input = Input::new(reader, true);
    writer.write_all(&[b'k'; 10_000]).expect("write");
    assert_eq!(input.pump(&mut &com1), InputEvent::WaitForFile);
    assert_eq!(input.pump(&mut &com1), InputEvent::WaitForGuest);
}

#[test]
fn quitting_is_for_typed_input_only() {
    for (typed, expected) in [(true, InputEvent::Quit), (false, InputEvent::WaitForFile)] {
        let com1 = com1();
        let (reader, mut writer) = pipe();
        writer.write_all(b"\x01x").expect("write");
        assert_eq!(Input::new(reader, typed).pump(&mut &com1), expected);
    }
}

#[test]
fn a_reset_forgets_input_and_keeps_output() {
    let com1 = com1();
    com1.enqueue(b"abc");
    com1.write(0, b'o');
    com1.reset();
    assert_eq!(com1.read(LSR) & LSR_DATA_READY, 0);
    assert!(!com1.output().is_empty());
}
