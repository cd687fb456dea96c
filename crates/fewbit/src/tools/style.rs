//! The tables of formats for tool calls and for reasoning, and the detection of a model's row.

use fewbit_tokenizer::Tokenizer;

use super::gemma::QUOTE;
use super::section::{DEEPSEEK, KIMI, Section};

/// How a model writes its calls.
///
/// | style | an answer with two calls | models |
/// |---|---|---|
/// | `Hermes` | `<tool_call>{"name": "f", "arguments": {..}}</tool_call>` twice | Hermes, Qwen2.5, Qwen3, Granite 4 |
/// | `Qwen3Coder` | `<tool_call><function=f><parameter=a>1</parameter></function></tool_call>` twice | Qwen3-Coder |
/// | `Glm` | `<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>` twice | GLM-4.5 to 4.7 |
/// | `Llama3Json` | `{"name": "f", "parameters": {..}}; {..}`, perhaps after `<\|python_tag\|>` | Llama 3.1, 3.2, 3.3 |
/// | `Llama3Pythonic` | `[f(a=1, b='x'), g()]` | Llama 3.2 and 4 |
/// | `MistralList` | `[TOOL_CALLS] [{"name": "f", "arguments": {..}, "id": ".."}, {..}]` | Mistral v3, v7 |
/// | `MistralCallId` | `[TOOL_CALLS]f[CALL_ID]..[ARGS]{..}` twice | Mistral v11 |
/// | `MistralArgs` | `[TOOL_CALLS]f[ARGS]{..}` twice | Mistral v13, Devstral, Ministral 3 |
/// | `Lfm2` | `<\|tool_call_start\|>[f(a=1, b='x'), g()]<\|tool_call_end\|>` | LFM2, LFM2.5 |
/// | `Olmo` | `<function_calls>f(a=1, b="x")`, a line for each call, and `</function_calls>` | OLMo 3 |
/// | `Seed` | `<seed:tool_call><function=f><parameter=a>1</parameter></function></seed:tool_call>` twice | Seed-OSS |
/// | `DeepSeekR1` | `function<｜tool▁sep｜>f`, then fenced `{..}`, each call between marks | DeepSeek R1, V3 |
/// | `DeepSeekV31` | `f<｜tool▁sep｜>{..}`, each call between marks | DeepSeek V3.1 |
/// | `Kimi` | `functions.f:0<\|tool_call_argument_begin\|>{..}`, each call between marks | Kimi K2 |
/// | `Cohere` | `<\|START_ACTION\|>[{"tool_call_id": "0", "tool_name": "f", "parameters": {..}}, {..}]<\|END_ACTION\|>` | Command R7B, Command A |
/// | `Gemma4` | `<\|tool_call>call:f{a:1,b:<\|"\|>x<\|"\|>}<tool_call\|>` twice | Gemma 4 |
/// | `Hunyuan` | `<tool_calls>[{"name": "f", "arguments": {..}}, {..}]</tool_calls>`, perhaps in `<answer>` | Hunyuan, Apriel |
/// | `Granite` | `<\|tool_call\|>[{"name": "f", "arguments": {..}}, {..}]` | Granite 3 |
/// | `Phi4` | `<\|tool_call\|>[{"name": "f", "arguments": {..}}, {..}]<\|/tool_call\|>` | Phi-4-mini |
/// | `Harmony` | `<\|channel\|>commentary to=functions.f <\|constrain\|>json<\|message\|>{..}<\|call\|>`, one call | gpt-oss |
/// | `Json` | a list of objects, or one object, alone or in a fenced block | others |
/// | `Generic` | any of these | where nothing is known |
///
/// The style decides which marks begin a call. In every style, JSON at the beginning of an answer that calls a tool is
/// read as a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ToolStyle {
    /// Objects in tags.
    Hermes,
    /// XML-like functions and parameters, typed by the tool's schema.
    Qwen3Coder,
    /// A name and pairs of tags for arguments, typed by the tool's schema.
    Glm,
    /// Python calls in a list, between two marks.
    Lfm2,
    /// Python calls with values in JSON, a line for each, between two marks.
    Olmo,
    /// XML-like functions and parameters, as `Qwen3Coder` between other marks.
    Seed,
    /// A section of calls: a name, and arguments in a fenced block.
    DeepSeekR1,
    /// A section of calls: a name, and arguments.
    DeepSeekV31,
    /// A section of calls: an id that has the name, and arguments.
    Kimi,
    /// A list of objects with `tool_name` and `parameters`, between two marks.
    Cohere,
    /// A name and arguments in a kind of JSON, whose texts stand between marks.
    Gemma4,
    /// Objects with `parameters`.
    Llama3Json,
    /// Python calls in a list.
    Llama3Pythonic,
    /// A list of objects after a mark.
    MistralList,
    /// A mark, a name, an id, and arguments.
    MistralCallId,
    /// A mark, a name, and arguments.
    MistralArgs,
    /// A list of objects between two marks.
    Hunyuan,
    /// A list of objects after a mark.
    Granite,
    /// A list of objects between two marks.
    Phi4,
    /// Messages whose headers name a channel and a recipient.
    Harmony,
    /// JSON alone, or in a fenced block.
    Json,
    /// All known formats.
    Generic,
}

/// How a model writes its reasoning before it answers.
///
/// | style | an answer |
/// |---|---|
/// | `Think` | `<think>..</think>` and the answer |
/// | `MistralThink` | `[THINK]..[/THINK]` and the answer |
/// | `SeedThink` | `<seed:think>..</seed:think>` and the answer |
/// | `CohereThink` | `<\|START_THINKING\|>..<\|END_THINKING\|>` and the answer |
/// | `Gemma4` | `<\|channel>thought..<channel\|>` and the answer |
/// | `Harmony` | `<\|channel\|>analysis<\|message\|>..<\|end\|>` and the answer in a message of its own |
/// | `None` | the answer; what looks like reasoning is text |
///
/// The start mark may be at the end of the prompt already: many templates put it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReasoningStyle {
    /// DeepSeek R1, Qwen3, QwQ and many others.
    Think,
    /// Magistral, Ministral 3.
    MistralThink,
    /// Seed-OSS.
    SeedThink,
    /// Command R7B, Command A Reasoning.
    CohereThink,
    /// Gemma 4.
    Gemma4,
    /// gpt-oss.
    Harmony,
    /// No reasoning.
    None,
}

impl ReasoningStyle {
    /// All styles that have marks.
    pub(crate) const ALL: [Self; 6] =
        [Self::Think, Self::MistralThink, Self::SeedThink, Self::CohereThink, Self::Gemma4, Self::Harmony];

    /// The marks before and after the reasoning.
    pub(crate) fn marks(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Think => Some(("<think>", "</think>")),
            Self::MistralThink => Some(("[THINK]", "[/THINK]")),
            Self::SeedThink => Some(("<seed:think>", "</seed:think>")),
            Self::CohereThink => Some(("<|START_THINKING|>", "<|END_THINKING|>")),
            Self::Gemma4 => Some(("<|channel>thought", "<channel|>")),
            Self::Harmony => Some(("<|channel|>analysis<|message|>", "<|end|>")),
            Self::None => None,
        }
    }

    /// Detects the style of a model; `None` if neither its template nor its vocabulary shows one.
    pub(crate) fn detect(template: &str, tokenizer: &Tokenizer) -> Option<Self> {
        Self::ALL.into_iter().find(|style| {
            style.marks().is_some_and(|(start, end)| {
                // Many templates end their messages with harmony's end mark.
                (template.contains(start) || (*style != Self::Harmony && template.contains(end)))
                    || (tokenizer.id_of(start).is_some() && tokenizer.id_of(end).is_some())
            })
        })
    }
}

/// A mark at which calls begin, and the optional mark after them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) text: &'static str,
    /// The mark at the end, which the model may leave out.
    pub(crate) end: Option<&'static str>,
    /// The marks of calls inside, if each has its own.
    pub(crate) section: Option<&'static Section>,
    /// The mark around texts, if it is no quote.
    pub(crate) quote: Option<&'static str>,
    /// The end of what the calls are in, which may follow their end mark.
    pub(crate) outer: Option<&'static str>,
}

impl Mark {
    const fn new(text: &'static str, end: Option<&'static str>) -> Self {
        Self { text, end, section: None, quote: None, outer: None }
    }

    /// All marks that a call may have.
    pub(crate) fn all(&self) -> impl Iterator<Item = &'static str> {
        let inner = self.section.map(|marks| [marks.begin, marks.separator, marks.end]);
        [Some(self.text), self.end, self.quote].into_iter().flatten().chain(inner.into_iter().flatten())
    }
}

const TOOL_CALL: Mark = Mark::new("<tool_call>", Some("</tool_call>"));
const FUNCTION: Mark = Mark::new("<function=", None);
const MISTRAL: Mark = Mark::new("[TOOL_CALLS]", None);
const PYTHON_TAG: Mark = Mark::new("<|python_tag|>", None);
const LFM2: Mark = Mark::new("<|tool_call_start|>", Some("<|tool_call_end|>"));
const SEED: Mark = Mark::new("<seed:tool_call>", Some("</seed:tool_call>"));
const ACTION: Mark = Mark::new("<|START_ACTION|>", Some("<|END_ACTION|>"));
const DEEPSEEK_CALLS: Mark =
    Mark { section: Some(&DEEPSEEK), ..Mark::new("<｜tool▁calls▁begin｜>", Some("<｜tool▁calls▁end｜>")) };
const KIMI_CALLS: Mark =
    Mark { section: Some(&KIMI), ..Mark::new("<|tool_calls_section_begin|>", Some("<|tool_calls_section_end|>")) };
const GEMMA: Mark = Mark { quote: Some(QUOTE), ..Mark::new("<|tool_call>", Some("<tool_call|>")) };
/// Ai2's template writes values in JSON, vLLM's texts in single quotes; the model is known to put calls into a list as well.
const LINES: Mark = Mark::new("<function_calls>", Some("</function_calls>"));
const TOOL_CALLS: Mark = Mark::new("<tool_calls>", Some("</tool_calls>"));
/// Hunyuan's answers are in tags if it reasons, with and without line breaks.
const ANSWER: Mark = Mark { outer: Some("</answer>"), ..Mark::new("<answer>\n<tool_calls>", Some("</tool_calls>")) };
const ANSWER_IN_LINE: Mark = Mark { text: "<answer><tool_calls>", ..ANSWER };
const PIPED: Mark = Mark::new("<|tool_call|>", Some("<|/tool_call|>"));

impl ToolStyle {
    /// The marks at which calls begin.
    pub(crate) fn marks(self) -> &'static [Mark] {
        match self {
            Self::Hermes | Self::Qwen3Coder => &[TOOL_CALL, FUNCTION],
            Self::Glm => &[TOOL_CALL],
            Self::Lfm2 => &[LFM2],
            Self::Olmo => &[LINES],
            Self::Hunyuan => &[TOOL_CALLS, ANSWER, ANSWER_IN_LINE],
            Self::Seed => &[SEED, FUNCTION],
            Self::DeepSeekR1 | Self::DeepSeekV31 => &[DEEPSEEK_CALLS],
            Self::Kimi => &[KIMI_CALLS],
            Self::Cohere => &[ACTION],
            Self::Gemma4 => &[GEMMA],
            Self::Llama3Json | Self::Llama3Pythonic => &[PYTHON_TAG],
            Self::MistralList | Self::MistralCallId | Self::MistralArgs => &[MISTRAL],
            Self::Granite => &[PIPED, TOOL_CALL],
            Self::Phi4 => &[PIPED],
            Self::Json | Self::Harmony => &[],
            Self::Generic => &[
                TOOL_CALL,
                FUNCTION,
                MISTRAL,
                PYTHON_TAG,
                PIPED,
                LFM2,
                LINES,
                TOOL_CALLS,
                ANSWER,
                ANSWER_IN_LINE,
                SEED,
                DEEPSEEK_CALLS,
                KIMI_CALLS,
                ACTION,
                GEMMA,
            ],
        }
    }

    /// Whether `[f(..)]` begins calls.
    pub(crate) fn is_pythonic(self) -> bool {
        matches!(self, Self::Llama3Json | Self::Llama3Pythonic | Self::Lfm2 | Self::Olmo | Self::Generic)
    }

    /// Whether the model may write the id of a call after its arguments, with this mark before the call.
    pub(crate) fn has_late_ids(self, mark: Option<&Mark>) -> bool {
        match self {
            Self::MistralList | Self::Hunyuan => true,
            Self::Generic => mark.is_some_and(|mark| [MISTRAL, TOOL_CALLS, ANSWER, ANSWER_IN_LINE].contains(mark)),
            _ => false,
        }
    }

    /// Detects the style of a model: from its template, or if that shows none, from its vocabulary.
    pub(crate) fn detect(template: &str, tokenizer: &Tokenizer) -> Self {
        let says = |text: &str| template.contains(text);
        if says("<|channel|>") && says("<|message|>") {
            Self::Harmony
        } else if says("<arg_key>") {
            Self::Glm
        } else if says(DEEPSEEK.begin) {
            if says("```json") { Self::DeepSeekR1 } else { Self::DeepSeekV31 }
        } else if says(KIMI.begin) {
            Self::Kimi
        } else if says(LFM2.text) {
            Self::Lfm2
        } else if says(LINES.text) {
            Self::Olmo
        } else if says(GEMMA.text) {
            Self::Gemma4
        } else if says(ACTION.text) {
            Self::Cohere
        } else if says(SEED.text) {
            Self::Seed
        } else if says("<function=") && says("<parameter=") {
            Self::Qwen3Coder
        } else if says("[TOOL_CALLS]") {
            if says("[CALL_ID]") {
                Self::MistralCallId
            } else if says("[ARGS]") {
                Self::MistralArgs
            } else {
                Self::MistralList
            }
        } else if says("<tool_calls>[") {
            Self::Hunyuan
        } else if says("<|/tool_call|>") || says("<|tool|>") {
            Self::Phi4
        } else if says("<|tool_call|>") || (says("<tool_call>[") && says("<|start_of_role|>")) {
            Self::Granite
        } else if says("<tool_call>") {
            Self::Hermes
        } else if says("<|start_header_id|>") && says("\"parameters\"") {
            Self::Llama3Json
        } else if says("<|start_header_id|>") && says("func_name") {
            Self::Llama3Pythonic
        } else if says("<|python_tag|>") {
            Self::Llama3Json
        } else {
            let has = |text: &str| tokenizer.id_of(text).is_some();
            match () {
                () if has("[CALL_ID]") && has("[ARGS]") => Self::Generic,
                () if has("[TOOL_CALLS]") => Self::MistralList,
                () if has("<|/tool_call|>") => Self::Phi4,
                () if has(LFM2.text) => Self::Lfm2,
                () if has(LINES.text) => Self::Olmo,
                () if has(SEED.text) => Self::Seed,
                () if has(KIMI.begin) => Self::Kimi,
                () if has(ACTION.text) => Self::Cohere,
                () if has(GEMMA.text) && has(QUOTE) => Self::Gemma4,
                () if has(DEEPSEEK.begin) => Self::Generic,
                () if has("<tool_call>") && has("</tool_call>") => Self::Hermes,
                () if has("<|channel|>") && has("<|message|>") && has("<|constrain|>") => Self::Harmony,
                () => Self::Generic,
            }
        }
    }
}
