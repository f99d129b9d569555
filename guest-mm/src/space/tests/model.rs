//! Random calls against a model that knows single pages only.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Pages that the calls play with, from `HERE` on.
const PAGES: u64 = 24;

/// A page as the model knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Page {
    readable: bool,
    writable: bool,
    /// What its first word is.
    word: u64,
    dont_fork: bool,
    wipe: bool,
    /// Of the shared file, and which page of it.
    file: Option<u64>,
}

/// What one process has, page by page.
type Model = BTreeMap<u64, Page>;

#[derive(Debug, Clone)]
enum Op {
    Map {
        first: u64,
        pages: u64,
        prot: u8,
    },
    MapShared {
        first: u64,
        pages: u64,
        offset: u64,
    },
    Unmap {
        first: u64,
        pages: u64,
    },
    Protect {
        first: u64,
        pages: u64,
        prot: u8,
    },
    Remap {
        first: u64,
        old: u64,
        new: u64,
        to: Option<u64>,
        keep: bool,
    },
    Advise {
        first: u64,
        pages: u64,
        advice: u8,
    },
    Store {
        page: u64,
        value: u64,
    },
    Load {
        page: u64,
    },
    Fork,
    /// Goes on with another process.
    Switch(u8),
    Exit,
}

fn span() -> impl Strategy<Value = (u64, u64)> {
    (0..PAGES, 1..7u64).prop_map(|(first, pages)| (first, pages.min(PAGES - first)))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (span(), 0..4u8).prop_map(|((first, pages), prot)| Op::Map { first, pages, prot }),
        1 => (span(), 0..4u64).prop_map(|((first, pages), offset)| Op::MapShared { first, pages, offset }),
        2 => span().prop_map(|(first, pages)| Op::Unmap { first, pages }),
        3 => (span(), 0..4u8).prop_map(|((first, pages), prot)| Op::Protect { first, pages, prot }),
        3 => (span(), 1..7u64, proptest::option::of(0..PAGES), any::<bool>())
            .prop_map(|((first, old), new, to, keep)| Op::Remap { first, old, new, to, keep }),
        3 => (span(), 0..9u8).prop_map(|((first, pages), advice)| Op::Advise { first, pages, advice }),
        6 => (0..PAGES, 1..1000u64).prop_map(|(page, value)| Op::Store { page, value }),
        2 => (0..PAGES).prop_map(|page| Op::Load { page }),
        1 => Just(Op::Fork),
        1 => any::<u8>().prop_map(Op::Switch),
        1 => Just(Op::Exit),
    ]
}

fn prot_of(bits: u8) -> PageProt {
    match bits {
        0 => PageProt::empty(),
        1 => PageProt::READ,
        _ => RW,
    }
}

impl Page {
    fn anonymous(prot: PageProt) -> Self {
        Self {
            readable: !prot.is_empty(),
            writable: prot.contains(PageProt::WRITE),
            word: 0,
            dont_fork: false,
            wipe: false,
            file: None,
        }
    }
}

/// A process and what it should look like.
struct Process<'m> {
    space: SpaceRef<'m, TestPlatform>,
    model: Model,
}

struct World<'a, 'm> {
    mm: &'a TestMm<'m>,
    processes: Vec<Process<'m>>,
    now: usize,
    file: FileRef<'m, TestPlatform>,
    /// First words of the file's pages.
    words: Vec<u64>,
}

const FILE_PAGES: u64 = 12;

impl<'a, 'm> World<'a, 'm> {
    fn new(mm: &'a TestMm<'m>) -> Self {
        let process = Process { space: mm.new_space().unwrap(), model: Model::new() };
        let words = (0..FILE_PAGES).map(|page| 1000 + page).collect();
        Self { mm, processes: vec![process], now: 0, file: file(mm, FILE_PAGES), words }
    }

    fn run(&mut self, op: Op) {
        let mm = self.mm;
        let count = self.processes.len();
        let process = &mut self.processes[self.now];
        let (space, model) = (&process.space, &mut process.model);
        match op {
            Op::Map { first, pages, prot } => {
                let prot = prot_of(prot);
                mm.mmap(space, Args::anonymous(pages * PAGE).prot(prot).fixed(at(first))).unwrap();
                (first..first + pages).for_each(|page| {
                    model.insert(page, Page::anonymous(prot));
                });
            }
            Op::MapShared { first, pages, offset } => {
                map_file(mm, space, &self.file, (first, pages, offset), MapFlags::SHARED);
                (0..pages).for_each(|page| {
                    let shared = Page { file: Some(offset + page), ..Page::anonymous(RW) };
                    model.insert(first + page, shared);
                });
            }
            Op::Unmap { first, pages } => {
                mm.munmap(space, at(first), pages * PAGE).unwrap();
                (first..first + pages).for_each(|page| {
                    model.remove(&page);
                });
            }
            Op::Protect { first, pages, prot } => {
                let prot = prot_of(prot);
                let covered = (first..first + pages)
                    .take_while(|page| model.contains_key(page))
                    .count() as u64;
                let result = mm.mprotect(space, at(first), pages * PAGE, prot);
                let expected = if covered == pages { Ok(()) } else { Err(Errno::ENOMEM) };
                assert_eq!(result, expected);
                for page in first..first + covered {
                    let page = model.get_mut(&page).unwrap();
                    page.readable = !prot.is_empty();
                    page.writable = prot.contains(PageProt::WRITE);
                }
            }
            Op::Remap { first, old, new, to, keep } => self.remap(first, old, new, to, keep),
            Op::Advise { first, pages, advice } => self.advise(first, pages, advice),
            Op::Store { page, value } => {
                let expected = match model.get_mut(&page) {
                    None => Err(Signal::SegvMapErr),
                    Some(entry) if !entry.writable => Err(Signal::SegvAccErr),
                    Some(entry) => match entry.file {
                        None => {
                            entry.word = value;
                            Ok(())
                        }
                        Some(index) => {
                            let word = self.words.get_mut(usize::try_from(index).unwrap());
                            word.map(|word| *word = value).ok_or(Signal::Bus)
                        }
                    },
                };
                assert_eq!(store(mm, space, at(page), value), expected, "page {page}");
            }
            Op::Load { page } => self.expect_page(self.now, page),
            Op::Fork if count < 4 => {
                let child = mm.fork(space).unwrap();
                let kept = model.iter().filter(|(_, page)| !page.dont_fork);
                let model = kept
                    .map(|(&at, &page)| {
                        (at, Page { word: if page.wipe { 0 } else { page.word }, ..page })
                    })
                    .collect();
                self.processes.push(Process { space: child, model });
            }
            Op::Switch(number) => self.now = usize::from(number) % count,
            Op::Exit if count > 1 => {
                let gone = self.processes.remove(self.now);
                self.now = 0;
                mm.platform().leave();
                mm.exit_space(gone.space);
            }
            Op::Fork | Op::Exit => {}
        }
    }

    /// Whether one VMA covers all of it. The model knows pages only: whether neighbours are one VMA
    /// is for the tree to say, and then the model checks what comes of it.
    fn is_one_vma(&self, first: u64, pages: u64) -> bool {
        let guard = self.processes[self.now].space.read();
        let vma = guard.lookup(va(at(first)));
        vma.is_some_and(|vma| vma.end() >= va(at(first + pages)))
    }

    fn remap(&mut self, first: u64, old: u64, new: u64, to: Option<u64>, keep: bool) {
        let one = self.is_one_vma(first, old);
        let process = &mut self.processes[self.now];
        let (space, model) = (&process.space, &mut process.model);
        let keep = keep && to.is_some();
        let new = if keep { old } else { new };
        let mut flags = RemapFlags::empty();
        if to.is_some() {
            flags |= RemapFlags::MAYMOVE | RemapFlags::FIXED;
        }
        flags.set(RemapFlags::DONTUNMAP, keep);
        let target = to.unwrap_or(first);
        let call = RemapArgs {
            old: at(first),
            old_bytes: old * PAGE,
            new_bytes: new * PAGE,
            flags,
            new: at(target),
        };
        let result = self.mm.mremap(space, call).map(|there| there.get());
        let overlaps = to.is_some_and(|to| to < first + old && first < to + new);
        let grows_into = (first + old..first + new).any(|page| model.contains_key(&page));
        let expected = if overlaps {
            Err(Errno::EINVAL)
        } else if !model.contains_key(&first) || (!one && (to.is_some() || new > old)) {
            Err(Errno::EFAULT)
        } else if to.is_none() && new > old && grows_into {
            Err(Errno::ENOMEM)
        } else {
            Ok(at(target))
        };
        if expected.is_ok() && to.is_none() && new > old {
            // It can only grow where its VMA ends.
            let ends_there = result.is_ok();
            let guard = space.read();
            let end = guard.lookup(va(at(first))).unwrap().end();
            assert_eq!(ends_there, end >= va(at(first + new)), "{call:x?}");
            if !ends_there {
                assert_eq!(result, Err(Errno::ENOMEM));
                return;
            }
        } else {
            assert_eq!(result, expected, "{call:x?}");
        }
        if result.is_err() {
            return;
        }
        let last = *model.get(&first).unwrap();
        let moved: Vec<_> = (first..first + old).map(|page| model.get(&page).copied()).collect();
        if to.is_some() {
            (target..target + new).for_each(|page| {
                model.remove(&page);
            });
        }
        (first..first + old).for_each(|page| {
            model.remove(&page);
        });
        for page in 0..new {
            let index = usize::try_from(page).unwrap();
            let fresh = Page { word: 0, file: last.file.map(|first| first + page), ..last };
            let entry = moved.get(index).copied().unwrap_or(Some(fresh));
            if let Some(entry) = entry {
                model.insert(target + page, entry);
            }
        }
        if keep {
            for (page, entry) in (first..).zip(moved.into_iter().flatten()) {
                model.insert(page, Page { word: 0, ..entry });
            }
        }
    }

    fn advise(&mut self, first: u64, pages: u64, advice: u8) {
        let process = &mut self.processes[self.now];
        let (space, model) = (&process.space, &mut process.model);
        let all = (first..first + pages).all(|page| model.contains_key(&page));
        let advice = match advice {
            0 => Advice::DontNeed,
            1 => Advice::DontFork,
            2 => Advice::DoFork,
            3 => Advice::WipeOnFork,
            4 => Advice::KeepOnFork,
            5 => Advice::NoHugePage,
            6 => Advice::Cold,
            _ => Advice::PageOut,
        };
        let result = self.mm.madvise(space, at(first), pages * PAGE, advice);
        // What lies before a VMA of the wrong kind has the advice.
        let bad = (first..first + pages).find(|page| {
            advice == Advice::WipeOnFork && model.get(page).is_some_and(|page| page.file.is_some())
        });
        let expected = match (bad, all) {
            (Some(_), _) => Err(Errno::EINVAL),
            (None, true) => Ok(()),
            (None, false) => Err(Errno::ENOMEM),
        };
        assert_eq!(result, expected, "{advice:?} {first} {pages}");
        for page in first..bad.unwrap_or(first + pages) {
            let Some(page) = model.get_mut(&page) else { continue };
            match advice {
                Advice::DontNeed if page.file.is_none() => page.word = 0,
                Advice::DontFork => page.dont_fork = true,
                Advice::DoFork => page.dont_fork = false,
                Advice::WipeOnFork => page.wipe = true,
                Advice::KeepOnFork => page.wipe = false,
                Advice::DontNeed
                | Advice::Free
                | Advice::HugePage
                | Advice::NoHugePage
                | Advice::PopulateRead
                | Advice::PopulateWrite
                | Advice::Cold
                | Advice::PageOut
                | Advice::Collapse => {}
            }
        }
    }

    fn expect_page(&self, process: usize, page: u64) {
        let process = &self.processes[process];
        let expected = match process.model.get(&page) {
            None => Err(Signal::SegvMapErr),
            Some(entry) if !entry.readable => Err(Signal::SegvAccErr),
            Some(Page { file: Some(index), .. }) => {
                self.words.get(usize::try_from(*index).unwrap()).copied().ok_or(Signal::Bus)
            }
            Some(entry) => Ok(entry.word),
        };
        assert_eq!(load(self.mm, &process.space, at(page)), expected, "page {page}");
    }

    fn end(mut self) {
        for process in 0..self.processes.len() {
            (0..PAGES + 8).for_each(|page| self.expect_page(process, page));
        }
        check(self.mm);
        self.mm.platform().leave();
        for process in self.processes.drain(..) {
            self.mm.exit_space(process.space);
        }
        end_file(self.mm, self.file);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn processes_see_what_a_page_by_page_model_says(ops in vec(op(), 1..60)) {
        with_mm(|mm| {
            mm.swapon_ram(64).unwrap();
            let mut world = World::new(mm);
            for op in ops {
                world.run(op);
                check(mm);
            }
            world.end();
            mm.swapoff().unwrap();
        });
    }
}
