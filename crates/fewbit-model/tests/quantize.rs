//! Whole files quantized, and importance matrices read and written.
//!
//! `golden/prose-imatrix.gguf` and `.dat` are what llama.cpp's `llama-imatrix -m stories260K-f32.gguf -f prose.txt
//! -c 128 --chunks 4` wrote, with `--output-format gguf` and `dat`, in `tests/data` at the root.

#[allow(dead_code)]
#[path = "support/run.rs"]
mod run;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use fewbit_format::{FormatError, GgufFile, GgufWriter, Value};
use fewbit_model::quantize::{
    Collector, FileOptions, Importance, ImportanceError, QuantizeError, Recipe, Report, quantize_file,
};
use fewbit_quant::{QuantError, TensorType, decode};
use run::stories;
use tempfile::TempDir;

const GGUF_FORM: &[u8] = include_bytes!("golden/prose-imatrix.gguf");
const LEGACY_FORM: &[u8] = include_bytes!("golden/prose-imatrix.dat");

fn quantize(file: &GgufFile, out: &Path, options: &FileOptions<'_>) -> Result<Report, QuantizeError> {
    quantize_file(file, out, options, &mut |_, _| {})
}

/// A model of one layer whose matrices have `n_cols` columns, in a folder of its own.
struct Tiny {
    folder: TempDir,
    writer: GgufWriter<'static>,
}

impl Tiny {
    fn new() -> Self {
        let mut writer = GgufWriter::new();
        writer.set("general.architecture", "llama").set("llama.block_count", 1u32);
        writer.set("llama.attention.head_count", 4u32).set("llama.attention.head_count_kv", 2u32);
        Self { folder: TempDir::new().unwrap(), writer }
    }

    fn tensor(mut self, name: &str, shape: &[u64], values: impl Fn(usize) -> f32) -> Self {
        let n: u64 = shape.iter().product();
        let bytes: Vec<u8> = (0..n as usize).flat_map(|i| values(i).to_le_bytes()).collect();
        self.writer.tensor(name, shape, TensorType::F32, bytes).unwrap();
        self
    }

    fn open(&mut self) -> GgufFile {
        let path = self.folder.path().join("in.gguf");
        self.writer.write_file(&path).unwrap();
        GgufFile::open(&path).unwrap()
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out.gguf")
    }

    /// Files in the folder.
    fn n_files(&self) -> usize {
        std::fs::read_dir(self.folder.path()).unwrap().count()
    }
}

fn values(file: &GgufFile, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap();
    let mut out = vec![0.0; tensor.n_elems() as usize];
    decode(tensor.ty, file.tensor_bytes(tensor), &mut out).unwrap();
    out
}

#[test]
fn quantized_file_keeps_tensors_and_metadata() {
    let (source, folder) = (stories(), TempDir::new().unwrap());
    let out = folder.path().join("out.gguf");
    let mut seen = Vec::new();
    let options = FileOptions::new(Recipe::Q8_0);
    let report = quantize_file(&source, &out, &options, &mut |done, total| seen.push((done, total))).unwrap();
    let file = GgufFile::open(&out).unwrap();

    assert_eq!(report.file_bytes, file.file_bytes());
    assert_eq!(report.tensors.len(), source.tensors().len());
    let total = source.tensors().iter().map(|t| t.n_bytes).sum();
    assert!(seen.is_sorted() && seen.last() == Some(&(total, total)), "{seen:?}");
    for (key, value) in source.metadata().iter() {
        let changed = ["general.file_type", "general.quantization_version"].contains(&key);
        assert!(changed || file.metadata().get(key) == Some(value), "{key}");
    }
    assert_eq!(file.metadata().u32("general.file_type").unwrap(), Some(7));
    assert_eq!(file.metadata().u32("general.quantization_version").unwrap(), Some(2));
    for (old, report) in source.tensors().iter().zip(&report.tensors) {
        let new = file.tensor(&old.name).unwrap();
        assert_eq!((new.shape.clone(), new.ty, new.n_bytes), (old.shape.clone(), report.to, report.n_bytes));
        // Rows of 172 are not a multiple of 32.
        let expected = match old.shape[..] {
            [_] => TensorType::F32,
            [_, 64] => TensorType::Q8_0,
            _ => TensorType::F16,
        };
        assert_eq!(new.ty, expected, "{}", old.name);
        for (a, b) in values(&source, &old.name).iter().zip(values(&file, &old.name)) {
            assert!((a - b).abs() < 0.02, "{}: {a} {b}", old.name);
        }
    }
    let bits = report.tensors.iter().map(|t| 8 * t.n_bytes).sum::<u64>() as f64;
    assert_eq!(report.bits_per_weight(), bits / report.tensors.iter().map(|t| t.n_elems).sum::<u64>() as f64);
}

#[test]
fn split_model_is_quantized_into_one_file() {
    let (source, folder) = (stories(), TempDir::new().unwrap());
    let parts = [1, 2].map(|part| folder.path().join(format!("stories-0000{part}-of-00002.gguf")));
    let middle = source.tensors().len() / 2;
    for (no, tensors) in [&source.tensors()[..middle], &source.tensors()[middle..]].into_iter().enumerate() {
        let mut writer = match no {
            0 => GgufWriter::with_metadata(source.metadata().clone()),
            _ => GgufWriter::new(),
        };
        writer.set("split.no", no as u16).set("split.count", 2u16);
        for tensor in tensors {
            writer.tensor(tensor.name.clone(), &tensor.shape, tensor.ty, source.tensor_bytes(tensor)).unwrap();
        }
        writer.write_file(&parts[no]).unwrap();
    }
    let split = GgufFile::open(&parts[0]).unwrap();
    let options = FileOptions::new(Recipe::Q8_0);
    let outs = ["whole.gguf", "joined.gguf"].map(|name| folder.path().join(name));
    quantize(&source, &outs[0], &options).unwrap();
    quantize(&split, &outs[1], &options).unwrap();
    let [whole, joined] = outs.map(|path| fs::read(path).unwrap());
    assert!(whole == joined, "nothing is left of the parts");
    for part in &parts {
        assert!(matches!(quantize(&split, part, &options), Err(QuantizeError::SameFile { .. })));
    }
}

#[test]
fn cancelled_quantization_leaves_no_file() {
    let (source, folder) = (stories(), TempDir::new().unwrap());
    let (out, stop) = (folder.path().join("out.gguf"), AtomicBool::new(false));
    let options = FileOptions::new(Recipe::Q8_0).cancel(&stop);
    let mut steps = 0;
    let result = quantize_file(&source, &out, &options, &mut |done, total| {
        steps += 1;
        assert!(done < total / 2, "it went on");
        stop.store(steps == 3, Ordering::Relaxed);
    });
    assert!(matches!(result, Err(QuantizeError::Cancelled)), "{result:?}");
    assert_eq!((steps, fs::read_dir(folder.path()).unwrap().count()), (3, 0));
}

#[test]
fn importance_changes_the_error_and_is_recorded() {
    let importance = Importance::from_bytes(GGUF_FORM.to_vec()).unwrap();
    let (source, folder) = (stories(), TempDir::new().unwrap());
    let paths = ["plain.gguf", "weighted.gguf"].map(|name| folder.path().join(name));
    quantize(&source, &paths[0], &FileOptions::new(Recipe::Q4_1)).unwrap();
    let options = FileOptions::new(Recipe::Q4_1).importance(&importance).threads(2);
    let report = quantize(&source, &paths[1], &options).unwrap();
    let [plain, weighted] = paths.map(|path| GgufFile::open(&path).unwrap());

    let meta = weighted.metadata();
    assert_eq!(meta.u32("quantize.imatrix.entries_count").unwrap(), Some(35));
    assert_eq!(meta.u32("quantize.imatrix.chunks_count").unwrap(), Some(4));
    assert_eq!(meta.str("quantize.imatrix.dataset").unwrap(), Some("prose.txt"));
    assert!(!plain.metadata().contains("quantize.imatrix.entries_count"));
    // 5 layers with 7 matrices each, one of which has rows that no quantized type fits.
    assert_eq!(report.tensors.iter().filter(|t| t.weighted).count(), 30);

    let name = "blk.2.attn_q.weight";
    let cost = |file: &GgufFile| {
        let w = importance.mean_squares(name).unwrap();
        let (a, b) = (values(&source, name), values(file, name));
        a.iter().zip(b).enumerate().map(|(i, (a, b))| f64::from(w[i % w.len()]) * f64::from(a - b).powi(2)).sum::<f64>()
    };
    assert!(cost(&weighted) < 0.99 * cost(&plain), "{} {}", cost(&weighted), cost(&plain));
}

#[test]
fn gguf_and_legacy_importance_matrices_agree() {
    let gguf = Importance::from_bytes(GGUF_FORM.to_vec()).unwrap();
    let legacy = Importance::from_bytes(LEGACY_FORM.to_vec()).unwrap();
    assert_eq!((gguf.len(), gguf.n_chunks(), gguf.chunk_tokens(), gguf.datasets()), (35, 4, 128, legacy.datasets()));
    assert_eq!((legacy.len(), legacy.n_chunks(), legacy.datasets()), (35, 4, &["prose.txt".to_owned()][..]));
    for name in gguf.names() {
        let (a, b) = (gguf.mean_squares(name).unwrap(), legacy.mean_squares(name).unwrap());
        assert_eq!(a.len(), if name.contains("ffn_down") { 172 } else { 64 }, "{name}");
        for (a, b) in a.iter().zip(&b) {
            assert!((a - b).abs() <= 1e-6 * a, "{name}: {a} {b}");
        }
    }
    assert_eq!(gguf.mean_squares("token_embd.weight"), None);
}

#[test]
fn collected_importance_can_be_written_and_read() {
    let mut collector = Collector::new();
    collector.add("blk.0.attn_q.weight", 0, 1, &[1.0, 2.0, 3.0, 4.0], 2);
    collector.add("blk.0.attn_q.weight", 0, 1, &[1.0, 0.0], 2);
    collector.add("blk.0.ffn_up_exps.weight", 1, 3, &[2.0, 4.0], 2);
    let made = collector.finish("a text", 3, 512);
    assert_eq!(made.mean_squares("blk.0.attn_q.weight"), Some(vec![11.0 / 3.0, 20.0 / 3.0]));
    // An expert that no token met matters as much everywhere.
    assert_eq!(made.mean_squares("blk.0.ffn_up_exps.weight"), Some(vec![1.0, 1.0, 4.0, 16.0, 1.0, 1.0]));

    let folder = TempDir::new().unwrap();
    let path = folder.path().join("made.gguf");
    made.write(&path).unwrap();
    let read = Importance::open(&path).unwrap();
    assert_eq!(read.source(), Some(path.display().to_string().as_str()));
    assert_eq!((read.n_chunks(), read.chunk_tokens(), read.datasets()), (3, 512, made.datasets()));
    for name in made.names() {
        assert_eq!(read.mean_squares(name), made.mean_squares(name));
    }
}

#[test]
fn damaged_importance_matrices_are_rejected() {
    // Every beginning of a legacy file but those that lack only the optional end.
    let optional = LEGACY_FORM.len() - 4 - 4 - "prose.txt".len();
    for n in 0..LEGACY_FORM.len() {
        let result = Importance::from_bytes(LEGACY_FORM[..n].to_vec());
        match result {
            Ok(found) => assert!(n == optional || n == optional + 4, "{n} bytes, {} entries", found.len()),
            Err(ImportanceError::Damaged { offset, .. }) => assert!(offset <= n),
            Err(other) => panic!("{n} bytes: {other}"),
        }
    }
    let mut huge = LEGACY_FORM.to_vec();
    huge[..4].copy_from_slice(&i32::MAX.to_le_bytes());
    assert!(matches!(Importance::from_bytes(huge), Err(ImportanceError::Damaged { .. })));
    let mut negative = LEGACY_FORM.to_vec();
    negative[4..8].copy_from_slice(&(-1i32).to_le_bytes());
    assert!(matches!(Importance::from_bytes(negative), Err(ImportanceError::Damaged { offset: 8, .. })));

    let written = |change: &dyn Fn(&mut GgufWriter<'_>)| {
        let mut writer = GgufWriter::new();
        change(&mut writer);
        Importance::from_bytes(writer.to_bytes().unwrap()).unwrap_err()
    };
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    assert!(matches!(written(&|_| {}), ImportanceError::Empty));
    let error = written(&|w| {
        w.set("general.architecture", "llama");
    });
    assert!(matches!(error, ImportanceError::NotImportance { .. }));
    let error = written(&|w| {
        w.set("general.type", "adapter");
    });
    assert!(matches!(error, ImportanceError::NotImportance { found } if found == "adapter"));
    for (sums, counts) in [(Some(4), None), (None, Some(1)), (Some(4), Some(3))] {
        let error = written(&|w| {
            for (suffix, n) in [("in_sum2", sums), ("counts", counts)] {
                if let Some(n) = n {
                    w.tensor(format!("a.{suffix}"), &[n], TensorType::F32, floats(&vec![1.0; n as usize])).unwrap();
                }
            }
        });
        assert!(matches!(error, ImportanceError::Mismatch { name } if name == "a"), "{sums:?} {counts:?}");
    }
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        let error = written(&|w| {
            w.tensor("a.in_sum2", &[2], TensorType::F32, floats(&[1.0, bad])).unwrap();
            w.tensor("a.counts", &[1], TensorType::F32, floats(&[1.0])).unwrap();
        });
        assert!(matches!(error, ImportanceError::Value { name } if name == "a"), "{bad}");
    }
    assert!(matches!(Importance::from_bytes(b"GGUF".to_vec()), Err(ImportanceError::Format(_))));
    assert!(matches!(Importance::open(Path::new("/nonexistent")), Err(ImportanceError::Io { .. })));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.imatrix.gguf");
    fs::write(&path, b"GGUF").unwrap();
    let error = Importance::open(&path).unwrap_err();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    assert!(matches!(error, ImportanceError::File { error, .. } if matches!(*error, ImportanceError::Format(_))));
}

#[test]
fn bad_weight_fails_with_its_tensor_name_and_leaves_no_file() {
    for bad in [f32::NAN, f32::NEG_INFINITY, 1e30] {
        let mut tiny = Tiny::new().tensor("token_embd.weight", &[3, 256], |i| i as f32).tensor(
            "blk.0.attn_q.weight",
            &[40, 256],
            |i| if i == 256 * 39 + 7 { bad } else { 0.5 },
        );
        let file = tiny.open();
        let error = quantize(&file, &tiny.out(), &FileOptions::new(Recipe::Q4_K_M)).unwrap_err();
        let QuantizeError::Tensor { name, source } = &error else { panic!("{error}") };
        assert_eq!(name, "blk.0.attn_q.weight");
        let index = 256 * 39 + 7;
        let expected = if bad == 1e30 {
            QuantError::TooLarge { ty: TensorType::Q4_K, index }
        } else {
            QuantError::NotFinite { index }
        };
        assert_eq!(source, &expected);
        assert_eq!(tiny.n_files(), 1, "only what was read");
    }
}

#[test]
fn input_and_output_are_checked_before_anything_is_written() {
    let mut tiny = Tiny::new().tensor("token_embd.weight", &[3, 256], |i| i as f32);
    let file = tiny.open();
    let path = file.path().unwrap().to_owned();
    let options = FileOptions::new(Recipe::Q4_0);
    let error = quantize(&file, &path, &options).unwrap_err();
    assert!(matches!(error, QuantizeError::SameFile { .. }), "{error}");
    let error = quantize(&file, Path::new("/nonexistent/folder/out.gguf"), &options).unwrap_err();
    assert!(matches!(error, QuantizeError::Format(FormatError::Io { .. })), "{error}");

    // Quantized already: refused, unless it stays as it is or is asked for.
    quantize(&file, &tiny.out(), &options).unwrap();
    let quantized = GgufFile::open(&tiny.out()).unwrap();
    assert_eq!(quantized.tensors()[0].ty, TensorType::Q6_K, "the embedding is the output");
    let again = tiny.folder.path().join("again.gguf");
    let error = quantize(&quantized, &again, &FileOptions::new(Recipe::Q8_0)).unwrap_err();
    assert!(matches!(&error, QuantizeError::Requantize { name, ty: TensorType::Q6_K } if name == "token_embd.weight"));
    quantize(&quantized, &again, &FileOptions::new(Recipe::Q4_K_M)).unwrap();
    quantize(&quantized, &again, &FileOptions::new(Recipe::Q8_0).allow_requantize(true)).unwrap();
    assert_eq!(GgufFile::open(&again).unwrap().tensors()[0].ty, TensorType::Q8_0);

    let mut options = FileOptions::new(Recipe::Q4_0);
    options.plan.embedding_type = Some(TensorType::IQ2_XXS);
    let error = quantize(&file, &again, &options).unwrap_err();
    let source = QuantError::NotEncodable { ty: TensorType::IQ2_XXS };
    assert!(matches!(&error, QuantizeError::Tensor { source: found, .. } if *found == source), "{error}");
}

#[test]
fn mismatched_shapes_and_importance_are_rejected() {
    let mut tiny = Tiny::new().tensor("token_embd.weight", &[3, 100], |i| i as f32);
    tiny.writer.set("split.count", 1u32).set("split.no", 0u32);
    let file = tiny.open();
    let mut options = FileOptions::new(Recipe::Q4_0);
    options.plan.embedding_type = Some(TensorType::Q4_K);
    let error = quantize(&file, &tiny.out(), &options).unwrap_err();
    assert!(matches!(error, QuantizeError::RowLength { n_cols: 100, ty: TensorType::Q4_K, .. }), "{error}");
    quantize(&file, &tiny.out(), &FileOptions::new(Recipe::Q4_0)).unwrap();
    let made = GgufFile::open(&tiny.out()).unwrap();
    assert_eq!(made.tensors()[0].ty, TensorType::F16, "no block fills rows of 100");
    assert!(!made.metadata().contains("split.count"));

    let mut tiny = Tiny::new().tensor("token_embd.weight", &[3, 256], |i| i as f32).tensor(
        "blk.0.attn_q.weight",
        &[4, 256],
        |i| i as f32,
    );
    let file = tiny.open();
    let needs = quantize(&file, &tiny.out(), &FileOptions::new(Recipe::Q2_K_S)).unwrap_err();
    assert!(matches!(&needs, QuantizeError::NeedsImportance { name, .. } if name == "blk.0.attn_q.weight"), "{needs}");
    let of_columns = |name: &str, n_cols: usize| {
        let mut collector = Collector::new();
        collector.add(name, 0, 1, &vec![1.0; n_cols], n_cols);
        collector.finish("", 1, 1)
    };
    let fits = of_columns("blk.0.attn_q.weight", 256);
    quantize(&file, &tiny.out(), &FileOptions::new(Recipe::Q2_K_S).importance(&fits)).unwrap();
    let other = of_columns("blk.0.attn_q.weight", 64);
    let error = quantize(&file, &tiny.out(), &FileOptions::new(Recipe::Q4_0).importance(&other)).unwrap_err();
    assert!(matches!(error, QuantizeError::ImportanceSize { expected: 256, found: 64, .. }), "{error}");
    // What is only looked up is met by no activations.
    let embedding = of_columns("token_embd.weight", 64);
    quantize(&file, &tiny.out(), &FileOptions::new(Recipe::Q4_0).importance(&embedding)).unwrap();
}

#[test]
fn each_expert_is_weighted_by_its_own_importance() {
    let mut tiny = Tiny::new().tensor("blk.0.ffn_up_exps.weight", &[2, 3, 256], |i| ((i * 37) % 101) as f32 - 50.0);
    tiny.writer.set("llama.expert_count", Value::U32(2));
    let file = tiny.open();
    let mut collector = Collector::new();
    let x = |expert: usize| (0..256).map(move |i| ((i * (7 + expert)) % 13) as f32).collect::<Vec<f32>>();
    collector.add("blk.0.ffn_up_exps.weight", 0, 2, &x(0), 256);
    collector.add("blk.0.ffn_up_exps.weight", 1, 2, &x(1), 256);
    let importance = collector.finish("", 1, 1);
    quantize(&file, &tiny.out(), &FileOptions::new(Recipe::Q4_0).importance(&importance)).unwrap();
    let made = GgufFile::open(&tiny.out()).unwrap();
    let (all, rows) =
        (importance.mean_squares("blk.0.ffn_up_exps.weight").unwrap(), values(&file, "blk.0.ffn_up_exps.weight"));
    let bytes = TensorType::Q4_1.row_bytes(256).unwrap_or(0);
    let found = made.tensor_bytes(&made.tensors()[0]);
    let per_row = found.len() / 6;
    assert!(per_row < bytes, "Q4_0");
    for row in 0..6 {
        let mut expected = vec![0; per_row];
        let importance = &all[row / 3 * 256..(row / 3 + 1) * 256];
        let x = &rows[row * 256..(row + 1) * 256];
        fewbit_quant::encode::encode(TensorType::Q4_0, x, 256, Some(importance), &mut expected).unwrap();
        assert_eq!(expected, found[row * per_row..(row + 1) * per_row], "row {row}");
    }
}
