//! `fewbit list`: the models of the registry, and which are here.

use fewbit::hub::Hub;
use serde_json::{Value, json};

use crate::args::Common;
use crate::output::{Out, bytes, print_json};

pub(crate) fn run(common: &Common) -> anyhow::Result<()> {
    let hub = Hub::from_env()?;
    if common.json {
        let models: Vec<Value> = hub
            .registry()
            .iter()
            .map(|entry| {
                json!({
                    "name": entry.name,
                    "description": entry.description,
                    "license": entry.license,
                    "bytes": entry.bytes,
                    "cached": hub.cached(entry).is_some(),
                    "path": hub.path_of(entry),
                })
            })
            .collect();
        return print_json(&json!({ "home": hub.home(), "models": models }));
    }
    let width = hub.registry().names().map(str::len).max().unwrap_or(0);
    let mut out = Out::new();
    for entry in hub.registry().iter() {
        let state = if hub.cached(entry).is_some() { "here" } else { "-" };
        out.line(format_args!(
            "{:width$}  {state:4}  {:>9}  {:10}  {}",
            entry.name,
            bytes(entry.bytes),
            entry.license,
            entry.description,
        ))?;
    }
    out.flush()
}
