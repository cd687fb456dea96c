//! Shows on which devices the parts of a model are.

use fewbit::expert::engine::PlacedPart;
use serde_json::{Value, json};

use crate::output::{Out, bytes};

/// Prints a line for each part; nothing if all of them are on the CPU.
pub(crate) fn placed(out: &mut Out, parts: &[PlacedPart]) -> anyhow::Result<()> {
    if parts.iter().all(|part| part.is_host) {
        return Ok(());
    }
    for part in parts {
        out.line(format_args!("  {:16} {:>9}  {}", part.part, bytes(part.weight_bytes), part.device))?;
    }
    Ok(())
}

pub(crate) fn placed_json(parts: &[PlacedPart]) -> Value {
    let json = |part: &PlacedPart| {
        json!({
            "part": part.part.to_string(), "device": part.device, "weight_bytes": part.weight_bytes,
            "kv_page_bytes": part.page_bytes,
        })
    };
    parts.iter().map(json).collect()
}
