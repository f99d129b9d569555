//! Which VM a client command means.

use std::path::{Path, PathBuf};
use std::{fs, io};

use aerostat_api::Client;

use super::args::Target;
use super::failure::Failure;
use crate::control::{is_live, runtime_dir};

impl Target {
    /// A client of the VM that is meant: the one named, or the only one that runs.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        match &self.api_sock {
            Some(path) => Ok(Client::new(path)),
            None => the_only_one().map(Client::new),
        }
    }
}

/// The socket of the user's only running VM.
fn the_only_one() -> Result<PathBuf, Failure> {
    let directory = runtime_dir();
    let mut live = live_sockets(&directory).map_err(|error| {
        Failure::other(format!("Cannot look for VMs in {}: {error}", directory.display()))
    })?;
    live.sort();
    match live.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Failure::other(format!(
            "No VM is running: nothing listens in {}. Start one with `aerostat run`, or name its \
             socket with --api-sock",
            directory.display()
        ))),
        several => Err(Failure::Usage(format!(
            "{} VMs are running; choose one with --api-sock:{}",
            several.len(),
            several.iter().map(|path| format!("\n  {}", path.display())).collect::<String>()
        ))),
    }
}

fn live_sockets(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut live = Vec::new();
    for entry in entries {
        let path = entry?.path();
        // A socket that cannot even be asked is no VM that could be commanded.
        if path.extension().is_some_and(|ext| ext == "sock") && is_live(&path).unwrap_or(false) {
            live.push(path);
        }
    }
    Ok(live)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_sockets_that_listen_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("a.sock");
        let _listener = UnixListener::bind(&live).unwrap();
        drop(UnixListener::bind(dir.path().join("stale.sock")).unwrap());
        let _other = UnixListener::bind(dir.path().join("other.name")).unwrap();
        fs::write(dir.path().join("file.sock"), "").unwrap();
        assert_eq!(live_sockets(dir.path()).unwrap(), [live]);
    }

    #[test]
    fn a_directory_that_is_not_there_holds_no_vm() {
        let dir = tempfile::tempdir().unwrap();
        assert!(live_sockets(&dir.path().join("none")).unwrap().is_empty());
    }
}
