//! Doubly linked lists of free blocks, linked through their words.

use core::fmt;

use abi::Pfn;

use crate::memdesc::{Buddy, Link, Word, WordTable};

/// A word that a list leads to is not what the list says: memory was
/// overwritten, or this module is wrong. The block is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Corrupt(pub Pfn);

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Free list is corrupt at frame {}", self.0)
    }
}

impl core::error::Error for Corrupt {}

/// The ends of a list, and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeList {
    head: Link,
    tail: Link,
    blocks: u64,
}

/// Which end of a list a block joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Taken next: the host has memory for it, and caches may.
    Front,
    /// Taken last: the host would have to find memory first.
    Back,
}

impl FreeList {
    /// An empty list.
    pub const EMPTY: Self = Self { head: Link::NONE, tail: Link::NONE, blocks: 0 };

    /// Number of blocks.
    pub const fn len(&self) -> u64 {
        self.blocks
    }

    /// Whether the list has no block.
    pub const fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// The first block's head frame.
    pub(crate) fn first(&self, words: &WordTable) -> Option<Pfn> {
        words.follow(self.head)
    }

    /// Makes the block at `pfn`, whose word is `from`, a free block on this list.
    pub(super) fn push(
        &mut self,
        words: &WordTable,
        pfn: Pfn,
        from: Word,
        block: Buddy,
        end: End,
    ) -> Result<(), Corrupt> {
        let link = words.link(pfn);
        let (prev, next) = match end {
            End::Front => (Link::NONE, self.head),
            End::Back => (self.tail, Link::NONE),
        };
        let to = Buddy { prev, next, ..block }.encode();
        let cell = words.cell(pfn).map_err(|_| Corrupt(pfn))?;
        cell.transition(from, to).map_err(|_| Corrupt(pfn))?;
        match words.follow(if end == End::Front { next } else { prev }) {
            None => (self.head, self.tail) = (link, link),
            Some(neighbour) if end == End::Front => {
                relink(words, neighbour, |buddy| buddy.prev = link)?;
                self.head = link;
            }
            Some(neighbour) => {
                relink(words, neighbour, |buddy| buddy.next = link)?;
                self.tail = link;
            }
        }
        self.blocks += 1;
        Ok(())
    }

    /// Takes `block`, which starts at `pfn`, off the list. Its word stays.
    pub(super) fn remove(
        &mut self,
        words: &WordTable,
        pfn: Pfn,
        block: Buddy,
    ) -> Result<(), Corrupt> {
        self.blocks = self.blocks.checked_sub(1).ok_or(Corrupt(pfn))?;
        match words.follow(block.prev) {
            Some(prev) => relink(words, prev, |buddy| buddy.next = block.next)?,
            None => self.head = block.next,
        }
        match words.follow(block.next) {
            Some(next) => relink(words, next, |buddy| buddy.prev = block.prev)?,
            None => self.tail = block.prev,
        }
        Ok(())
    }
}

/// Changes the links in the word of a free block.
fn relink(words: &WordTable, pfn: Pfn, change: impl FnOnce(&mut Buddy)) -> Result<(), Corrupt> {
    let cell = words.cell(pfn).map_err(|_| Corrupt(pfn))?;
    let word = cell.load();
    let mut buddy = word.as_buddy().ok_or(Corrupt(pfn))?;
    change(&mut buddy);
    cell.transition(word, buddy.encode()).map_err(|_| Corrupt(pfn))
}
