//! A file or FIFO that takes whole lines and never makes its writer wait for a reader.
//!
//! A FIFO is opened for reading too, so that opening it needs no reader, and in
//! non-blocking mode, so that writing needs none either: it holds what fits,
//! and what does not is dropped and counted. Of a line that fits in part the
//! rest is kept and goes first, so that a reader never sees half a line between
//! two others.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Where lines go.
#[derive(Debug)]
pub(crate) struct LineFile {
    file: File,
    /// The rest of a line of which a FIFO took a part.
    rest: Vec<u8>,
    dropped: u64,
}

/// Opens `path` for a [`LineFile`]; a file that is not there is made with mode 0600.
///
/// # Errors
/// The system's, or that it is a directory or socket.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).mode(0o600);
    // What is there is opened as it is: O_CREAT on a FIFO in a sticky directory may be refused
    // (proc(5), protected_fifos).
    let is_fifo = std::fs::metadata(path).is_ok_and(|entry| entry.file_type().is_fifo());
    options.read(is_fifo).create(!is_fifo).open(path)
}

impl LineFile {
    /// Writes to `file`, which [`open`] has opened.
    pub(crate) fn new(file: File) -> Self {
        Self { file, rest: Vec::new(), dropped: 0 }
    }

    /// Writes `line`, which ends with a newline.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is no room and the line was dropped; else the system's.
    pub(crate) fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        let written = self.write_rest().and_then(|()| self.write(line));
        if written.is_err() {
            self.dropped += 1;
        }
        written
    }

    /// Lines that were lost.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    fn write_rest(&mut self) -> io::Result<()> {
        while !self.rest.is_empty() {
            let count = self.write_some(&self.rest)?;
            self.rest.drain(..count);
        }
        Ok(())
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let mut left = line;
        while !left.is_empty() {
            match self.write_some(left) {
                Ok(count) => left = &left[count..],
                // Begun: the line is not lost, its rest is late.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && left.len() < line.len() =>
                {
                    self.rest = left.to_vec();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match (&self.file).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn fifo() -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: `name` is a string with its NUL, live during the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        (directory, path)
    }

    fn read_all(path: &Path) -> String {
        let mut reader =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        let mut bytes = Vec::new();
        let error = reader.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_file_is_made_private_and_appended_to() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        LineFile::new(open(&path).unwrap()).write_line(b"one\n").unwrap();
        LineFile::new(open(&path).unwrap()).write_line(b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_fifo_without_a_reader_neither_blocks_nor_loses_what_it_holds() {
        let (_directory, path) = fifo();
        let mut file = LineFile::new(open(&path).unwrap());
        file.write_line(b"before the reader\n").unwrap();
        assert_eq!(read_all(&path), "before the reader\n");
    }

    #[test]
    fn a_full_fifo_drops_whole_lines_and_counts_them() {
        let (_directory, path) = fifo();
        let mut file = LineFile::new(open(&path).unwrap());
        // Longer than PIPE_BUF, so that a pipe takes parts of it.
        let line = format!("{}\n", "x".repeat(9_999));
        let written = (0..100).filter(|_| file.write_line(line.as_bytes()).is_ok()).count();
        assert_eq!(file.dropped(), 100 - written as u64);
        assert!((1..100).contains(&written), "{written}");
        let first = read_all(&path);
        file.write_line(b"after\n").unwrap();
        let text = first + &read_all(&path);
        let mut lines = text.split_inclusive('\n').collect::<Vec<_>>();
        assert_eq!(lines.pop(), Some("after\n"));
        assert_eq!(lines.len(), written);
        assert!(lines.iter().all(|got| *got == line), "a line is broken");
    }

    #[test]
    fn a_directory_and_a_path_without_one_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        open(directory.path()).unwrap_err();
        open(&directory.path().join("no/log")).unwrap_err();
    }
}
