//! Locks on the host.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{LockClass, SpinLock};
use crate::testing::{TestPlatform, range, set_cpu};

fn platform() -> TestPlatform {
    TestPlatform::new(&[range(0, 1)], 0)
}

#[test]
fn interrupts_are_masked_while_a_lock_is_held_and_restored_after() {
    let platform = platform();
    let (outer, inner) = (SpinLock::new(LockClass::Slab, 1), SpinLock::new(LockClass::Zone, 2));
    assert!(!TestPlatform::is_masked());
    let first = outer.lock(&platform);
    let second = inner.lock(&platform);
    assert_eq!(*first + *second, 3);
    drop(second);
    assert!(TestPlatform::is_masked());
    drop(first);
    assert!(!TestPlatform::is_masked());
}

#[test]
fn a_failed_try_leaves_the_mask_as_it_was() {
    let platform = platform();
    let lock = SpinLock::new(LockClass::Balloon, ());
    std::thread::scope(|scope| {
        let held = lock.lock(&platform);
        let tried = scope.spawn(|| {
            set_cpu(1);
            let failed = lock.try_lock(&platform).is_none();
            failed && !TestPlatform::is_masked()
        });
        assert!(tried.join().unwrap());
        drop(held);
    });
    assert!(lock.try_lock(&platform).is_some());
    assert!(!TestPlatform::is_masked());
}

#[cfg(debug_assertions)]
#[test]
fn a_lock_may_be_tried_below_an_inner_one_but_not_twice() {
    let platform = platform();
    let [balloon, zone] = [LockClass::Balloon, LockClass::Zone].map(|c| SpinLock::new(c, ()));
    let tried = || {
        let _inner = zone.lock(&platform);
        let _outer = balloon.try_lock(&platform).unwrap();
    };
    assert_eq!(lock_order_panic(tried), None);
    let other = SpinLock::new(LockClass::Balloon, ());
    let twice = || {
        let _first = balloon.lock(&platform);
        drop(other.try_lock(&platform));
    };
    assert!(lock_order_panic(twice).unwrap().contains("lock order: Balloon tried"));
}

#[test]
fn additions_under_the_lock_are_not_lost() {
    let platform = platform();
    let lock = SpinLock::new(LockClass::Zone, 0u64);
    std::thread::scope(|scope| {
        for cpu in 0..4 {
            let (lock, platform) = (&lock, &platform);
            scope.spawn(move || {
                set_cpu(cpu);
                for _ in 0..2000 {
                    *lock.lock(platform) += 1;
                }
            });
        }
    });
    assert_eq!(*lock.lock(&platform), 8000);
}

/// The message of a lock-order panic, or `None` if `f` returned.
#[cfg(debug_assertions)]
fn lock_order_panic(f: impl FnOnce()) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(f)).err()?;
    Some(*panic.downcast::<String>().expect("a formatted message"))
}

#[cfg(debug_assertions)]
#[test]
fn locks_taken_inwards_pass_and_outwards_are_told() {
    let platform = platform();
    let (outer, inner) = (SpinLock::new(LockClass::XArray, ()), SpinLock::new(LockClass::Zone, ()));
    let inwards = || {
        let _outer = outer.lock(&platform);
        let _inner = inner.lock(&platform);
    };
    assert_eq!(lock_order_panic(inwards), None);
    let platform = self::platform();
    let message = lock_order_panic(|| {
        let _inner = inner.lock(&platform);
        let _outer = outer.lock(&platform);
    });
    assert!(message.unwrap().contains("lock order: XArray"));
}

#[cfg(debug_assertions)]
#[test]
fn two_locks_of_a_class_need_to_say_so() {
    let platform = platform();
    let (first, second) = (SpinLock::new(LockClass::Pcp, ()), SpinLock::new(LockClass::Pcp, ()));
    let nested = || {
        let _first = first.lock(&platform);
        let _second = second.lock_nested(&platform);
    };
    assert_eq!(lock_order_panic(nested), None);
    assert!(first.try_lock(&platform).is_some(), "the class was released");
    let message = lock_order_panic(|| {
        let _first = first.lock(&platform);
        let _second = second.lock(&platform);
    });
    assert!(message.unwrap().contains("lock order: Pcp"));
}
