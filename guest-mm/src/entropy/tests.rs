use super::*;
use crate::virtio::testing::{Chain, FakeDevice, TestRam};
use crate::virtio::{ProbeError, QueueError, SetupError};
use abi::virtio::{
    VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1, VIRTIO_ID_BALLOON, VIRTIO_ID_RNG, status,
};
use std::vec;
use std::vec::Vec;

const QUEUE: u16 = 0;
const PAGES: usize = 8;

/// A source that answers as the test says, with bytes that count up from 1.
struct Source<'m> {
    fake: FakeDevice<'m>,
    next: core::cell::Cell<u8>,
}

impl<'m> Source<'m> {
    fn new(ram: &'m TestRam) -> Self {
        Self::offering(ram, 0)
    }

    fn offering(ram: &'m TestRam, features: u64) -> Self {
        let fake = FakeDevice::new(ram, VIRTIO_ID_RNG, features, &[64]);
        Self { fake, next: core::cell::Cell::new(1) }
    }

    /// Answers the next request with at most `most` bytes; `None` if there is none.
    fn answer(&self, most: u32) -> Option<u32> {
        let chain = self.fake.take(QUEUE)?;
        assert_eq!(chain.flags, 2, "write-only, one descriptor");
        let len = chain.len.min(most);
        let bytes: Vec<u8> = (0..len).map(|_| self.byte()).collect();
        self.fake.write_guest(chain.gpa, &bytes);
        self.fake.give_back(QUEUE, u32::from(chain.head), len);
        Some(len)
    }

    /// Counts without 0, so that an erased byte is seen.
    fn byte(&self) -> u8 {
        self.next.replace(if self.next.get() == 251 { 1 } else { self.next.get() + 1 })
    }

    fn waiting(&self) -> Vec<Chain> {
        core::iter::from_fn(|| self.fake.take(QUEUE)).collect()
    }
}

fn expected(count: usize) -> Vec<u8> {
    (0..count).map(|at| u8::try_from(at % 251).unwrap() + 1).collect()
}

#[test]
fn nothing_is_asked_for_before_somebody_reads() {
    let ram = TestRam::new(PAGES);
    let source = Source::new(&ram);
    let _driver = EntropyDriver::start(&source.fake, &ram).unwrap();
    assert_ne!(source.fake.status() & status::DRIVER_OK, 0);
    assert_eq!(source.fake.kick(), None);
    assert_eq!(source.waiting(), []);
}

#[test]
fn a_read_asks_for_what_it_misses_and_gets_it_after_the_answer() {
    let ram = TestRam::new(PAGES);
    let source = Source::new(&ram);
    let mut driver = EntropyDriver::start(&source.fake, &ram).unwrap();
    let mut out = [0; 700];
    assert_eq!(driver.read(&mut out), Ok(0));
    assert_eq!(source.fake.kick(), Some(QUEUE));
    assert_eq!(driver.read(&mut out), Ok(0));
    assert_eq!(source.fake.kick(), None, "asked already");
    assert_eq!((source.answer(u32::MAX), source.answer(u32::MAX)), (Some(512), Some(188)));
    assert_eq!(source.answer(u32::MAX), None);
    assert_eq!(driver.read(&mut out), Ok(700));
    assert_eq!(out.to_vec(), expected(700));
    assert_eq!(driver.read(&mut []), Ok(0));
    let counters = EntropyCounters { received_bytes: 700, requests: 2, empty_answers: 0 };
    assert_eq!(driver.counters(), counters);
}

#[test]
fn no_byte_is_lost_or_handed_out_twice_whatever_the_sizes() {
    let ram = TestRam::new(PAGES);
    let source = Source::new(&ram);
    let mut driver = EntropyDriver::start(&source.fake, &ram).unwrap();
    let (mut all, mut sizes) =
        (Vec::<u8>::new(), [1usize, 3, 4096, 10_000, 511, 0, 77].iter().cycle());
    for most in [1u32, 512, 7, 300].iter().cycle() {
        if all.len() > 50_000 {
            break;
        }
        let mut out = vec![0; *sizes.next().unwrap()];
        let read = driver.read(&mut out).unwrap();
        all.extend(&out[..read]);
        while source.answer(*most).is_some() {}
    }
    assert_eq!(all, expected(all.len()));
}

#[test]
fn a_shared_page_keeps_no_byte_that_was_handed_out() {
    let ram = TestRam::new(PAGES);
    let source = Source::new(&ram);
    let mut driver = EntropyDriver::start(&source.fake, &ram).unwrap();
    let mut out = [0; 512];
    driver.read(&mut out).unwrap();
    let chain = source.fake.take(QUEUE).unwrap();
    source.fake.write_guest(chain.gpa, &[0xaa; 512]);
    source.fake.give_back(QUEUE, u32::from(chain.head), 512);
    assert_eq!(driver.read(&mut out[..200]), Ok(200));
    let page = source.fake.guest_bytes(chain.gpa, 512);
    assert_eq!((&page[..200], &page[200..]), (&[0; 200][..], &[0xaa; 312][..]));
    driver.shut_down(&ram).unwrap();
    assert_eq!(source.fake.guest_bytes(chain.gpa, 512), [0; 512], "nor one that was not");
    assert_eq!(ram.lent(), 0);
}

#[test]
fn a_device_with_a_smaller_queue_is_served_with_fewer_buffers() {
    let ram = TestRam::new(PAGES);
    let fake = FakeDevice::new(&ram, VIRTIO_ID_RNG, 0, &[2]);
    let source = Source { fake, next: core::cell::Cell::new(1) };
    let mut driver = EntropyDriver::start(&source.fake, &ram).unwrap();
    let mut out = [0; 4096];
    driver.read(&mut out).unwrap();
    let lengths: Vec<u32> = core::iter::from_fn(|| source.answer(u32::MAX)).collect();
    assert_eq!(lengths, [512, 512]);
    assert_eq!(driver.read(&mut out), Ok(1024));
}

#[test]
fn answers_out_of_order_are_taken_as_they_come() {
    let ram = TestRam::new(PAGES);
    let source = Source::new(&ram);
    let mut driver = EntropyDriver::start(&source.fake, &ram).unwrap();
    let mut out = [0; 1024];
    driver.read(&mut out).unwrap();
    let chains = source.waiting();
    for (chain, byte) in chains.iter().rev().zip([2, 1]) {
        source.fake.write_guest(chain.gpa, &[byte; 512]);
        source.fake.give_back(QUEUE, u32::from(chain.head), 512);
    }
    assert_eq!(driver.read(&mut out), Ok(1024));
    assert_eq!((out[0], out[511], out[512], out[1023]), (2, 2, 1, 1));
}

#[test]
fn a_device_that_never_sends_a_byte_ends_the_driver_and_not_the_kernel() {
    let ram = TestRam::new(PAGES);
    let source = Source::new(&ram);
    let mut driver = EntropyDriver::start(&source.fake, &ram).unwrap();
    let mut out = [0; 16];
    let mut calls = 0;
    let error = loop {
        match driver.read(&mut out) {
            Ok(count) => assert_eq!(count, 0),
            Err(error) => break error,
        }
        calls += 1;
        assert!(calls < 100, "goes on for ever");
        source.answer(0);
    };
    assert_eq!(error, EntropyError::NoBytes);
    assert_eq!(driver.read(&mut out), Err(EntropyError::NoBytes));
    driver.shut_down(&ram).unwrap();
    assert_eq!(ram.lent(), 0);
}

#[test]
fn an_empty_answer_now_and_then_is_counted_and_asked_again() {
    let ram = TestRam::new(PAGES);
    let source = Source::new(&ram);
    let mut driver = EntropyDriver::start(&source.fake, &ram).unwrap();
    let mut all = Vec::<u8>::new();
    for turn in 0..400u32 {
        let mut out = [0; 8];
        let read = driver.read(&mut out).unwrap();
        all.extend(&out[..read]);
        source.answer(if turn % 2 == 0 { 0 } else { 1 });
    }
    assert_eq!(all, expected(all.len()));
    assert!(driver.counters().empty_answers > 100 && all.len() > 100);
}

#[test]
fn used_elements_that_lie_break_the_driver_and_nothing_else() {
    let unknown = |head| QueueError::UnknownHead { head };
    for (head, len, error) in [
        (5, 4, unknown(5)),
        (0xffff_ffff, 4, unknown(0xffff_ffff)),
        (0, 17, QueueError::LengthTooLong { claimed: 17, len: 16 }),
        (0, u32::MAX, QueueError::LengthTooLong { claimed: u32::MAX, len: 16 }),
    ] {
        let ram = TestRam::new(PAGES);
        let source = Source::new(&ram);
        let mut driver = EntropyDriver::start(&source.fake, &ram).unwrap();
        let mut out = [0; 16];
        driver.read(&mut out).unwrap();
        let posted = source.fake.take(QUEUE).unwrap();
        // Relative to the head that was posted, whichever that is.
        let head = if head == 0 { u32::from(posted.head) } else { head };
        source.fake.give_back(QUEUE, head, len);
        assert_eq!(driver.read(&mut out), Err(EntropyError::Queue(error)));
        assert_eq!(out, [0; 16], "not one byte of a lying device");
        driver.shut_down(&ram).unwrap();
        assert_eq!(ram.lent(), 0);
    }
}

#[test]
fn a_used_index_that_jumps_breaks_the_driver() {
    let ram = TestRam::new(PAGES);
    let source = Source::new(&ram);
    let mut driver = EntropyDriver::start(&source.fake, &ram).unwrap();
    driver.read(&mut [0; 16]).unwrap();
    source.fake.jump_used_index(QUEUE, 2);
    let error = QueueError::UsedIndexJump { claimed: 2, outstanding: 1 };
    assert_eq!(driver.read(&mut [0; 16]), Err(EntropyError::Queue(error)));
}

#[test]
fn a_buffer_returned_twice_is_refused() {
    let ram = TestRam::new(PAGES);
    let source = Source::new(&ram);
    let mut driver = EntropyDriver::start(&source.fake, &ram).unwrap();
    driver.read(&mut [0; 1024]).unwrap();
    let head = u32::from(source.fake.take(QUEUE).unwrap().head);
    source.fake.give_back(QUEUE, head, 512);
    source.fake.give_back(QUEUE, head, 512);
    let error = EntropyError::Queue(QueueError::UnknownHead { head });
    assert_eq!(driver.read(&mut [0; 1024]), Err(error));
}

#[test]
fn a_device_that_needs_a_reset_ends_the_driver_and_a_new_start_mends_it() {
    let ram = TestRam::new(2 * PAGES);
    let source = Source::new(&ram);
    let mut driver = EntropyDriver::start(&source.fake, &ram).unwrap();
    source.fake.set_needs_reset();
    driver.interrupt();
    assert_eq!(driver.read(&mut [0; 8]), Err(EntropyError::NeedsReset));
    driver.shut_down(&ram).unwrap();
    let mut driver = EntropyDriver::start(&source.fake, &ram).unwrap();
    driver.read(&mut [0; 8]).unwrap();
    source.answer(u32::MAX).unwrap();
    assert_eq!(driver.read(&mut [0; 8]), Ok(8));
}

#[test]
fn packed_rings_and_every_unknown_feature_are_declined() {
    let ram = TestRam::new(PAGES);
    let source = Source::offering(&ram, u64::MAX);
    let _driver = EntropyDriver::start(&source.fake, &ram).unwrap();
    assert_eq!(source.fake.accepted(), VIRTIO_F_VERSION_1);
    assert_eq!(source.fake.accepted() & VIRTIO_F_RING_PACKED, 0);
}

#[test]
fn each_failure_to_start_is_named_and_leaves_no_memory_lent() {
    let wrong = EntropyError::Probe(ProbeError::WrongDevice { wanted: 4, found: 5 });
    let setup = EntropyError::Setup;
    for (id, queues, pages, error) in [
        (VIRTIO_ID_BALLOON, &[64][..], PAGES, wrong),
        (VIRTIO_ID_RNG, &[], PAGES, setup(SetupError::NoQueue { queue: 0 })),
        (VIRTIO_ID_RNG, &[0], PAGES, setup(SetupError::NoQueue { queue: 0 })),
        (VIRTIO_ID_RNG, &[64], 2, setup(SetupError::NoMemory)),
    ] {
        let ram = TestRam::new(pages);
        let fake = FakeDevice::new(&ram, id, 0, queues);
        assert_eq!(EntropyDriver::start(&fake, &ram).err(), Some(error));
        assert_eq!(ram.lent(), 0, "{error}");
    }
}
