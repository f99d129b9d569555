//! What a page costs the balloon driver, by store and by largest order.
//!
//! Not a check but a measurement, of the driver's own work on this host; run it with
//! `cargo test --release -p system-tests --test sim_bookkeeping -- --ignored --nocapture`.

use std::cell::RefCell;
use std::rc::Rc;

use abi::{Pfn, PfnRange};
use devices::ram::GuestRam;
use guest_mm::balloon::{BalloonCounters, BalloonDriver, Options, Wake};
use guest_mm::buddy::Gfp;
use guest_mm::memory::Memory;
use guest_mm::rcu::Rcu;
use guest_mm::store::{BitmapStore, PfnStore, XArrayStore};
use guest_mm::xarray::SlabNodes;
use system_tests::sim::{Host, SimBus, SimMachine, SimPlatform};

/// 512 MiB, of which half is inflated.
const PAGES: u64 = 131_072;
const TARGET: u64 = 65_536;
const ROUNDS: usize = 5;

/// Nanoseconds a page of: enqueue, settle, claim, free; and the store's bytes when full.
type Figures = [f64; 5];

fn measure<S: PfnStore>(
    memory: &Memory<SimPlatform>,
    store: &S,
    host: &Rc<RefCell<Host>>,
    order: u32,
) -> Figures {
    let options = Options { max_order: order, ..Options::default() };
    let driver = BalloonDriver::start(memory, store, SimBus(host.clone()), options);
    let mut driver = driver.unwrap_or_else(|error| panic!("{error}"));
    let mut bytes = 0;
    for target in [TARGET, 0] {
        host.borrow_mut().set_target(target);
        while driver.status().actual.get() != target {
            if host.borrow_mut().take_interrupt() {
                driver.interrupt();
            }
            driver.poll();
            let mut host = host.borrow_mut();
            for queue in host.kicked() {
                host.serve(queue);
            }
            host.serve_pending();
        }
        bytes = bytes.max(store.bytes_used());
    }
    let c: BalloonCounters = driver.status().counters;
    driver.unbind();
    while driver.poll() == Wake::Now {}
    assert!(driver.finish().is_ok(), "the balloon is empty");
    #[expect(clippy::cast_precision_loss, reason = "figures to read")]
    let per_page = |ns: u64, pages: u64| ns as f64 / pages as f64;
    [
        per_page(c.inflate_ns, c.inflated_pages),
        per_page(c.settle_ns, c.settled_pages),
        per_page(c.deflate_ns, c.deflated_pages),
        per_page(c.free_ns, c.freed_pages),
        per_page(bytes as u64, TARGET),
    ]
}

fn print(name: &str, order: u32, mut rounds: Vec<Figures>) {
    let median = |at: usize, rounds: &mut Vec<Figures>| {
        rounds.sort_by(|a, b| a[at].total_cmp(&b[at]));
        rounds[rounds.len() / 2][at]
    };
    let [enqueue, settle, claim, free, bytes] = [0, 1, 2, 3, 4].map(|at| median(at, &mut rounds));
    println!(
        "{name:7} order {order:2}: inflate {enqueue:6.1} + {settle:6.1} ns/page, \
         deflate {claim:6.1} + {free:6.1} ns/page, store {bytes:5.2} B/page"
    );
}

#[test]
#[ignore = "a measurement, which takes long and asserts nothing"]
fn bookkeeping_of_each_store() {
    println!("{TARGET} pages, medians of {ROUNDS} rounds:");
    for order in [0, 10] {
        let (mut xarray, mut bitmap) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let machine = SimMachine::new(PAGES, round as u64);
            machine.use_real_time();
            let ranges = machine.ram().ram_ranges().to_vec();
            let memory = Memory::new(SimPlatform(machine.clone()), &ranges, &[]).expect("memory");
            let end = ranges.last().expect("RAM").end();
            let all = PfnRange::new(Pfn::ZERO, end).expect("ascending");
            let host = Rc::new(RefCell::new(Host::new(&machine, false, false)));
            let rcu = Rcu::new();
            let cache = SlabNodes::cache(&memory).expect("a node fits a slab");
            let store = XArrayStore::new(&rcu, SlabNodes::new(&memory, &cache, Gfp::KERNEL), all);
            xarray.push(measure(&memory, &store, &host, order));
            let mut words = vec![0; BitmapStore::<SimPlatform>::words_for(all).expect("small")];
            let store = BitmapStore::new(memory.platform(), all, &mut words).expect("words");
            bitmap.push(measure(&memory, &store, &host, order));
        }
        print("xarray", order, xarray);
        print("bitmap", order, bitmap);
    }
}
