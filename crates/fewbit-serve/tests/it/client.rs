//! A client for tests that can also misbehave: it sends any bytes, one by one if needed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The type, field and code of the error. Checks that the answer is an error with this status.
    #[track_caller]
    pub(crate) fn error(&self, status: u16) -> (String, Option<String>, Option<String>) {
        assert_eq!(self.status, status, "{}", self.body);
        let error = &self.json()["error"];
        let text = |name: &str| error[name].as_str().map(str::to_owned);
        assert!(!text("message").unwrap().is_empty());
        (text("type").unwrap(), text("param"), text("code"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    /// The data of the named events. Checks that each name equals the `type` in the data.
    #[track_caller]
    pub(crate) fn named_events(&self) -> Vec<Value> {
        let event = |text: &str| {
            let (name, data) = text.split_once('\n')?;
            let value: Value = serde_json::from_str(data.strip_prefix("data: ")?).ok()?;
            assert_eq!(name.strip_prefix("event: "), value["type"].as_str());
            Some(value)
        };
        self.body.split("\n\n").filter(|text| !text.is_empty()).map(|text| event(text).expect(text)).collect()
    }

    /// The data of the events: JSON, or `[DONE]` as a string.
    pub(crate) fn events(&self) -> Vec<Value> {
        let data = self.body.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
        data.map(|text| serde_json::from_str(text).unwrap_or_else(|_| text.into())).collect()
    }
}

/// A connection on which a request was sent.
pub(crate) struct Sent {
    reader: BufReader<TcpStream>,
}

pub(crate) fn send(address: &str, request: &[u8]) -> Sent {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket.write_all(request).unwrap();
    Sent { reader: BufReader::new(socket) }
}

impl Sent {
    /// Reads a line, without its line break.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Reads up to the line that begins with this text.
    pub(crate) fn read_to(&mut self, beginning: &str) -> String {
        for _ in 0..10_000 {
            let line = self.line();
            if line.starts_with(beginning) {
                return line;
            }
        }
        panic!("no line begins with {beginning:?}");
    }

    pub(crate) fn answer(mut self) -> Answer {
        let mut head = String::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                break;
            }
            head += &line;
            head.push('\n');
        }
        let status = head.split(' ').nth(1).unwrap_or_else(|| panic!("no status: {head:?}")).parse().unwrap();
        let mut body = Vec::new();
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            loop {
                let size = usize::from_str_radix(&self.line(), 16).unwrap_or(0);
                let mut chunk = vec![0; size];
                self.reader.read_exact(&mut chunk).unwrap();
                self.line();
                if size == 0 {
                    break;
                }
                body.extend(chunk);
            }
        } else {
            self.reader.read_to_end(&mut body).unwrap();
        }
        Answer { status, head, body: String::from_utf8(body).unwrap() }
    }
}

/// The bytes of a request.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "Host") {
        text += "Host: localhost\r\n";
    }
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    text.into_bytes()
}

pub(crate) fn get(address: &str, path: &str) -> Answer {
    send(address, &request("GET", path, &[], "")).answer()
}

pub(crate) fn post(address: &str, path: &str, body: &Value) -> Answer {
    send(address, &request("POST", path, &[], &body.to_string())).answer()
}

/// Waits until a condition holds, for at most a minute.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
