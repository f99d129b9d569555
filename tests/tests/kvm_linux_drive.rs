//! A stock Linux guest's file systems on our block device: what it wrote is what the host finds after the guest has powered off.

use std::path::Path;
use std::process::Command;

use system_tests::linux::{LinuxConfig, linux_or_skip};

const MIB: u64 = 1 << 20;

/// Runs a program of the host and returns what it printed.
fn host(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

/// The first word that `sha256sum` printed.
fn digest(printed: &str) -> String {
    let digest = printed.split_whitespace().next().expect("a digest");
    assert_eq!(digest.len(), 64, "{printed:?}");
    digest.to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

#[test]
fn an_ext4_image_holds_on_the_host_what_the_guest_wrote() {
    if !linux_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let [image, fresh, dumped] = ["image", "fresh", "dumped"].map(|name| dir.path().join(name));
    for path in [&image, &fresh] {
        let file = std::fs::File::create(path).expect("an image");
        file.set_len(32 * MIB).expect("room for it");
    }
    host("mkfs.ext4", &["-q", "-F", text(&image)]);

    let mut guest = LinuxConfig::new(256 * MIB)
        .options(&["--drive", text(&image), "--drive", text(&fresh)])
        .start();
    assert_eq!(guest.number("cat /sys/block/vda/size"), 32 * MIB / 512);
    // Made by the host.
    guest.ok("mount -t ext4 /dev/vda /mnt && dd if=/dev/urandom of=/mnt/data bs=64k count=128");
    let written = digest(&guest.ok("sha256sum /mnt/data"));
    guest.ok("umount /mnt && echo 3 >/proc/sys/vm/drop_caches && mount -t ext4 /dev/vda /mnt");
    assert_eq!(digest(&guest.ok("sha256sum /mnt/data")), written, "read back from the drive");
    guest.ok("umount /mnt");
    // Made by the guest.
    guest.ok("mke2fs /dev/vdb >/dev/null && mount -t ext4 /dev/vdb /mnt && cp /init /mnt/ && umount /mnt");
    let whole = digest(&guest.ok("sha256sum /dev/vda"));
    assert_eq!(guest.power_off(), Some(0), "{}", guest.output());

    assert_eq!(digest(&host("sha256sum", &[text(&image)])), whole, "the whole image");
    host("e2fsck", &["-f", "-n", text(&image)]);
    host("e2fsck", &["-f", "-n", text(&fresh)]);
    host("debugfs", &["-R", &format!("dump /data {}", text(&dumped)), text(&image)]);
    assert_eq!(digest(&host("sha256sum", &[text(&dumped)])), written, "the file in it");
    let init = host("debugfs", &["-R", "cat /init", text(&fresh)]);
    assert!(init.contains("#!/bin/sh"), "{init}");
}

#[test]
fn a_write_right_before_the_power_goes_is_on_the_host_if_it_was_synced() {
    if !linux_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("image");
    std::fs::File::create(&image).and_then(|f| f.set_len(MIB)).expect("an image");
    let mut guest = LinuxConfig::new(256 * MIB).options(&["--drive", text(&image)]).start();
    guest.send("echo written >/tmp/word; dd if=/tmp/word of=/dev/vda conv=fsync,notrunc 2>/dev/null; echo o >/proc/sysrq-trigger");
    assert_eq!(guest.wait_for_end(), Some(0), "{}", guest.output());
    let bytes = std::fs::read(&image).expect("the image");
    assert_eq!(&bytes[..8], b"written\n");
}

#[test]
fn a_read_only_drive_can_be_read_and_is_never_written() {
    if !linux_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("image");
    std::fs::write(&image, vec![0xa5; 4 * 512]).expect("an image");
    let option = format!("{},ro", text(&image));
    let mut guest = LinuxConfig::new(256 * MIB).options(&["--drive", &option]).start();
    assert_eq!(guest.number("cat /sys/block/vda/ro"), 1);
    let (status, said) = guest.run("dd if=/dev/zero of=/dev/vda bs=512 count=1 conv=fsync,notrunc");
    assert_ne!(status, 0, "{said}");
    let inside = digest(&guest.ok("sha256sum /dev/vda"));
    assert_eq!(guest.power_off(), Some(0), "{}", guest.output());
    assert_eq!(digest(&host("sha256sum", &[text(&image)])), inside);
}
