//! A plan run in the lab, however many boots of L1 that takes.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::boot::Boot;
use super::plan::Plan;
use super::report::{Ended, Report};
use crate::kvm::say_loudly;

/// How often the report is looked at.
const POLL: Duration = Duration::from_millis(100);

/// What a session bears.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For everything.
    pub limit: Duration,
    /// How long L1, which says every two seconds that it is alive, may be silent before it is taken to stand still.
    pub silence: Duration,
    /// How often an L1 that stands still is booted anew, for what it has not run to its end.
    pub reboots: u32,
    /// How many failures of a boot that are the [emulated CPU's fault](super::INTERRUPT_WHILE_OFF) give the item another attempt.
    pub excuses: u32,
}

/// A plan that runs; its report grows while it does.
pub struct Session {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    report: Report,
    /// How the session ended, once it has.
    end: Option<String>,
    /// How long it took.
    total_s: u64,
    /// Reads the report; joined at the end, so that the session's directory is gone when the process ends.
    follower: Option<JoinHandle<()>>,
}

impl Session {
    /// Boots L1 with the stock kernel of `series` and lets it run `plan`.
    ///
    /// # Panics
    /// If `lab.sh` cannot be started.
    pub fn start(series: &'static str, plan: &Plan, patience: Patience) -> Self {
        let shared =
            Arc::new(Shared { state: Mutex::new(State::default()), changed: Condvar::new() });
        let (follower_shared, plan) = (shared.clone(), plan.clone());
        let follower = std::thread::spawn(move || follower_shared.follow(series, plan, patience));
        shared.lock().follower = Some(follower);
        Self { shared }
    }

    /// Waits until item `name` has ended.
    ///
    /// # Errors
    /// If L1 ended before, with how, which item it was at, and the end of its console.
    pub fn wait(&self, name: &str) -> Result<Ended, String> {
        let state = self.shared.lock();
        let waited = self
            .shared
            .changed
            .wait_while(state, |state| state.end.is_none() && state.report.ended(name).is_none());
        let state = waited.expect("the follower does not panic");
        if let Some(ended) = state.report.ended(name) {
            return Ok(ended.clone());
        }
        let end = state.end.as_deref().unwrap_or_default();
        match state.report.running() {
            Some(running) if running == name => Err(format!("L1 ended while it ran: {end}")),
            Some(running) => Err(format!("not run: L1 ended during {running}: {end}")),
            None => Err(format!("not run: L1 ended: {end}")),
        }
    }

    /// Waits for the end of the session and returns how many seconds it took, and the items that have ended, the slowest first.
    ///
    /// # Panics
    /// If the thread that follows the report panicked.
    pub fn all_ended(&self) -> (u64, Vec<(String, Ended)>) {
        let follower = self.shared.lock().follower.take();
        if let Some(follower) = follower {
            follower.join().expect("the follower does not panic");
        }
        let state = self.shared.lock();
        let named = |(name, ended): (&str, &Ended)| (name.to_owned(), ended.clone());
        let mut items: Vec<_> = state.report.all_ended().map(named).collect();
        items.sort_by_key(|(_, ended)| std::cmp::Reverse(ended.tenths));
        (state.total_s, items)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Runs `plan` and takes in what is reported, until it has ended or cannot go on.
    fn follow(&self, series: &'static str, plan: Plan, patience: Patience) {
        let start = Instant::now();
        let mut number = 1;
        let mut boot = Boot::start(series, &plan, patience, number);
        let end = loop {
            std::thread::sleep(POLL);
            let ended = boot.ended();
            self.take_in(&boot.read());
            if let Some(status) = ended {
                break format!("{status}; {}", boot.console_tail());
            }
            if boot.silence() < patience.silence {
                continue;
            }
            let silence = boot.silence().as_secs();
            let what =
                format!("L1 of {series} stood still: silent for {silence} s; {}", boot.kill());
            let left = patience.limit.saturating_sub(start.elapsed());
            if number > patience.reboots || left.is_zero() {
                break what;
            }
            say_loudly(&format!("{what}\nIt is booted anew for what is left of the plan."));
            number += 1;
            let patience = Patience { limit: left, ..patience };
            boot = Boot::start(series, &self.what_is_left_of(&plan), patience, number);
        };
        let mut state = self.lock();
        state.total_s = start.elapsed().as_secs();
        state.end = Some(format!("after {} s: {end}", state.total_s));
        drop(state);
        self.changed.notify_all();
    }

    fn take_in(&self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.lock().report.feed(bytes);
            self.changed.notify_all();
        }
    }

    /// What a new boot has to run: what has not ended, with what stood still first.
    fn what_is_left_of(&self, plan: &Plan) -> Plan {
        let report = &mut self.lock().report;
        report.begin_boot();
        let mut left = plan.clone();
        left.items.retain(|item| report.ended(&item.name).is_none());
        left
    }
}
