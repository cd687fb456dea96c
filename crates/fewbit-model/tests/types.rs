//! Tensor types in a model: which are accepted for which tensors, and that an error names the tensor and its type.

#[path = "support/run.rs"]
mod run;

use fewbit_format::{GgufFile, GgufWriter};
use fewbit_model::{Decoder, KvType, LoadOptions, ModelError};
use fewbit_quant::TensorType;
use run::{bits, stories};

/// stories260K with some tensors stored otherwise.
fn stored(as_type: impl Fn(&str) -> Option<(TensorType, Vec<u8>)>) -> GgufFile {
    let file = stories();
    let mut writer = GgufWriter::with_metadata(file.metadata().clone());
    for tensor in file.tensors() {
        let (ty, bytes) = as_type(&tensor.name).unwrap_or_else(|| (tensor.ty, file.tensor_bytes(tensor).to_vec()));
        writer.tensor(&tensor.name, &tensor.shape, ty, bytes).expect("a valid tensor");
    }
    GgufFile::from_bytes(writer.to_bytes().expect("a valid file")).expect("a valid file")
}

fn logits(file: &GgufFile) -> Vec<u32> {
    let decoder = Decoder::load(file, &LoadOptions::new().threads(1).kv_type(KvType::F32)).expect("loads");
    bits(&run::logits(&decoder, &mut decoder.new_cache(), &[1, 403, 407, 261], 4))
}

#[test]
fn norms_may_be_f64() {
    let original = stories();
    let doubles = stored(|name| {
        let tensor = original.tensor(name).filter(|_| name.contains("norm"))?;
        let floats = original.tensor_bytes(tensor).as_chunks::<4>().0;
        Some((TensorType::F64, floats.iter().flat_map(|&b| f64::from(f32::from_le_bytes(b)).to_le_bytes()).collect()))
    });
    assert!(doubles.tensors().iter().any(|t| t.ty == TensorType::F64));
    assert!(logits(&doubles) == logits(&original));
}

#[test]
fn unsupported_types_are_rejected_with_tensor_and_type() {
    let original = stories();
    for refused in TensorType::all().filter(|ty| !ty.is_supported()) {
        for victim in ["blk.2.ffn_up.weight", "blk.1.attn_norm.weight"] {
            let tensor = original.tensor(victim).expect("there");
            let rows: u64 = tensor.shape[..tensor.shape.len() - 1].iter().product();
            let n_cols = *tensor.shape.last().expect("no scalar") as usize;
            // Rows of 64: longer blocks are refused when the file is opened.
            let Some(row_bytes) = refused.row_bytes(n_cols) else { continue };
            let bytes = vec![0; row_bytes * rows as usize];
            let file = stored(|name| (name == victim).then(|| (refused, bytes.clone())));
            let loaded = Decoder::load(&file, &LoadOptions::new().threads(1));
            if victim.contains("norm") && refused.is_decodable() {
                assert!(loaded.is_ok(), "{refused}");
                continue;
            }
            match loaded.err() {
                Some(ModelError::UnsupportedTensorType { name, ty }) => assert_eq!((&*name, ty), (victim, refused)),
                other => panic!("{refused}: {other:?}"),
            }
        }
    }
}
