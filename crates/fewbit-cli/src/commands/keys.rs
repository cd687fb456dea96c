//! `fewbit keys`: manages the API keys of a server with a store.

use anyhow::Context;
use fewbit_gateway::{Key, KeyStore};
use serde_json::{Value, json};

use crate::args::{AddKeyArgs, Common, KeysArgs, KeysCommand};
use crate::output::{Out, note, print_json};

pub(crate) fn run(common: &Common, args: &KeysArgs) -> anyhow::Result<()> {
    match &args.command {
        KeysCommand::Add(args) => add(common, args),
        KeysCommand::List(place) => list(common, &KeyStore::open(place.store()?)?),
        KeysCommand::Revoke(args) => {
            let key = KeyStore::open(args.place.store()?)?.revoke(&args.name)?;
            if common.json {
                return print_json(&shown(&key));
            }
            note(format_args!("{} is refused from now on", key.name));
            Ok(())
        }
    }
}

fn add(common: &Common, args: &AddKeyArgs) -> anyhow::Result<()> {
    let some = |names: &[String]| (!names.is_empty()).then(|| names.to_vec());
    let mut scope = Key::default();
    scope.models = some(&args.model);
    scope.endpoints = some(&args.endpoint);
    scope.tools = if args.no_tools { Some(Vec::new()) } else { some(&args.tool) };
    scope.requests_per_minute = args.requests_per_minute;
    scope.tokens_per_day = args.tokens_per_day;
    scope.cost_per_day = args.cost_per_day;
    let made = KeyStore::open(args.place.store()?)?.add(&args.name, scope)?;
    if common.json {
        let mut object = shown(&made.key);
        object["secret"] = made.secret.into();
        return print_json(&object);
    }
    let mut out = Out::new();
    out.line(&made.secret)?;
    out.flush()?;
    note(format_args!("this is the key of {}: it cannot be shown again", made.key.name));
    Ok(())
}

fn shown(key: &Key) -> Value {
    json!({
        "name": key.name,
        "created_s": key.created_s,
        "revoked_s": key.revoked_s,
        "models": key.models,
        "endpoints": key.endpoints,
        "tools": key.tools,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_day": key.tokens_per_day,
        "cost_per_day": key.cost_per_day,
    })
}

fn list(common: &Common, store: &KeyStore) -> anyhow::Result<()> {
    if common.json {
        let keys: Vec<Value> = store.keys().map(shown).collect();
        return print_json(&json!({ "keys": keys }));
    }
    let width = store.keys().map(|key| key.name.len()).max().unwrap_or(0);
    let mut out = Out::new();
    for key in store.keys() {
        let state = if key.revoked_s.is_some() { "revoked" } else { "in use" };
        let mut limits = Vec::new();
        let mut names = |what: &str, list: &Option<Vec<String>>| match list {
            None => {}
            Some(list) if list.is_empty() => limits.push(format!("no {what}")),
            Some(list) => limits.push(format!("{what}: {}", list.join(", "))),
        };
        names("models", &key.models);
        names("endpoints", &key.endpoints);
        names("tools", &key.tools);
        limits.extend(key.requests_per_minute.map(|n| format!("{n} requests a minute")));
        limits.extend(key.tokens_per_day.map(|n| format!("{n} tokens a day")));
        limits.extend(key.cost_per_day.map(|cost| format!("cost {cost} a day")));
        out.line(format_args!("{:width$}  {state:7}  {}", key.name, limits.join("; ")).to_string().trim_end())?;
    }
    out.flush().context("cannot list the keys")
}
