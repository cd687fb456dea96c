//! `fewbit list`: lists the models of the registry, and which of them are downloaded.

use fewbit::hub::{Entry, Hub};
use serde_json::{Value, json};

use crate::args::{Common, ListArgs};
use crate::output::{Out, bytes, print_json};

pub(crate) fn run(common: &Common, args: &ListArgs) -> anyhow::Result<()> {
    let hub = Hub::from_env()?;
    let found = if args.all { hub.found() } else { Vec::new() };
    if common.json {
        let models: Vec<Value> = hub
            .registry()
            .iter()
            .map(|entry| {
                json!({
                    "name": entry.name,
                    "description": entry.description,
                    "license": entry.license,
                    "bytes": hub.pin_of(entry).map(|pin| pin.bytes),
                    "sha256": hub.pin_of(entry).map(|pin| pin.sha256),
                    "verified_by": verified_by(entry),
                    "cached": hub.cached(entry).is_some(),
                    "path": hub.path_of(entry),
                })
            })
            .collect();
        let mut object = json!({ "home": hub.home(), "models": models });
        if args.all {
            let found = found.iter().map(
                |found| json!({ "name": found.name, "path": found.path, "bytes": found.bytes, "place": found.place }),
            );
            object["found"] = found.collect();
        }
        return print_json(&object);
    }
    let width = hub.registry().names().map(str::len).max().unwrap_or(0);
    let license = hub.registry().iter().map(|entry| entry.license.len()).max().unwrap_or(0);
    let mut out = Out::new();
    for entry in hub.registry().iter() {
        let state = if hub.cached(entry).is_some() { "here" } else { "-" };
        out.line(format_args!(
            "{:width$}  {state:4}  {:>9}  {:8}  {:license$}  {}",
            entry.name,
            hub.pin_of(entry).map_or_else(|| "?".to_owned(), |pin| bytes(pin.bytes)),
            verified_by(entry),
            entry.license,
            entry.description,
        ))?;
    }
    let width = found.iter().map(|found| found.name.len()).max().unwrap_or(0);
    for found in &found {
        out.line(format_args!(
            "{:width$}  here  {:>9}  {:12}  {}",
            found.name,
            bytes(found.bytes),
            found.place,
            found.path.display(),
        ))?;
    }
    out.flush()
}

/// Where the expected SHA-256 of the file comes from: the registry of this program, or the hub at the time of the
/// download.
fn verified_by(entry: &Entry) -> &'static str {
    if entry.pin.is_some() { "registry" } else { "hub" }
}
