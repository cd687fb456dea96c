//! `1_Pooling/config.json`: how embedding models turn the tokens of a text into one vector.

use super::HfError;
use super::json::{self, Object};
use crate::Pooling;
use std::path::Path;

const FILE: &str = "1_Pooling/config.json";

/// Reads the file in `folder`. If it enables several modes, which would be combined, none is used.
pub(super) fn read(folder: &Path) -> Result<Option<Pooling>, HfError> {
    let Some(map) = json::read(&folder.join(FILE))? else { return Ok(None) };
    let json = Object::new(FILE, &map);
    let mut ways = Vec::new();
    for (key, pooling) in [
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_cls_token", Pooling::Cls),
        ("pooling_mode_lasttoken", Pooling::Last),
    ] {
        ways.extend(json.bool(key)?.unwrap_or(false).then_some(pooling));
    }
    Ok(if let [pooling] = ways[..] { Some(pooling) } else { None })
}
