//! `fewbit pull`: fetches a model of the registry or of the Hugging Face Hub.

use std::path::Path;

use fewbit::hub::{Hub, RepoName};
use serde_json::json;

use crate::args::{Common, PullArgs};
use crate::loading::PullProgress;
use crate::output::{Out, print_json};

pub(crate) fn run(common: &Common, args: &PullArgs) -> anyhow::Result<()> {
    let hub = Hub::from_env()?;
    let mut out = Out::new();
    if let Some(name) = RepoName::parse(&args.name) {
        let name = name?;
        let path = hub.pull_repo(&name, &PullProgress::new())?;
        if common.json {
            drop(out);
            return print_json(&json!({
                "name": name.to_string(),
                "path": path,
                "bytes": size(&path)?,
                "verified_by": "hub",
            }));
        }
        out.line(path.display())?;
        return out.flush();
    }
    let path = hub.pull(&args.name, &PullProgress::new())?;
    let entry = hub.find(&args.name)?;
    let pin = hub.pin_of(entry);
    if common.json {
        drop(out);
        return print_json(&json!({
            "name": entry.name,
            "path": path,
            "bytes": pin.as_ref().map(|pin| pin.bytes),
            "sha256": pin.as_ref().map(|pin| &pin.sha256),
            "verified_by": if entry.pin.is_some() { "registry" } else { "hub" },
        }));
    }
    out.line(path.display())?;
    out.flush()
}

/// The size of a model's weights, in bytes.
fn size(path: &Path) -> anyhow::Result<u64> {
    Ok(fewbit::expert::open(path)?.file_bytes())
}
