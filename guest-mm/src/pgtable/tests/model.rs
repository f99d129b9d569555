//! Random operations on two spaces against maps from page to leaf.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::{
    DevOffset, ForkError, ForkLeaf, Leaf, LeafFlags, LeafState, Marker, PageProt, PmdLeaf,
    PmdSoftleaf, Protection, Sharing, Softleaf, SwapSlot, TlbGather, ZapRules,
};
use super::*;

/// Pages of the tested range: three directories' entries, and a bit of the next directory.
const PAGES: u64 = 1700;
const FIRST: u64 = (0x7_f000_0000 & !0x3ffff) + (1 << 18) - 1024;

#[derive(Debug, Clone)]
enum Op {
    Pte { at: u64, leaf: LeafState },
    Pmd { at: u64, state: HugeState },
    Zap { at: u64, len: u64, keep: bool, free: bool },
    Protect { at: u64, len: u64, prot: u8, shared: bool },
    Split { at: u64 },
    Move { at: u64, len: u64, to: u64 },
    Fork { shared: bool },
    DropChild,
}

#[derive(Debug, Clone, Copy)]
enum HugeState {
    Present(Pmd),
    Soft(PmdLeaf),
}

fn any_leaf() -> impl Strategy<Value = LeafState> {
    let soft = (0u64..800, 0u8..13, 0u8..16).prop_map(|(n, kind, flags)| {
        let at = DevOffset::new(n).unwrap();
        let kind = match kind {
            0 => Softleaf::Swap { slot: SwapSlot::new(n).unwrap(), exclusive: n % 2 == 0 },
            1 => Softleaf::MigrationRead(frame(n)),
            2 => Softleaf::MigrationReadExclusive(frame(n)),
            3 => Softleaf::MigrationWrite(frame(n)),
            4 => Softleaf::DevicePrivateRead(at),
            5 => Softleaf::DevicePrivateWrite(at),
            6 => Softleaf::HwPoison(frame(n)),
            7 => Softleaf::Marker(Marker::GUARD),
            8 => Softleaf::Marker(Marker::POISON.with(Marker::UFFD_WP)),
            9 => Softleaf::Marker(Marker::UFFD_WP),
            10 => Softleaf::MigrationDevicePrivateRead(at),
            11 => Softleaf::MigrationDevicePrivateReadExclusive(at),
            _ => Softleaf::MigrationDevicePrivateWrite(at),
        };
        LeafState::Soft(Leaf::new(kind, LeafFlags::from_bits_truncate(flags)))
    });
    let present = (0u64..800, 0u8..64).prop_map(|(n, bits)| LeafState::Present(dressed(n, bits)));
    prop_oneof![soft, present]
}

/// A mapping with some bits.
fn dressed(n: u64, bits: u8) -> Pte {
    let mut pte = rw(n);
    if bits & 1 != 0 {
        pte = pte.mk_dirty();
    }
    if bits & 2 != 0 {
        pte = pte.mk_young();
    }
    if bits & 4 != 0 {
        pte = pte.mk_anon_exclusive();
    }
    if bits & 8 != 0 {
        pte = pte.mk_uffd_wp();
    }
    if bits & 16 != 0 {
        pte = pte.wrprotect();
    }
    if bits & 32 != 0 {
        pte = pte.wrprotect().mk_special();
    }
    pte
}

fn any_huge() -> impl Strategy<Value = HugeState> {
    (2u64..6, 0u8..5, 0u8..32).prop_map(|(block, kind, bits)| {
        let n = block * 512;
        let at = DevOffset::new(n).unwrap();
        let kind = match kind {
            0 => PmdSoftleaf::MigrationWrite(frame(n)),
            1 => PmdSoftleaf::DevicePrivateWrite(at),
            2 => PmdSoftleaf::MigrationDevicePrivateReadExclusive(at),
            _ => return HugeState::Present(dressed(n, bits).collapse().unwrap()),
        };
        HugeState::Soft(PmdLeaf::new(kind, LeafFlags::from_bits_truncate(bits)))
    })
}

fn any_op() -> impl Strategy<Value = Op> {
    let at = 0..PAGES;
    prop_oneof![
        4 => (at.clone(), any_leaf()).prop_map(|(at, leaf)| Op::Pte { at, leaf }),
        3 => (0u64..3, any_huge()).prop_map(|(at, state)| Op::Pmd { at: at * 512, state }),
        2 => (at.clone(), 1u64..900, any::<bool>(), any::<bool>())
            .prop_map(|(at, len, keep, free)| Op::Zap { at, len, keep, free }),
        2 => (at.clone(), 1u64..900, 0u8..8, any::<bool>())
            .prop_map(|(at, len, prot, shared)| Op::Protect { at, len, prot, shared }),
        1 => at.clone().prop_map(|at| Op::Split { at }),
        1 => (at.clone(), 1u64..700, at).prop_map(|(at, len, to)| Op::Move { at, len, to }),
        1 => (0u64..3, 0u64..3)
            .prop_map(|(at, to)| Op::Move { at: at * 512, len: 512, to: to * 512 }),
        1 => any::<bool>().prop_map(|shared| Op::Fork { shared }),
        1 => Just(Op::DropChild),
    ]
}

type Model = BTreeMap<u64, LeafState>;

fn clip(at: u64, len: u64) -> VaRange {
    pages(FIRST + at, len.min(PAGES - at))
}

/// The model's mprotect, by the rules in words: readable as asked, writable only
/// without a fault.
fn protected(leaf: LeafState, prot: PageProt, sharing: Sharing) -> LeafState {
    match leaf {
        LeafState::Present(pte) => {
            let exclusive = match sharing {
                Sharing::Private => pte.is_anon_exclusive(),
                Sharing::Shared => pte.is_dirty(),
            };
            let write = prot.contains(PageProt::WRITE) && exclusive && !pte.is_uffd_wp();
            let mut want = prot - PageProt::WRITE;
            if !prot.is_empty() {
                want |= PageProt::READ;
            }
            if write {
                want |= PageProt::WRITE;
            }
            LeafState::Present(pte.with_prot(want))
        }
        LeafState::Soft(leaf) => {
            let kind = match leaf.kind() {
                Softleaf::MigrationWrite(pfn) if sharing == Sharing::Private => {
                    Softleaf::MigrationReadExclusive(pfn)
                }
                Softleaf::MigrationWrite(pfn) => Softleaf::MigrationRead(pfn),
                Softleaf::DevicePrivateWrite(at) => Softleaf::DevicePrivateRead(at),
                Softleaf::MigrationDevicePrivateWrite(at) => {
                    Softleaf::MigrationDevicePrivateReadExclusive(at)
                }
                kind @ (Softleaf::None
                | Softleaf::Swap { .. }
                | Softleaf::MigrationRead(_)
                | Softleaf::MigrationReadExclusive(_)
                | Softleaf::DevicePrivateRead(_)
                | Softleaf::DeviceExclusive(_)
                | Softleaf::HwPoison(_)
                | Softleaf::Marker(_)
                | Softleaf::MigrationDevicePrivateRead(_)
                | Softleaf::MigrationDevicePrivateReadExclusive(_)) => kind,
            };
            LeafState::Soft(Leaf::new(kind, leaf.flags()))
        }
    }
}

struct World<'m> {
    base: &'m Mem,
    space: Space<'m>,
    child: Option<Space<'m>>,
    model: Model,
    child_model: Model,
    owner: Owner,
}

impl World<'_> {
    fn range_is_free(&self, at: u64, len: u64) -> bool {
        self.model.range(FIRST + at..FIRST + at + len).next().is_none()
    }

    /// The model forgets where tables stand: a place is free for a large leaf if
    /// there is no table either.
    fn pmd_is_free(&self, at: u64) -> bool {
        self.space
            .tables()
            .lock_pmd(page(FIRST + at))
            .map_or(true, |pmd| pmd.load(page(FIRST + at)).is_none())
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Pte { at, leaf } => self.set_pte(at, leaf),
            Op::Pmd { at, state } => self.set_pmd(at, state),
            Op::Zap { at, len, keep, free } => self.zap(clip(at, len), keep, free),
            Op::Protect { at, len, prot, shared } => {
                let sharing = if shared { Sharing::Shared } else { Sharing::Private };
                self.protect(clip(at, len), PageProt::from_bits_retain(prot), sharing);
            }
            Op::Split { at } => {
                let at = page(FIRST + at);
                self.space.tables().split_pmd(at, &mut self.owner).unwrap();
            }
            Op::Move { at, len, to } => self.move_range(at, len, to),
            Op::Fork { shared } => self.fork(shared),
            Op::DropChild => self.drop_child(),
        }
    }

    fn set_pte(&mut self, at: u64, leaf: LeafState) {
        if !self.range_is_free(at, 1) {
            return;
        }
        let entry = match leaf {
            LeafState::Present(pte) => pte.entry(),
            LeafState::Soft(leaf) => leaf.entry(),
        };
        self.space.set_pte(page(FIRST + at), entry);
        self.owner.add(leaf, 1);
        self.model.insert(FIRST + at, leaf);
    }

    fn set_pmd(&mut self, at: u64, state: HugeState) {
        if !self.pmd_is_free(at) {
            return;
        }
        let (entry, first) = match state {
            HugeState::Present(pmd) => (pmd.entry(), LeafState::Present(pmd.split(0).unwrap())),
            HugeState::Soft(leaf) => (leaf.entry(), LeafState::Soft(leaf.leaf())),
        };
        self.space.set_pmd(page(FIRST + at), entry);
        self.owner.add(first, 1);
        for n in 0..512 {
            let leaf = page_of(SizedLeaf { state: first, order: 9 }, n);
            self.model.insert(FIRST + at + n, leaf);
        }
    }

    fn zap(&mut self, range: VaRange, keep: bool, free: bool) {
        let tables = self.space.tables();
        let mut gather = TlbGather::new(tables);
        let rules = if keep { ZapRules::DISCARD } else { ZapRules::UNMAP };
        tables.zap_range(range, rules, &mut gather, &mut self.owner).unwrap();
        if free {
            tables.free_tables(range, &mut gather, &mut self.owner);
        }
        gather.flush(&mut self.owner);
        let is_kept = |leaf: &LeafState| {
            keep && matches!(leaf, LeafState::Soft(leaf) if matches!(leaf.kind(), Softleaf::Marker(_)))
        };
        self.model.retain(|at, leaf| !range.contains(page(*at)) || is_kept(leaf));
    }

    fn protect(&mut self, range: VaRange, prot: PageProt, sharing: Sharing) {
        let tables = self.space.tables();
        let mut gather = TlbGather::new(tables);
        let to = Protection { prot, sharing, tracks_soft_dirty: false };
        tables.change_protection(range, to, &mut gather, &mut self.owner).unwrap();
        gather.flush(&mut self.owner);
        for (_, leaf) in self.model.range_mut(range.start().page()..range.end().page()) {
            *leaf = protected(*leaf, prot, sharing);
        }
    }

    fn move_range(&mut self, at: u64, len: u64, to: u64) {
        let len = len.min(PAGES - at).min(PAGES - to);
        let overlap = at < to + len && to < at + len;
        if len == 0 || overlap || !self.range_is_free(to, len) {
            return;
        }
        let moved = (at.is_multiple_of(512) && to.is_multiple_of(512), pages(FIRST + at, len));
        self.space.tables().move_range(moved.1, page(FIRST + to), false, &mut self.owner).unwrap();
        let leaves: Vec<_> =
            self.model.range(FIRST + at..FIRST + at + len).map(|(at, leaf)| (*at, *leaf)).collect();
        for (old, leaf) in leaves {
            self.model.remove(&old);
            let new = match leaf {
                LeafState::Present(pte) => {
                    Some(LeafState::Present(pte.clear_uffd_wp().mk_soft_dirty()))
                }
                LeafState::Soft(leaf) => leaf.for_move(false).map(LeafState::Soft),
            };
            // What moves with its whole table is not looked at.
            let there = self.leaf_at(old - at + to).filter(|there| Some(*there) != new);
            match there {
                Some(there) => {
                    assert!(moved.0 && there == leaf, "{old:#x}: {there:?} for {leaf:?}");
                    self.model.insert(old - at + to, leaf);
                }
                None => {
                    if let Some(new) = new {
                        self.model.insert(old - at + to, new);
                    }
                }
            }
        }
    }

    fn leaf_at(&self, number: u64) -> Option<LeafState> {
        let guard = self.space.tables().lock_pte(page(number)).ok()?;
        SizedLeaf::of_pte(guard.load(page(number))).unwrap().map(|leaf| leaf.state)
    }

    fn fork(&mut self, shared: bool) {
        if self.child.is_some() {
            return;
        }
        let child = Space::new(self.base);
        let sharing = if shared { Sharing::Shared } else { Sharing::Private };
        let rules = ForkRules { sharing, child_has_uffd: false };
        let mut gather = TlbGather::new(self.space.tables());
        let range = pages(FIRST, PAGES);
        let forked = self.space.tables().copy_range(
            &child.tables(),
            range,
            rules,
            &mut gather,
            &mut self.owner,
        );
        gather.flush(&mut self.owner);
        drop(gather);
        assert_eq!(forked, Ok::<(), ForkError>(()));
        self.child_model.clear();
        for (at, leaf) in &mut self.model {
            let theirs = match *leaf {
                LeafState::Present(pte) => {
                    let mine = if shared { pte } else { pte.wrprotect().clear_anon_exclusive() };
                    *leaf = LeafState::Present(mine);
                    let theirs = mine.mk_old().clear_uffd_wp();
                    Some(LeafState::Present(if shared { theirs.mk_clean() } else { theirs }))
                }
                LeafState::Soft(soft) => match soft.for_fork(sharing, false) {
                    ForkLeaf::Copy { parent, child } => {
                        *leaf = LeafState::Soft(parent);
                        Some(LeafState::Soft(child))
                    }
                    ForkLeaf::Skip => None,
                    ForkLeaf::RestoreExclusive(_) => unreachable!("not generated"),
                },
            };
            if let Some(theirs) = theirs {
                self.child_model.insert(*at, theirs);
            }
        }
        self.child = Some(child);
    }

    fn drop_child(&mut self) {
        if let Some(child) = self.child.take() {
            child.destroy(&mut self.owner);
            self.child_model.clear();
        }
    }

    fn check(&self) {
        let leaves: Model = self.space.leaves().into_iter().collect();
        assert_eq!(leaves, self.model);
        let mut spaces = vec![&self.space];
        if let Some(child) = &self.child {
            let leaves: Model = child.leaves().into_iter().collect();
            assert_eq!(leaves, self.child_model);
            spaces.push(child);
        }
        self.owner.check(&spaces);
        assert!(self.base.memory.census().is_consistent());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn tables_do_what_a_map_of_pages_does(ops in prop::collection::vec(any_op(), 1..40)) {
        let base = machine();
        let space = Space::new(&base);
        let mut world = World {
            base: &base,
            space,
            child: None,
            model: Model::new(),
            child_model: Model::new(),
            owner: Owner::default(),
        };
        for op in &ops {
            world.apply(op);
            world.check();
        }
        world.drop_child();
        let World { space, mut owner, .. } = world;
        space.destroy(&mut owner);
        nothing_left(&base);
    }
}
