//! Replays the committed seeds of every fuzz target as ordinary tests.
//!
//! A seed is an input that reached code which no other seed reaches, or one
//! that once failed. To fuzz further, in `tests/fuzz`:
//! `cargo +nightly fuzz run -s none --fuzz-dir . console corpus/console seeds/console`.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use system_tests::binary::workspace_root;
use system_tests::fuzzing::{self, TARGETS};

fn seeds(target: &str) -> Vec<PathBuf> {
    let dir = workspace_root().join("tests/fuzz/seeds").join(target);
    let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut seeds: Vec<PathBuf> =
        entries.map(|entry| entry.expect("a directory can be listed").path()).collect();
    seeds.sort();
    seeds
}

fn replay(target: &str) {
    let seeds = seeds(target);
    assert!(seeds.len() >= 8, "{target} has {} seeds only", seeds.len());
    for seed in seeds {
        eprintln!("{}", seed.display());
        fuzzing::run(target, &fs::read(&seed).expect("a seed can be read"));
    }
}

#[test]
fn transport_survives_its_seeds() {
    replay("transport");
}

#[test]
fn ring_survives_its_seeds() {
    replay("ring");
}

#[test]
fn console_survives_its_seeds() {
    replay("console");
}

#[test]
fn block_survives_its_seeds() {
    replay("block");
}

#[test]
fn balloon_survives_its_seeds() {
    replay("balloon");
}

#[test]
fn entropy_survives_its_seeds() {
    replay("entropy");
}

#[test]
fn mem_survives_its_seeds() {
    replay("mem");
}

#[test]
fn kernel_survives_its_seeds() {
    replay("kernel");
}

#[test]
fn every_target_has_seeds_and_every_seed_a_target() {
    let named: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    let root = workspace_root().join("tests/fuzz/seeds");
    for entry in fs::read_dir(root).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(named.contains(&name.as_str()), "no target replays the seeds of {name}");
    }
    for name in named {
        assert!(!seeds(name).is_empty());
    }
}

/// Seeds with bytes changed reach states beside those that the seeds reach.
#[test]
fn changed_seeds_are_survived_too() {
    let mut random = StdRng::seed_from_u64(0x5eed);
    for target in TARGETS {
        for seed in seeds(target.name) {
            let seed = fs::read(seed).unwrap();
            for _ in 0..16 {
                let mut data = seed.clone();
                for byte in &mut data {
                    if random.random_ratio(1, 16) {
                        *byte = random.random();
                    }
                }
                (target.run)(&data);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_are_survived(
        which in 0..TARGETS.len(),
        data in prop::collection::vec(any::<u8>(), 0..512),
    ) {
        (TARGETS[which].run)(&data);
    }
}
