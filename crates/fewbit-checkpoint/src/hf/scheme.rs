//! `quantization_config`: the method by which the weights of a folder are quantized.

use super::HfError;
use super::json::Object;

/// The storage format of quantized matrices. The tensors show which matrices are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// Not quantized.
    None,
    Gptq(Gptq),
    /// AWQ in GEMM form: 4 bits, `[n_cols, n_rows / 8]`.
    Awq {
        group: Option<usize>,
    },
    /// compressed-tensors; bits and groups follow from the shapes.
    CompressedTensors {
        block: Option<[usize; 2]>,
    },
    /// The experts as MXFP4: blocks of 32 codes of 4 bits, and an exponent for each.
    Mxfp4,
    /// FP8 with `weight_scale_inv` or `weight_scale`.
    Fp8 {
        block: Option<[usize; 2]>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gptq {
    pub(super) bits: usize,
    /// Number of columns that share one scale; `None` for whole rows.
    pub(super) group: Option<usize>,
    /// Whether zero points are stored minus 1, as in all variants except `gptq_v2`.
    pub(super) zeros_minus_one: bool,
}

fn unsupported(method: &str, what: impl Into<String>) -> HfError {
    HfError::UnsupportedQuantization { method: method.to_owned(), what: what.into() }
}

impl Scheme {
    /// Reads a `quantization_config`.
    pub(super) fn read(json: Option<Object<'_>>) -> Result<Self, HfError> {
        let Some(json) = json else { return Ok(Self::None) };
        let method = json.str("quant_method")?;
        let method = json.require("quant_method", method)?;
        match method {
            "gptq" => gptq(json),
            "awq" => awq(json),
            "compressed-tensors" => compressed_tensors(json),
            "mxfp4" => Ok(Self::Mxfp4),
            "fp8" | "fbgemm_fp8" => Ok(Self::Fp8 { block: block(json, "weight_block_size")? }),
            other => Err(unsupported(other, "no such method is known here")),
        }
    }
}

impl Scheme {
    /// Reads GPTQ's own file, which does not name its method.
    pub(super) fn read_gptq(json: Object<'_>) -> Result<Self, HfError> {
        gptq(json)
    }
}

/// Number of columns that share one scale; -1 means a whole row.
fn group(json: Object<'_>, key: &str) -> Result<Option<usize>, HfError> {
    match json.f64(key)? {
        None => Ok(None),
        Some(-1.0) => Ok(None),
        Some(_) => match json.count(key)? {
            Some(n) if n > 0 => Ok(Some(n)),
            n => Err(unsupported("groups", format!("{key} of {n:?}"))),
        },
    }
}

fn gptq(json: Object<'_>) -> Result<Scheme, HfError> {
    let bits = json.required_count("bits")?;
    if !matches!(bits, 4 | 8) {
        return Err(unsupported("gptq", format!("{bits} bits; 4 and 8 are known")));
    }
    let zeros_minus_one = match json.str("checkpoint_format")? {
        None | Some("gptq") => true,
        Some("gptq_v2") => false,
        Some(other) => return Err(unsupported("gptq", format!("checkpoint_format {other:?}"))),
    };
    if json.bool("is_marlin_format")? == Some(true) {
        return Err(unsupported("gptq", "the layout of the Marlin kernel"));
    }
    Ok(Scheme::Gptq(Gptq { bits, group: group(json, "group_size")?, zeros_minus_one }))
}

fn awq(json: Object<'_>) -> Result<Scheme, HfError> {
    let bits = json.count("bits")?.or(json.count("w_bit")?);
    match bits {
        Some(4) => {}
        Some(bits) => return Err(unsupported("awq", format!("{bits} bits; 4 are known"))),
        None => return json.require("bits", None),
    }
    match json.str("version")?.map(str::to_ascii_lowercase).as_deref() {
        None | Some("gemm") => {}
        Some(other) => return Err(unsupported("awq", format!("version {other:?}; GEMM is known"))),
    }
    if json.bool("zero_point")? == Some(false) {
        return Err(unsupported("awq", "no zero points"));
    }
    let key = if json.get("group_size").is_some() { "group_size" } else { "q_group_size" };
    Ok(Scheme::Awq { group: group(json, key)? })
}

fn compressed_tensors(json: Object<'_>) -> Result<Scheme, HfError> {
    const METHOD: &str = "compressed-tensors";
    let known = |format: &str| {
        matches!(
            format,
            "dense" | "pack-quantized" | "int-quantized" | "naive-quantized" | "float-quantized" | "mixed-precision"
        )
    };
    if let Some(format) = json.str("format")?.filter(|format| !known(format)) {
        return Err(unsupported(METHOD, format!("format {format:?}")));
    }
    if let Some(sparsity) = json.object("sparsity_config", "quantization_config.sparsity_config.")?
        && let Some(format) = sparsity.str("format")?.filter(|format| *format != "dense")
    {
        return Err(unsupported(METHOD, format!("sparsity format {format:?}")));
    }
    let mut block = None;
    if let Some(groups) = json.object("config_groups", "quantization_config.config_groups.")? {
        for name in groups.keys() {
            let Some(group) = groups.object(name, "quantization_config.config_groups.GROUP.")? else { continue };
            if let Some(format) = group.str("format")?.filter(|format| !known(format)) {
                return Err(unsupported(METHOD, format!("format {format:?}")));
            }
            let prefix = "quantization_config.config_groups.GROUP.weights.";
            let Some(weights) = group.object("weights", prefix)? else { continue };
            let bits = weights.count("num_bits")?.unwrap_or(8);
            let kind = weights.str("type")?.unwrap_or("int");
            if !matches!((kind, bits), ("int", 4 | 8) | ("float", 8)) {
                return Err(unsupported(METHOD, format!("{bits} bits of type {kind:?}")));
            }
            if let Some(found) = self::block(weights, "block_structure")? {
                block = Some(found);
            }
        }
    }
    Ok(Scheme::CompressedTensors { block })
}

/// Number of rows and columns that share one scale.
fn block(json: Object<'_>, key: &str) -> Result<Option<[usize; 2]>, HfError> {
    // Some files write it as `"128x128"`.
    if let Some(text) = json.get(key).and_then(serde_json::Value::as_str) {
        let parsed = text.split_once('x').and_then(|(a, b)| Some([a.parse().ok()?, b.parse().ok()?]));
        return match parsed {
            Some(block) if block.iter().all(|&n: &usize| n > 0) => Ok(Some(block)),
            _ => Err(unsupported("blocks", format!("{key} of {text:?}"))),
        };
    }
    let Some(list) = json.list(key)? else { return Ok(None) };
    let sizes: Vec<_> = list.iter().filter_map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok())).collect();
    match sizes[..] {
        [rows, cols] if rows > 0 && cols > 0 && list.len() == 2 => Ok(Some([rows, cols])),
        _ => Err(unsupported("blocks", format!("{key} of {list:?}"))),
    }
}
