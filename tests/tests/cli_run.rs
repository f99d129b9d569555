//! What `run`, `guest` and `demo` say to arguments that cannot work. Nothing here needs KVM.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use system_tests::binary::aerostat;

/// Exit code and standard error of `aerostat LINE`.
fn refused(line: &str) -> (Option<i32>, String) {
    let mut command = aerostat();
    let output = command.args(line.split_whitespace()).stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn refused_at(socket: &Path) -> (Option<i32>, String) {
    refused(&format!("run --api-sock {}", socket.display()))
}

#[test]
fn values_out_of_range_are_refused_with_value_and_range() {
    for (line, value, range) in [
        ("run --vcpus 0", "'0'", "1..=4"),
        ("run --vcpus 5", "'5'", "1..=4"),
        ("run --memory 0", "0 B", "allowed: 2 MiB to 64 GiB"),
        ("run --memory 65G", "69793218560 B (65 GiB)", "allowed: 2 MiB to 64 GiB"),
        ("run --memory 268435457", "268435457 B", "multiple of 4 KiB"),
        ("run --memory 12Q", "\"12Q\"", "K, M, G"),
        ("run --backing thp", "thp", "anon, memfd"),
        ("run --on-reset sleep", "sleep", "exit, reboot"),
        ("run --balloon target=5000", "5000 B", "multiple of 4 KiB"),
        ("run --balloon colour=red", "colour=red", "allowed: target=SIZE"),
        ("run --check --memory 64M --balloon target=65M", "", "above guest RAM"),
        ("demo --memory 65G", "65G", "allowed: 2 MiB to 64 GiB"),
    ] {
        let (code, said) = refused(line);
        assert_eq!(code, Some(2), "{line}: {said}");
        assert!(said.contains(value) && said.contains(range), "{line}: {said}");
    }
}

#[test]
fn options_and_commands_that_do_not_exist_are_refused_by_name() {
    for (line, name) in
        [("run --surprise", "--surprise"), ("fly", "fly"), ("balloon burst", "burst")]
    {
        let (code, said) = refused(line);
        assert_eq!(code, Some(2), "{line}");
        assert!(said.contains(name), "{said}");
    }
}

#[test]
fn a_socket_path_that_is_taken_by_a_live_vm_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _live = UnixListener::bind(&path).unwrap();
    let (code, said) = refused_at(&path);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is taken by a running VM"), "{said}");
}

#[test]
fn a_socket_path_that_is_too_long_is_refused_with_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = refused_at(&dir.path().join("x".repeat(120)));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("the limit is 107"), "{said}");
}

#[test]
fn a_symlink_or_file_at_the_socket_path_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (link, file) = (dir.path().join("link"), dir.path().join("file"));
    fs::write(&file, "precious").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let (code, said) = refused_at(&link);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("a symbolic link, not a socket"), "{said}");
    assert!(refused_at(&file).1.contains("a file, not a socket"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[test]
fn a_runtime_directory_that_others_can_enter_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let runtime = dir.path().join("aerostat");
    fs::create_dir(&runtime).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = aerostat();
    let output = command.arg("run").env("XDG_RUNTIME_DIR", dir.path()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("its mode must be 0700"), "{said}");
}

#[test]
fn the_embedded_guest_is_written_as_an_elf_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guest.elf");
    let mut command = aerostat();
    let output = command.args(["guest", "--write"]).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let bytes = fs::read(&path).unwrap();
    assert!(bytes.starts_with(b"\x7fELF"));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains(&format!("{} B", bytes.len())), "{said}");
    let (code, said) = refused("guest --write /nonexistent-directory/guest.elf");
    assert_eq!(code, Some(1));
    assert!(said.contains("/nonexistent-directory/guest.elf"), "{said}");
}

#[test]
fn help_and_version_exit_with_0_and_no_command_with_2() {
    for line in ["--help", "--version", "run --help", "balloon inflate --help", "exec -h"] {
        assert_eq!(refused(line).0, Some(0), "{line}");
    }
    assert_eq!(refused("").0, Some(2));
    assert_eq!(refused("balloon").0, Some(2));
}

/// `aerostat COMMAND --config-file FILE` with a file of that text: what it says on its way out with 2.
fn config_refused(command: &str, text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.json");
    fs::write(&file, text).unwrap();
    let socket = dir.path().join("s");
    let line =
        format!("{command} --api-sock {} --config-file {}", socket.display(), file.display());
    let (code, said) = refused(&line);
    assert_eq!(code, Some(2), "{text}: {said}");
    assert!(said.contains(file.to_str().unwrap()) && said.lines().count() == 1, "{said}");
    assert!(!socket.exists());
    said
}

#[test]
fn configuration_files_are_refused_with_field_line_and_column() {
    let huge = format!(r#"{{"boot-source": {{"kernel_image_path": "{}"}}}}"#, "x".repeat(2 << 20));
    let deep = format!(r#"{{"vsock": {}"#, "[".repeat(50_000));
    for (text, words) in [
        ("", ["EOF", "line 1"]),
        ("{", ["EOF", "line 1"]),
        ("[]", ["object", "array"]),
        ("{\"boot-source\": 1}", ["boot-source", "line 1 column 17"]),
        ("{\n\"surprise\": 1}", ["unknown field `surprise`", "line 2 column 10"]),
        ("{\"drives\": [], \"drives\": []}", ["duplicate field `drives`", "line 1"]),
        (
            "{\"machine-config\": {\"vcpu_count\": 300, \"mem_size_mib\": 1}}",
            ["machine-config.vcpu_count", "300"],
        ),
        (&deep, ["recursion limit", "line 1"]),
        (&huge, ["more than", "1048576 B"]),
        ("{}", ["boot-source", "not configured"]),
        (
            "{\"boot-source\": {\"kernel_image_path\": \"/nonexistent\"}}",
            ["boot-source", "/nonexistent"],
        ),
        (
            "{\"boot-source\": {\"kernel_image_path\": \"embedded\"}, \"vsock\": {\"guest_cid\": 3}}",
            ["vsock", "not supported by aerostat"],
        ),
        (
            "{\"boot-source\": {\"kernel_image_path\": \"embedded\"}, \
              \"machine-config\": {\"vcpu_count\": 9, \"mem_size_mib\": 128}}",
            ["vcpu_count is 9", "1 to 4"],
        ),
    ] {
        for command in ["run", "serve"] {
            let said = config_refused(command, text);
            assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
        }
    }
    assert!(refused("run --config-file /nonexistent").1.contains("/nonexistent"));
}

#[test]
fn serve_refuses_arguments_that_cannot_work() {
    for (line, words) in [
        ("serve --no-api", ["--no-api", "--config-file"]),
        ("serve --id a_b", ["\"a_b\"", "1 to 64"]),
        ("serve --no-api --config-file x --api-sock y", ["--no-api", "--api-sock"]),
        ("run --config-file x --kernel y", ["--config-file", "--kernel"]),
        ("--api-sock x info", ["info", "--api-sock"]),
    ] {
        let (code, said) = refused(line);
        assert_eq!(code, Some(2), "{line}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{line}: {said}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _live = UnixListener::bind(&path).unwrap();
    let (code, said) = refused(&format!("serve --api-sock {}", path.display()));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is taken by a running VM"), "{said}");
}
