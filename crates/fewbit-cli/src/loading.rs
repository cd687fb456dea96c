//! Resolves arguments: loads or locates MODEL (with a progress bar for downloads), reads texts, and converts settings.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use fewbit::evaluate::PerplexityOptions;
use fewbit::expert::DeviceOptions;
use fewbit::expert::tokenizer::TokenizerOptions;
use fewbit::hub::{Event, Progress};
use fewbit::quantize::Recipe;
use fewbit::sample::{Dry, DynamicTemperature, Mirostat, Xtc};
use fewbit::{Constraint, DeviceName, GenerateOptions, Model, ModelBuilder, Sampling};
use indicatif::ProgressBar;

use crate::args::{Common, ConstraintArgs, GpuLayers, SamplingArgs};
use crate::output::{TRANSFER, note, progress_bar, with_causes};
use crate::signals::{self, Tidy};

/// Loading shows a progress bar only after this time.
const A_MOMENT: Duration = Duration::from_millis(400);

/// Loads the model with the options of the command line.
pub(crate) fn load(common: &Common, name_or_path: &str) -> anyhow::Result<Model> {
    load_by(builder(common), name_or_path)
}

/// Like [`load`], on the CPU unless a GPU was named: for what GPUs do not do.
pub(crate) fn load_on_cpu(common: &Common, name_or_path: &str) -> anyhow::Result<Model> {
    let of_environment = std::env::var(fewbit::DEVICE_VARIABLE).ok().and_then(|name| name.parse().ok());
    let builder = builder(common);
    load_by(
        match common.device.or(of_environment) {
            None | Some(DeviceName::Auto) => builder.device(DeviceName::Cpu),
            Some(_) => builder,
        },
        name_or_path,
    )
}

/// Like [`load`], with a limit in bytes for keys and values if that is given.
#[cfg(feature = "serve")]
pub(crate) fn load_with_kv(common: &Common, name_or_path: &str, kv_memory: Option<u64>) -> anyhow::Result<Model> {
    let builder = builder(common);
    load_by(if let Some(bytes) = kv_memory { builder.kv_memory(bytes) } else { builder }, name_or_path)
}

/// Shows the warnings about a model's files, and returns the model.
fn with_warnings(model: Model) -> Model {
    for warning in model.warnings() {
        note(format_args!("{warning}"));
    }
    model
}

/// Loads a draft model, without the options that only apply to the main model.
pub(crate) fn load_draft(common: &Common, name_or_path: &str) -> anyhow::Result<Model> {
    let mut builder = Model::builder();
    if let Some(n) = common.threads {
        builder = builder.threads(n.into());
    }
    load_by(builder, name_or_path)
}

fn load_by(builder: ModelBuilder, name_or_path: &str) -> anyhow::Result<Model> {
    let (builder, bar) = with_bar(builder);
    let loaded = builder.progress(PullProgress::new()).load(name_or_path);
    bar.finish_and_clear();
    Ok(with_warnings(loaded?))
}

/// Adds a progress bar, which is shown if loading takes more than a moment.
fn with_bar(builder: ModelBuilder) -> (ModelBuilder, ProgressBar) {
    let bar = progress_bar("loading {wide_bar} {decimal_bytes}/{decimal_total_bytes} {eta}");
    let (own, start) = (bar.clone(), OnceLock::new());
    let builder = builder.on_progress(move |done, total| {
        // Time starts with the first report, because a download before does not count.
        if start.get_or_init(Instant::now).elapsed() > A_MOMENT {
            own.set_length(total);
            own.set_position(done);
        }
    });
    (builder, bar)
}

/// Loads the model quantized to a recipe, with the options of the command line.
pub(crate) fn load_quantized(common: &Common, path: &Path, recipe: Recipe) -> Result<Model, fewbit::Error> {
    let (builder, bar) = with_bar(builder(common).quantize(recipe));
    let loaded = builder.load_file(path);
    bar.finish_and_clear();
    Ok(with_warnings(loaded?))
}

pub(crate) fn builder(common: &Common) -> ModelBuilder {
    let mut builder = Model::builder();
    if let Some(device) = common.device {
        builder = builder.device(device);
    }
    if let Some(n) = gpu_layers(common) {
        builder = builder.gpu_layers(n);
    }
    if let Some(n) = common.cpu_experts {
        builder = builder.cpu_experts(n);
    }
    if let Some(bytes) = common.gpu_memory {
        builder = builder.gpu_memory(bytes);
    }
    if let Some(n) = common.threads {
        builder = builder.threads(n.into());
    }
    if let Some(name) = &common.pre {
        builder = builder.pre_tokenizer(name);
    }
    if let Some(recipe) = common.quantize {
        builder = builder.quantize(recipe);
    }
    if let Some(ty) = common.kv_type {
        builder = builder.kv_type(ty.into());
    }
    builder = builder.mtp(common.mtp);
    for (path, scale) in &common.lora {
        builder = builder.lora(path, *scale);
    }
    builder
}

/// The options of a command that places everything on the CPU.
pub(crate) fn on_cpu(common: &Common) -> Common {
    Common { device: Some(DeviceName::Cpu), gpu_layers: None, cpu_experts: None, gpu_memory: None, ..common.clone() }
}

/// Where the layers are to be, for models that are loaded otherwise than by [`builder`].
pub(crate) fn devices(common: &Common) -> DeviceOptions {
    let mut options = DeviceOptions::new();
    (options.device, options.gpu_layers) = (common.device, gpu_layers(common));
    (options.cpu_experts, options.gpu_memory) = (common.cpu_experts, common.gpu_memory);
    options
}

/// The number of layers on the GPU, if it was given.
fn gpu_layers(common: &Common) -> Option<usize> {
    match common.gpu_layers {
        Some(GpuLayers::Last(n)) => Some(n),
        Some(GpuLayers::Auto) | None => None,
    }
}

/// The path of MODEL, fetched if needed: the same file that [`load`] loads.
pub(crate) fn locate(common: &Common, name_or_path: &str) -> anyhow::Result<PathBuf> {
    let progress = PullProgress::new();
    Ok(match common.quantize {
        Some(_) => fewbit::resolve_original(name_or_path, &progress)?,
        None => fewbit::resolve(name_or_path, &progress)?,
    })
}

/// How the model's tokenizer is built.
pub(crate) fn tokenizer_options(common: &Common) -> TokenizerOptions {
    common.pre.as_ref().map(TokenizerOptions::with_pre).unwrap_or_default()
}

/// The text of a file.
pub(crate) fn text_of(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    decoded(bytes).map_err(|error| anyhow!("{} is not UTF-8 text: {error}", path.display()))
}

/// Decodes the bytes of a file or of stdin. A byte order mark at the front, as Windows programs write it, is removed;
/// if it is that of UTF-16, the bytes are decoded as UTF-16.
fn decoded(bytes: Vec<u8>) -> Result<String, String> {
    let utf16 = |read: fn([u8; 2]) -> u16| {
        let units = bytes[2..].chunks_exact(2).map(|pair| read([pair[0], pair[1]]));
        let is_whole = bytes.len().is_multiple_of(2);
        let text: Result<String, _> = char::decode_utf16(units).collect();
        text.ok().filter(|_| is_whole).ok_or_else(|| "it begins as UTF-16, and is not".to_owned())
    };
    match bytes[..] {
        [0xff, 0xfe, ..] => utf16(u16::from_le_bytes),
        [0xfe, 0xff, ..] => utf16(u16::from_be_bytes),
        _ => {
            let mut text = String::from_utf8(bytes).map_err(|error| error.utf8_error().to_string())?;
            if text.starts_with('\u{feff}') {
                text.drain(..'\u{feff}'.len_utf8());
            }
            Ok(text)
        }
    }
}

/// Reads all of stdin, which is called `what` in errors.
pub(crate) fn text_of_stdin(what: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).with_context(|| format!("cannot read {what} from stdin"))?;
    decoded(bytes).map_err(|error| anyhow!("{what} on stdin is not UTF-8 text: {error}"))
}

/// Removes the byte order mark that may precede the first line of stdin.
pub(crate) fn without_bom(line: String, is_first: bool) -> String {
    match line.strip_prefix('\u{feff}') {
        Some(rest) if is_first => rest.to_owned(),
        _ => line,
    }
}

/// Settings to split a text into windows of `ctx` tokens, of which only the first `n` are used if that is given.
pub(crate) fn windows(ctx: usize, n: Option<u64>) -> PerplexityOptions {
    let options = PerplexityOptions::default().ctx(ctx);
    match n {
        Some(n) => options.chunks(usize::try_from(n).unwrap_or(usize::MAX)),
        None => options,
    }
}

/// Converts the sampling arguments.
pub(crate) fn options(args: &SamplingArgs) -> GenerateOptions {
    let mut options = GenerateOptions::new().max_tokens(args.max_tokens);
    options.temperature = args.temp;
    options.top_k = args.top_k;
    options.top_p = args.top_p;
    options.min_p = args.min_p;
    options.typical_p = args.typical;
    options.top_n_sigma = args.top_n_sigma;
    options.xtc = args.xtc_probability.map(|probability| Xtc { probability, threshold: args.xtc_threshold });
    options.dynamic_temperature =
        args.dynatemp_range.map(|range| DynamicTemperature { range, exponent: args.dynatemp_exponent });
    options.mirostat = args.mirostat.map(|tau| Mirostat { tau, eta: args.mirostat_eta });
    options.repeat_penalty = args.repeat_penalty;
    options.presence_penalty = args.presence_penalty;
    options.frequency_penalty = args.frequency_penalty;
    options.penalty_last_n = args.penalty_last_n;
    options.dry = args.dry_multiplier.map(Dry::new);
    options.logit_bias.clone_from(&args.logit_bias);
    options.seed = args.seed;
    options.stop.clone_from(&args.stop);
    options
}

/// Checks settings early, because the library would only check them after the model is loaded.
pub(crate) fn check_sampling(args: &SamplingArgs) -> anyhow::Result<()> {
    Ok(options(args).sampling_over(Sampling::default()).validate()?)
}

/// The requested constraint, if any.
pub(crate) fn constraint(args: &ConstraintArgs) -> anyhow::Result<Option<Constraint>> {
    Ok(if let Some(path) = &args.schema {
        Some(Constraint::json_schema_str(&text_of(path)?).with_context(|| path.display().to_string())?)
    } else if let Some(pattern) = &args.regex {
        Some(Constraint::regex(pattern))
    } else if let Some(path) = &args.grammar {
        let text = text_of(path)?;
        let is_gbnf = path.extension().is_some_and(|extension| extension == "gbnf");
        let constraint = if is_gbnf { Constraint::gbnf(&text) } else { Ok(Constraint::lark(text)) };
        Some(constraint.with_context(|| path.display().to_string())?)
    } else {
        None
    })
}

/// Shows a download on stderr: a bar on a terminal, and a line for each source and each failure
/// everywhere.
///
/// While it is alive, a signal ends the download cleanly: the downloaded part is kept for the next attempt.
pub(crate) struct PullProgress {
    bar: ProgressBar,
    _tidy: Tidy,
}

impl PullProgress {
    pub(crate) fn new() -> Self {
        Self { bar: progress_bar(TRANSFER), _tidy: Tidy::new() }
    }

    fn line(&self, line: std::fmt::Arguments<'_>) {
        self.bar.suspend(|| note(line));
    }
}

impl Progress for PullProgress {
    fn is_cancelled(&self) -> bool {
        signals::flag().load(Ordering::Relaxed)
    }

    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Waiting { path } => {
                self.line(format_args!("waiting for another process that fetches {}", path.display()));
            }
            Event::Trying { source, location } => self.line(format_args!("fetching from {source}: {location}")),
            Event::Progress { done_bytes, total_bytes } => {
                self.bar.set_length(*total_bytes);
                self.bar.set_position(*done_bytes);
            }
            Event::Failed { source, error } => {
                self.bar.set_length(0);
                self.line(format_args!("source {source} failed: {}", with_causes(error)));
            }
            Event::Done { path } => {
                self.bar.finish_and_clear();
                self.line(format_args!("fetched and verified: {}", path.display()));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::decoded;

    #[test]
    fn byte_order_marks_are_removed_and_utf16_is_decoded() {
        let text = |bytes: &[u8]| decoded(bytes.to_vec());
        assert_eq!(text("\u{feff}a\u{feff}b".as_bytes()).unwrap(), "a\u{feff}b");
        assert_eq!(text(b"").unwrap(), "");
        assert_eq!(text(&[0xff, 0xfe, b'a', 0, 0x3d, 0xd8, 0x00, 0xde]).unwrap(), "a\u{1f600}");
        assert_eq!(text(&[0xfe, 0xff, 0, b'a']).unwrap(), "a");
        assert!(text(&[0xff, 0xfe, b'a']).is_err() && text(&[0xff, 0xfe, 0, 0xd8]).is_err() && text(&[0xc3]).is_err());
    }
}
