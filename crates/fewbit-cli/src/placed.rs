//! Shows on which devices the parts of a model are.

use fewbit::expert::engine::{ModelPart, PlacedPart};
use serde_json::{Value, json};

use crate::output::{Out, bytes};

fn name(part: &ModelPart) -> String {
    match part {
        ModelPart::Embedding => "embedding".to_owned(),
        ModelPart::Layers(layers) => format!("layers {} to {}", layers.start, layers.end.saturating_sub(1)),
        ModelPart::Head => "output".to_owned(),
        _ => "other".to_owned(),
    }
}

/// Prints a line for each part; nothing if all of them are on the CPU.
pub(crate) fn placed(out: &mut Out, parts: &[PlacedPart]) -> anyhow::Result<()> {
    if parts.iter().all(|part| part.is_host) {
        return Ok(());
    }
    for part in parts {
        out.line(format_args!("  {:16} {:>9}  {}", name(&part.part), bytes(part.weight_bytes), part.device))?;
    }
    Ok(())
}

pub(crate) fn placed_json(parts: &[PlacedPart]) -> Value {
    let json = |part: &PlacedPart| {
        json!({
            "part": name(&part.part), "device": part.device, "weight_bytes": part.weight_bytes,
            "kv_page_bytes": part.page_bytes,
        })
    };
    parts.iter().map(json).collect()
}
