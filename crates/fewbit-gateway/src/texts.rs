//! Texts of requests and answers, kept next to the log if the configuration asks for it.
//!
//! ```text
//! store/texts/2026-11-29.jsonl    {"request":ID,"time_ms":..,"masked":0,"job":{..},"answer":{..}}
//! ```
//!
//! A line of the log has the hash of its line here, so that these texts are proved by the log and the log does not need
//! them: when the time for which they are kept is over, the files of old days are deleted. Only their owner can read them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::audit::{Entry, private};
use crate::error::GatewayError;
use crate::hex;
use crate::masking::Masking;
use crate::output::Answer;
use crate::usage::date;

const FOLDER: &str = "texts";
const DAY_MS: u64 = 24 * 3600 * 1000;
/// Limit on the bytes of a line that is read again.
const MAX_LINE: u64 = 256 << 20;

/// How texts are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Keep {
    /// With everything masked that looks private.
    Masked,
    /// As they are.
    Exact,
}

/// A request and its answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Text {
    pub(crate) request: String,
    pub(crate) time_ms: u64,
    /// How many texts were masked.
    pub(crate) masked: usize,
    pub(crate) job: Value,
    pub(crate) answer: Answer,
}

/// Keeps texts in a store.
#[derive(Debug)]
pub(crate) struct Texts {
    folder: PathBuf,
    pub(crate) keep: Keep,
    days: u64,
    masking: Masking,
    /// The day of the last line, and its file.
    open: Option<(String, File)>,
}

impl Texts {
    pub(crate) fn new(store: &Path, keep: Keep, days: u32, masking: Masking) -> Self {
        Self { folder: store.join(FOLDER), keep, days: days.into(), masking, open: None }
    }

    /// The line of a request, and its hash. Masked if it has to be.
    pub(crate) fn line(&self, mut text: Text) -> Result<(String, String), GatewayError> {
        if self.keep == Keep::Masked {
            // A seed is a random number: some have the digits of a card or of a telephone.
            let seeds = ["/seed", "/sampling/seed"];
            let kept = seeds.map(|at| text.job.pointer_mut(at).map(Value::take));
            let mut both = serde_json::json!([text.job, text.answer]);
            text.masked =
                self.masking.mask_value(&mut both).map_err(|error| GatewayError::Prompt { what: error.message })?;
            let Value::Array(both) = &mut both else { unreachable!("it was made as a list") };
            text.answer = both.pop().and_then(|answer| serde_json::from_value(answer).ok()).unwrap_or_default();
            text.job = both.pop().unwrap_or_default();
            for (at, seed) in seeds.into_iter().zip(kept) {
                if let (Some(place), Some(seed)) = (text.job.pointer_mut(at), seed) {
                    *place = seed;
                }
            }
        }
        let failed = GatewayError::file("write", &self.folder);
        let line = serde_json::to_string(&text).map_err(|error| failed(error.into()))?;
        let hash = hex(&Sha256::digest(line.as_bytes()));
        Ok((line, hash))
    }

    /// Writes a line into the file of its day.
    pub(crate) fn write(&mut self, line: &str, time_ms: u64) -> Result<(), GatewayError> {
        let day = date(time_ms);
        if self.open.as_ref().is_none_or(|(open, _)| *open != day) {
            self.open = Some((day.clone(), self.file(&day)?));
            self.remove_old(time_ms)?;
        }
        let Some((_, file)) = &mut self.open else { return Ok(()) };
        let failed = || GatewayError::file("write", self.folder.join(format!("{day}.jsonl")));
        let n_bytes = file.metadata().map_err(failed())?.len();
        if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
            // If this fails as well, the rest is a line that nothing refers to.
            let _ = file.set_len(n_bytes);
            self.open = None;
            return Err(failed()(error));
        }
        Ok(())
    }

    /// Opens the file of a day. A line that was left incomplete is ended, and then belongs to no line of the log.
    fn file(&self, day: &str) -> Result<File, GatewayError> {
        let failed = || GatewayError::file("open", &self.folder);
        fs::create_dir_all(&self.folder).map_err(failed())?;
        let path = self.folder.join(format!("{day}.jsonl"));
        let mut file = private().read(true).append(true).create(true).open(&path).map_err(failed())?;
        let mut last = [b'\n'];
        if file.seek(SeekFrom::End(0)).map_err(failed())? > 0 {
            file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last)).map_err(failed())?;
        }
        if last != [b'\n'] {
            file.write_all(b"\n").map_err(failed())?;
        }
        Ok(file)
    }

    fn remove_old(&self, now_ms: u64) -> Result<(), GatewayError> {
        let oldest = date(now_ms.saturating_sub(self.days.saturating_mul(DAY_MS)));
        let failed = || GatewayError::file("read", &self.folder);
        for entry in fs::read_dir(&self.folder).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            let day = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jsonl"));
            if day.is_some_and(|day| day.len() == oldest.len() && day < oldest.as_str()) {
                fs::remove_file(&path).map_err(GatewayError::file("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// The kept text of a line of the log; `None` if none was kept, or it is not kept any more.
///
/// # Errors
/// If the texts cannot be read.
pub(crate) fn find(store: &Path, entry: &Entry) -> Result<Option<Text>, GatewayError> {
    let Some(hash) = &entry.text_sha256 else { return Ok(None) };
    let path = store.join(FOLDER).join(format!("{}.jsonl", date(entry.time_ms)));
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(GatewayError::file("read", &path)(error)),
    };
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let n =
            reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(GatewayError::file("read", &path))?;
        if n == 0 {
            return Ok(None);
        }
        let line = line.trim_ascii_end();
        if hex(&Sha256::digest(line)) == *hash {
            let failed = GatewayError::file("read", &path);
            return serde_json::from_slice(line).map(Some).map_err(|error| failed(error.into()));
        }
    }
}
