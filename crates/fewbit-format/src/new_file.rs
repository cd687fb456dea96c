//! Output files that appear either complete or not at all. Outputs that are not regular files are written directly.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

/// Number of links to follow before a path counts as a loop of links, as in operating systems.
const MAX_LINKS: usize = 40;
const BUFFER_BYTES: usize = 1 << 20;

/// A file that is being written, and that gets its name when it is complete.
///
/// Until then it is in the same folder under a name that no other process or thread uses. So the path never names an
/// incomplete file, a process that has mapped the old file keeps it, and if several writers use the same path, the last
/// one to finish wins. If it is dropped before [`finish`](Self::finish), it leaves nothing.
///
/// A symbolic link is kept, and its target is replaced. Anything that is not a regular file (a device, a pipe) is
/// written directly, and so is the target of `/dev/stdout` and similar paths: if it were replaced, the process that
/// opened it would be left with the old file.
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
    out: BufWriter<File>,
    /// The temporary path and the final path; `None` if the output is written directly.
    place: Option<(TempPath, PathBuf)>,
}

impl NewFile {
    /// Starts a file that will be at `path`, replacing an existing one.
    pub fn create(path: &Path) -> io::Result<Self> {
        let Some(target) = target(path)? else {
            let out = OpenOptions::new().write(true).open(path)?;
            return Ok(Self { out: BufWriter::with_capacity(BUFFER_BYTES, out), place: None });
        };
        let (file, part) = create_beside(&target)?;
        if let Ok(old) = fs::metadata(&target) {
            // Keeps the permissions of the old file, as if it were overwritten: a private file stays private. On file
            // systems without permissions there is nothing to keep.
            let _ = fs::set_permissions(&part, old.permissions());
        }
        let out = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Self { out, place: Some((part, target)) })
    }

    /// Flushes the file to disk and gives it its name.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.flush()?;
        if let Some((part, target)) = self.place.take() {
            // If it were renamed before its bytes are on disk, the file could be empty after a power failure.
            self.out.get_ref().sync_all()?;
            part.persist(target)?;
        }
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

/// The file that is replaced when `path` is written: `path` itself, or the target of its links. `None` for outputs that
/// are written directly.
fn target(path: &Path) -> io::Result<Option<PathBuf>> {
    if fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
        return Ok(None);
    }
    let mut target = path.to_owned();
    for _ in 0..MAX_LINKS {
        if is_descriptor(&target) {
            return Ok(None);
        }
        match fs::symlink_metadata(&target) {
            Ok(meta) if meta.is_symlink() => {
                // Relative links are relative to the folder of the link. If the target does not exist yet, the file is
                // created there.
                let link = fs::read_link(&target)?;
                target = target.parent().unwrap_or(Path::new("")).join(link);
            }
            Ok(meta) if meta.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            _ => return Ok(Some(target)),
        }
    }
    Err(io::Error::other("too many links lead to one another"))
}

/// Whether the path names an open file descriptor of a process rather than a file.
fn is_descriptor(path: &Path) -> bool {
    let is_proc = path.starts_with("/proc") && path.parent().is_some_and(|parent| parent.ends_with("fd"));
    let is_standard = ["/dev/stdout", "/dev/stderr", "/dev/stdin"].iter().any(|name| path == Path::new(name));
    cfg!(unix) && (is_proc || is_standard || path.starts_with("/dev/fd"))
}

/// Creates a new file in the folder of `path`, under a name that no other process or thread uses.
fn create_beside(path: &Path) -> io::Result<(File, TempPath)> {
    let mut prefix = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".part");
    // The content is not secret: it gets the permissions of any new file, restricted by the user's umask.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(builder.tempfile_in(folder)?.into_parts())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn write(path: &Path, text: &str) {
        let mut file = NewFile::create(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.finish().unwrap();
    }

    #[test]
    fn symlinks_stay_and_their_targets_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("deep")).unwrap();
        fs::write(at("deep/target"), "old").unwrap();
        fs::set_permissions(at("deep/target"), fs::Permissions::from_mode(0o600)).unwrap();
        symlink("deep/target", at("link")).unwrap();
        symlink("link", at("link of a link")).unwrap();
        symlink("deep/new", at("to nowhere yet")).unwrap();
        let mut old = File::open(at("deep/target")).unwrap();
        write(&at("link of a link"), "new");
        assert!(at("link of a link").is_symlink() && at("link").is_symlink() && !at("deep/target").is_symlink());
        assert_eq!(fs::read_to_string(at("deep/target")).unwrap(), "new");
        assert_eq!(fs::metadata(at("deep/target")).unwrap().permissions().mode() & 0o777, 0o600);
        let mut text = String::new();
        old.read_to_string(&mut text).unwrap();
        assert_eq!(text, "old", "replaced, not written into");
        write(&at("to nowhere yet"), "made");
        assert_eq!(fs::read_to_string(at("deep/new")).unwrap(), "made");
        symlink("ring", at("ring")).unwrap();
        assert!(NewFile::create(&at("ring")).is_err() && NewFile::create(&at("deep")).is_err());
        drop(NewFile::create(&at("deep/never")).unwrap());
        assert_eq!(fs::read_dir(at("deep")).unwrap().count(), 2, "nothing is left over");
        // A new file has the same permissions as any other new file.
        fs::write(at("any"), "").unwrap();
        let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode();
        assert_eq!(mode("deep/new"), mode("any"));
    }

    #[test]
    fn devices_and_open_descriptors_are_written_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("open");
        let mut open = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        use std::os::fd::AsRawFd;
        // The file of a descriptor is written in place: a new file under its name would not be the one that is open.
        let link = folder.path().join("link");
        symlink(format!("/dev/fd/{}", open.as_raw_fd()), &link).unwrap();
        write(&link, "through");
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert!(link.is_symlink());
        assert!(target(Path::new("/dev/null")).unwrap().is_none());
        assert!(target(Path::new("/dev/stdout")).unwrap().is_none());
        write(Path::new("/dev/null"), "away");
    }
}
