//! `fewbit devices`: lists the devices that can run models, and why others cannot.

use serde_json::{Value, json};

use crate::args::Common;
use crate::output::{Out, print_json};

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
        out.line(format_args!("{:width$}  {what}", device.name))?;
    }
    out.flush()
}
