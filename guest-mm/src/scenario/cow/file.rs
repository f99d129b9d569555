//! Private mappings of what is not anonymous: the zero page, files, shared memory.

use core::fmt;

use abi::PAGE_SIZE;

use super::super::{Ctx, Failure, Machine, Outcome, Process};
use super::memory::{How, PinList};
use super::{NEW, OLD, On, pins_show};
use crate::gup::GupFlags;
use crate::pagecache::FileRef;
use crate::pgtable::PageProt;
use crate::space::{MapFlags, MapSource, MmapArgs};

/// What lies behind the private mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    /// The zero page.
    ZeroPage,
    /// A file without a name (memfd, shared anonymous memory).
    Memfd,
    /// A file of a file system.
    Tmpfile,
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ZeroPage => "zeropage",
            Self::Memfd => "memfd",
            Self::Tmpfile => "tmpfile",
        })
    }
}

/// What a test does with memory.
type Test<M> = fn(&Mapped<'_, '_, M>) -> Outcome;

/// The tests, by their names in Linux's `cow`.
const fn tests<M: Machine>() -> [(&'static str, Test<M>); 3] {
    [
        ("test_cow", cow),
        ("test_ro_pin", |mapped| ro_pin(mapped, How::Slow)),
        ("test_ro_fast_pin", |mapped| ro_pin(mapped, How::Fast)),
    ]
}

/// Runs the tests on everything that may lie behind.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let mut outcome = Ok(());
    for (name, test) in tests::<M>() {
        for behind in [Behind::ZeroPage, Behind::Memfd, Behind::Tmpfile] {
            let ended = Mapped::new(ctx, behind).and_then(|mapped| test(&mapped));
            outcome = outcome.and(ctx.report(On(name, behind), ended));
        }
    }
    outcome
}

/// A process with a private page over something, which it may look at by a shared mapping too.
struct Mapped<'a, 'm, M: Machine> {
    process: Process<'a, 'm, M>,
    file: Option<FileRef<'m, M>>,
    /// The private mapping, which shows the pattern of [`OLD`], or zeros.
    private: u64,
    /// A second mapping: shared, or of the zero page like the first.
    other: u64,
}

impl<'a, 'm, M: Machine> Mapped<'a, 'm, M> {
    fn new(ctx: &Ctx<'a, 'm, M>, behind: Behind) -> Result<Self, Failure> {
        let process = Process::new(ctx.mm)?;
        let file = match behind {
            Behind::ZeroPage => {
                let page = MmapArgs::anonymous(PAGE_SIZE);
                let (private, other) = (process.mmap(page)?, process.mmap(page)?);
                // A look is what maps the zero page.
                process.load(private)?;
                process.load(other)?;
                return Ok(Self { process, file: None, private, other });
            }
            Behind::Memfd => ctx.mm.shmem_file(PAGE_SIZE)?,
            Behind::Tmpfile => {
                let file = ctx.mm.create_file(b"cow")?;
                ctx.mm.unlink_file(b"cow")?;
                ctx.mm.truncate_file(&file, PAGE_SIZE)?;
                file
            }
        };
        let mut mapped = Self { process, file: Some(file), private: 0, other: 0 };
        mapped.other = mapped.map(MapFlags::SHARED)?;
        mapped.process.fill(mapped.other, 1, OLD)?;
        mapped.private = mapped.map(MapFlags::PRIVATE)?;
        mapped.process.load(mapped.private)?;
        Ok(mapped)
    }

    fn map(&self, flags: MapFlags) -> Result<u64, Failure> {
        let source = self.file.as_ref().map(|file| MapSource {
            file,
            offset: 0,
            readable: true,
            writable: true,
        });
        let prot = PageProt::READ | PageProt::WRITE;
        Ok(self.process.mmap(MmapArgs { addr: 0, bytes: PAGE_SIZE, prot, flags, source })?)
    }

    /// The other mapping shows what it did, whatever happened to the private one.
    fn expect_other_unchanged(&self) -> Outcome {
        match self.file {
            Some(_) => self.process.expect(self.other, 1, OLD),
            None => super::super::check_eq(self.process.load(self.other)?, 0, "the zero page"),
        }
    }
}

impl<M: Machine> Drop for Mapped<'_, '_, M> {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            self.process.mm().file_put(file);
        }
    }
}

/// What is written to the private mapping stays there.
fn cow<M: Machine>(mapped: &Mapped<'_, '_, M>) -> Outcome {
    mapped.process.fill(mapped.private, 1, NEW)?;
    mapped.expect_other_unchanged()?;
    mapped.process.expect(mapped.private, 1, NEW)
}

/// A pin for ever shows what the process writes afterwards: the page was made its own before.
fn ro_pin<M: Machine>(mapped: &Mapped<'_, '_, M>, how: How) -> Outcome {
    let pins = PinList::new(&mapped.process, (mapped.private, 1), how, GupFlags::LONGTERM)?;
    mapped.process.fill(mapped.private, 1, NEW)?;
    pins_show(&mapped.process, &pins, NEW)?;
    mapped.expect_other_unchanged()
}
