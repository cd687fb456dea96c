//! `fewbit devices`: lists the devices that can run models, and why others cannot.

use serde_json::{Value, json};

use crate::args::Common;
use crate::output::{Out, bytes, print_json};

pub(crate) fn run(common: &Common) -> anyhow::Result<()> {
    let devices = fewbit::devices();
    if common.json {
        let devices: Vec<Value> = devices
            .iter()
            .map(|device| {
                json!({
                    "name": device.name,
                    "description": device.description,
                    "usable": device.unusable.is_none(),
                    "why_not": device.unusable,
                    "software": device.is_software,
                    "free_bytes": device.memory.free_bytes,
                    "total_bytes": device.memory.total_bytes,
                })
            })
            .collect();
        return print_json(&json!({ "devices": devices }));
    }
    let width = devices.iter().map(|device| device.name.len()).max().unwrap_or(0);
    let mut out = Out::new();
    for device in &devices {
        let what = match &device.unusable {
            Some(why) => format!("cannot be used: {why}"),
            None if device.is_software => {
                format!("{}: computes on the CPU, so it is used only if given by number", device.description)
            }
            None => device.description.clone(),
        };
        let memory = match (device.memory.free_bytes, device.memory.total_bytes) {
            (Some(free), Some(total)) => format!(", {} of {} free", bytes(free), bytes(total)),
            (Some(free), None) => format!(", {} free", bytes(free)),
            (None, Some(total)) => format!(", {} (how much is free is unknown)", bytes(total)),
            (None, None) => String::new(),
        };
        out.line(format_args!("{:width$}  {what}{memory}", device.name))?;
    }
    out.flush()
}
