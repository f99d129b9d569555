//! What `run --drive` says to files that cannot be disks. Nothing here needs KVM.

use std::fs;
use std::process::{Command, Stdio};

use system_tests::binary::aerostat;

/// Before the VM costs anything: each names the path and the reason.
#[test]
fn drives_that_cannot_be_are_refused_by_path_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("empty"), "").unwrap();
    fs::write(path("odd"), [0; 1000]).unwrap();
    fs::write(path("good"), [0; 4096]).unwrap();
    let _fifo = Command::new("mkfifo").arg(path("fifo")).status().unwrap();
    let good = path("good");
    let cases = [
        (path("none"), "No such file", 2),
        (dir.path().display().to_string(), "is a directory", 2),
        (path("fifo"), "is a FIFO", 2),
        (path("fifo") + ",ro", "is a FIFO", 2),
        (String::from("/dev/zero"), "is a character device", 2),
        (path("empty"), "512 B would be", 2),
        (path("odd"), "1024 B would be", 2),
        (String::from(",ro"), "PATH,ro", 2),
        (format!("{good} --drive {good}"), "is locked", 1),
        (format!("{good},ro --drive {good}"), "is locked", 1),
    ];
    for (drive, reason, expected) in cases {
        let line = format!("run --api-sock {} --drive {drive}", path("sock"));
        let (code, said) = refused(&line);
        assert_eq!(code, Some(expected), "{line}: {said}");
        let named = drive.split([',', ' ']).next().unwrap();
        assert!(said.contains(named) && said.contains(reason), "{line}: {said}");
        assert!(!fs::exists(path("sock")).unwrap(), "no socket is left behind");
    }
    let many = (0..16).map(|_| format!("--drive {good},ro ")).collect::<String>();
    let (code, said) = refused(&format!("run --api-sock {} {many}", path("sock")));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("16 drives are not possible; allowed: 0 to 14"), "{said}");
}

/// Exit code and standard error of `aerostat LINE`.
fn refused(line: &str) -> (Option<i32>, String) {
    let mut command = aerostat();
    let output = command.args(line.split_whitespace()).stdin(Stdio::null()).output();
    let output = output.expect("aerostat runs");
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}
