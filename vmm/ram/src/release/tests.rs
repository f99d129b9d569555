//! Partial successes of `process_madvise`, over a fake kernel.

use std::cell::RefCell;
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const PAGE: usize = 4096;

/// Releases pages; refuses the pages in `bad`; may stop in the middle of a piece.
struct FakeKernel {
    bad: BTreeSet<usize>,
    /// Stops a batch after this many bytes, once, and would go on when asked again.
    stop_once_after: RefCell<Option<usize>>,
    batches: bool,
    released: RefCell<BTreeSet<usize>>,
}

impl FakeKernel {
    fn new(bad: impl IntoIterator<Item = usize>, batches: bool) -> Self {
        Self {
            bad: bad.into_iter().collect(),
            stop_once_after: RefCell::new(None),
            batches,
            released: RefCell::default(),
        }
    }

    fn pages(piece: HostRange) -> impl Iterator<Item = usize> {
        (piece.start()..piece.end()).step_by(PAGE).map(|address| address / PAGE)
    }
}

impl ReleaseCalls for FakeKernel {
    fn can_batch(&self) -> bool {
        self.batches
    }

    fn release_many(&self, pieces: &[HostRange]) -> io::Result<usize> {
        assert!(pieces.len() <= PIECES_PER_CALL);
        let limit = self.stop_once_after.take().unwrap_or(usize::MAX);
        let mut done = 0;
        for &piece in pieces {
            for page in Self::pages(piece) {
                if done >= limit {
                    return Ok(done);
                }
                if self.bad.contains(&page) {
                    let error = || io::Error::from_raw_os_error(libc::ENOMEM);
                    return if done == 0 { Err(error()) } else { Ok(done) };
                }
                self.released.borrow_mut().insert(page);
                done += PAGE;
            }
        }
        Ok(done)
    }

    fn release_one(&self, piece: HostRange) -> io::Result<()> {
        for page in Self::pages(piece) {
            if self.bad.contains(&page) {
                return Err(io::Error::from_raw_os_error(libc::EFAULT));
            }
            self.released.borrow_mut().insert(page);
        }
        Ok(())
    }
}

fn single_pages(pages: impl IntoIterator<Item = usize>) -> Vec<HostRange> {
    pages.into_iter().map(|page| HostRange { start: page * PAGE, len: PAGE }).collect()
}

#[test]
fn scattered_pages_take_one_call_per_1024() {
    let kernel = FakeKernel::new([], true);
    let outcome = release_pieces(&kernel, &single_pages((0..2500).map(|n| n * 2)));
    assert_eq!((outcome.calls, outcome.bytes), (3, 2500 * PAGE as u64));
    assert!(outcome.refused.is_none());
}

#[test]
fn kernel_without_batches_gets_one_call_per_piece() {
    let kernel = FakeKernel::new([], false);
    let outcome = release_pieces(&kernel, &single_pages(0..10));
    assert_eq!((outcome.calls, outcome.bytes), (10, 10 * PAGE as u64));
}

#[test]
fn refused_piece_is_named_and_the_rest_is_released() {
    for batches in [true, false] {
        let kernel = FakeKernel::new([6, 14], batches);
        let outcome = release_pieces(&kernel, &single_pages((0..10).map(|n| n * 2)));
        assert_eq!(outcome.bytes, 8 * PAGE as u64);
        let (index, error) = outcome.refused.expect("page 6 is bad");
        assert_eq!((index, error.raw_os_error()), (3, Some(libc::EFAULT)));
        assert_eq!(kernel.released.borrow().len(), 8);
    }
}

#[test]
fn batch_that_stops_inside_a_piece_goes_on_from_there() {
    let kernel = FakeKernel::new([], true);
    kernel.stop_once_after.replace(Some(3 * PAGE));
    let pieces = [(0, 2), (10, 4), (20, 1)];
    let pieces = pieces.map(|(at, n)| HostRange { start: at * PAGE, len: n * PAGE });
    let outcome = release_pieces(&kernel, &pieces);
    assert!(outcome.refused.is_none());
    assert_eq!(outcome.bytes, 7 * PAGE as u64);
    assert_eq!(kernel.released.borrow().len(), 7);
}

#[test]
fn call_that_is_always_interrupted_ends_in_its_error() {
    struct Interrupted;
    impl ReleaseCalls for Interrupted {
        fn can_batch(&self) -> bool {
            true
        }
        fn release_many(&self, _: &[HostRange]) -> io::Result<usize> {
            Ok(0)
        }
        fn release_one(&self, _: HostRange) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(libc::EINTR))
        }
    }
    let outcome = release_pieces(&Interrupted, &single_pages([1, 2]));
    assert_eq!(outcome.bytes, 0);
    assert_eq!(outcome.refused.map(|(index, _)| index), Some(0));
}

#[test]
fn kernel_that_claims_too_much_is_not_believed() {
    struct Boaster;
    impl ReleaseCalls for Boaster {
        fn can_batch(&self) -> bool {
            true
        }
        fn release_many(&self, _: &[HostRange]) -> io::Result<usize> {
            Ok(usize::MAX)
        }
        fn release_one(&self, _: HostRange) -> io::Result<()> {
            Ok(())
        }
    }
    assert_eq!(release_pieces(&Boaster, &single_pages([1, 2])).bytes, 2 * PAGE as u64);
}

proptest! {
    #[test]
    fn every_good_page_is_released_and_counted_once(
        lens in prop::collection::vec((1usize..5, 0usize..3), 1..40),
        bad in prop::collection::btree_set(0usize..160, 0..6),
        stop in prop::option::of(0usize..100),
        batches: bool,
    ) {
        let mut at = 0;
        let mut pieces = Vec::new();
        for (len, gap) in lens {
            pieces.push(HostRange { start: at * PAGE, len: len * PAGE });
            at += len + gap;
        }
        let kernel = FakeKernel::new(bad.iter().copied(), batches);
        kernel.stop_once_after.replace(stop.map(|pages| pages * PAGE));
        let outcome = release_pieces(&kernel, &pieces);
        let mut first_refused = None;
        for (index, &piece) in pieces.iter().enumerate() {
            let refused = FakeKernel::pages(piece).any(|page| bad.contains(&page));
            if refused {
                first_refused = first_refused.or(Some(index));
            } else {
                prop_assert!(FakeKernel::pages(piece).all(|page| kernel.released.borrow().contains(&page)));
            }
        }
        prop_assert_eq!(outcome.refused.map(|(index, _)| index), first_refused);
        // A piece refused half-way in a batch has released its first pages; never more is claimed than was done.
        prop_assert!(outcome.bytes <= (kernel.released.borrow().len() * PAGE) as u64);
        if first_refused.is_none() {
            prop_assert_eq!(outcome.bytes, pieces.iter().map(|p| p.len() as u64).sum::<u64>());
        }
    }
}
