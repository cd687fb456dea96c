//! `fewbit quantize`: converts a model file to a smaller one.

use std::collections::BTreeMap;
use std::path::Path;

use fewbit::quantize::{FileOptions, Importance};
use serde_json::json;

use crate::args::{Common, QuantizeArgs};
use crate::loading::{PullProgress, tokenizer_options};
use crate::output::{Out, TRANSFER, bytes, note, print_json, progress_bar};
use crate::signals::{self, Tidy};

pub(crate) fn run(common: &Common, args: &QuantizeArgs) -> anyhow::Result<()> {
    let importance = args.imatrix.as_deref().map(Importance::open).transpose()?;
    let file = fewbit::expert::open(&fewbit::resolve_original(&args.input, &PullProgress::new())?)?;
    let mut options = FileOptions::new(args.r#type).allow_requantize(args.allow_requantize);
    options.plan.pure = args.pure;
    options.plan.keep_output = args.leave_output_tensor;
    options.plan.output_type = args.output_type;
    options.plan.embedding_type = args.token_embedding_type;
    if let Some(importance) = &importance {
        options = options.importance(importance);
    }
    if let Some(n) = common.threads {
        options = options.threads(n.into());
    }
    // After a signal, the partial file is removed, which can have many gigabytes.
    let _tidy = Tidy::new();
    options = options.cancel(signals::flag());

    let bar = progress_bar(TRANSFER);
    let report = file.quantize(&args.output, &options, &tokenizer_options(common), &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let report = report?;

    let mut types: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for tensor in &report.tensors {
        let (n_tensors, n_bytes) = types.entry(tensor.to.name()).or_default();
        *n_tensors += 1;
        *n_bytes += tensor.n_bytes;
    }
    let weighted = report.tensors.iter().filter(|t| t.weighted).count();
    let quantized = report.tensors.iter().filter(|t| t.from != t.to).count();
    if importance.is_some() && weighted < quantized {
        note(format_args!("the importance matrix has nothing for {} of {quantized} tensors", quantized - weighted));
    }
    if common.json {
        let types = types.iter().map(|(ty, (n, bytes))| ((*ty).to_owned(), json!({ "tensors": n, "bytes": bytes })));
        let object = json!({
            "types": types.collect::<serde_json::Map<_, _>>(),
            "bytes": report.file_bytes,
            "bits_per_weight": report.bits_per_weight(),
            "tensors": report.tensors.len(),
            "quantized": quantized,
            "weighted": weighted,
        });
        if is_stdout(&args.output) {
            note(format_args!("{object}"));
            return Ok(());
        }
        return print_json(&object);
    }
    if is_stdout(&args.output) {
        // The file went to stdout, where nothing may follow it.
        note(format_args!("{}, {:.2} bits per weight", bytes(report.file_bytes), report.bits_per_weight()));
        return Ok(());
    }
    let mut out = Out::new();
    for (ty, (n_tensors, n_bytes)) in &types {
        out.line(format_args!("{ty:>8}  {n_tensors:>4} tensors  {:>9}", bytes(*n_bytes)))?;
    }
    out.line(format_args!(
        "{}: {}, {:.2} bits per weight (before: {})",
        args.output.display(),
        bytes(report.file_bytes),
        report.bits_per_weight(),
        bytes(file.file_bytes()),
    ))?;
    out.flush()
}

/// Whether the file is written to stdout.
fn is_stdout(path: &Path) -> bool {
    ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path == Path::new(name))
}
