//! Rules about the tree that no compiler checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};
use system_tests::binary::workspace_root;

/// Edges between our packages that ordinary dependencies may take.
const ALLOWED: &[(&str, &[&str])] = &[
    ("abi", &[]),
    ("devices", &["abi"]),
    ("guest-ram", &["abi", "devices"]),
    ("aerostat-api", &[]),
    ("aerostat", &["abi", "aerostat-api", "devices", "guest-ram"]),
    ("guest-mm", &["abi"]),
    ("guest-kernel", &["abi", "guest-mm"]),
    (
        "system-tests",
        &["abi", "aerostat", "aerostat-api", "devices", "guest-mm", "guest-kernel", "guest-ram"],
    ),
];

/// Edges that only tests and benchmarks may take.
const ALLOWED_DEV: &[(&str, &str)] = &[("devices", "guest-ram"), ("guest-kernel", "guest-mm")];

/// What `devices` and the guest may never pull in.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("devices", &["kvm-ioctls", "kvm-bindings", "tokio", "libc", "event-manager"]),
    ("abi", &["libc", "tokio", "kvm-ioctls"]),
    ("guest-mm", &["libc", "tokio", "kvm-ioctls", "vm-memory"]),
    ("guest-kernel", &["libc", "tokio", "kvm-ioctls", "vm-memory"]),
];

/// Top-level entries of a checkout; `target` is not tracked.
const TOP_LEVEL: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "devices",
    "docs",
    "guest-mm",
    "resources",
    "target",
    "tests",
    "vmm",
];

/// Longest source file, in lines without its test module.
const MAX_FILE_LINES: usize = 600;

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(workspace_root().join("Cargo.toml"))
        .exec()
        .expect("cargo metadata works in a checkout")
}

#[test]
fn dependencies_between_packages_point_one_way() {
    let metadata = metadata();
    let allowed: BTreeMap<_, _> = ALLOWED.iter().copied().collect();
    let ours: BTreeSet<String> =
        metadata.workspace_packages().iter().map(|p| p.name.to_string()).collect();
    assert_eq!(ours, allowed.keys().map(ToString::to_string).collect::<BTreeSet<_>>());
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        for dependency in package.dependencies.iter().filter(|d| ours.contains(&d.name)) {
            let to = dependency.name.as_str();
            let fine = allowed[name].contains(&to)
                || (dependency.kind == DependencyKind::Development
                    && (to == name || ALLOWED_DEV.contains(&(name, to))));
            assert!(
                fine,
                "{name} depends on {to} ({:?}): docs/architecture.md forbids it",
                dependency.kind
            );
        }
    }
}

#[test]
fn devices_and_guest_stay_free_of_the_host() {
    let metadata = metadata();
    let forbidden: BTreeMap<_, _> = FORBIDDEN.iter().copied().collect();
    for package in metadata.workspace_packages() {
        let banned = forbidden.get(package.name.as_str()).copied().unwrap_or_default();
        for dependency in package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal) {
            assert!(
                !banned.contains(&dependency.name.as_str()),
                "{} depends on {}",
                package.name,
                dependency.name
            );
        }
    }
}

#[test]
fn every_package_inherits_licence_and_lints() {
    for package in metadata().workspace_packages() {
        assert_eq!(package.license.as_deref(), Some("Apache-2.0 OR MIT"), "{}", package.name);
        let manifest = fs::read_to_string(&package.manifest_path).unwrap();
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{} has lints of its own",
            package.name
        );
    }
}

#[test]
fn top_level_holds_only_what_the_architecture_names() {
    for entry in fs::read_dir(workspace_root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name.starts_with('.') || TOP_LEVEL.contains(&name.as_str()), "unexpected {name}");
    }
}

#[test]
fn flow_documents_name_existing_symbols() {
    let root = workspace_root();
    let mut hops = 0;
    for flow in files_below(&root.join("docs/flows"), "md") {
        for reference in backticked(&fs::read_to_string(&flow).unwrap()) {
            let Some((path, symbol)) = reference.split_once("::") else { continue };
            if !path.contains('/') {
                continue;
            }
            let text = fs::read_to_string(root.join(path))
                .unwrap_or_else(|e| panic!("{}: {path}: {e}", flow.display()));
            let last = symbol.rsplit("::").next().unwrap_or(symbol);
            assert!(defines(&text, last), "{}: {path} defines no {last}", flow.display());
            hops += 1;
        }
    }
    assert!(hops >= 13, "docs/flows/ names {hops} hops; an inflate alone has 13");
}

#[test]
fn source_files_hold_one_concept() {
    let root = workspace_root();
    let mut long = Vec::new();
    for dir in ["vmm", "devices", "guest-mm", "tests"] {
        for file in files_below(&root.join(dir), "rs") {
            let text = fs::read_to_string(&file).unwrap();
            let lines = text.lines().take_while(|l| *l != "mod tests {").count();
            if lines > MAX_FILE_LINES {
                long.push(format!("{} ({lines})", file.display()));
            }
        }
    }
    assert!(long.is_empty(), "split these files (over {MAX_FILE_LINES} lines): {long:#?}");
}

#[test]
fn documents_link_to_existing_files() {
    let root = workspace_root();
    let mut documents = files_below(&root.join("docs"), "md");
    documents.push(root.join("README.md"));
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for target in markdown_links(&text) {
            if target.contains("://") || target.starts_with('#') {
                continue;
            }
            let path = target.split('#').next().unwrap_or(target);
            let place = document.parent().unwrap().join(path);
            assert!(place.exists(), "{} links to {target}", document.display());
        }
    }
}

/// Every file with the extension `ext` below `dir`, build output excepted.
fn files_below(dir: &Path, ext: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.expect("a directory can be listed").path();
            if path.is_dir() && path.file_name().is_some_and(|n| n != "target") {
                pending.push(path);
            } else if path.extension().is_some_and(|e| e == ext) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The texts between single backticks, line by line.
fn backticked(text: &str) -> Vec<&str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// The targets of `[text](target)`.
fn markdown_links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect()
}

/// Whether Rust or assembly source defines `symbol`.
fn defines(text: &str, symbol: &str) -> bool {
    let keywords = ["fn ", "struct ", "enum ", "trait ", "const ", "static ", "type ", "mod "];
    let is_end = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    let rust = keywords.iter().any(|keyword| {
        let needle = format!("{keyword}{symbol}");
        text.match_indices(&needle).any(|(at, _)| is_end(text[at + needle.len()..].chars().next()))
    });
    rust || text.lines().any(|line| line.trim_start().starts_with(&format!("{symbol}:")))
}

#[test]
fn the_readme_installs_the_packages_that_ci_installs() {
    let read =
        |path| fs::read_to_string(workspace_root().join(path)).expect("it is in the checkout");
    let packages = read("tests/lab/packages");
    let line = format!("apt-get install --no-install-recommends {}\n", packages.trim());
    assert!(read("README.md").contains(&line), "README.md lacks: {line}");
    assert!(read(".ci/run").contains("$(<tests/lab/packages)"));
}
