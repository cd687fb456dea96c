//! `fewbit prompts`: shows the prompts of a server, and chooses the versions that requests get.

use std::sync::Arc;

use anyhow::{Context, bail};
use fewbit_gateway::{Action, Change, Config, PromptState, PromptStore, PromptVersion, log_changes, role_name};
use fewbit_serve::api::chat::Role;
use serde_json::{Map, Value, json};

use crate::args::{Common, PromptsArgs, PromptsCommand};
use crate::output::{Out, note, print_json};

/// The longest note of a change, in bytes.
const MAX_NOTE: usize = 1000;

pub(crate) fn run(common: &Common, args: &PromptsArgs) -> anyhow::Result<()> {
    let config = Config::read(&args.config)?;
    let prompts = config.prompts()?.with_context(|| {
        format!("{} names no folder of prompts: add `prompts = \"prompts\"`", args.config.display())
    })?;
    match &args.command {
        PromptsCommand::List => list(common, &prompts),
        PromptsCommand::Show { prompt, var } => show(common, &prompts, prompt, var),
        PromptsCommand::Check => check(common, &prompts),
        PromptsCommand::Promote { prompt, note } => {
            change(common, &config, prompts, prompt, Action::Promote, note.as_deref())
        }
        PromptsCommand::Canary { prompt, percent, by_key, note } => {
            let action = Action::Canary { percent: *percent, by_key: *by_key };
            change(common, &config, prompts, prompt, action, note.as_deref())
        }
        PromptsCommand::Diff { one, other } => diff(common, &prompts, one, other),
        PromptsCommand::History { prompt } => history(common, &prompts, prompt.as_deref()),
    }
}

fn version(prompts: &PromptStore, id: &str) -> anyhow::Result<Arc<PromptVersion>> {
    prompts.version(id).map_err(|error| anyhow::anyhow!(error.message))
}

fn list(common: &Common, prompts: &PromptStore) -> anyhow::Result<()> {
    let states = prompts.states();
    if common.json {
        let shown = |state: &PromptState| {
            let version = |of: &Arc<PromptVersion>| json!({ "version": of.version, "sha256": of.sha256, "description": of.description });
            let canary = state
                .canary
                .map(|(version, percent, by_key)| json!({ "version": version, "percent": percent, "by_key": by_key }));
            json!({ "name": state.name, "promoted": state.promoted, "canary": canary, "versions": state.versions.iter().map(version).collect::<Vec<_>>() })
        };
        return print_json(&json!({ "prompts": states.iter().map(shown).collect::<Vec<_>>() }));
    }
    let width = states.iter().map(|state| state.name.len()).max().unwrap_or(0);
    let mut out = Out::new();
    for state in &states {
        let versions: Vec<String> = state.versions.iter().map(|of| of.version.to_string()).collect();
        let promoted =
            state.promoted.map_or_else(|| "none promoted".to_owned(), |version| format!("promoted: {version}"));
        let canary = state.canary.map(|(version, percent, by_key)| {
            format!("; canary: {version} for {percent} % of {}", if by_key { "keys" } else { "requests" })
        });
        out.line(format_args!(
            "{:width$}  versions: {}; {promoted}{}",
            state.name,
            versions.join(", "),
            canary.unwrap_or_default()
        ))?;
    }
    out.flush()
}

fn show(common: &Common, prompts: &PromptStore, id: &str, vars: &[(String, Value)]) -> anyhow::Result<()> {
    let version = version(prompts, id)?;
    let messages: Vec<(Role, String)> = if vars.is_empty() {
        version.messages.clone()
    } else {
        let vars: Map<String, Value> = vars.iter().cloned().collect();
        let rendered = version.render(&vars).map_err(|error| anyhow::anyhow!(error.message))?;
        rendered.into_iter().map(|message| (message.role, message.content.as_text().unwrap_or_default())).collect()
    };
    if common.json {
        let message = |(of, text): &(Role, String)| json!({ "role": role_name(*of), "content": text });
        let variables = version.variables().map(|(name, is_required)| json!({ "name": name, "required": is_required }));
        return print_json(&json!({
            "prompt": version.id(),
            "sha256": version.sha256,
            "description": version.description,
            "variables": variables.collect::<Vec<_>>(),
            "messages": messages.iter().map(message).collect::<Vec<_>>(),
        }));
    }
    let mut out = Out::new();
    out.line(format_args!("{}  {}", version.id(), version.description).to_string().trim_end())?;
    out.line(format_args!("sha256: {}", version.sha256))?;
    let variables: Vec<String> = version
        .variables()
        .map(|(name, is_required)| if is_required { name.to_owned() } else { format!("{name} (optional)") })
        .collect();
    out.line(format_args!(
        "variables: {}",
        if variables.is_empty() { "none".to_owned() } else { variables.join(", ") }
    ))?;
    for (of, text) in &messages {
        out.line(format_args!("--- {}\n{text}", role_name(*of)))?;
    }
    out.flush()
}

fn check(common: &Common, prompts: &PromptStore) -> anyhow::Result<()> {
    // The files were checked when they were read. What is left is whether the promoted versions are the same still.
    let states = prompts.states();
    for state in &states {
        if state.promoted.is_some() {
            version(prompts, &state.name)?;
        }
        if let Some((canary, ..)) = state.canary
            && !state.versions.iter().any(|of| of.version == canary)
        {
            bail!("the canary {}@{canary} is not there any more", state.name);
        }
    }
    let n: usize = states.iter().map(|state| state.versions.len()).sum();
    if common.json {
        return print_json(&json!({ "prompts": states.len(), "versions": n }));
    }
    note(format_args!("{} prompts with {n} versions: all right", states.len()));
    Ok(())
}

fn change(
    common: &Common,
    config: &Config,
    mut prompts: PromptStore,
    id: &str,
    action: Action,
    why: Option<&str>,
) -> anyhow::Result<()> {
    if why.is_some_and(|why| why.len() > MAX_NOTE) {
        bail!("the note has more than {MAX_NOTE} bytes: give a shorter one");
    }
    let store = config.store.as_ref().context("the configuration names no `store`")?;
    let by = ["USER", "LOGNAME", "USERNAME"].iter().find_map(|name| std::env::var(name).ok());
    let change = prompts.change(id, action, by, why.map(str::to_owned))?;
    // A running server writes the log, and takes the change up with its next request.
    let is_logged = log_changes(store, prompts.changes())?;
    if common.json {
        let mut object = shown(&change);
        object["logged"] = is_logged.into();
        return print_json(&object);
    }
    note(format_args!("{}", line(&change)));
    Ok(())
}

fn shown(change: &Change) -> Value {
    let (action, percent, by_key) = match change.action {
        Action::Canary { percent, by_key } => ("canary", Some(percent), Some(by_key)),
        _ => ("promote", None, None),
    };
    json!({
        "n": change.n,
        "time_ms": change.time_ms,
        "prompt": change.prompt,
        "version": change.version,
        "sha256": change.sha256,
        "action": action,
        "percent": percent,
        "by_key": by_key,
        "by": change.by,
        "note": change.note,
    })
}

fn line(change: &Change) -> String {
    let id = format!("{}@{}", change.prompt, change.version);
    match change.action {
        Action::Canary { percent: 0, .. } => format!("{}: no canary any more", change.prompt),
        Action::Canary { percent, by_key } => {
            format!("{percent} % of {} get {id}", if by_key { "keys" } else { "requests" })
        }
        _ => format!("requests for {} get {id}", change.prompt),
    }
}

fn history(common: &Common, prompts: &PromptStore, prompt: Option<&str>) -> anyhow::Result<()> {
    let all = prompts.changes().iter().filter(|change| prompt.is_none_or(|prompt| change.prompt == prompt));
    if common.json {
        return print_json(&json!({ "changes": all.map(shown).collect::<Vec<_>>() }));
    }
    let mut out = Out::new();
    for change in all {
        let seconds = change.time_ms / 1000;
        let who = change.by.as_deref().unwrap_or("-");
        let why = change.note.as_deref().map(|note| format!(" ({note})")).unwrap_or_default();
        out.line(format_args!("{}  {}  {who}: {}{why}", change.n, fewbit_gateway::date_time(seconds), line(change)))?;
    }
    out.flush()
}

fn diff(common: &Common, prompts: &PromptStore, one: &str, other: &str) -> anyhow::Result<()> {
    let difference = version(prompts, one)?.difference(&*version(prompts, other)?);
    if common.json {
        return print_json(&json!(difference));
    }
    let mut out = Out::new();
    out.line(format_args!("- {}\n+ {}", difference.from, difference.to))?;
    for line in difference.lines {
        out.line(format_args!("{} {}", line.change, line.line).to_string().trim_end())?;
    }
    out.flush()
}
