//! `fewbit inspect`: shows the content of a model file or folder, and the memory to run it. Only the headers are read,
//! and for a model of the hub that is not in the cache, only the headers are fetched.

use fewbit::expert::ModelFile;
use fewbit::expert::format::{Array, GgufFile, Value as Meta};
use serde_json::{Map, Value, json};

use crate::args::{Common, InspectArgs};
use crate::loading::{PullProgress, builder};
use crate::output::{Out, bytes, print_json, with_causes};

/// How many elements of an array are shown.
const SHOWN: usize = 6;
/// How many characters of a text are shown on the terminal.
const SHOWN_CHARS: usize = 100;

pub(crate) fn run(common: &Common, args: &InspectArgs) -> anyhow::Result<()> {
    let builder = builder(common).progress(PullProgress::new());
    let model = builder.inspect(&args.model.model)?;
    let (file, path, peek) = (model.file(), model.path(), model.remote());
    let (types, n_weights, bits_per_weight) = (model.types(), model.n_weights(), model.bits_per_weight());
    // A file that cannot be run (with an unsupported architecture or only a vocabulary) can still be inspected.
    let ctx = args.ctx.or_else(|| model.context_length());
    let memory = ctx.map(|ctx| model.memory(ctx).map(|estimate| (ctx, estimate)));
    let isa = model.isa();
    let devices = if matches!(memory, Some(Ok(_))) { model.devices(args.ctx)? } else { Vec::new() };

    if common.json {
        let config = file.weights().config().ok();
        let name = |key: &str| file.gguf().and_then(|file| file.metadata().str(key).ok().flatten()).map(str::to_owned);
        let metadata: Map<String, Value> = match file {
            ModelFile::Gguf(file) => file.metadata().iter().map(|(k, v)| (k.to_owned(), meta_json(v))).collect(),
            ModelFile::Hf(model) => model.config_json().clone(),
            _ => Map::new(),
        };
        let tensors: Vec<Value> = model
            .tensors()
            .iter()
            .map(|t| json!({ "name": t.name, "shape": t.shape, "type": t.ty.name(), "bytes": t.n_bytes }))
            .collect();
        let types: Map<String, Value> = types
            .iter()
            .map(|(name, t)| {
                ((*name).to_owned(), json!({ "tensors": t.tensors, "bytes": t.bytes, "weights": t.weights }))
            })
            .collect();
        let memory = match memory {
            None => Value::Null,
            Some(Err(error)) => json!({ "error": with_causes(&error) }),
            Some(Ok((ctx, e))) => json!({
                "ctx": ctx,
                "weight_bytes": e.weight_bytes,
                "kv_bytes": e.kv_bytes,
                "lora_bytes": e.lora_bytes,
                "scratch_bytes": e.scratch_bytes,
                "total_bytes": e.total_bytes(),
            }),
        };
        let devices: Vec<Value> = devices
            .iter()
            .map(|device| {
                let parts: Vec<String> = device.parts.iter().map(ToString::to_string).collect();
                json!({
                    "device": device.device, "parts": parts,
                    "needed_bytes": device.needed_bytes, "free_bytes": device.memory.free_bytes,
                    "total_bytes": device.memory.total_bytes,
                })
            })
            .collect();
        return print_json(&json!({
            "devices": devices,
            "path": if peek.is_none() { json!(path) } else { Value::Null },
            "remote": peek.map(|peek| json!({
                "name": args.model.model,
                "files": peek.files(),
                "bytes": peek.total_bytes(),
                "fetched_bytes": peek.fetched_bytes(),
            })),
            "file_bytes": file.file_bytes(),
            "format": if file.gguf().is_some() { "gguf" } else { "safetensors" },
            "gguf_version": file.gguf().map(GgufFile::version),
            "architecture": name("general.architecture").or(config.as_ref().map(|c| c.architecture.clone())),
            "name": name("general.name").or(config.as_ref().and_then(|c| c.name.clone())),
            "metadata": metadata,
            "tensors": tensors,
            "types": types,
            "n_weights": n_weights,
            "bits_per_weight": bits_per_weight,
            "memory": memory,
            "isa": isa.to_string(),
        }));
    }

    let mut out = Out::new();
    if let Some(peek) = peek {
        out.line(format_args!(
            "not fetched: {} of {} were read to show this; `fewbit pull {}` fetches it",
            bytes(peek.fetched_bytes()),
            bytes(peek.total_bytes()),
            args.model.model,
        ))?;
    }
    let shown = if peek.is_some() { args.model.model.clone() } else { path.display().to_string() };
    let size = bytes(file.file_bytes());
    match file {
        ModelFile::Gguf(file) => {
            let files = match file.parts().len() {
                1 => String::new(),
                n => format!(", {n} files"),
            };
            out.line(format_args!("{shown}: GGUF version {}{files}, {size}", file.version()))?;
            out.line(format_args!("\nmetadata ({})", file.metadata().len()))?;
            for (key, value) in file.metadata().iter() {
                out.line(format_args!("  {key} = {}", meta_text(value)))?;
            }
        }
        ModelFile::Hf(model) => {
            let n_files = model.files().shards().len();
            out.line(format_args!("{shown}: Hugging Face folder, safetensors ({n_files}), {size}"))?;
            out.line(format_args!("\nconfig.json ({})", model.config_json().len()))?;
            for (key, value) in model.config_json() {
                out.line(format_args!("  {} = {}", key.escape_debug(), shortened(value.to_string())))?;
            }
        }
        _ => {}
    }
    out.line(format_args!("\ntensors ({})", model.tensors().len()))?;
    for t in model.tensors() {
        let shape: Vec<String> = t.shape.iter().map(u64::to_string).collect();
        out.line(format_args!("  {:8} {:>16}  {}", t.ty.name(), shape.join(" x "), t.name.escape_debug()))?;
    }
    out.line("\ntypes")?;
    for (name, t) in &types {
        out.line(format_args!("  {name:8} {:>5} tensors, {:>9}", t.tensors, bytes(t.bytes)))?;
    }
    out.line(format_args!("\n{n_weights} weights, {bits_per_weight:.3} bits per weight"))?;
    match memory {
        None => {}
        Some(Ok((ctx, e))) => out.line(format_args!(
            "memory with a context of {ctx} tokens: {} (weights {}, KV cache {}, adapters {}, scratch {})",
            bytes(e.total_bytes()),
            bytes(e.weight_bytes),
            bytes(e.kv_bytes),
            bytes(e.lora_bytes),
            bytes(e.scratch_bytes),
        ))?,
        Some(Err(error)) => out.line(format_args!("cannot be run: {}", with_causes(&error)))?,
    }
    for device in &devices {
        let parts: Vec<String> = device.parts.iter().map(ToString::to_string).collect();
        let free = match (device.memory.free_bytes, device.memory.total_bytes) {
            (Some(free), _) => format!("{} free", bytes(free)),
            (None, Some(total)) => format!("of {}; how much is free is unknown", bytes(total)),
            (None, None) => "how much is free is unknown".to_owned(),
        };
        let needed = bytes(device.needed_bytes);
        out.line(format_args!("on {}: {needed} ({}), {free}", device.device, parts.join(", ")))?;
    }
    out.line(format_args!("instruction set: {isa}"))?;
    out.flush()
}

/// Converts a metadata value to JSON. Arrays are shortened to type, length and first elements.
fn meta_json(value: &Meta) -> Value {
    match value {
        Meta::String(text) => json!(text),
        Meta::Bool(v) => json!(v),
        Meta::F32(v) => json!(v),
        Meta::F64(v) => json!(v),
        Meta::Array(array) => json!({ "type": array.type_name(), "len": array.len(), "first": first(array) }),
        Meta::Bytes(bytes) => json!(String::from_utf8_lossy(bytes)),
        // The remaining types are integers. JSON numbers can hold all 64 bits.
        other => other.as_integer().map_or(Value::Null, |v| {
            i64::try_from(v).map(|v| json!(v)).or_else(|_| u64::try_from(v).map(|v| json!(v))).unwrap_or(Value::Null)
        }),
    }
}

fn meta_text(value: &Meta) -> String {
    match value {
        Meta::Array(array) => {
            let shown: Vec<String> = first(array).iter().map(Value::to_string).collect();
            let more = if array.len() > shown.len() { ", ..." } else { "" };
            format!("{} {}: [{}{more}]", array.len(), array.type_name(), shown.join(", "))
        }
        // Shown as JSON, so that no control characters reach the terminal.
        other => shortened(meta_json(other).to_string()),
    }
}

fn shortened(text: String) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn first(array: &Array) -> Vec<Value> {
    match array {
        Array::U8(v) => values(v, |v| json!(v)),
        Array::I8(v) => values(v, |v| json!(v)),
        Array::U16(v) => values(v, |v| json!(v)),
        Array::I16(v) => values(v, |v| json!(v)),
        Array::U32(v) => values(v, |v| json!(v)),
        Array::I32(v) => values(v, |v| json!(v)),
        Array::U64(v) => values(v, |v| json!(v)),
        Array::I64(v) => values(v, |v| json!(v)),
        Array::F32(v) => values(v, |v| json!(v)),
        Array::F64(v) => values(v, |v| json!(v)),
        Array::Bool(v) => values(v, |v| json!(v)),
        Array::String(v) => values(v, |v| json!(v)),
        Array::Bytes(v) => values(v, |v| json!(String::from_utf8_lossy(v))),
        Array::Nested(v) => values(v, |v| Value::Array(first(v))),
        _ => Vec::new(),
    }
}

fn values<T>(list: &[T], json: impl Fn(&T) -> Value) -> Vec<Value> {
    list.iter().take(SHOWN).map(json).collect()
}
