//! The KVM tests and the demo once more, on a conforming hardware KVM, under two series of Debian's stock kernel.
//!
//! Each of them is a test of this binary by the name `linux-SERIES::BINARY::TEST`, so that its arguments choose among them:
//! `cargo test -p system-tests --test lab -- linux-6.12::kvm_balloon`. All that are chosen share one boot per series.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use system_tests::kvm::say_loudly;
use system_tests::lab::{
    Ended, INTERRUPT_WHILE_OFF, Item, Patience, Plan, Session, packages_missing, test_binaries,
};

/// Series of stock kernels to run under.
const SERIES: [&str; 2] = ["6.1", "6.12"];
/// What a session bears: several times what it takes on two busy cores, since only a hang of L1 must exceed it. The emulated machine
/// has stood still for good and delivered an interrupt twice before (docs/lab.md says why); a second standstill in one session, or a
/// third such interrupt in one boot, is more than bad luck.
const PATIENCE: Patience = Patience {
    limit: Duration::from_mins(45),
    silence: Duration::from_mins(3),
    reboots: 1,
    excuses: 2,
};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let (passes, mut trials) = prepare(&arguments);
    trials.extend(passes.iter().flat_map(Pass::trials));
    if let Some(&Pass { series, .. }) = passes.first() {
        let name = "what_hangs_or_crashes_in_l1_costs_only_itself";
        trials.push(Trial::test(name, move || broken_items(series)));
        let name = "an_l1_that_stands_still_is_booted_anew_for_what_is_left";
        trials.push(Trial::test(name, move || stands_still(series)));
        let name = "what_fails_by_the_emulated_cpus_fault_is_run_again_a_few_times";
        trials.push(Trial::test(name, move || excused(series)));
    }
    if !arguments.list {
        passes.iter().for_each(Pass::start);
    }
    // A trial only waits for its part of the report.
    arguments.test_threads = arguments.test_threads.or(Some(trials.len().max(1)));
    let conclusion = libtest_mimic::run(&arguments, trials);
    passes.iter().for_each(Pass::print_times);
    conclusion.exit_code()
}

/// A pass for each series that this host has, and a trial for each that it lacks.
fn prepare(arguments: &Arguments) -> (Vec<Pass>, Vec<Trial>) {
    let (mut passes, mut lacking) = (Vec::new(), Vec::new());
    let mut binaries = None;
    for series in SERIES {
        if let Some(complaint) = packages_missing(series) {
            lacking.push(Trial::test(pass_name(series), move || skip(&complaint)));
        } else {
            let binaries = binaries.get_or_insert_with(test_binaries);
            let chosen = |name: &str| is_chosen(arguments, &trial_name(series, name));
            passes.push(Pass::new(series, Plan::new(binaries, chosen)));
        }
    }
    (passes, lacking)
}

/// Runs what hangs, what dies and what takes L1 along.
fn broken_items(series: &'static str) -> Result<(), Failed> {
    let item = |name: &str, command: &str| shell_item(name, command, 3);
    let items = vec![
        item("hangs", "echo before; sleep 1000"),
        item("dies", "kill -SEGV $$"),
        item("works", "echo fine"),
        item("panics", "echo c >/proc/sysrq-trigger"),
        item("late", "true"),
    ];
    let plan = Plan { files: Vec::new(), items: items.clone() };
    let session =
        Session::start(series, &plan, Patience { limit: Duration::from_secs(90), ..PATIENCE });
    let [hangs, dies, works, panics, late] =
        ["hangs", "dies", "works", "panics", "late"].map(|name| session.wait(name));
    session.all_ended();
    let hangs = hangs?;
    assert!(hangs.status != 0 && hangs.tenths >= 30, "{hangs:?}");
    assert!(hangs.output.starts_with("before\n"), "{hangs:?}");
    assert!(judge_ended(&hangs, &items[0]).is_err_and(|why| why.contains("killed after its 3 s")));
    let dies = dies?;
    assert_eq!(dies.status, 128 + libc::SIGSEGV, "{dies:?}");
    let works = works?;
    assert_eq!(works.output, "fine\n");
    assert!(judge_ended(&works, &items[2]).is_ok());
    let test = Item { is_test: true, ..items[2].clone() };
    let passed = "test result: ok. 1 passed; 0 failed";
    for (output, has_run) in [
        (format!("test a ... ok\n{passed}"), true),
        (format!("test a ... SKIPPED a: no Linux here\nok\n{passed}"), false),
        (String::from("test result: ok. 0 passed; 0 failed; 1 ignored"), false),
    ] {
        let judged = judge_ended(&Ended { output, ..works.clone() }, &test);
        assert_eq!(judged.is_ok(), has_run, "{judged:?}");
    }
    let why = panics.expect_err("nothing comes after a panic");
    assert!(why.contains("L1 ended while it ran") && why.contains("Kernel panic"), "{why}");
    let why = late.expect_err("nothing comes after a panic");
    assert!(why.contains("not run: L1 ended during panics"), "{why}");
    Ok(())
}

/// Runs what makes L1 silent in its first boot, and what does so in each.
fn stands_still(series: &'static str) -> Result<(), Failed> {
    const SILENT: &str = "kill $(cat /run/beat); sleep 1000";
    let items = vec![
        shell_item("before", "echo $AEROSTAT_LAB_BOOT", 100),
        shell_item("once", &format!("[ $AEROSTAT_LAB_BOOT = 2 ] || {{ {SILENT}; }}"), 1000),
        shell_item("between", "echo $AEROSTAT_LAB_BOOT", 100),
        shell_item("always", SILENT, 1000),
        shell_item("late", "true", 100),
    ];
    let plan = Plan { files: Vec::new(), items };
    let patience = Patience { silence: Duration::from_mins(1), ..PATIENCE };
    let session = Session::start(series, &plan, patience);
    let [before, once, between, always, late] =
        ["before", "once", "between", "always", "late"].map(|name| session.wait(name));
    session.all_ended();
    assert_eq!(before?.output, "1\n", "what has ended is not run again");
    assert_eq!(once?.status, 0);
    assert_eq!(between?.output, "2\n");
    let why = always.expect_err("it stood still in the last boot");
    assert!(why.contains("L1 ended while it ran") && why.contains("stood still"), "{why}");
    assert!(why.contains("RIP="), "the CPU's registers are told: {why}");
    let why = late.expect_err("nothing comes after it");
    assert!(why.contains("not run: L1 ended during always"), "{why}");
    Ok(())
}

/// Runs what fails by the emulated CPU's fault: once, and more often than is borne; and what fails by its own.
fn excused(series: &'static str) -> Result<(), Failed> {
    let fails = format!("echo {INTERRUPT_WHILE_OFF}; exit 1");
    let once = format!("[ -e /run/once ] && echo fine && exit; touch /run/once; {fails}");
    let items = vec![
        shell_item("own", "echo mine; exit 1", 100),
        shell_item("once", &once, 100),
        shell_item("always", &fails, 100),
        shell_item("late", &fails, 100),
    ];
    let plan = Plan { files: Vec::new(), items };
    let session = Session::start(series, &plan, PATIENCE);
    let [own, once, always, late] =
        ["own", "once", "always", "late"].map(|name| session.wait(name));
    session.all_ended();
    let (own, once, always, late) = (own?, once?, always?, late?);
    assert_eq!((own.status, own.excused, &own.output[..]), (1, 0, "mine\n"));
    assert_eq!((once.status, once.excused), (0, 1), "{once:?}");
    assert_eq!(once.output, format!("{INTERRUPT_WHILE_OFF}\nfine\n"));
    assert_eq!((always.status, always.excused), (1, 1), "the session has two excuses: {always:?}");
    assert_eq!((late.status, late.excused), (1, 0), "{late:?}");
    Ok(())
}

fn shell_item(name: &str, command: &str, limit_s: u32) -> Item {
    let command = format!("sh -c '{command}'");
    Item { name: name.to_owned(), command, limit_s, is_test: false }
}

/// Where packages are missing a user gets a loud skip; where KVM tests are required, a failure.
fn skip(complaint: &str) -> Result<(), Failed> {
    if std::env::var("KVM_TESTS").is_ok_and(|v| v == "required") {
        return Err(format!("KVM_TESTS=required, but: {complaint}").into());
    }
    say_loudly(&format!("SKIPPED: no hardware KVM tested: {complaint}"));
    Ok(())
}

fn pass_name(series: &str) -> String {
    format!("linux-{series}")
}

fn trial_name(series: &str, item: &str) -> String {
    format!("{}::{item}", pass_name(series))
}

/// Whether the arguments choose the trial of that name, as the harness decides it.
fn is_chosen(arguments: &Arguments, name: &str) -> bool {
    let matches =
        |filter: &String| if arguments.exact { name == filter } else { name.contains(filter) };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}

/// One boot of L1 with one series' kernel, and what it runs.
struct Pass {
    series: &'static str,
    plan: Plan,
    session: Arc<OnceLock<Session>>,
}

impl Pass {
    fn new(series: &'static str, plan: Plan) -> Self {
        Self { series, plan, session: Arc::default() }
    }

    fn trials(&self) -> impl Iterator<Item = Trial> {
        self.plan.items.iter().map(|item| {
            let (session, item) = (self.session.clone(), item.clone());
            let name = trial_name(self.series, &item.name);
            Trial::test(name, move || {
                judge(session.get().expect("passes start before trials"), &item)
            })
        })
    }

    fn start(&self) {
        if !self.plan.items.is_empty() {
            self.session.get_or_init(|| Session::start(self.series, &self.plan, PATIENCE));
        }
    }

    /// Says where the time went.
    fn print_times(&self) {
        let Some(session) = self.session.get() else { return };
        let (total_s, items) = session.all_ended();
        let in_tests: u64 = items.iter().map(|(_, ended)| ended.tenths).sum();
        println!(
            "{}: {total_s} s, of which L1 counts {} for {} tests; the slowest:",
            pass_name(self.series),
            seconds(in_tests),
            items.len(),
        );
        for (name, ended) in items.iter().take(8) {
            println!("  {:>8}  {name}", seconds(ended.tenths));
        }
        for (name, ended) in items.iter().filter(|(_, ended)| ended.excused > 0) {
            say_loudly(&format!("{name} was run again: {}", ended.output));
        }
    }
}

fn seconds(tenths: u64) -> String {
    format!("{}.{} s", tenths / 10, tenths % 10)
}

/// Waits for an item's end and says whether it is a success.
fn judge(session: &Session, item: &Item) -> Result<(), Failed> {
    Ok(judge_ended(&session.wait(&item.name)?, item)?)
}

fn judge_ended(ended: &Ended, item: &Item) -> Result<(), String> {
    if ended.status == 0 {
        // A test binary is content, too, with a test that it ignores, that it does not know, or that skips itself: the lab
        // is where nothing is skipped. (The word comes after the test's name on the same line.)
        let says = |words: &str| ended.output.contains(words);
        let has_run = says("test result: ok. 1 passed;") && !says("SKIPPED");
        let good = has_run || !item.is_test;
        return if good { Ok(()) } else { Err(format!("not run:\n{}", ended.output)) };
    }
    let over = ended.tenths >= u64::from(item.limit_s) * 10;
    let how = if over {
        format!("killed after its {} s", item.limit_s)
    } else {
        format!("exit status {}", ended.status)
    };
    Err(format!("{how}, {} of L1's clock:\n{}", seconds(ended.tenths), ended.output))
}
