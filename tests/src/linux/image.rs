//! Stock kernels and the initramfs of the test guest.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::binary::workspace_root;

/// Directory with a `SERIES/vmlinuz` and `SERIES/initrd` for each kernel series; the lab sets it.
const DIRECTORY_VAR: &str = "AEROSTAT_LINUX_DIR";

/// A stock kernel and the test guest's initramfs for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinuxImage {
    /// The kernel's series, such as `6.1`.
    pub series: String,
    /// The kernel as Debian ships it.
    pub kernel: PathBuf,
    /// The initramfs with that kernel's modules.
    pub initrd: PathBuf,
}

/// Every stock kernel that there is here, by series, the newest last.
///
/// # Panics
/// If an initramfs cannot be built.
pub fn images() -> &'static [LinuxImage] {
    static IMAGES: OnceLock<Vec<LinuxImage>> = OnceLock::new();
    IMAGES.get_or_init(|| match std::env::var_os(DIRECTORY_VAR) {
        Some(directory) => images_in(Path::new(&directory)),
        None => build_images(),
    })
}

fn images_in(directory: &Path) -> Vec<LinuxImage> {
    let mut found: Vec<LinuxImage> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let series = path.file_name()?.to_str()?.to_owned();
            let image =
                LinuxImage { series, kernel: path.join("vmlinuz"), initrd: path.join("initrd") };
            (image.kernel.exists() && image.initrd.exists()).then_some(image)
        })
        .collect();
    found.sort_by_key(|image| series_number(&image.series));
    found
}

/// `6.12` sorts after `6.1`.
fn series_number(series: &str) -> Vec<u32> {
    series.split('.').filter_map(|number| number.parse().ok()).collect()
}

/// Builds an initramfs for each of the host's stock kernels beside the test binaries, once for all of them.
fn build_images() -> Vec<LinuxImage> {
    // …/target/PROFILE/deps/TEST-HASH
    let exe = std::env::current_exe().expect("a running test has a path");
    let profile_dir = exe.ancestors().nth(2).expect("test binaries live in PROFILE/deps");
    let directory = profile_dir.join("linux-guest");
    std::fs::create_dir_all(&directory).expect("the build's directory is writable");
    // Test binaries may run side by side; the lock goes with the file.
    let lock = File::create(directory.join("lock")).expect("a file in it");
    lock.lock().expect("files can be locked");
    let (stamp, sources) = (directory.join("sources"), sources());
    if std::fs::read_to_string(&stamp).ok().as_ref() != Some(&sources) {
        let script = workspace_root().join("tests/lab/linux-images.sh");
        let status = Command::new(script).arg(&directory).status().expect("the script starts");
        assert!(status.success(), "building the Linux test guest failed");
        std::fs::write(&stamp, sources).expect("a file in it");
    }
    images_in(&directory)
}

/// All that an initramfs is made from, but for the packages' own files, which change with the kernels' names.
fn sources() -> String {
    let scripts =
        ["linux-guest/build.sh", "linux-guest/init"].map(|name| format!("resources/{name}"));
    let scripts = scripts.iter().map(|path| std::fs::read_to_string(workspace_root().join(path)));
    let mut kernels: Vec<String> = std::fs::read_dir("/boot")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    kernels.sort();
    scripts.map(|text| text.expect("the script is readable")).chain(kernels).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_sort_by_number() {
        let mut series = ["6.12", "6.1", "5.10"];
        series.sort_by_key(|s| series_number(s));
        assert_eq!(series, ["5.10", "6.1", "6.12"]);
    }
}
