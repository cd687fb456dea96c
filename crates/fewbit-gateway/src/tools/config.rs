//! The part `[tools]` of the configuration.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fewbit_serve::HttpClient;
use serde::Deserialize;
use toml::Spanned;

use super::client::MAX_MESSAGE;
use super::{Address, Approve, Bounds, SEPARATOR, ServerConfig, Tools};
use crate::config::Source;
use crate::error::GatewayError;

/// The most rounds that an answer can have.
const MAX_ROUNDS: u32 = 50;

/// The MCP servers, and the limits of what an answer may do with their tools.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolsConfig {
    max_rounds: Option<Spanned<u32>>,
    approval_timeout_s: Option<Spanned<u32>>,
    max_result_bytes: Option<usize>,
    #[serde(default)]
    servers: Vec<ServerTable>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerTable {
    name: Spanned<String>,
    command: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    env: std::collections::BTreeMap<String, String>,
    url: Option<Spanned<String>>,
    key_env: Option<Spanned<String>>,
    key_file: Option<Spanned<PathBuf>>,
    timeout_s: Option<Spanned<u32>>,
    tools: Option<Vec<String>>,
    #[serde(default)]
    approve: ApproveTable,
}

/// Names of tools, or `"all"`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
enum ApproveTable {
    Names(Vec<String>),
    Word(Word),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    All,
}

impl Default for ApproveTable {
    fn default() -> Self {
        Self::Names(Vec::new())
    }
}

impl ToolsConfig {
    /// Checks what can be checked without starting anything.
    pub(crate) fn check(&self, source: &Source, has_store: bool) -> Result<(), GatewayError> {
        let wrong = |at: Range<usize>, what: String| Err(source.wrong(at, what));
        if let Some(rounds) = self.max_rounds.as_ref().filter(|rounds| !(1..=MAX_ROUNDS).contains(rounds.get_ref())) {
            return wrong(rounds.span(), format!("`max_rounds` is {}: give 1 to {MAX_ROUNDS}", rounds.get_ref()));
        }
        let timeouts = self.servers.iter().filter_map(|server| server.timeout_s.as_ref());
        if let Some(zero) = timeouts.chain(&self.approval_timeout_s).find(|timeout| *timeout.get_ref() == 0) {
            return wrong(zero.span(), "a timeout of the tools is 0 seconds: give at least 1".to_owned());
        }
        for (i, server) in self.servers.iter().enumerate() {
            let name = server.name.get_ref();
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            if name.is_empty() || name.len() > 32 || !name.chars().all(is_name) || name.contains(SEPARATOR) {
                let what = format!(
                    "{name:?} cannot be the name of a tool server: use 1 to 32 letters, digits, '-' and '_', but not '__'"
                );
                return wrong(server.name.span(), what);
            }
            if !has_store {
                let what = "tools need a `store`: only keys can say who may have them called".to_owned();
                return wrong(server.name.span(), what);
            }
            if self.servers.iter().take(i).any(|other| other.name.get_ref() == name) {
                return wrong(server.name.span(), format!("two tool servers are called {name:?}: rename one of them"));
            }
            match (&server.command, &server.url) {
                (Some(command), None) if command.get_ref().is_empty() => {
                    return wrong(command.span(), format!("the tool server {name:?} has an empty `command`"));
                }
                (Some(_), None) | (None, Some(_)) => {}
                _ => {
                    let what = format!("the tool server {name:?} needs a `command` or a `url`, and not both");
                    return wrong(server.name.span(), what);
                }
            }
            let keys = [server.key_env.as_ref().map(Spanned::span), server.key_file.as_ref().map(Spanned::span)];
            match (keys, &server.command) {
                ([Some(_), Some(at)], _) => {
                    let what = format!("the tool server {name:?} has `key_env` and `key_file`: leave one of them out");
                    return wrong(at, what);
                }
                ([Some(at), _] | [_, Some(at)], Some(_)) => {
                    let what = format!("the tool server {name:?} is a program, which gets no key: use `env`");
                    return wrong(at, what);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Creates the servers. Reads their keys; nothing is started yet. `folder` is that of the configuration file.
    pub(crate) fn tools(&self, source: &Source, folder: &Path) -> Result<Tools, GatewayError> {
        let default = Bounds::default();
        let seconds = |of: &Spanned<u32>| Duration::from_secs((*of.get_ref()).into());
        let bounds = Bounds {
            rounds: self.max_rounds.as_ref().map_or(default.rounds, |rounds| *rounds.get_ref()),
            approval_timeout: self.approval_timeout_s.as_ref().map_or(default.approval_timeout, seconds),
            result_bytes: self.max_result_bytes.unwrap_or(default.result_bytes),
        };
        let servers = self.servers.iter().map(|server| {
            let timeout = server.timeout_s.as_ref().map_or(Duration::from_secs(60), seconds);
            let address = match (&server.command, &server.url) {
                (Some(command), _) => Address::Program {
                    command: command.get_ref().clone(),
                    env: server.env.clone().into_iter().collect(),
                    folder: if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_owned() },
                },
                (None, url) => {
                    let (url, at) = url.as_ref().map_or(("", 0..0), |url| (url.get_ref().as_str(), url.span()));
                    let key_file = server.key_file.as_ref().map(|path| (folder.join(path.get_ref()), path.span()));
                    let key_env = server.key_env.as_ref().map(|name| (name.get_ref().as_str(), name.span()));
                    let key = source.key(key_env, key_file)?;
                    let client = HttpClient::new(url, key.as_deref(), Duration::from_secs(5), MAX_MESSAGE);
                    Address::Http(Box::new(client.map_err(|error| source.wrong(at, error.to_string()))?))
                }
            };
            Ok(ServerConfig {
                name: server.name.get_ref().clone(),
                address: Arc::new(address),
                timeout,
                tools: server.tools.as_ref().map(|tools| tools.iter().cloned().collect()),
                approve: match &server.approve {
                    ApproveTable::Word(Word::All) => Approve::All,
                    ApproveTable::Names(names) => Approve::Some(names.iter().cloned().collect()),
                },
            })
        });
        Ok(Tools::new(servers.collect::<Result<_, GatewayError>>()?, bounds))
    }
}
