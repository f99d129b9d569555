//! Registration.

use abi::Pfn;

use crate::errno::Errno;
use crate::memdesc::Kind;
use crate::memory::TransitFrames;
use crate::migrate::*;
use crate::mm::{Base, Mm};
use crate::testing::TestPlatform;

/// Moves nothing.
struct Stays;

impl MovableOps<TestPlatform> for Stays {
    fn migrate(
        &self,
        _mm: &Mm<'_, TestPlatform>,
        _dst: &TransitFrames,
        _src: Pfn,
        _mode: MigrateMode,
    ) -> Result<Migrated, MigrateError> {
        Err(MigrateError::Busy)
    }
}

fn with_mm(test: impl for<'m> FnOnce(&Mm<'m, TestPlatform>)) {
    let base = Base::new(crate::testing::memory(64)).expect("64 pages are enough");
    test(&Mm::new(&base));
}

#[test]
fn a_kind_has_one_owner_at_a_time() {
    with_mm(|mm| {
        mm.set_movable_ops(Kind::Movable, &Stays).expect("nobody has it");
        let again = mm.set_movable_ops(Kind::Movable, &Stays).expect_err("it is taken");
        assert_eq!(again.errno(), Errno::EBUSY);
        mm.set_movable_ops(Kind::Offline, &Stays).expect("another kind");
        mm.clear_movable_ops(Kind::Movable).expect("nobody uses it");
        mm.set_movable_ops(Kind::Movable, &Stays).expect("it is free again");
    });
}

#[test]
fn kinds_that_do_not_move_by_operations_are_refused() {
    with_mm(|mm| {
        for kind in Kind::ALL.into_iter().filter(|&kind| MovableKind::of(kind).is_none()) {
            let error = mm.set_movable_ops(kind, &Stays).expect_err(kind.name());
            assert_eq!(error.errno(), Errno::EINVAL);
            let error = mm.clear_movable_ops(kind).expect_err(kind.name());
            assert_eq!(error.errno(), Errno::EINVAL);
        }
    });
}

#[test]
fn operations_in_use_are_not_taken_back() {
    with_mm(|mm| {
        let none = mm.clear_movable_ops(Kind::ZpDesc).expect_err("nothing is there");
        assert_eq!(none.errno(), Errno::EINVAL);
        assert!(mm.movable_ops(MovableKind::ZpDesc).is_none());
        mm.set_movable_ops(Kind::ZpDesc, &Stays).expect("nobody has it");
        let guard = mm.movable_ops(MovableKind::ZpDesc).expect("they are there");
        let busy = mm.clear_movable_ops(Kind::ZpDesc).expect_err("in use");
        assert_eq!(busy.errno(), Errno::EBUSY);
        drop(guard);
        mm.clear_movable_ops(Kind::ZpDesc).expect("no longer in use");
    });
}
