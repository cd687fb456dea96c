//! `fewbit pull`: fetch a model of the registry.

use fewbit::hub::Hub;
use serde_json::json;

use crate::args::{Common, PullArgs};
use crate::loading::PullProgress;
use crate::output::{Out, print_json};

pub(crate) fn run(common: &Common, args: &PullArgs) -> anyhow::Result<()> {
    let hub = Hub::from_env()?;
    let path = hub.pull(&args.name, &PullProgress::new())?;
    let entry = hub.find(&args.name)?;
    let pin = hub.pin_of(entry);
    if common.json {
        return print_json(&json!({
            "name": entry.name,
            "path": path,
            "bytes": pin.as_ref().map(|pin| pin.bytes),
            "sha256": pin.as_ref().map(|pin| &pin.sha256),
            "verified_by": if entry.pin.is_some() { "registry" } else { "hub" },
        }));
    }
    let mut out = Out::new();
    out.line(path.display())?;
    out.flush()
}
