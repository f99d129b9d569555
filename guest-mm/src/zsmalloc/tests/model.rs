//! A pool against a map from handles to bytes.

use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Store(usize),
    Free(usize),
    Rewrite(usize),
    Read(usize),
    Compact,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![4 => 1..200usize, 4 => 1..=MAX_OBJECT_BYTES, 1 => Just(4096)];
    prop_oneof![
        6 => size.prop_map(Step::Store),
        4 => any::<usize>().prop_map(Step::Free),
        2 => any::<usize>().prop_map(Step::Rewrite),
        2 => any::<usize>().prop_map(Step::Read),
        1 => Just(Step::Compact),
    ]
}

/// The object that a random number means.
fn chosen(model: &BTreeMap<u64, (u64, usize)>, number: usize) -> Option<ZsHandle> {
    let bits = model.keys().nth(number.checked_rem(model.len())?)?;
    ZsHandle::from_bits(*bits)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_pool_does_what_a_map_does(steps in prop::collection::vec(step(), 1..150)) {
        with_pool(2048, |mm, pool| {
            let mut model: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
            for (turn, step) in steps.iter().enumerate() {
                let tag = turn as u64;
                match *step {
                    Step::Store(bytes) => {
                        let handle = pool.store(&pattern(tag, bytes), Gfp::KERNEL).unwrap();
                        let twice = model.insert(handle.bits(), (tag, bytes));
                        assert_eq!(twice, None, "{handle:?} handed out twice");
                    }
                    Step::Free(number) => {
                        let Some(handle) = chosen(&model, number) else { continue };
                        pool.free(handle).unwrap();
                        model.remove(&handle.bits());
                        assert_eq!(pool.free(handle), Err(ZsError::BadHandle(handle)));
                    }
                    Step::Rewrite(number) => {
                        let Some(handle) = chosen(&model, number) else { continue };
                        let entry = model.get_mut(&handle.bits()).unwrap();
                        pool.write(handle, &pattern(tag, entry.1)).unwrap();
                        entry.0 = tag;
                    }
                    Step::Read(number) => {
                        let Some(handle) = chosen(&model, number) else { continue };
                        let (tag, bytes) = model[&handle.bits()];
                        expect(pool, handle, tag, bytes);
                    }
                    Step::Compact => {
                        pool.compact();
                    }
                }
                let mut found = Vec::new();
                let census = pool.census(&mut |wrong| found.push(wrong));
                assert_eq!(found, [], "after step {turn}: {step:?}");
                assert_eq!(census.objects, model.len() as u64);
            }
            assert_balanced(mm);
            for (bits, (tag, bytes)) in model {
                let handle = ZsHandle::from_bits(bits).unwrap();
                expect(pool, handle, tag, bytes);
                pool.free(handle).unwrap();
            }
        });
    }
}
