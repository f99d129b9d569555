//! [`Planes`]: two bits per frame, in two bitmaps.
//!
//! | head | rest | the frame |
//! |---|---|---|
//! | 0 | 0 | is not in the store |
//! | 1 | 0 | begins a block in flight |
//! | 1 | 1 | begins a settled block |
//! | 0 | 1 | belongs to the block that begins before it |
//!
//! So the order of a block is the length of the run of tails behind its head.
//! Bit 0 is a frame aligned to the largest order: a block of order 6 or more
//! covers whole words, a smaller one a part of a single word.

/// Bits per word.
const WORD: usize = 64;

/// The bitmaps. Positions are bits from the first frame.
#[derive(Debug)]
pub(super) struct Planes<'d> {
    head: &'d mut [u64],
    rest: &'d mut [u64],
}

impl<'d> Planes<'d> {
    /// Empty planes over `words`, one half each.
    pub(super) fn new(words: &'d mut [u64]) -> Self {
        words.fill(0);
        let (head, rest) = words.split_at_mut(words.len() / 2);
        Self { head, rest }
    }

    /// The planes in `head` and `rest`, as they are.
    #[cfg_attr(loom, allow(dead_code, reason = "the store that uses it is not built for models"))]
    pub(super) const fn over(head: &'d mut [u64], rest: &'d mut [u64]) -> Self {
        Self { head, rest }
    }

    pub(super) const fn bytes(&self) -> usize {
        size_of_val(self.head) + size_of_val(self.rest)
    }

    pub(super) fn is_head(&self, at: usize) -> bool {
        is_set(self.head, at)
    }

    /// Whether the block that begins at `at` is settled.
    pub(super) fn is_settled(&self, at: usize) -> bool {
        is_set(self.rest, at)
    }

    /// Whether none of the `len` frames from `at` is in the store.
    pub(super) fn is_absent(&self, at: usize, len: usize) -> bool {
        pieces(at, len).all(|(word, bits)| (self.head[word] | self.rest[word]) & bits == 0)
    }

    /// Makes the `len` frames from `at` a block.
    pub(super) fn set_block(&mut self, at: usize, len: usize, settled: bool) {
        for (word, bits) in pieces(at, len) {
            self.head[word] &= !bits;
            self.rest[word] |= bits;
        }
        self.head[at / WORD] |= 1 << (at % WORD);
        self.set_settled(at, settled);
    }

    pub(super) fn set_settled(&mut self, at: usize, settled: bool) {
        let bit = 1 << (at % WORD);
        let word = &mut self.rest[at / WORD];
        *word = if settled { *word | bit } else { *word & !bit };
    }

    /// Cuts the block of `order` at `at` into blocks of `to`; returns how many more there are.
    pub(super) fn split(&mut self, at: usize, order: u32, to: u32, settled: bool) -> i64 {
        for piece in (at..at + (1 << order)).step_by(1 << to) {
            self.set_block(piece, 1 << to, settled);
        }
        (1 << (order - to)) - 1
    }

    /// Cuts a block of `to` around frame `at` out of its block of `order`; returns
    /// how many blocks more there are.
    pub(super) fn isolate(&mut self, at: usize, order: u32, to: u32, settled: bool) -> i64 {
        for order in (to..order).rev() {
            // The piece around the frame, and its buddy. Bit 0 is aligned to the largest order.
            let piece = at >> order << order;
            self.set_block(piece, 1 << order, settled);
            self.set_block(piece ^ (1 << order), 1 << order, settled);
        }
        i64::from(order - to)
    }

    /// Takes the `len` frames from `at` out.
    pub(super) fn clear(&mut self, at: usize, len: usize) {
        for (word, bits) in pieces(at, len) {
            self.head[word] &= !bits;
            self.rest[word] &= !bits;
        }
    }

    /// Frames of the block that begins at `at`: the head and the tails behind it.
    pub(super) fn len_at(&self, at: usize) -> usize {
        let mut end = at + 1;
        while end / WORD < self.head.len() {
            let word = end / WORD;
            let tails = (!self.head[word] & self.rest[word]) >> (end % WORD);
            let run = tails.trailing_ones() as usize;
            end += run;
            if run < WORD - (end - run) % WORD {
                break;
            }
        }
        end - at
    }

    /// The head of the block that holds `at`.
    pub(super) fn head_of(&self, at: usize) -> Option<usize> {
        if self.is_absent(at, 1) {
            return None;
        }
        self.last_head(at, false)
    }

    /// The first head at or above `from`; with `settled`, of a settled block.
    pub(super) fn first_head(&self, from: usize, settled: bool) -> Option<usize> {
        let mut word = from / WORD;
        let mut mask = u64::MAX << (from % WORD);
        while word < self.head.len() {
            let bits = self.candidates(word, settled) & mask;
            if bits != 0 {
                return Some(word * WORD + bits.trailing_zeros() as usize);
            }
            mask = u64::MAX;
            word += 1;
        }
        None
    }

    /// The last head at or below `from`, which lies inside; with `settled`, of a
    /// settled block.
    pub(super) fn last_head(&self, from: usize, settled: bool) -> Option<usize> {
        let mut word = from / WORD;
        let mut mask = u64::MAX >> (WORD - 1 - from % WORD);
        loop {
            let bits = self.candidates(word, settled) & mask;
            if bits != 0 {
                return Some(word * WORD + bits.ilog2() as usize);
            }
            mask = u64::MAX;
            word = word.checked_sub(1)?;
        }
    }

    fn candidates(&self, word: usize, settled: bool) -> u64 {
        if settled { self.head[word] & self.rest[word] } else { self.head[word] }
    }
}

fn is_set(plane: &[u64], at: usize) -> bool {
    plane[at / WORD] >> (at % WORD) & 1 == 1
}

/// The words that `len` bits from `at` lie in, each with its bits.
fn pieces(at: usize, len: usize) -> impl Iterator<Item = (usize, u64)> {
    let end = at + len;
    (at / WORD..end.div_ceil(WORD)).map(move |word| {
        let low = at.saturating_sub(word * WORD);
        let high = (end - word * WORD).min(WORD);
        (word, (u64::MAX >> (WORD - (high - low))) << low)
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn blocks_next_to_each_other_keep_their_lengths_and_states() {
        let mut words = [u64::MAX; 64];
        let mut planes = Planes::new(&mut words);
        let blocks = [
            (0, 1, true),
            (1, 1, false),
            (2, 2, true),
            (32, 32, false),
            (64, 64, true),
            (1024, 1024, false),
        ];
        for (at, len, settled) in blocks {
            assert!(planes.is_absent(at, len));
            planes.set_block(at, len, settled);
        }
        for (at, len, settled) in blocks {
            assert_eq!((planes.len_at(at), planes.is_settled(at)), (len, settled));
            assert_eq!(planes.head_of(at + len - 1), Some(at));
            assert!(!planes.is_absent(at, len));
        }
        assert_eq!(planes.head_of(4), None);
        assert_eq!(planes.first_head(3, true), Some(64));
        assert_eq!(planes.first_head(65, true), None);
        assert_eq!(planes.last_head(2047, true), Some(64));
        planes.clear(64, 64);
        assert_eq!(planes.len_at(32), 32);
        assert_eq!(planes.last_head(2047, true), Some(2));
    }
}
