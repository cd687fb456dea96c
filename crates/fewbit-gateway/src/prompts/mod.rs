//! Prompts under version: files of the operator, of which requests name one and give its variables.
//!
//! ```text
//! prompts/support/3.toml      version 3 of the prompt "support": its variables and messages
//! prompts/support/tone.jinja  a message that is a file of its own
//! ```
//!
//! `support@3` is that version. `support` is the one that was promoted, or for some requests the canary. Promotions are in
//! the store, not in the folder, and each has a line in the log ([`Change`]). The hash of a version covers all its files.
//! A version that was changed after its promotion is refused until it is promoted again.

mod promotion;
mod shown;
mod template;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fewbit_serve::api::chat::{ChatMessage, Role};
use fewbit_serve::api::prompt::PromptParam;
use fewbit_serve::{BackendError, BackendErrorKind, Caller, PromptUsed, RenderedPrompt};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use toml::Spanned;

use crate::config::Source;
use crate::error::GatewayError;
use crate::hex;
use promotion::Promotions;
pub use promotion::{Action, Change};
pub use shown::role_name;

/// The size limit of a file, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// The default limit of a text variable, in bytes.
const MAX_TEXT: usize = 1 << 20;
/// The longest name of a prompt.
const MAX_NAME: usize = 64;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    description: String,
    #[serde(default)]
    variables: BTreeMap<String, Variable>,
    messages: Vec<MessageFile>,
}

/// A variable that a prompt declares.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    #[serde(default)]
    description: String,
    #[serde(default, rename = "type")]
    kind: Kind,
    /// Its value if a request gives none. Without it, every request must give one.
    default: Option<Value>,
    max_bytes: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Text,
    Number,
    Boolean,
    /// Any JSON value.
    Json,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageFile {
    role: Spanned<Speaker>,
    content: Option<Spanned<String>>,
    file: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Speaker {
    System,
    User,
    Assistant,
}

impl From<Speaker> for Role {
    fn from(speaker: Speaker) -> Self {
        match speaker {
            Speaker::System => Self::System,
            Speaker::User => Self::User,
            Speaker::Assistant => Self::Assistant,
        }
    }
}

/// A version of a prompt.
#[derive(Debug, Clone)]
pub struct PromptVersion {
    /// The name of the prompt.
    pub name: String,
    /// The version.
    pub version: u32,
    /// The hash of its files.
    pub sha256: String,
    /// What it is for.
    pub description: String,
    /// Its messages: role and template.
    pub messages: Vec<(Role, String)>,
    variables: BTreeMap<String, Variable>,
}

impl PromptVersion {
    /// Its name in requests, such as `support@3`.
    pub fn id(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// The names of its variables, and whether a request must give them.
    pub fn variables(&self) -> impl Iterator<Item = (&str, bool)> {
        self.variables.iter().map(|(name, variable)| (name.as_str(), variable.default.is_none()))
    }

    /// Reads a version and checks it.
    fn read(path: &Path, name: &str, version: u32) -> Result<Self, GatewayError> {
        let text = read_text(path)?;
        let file: File =
            toml::from_str(&text).map_err(|error| GatewayError::Config { path: path.to_owned(), error })?;
        let mut hash = Sha256::new();
        // Each part with its length, so that no two sets of files have the same bytes.
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        add(&text);
        let source = Source::new(path, text);
        let declared = |name: &str| file.variables.contains_key(name);
        let mut messages = Vec::with_capacity(file.messages.len());
        for message in &file.messages {
            let (source_of, at, template) = match (&message.content, &message.file) {
                (Some(content), None) => (source.clone(), Some(content.span()), content.get_ref().clone()),
                (None, Some(other)) => {
                    let is_below =
                        other.get_ref().components().all(|part| matches!(part, std::path::Component::Normal(_)));
                    if !is_below {
                        return Err(
                            source.wrong(other.span(), "a message's `file` is outside the folder of its prompt")
                        );
                    }
                    let path = path.with_file_name("").join(other.get_ref());
                    let text = read_text(&path)?;
                    add(&text);
                    (Source::new(&path, text.clone()), None, text)
                }
                _ => {
                    let what = "a message has either `content` or `file`: give one of them";
                    return Err(source.wrong(message.role.span(), what));
                }
            };
            template::check(&template, &declared).map_err(|wrong| match at {
                Some(at) => source_of.wrong(at, format!("line {} of this template: {}", wrong.line, wrong.what)),
                None => source_of.wrong_at(wrong.line, wrong.what),
            })?;
            messages.push(((*message.role.get_ref()).into(), template));
        }
        if messages.is_empty() {
            return Err(source.wrong(0..0, "a prompt needs at least one of `[[messages]]`"));
        }
        for (name, variable) in &file.variables {
            if let Some(default) = &variable.default {
                check(name, variable, default).map_err(|error| source.wrong(0..0, error.message))?;
            }
        }
        Ok(Self {
            name: name.to_owned(),
            version,
            sha256: hex(&hash.finalize()),
            description: file.description,
            messages,
            variables: file.variables,
        })
    }

    /// The messages with these variables.
    ///
    /// # Errors
    /// If a variable is missing, unknown, of the wrong type or too long, or a template fails on them.
    pub fn render(&self, given: &Map<String, Value>) -> Result<Vec<ChatMessage>, BackendError> {
        if let Some(name) = given.keys().find(|name| !self.variables.contains_key(*name)) {
            let all = self.variables.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let message = format!(
                "{} has no variable {name:?}: it has {}",
                self.id(),
                if all.is_empty() { "none" } else { &all }
            );
            return Err(BackendError::invalid(format!("prompt.variables.{name}"), message));
        }
        let mut variables = Map::new();
        for (name, variable) in &self.variables {
            let value = match (given.get(name), &variable.default) {
                (Some(value), _) => text_of(value),
                (None, Some(default)) => default.clone(),
                (None, None) => {
                    let message = format!("{} wants the variable {name:?}: give it", self.id());
                    return Err(BackendError::invalid(format!("prompt.variables.{name}"), message));
                }
            };
            check(name, variable, &value)?;
            variables.insert(name.clone(), value);
        }
        let render = |(role, source): &(Role, String)| match template::render(source, &variables) {
            Ok(text) => Ok(ChatMessage::new(*role, text)),
            Err(wrong) => {
                let message =
                    format!("{} cannot be made of these variables: line {} {}", self.id(), wrong.line, wrong.what);
                Err(BackendError::invalid("prompt.variables", message))
            }
        };
        self.messages.iter().map(render).collect()
    }
}

/// In OpenAI's Responses, a variable can be a part of a message.
fn text_of(value: &Value) -> Value {
    match value.get("type").and_then(Value::as_str) {
        Some("input_text") => value.get("text").cloned().unwrap_or_default(),
        _ => value.clone(),
    }
}

fn check(name: &str, variable: &Variable, value: &Value) -> Result<(), BackendError> {
    let wrong = |what: String| Err(BackendError::invalid(format!("prompt.variables.{name}"), what));
    let (is_right, kind) = match variable.kind {
        Kind::Text => (value.is_string(), "a text"),
        Kind::Number => (value.is_number(), "a number"),
        Kind::Boolean => (value.is_boolean(), "true or false"),
        Kind::Json => (true, "any"),
    };
    if !is_right {
        return wrong(format!("the variable {name:?} must be {kind}"));
    }
    let limit = variable.max_bytes.unwrap_or(MAX_TEXT);
    let n = value.as_str().map_or_else(|| value.to_string().len(), str::len);
    if n > limit {
        return wrong(format!("the variable {name:?} has {n} bytes: give {limit} at most"));
    }
    Ok(())
}

fn read_text(path: &Path) -> Result<String, GatewayError> {
    let failed = || GatewayError::file("read", path);
    let size = fs::metadata(path).map_err(failed())?.len();
    if size > MAX_FILE {
        return Err(failed()(std::io::ErrorKind::FileTooLarge.into()));
    }
    fs::read_to_string(path).map_err(failed())
}

/// What is known of a prompt.
#[derive(Debug, Clone)]
pub struct PromptState {
    /// Its name.
    pub name: String,
    /// Its versions, in ascending order.
    pub versions: Vec<Arc<PromptVersion>>,
    /// The version that requests get.
    pub promoted: Option<u32>,
    /// The version that some requests get, of how many in a hundred, and whether each key always gets the same.
    pub canary: Option<(u32, u8, bool)>,
}

/// The prompts of a folder, and which of them were promoted.
#[derive(Debug)]
pub struct PromptStore {
    folder: PathBuf,
    store: PathBuf,
    versions: BTreeMap<String, BTreeMap<u32, Arc<PromptVersion>>>,
    promotions: Promotions,
}

impl PromptStore {
    /// Reads all prompts of a folder and checks them, with the promotions of a store.
    ///
    /// # Errors
    /// If a file cannot be read or is wrong. The error has its line.
    pub fn open(folder: impl Into<PathBuf>, store: impl Into<PathBuf>) -> Result<Self, GatewayError> {
        let (folder, store) = (folder.into(), store.into());
        let promotions = Promotions::open(&store)?;
        let versions = read_folder(&folder)?;
        Ok(Self { folder, store, versions, promotions })
    }

    /// The prompts, by name.
    pub fn states(&self) -> Vec<PromptState> {
        let state = |(name, versions): (&String, &BTreeMap<u32, Arc<PromptVersion>>)| {
            let (promoted, canary) = self.promotions.state(name);
            PromptState {
                name: name.clone(),
                versions: versions.values().map(Arc::clone).collect(),
                promoted: promoted.map(|of| of.version),
                canary: canary.map(|of| (of.promoted.version, of.percent, of.by_key)),
            }
        };
        self.versions.iter().map(state).collect()
    }

    /// All changes of which version is used, oldest first.
    pub fn changes(&self) -> &[Change] {
        &self.promotions.changes
    }

    /// A version of a prompt: `support@3`, or `support` for the promoted one.
    ///
    /// # Errors
    /// If there is no such prompt or version, or none is promoted.
    pub fn version(&self, id: &str) -> Result<Arc<PromptVersion>, BackendError> {
        match id.split_once('@') {
            Some((name, version)) => self.named(name, version),
            None => self.promoted(id, |_| false),
        }
    }

    fn named(&self, name: &str, version: &str) -> Result<Arc<PromptVersion>, BackendError> {
        let versions = self.versions.get(name).ok_or_else(|| self.unknown(name))?;
        let found = version.parse().ok().and_then(|version: u32| versions.get(&version));
        found.cloned().ok_or_else(|| {
            let all: Vec<String> = versions.keys().map(u32::to_string).collect();
            let message = format!("the prompt {name:?} has no version {version:?}: it has {}", all.join(", "));
            BackendError::invalid("prompt", message)
        })
    }

    fn unknown(&self, name: &str) -> BackendError {
        BackendError::invalid("prompt", format!("there is no prompt {name:?} here"))
    }

    /// The version for a request that names none. `is_canary` draws, for a canary.
    fn promoted(
        &self,
        name: &str,
        is_canary: impl FnOnce(&promotion::Canary) -> bool,
    ) -> Result<Arc<PromptVersion>, BackendError> {
        let versions = self.versions.get(name).ok_or_else(|| self.unknown(name))?;
        let (promoted, canary) = self.promotions.state(name);
        let chosen = match canary {
            Some(canary) if is_canary(&canary) => Some(canary.promoted),
            _ => promoted,
        };
        let Some(chosen) = chosen else {
            let message = format!("no version of the prompt {name:?} is promoted: name one, such as \"{name}@1\"");
            return Err(BackendError::invalid("prompt", message));
        };
        match versions.get(&chosen.version) {
            Some(version) if version.sha256 == chosen.sha256 => Ok(Arc::clone(version)),
            _ => {
                let message =
                    format!("the prompt {name}@{} was changed after it was promoted: promote it again", chosen.version);
                Err(BackendError::new(BackendErrorKind::Unavailable, message))
            }
        }
    }

    /// The messages for a request, and which version it was.
    pub(crate) fn render(&self, caller: &Caller, param: &PromptParam) -> Result<RenderedPrompt, BackendError> {
        let (name, version) = match (&param.version, param.id.split_once('@')) {
            (Some(version), _) => (param.id.as_str(), Some(version.as_str())),
            (None, Some((name, version))) => (name, Some(version)),
            (None, None) => (param.id.as_str(), None),
        };
        let version = match version {
            Some(version) => self.named(name, version)?,
            None => self.promoted(name, |canary| {
                let by = if canary.by_key { caller.key.as_deref().unwrap_or_default() } else { &caller.request };
                draw(name, by) < u64::from(canary.percent)
            })?,
        };
        let messages = version.render(&param.variables)?;
        let used = PromptUsed { id: version.id(), sha256: version.sha256.clone() };
        Ok(RenderedPrompt { messages, used: Arc::new(used) })
    }

    /// Makes a version the one that requests get, or a canary. Returns the change; the log gets it by
    /// [`log_changes`](crate::log_changes).
    ///
    /// # Errors
    /// If there is no such version, there is no promoted version next to a canary, or the store cannot be written.
    pub fn change(
        &mut self,
        id: &str,
        action: Action,
        by: Option<String>,
        note: Option<String>,
    ) -> Result<Change, GatewayError> {
        let wrong = |what: String| GatewayError::Prompt { what };
        let Some((name, version)) = id.split_once('@') else {
            return Err(wrong(format!("{id:?} names no version: give one, such as {id}@1")));
        };
        let version = self.named(name, version).map_err(|error| wrong(error.message))?;
        if let Action::Canary { percent, .. } = action {
            if percent > 100 {
                return Err(wrong(format!("{percent} percent is more than all: give 0 to 100")));
            }
            if self.promotions.state(name).0.is_none() {
                return Err(wrong(format!(
                    "no version of {name:?} is promoted, which the other requests would get: promote one"
                )));
            }
        }
        let sha256 = version.sha256.clone();
        self.promotions.add(Change {
            n: 0,
            time_ms: 0,
            prompt: name.to_owned(),
            version: version.version,
            sha256,
            action,
            by,
            note,
        })
    }

    /// The promotions and prompts as they are now, if there is a new promotion.
    pub(crate) fn refreshed(&self) -> Result<Option<Self>, GatewayError> {
        if !self.promotions.has_changed() {
            return Ok(None);
        }
        Self::open(&self.folder, &self.store).map(Some)
    }
}

/// A number below 100, which only depends on these texts.
fn draw(name: &str, by: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(name.as_bytes());
    hash.update([0]);
    hash.update(by.as_bytes());
    let bytes: [u8; 32] = hash.finalize().into();
    let number = bytes.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    number % 100
}

fn read_folder(folder: &Path) -> Result<BTreeMap<String, BTreeMap<u32, Arc<PromptVersion>>>, GatewayError> {
    let entries = |folder: &Path| {
        let failed = || GatewayError::file("read", folder);
        let all = fs::read_dir(folder).map_err(failed())?;
        all.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(failed())
    };
    let mut all = BTreeMap::new();
    for path in entries(folder)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if !path.is_dir() || name.starts_with('.') {
            continue;
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_name) {
            let what =
                format!("{} cannot be a prompt: use 1 to {MAX_NAME} letters, digits, '-', '_' and '.'", path.display());
            return Err(GatewayError::Prompt { what });
        }
        let mut versions = BTreeMap::new();
        for file in entries(&path)? {
            if file.extension().is_none_or(|extension| extension != "toml") {
                continue;
            }
            let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let version = stem.parse::<u32>().ok().filter(|version| *version > 0 && version.to_string() == stem);
            let Some(version) = version else {
                let what =
                    format!("{} is no version of a prompt: its name is a number, such as 1.toml", file.display());
                return Err(GatewayError::Prompt { what });
            };
            versions.insert(version, Arc::new(PromptVersion::read(&file, &name, version)?));
        }
        if !versions.is_empty() {
            all.insert(name, versions);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
