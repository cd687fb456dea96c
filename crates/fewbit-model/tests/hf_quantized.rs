//! Folders with quantized weights: GPTQ, AWQ, compressed-tensors and FP8 against what their formats define, computed
//! by `golden/hf/make_quantized.py`.

use fewbit_format::{GgufFile, Metadata};
use fewbit_kernels::ThreadPool;
use fewbit_model::quantize::{FileOptions, QuantizeError, Recipe, quantize_folder};
use fewbit_model::{HfModel, WeightSource};
use fewbit_quant::{TensorType, decode};
use std::fs;
use std::path::{Path, PathBuf};

const HEAD: usize = 16;

fn folders() -> Vec<PathBuf> {
    let all = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/hf")).expect("part of the repository");
    let mut all: Vec<_> = all.map(|entry| entry.expect("readable").path()).filter(|path| path.is_dir()).collect();
    all.sort();
    all
}

fn name(path: &Path) -> String {
    path.file_name().expect("a folder").to_string_lossy().into_owned()
}

/// Rows of a tensor, decoded: all at once, and each alone.
fn values(model: &HfModel, pool: &ThreadPool, name: &str) -> (TensorType, Vec<Vec<f32>>) {
    let tensor = model.tensor(name).expect("a tensor of the folder");
    let (n_rows, n_cols) = (tensor.shape[0] as usize, tensor.shape[1] as usize);
    let all = model.rows(pool, tensor, 0..n_rows).expect("readable");
    let mut rows = Vec::new();
    for row in 0..n_rows {
        let bytes = model.rows(pool, tensor, row..row + 1).expect("readable");
        assert_eq!(bytes, &all[row * bytes.len()..(row + 1) * bytes.len()], "{name}, row {row}");
        let mut out = vec![0.0; n_cols];
        decode(tensor.ty, &bytes, &mut out).expect("whole blocks");
        rows.push(out);
    }
    (tensor.ty, rows)
}

#[test]
fn quantized_matrices_decode_to_the_expected_values() {
    let pool = ThreadPool::new(2).expect("two threads");
    assert_eq!(folders().len(), 14);
    for folder in folders() {
        let name = name(&folder);
        let model = HfModel::open(&folder).unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = fs::read(folder.join("expected.f32")).expect("part of the repository");
        let mut expected = expected.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b));
        let bound = fs::read_to_string(folder.join("bound.txt")).expect("part of the repository");
        for part in ["blk.0.attn_q.weight", "blk.0.attn_output.weight"] {
            let (ty, rows) = values(&model, &pool, part);
            match bound.trim() {
                "exact" => assert!(matches!(ty, TensorType::Q4_0 | TensorType::Q8_0), "{name} {part}: {ty}"),
                "step" => assert_eq!(ty, TensorType::Q4_1, "{name} {part}"),
                _ => assert_eq!(ty, TensorType::F16, "{name} {part}"),
            }
            for row in 0..rows.len() {
                // Queries are shown in the order of interleaved pairs.
                let shown = match part.contains("attn_q") {
                    true => {
                        let (head, e) = (row / HEAD, row % HEAD);
                        head * HEAD + 2 * (e % (HEAD / 2)) + e / (HEAD / 2)
                    }
                    false => row,
                };
                for (col, found) in rows[shown].iter().enumerate() {
                    let want = expected.next().expect("a value for each weight");
                    let error = (found - want).abs();
                    let limit = match bound.trim() {
                        "exact" => 0.0,
                        // No scale of these files is above 0.02.
                        "step" => 0.02 / 128.0,
                        _ => want.abs() / 2048.0 + 2f32.powi(-25),
                    };
                    assert!(error <= limit, "{name} {part} [{row}, {col}]: {found} for {want}");
                }
            }
        }
        assert_eq!(expected.next(), None, "{name}");
    }
}

#[test]
fn gguf_file_of_a_quantized_folder_has_its_values() {
    let pool = ThreadPool::new(2).expect("two threads");
    for folder in folders() {
        let name = name(&folder);
        let model = HfModel::open(&folder).expect("valid");
        let to = tempfile::tempdir().expect("a folder");
        let out = to.path().join("out.gguf");
        let quantize = |recipe, allow| {
            let options = FileOptions::new(recipe).allow_requantize(allow);
            quantize_folder(&model, &Metadata::default(), &out, &options, &mut |_, _| {})
        };
        let own = values(&model, &pool, "blk.0.attn_q.weight").0;
        if own.block_elems() > 1 {
            let error = quantize(Recipe::F32, false).expect_err("quantized already");
            assert!(matches!(&error, QuantizeError::Requantize { .. }), "{name}: {error}");
            // What has the type already stays as it is.
            let recipe = own.name().parse().expect("a recipe of that name");
            quantize(recipe, false).expect("nothing to quantize again");
            let file = GgufFile::open(&out).expect("a valid file");
            let tensor = file.tensor("blk.0.attn_q.weight").expect("there");
            let same = model.rows(&pool, model.tensor(&tensor.name).expect("there"), 0..tensor.shape[0] as usize);
            assert_eq!((tensor.ty, file.tensor_bytes(tensor)), (own, &*same.expect("readable")), "{name}");
        }
        quantize(Recipe::F32, true).expect("decodes");
        let file = GgufFile::open(&out).expect("a valid file");
        for part in ["blk.0.attn_q.weight", "blk.0.attn_output.weight"] {
            let bytes = file.tensor_bytes(file.tensor(part).expect("there")).as_chunks::<4>().0;
            let found: Vec<f32> = bytes.iter().map(|b| f32::from_le_bytes(*b)).collect();
            assert!(found == values(&model, &pool, part).1.concat(), "{name} {part}");
        }
    }
}

#[test]
fn query_biases_are_permuted_with_their_rows() {
    let pool = ThreadPool::new(1).expect("one thread");
    let folder = folders().into_iter().find(|path| path.ends_with("gptq4")).expect("part of the repository");
    let model = HfModel::open(&folder).expect("valid");
    let tensor = model.tensor("blk.0.attn_q.bias").expect("it has biases");
    let mut bias = vec![0.0; tensor.shape[0] as usize];
    decode(tensor.ty, &model.rows(&pool, tensor, 0..1).expect("readable"), &mut bias).expect("plain numbers");
    // In the file, each is its own index.
    assert_eq!(bias[..6], [0.0, 8.0, 1.0, 9.0, 2.0, 10.0]);
    assert_eq!(bias[16..18], [16.0, 24.0]);
}
