//! A file, mapped twice, against a vector of bytes.

use abi::PAGE_SIZE;
use proptest::prelude::*;

use crate::fault::FaultError;
use crate::memdesc::Order;
use crate::platform::FaultSite;
use crate::rmap::tests::world::World;
use crate::space::MapFlags;

/// Pages that the mappings span.
const PAGES: u64 = 24;

#[derive(Debug, Clone)]
enum Op {
    Write {
        offset: u64,
        length: usize,
        byte: u8,
    },
    Read {
        offset: u64,
        length: usize,
    },
    Truncate(u64),
    Punch {
        offset: u64,
        length: u64,
    },
    /// By the first mapping, of the whole file.
    Store {
        word: u64,
        value: u64,
    },
    /// By the second, of another process, from page 4 on.
    Load {
        word: u64,
    },
    FolioOrder(u8),
    Split {
        page: u64,
        order: u8,
    },
    /// Makes one of the next allocations fail.
    Fail {
        site: FaultSite,
        nth: u64,
    },
    /// Takes a clean page out, as reclaim does.
    Reclaim {
        page: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let bytes = PAGES * PAGE_SIZE;
    let length = prop_oneof![0usize..50, 0usize..20_000];
    let site = prop_oneof![Just(FaultSite::BuddyAlloc), Just(FaultSite::SlabAlloc)];
    prop_oneof![
        4 => (0..bytes, length.clone(), any::<u8>())
            .prop_map(|(offset, length, byte)| Op::Write { offset, length, byte }),
        2 => (0..bytes, length).prop_map(|(offset, length)| Op::Read { offset, length }),
        2 => (0..bytes).prop_map(Op::Truncate),
        1 => (0..bytes, 1..60_000u64).prop_map(|(offset, length)| Op::Punch { offset, length }),
        4 => (0..bytes / 8, any::<u64>()).prop_map(|(word, value)| Op::Store { word, value }),
        4 => (0..bytes / 8).prop_map(|word| Op::Load { word }),
        1 => (0u8..4).prop_map(Op::FolioOrder),
        2 => (0..PAGES, 0u8..3).prop_map(|(page, order)| Op::Split { page, order }),
        1 => (site, 1..4u64).prop_map(|(site, nth)| Op::Fail { site, nth }),
        1 => (0..PAGES).prop_map(|page| Op::Reclaim { page }),
    ]
}

fn order(n: u8) -> Order {
    Order::new(n).unwrap()
}

/// A word of the model, if the page is inside the file. Bytes behind the end are
/// whatever mappings wrote there.
fn word_of(model: &[u8], at: u64) -> Result<Vec<Option<u8>>, FaultError> {
    let size = model.len() as u64;
    if at / PAGE_SIZE >= size.div_ceil(PAGE_SIZE) {
        return Err(FaultError::Bus);
    }
    Ok((at..at + 8).map(|at| model.get(usize::try_from(at).unwrap()).copied()).collect())
}

fn run(ops: Vec<Op>) {
    let world = World::new(2048);
    let (one, two) = (world.space(), world.space());
    let file = world.mm.shmem_file(0).unwrap();
    let whole = world.map_file(&one, &file, (0, PAGES), MapFlags::SHARED);
    let part = world.map_file(&two, &file, (4, PAGES - 4), MapFlags::SHARED);
    let mut model: Vec<u8> = Vec::new();
    for op in ops {
        match op {
            Op::Write { offset, length, byte } => {
                let bytes = vec![byte; length];
                // Short, or nothing at all, if memory runs out.
                let wrote = world.mm.write_file(&file, offset, &bytes).unwrap_or(0);
                let start = usize::try_from(offset).unwrap();
                if wrote > 0 {
                    model.resize(model.len().max(start + wrote), 0);
                    model[start..start + wrote].fill(byte);
                }
            }
            Op::Read { offset, length } => {
                let mut bytes = vec![0xa5; length];
                let read = world.mm.read_file(&file, offset, &mut bytes);
                let start = usize::try_from(offset).unwrap().min(model.len());
                let expected = &model[start..model.len().min(start + length)];
                assert_eq!(read, expected.len());
                assert!(bytes[..read] == *expected, "read at {offset}");
            }
            Op::Truncate(size) => {
                world.mm.truncate_file(&file, size).unwrap();
                model.resize(usize::try_from(size).unwrap(), 0);
            }
            Op::Punch { offset, length } => {
                world.mm.punch_hole(&file, offset, length).unwrap();
                let clamp = |at: u64| usize::try_from(at).unwrap().min(model.len());
                let range = clamp(offset)..clamp(offset + length);
                model[range].fill(0);
            }
            Op::Store { word, value } => {
                let stored = world.store(&one, whole + word * 8, value);
                match (word_of(&model, word * 8), stored) {
                    (Err(expected), Err(error)) if error != FaultError::Oom => {
                        assert_eq!(error, expected);
                    }
                    (_, Err(error)) => assert_eq!(error, FaultError::Oom),
                    (Err(_), Ok(())) => panic!("a store beyond the end"),
                    (Ok(_), Ok(())) => {
                        let start = usize::try_from(word * 8).unwrap();
                        for (i, byte) in value.to_ne_bytes().into_iter().enumerate() {
                            if let Some(place) = model.get_mut(start + i) {
                                *place = byte;
                            }
                        }
                    }
                }
            }
            Op::Load { word } => {
                let at = (word * 8).max(4 * PAGE_SIZE);
                let loaded = world.load(&two, part + at - 4 * PAGE_SIZE);
                match (word_of(&model, at), loaded) {
                    (Ok(expected), Ok(value)) => {
                        for (byte, expected) in value.to_ne_bytes().into_iter().zip(expected) {
                            assert!(expected.is_none_or(|expected| expected == byte), "{at:#x}");
                        }
                    }
                    (Err(expected), Err(error)) if error != FaultError::Oom => {
                        assert_eq!(error, expected);
                    }
                    (_, Err(error)) => assert_eq!(error, FaultError::Oom),
                    (Err(_), Ok(value)) => panic!("{value} beyond the end"),
                }
            }
            Op::FolioOrder(to) => file.set_folio_order(order(to)),
            Op::Split { page, order: to } => {
                if let Some(folio) = world.mm.find_get_folio(&file, page) {
                    let folio = folio.into_locked(world.platform());
                    // Refused if it is small enough, or memory is short.
                    let split = world.mm.split_folio(folio.reference(), order(to));
                    assert!(split.is_ok() || folio.order() <= order(3));
                    world.mm.put(folio.unlock());
                }
            }
            Op::Fail { site, nth } => world.platform().faults().fail_nth(site, nth),
            Op::Reclaim { page } => {
                if let Some(folio) = world.mm.find_get_folio(&file, page) {
                    let folio = folio.into_locked(world.platform());
                    world.mm.try_to_unmap(&folio, crate::rmap::Unmap::Reclaim);
                    world.mm.drop_clean_folio(folio.reference());
                    world.mm.put(folio.unlock());
                }
            }
        }
        assert_eq!(file.size(), model.len() as u64);
        assert_eq!(file.pages.validate().map(drop), Ok(()));
    }
    for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc] {
        world.platform().faults().fail_nth(site, 0);
    }
    world.assert_consistent();
    let mut bytes = vec![0; model.len()];
    assert_eq!(world.mm.read_file(&file, 0, &mut bytes), model.len());
    assert!(bytes == model, "the whole file");
    world.mm.file_put(file);
    world.end([one, two]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_file_is_its_bytes_whoever_looks(ops in prop::collection::vec(op(), 1..60)) {
        run(ops);
    }
}
