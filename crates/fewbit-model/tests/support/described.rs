//! GGUF files as `golden/transformers_*.json` describes them.

use fewbit_format::{GgufWriter, Value};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The file that llama.cpp's converter makes of a folder.
#[derive(Clone, Deserialize)]
pub(crate) struct Described {
    /// Types (an array's and its elements') and value of every key.
    pub(crate) metadata: BTreeMap<String, (String, serde_json::Value)>,
    /// Name, type, shape and hash of the bytes.
    pub(crate) tensors: Vec<(String, String, Vec<u64>, String)>,
}

impl Described {
    /// A writer that has the metadata.
    pub(crate) fn writer(&self) -> GgufWriter<'static> {
        let mut w = GgufWriter::new();
        for (key, (kind, value)) in &self.metadata {
            let list = || value.as_array().expect("a list").iter();
            let value = match kind.as_str() {
                "string" => Value::from(value.as_str().expect("text")),
                "uint32" => Value::from(value.as_u64().expect("an integer") as u32),
                "float32" => Value::from(value.as_f64().expect("a number") as f32),
                "bool" => Value::from(value.as_bool().expect("a bool")),
                "array+bool" => Value::from(list().map(|b| b.as_bool().expect("a bool")).collect::<Vec<_>>()),
                "array+int32" => {
                    Value::from(list().map(|n| n.as_i64().expect("an integer") as i32).collect::<Vec<_>>())
                }
                other => panic!("{key} is {other}"),
            };
            w.set(key.clone(), value);
        }
        w
    }
}
