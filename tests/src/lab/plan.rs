//! What a session of the lab is to run.

use std::path::PathBuf;
use std::process::Command;

use crate::binary::{aerostat_path, workspace_root};
use crate::qemu::qemu_files;

/// Seconds that one test may take in L1 unless [`LIMITS_S`] says otherwise: a hang, not a slow CPU, must exceed it.
const LIMIT_S: u32 = 120;
/// Tests that need more, by the beginning of their names.
const LIMITS_S: [(&str, u32); 1] = [("kvm_linux", 300)];
/// Tests that need a QEMU in L1.
const QEMU_TESTS: &str = "kvm_qemu";

/// One command that runs in L1 and is reported by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// One word: `BINARY::TEST`.
    pub name: String,
    /// A shell command.
    pub command: String,
    /// Seconds of L1's clock that it may take.
    pub limit_s: u32,
    /// Whether it is one test of a test binary, which says `1 passed` if it has run.
    pub is_test: bool,
}

impl Item {
    /// An item with the time that its name is allowed.
    pub fn new(name: String, command: String) -> Self {
        let special = LIMITS_S.iter().find(|(start, _)| name.starts_with(start));
        let limit_s = special.map_or(LIMIT_S, |&(_, limit_s)| limit_s);
        Self { name, command, limit_s, is_test: false }
    }
}

/// Commands in order, and the files that they need.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// `FILE` or `FILE:PLACE`, as `lab.sh` takes them.
    pub files: Vec<String>,
    /// What runs, in order.
    pub items: Vec<Item>,
}

impl Plan {
    /// The demo and every test of `binaries` that `wants` says yes to, given its name.
    pub fn new(binaries: &[TestBinary], wants: impl Fn(&str) -> bool) -> Self {
        let mut plan = Self::default();
        if wants("demo") {
            plan.items.push(Item::new("demo".to_owned(), "aerostat demo".to_owned()));
        }
        for binary in binaries {
            let wanted = binary.tests.iter().filter(|test| wants(&binary.item_name(test)));
            let items: Vec<Item> = wanted.map(|test| binary.item(test)).collect();
            if !items.is_empty() {
                plan.files.push(format!("{}:/lab/{}", binary.path.display(), binary.name));
                if binary.name == QEMU_TESTS {
                    let places = qemu_files().map(|path| format!("{0}:{0}", path.display()));
                    plan.files.extend(places);
                }
            }
            plan.items.extend(items);
        }
        if !plan.items.is_empty() {
            plan.files.push(aerostat_path().display().to_string());
        }
        plan
    }

    /// The lines that `run-plan.sh` reads.
    pub fn lines(&self) -> String {
        let line = |i: &Item| format!("{} {} {}\n", i.name, i.limit_s, i.command);
        self.items.iter().map(line).collect()
    }
}

/// A test binary of this package and the names of its tests.
#[derive(Debug, Clone)]
pub struct TestBinary {
    /// Its target's name, such as `kvm_balloon`.
    pub name: String,
    /// The executable.
    pub path: PathBuf,
    /// Its tests.
    pub tests: Vec<String>,
}

impl TestBinary {
    fn item_name(&self, test: &str) -> String {
        format!("{}::{test}", self.name)
    }

    fn item(&self, test: &str) -> Item {
        let command = format!("/lab/{} --test-threads 1 --exact {test}", self.name);
        Item { is_test: true, ..Item::new(self.item_name(test), command) }
    }
}

/// The executables of every `kvm_*` test of this package, built with the running profile, with their tests.
///
/// # Panics
/// If cargo cannot build one, or one cannot list its tests.
pub fn test_binaries() -> Vec<TestBinary> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["test", "--package", "system-tests", "--test", "kvm_*", "--no-run"])
        .args(["--message-format", "json"])
        .current_dir(workspace_root());
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command.output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut found: Vec<TestBinary> = output
        .stdout
        .split(|&b| b == b'\n')
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["kind"][0] == "test")
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            let path = PathBuf::from(message["executable"].as_str()?);
            let tests = tests_of(&path);
            Some(TestBinary { name, path, tests })
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!found.is_empty(), "no kvm_* test found");
    found
}

/// The tests of an executable but for those that are only run when asked for.
fn tests_of(executable: &PathBuf) -> Vec<String> {
    let ignored = listed(executable, &["--ignored"]);
    let all = listed(executable, &[]);
    all.into_iter().filter(|test| !ignored.contains(test)).collect()
}

/// What an executable lists.
fn listed(executable: &PathBuf, which: &[&str]) -> Vec<String> {
    let listed =
        Command::new(executable).args(["--list", "--format", "terse"]).args(which).output();
    let listed = listed.expect("the test binary starts");
    assert!(listed.status.success(), "{} does not list its tests", executable.display());
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(name: &str, tests: &[&str]) -> TestBinary {
        let tests = tests.iter().map(|&t| t.to_owned()).collect();
        TestBinary { name: name.to_owned(), path: PathBuf::from("/b").join(name), tests }
    }

    #[test]
    fn binaries_without_a_wanted_test_are_not_copied() {
        let binaries = [binary("kvm_a", &["one", "two"]), binary("kvm_b", &["three"])];
        let plan = Plan::new(&binaries, |name| name == "kvm_a::two");
        assert_eq!(plan.lines(), "kvm_a::two 120 /lab/kvm_a --test-threads 1 --exact two\n");
        assert!(plan.files.iter().all(|f| !f.contains("kvm_b")), "{:?}", plan.files);
    }

    #[test]
    fn linux_tests_have_more_time() {
        assert!(Item::new("kvm_linux::x".into(), String::new()).limit_s > LIMIT_S);
    }
}
