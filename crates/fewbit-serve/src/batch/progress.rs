//! The answers that a batch has so far: two files that are appended to, one for answers and one for lines that failed.
//!
//! Each line has its number in its id, and they are written in order. If the server or the machine stops, the files may
//! end in the middle of a line, or one may have lost lines that the other still has: only the lines up to the first one
//! that is missing count, the others are removed and answered again.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The two files of a batch in progress.
#[derive(Debug)]
pub(crate) struct Progress {
    good: File,
    bad: File,
    pub(crate) n_good: u64,
    pub(crate) n_bad: u64,
}

/// The names of the two files.
pub(crate) fn paths(folder: &Path, id: &str) -> [PathBuf; 2] {
    ["out", "err"].map(|kind| folder.join(format!("{id}.{kind}")))
}

#[derive(Deserialize)]
struct Id {
    id: String,
}

/// The numbers of the complete lines of a file, each with where the line ends.
fn written(path: &Path) -> io::Result<Vec<(u64, u64)>> {
    let mut reader = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let (mut all, mut end, mut line) = (Vec::new(), 0_u64, Vec::new());
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line)?;
        let number = serde_json::from_slice(&line).ok().and_then(|Id { id }| id.rsplit('_').next()?.parse().ok());
        let (Some(b'\n'), Some(number)) = (line.last(), number) else { return Ok(all) };
        end += line.len() as u64;
        all.push((number, end));
    }
}

impl Progress {
    /// Opens the files, and removes what cannot be continued.
    pub(crate) fn open(folder: &Path, id: &str) -> io::Result<Self> {
        let [good, bad] = paths(folder, id);
        let (of_good, of_bad) = (written(&good)?, written(&bad)?);
        let mut numbers: Vec<u64> = of_good.iter().chain(&of_bad).map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        let n_done = numbers.iter().zip(1..).take_while(|(number, place)| **number == *place).count() as u64;
        let open = |path: &Path, lines: &[(u64, u64)]| -> io::Result<(File, u64)> {
            let kept = lines.iter().take_while(|(number, _)| *number <= n_done);
            let (n, end) = kept.fold((0, 0), |(n, _), (_, end)| (n + 1, *end));
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            file.set_len(end)?;
            Ok((file, n))
        };
        let ((good, n_good), (bad, n_bad)) = (open(&good, &of_good)?, open(&bad, &of_bad)?);
        Ok(Self { good, bad, n_good, n_bad })
    }

    /// How many lines are answered.
    pub(crate) fn n_done(&self) -> u64 {
        self.n_good + self.n_bad
    }

    /// Writes the next line.
    pub(crate) fn write(&mut self, is_good: bool, line: &str) -> io::Result<()> {
        let (file, n) = if is_good { (&mut self.good, &mut self.n_good) } else { (&mut self.bad, &mut self.n_bad) };
        file.write_all(line.as_bytes())?;
        *n += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_answered_again() {
        let folder = tempfile::tempdir().unwrap();
        let line = |n: u64| format!("{{\"id\":\"batch_req_{n}\"}}\n");
        let mut progress = Progress::open(folder.path(), "b").unwrap();
        for n in 1..=6 {
            progress.write(n % 3 != 0, &line(n)).unwrap();
        }
        let [good, bad] = paths(folder.path(), "b");
        let counts = || {
            let progress = Progress::open(folder.path(), "b").unwrap();
            (progress.n_good, progress.n_bad)
        };
        assert_eq!(counts(), (4, 2));
        // The last line was cut.
        let text = std::fs::read_to_string(&bad).unwrap();
        std::fs::write(&bad, &text[..text.len() - 1]).unwrap();
        assert_eq!(counts(), (4, 1));
        // One file has lost lines that the other one has.
        std::fs::write(&good, line(1)).unwrap();
        assert_eq!(counts(), (1, 0));
        assert_eq!(
            (std::fs::read_to_string(&good).unwrap(), std::fs::read_to_string(&bad).unwrap()),
            (line(1), String::new())
        );
        std::fs::write(&good, "nothing\n").unwrap();
        assert_eq!(counts(), (0, 0));
    }
}
