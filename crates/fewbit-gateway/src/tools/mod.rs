//! Tools of MCP servers that the gateway runs itself: which there are, who may have them called, and which calls need the
//! approval of a person.
//!
//! ```text
//! model -> call -> allowed for the key? -> line in the log -> approval, if the tool needs one -> run -> line in the log -> model
//! ```
//!
//! A tool is called `SERVER__TOOL` in requests, scopes and the log. A key may have only those tools called that its scopes
//! name; a key without a list of tools has none. [`agent`] has the loop, [`client`] the protocol.

mod agent;
mod approvals;
mod client;
mod config;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

pub use agent::WithTools;
pub(crate) use approvals::Approvals;
pub(crate) use client::Address;
use client::{Client, McpError, ToolInfo, ToolResult};
pub(crate) use config::ToolsConfig;

use crate::keys::Key;

/// What is between the name of a server and that of its tool.
const SEPARATOR: &str = "__";
/// The most characters of a function's name in OpenAI's interface.
const MAX_NAME: usize = 64;
/// For how long a server that failed is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The configuration of an MCP server.
#[derive(Debug)]
pub(crate) struct ServerConfig {
    pub(crate) name: String,
    pub(crate) address: Arc<Address>,
    /// How long a call may take.
    pub(crate) timeout: Duration,
    /// The tools that are used; `None` for all.
    pub(crate) tools: Option<BTreeSet<String>>,
    /// The tools whose calls need approval.
    pub(crate) approve: Approve,
}

/// Which tools of a server need approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Approve {
    All,
    Some(BTreeSet<String>),
}

/// Limits of what a request may do with tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// How often the model gets results of calls, for one answer.
    pub(crate) rounds: u32,
    /// How long a call waits for approval.
    pub(crate) approval_timeout: Duration,
    /// The most bytes of a result that the model gets.
    pub(crate) result_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { rounds: 8, approval_timeout: Duration::from_secs(300), result_bytes: 64 << 10 }
    }
}

/// The MCP servers of a configuration.
#[derive(Debug)]
pub struct Tools {
    servers: Vec<Server>,
    bounds: Bounds,
    approvals: Arc<Approvals>,
}

struct Server {
    config: ServerConfig,
    connection: tokio::sync::Mutex<Connection>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("name", &self.config.name).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Connection {
    open: Option<(Arc<Client>, Arc<Vec<Tool>>)>,
    failed: Option<Instant>,
}

/// A tool that requests can be offered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tool {
    /// `SERVER__TOOL`.
    pub(crate) full_name: String,
    info: ToolInfo,
    pub(crate) needs_approval: bool,
}

impl Tool {
    /// The tool in the form of a request.
    pub(crate) fn offer(&self) -> Value {
        let mut function = json!({ "name": self.full_name, "parameters": self.info.schema });
        if let Some(description) = &self.info.description {
            function["description"] = description.as_str().into();
        }
        json!({ "type": "function", "function": function })
    }
}

impl Tools {
    pub(crate) fn new(servers: Vec<ServerConfig>, bounds: Bounds) -> Self {
        let servers = servers.into_iter().map(|config| Server { config, connection: Default::default() });
        Self { servers: servers.collect(), bounds, approvals: Arc::default() }
    }

    /// Whether there are no servers.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    pub(crate) fn approvals(&self) -> &Arc<Approvals> {
        &self.approvals
    }

    /// Whether a name is that of a tool of one of the servers.
    fn is_reserved(&self, name: &str) -> bool {
        self.server_of(name).is_some()
    }

    fn server_of(&self, full_name: &str) -> Option<(&Server, String)> {
        self.servers.iter().find_map(|server| {
            let tool = full_name.strip_prefix(&server.config.name)?.strip_prefix(SEPARATOR)?;
            Some((server, tool.to_owned()))
        })
    }

    /// The tools that this key may have called. A server that cannot be reached offers none.
    async fn of(&self, key: &Key) -> Vec<Tool> {
        let mut all = Vec::new();
        for server in &self.servers {
            if !key.tools.iter().flatten().any(|name| server.has(name)) {
                continue;
            }
            match server.connected().await {
                Ok((_, tools)) => all.extend(tools.iter().filter(|tool| key.may_run(&tool.full_name)).cloned()),
                Err(error) => {
                    let name = &server.config.name;
                    tracing::warn!(
                        server = name,
                        error = &error as &dyn std::error::Error,
                        "no tools of an MCP server"
                    );
                }
            }
        }
        all
    }

    /// Runs a tool.
    async fn run(&self, full_name: &str, arguments: Map<String, Value>) -> Result<ToolResult, McpError> {
        let (server, tool) = self.server_of(full_name).ok_or(McpError::Closed)?;
        let (client, _) = server.connected().await?;
        let result = client.call(&tool, arguments).await;
        if matches!(result, Err(McpError::Closed | McpError::Http(_))) {
            // The next request connects anew. The call is not repeated: it may have been run.
            server.connection.lock().await.open = None;
        }
        result
    }
}

impl Server {
    /// Whether a name in a key's scopes can be that of a tool of this server.
    fn has(&self, name: &str) -> bool {
        name.strip_prefix(&self.config.name).is_some_and(|rest| rest.starts_with(SEPARATOR))
    }

    /// The connection and its tools. Connects if needed.
    async fn connected(&self) -> Result<(Arc<Client>, Arc<Vec<Tool>>), McpError> {
        let mut connection = self.connection.lock().await;
        if let Some((client, tools)) = &connection.open
            && !client.is_stale()
        {
            return Ok((Arc::clone(client), Arc::clone(tools)));
        }
        if connection.failed.is_some_and(|failed| failed.elapsed() < RETRY_AFTER) {
            return Err(McpError::Closed);
        }
        let known = connection.open.take().filter(|(client, _)| !client.has_ended());
        let connected = async {
            let client = match known {
                Some((client, _)) => client,
                None => Arc::new(Client::connect(&self.config.address, self.config.timeout).await?),
            };
            let tools = Arc::new(self.tools(client.tools().await?));
            Ok((client, tools))
        };
        match connected.await {
            Ok((client, tools)) => {
                *connection = Connection { open: Some((Arc::clone(&client), Arc::clone(&tools))), failed: None };
                Ok((client, tools))
            }
            Err(error) => {
                connection.failed = Some(Instant::now());
                Err(error)
            }
        }
    }

    /// The tools that are used, under their full names.
    fn tools(&self, infos: Vec<ToolInfo>) -> Vec<Tool> {
        let config = &self.config;
        let mut all: Vec<Tool> = Vec::new();
        for info in infos {
            if config.tools.as_ref().is_some_and(|wanted| !wanted.contains(&info.name)) {
                continue;
            }
            let full_name = format!("{}{SEPARATOR}{}", config.name, info.name);
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            if full_name.len() > MAX_NAME || !full_name.chars().all(is_name) {
                tracing::warn!(server = config.name, tool = info.name, "a tool's name cannot be that of a function");
                continue;
            }
            let needs_approval = match &config.approve {
                Approve::All => true,
                Approve::Some(names) => names.contains(&info.name),
            };
            if all.iter().all(|tool| tool.full_name != full_name) {
                all.push(Tool { full_name, info, needs_approval });
            }
        }
        all
    }
}
