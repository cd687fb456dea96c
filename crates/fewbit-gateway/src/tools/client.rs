//! A client for servers of the Model Context Protocol (MCP), as far as tools need it: JSON-RPC 2.0, one message at a
//! time, over the standard input and output of a program or over HTTP ("streamable HTTP").
//!
//! ```text
//! initialize -> notifications/initialized -> tools/list (pages) -> tools/call ...
//! ```
//!
//! The client offers the server nothing: no roots, no sampling, no elicitation. Requests of the server are refused,
//! except `ping`.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fewbit_serve::{HttpAnswer, HttpClient, HttpError};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;

/// The versions of the protocol that are understood, the one to ask for first.
const VERSIONS: [&str; 4] = ["2025-06-18", "2025-11-25", "2025-03-26", "2024-11-05"];
/// The size limit of a message, in bytes.
pub(super) const MAX_MESSAGE: usize = 8 << 20;
/// The most pages of a list of tools.
const MAX_PAGES: usize = 100;
/// Variables of this process that a program of an MCP server gets: none that could be a secret.
const PASSED_ON: [&str; 8] = ["HOME", "LANG", "LC_ALL", "PATH", "SystemRoot", "TMPDIR", "TZ", "USER"];

/// Why an MCP server did not do what it was asked to. No message contains arguments, results or keys.
#[derive(Debug, thiserror::Error)]
pub(crate) enum McpError {
    #[error("cannot start {program:?}")]
    Start {
        program: String,
        #[source]
        error: std::io::Error,
    },
    #[error("the server has ended, or closed the connection")]
    Closed,
    #[error("the server did not answer in time")]
    TimedOut,
    #[error("the server {0}")]
    Http(#[from] HttpError),
    #[error("the server answered with status {0}")]
    Status(u16),
    #[error("the server broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("the server refused the request (code {code})")]
    Refused { code: i64 },
}

/// A tool as the server describes it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ToolInfo {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) schema: Value,
}

/// The result of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToolResult {
    pub(crate) text: String,
    pub(crate) is_error: bool,
}

/// How to reach a server.
#[derive(Debug)]
pub(crate) enum Address {
    Program { command: Vec<String>, env: Vec<(String, String)>, folder: std::path::PathBuf },
    Http(Box<HttpClient>),
}

/// A connection to a server.
pub(crate) struct Client {
    transport: Transport,
    next_id: AtomicU64,
    timeout: Duration,
    /// Whether the server says that its list of tools has changed.
    is_stale: Arc<AtomicBool>,
}

enum Transport {
    Program(Program),
    Http { client: Arc<Address>, session: Option<String>, version: String },
}

type Pending = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Value>>>>>;

/// A program whose standard input and output are the connection. Dropping it ends the program.
struct Program {
    stdin: Arc<tokio::sync::Mutex<ChildStdin>>,
    /// Requests without an answer; `None` once the program has ended.
    pending: Pending,
    _child: Child,
}

impl Client {
    /// Connects and introduces itself.
    pub(crate) async fn connect(address: &Arc<Address>, timeout: Duration) -> Result<Self, McpError> {
        let is_stale = Arc::new(AtomicBool::new(false));
        let transport = match &**address {
            Address::Program { command, env, folder } => {
                Transport::Program(Program::start(command, env, folder, Arc::clone(&is_stale))?)
            }
            Address::Http(_) => Transport::Http { client: Arc::clone(address), session: None, version: String::new() },
        };
        let mut this = Self { transport, next_id: AtomicU64::new(1), timeout, is_stale };
        let hello = json!({
            "protocolVersion": VERSIONS[0],
            "capabilities": {},
            "clientInfo": { "name": "fewbit", "version": env!("CARGO_PKG_VERSION") },
        });
        let (answer, head) = this.request_with_head("initialize", hello).await?;
        let version = answer.get("protocolVersion").and_then(Value::as_str).unwrap_or_default();
        if !VERSIONS.contains(&version) {
            return Err(McpError::Protocol("it has another version of it"));
        }
        if let Transport::Http { session, version: agreed, .. } = &mut this.transport {
            *session = head;
            version.clone_into(agreed);
        }
        this.notify("notifications/initialized", json!({})).await?;
        Ok(this)
    }

    /// Whether the list of tools should be asked for again, or the connection has ended.
    pub(crate) fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Relaxed) || self.has_ended()
    }

    pub(crate) fn has_ended(&self) -> bool {
        match &self.transport {
            Transport::Program(program) => lock(&program.pending).is_none(),
            Transport::Http { .. } => false,
        }
    }

    /// All tools of the server.
    pub(crate) async fn tools(&self) -> Result<Vec<ToolInfo>, McpError> {
        self.is_stale.store(false, Ordering::Relaxed);
        let mut all = Vec::new();
        let mut params = json!({});
        for _ in 0..MAX_PAGES {
            let page = self.request("tools/list", params).await?;
            let tools = page.get("tools").and_then(Value::as_array);
            for tool in tools.ok_or(McpError::Protocol("its list of tools is none"))? {
                let text = |name: &str| tool.get(name).and_then(Value::as_str).map(str::to_owned);
                let name = text("name").ok_or(McpError::Protocol("a tool has no name"))?;
                let schema = tool.get("inputSchema").filter(|schema| schema.is_object()).cloned();
                let schema = schema.unwrap_or_else(|| json!({ "type": "object" }));
                all.push(ToolInfo { name, description: text("description"), schema });
            }
            match page.get("nextCursor").and_then(Value::as_str) {
                Some(cursor) => params = json!({ "cursor": cursor }),
                None => return Ok(all),
            }
        }
        Err(McpError::Protocol("its list of tools does not end"))
    }

    /// Calls a tool. An error that the tool itself reports is a result.
    pub(crate) async fn call(&self, name: &str, arguments: Map<String, Value>) -> Result<ToolResult, McpError> {
        let result = self.request("tools/call", json!({ "name": name, "arguments": arguments })).await?;
        let parts = result.get("content").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let part = |part: &Value| match part.get("type").and_then(Value::as_str) {
            Some("text") => part.get("text").and_then(Value::as_str).unwrap_or_default().to_owned(),
            Some("resource") => {
                part.pointer("/resource/text").and_then(Value::as_str).unwrap_or("[a resource]").to_owned()
            }
            // Links are not followed.
            Some("resource_link") => part.get("uri").and_then(Value::as_str).unwrap_or("[a link]").to_owned(),
            kind => format!("[{}, which is left out]", kind.unwrap_or("a part without a type")),
        };
        let mut text = parts.iter().map(part).collect::<Vec<_>>().join("\n");
        if let (true, Some(value)) = (parts.is_empty(), result.get("structuredContent")) {
            text = value.to_string();
        }
        Ok(ToolResult { text, is_error: result.get("isError").and_then(Value::as_bool).unwrap_or(false) })
    }

    async fn request(&self, method: &'static str, params: Value) -> Result<Value, McpError> {
        self.request_with_head(method, params).await.map(|(answer, _)| answer)
    }

    /// Sends a request. Returns its result, and the session of an answer over HTTP.
    async fn request_with_head(
        &self,
        method: &'static str,
        params: Value,
    ) -> Result<(Value, Option<String>), McpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let message = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let answered = match &self.transport {
            Transport::Program(program) => {
                let answered = tokio::time::timeout(self.timeout, program.request(id, &message)).await;
                answered.map(|answer| answer.map(|answer| (answer, None)))
            }
            Transport::Http { .. } => tokio::time::timeout(self.timeout, self.over_http(id, &message)).await,
        };
        let (mut answer, session) = match answered {
            Ok(answered) => answered?,
            Err(_) => {
                // The server may stop what nobody waits for. If it cannot be told, it does not matter.
                let _ = self.notify("notifications/cancelled", json!({ "requestId": id })).await;
                return Err(McpError::TimedOut);
            }
        };
        if let Some(error) = answer.get("error") {
            return Err(McpError::Refused { code: error.get("code").and_then(Value::as_i64).unwrap_or(0) });
        }
        let result = answer.get_mut("result").map(Value::take);
        Ok((result.ok_or(McpError::Protocol("an answer has no result"))?, session))
    }

    async fn notify(&self, method: &'static str, params: Value) -> Result<(), McpError> {
        let message = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        let sent = async {
            match &self.transport {
                Transport::Program(program) => program.send(&message).await,
                Transport::Http { .. } => self.post(&message).await.map(drop),
            }
        };
        tokio::time::timeout(self.timeout, sent).await.map_err(|_| McpError::TimedOut)?
    }

    async fn post(&self, message: &Value) -> Result<HttpAnswer, McpError> {
        let Transport::Http { client, session, version } = &self.transport else { return Err(McpError::Closed) };
        let Address::Http(client) = &**client else { return Err(McpError::Closed) };
        let mut headers = vec![("accept", "application/json, text/event-stream")];
        if !version.is_empty() {
            headers.push(("mcp-protocol-version", version));
        }
        headers.extend(session.as_deref().map(|session| ("mcp-session-id", session)));
        let answer = client.post(&headers, message.to_string().into_bytes()).await?;
        match answer.status() {
            200..=299 => Ok(answer),
            // The session is over: a new one is needed.
            404 if session.is_some() => Err(McpError::Closed),
            status => Err(McpError::Status(status)),
        }
    }

    async fn over_http(&self, id: u64, message: &Value) -> Result<(Value, Option<String>), McpError> {
        let mut answer = self.post(message).await?;
        let session = answer.header("mcp-session-id").map(str::to_owned);
        let parse = |bytes: &[u8]| {
            serde_json::from_slice::<Value>(bytes).map_err(|_| McpError::Protocol("an answer is not JSON"))
        };
        if answer.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")) {
            while let Some(event) = answer.event().await? {
                let value = parse(event.as_bytes())?;
                if is_answer(&value, id) {
                    return Ok((value, session));
                }
                self.note(&value);
            }
            return Err(McpError::Closed);
        }
        let value = parse(&answer.whole().await?)?;
        if is_answer(&value, id) { Ok((value, session)) } else { Err(McpError::Protocol("an answer has another id")) }
    }

    fn note(&self, message: &Value) {
        note(message, &self.is_stale);
    }
}

fn note(message: &Value, is_stale: &AtomicBool) {
    if message.get("method").is_some_and(|method| method == "notifications/tools/list_changed") {
        is_stale.store(true, Ordering::Relaxed);
    }
}

fn is_answer(value: &Value, id: u64) -> bool {
    value.get("method").is_none() && value.get("id").and_then(Value::as_u64) == Some(id)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Program {
    fn start(
        command: &[String],
        env: &[(String, String)],
        folder: &Path,
        is_stale: Arc<AtomicBool>,
    ) -> Result<Self, McpError> {
        let (program, args) = command.split_first().ok_or(McpError::Closed)?;
        let passed_on = PASSED_ON.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
        let mut child = Command::new(program)
            .args(args)
            .env_clear()
            .envs(passed_on)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What it writes there can contain texts of requests.
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| McpError::Start { program: program.clone(), error })?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(McpError::Closed);
        };
        let stdin = Arc::new(tokio::sync::Mutex::new(stdin));
        let pending: Pending = Arc::new(Mutex::new(Some(HashMap::new())));
        tokio::spawn(read(stdout, Arc::clone(&pending), Arc::downgrade(&stdin), is_stale));
        Ok(Self { stdin, pending, _child: child })
    }

    async fn send(&self, message: &Value) -> Result<(), McpError> {
        write(&self.stdin, message).await
    }

    async fn request(&self, id: u64, message: &Value) -> Result<Value, McpError> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.pending).as_mut().ok_or(McpError::Closed)?.insert(id, sender);
        // Removed when nobody waits any more, so that a late answer is ignored.
        let _waiting = Waiting { pending: &self.pending, id };
        self.send(message).await?;
        receiver.await.map_err(|_| McpError::Closed)
    }
}

struct Waiting<'a> {
    pending: &'a Pending,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(pending) = lock(self.pending).as_mut() {
            pending.remove(&self.id);
        }
    }
}

async fn write(stdin: &tokio::sync::Mutex<ChildStdin>, message: &Value) -> Result<(), McpError> {
    let mut line = message.to_string().into_bytes();
    line.push(b'\n');
    let mut stdin = stdin.lock().await;
    stdin.write_all(&line).await.map_err(|_| McpError::Closed)?;
    stdin.flush().await.map_err(|_| McpError::Closed)
}

/// Reads messages until the program ends its output.
async fn read(
    stdout: ChildStdout,
    pending: Pending,
    stdin: std::sync::Weak<tokio::sync::Mutex<ChildStdin>>,
    is_stale: Arc<AtomicBool>,
) {
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    while let Ok(true) = next_line(&mut reader, &mut line).await {
        let Ok(message) = serde_json::from_slice::<Value>(&line) else { continue };
        let id = message.get("id").filter(|id| !id.is_null());
        match (message.get("method").and_then(Value::as_str), id) {
            (None, Some(id)) => {
                let waiting = lock(&pending).as_mut().and_then(|all| all.remove(&id.as_u64()?));
                if let Some(sender) = waiting {
                    let _ = sender.send(message);
                }
            }
            (Some(method), Some(id)) => {
                let mut answer = json!({ "jsonrpc": "2.0", "id": id });
                match method {
                    "ping" => answer["result"] = json!({}),
                    _ => answer["error"] = json!({ "code": -32601, "message": "this client does not do that" }),
                }
                let Some(stdin) = stdin.upgrade() else { break };
                if write(&stdin, &answer).await.is_err() {
                    break;
                }
            }
            (Some(_), None) => note(&message, &is_stale),
            (None, None) => {}
        }
    }
    // Everyone who waits gets an error.
    *lock(&pending) = None;
}

/// Reads a line without its line break. Returns whether there was one.
async fn next_line(reader: &mut BufReader<ChildStdout>, line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    loop {
        let bytes = reader.fill_buf().await?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let (part, n_used, is_end) = match bytes.iter().position(|&byte| byte == b'\n') {
            Some(n) => (&bytes[..n], n + 1, true),
            None => (bytes, bytes.len(), false),
        };
        if line.len() + part.len() > MAX_MESSAGE {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        line.extend_from_slice(part);
        reader.consume(n_used);
        if is_end {
            return Ok(true);
        }
    }
}
