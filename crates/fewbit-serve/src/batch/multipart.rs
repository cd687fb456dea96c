//! Reads a body of `multipart/form-data` (RFC 7578) piece by piece, with bounded memory.
//!
//! ```text
//! --BOUNDARY                                            the first delimiter; what precedes it is skipped
//! Content-Disposition: form-data; name="purpose"
//!                                                       an empty line
//! batch
//! --BOUNDARY
//! Content-Disposition: form-data; name="file"; filename="in.jsonl"
//! Content-Type: application/octet-stream
//!
//! {"custom_id": ...
//! --BOUNDARY--
//! ```
//!
//! A delimiter is the boundary with the line break before it, which does not belong to the data.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use http_body_util::BodyExt;

use crate::error::ApiError;

/// The size limit of the headers of a part, in bytes.
const MAX_HEADERS: usize = 16 << 10;
/// The most characters of a boundary: the limit of RFC 2046.
const MAX_BOUNDARY: usize = 70;
/// How long a client may take for the next piece.
const PATIENCE: Duration = Duration::from_secs(60);

/// The fields of a form.
pub(crate) struct Multipart {
    body: Body,
    buffer: Vec<u8>,
    /// The line break, two hyphens and the boundary.
    delimiter: Vec<u8>,
    /// Whether all of the current part was read.
    is_at_end: bool,
    n_read: u64,
    limit: u64,
}

/// The name of a part, and that of its file if it is one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) filename: Option<String>,
}

fn wrong(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, message)
}

impl Multipart {
    /// A form of at most `limit` bytes.
    pub(crate) fn new(content_type: &str, body: Body, limit: u64) -> Result<Self, ApiError> {
        let (kind, params) = content_type.split_once(';').unwrap_or((content_type, ""));
        let boundary = parameter(params, "boundary");
        match boundary {
            Some(boundary)
                if kind.trim().eq_ignore_ascii_case("multipart/form-data")
                    && (1..=MAX_BOUNDARY).contains(&boundary.len()) =>
            {
                // The first delimiter may have no line break before it.
                let (buffer, delimiter) = (b"\r\n".to_vec(), format!("\r\n--{boundary}").into_bytes());
                Ok(Self { body, buffer, delimiter, is_at_end: false, n_read: 0, limit })
            }
            _ => Err(wrong("the body is no form: send `multipart/form-data` with a boundary of at most 70 characters")),
        }
    }

    /// Reads more into the buffer.
    async fn fill(&mut self) -> Result<(), ApiError> {
        loop {
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await;
            let frame =
                frame.map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))?;
            let Some(Ok(frame)) = frame else { return Err(wrong("the body broke off")) };
            let Ok(data) = frame.into_data() else { continue };
            if data.is_empty() {
                continue;
            }
            self.n_read = self.n_read.saturating_add(data.len() as u64);
            if self.n_read > self.limit {
                let message = format!("the body has more than {} bytes: send a smaller file", self.limit);
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
            }
            self.buffer.extend_from_slice(&data);
            return Ok(());
        }
    }

    /// The next piece of the current part; `None` at its end.
    pub(crate) async fn piece(&mut self) -> Result<Option<Vec<u8>>, ApiError> {
        if self.is_at_end {
            return Ok(None);
        }
        loop {
            if let Some(at) = find(&self.buffer, &self.delimiter) {
                let data = self.buffer.drain(..at).collect();
                self.buffer.drain(..self.delimiter.len());
                self.is_at_end = true;
                return Ok(Some(data));
            }
            // The end of the buffer may be the beginning of a delimiter.
            let n_sure = self.buffer.len().saturating_sub(self.delimiter.len() - 1);
            if n_sure > 0 {
                return Ok(Some(self.buffer.drain(..n_sure).collect()));
            }
            self.fill().await?;
        }
    }

    /// Skips what is left of the current part, and reads the headers of the next one; `None` after the last one.
    pub(crate) async fn next(&mut self) -> Result<Option<Part>, ApiError> {
        while self.piece().await?.is_some() {}
        while self.buffer.len() < 2 {
            self.fill().await?;
        }
        if self.buffer.starts_with(b"--") {
            return Ok(None);
        }
        let end = loop {
            // The line break of the delimiter's line is still there, so that headers may be missing.
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break end;
            }
            if self.buffer.len() > MAX_HEADERS {
                return Err(wrong(format!("the headers of a part have more than {MAX_HEADERS} bytes")));
            }
            self.fill().await?;
        };
        let headers: Vec<u8> = self.buffer.drain(..end + 4).collect();
        // What follows may be the next delimiter at once.
        self.is_at_end = false;
        let headers = String::from_utf8(headers).map_err(|_| wrong("the headers of a part are not UTF-8"))?;
        let disposition = headers.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim().eq_ignore_ascii_case("content-disposition").then(|| value.trim().to_owned())
        });
        let disposition = disposition.unwrap_or_default();
        let params = disposition.split_once(';').map_or("", |(_, params)| params);
        match parameter(params, "name") {
            Some(name) => Ok(Some(Part { name, filename: parameter(params, "filename") })),
            None => Err(wrong("a part of the form has no name: send `Content-Disposition: form-data; name=..`")),
        }
    }

    /// The rest of the current part as a text of at most `limit` bytes.
    pub(crate) async fn text(&mut self, name: &str, limit: usize) -> Result<String, ApiError> {
        let mut text = Vec::new();
        while let Some(piece) = self.piece().await? {
            text.extend(piece);
            if text.len() > limit {
                return Err(ApiError::invalid(name, format!("`{name}` has more than {limit} bytes")));
            }
        }
        String::from_utf8(text).map_err(|_| ApiError::invalid(name, format!("`{name}` is not UTF-8")))
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// A parameter such as `filename="a\"b"` of a header.
fn parameter(params: &str, wanted: &str) -> Option<String> {
    let mut rest = params;
    loop {
        rest = rest.trim_start_matches(|c: char| c == ';' || c.is_whitespace());
        let (name, after) = rest.split_once('=')?;
        let (value, next) = match after.strip_prefix('"') {
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
            Some(quoted) => {
                let (mut value, mut is_escaped, mut end) = (String::new(), false, None);
                for (i, c) in quoted.char_indices() {
                    match c {
                        '"' if !is_escaped => {
                            end = Some(i + 1);
                            break;
                        }
                        '\\' if !is_escaped => is_escaped = true,
                        c => {
                            value.push(c);
                            is_escaped = false;
                        }
                    }
                }
                (value, &quoted[end?..])
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use futures_util::stream;

    use super::*;

    /// The parts of a form whose body comes in pieces of `n` bytes.
    fn parts(body: &str, n: usize) -> Result<Vec<(Part, String)>, ApiError> {
        let pieces: Vec<_> = body
            .as_bytes()
            .chunks(n)
            .map(|piece| Ok::<_, std::convert::Infallible>(Bytes::copy_from_slice(piece)))
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let body = Body::from_stream(stream::iter(pieces));
            let mut form = Multipart::new("multipart/form-data; charset=x; boundary=\"B-1\"", body, 10_000)?;
            let mut all = Vec::new();
            while let Some(part) = form.next().await? {
                let name = part.name.clone();
                all.push((part, form.text(&name, 1000).await?));
            }
            Ok(all)
        })
    }

    fn part(name: &str, filename: Option<&str>) -> Part {
        Part { name: name.to_owned(), filename: filename.map(str::to_owned) }
    }

    #[test]
    fn parts_are_found_however_they_are_cut() {
        let body = "ignored\r\n--B-1\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--B-1\r\n\
                    content-type: text/plain\r\nCONTENT-DISPOSITION: form-data; filename=\"a\\\"b;.jsonl\"; name=file\r\n\r\n\
                    \r\n--B-\r\n--B2\r\n\r\n--B-1\r\nContent-Disposition: form-data; name=\"\"\r\n\r\n\r\n--B-1--\r\nrest";
        for n in [1, 2, 3, 7, 64, 10_000] {
            let all = parts(body, n).unwrap();
            let want = [
                (part("purpose", None), "batch".to_owned()),
                (part("file", Some("a\"b;.jsonl")), "\r\n--B-\r\n--B2\r\n".to_owned()),
                (part("", None), String::new()),
            ];
            assert_eq!(all, want, "{n}");
            // The first delimiter needs no line break before it.
            assert_eq!(parts(body.strip_prefix("ignored\r\n").unwrap(), n).unwrap(), want);
        }
    }

    #[test]
    fn what_is_no_form_is_refused() {
        let status = |body: &str| parts(body, 100).unwrap_err().status.as_u16();
        let head = "--B-1\r\nContent-Disposition: form-data; name=a\r\n\r\n";
        assert_eq!(status(""), 400);
        assert_eq!(status(head), 400);
        assert_eq!(status(&format!("{head}x\r\n--B-1")), 400);
        assert_eq!(status("--B-1\r\n\r\nx\r\n--B-1--"), 400);
        assert_eq!(status("--B-1\r\nContent-Disposition: form-data; name=\"a\r\n\r\nx\r\n--B-1--"), 400);
        assert_eq!(status(&format!("{head}{}\r\n--B-1--", "x".repeat(1001))), 400);
        assert_eq!(status(&format!("--B-1\r\n{}", "x".repeat(9_000))), 400);
        assert_eq!(status(&format!("--B-1{}", "x".repeat(10_000))), 413);
        for kind in ["", "application/json", "multipart/form-data", "multipart/form-data; boundary="] {
            assert!(Multipart::new(kind, Body::empty(), 1).is_err(), "{kind}");
        }
        let long = format!("multipart/form-data; boundary={}", "b".repeat(71));
        assert!(Multipart::new(&long, Body::empty(), 1).is_err());
    }
}
