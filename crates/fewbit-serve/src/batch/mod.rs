//! Many requests at once, in OpenAI's form for batches: one in each line of a file.
//!
//! ```text
//! in:  {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
//! out: {"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200, "body": {...}}, "error": null}
//! ```
//!
//! The same input gives the same bytes: times, random ids, numbers of cached tokens and seeds, which would differ from
//! run to run, are left out or derived from the line number.
//!
//! `fewbit batch` answers a file so, and `/v1/batches` the files that clients upload.

pub(crate) mod files;
pub(crate) mod multipart;
pub(crate) mod progress;
pub(crate) mod run;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Value, json};

use crate::local::Local;

/// The endpoints that a line can name.
pub const BATCH_ENDPOINTS: [&str; 5] =
    ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"];
/// The size limit of a line, in bytes.
const MAX_LINE: u64 = 16 << 20;

/// The lines of a file with requests, without empty ones.
#[derive(Debug)]
pub struct BatchLines {
    reader: BufReader<File>,
}

impl BatchLines {
    /// Opens a file.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self { reader: BufReader::new(File::open(path)?) })
    }
}

impl Iterator for BatchLines {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut line = Vec::new();
            match self.reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Err(error) => return Some(Err(error)),
                Ok(0) => return None,
                Ok(_) if line.len() as u64 == MAX_LINE => {
                    let message = format!("a line has more than {MAX_LINE} bytes: cut it up");
                    return Some(Err(io::Error::new(io::ErrorKind::InvalidData, message)));
                }
                Ok(_) if line.trim_ascii().is_empty() => {}
                Ok(_) => return Some(Ok(line)),
            }
        }
    }
}

/// The answer to a line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchLine {
    /// Whether the request succeeded.
    pub is_good: bool,
    /// The line of the output, with a line break.
    pub text: String,
    /// The status of the answer; `None` if the line is no request.
    pub status: Option<u16>,
    /// After how many seconds to try again, if the server says so.
    pub retry_after_s: Option<u32>,
}

impl Local {
    /// Answers the `n`-th line (from 1) of a file. A request without a seed gets this one.
    pub async fn batch_line(&self, n: u64, line: &[u8], seed: i64) -> BatchLine {
        let wrong = |custom_id: &Value, message: String| {
            let error = json!({ "code": "invalid_request", "message": message });
            let text = output(n, custom_id, Value::Null, error);
            BatchLine { is_good: false, text, status: None, retry_after_s: None }
        };
        let mut request: Value = match serde_json::from_slice(line) {
            Ok(request) => request,
            Err(error) => return wrong(&Value::Null, format!("the line is not JSON: {error}")),
        };
        let custom_id = request["custom_id"].clone();
        if let Err(error) = check(&request) {
            return wrong(&custom_id, error.message);
        }
        let path = request["url"].as_str().unwrap_or_default().to_owned();
        if let Some(body) = request["body"].as_object_mut()
            && body.get("seed").is_none_or(Value::is_null)
        {
            body.insert("seed".to_owned(), seed.into());
        }
        let answer = self.post(&path, request["body"].to_string()).await;
        let mut body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        settle(&mut body, n);
        let text = output(n, &custom_id, json!({ "status_code": answer.status, "body": body }), Value::Null);
        let is_good = answer.status == 200;
        BatchLine { is_good, text, status: Some(answer.status), retry_after_s: answer.retry_after_s }
    }
}

/// The line of the output for the `n`-th line of the input.
fn output(n: u64, custom_id: &Value, response: Value, error: Value) -> String {
    let line = json!({ "id": id(n), "custom_id": custom_id, "response": response, "error": error });
    format!("{line}\n")
}

fn id(n: u64) -> String {
    format!("batch_req_{n}")
}

/// What is wrong with a line.
struct Mistake {
    code: &'static str,
    param: &'static str,
    message: String,
}

/// Checks the parts of a request that are not its body's fields.
fn check(request: &Value) -> Result<(), Mistake> {
    let wrong = |param: &'static str, message: String| Err(Mistake { code: "invalid_request", param, message });
    let url = request["url"].as_str().unwrap_or_default();
    if !BATCH_ENDPOINTS.contains(&url) {
        return wrong("url", format!("`url` is {url:?}: it can be one of {}", BATCH_ENDPOINTS.join(", ")));
    }
    if request.get("method").is_some_and(|method| !method.is_null() && *method != "POST") {
        return wrong("method", "`method` is not POST, which all of these endpoints want".to_owned());
    }
    let Some(body) = request["body"].as_object() else { return wrong("body", "`body` is no object".to_owned()) };
    if body.get("stream").is_some_and(|stream| *stream == true) {
        return wrong("body.stream", "`body.stream`: lines are answered as a whole; leave it out".to_owned());
    }
    Ok(())
}

/// Replaces everything that differs from run to run.
fn settle(body: &mut Value, n: u64) {
    let Value::Object(fields) = body else { return };
    for time in ["created", "created_at"] {
        if let Some(time) = fields.get_mut(time) {
            *time = 0.into();
        }
    }
    fields.shift_remove("request_id");
    let prefix = |id: &str| {
        id.split_once('_').map_or_else(|| id.split('-').next().unwrap_or_default().to_owned(), |(p, _)| p.to_owned())
    };
    if let Some(id) = fields.get_mut("id")
        && let Some(old) = id.as_str()
    {
        *id = format!("{}_batch_{n}", prefix(old)).into();
    }
    for (i, item) in fields.get_mut("output").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
        if let Some(old) = item["id"].as_str() {
            item["id"] = format!("{}_batch_{n}_{i}", prefix(old)).into();
        }
    }
    let Some(Value::Object(usage)) = fields.get_mut("usage") else { return };
    usage.shift_remove("prompt_tokens_details");
    usage.shift_remove("input_tokens_details");
    if let (Some(new), Some(read)) =
        (usage.get("input_tokens").and_then(Value::as_u64), usage.shift_remove("cache_read_input_tokens"))
    {
        usage.insert("input_tokens".to_owned(), (new + read.as_u64().unwrap_or(0)).into());
    }
}
