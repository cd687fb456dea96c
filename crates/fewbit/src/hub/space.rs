//! Checks the disk space before a download, because a disk that fills up disturbs other programs too.

use std::fs;
use std::path::Path;

use super::HubError;

/// Bytes that stay free, for the metadata of the file system and for other programs.
const SPARE_BYTES: u64 = 1 << 20;

/// Returns an error if the download would not fit next to the contents of `folder`, which need not exist yet.
pub(super) fn check(folder: &Path, needed_bytes: u64) -> Result<(), HubError> {
    if needed_bytes == 0 {
        return Ok(());
    }
    let here = folder.ancestors().find(|ancestor| fs::metadata(ancestor).is_ok_and(|meta| meta.is_dir()));
    // If the free space is unknown, writing will report a full disk.
    let Some(free_bytes) = here.and_then(|here| fs4::available_space(here).ok()) else { return Ok(()) };
    if free_bytes < needed_bytes.saturating_add(SPARE_BYTES) {
        return Err(HubError::NoSpace { path: folder.to_owned(), needed_bytes, free_bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insufficient_disk_space_is_an_error_with_both_sizes() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("not/there/yet");
        assert!(check(&folder, 0).is_ok() && check(&folder, 1).is_ok());
        match check(&folder, 1 << 60) {
            Err(HubError::NoSpace { path, needed_bytes, free_bytes }) => {
                assert_eq!((path, needed_bytes), (folder, 1 << 60));
                assert!(free_bytes > 0 && free_bytes < 1 << 60);
            }
            other => panic!("{other:?}"),
        }
    }
}
