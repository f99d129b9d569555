//! Words: layout, table, lookup.

use abi::Pfn;
use proptest::prelude::*;

use super::transition::is_legal;
use super::*;
use crate::testing::{memory, memory_of, range};

fn order() -> impl Strategy<Value = Order> {
    (0u8..=10).prop_map(|order| Order::new(order).unwrap())
}

fn link() -> impl Strategy<Value = Link> {
    prop_oneof![Just(Link::NONE), (0..ZONE_MAX_PAGES).prop_map(|n| Link::to(n).unwrap())]
}

fn migratetype() -> impl Strategy<Value = MigrateType> {
    prop::sample::select(&MigrateType::ALL[..])
}

fn block() -> impl Strategy<Value = Memdesc> {
    let kinds = [
        BlockKind::Empty,
        BlockKind::Zero,
        BlockKind::Driver,
        BlockKind::Vmalloc,
        BlockKind::Guard,
        BlockKind::LargeKmalloc,
        BlockKind::Exact,
        BlockKind::Brd,
        BlockKind::Reserved,
        BlockKind::Report,
        BlockKind::Frozen,
    ];
    (prop::sample::select(kinds.to_vec()), order(), any::<bool>()).prop_map(
        |(kind, order, user_mappable)| Memdesc::Block(Block { kind, order, user_mappable }),
    )
}

fn offline() -> impl Strategy<Value = Memdesc> {
    let hold = prop::sample::select(&Hold::ALL[..4]);
    (order(), 0u8..16, hold, any::<bool>()).prop_map(|(order, driver, hold, skippable)| {
        let driver = DriverId::new(driver).unwrap();
        Memdesc::Offline(Offline { order, driver, hold, skippable })
    })
}

fn free() -> impl Strategy<Value = Memdesc> {
    (order(), migratetype(), any::<bool>(), link(), link(), 0u8..4, any::<bool>()).prop_map(
        |(order, migratetype, reported, prev, next, cpu, listed)| {
            if listed {
                Memdesc::Pcp(Pcp { order, migratetype, cpu, reported, next })
            } else {
                Memdesc::Buddy(Buddy { order, migratetype, reported, prev, next })
            }
        },
    )
}

fn descriptor() -> impl Strategy<Value = Memdesc> {
    let kind = prop::sample::select(&DescriptorKind::ALL[..]);
    let hold = prop::sample::select(vec![Hold::Held, Hold::Movable, Hold::Isolated, Hold::Doomed]);
    (kind, 1u64..1 << 43, any::<bool>(), hold).prop_map(|(kind, address, high, hold)| {
        let address = address << 4 | if high { 0xffff_8000_0000_0000 } else { 0 };
        let mut found = Descriptor::new(kind, address).unwrap();
        if kind.kind().can_move() {
            found.hold = hold;
        }
        Memdesc::Descriptor(found)
    })
}

fn memdesc() -> impl Strategy<Value = Memdesc> {
    let tail = (0u64..1 << 52).prop_map(|n| Memdesc::Tail(Tail::of(Pfn::new(n).unwrap())));
    let transit = order().prop_map(|order| Memdesc::Transit(Transit { order }));
    prop_oneof![block(), offline(), free(), descriptor(), tail, transit]
}

proptest! {
    #[test]
    fn decoding_undoes_encoding(memdesc in memdesc()) {
        prop_assert_eq!(memdesc.encode().decode(), Ok(memdesc));
    }

    #[test]
    fn every_bit_pattern_is_either_an_encoding_or_refused(bits: u64) {
        let word = Word::from_bits(bits);
        if let Ok(memdesc) = word.decode() {
            prop_assert_eq!(memdesc.encode(), word);
        }
    }

    #[test]
    fn one_flipped_bit_never_decodes_to_the_same(memdesc in memdesc(), bit in 0u32..64) {
        let word = Word::from_bits(memdesc.encode().bits() ^ 1 << bit);
        prop_assert_ne!(word.decode(), Ok(memdesc));
    }

    #[test]
    fn the_state_of_a_word_is_that_of_what_it_says(memdesc in memdesc()) {
        let state = memdesc.encode().state().unwrap();
        let hold = match memdesc {
            Memdesc::Offline(offline) => offline.hold,
            Memdesc::Descriptor(descriptor) => descriptor.hold,
            Memdesc::Block(_)
            | Memdesc::Pcp(_)
            | Memdesc::Tail(_)
            | Memdesc::Buddy(_)
            | Memdesc::Transit(_) => Hold::Held,
        };
        prop_assert_eq!(state.hold, hold);
        prop_assert_eq!(state.kind.tag(), memdesc.encode().tag());
    }

    #[test]
    fn tails_lead_to_the_head_of_any_block_that_holds_them(
        head in 0u64..1 << 30,
        order in order(),
        offset: prop::sample::Index,
    ) {
        let head = head << order.get();
        let mut at = head + offset.index(1 << order.get()) as u64;
        for _ in 0..=Order::COUNT {
            if at == head {
                break;
            }
            at -= u64::from(Tail::of(Pfn::new(at).unwrap()).distance);
        }
        prop_assert_eq!(at, head);
    }
}

#[test]
fn unused_tags_and_subtypes_are_unknown() {
    for tag in [6, 10, 11, 13] {
        assert!(Word::from_bits(tag).decode().is_err(), "tag {tag}");
    }
    for subtype in 14..128u64 {
        assert!(Word::from_bits(subtype << 4).decode().is_err(), "subtype {subtype}");
    }
    // Order 11, and migratetype 6.
    assert!(Word::from_bits(1 | 11 << 4).decode().is_err());
    assert!(Word::from_bits(1 | 6 << 8).decode().is_err());
    // Isolated without movable; parked and movable.
    assert!(Word::from_bits(5 << 4 | 1 << 19).decode().is_err());
    assert!(Word::from_bits(5 << 4 | 1 << 18 | 1 << 26).decode().is_err());
}

#[test]
fn tags_have_the_numbers_of_the_memdesc_plan() {
    let fixed = [
        (Kind::Buddy, 1),
        (Kind::File, 2),
        (Kind::Anon, 3),
        (Kind::Ksm, 4),
        (Kind::Slab, 5),
        (Kind::Movable, 7),
        (Kind::PtDesc, 8),
        (Kind::HwPoison, 9),
        (Kind::ZpDesc, 12),
        (Kind::DevFolio, 14),
        (Kind::Transit, 15),
    ];
    for (kind, number) in fixed {
        assert_eq!(kind.tag() as u8, number, "{kind:?}");
    }
    let subtypes = [(Kind::Zero, 1), (Kind::Driver, 2), (Kind::Vmalloc, 3), (Kind::Guard, 4)];
    for (kind, number) in subtypes.into_iter().chain([(Kind::Offline, 5), (Kind::Brd, 8)]) {
        assert_eq!(kind as u8, number, "{kind:?}");
    }
    for (number, tag) in Tag::ALL.into_iter().enumerate() {
        assert_eq!(tag as usize, number);
    }
    for (number, kind) in Kind::ALL.into_iter().enumerate() {
        assert_eq!(kind.index(), number);
    }
}

#[test]
fn descriptors_must_be_aligned_canonical_and_present() {
    for address in [0, 8, 1 << 47, 0xffff_0000_0000_0010, 0x0001_0000_0000_0000] {
        assert!(Descriptor::new(DescriptorKind::Anon, address).is_none(), "{address:#x}");
    }
    assert!(Descriptor::new(DescriptorKind::Ksm, 0).is_some());
    assert!(Descriptor::new(DescriptorKind::Anon, 0xffff_8000_0000_0010).is_some());
}

#[test]
fn an_isolated_frame_goes_back_or_to_migration_and_nowhere_else() {
    for kind in Kind::ALL.into_iter().filter(|kind| kind.can_move()) {
        let isolated = State { kind, hold: Hold::Isolated };
        let reachable: Vec<State> = all_states().filter(|&to| is_legal(isolated, to)).collect();
        let movable = State { kind, hold: Hold::Movable };
        // An offline block can be cut, or taken back by a driver whose device has it;
        // the frames after the first of a folio that has moved become tails; what has
        // no reference count can be given up by its owner.
        let [parked, doomed] = [Hold::Parked, Hold::Doomed].map(|hold| State { kind, hold });
        let (offline, folio) = ([isolated, parked], [State::held(Kind::Tail)]);
        let more = if kind == Kind::Offline {
            &offline[..]
        } else if matches!(kind, Kind::File | Kind::Anon) {
            &folio[..]
        } else {
            &[doomed]
        };
        assert_eq!(reachable.len(), 2 + more.len(), "{kind:?}: {reachable:?}");
        assert!(more.iter().all(|state| reachable.contains(state)));
        assert!(reachable.contains(&movable) && reachable.contains(&State::held(Kind::Frozen)));
        // A doomed one never goes back to its owner, who has forgotten it.
        let onward: Vec<State> = all_states().filter(|&to| is_legal(doomed, to)).collect();
        let frozen = [State::held(Kind::Frozen)];
        assert_eq!(onward, if more == [doomed] { &frozen[..] } else { &[] }, "{kind:?}");
    }
}

#[test]
fn a_frame_that_others_may_find_stays_its_owners_until_it_is_claimed() {
    for from in all_states().filter(|from| matches!(from.hold, Hold::Parked | Hold::Movable)) {
        for to in all_states().filter(|&to| is_legal(from, to)) {
            // A destination that its new owner parked and could not go over to after all.
            let undone = from.hold == Hold::Parked && to == State::held(Kind::Transit);
            assert!(undone || to.kind == from.kind, "{from:?} -> {to:?}");
            let isolates = to.hold == Hold::Isolated;
            assert!(!isolates || from.hold == Hold::Movable, "{from:?} -> {to:?}");
        }
    }
}

#[test]
fn nothing_leaves_a_memory_error_or_becomes_uninitialised() {
    for state in all_states() {
        assert!(!is_legal(State::held(Kind::HwPoison), state), "{state:?}");
        assert!(!is_legal(state, State::held(Kind::Empty)), "{state:?}");
    }
}

#[test]
fn only_the_allocator_touches_free_frames() {
    for from in [Kind::Buddy, Kind::Pcp] {
        for to in all_states().filter(|&to| is_legal(State::held(from), to)) {
            let allowed = [Kind::Buddy, Kind::Pcp, Kind::Frozen, Kind::Tail, Kind::Report];
            assert!(allowed.contains(&to.kind), "{from:?} to {to:?}");
        }
    }
}

#[test]
fn every_kind_in_use_is_reached_from_start() {
    let mut seen = vec![State::held(Kind::Empty)];
    let mut at = 0;
    while at < seen.len() {
        let from = seen[at];
        seen.extend(
            all_states()
                .filter(|&to| is_legal(from, to))
                .filter(|to| !seen.contains(to))
                .collect::<Vec<_>>(),
        );
        at += 1;
    }
    for kind in Kind::ALL {
        assert!(seen.iter().any(|state| state.kind == kind), "{kind:?} is unreachable");
    }
    assert!(!seen.iter().any(|s| s.hold == Hold::Parked && s.kind != Kind::Offline));
}

fn all_states() -> impl Iterator<Item = State> {
    Kind::ALL
        .into_iter()
        .flat_map(|kind| Hold::ALL.into_iter().map(move |hold| State { kind, hold }))
}

#[test]
fn a_cell_refuses_illegal_stale_and_malformed_changes() {
    let word = |kind| Memdesc::Block(Block::new(kind, Order::ZERO)).encode();
    let (frozen, driver, zero) =
        (word(BlockKind::Frozen), word(BlockKind::Driver), word(BlockKind::Zero));
    let cell = WordCell::new(driver);
    assert!(matches!(cell.transition(driver, zero), Err(TransitionError::Illegal { .. })));
    assert_eq!(cell.transition(zero, frozen), Err(TransitionError::Raced { found: driver }));
    let unknown = cell.transition(driver, Word::from_bits(6));
    assert!(matches!(unknown, Err(TransitionError::Unknown(_))));
    assert_eq!(cell.load(), driver);
    assert_eq!(cell.transition(driver, frozen), Ok(()));
}

#[test]
fn a_frame_outside_ram_has_no_word() {
    let memory = memory_of(&[range(1024, 4096)], &[]);
    for number in [0, 1023, 1024 + 4096, 1 << 26, (1 << 52) - 1] {
        let pfn = Pfn::new(number).unwrap();
        assert_eq!(memory.words().load(pfn), Err(OutOfMap(pfn)));
        assert!(matches!(memory.words().head_of(pfn), Err(LookupError::OutOfMap(_))));
    }
}

#[test]
fn any_frame_of_a_block_leads_to_its_head() {
    let memory = memory(4096);
    let order = Order::new(7).unwrap();
    let frames = memory.alloc_frozen(order, crate::buddy::Gfp::USER).unwrap();
    for pfn in frames.range().iter() {
        let (head, memdesc) = memory.words().head_of(pfn).unwrap();
        assert_eq!((head, memdesc.order()), (frames.head(), Some(order)));
    }
    memory.free_frozen(frames);
}
