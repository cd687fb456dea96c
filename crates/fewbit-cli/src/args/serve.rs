//! The arguments of `serve` and of the commands around it (feature `serve`).

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Names from the registry (see `fewbit list`), or paths of .gguf files or Hugging Face folders; besides those of
    /// the configuration
    #[arg(value_name = "MODEL", required_unless_present_any = ["config", "init"])]
    pub(crate) models: Vec<String>,
    /// Where to listen; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<String>,
    /// Encrypt connections: a PEM file with the certificate, and after it those that it depends on
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Ask clients for one of the keys in this file: one a line, lines with `#` are skipped
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Serve what this file says: models, store, prices
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Load each MODEL at its first request, not at the start
    #[arg(long, requires = "models")]
    pub(crate) on_demand: bool,
    /// Unload a MODEL that was loaded on demand after so many seconds without a request
    #[arg(long, value_name = "SECONDS", requires = "on_demand", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) unload_after: Option<u32>,
    /// What all loaded models may take together, such as 12GiB: idle ones that were loaded on demand go for others
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_limit: Option<fewbit_gateway::Size>,
    /// Write a commented example of a configuration, and serve nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["models", "listen", "tls_cert", "api_key_file", "config"])]
    pub(crate) init: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// A request a line: {"custom_id": .., "url": "/v1/chat/completions", "body": {..}}
    #[arg(value_name = "IN.jsonl")]
    pub(crate) input: PathBuf,
    /// Where the answers go, a line each, in the order of the requests
    #[arg(value_name = "OUT.jsonl")]
    pub(crate) output: PathBuf,
    /// A model that requests can name, as for `serve`; with one only, they need not
    #[arg(long = "model", value_name = "MODEL", required = true)]
    pub(crate) models: Vec<String>,
    /// Requests at once
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) jobs: usize,
    /// The seed of requests that have none
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: i64,
}

/// Where keys and log are.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct StoreArg {
    /// The configuration of the server, which names its store
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The store itself
    #[arg(long, value_name = "FOLDER")]
    store: Option<PathBuf>,
}

impl StoreArg {
    pub(crate) fn store(&self) -> anyhow::Result<PathBuf> {
        match (&self.store, &self.config) {
            (Some(store), _) => Ok(store.clone()),
            (None, Some(config)) => match fewbit_gateway::Config::read(config)?.store {
                Some(store) => Ok(store),
                None => anyhow::bail!("{} names no `store`: add one, or give --store FOLDER", config.display()),
            },
            (None, None) => anyhow::bail!("give --config FILE or --store FOLDER"),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    pub(crate) command: KeysCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key, and show it this once
    Add(AddKeyArgs),
    /// Show what keys there are, and what each may
    List(StoreArg),
    /// Refuse a key from now on
    Revoke(RevokeKeyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct AddKeyArgs {
    /// What to call it, in the log as well
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) place: StoreArg,
    /// A model that it may use; all if none is given. Can be given several times
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Vec<String>,
    /// An endpoint that it may ask, such as /v1/messages; all if none is given
    #[arg(long, value_name = "PATH")]
    pub(crate) endpoint: Vec<String>,
    /// A tool that its requests may offer; all if none is given
    #[arg(long, value_name = "NAME")]
    pub(crate) tool: Vec<String>,
    /// Its requests may offer no tool
    #[arg(long, conflicts_with = "tool")]
    pub(crate) no_tools: bool,
    /// The most requests a minute
    #[arg(long, value_name = "N")]
    pub(crate) requests_per_minute: Option<u32>,
    /// The most tokens of prompts and answers a day (UTC)
    #[arg(long, value_name = "N")]
    pub(crate) tokens_per_day: Option<u64>,
    /// What it may cost a day (UTC), in the currency of the configuration's prices
    #[arg(long, value_name = "COST")]
    pub(crate) cost_per_day: Option<f64>,
}

#[derive(Debug, Args)]
pub(crate) struct RevokeKeyArgs {
    /// Its name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) place: StoreArg,
}

#[derive(Debug, Args)]
pub(crate) struct UsageArgs {
    #[command(flatten)]
    pub(crate) place: StoreArg,
    /// What to add up by
    #[arg(long, value_enum, default_value = "key")]
    pub(crate) by: UsageBy,
    /// Write a table with commas
    #[arg(long)]
    pub(crate) csv: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum UsageBy {
    Key,
    Model,
    Backend,
    Prompt,
    Feature,
    Day,
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    pub(crate) command: AuditCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Check every line, and show the head: what proves them all
    Verify(VerifyArgs),
    /// Show only the head, to publish it or note it somewhere else
    Head {
        #[command(flatten)]
        place: StoreArg,
    },
    /// Check every line, and write those asked for as JSON lines
    Export(ExportArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) place: StoreArg,
    /// Only lines of this day (UTC) or later
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub(crate) since: Option<String>,
    /// Only lines of this day (UTC) or earlier
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub(crate) until: Option<String>,
    /// Only lines of this key
    #[arg(long, value_name = "NAME")]
    pub(crate) key: Option<String>,
    /// Only the lines of this request
    #[arg(long, value_name = "ID")]
    pub(crate) request: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PromptsArgs {
    /// The configuration of the server
    #[arg(long, value_name = "FILE", global = true, default_value = "fewbit.toml")]
    pub(crate) config: PathBuf,
    #[command(subcommand)]
    pub(crate) command: PromptsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PromptsCommand {
    /// Show the prompts, their versions, and which are used
    List,
    /// Show a version: NAME@VERSION, or NAME for the promoted one
    Show {
        /// Which version
        prompt: String,
        /// Render it with this variable; a value that is JSON is taken as such. Can be given several times
        #[arg(long, value_name = "NAME=VALUE", value_parser = prompt_variable)]
        var: Vec<(String, serde_json::Value)>,
    },
    /// Check all prompts, and that promoted ones have not changed
    Check,
    /// Let all requests that name no version get this one
    Promote {
        /// NAME@VERSION
        prompt: String,
        /// Why
        #[arg(long)]
        note: Option<String>,
    },
    /// Let some requests that name no version get this one; at 0 percent, the canary ends
    Canary {
        /// NAME@VERSION
        prompt: String,
        /// How many of a hundred requests
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=100))]
        percent: u8,
        /// Let each key always get the same version
        #[arg(long)]
        by_key: bool,
        /// Why
        #[arg(long)]
        note: Option<String>,
    },
    /// Show the lines in which two versions differ
    Diff {
        /// NAME@VERSION, or NAME for the promoted one
        one: String,
        /// The same for the other
        other: String,
    },
    /// Show all promotions and canaries
    History {
        /// Of this prompt only
        prompt: Option<String>,
    },
}

/// `NAME=VALUE`, where the value is JSON or else a text.
fn prompt_variable(text: &str) -> Result<(String, serde_json::Value), String> {
    let (name, value) = text.split_once('=').ok_or("give NAME=VALUE")?;
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The id of a request, as in the log and in the header `x-request-id`
    pub(crate) id: Option<String>,
    /// The configuration of the server
    #[arg(long, value_name = "FILE", default_value = "fewbit.toml")]
    pub(crate) config: PathBuf,
    /// The last N answers
    #[arg(long, value_name = "N", conflicts_with_all = ["id", "all"])]
    pub(crate) last: Option<usize>,
    /// All answers
    #[arg(long, conflicts_with = "id")]
    pub(crate) all: bool,
    /// The request as the client sent it, if the server did not keep it
    #[arg(long, value_name = "FILE", requires = "id")]
    pub(crate) request: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) place: StoreArg,
    /// A head that was noted before: the log must go on from it
    #[arg(long, value_name = "LINES:HASH")]
    pub(crate) head: Option<String>,
}
