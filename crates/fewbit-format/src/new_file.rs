//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A file that is being written, and that gets its name when it is complete.
///
/// Until then it lies in the same folder under a name that no other process or thread uses. So the path never names
/// half a file, a process that has the old file mapped keeps it, and of several that write one path at a time, the
/// last to end wins. Dropped before [`finish`](Self::finish), it leaves nothing.
///
/// ```
/// use fewbit_format::NewFile;
/// use std::io::Write;
///
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("notes.txt");
/// let mut file = NewFile::create(&path)?;
/// file.write_all(b"whole")?;
/// assert!(!path.exists());
/// file.finish()?;
/// assert_eq!(std::fs::read(&path)?, b"whole");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "the file is there after `finish`"]
pub struct NewFile {
    path: PathBuf,
    /// Where it lies until it is complete.
    part: PathBuf,
    out: BufWriter<File>,
    is_finished: bool,
}

impl NewFile {
    /// Begins a file that will be at `path`, in place of one that is there.
    pub fn create(path: &Path) -> io::Result<Self> {
        let (part, file) = create_beside(path)?;
        let out = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { path: path.to_owned(), part, out, is_finished: false })
    }

    /// Gives the file its name, once its bytes are on the disk.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.flush()?;
        // Renamed before its bytes are on disk, the file could be empty after a power failure.
        self.out.get_ref().sync_all()?;
        fs::rename(&self.part, &self.path)?;
        self.is_finished = true;
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_finished {
            // What made the file incomplete is the error to report.
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// Creates a new file in the folder of `path`, under a name that no other process or thread uses.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    loop {
        let mut part = name.to_owned();
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        part.push(format!(".{}-{n}.part", std::process::id()));
        let part = path.with_file_name(part);
        match File::create_new(&part) {
            Ok(file) => return Ok((part, file)),
            // Left behind by an earlier process of the same number: take the next name.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}
