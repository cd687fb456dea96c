//! The command line, as clap reads it.

#[cfg(feature = "serve")]
mod serve;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use fewbit::quantize::{Recipe, is_encodable};
use fewbit::{DeviceName, Pooling, TensorType};
#[cfg(feature = "serve")]
pub(crate) use serve::*;

/// Run quantized language models on this computer.
#[derive(Debug, Parser)]
#[command(name = "fewbit", version, about, arg_required_else_help = true, infer_subcommands = false)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// Print one JSON object on stdout, and nothing else there
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Threads to compute with [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// Where to compute: auto, cpu, cuda[:N], vulkan[:N] or metal[:N] (see `fewbit devices`) [default: FEWBIT_DEVICE,
    /// else auto]
    #[arg(long, global = true, value_name = "DEVICE")]
    pub(crate) device: Option<DeviceName>,
    /// How many layers are on the GPU, the last ones: a number, or auto for as many as fit [default: auto]
    #[arg(long, global = true, value_name = "N", value_parser = gpu_layers)]
    pub(crate) gpu_layers: Option<GpuLayers>,
    /// Keep the experts of the first N layers on the CPU, or of all layers
    #[arg(long, global = true, value_name = "N|all", value_parser = cpu_experts)]
    pub(crate) cpu_experts: Option<usize>,
    /// How much memory of the GPU to use, such as 6GiB [default: FEWBIT_GPU_MEMORY, else what is free]
    #[arg(long, global = true, value_name = "SIZE", value_parser = memory_size)]
    pub(crate) gpu_memory: Option<u64>,
    /// Pre-tokenizer to use instead of the one that the file names
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) pre: Option<String>,
    /// Type of the KV cache [default: f32 for models in F32, else f16]
    #[arg(long, global = true, value_enum)]
    pub(crate) kv_type: Option<KvType>,
    /// Quantize the weights as they are read, such as to Q4_K_M; of a repo the original is taken, not a quantized file
    #[arg(long, global = true, value_name = "TYPE")]
    pub(crate) quantize: Option<Recipe>,
    /// Apply a LoRA adapter with this scale: a GGUF file, a PEFT folder, or a repo of the Hugging Face Hub (org/repo,
    /// org/repo:file.gguf, org/repo:folder); can be given several times [scale: 1]
    #[arg(long, global = true, value_name = "ADAPTER[=SCALE]", value_parser = lora)]
    pub(crate) lora: Vec<(PathBuf, f32)>,
    /// Draft next tokens with the layer that the model brings for that (Qwen3-Next, Qwen 3.5, GLM-4.5), to verify several
    /// in one step; the text stays the same
    #[arg(long, global = true)]
    pub(crate) mtp: bool,
    /// Log what happens to stderr; repeat for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GpuLayers {
    Auto,
    Last(usize),
}

/// A number, or `all`.
fn cpu_experts(text: &str) -> Result<usize, String> {
    match text {
        "all" => Ok(usize::MAX),
        n => n.parse().map_err(|_| "give a number of layers, or `all`".to_owned()),
    }
}

/// A size, as `6GiB`.
fn memory_size(text: &str) -> Result<u64, String> {
    let bytes = fewbit::expert::memory_size(text);
    bytes.ok_or_else(|| "give a number and a unit, such as 6GiB or 500MB".to_owned())
}

/// A number, or `auto`.
fn gpu_layers(text: &str) -> Result<GpuLayers, String> {
    match text {
        "auto" => Ok(GpuLayers::Auto),
        n => n.parse().map(GpuLayers::Last).map_err(|_| "give a number of layers, or `auto`".to_owned()),
    }
}

#[allow(non_camel_case_types)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvType {
    F16,
    F32,
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<KvType> for fewbit::expert::engine::KvType {
    fn from(ty: KvType) -> Self {
        match ty {
            KvType::F16 => Self::F16,
            KvType::F32 => Self::F32,
            KvType::Q8_0 => Self::Q8_0,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer one prompt
    Run(RunArgs),
    /// Talk with a model; Ctrl-C stops the answer, Ctrl-D ends the conversation
    Chat(ChatArgs),
    /// Fetch a model of the registry, or of the Hugging Face Hub
    Pull(PullArgs),
    /// Show the models of the registry, and which are here
    List(ListArgs),
    /// Show what is in a model file
    Inspect(InspectArgs),
    /// Show the devices of this computer, and why others cannot be used
    Devices,
    /// Turn the text on stdin into token ids
    Tokenize(TokenizeArgs),
    /// Turn texts into vectors, one line for each
    Embed(EmbedArgs),
    /// Measure how well a model predicts a text
    Perplexity(PerplexityArgs),
    /// Measure the speed of prefill and decode
    Bench(BenchArgs),
    /// Write a smaller file of a model
    Quantize(QuantizeArgs),
    /// Measure what quantizing a model costs and gives, type by type
    Compare(CompareArgs),
    /// Measure on a text which weights matter, for `quantize --imatrix`
    Imatrix(ImatrixArgs),
    /// Answer programs over HTTP, in OpenAI's form and Anthropic's; Ctrl-C ends what is under way, then the server
    #[cfg(feature = "serve")]
    Serve(ServeArgs),
    /// Answer the requests in a file, in OpenAI's form for batches; a run that was ended goes on where it was
    #[cfg(feature = "serve")]
    Batch(BatchArgs),
    /// Make, list and revoke the keys of a server
    #[cfg(feature = "serve")]
    Keys(KeysArgs),
    /// Show what was used of a server, and what it cost
    #[cfg(feature = "serve")]
    Usage(UsageArgs),
    /// Prove that the log of a server is what was written
    #[cfg(feature = "serve")]
    Audit(AuditArgs),
    /// Show the prompts of a server, and choose the versions that requests get
    #[cfg(feature = "serve")]
    Prompts(PromptsArgs),
    /// Compute answers of the log of a server again, and compare them bit for bit
    #[cfg(feature = "serve")]
    Replay(ReplayArgs),
}

/// Which model.
#[derive(Debug, Args)]
pub(crate) struct ModelArg {
    /// Name from the registry (see `fewbit list`), path of a .gguf file or a Hugging Face folder, or a repo of the
    /// Hugging Face Hub: org/repo, org/repo:Q4_K_M, org/repo@REVISION, hf.co/org/repo/file.gguf
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
}

/// How to choose tokens.
#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// End after N tokens, if the model does not end before; small models tend to repeat themselves
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1024)]
    pub(crate) max_tokens: usize,
    /// Temperature; 0 always takes the most probable token [default: the model's, else 0.8]
    #[arg(long = "temp", alias = "temperature", value_name = "T", allow_negative_numbers = true)]
    pub(crate) temp: Option<f32>,
    /// Keep the K most probable tokens; 0 keeps all
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Keep the most probable tokens that together have probability P; 1 keeps all
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Keep tokens at least P times as probable as the most probable; 0 keeps all
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f32>,
    /// Keep the tokens nearest to the expected surprise that together have probability P; 1 keeps all
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) typical: Option<f32>,
    /// Keep tokens at most N standard deviations below the most probable; 0 keeps all
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) top_n_sigma: Option<f32>,
    /// How often the most probable tokens are excluded (XTC); 0 never
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) xtc_probability: Option<f32>,
    /// How probable a token must be to be excluded so
    #[arg(long, value_name = "P", default_value_t = 0.1, requires = "xtc_probability")]
    pub(crate) xtc_threshold: f32,
    /// Let the temperature vary by so much, by how sure the model is
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) dynatemp_range: Option<f32>,
    /// How steeply it does
    #[arg(long, value_name = "E", default_value_t = 1.0, requires = "dynatemp_range")]
    pub(crate) dynatemp_exponent: f32,
    /// Target surprise of Mirostat v2 in bits, in place of all but the temperature
    #[arg(long, value_name = "TAU", allow_negative_numbers = true)]
    pub(crate) mirostat: Option<f32>,
    /// Learning rate of Mirostat
    #[arg(long, value_name = "ETA", default_value_t = 0.1, requires = "mirostat")]
    pub(crate) mirostat_eta: f32,
    /// Make tokens that occurred less probable; 1 does not
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) repeat_penalty: Option<f32>,
    /// The same, subtracted once from the logit
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) presence_penalty: Option<f32>,
    /// The same, subtracted for each time
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) frequency_penalty: Option<f32>,
    /// How many of the last tokens count as having occurred [default: 64]
    #[arg(long, value_name = "N")]
    pub(crate) penalty_last_n: Option<usize>,
    /// Make it less probable that a sequence occurs again (DRY), by this multiplier; 0 does not
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) dry_multiplier: Option<f32>,
    /// Add B to the logit of token ID (`ID=B`; `-inf` bans it); can be given several times
    #[arg(long, value_name = "ID=B", value_parser = logit_bias)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Seed of the random numbers [default: a new one]
    #[arg(long, value_name = "S")]
    pub(crate) seed: Option<u64>,
    /// End where this text would come; can be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
}

/// `FILE` or `FILE=SCALE`; a file may have `=` in its name.
fn lora(text: &str) -> Result<(PathBuf, f32), String> {
    match text.rsplit_once('=') {
        Some((file, scale)) if !PathBuf::from(text).exists() => match scale.parse::<f32>() {
            Ok(scale) if scale.is_finite() => Ok((file.into(), scale)),
            _ => Err(format!("{scale:?} is no scale: give FILE=SCALE, such as style.gguf=0.5")),
        },
        _ => Ok((text.into(), 1.0)),
    }
}

/// `NAME=VALUE`: a value that is JSON, else a text.
fn template_var(text: &str) -> Result<(String, serde_json::Value), String> {
    let (name, value) = text.split_once('=').ok_or("give NAME=VALUE, such as enable_thinking=false")?;
    if name.is_empty() {
        return Err("give a name before `=`".to_owned());
    }
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

/// `ID=BIAS`.
fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let (token, bias) = text.split_once('=').ok_or("give ID=BIAS, such as 50=-2.5")?;
    let token = token.parse().map_err(|_| format!("{token:?} is not a token id"))?;
    let bias = bias.parse().map_err(|_| format!("{bias:?} is no number"))?;
    Ok((token, bias))
}

/// A type that weights can be quantized to.
fn tensor_type(name: &str) -> Result<TensorType, String> {
    TensorType::from_name(name)
        .filter(|&ty| is_encodable(ty))
        .ok_or_else(|| format!("{name:?} is no type that weights can be quantized to"))
}

/// What the answer must be.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct ConstraintArgs {
    /// The answer is JSON that the schema in this file describes
    #[arg(long, value_name = "FILE")]
    pub(crate) schema: Option<PathBuf>,
    /// The answer is a text that this regular expression matches
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true)]
    pub(crate) regex: Option<String>,
    /// The answer is a text of the grammar in this file: GBNF if it is named so, else Lark
    #[arg(long, value_name = "FILE")]
    pub(crate) grammar: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// The prompt; `-` reads it from stdin. One that begins with `-` and has no space in it goes after `--`
    #[arg(allow_negative_numbers = true)]
    pub(crate) prompt: String,
    /// Continue the prompt as it is, without the model's chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// Tell the model how to behave; with --raw, the text and an empty line before the prompt
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,
    /// Give the log probability of each token, and of the N most probable ones next to it (with --json)
    #[arg(long, value_name = "N", requires = "json")]
    pub(crate) logprobs: Option<usize>,
    /// Set a variable of the chat template (`enable_thinking=false`); JSON, else a text; can be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = template_var, conflicts_with = "raw")]
    pub(crate) template_var: Vec<(String, serde_json::Value)>,
    /// End the model's reasoning after so many tokens; with 0 it does not think
    #[arg(long, value_name = "N", conflicts_with = "raw")]
    pub(crate) reasoning_budget: Option<usize>,
    /// Let this smaller model say what to expect, which changes no token but may save time; named as MODEL is
    #[arg(long, value_name = "MODEL")]
    pub(crate) draft: Option<String>,
    #[command(flatten)]
    pub(crate) constraint: ConstraintArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// Tell the model how to behave
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,
    /// Set a variable of the chat template (`enable_thinking=false`); JSON, else a text; can be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = template_var)]
    pub(crate) template_var: Vec<(String, serde_json::Value)>,
    /// End the model's reasoning after so many tokens; with 0 it does not think
    #[arg(long, value_name = "N")]
    pub(crate) reasoning_budget: Option<usize>,
    /// Let this smaller model say what to expect, which changes no token but may save time; named as MODEL is
    #[arg(long, value_name = "MODEL")]
    pub(crate) draft: Option<String>,
    #[command(flatten)]
    pub(crate) constraint: ConstraintArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Name from the registry (see `fewbit list`), or a repo of the Hugging Face Hub: org/repo, org/repo:Q4_K_M,
    /// org/repo@REVISION, hf.co/org/repo/file.gguf
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Also show models of the Hugging Face Hub that are here, and those that LM Studio and Ollama have
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// Context to estimate the memory for [default: the model's]
    #[arg(long, value_name = "N")]
    pub(crate) ctx: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct TokenizeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// Read one JSON string per line, write one JSON array per line
    #[arg(long, conflicts_with = "json")]
    pub(crate) jsonl: bool,
    /// Recognise special tokens in the text
    #[arg(long)]
    pub(crate) special: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EmbedArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// The texts
    #[arg(value_name = "TEXT", allow_negative_numbers = true, required_unless_present = "file")]
    pub(crate) texts: Vec<String>,
    /// Also take each line of this file as a text; `-` is stdin
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// How a text's tokens become one vector [default: as the model's file says, else mean]
    #[arg(long, value_enum)]
    pub(crate) pooling: Option<PoolingArg>,
    /// Do not scale vectors to length 1
    #[arg(long)]
    pub(crate) no_normalize: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PoolingArg {
    Mean,
    Last,
    Cls,
}

impl PoolingArg {
    pub(crate) fn name(pooling: Pooling) -> &'static str {
        match pooling {
            Pooling::Last => "last",
            Pooling::Cls => "cls",
            _ => "mean",
        }
    }
}

impl From<PoolingArg> for Pooling {
    fn from(pooling: PoolingArg) -> Self {
        match pooling {
            PoolingArg::Mean => Self::Mean,
            PoolingArg::Last => Self::Last,
            PoolingArg::Cls => Self::Cls,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct PerplexityArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// The text
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Tokens of a window; the second half of each is scored
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) ctx: usize,
    /// Score the first N windows only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) chunks: Option<u64>,
    /// Also give the negative log-likelihood of each scored token (with --json)
    #[arg(long, requires = "json")]
    pub(crate) per_token: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Name from the registry (see `fewbit list`), path of a .gguf file or a Hugging Face folder, or org/repo:TYPE
    #[arg(value_name = "MODEL", required_unless_present = "shape", conflicts_with = "shape")]
    pub(crate) model: Option<String>,
    /// Prompt tokens; of this and the next ones several may be given, as in `-p 128,512`
    #[arg(short, long, value_name = "N", default_value = "512", value_delimiter = ',')]
    pub(crate) prompt: Vec<usize>,
    /// Tokens to generate
    #[arg(short, long, value_name = "N", default_value = "128", value_delimiter = ',')]
    pub(crate) n_gen: Vec<usize>,
    /// Tokens in the context before either is timed
    #[arg(long, value_name = "N", default_value = "0", value_delimiter = ',')]
    pub(crate) depth: Vec<usize>,
    /// Sequences to generate at once
    #[arg(long, value_name = "N", default_value = "1", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) batch: Vec<u16>,
    /// Repetitions
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) repetitions: u16,
    /// Also time each kernel on the GPUs that the model is on, in one more run of each combination
    #[arg(long)]
    pub(crate) kernels: bool,
    /// First compare the logits of N steps on the device with those that the CPU computes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) check: Option<u16>,
    /// Measure N requests at once through the engine, compared with one alone, instead of the bare model
    #[arg(long, value_name = "N", requires = "model", conflicts_with_all = ["shape", "depth", "batch", "kernels", "check"], value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) concurrency: Option<u16>,
    /// Measure random weights of this shape instead of a model
    #[arg(long, value_name = "NAME", requires = "type")]
    pub(crate) shape: Option<String>,
    /// Type of the random weights
    #[arg(long, value_name = "TYPE", requires = "shape")]
    pub(crate) r#type: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// Text to measure on
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// What to quantize to, in memory
    #[arg(long, value_name = "TYPE", value_delimiter = ',', default_value = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q3_K_M,Q2_K")]
    pub(crate) types: Vec<Recipe>,
    /// Tokens of a window
    #[arg(long, short, value_name = "N", default_value_t = 512)]
    pub(crate) ctx: usize,
    /// Windows to measure at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) chunks: Option<u64>,
    /// Draw size against KL divergence, as .svg, or with the table as .html
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// Name from the registry (see `fewbit list`), path of a .gguf file or a Hugging Face folder, or org/repo
    #[arg(value_name = "IN")]
    pub(crate) input: String,
    /// The .gguf file to write; a pipe or a device is written into as it is, of a link what it leads to is replaced
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// What to quantize to, such as Q4_K_M; most tensors get the type of this name, those that need it a larger one
    #[arg(long, short, value_name = "TYPE")]
    pub(crate) r#type: Recipe,
    /// Importance matrix (see `fewbit imatrix`), in llama.cpp's .gguf or .dat form
    #[arg(long, value_name = "FILE")]
    pub(crate) imatrix: Option<PathBuf>,
    /// Quantize tensors that are quantized already, which loses more than quantizing the original
    #[arg(long)]
    pub(crate) allow_requantize: bool,
    /// Give all matrices the same type
    #[arg(long)]
    pub(crate) pure: bool,
    /// Leave output.weight as it is
    #[arg(long)]
    pub(crate) leave_output_tensor: bool,
    /// Type of output.weight
    #[arg(long, alias = "output-tensor-type", value_name = "TYPE", value_parser = tensor_type)]
    pub(crate) output_type: Option<TensorType>,
    /// Type of the token embedding
    #[arg(long, value_name = "TYPE", value_parser = tensor_type)]
    pub(crate) token_embedding_type: Option<TensorType>,
}

#[derive(Debug, Args)]
pub(crate) struct ImatrixArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// The text
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The .gguf file to write
    #[arg(long, short, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) ctx: usize,
    /// Run the first N windows only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) chunks: Option<u64>,
}
