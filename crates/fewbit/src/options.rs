//! The options of a generation, shared by single prompts and conversations.
//!
//! Those that are plain data are [`GenerateOptions`]: they can be serialized, deserialized, and merged. [`Options`]
//! adds those that are not data: handles of models and adapters, and code of the caller. The macros below write the
//! setters of the builders.

use std::time::{Duration, Instant};

use fewbit_model::Lora;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::Model;
use crate::sample::{CustomFactory, Dry, DynamicTemperature, Mirostat, Penalties, Sampling, Stage, Xtc};
use crate::scheduler::{CancelToken, Speculation};
use crate::stop::StopWhen;
use crate::tools::ToolChoice;

/// Options of a generation. An option that is not set has the value recommended for the model, or else the default.
///
/// They are plain data: with `serde` they are an object with these fields, all of them optional. Each field has a
/// setter, so calls can be chained.
///
/// ```
/// use fewbit::GenerateOptions;
///
/// let house = GenerateOptions::new().temperature(0.3).repeat_penalty(1.1).stop("\n\n");
/// let text = serde_json::to_string(&house).unwrap();
/// assert_eq!(serde_json::from_str::<GenerateOptions>(&text).unwrap(), house);
///
/// let request: GenerateOptions = serde_json::from_str(r#"{ "temperature": 0, "max_tokens": 20 }"#).unwrap();
/// let both = house.overlaid(request);
/// assert_eq!((both.temperature, both.repeat_penalty, both.max_tokens), (Some(0.0), Some(1.1), Some(20)));
/// // Pass them to `model.generate(prompt).options(both)`, to a conversation, or to one of its messages.
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// The most tokens to generate. Without it, a generation ends when the model ends it or when the context is full.
    pub max_tokens: Option<usize>,
    /// See [`Sampling::temperature`]; 0 is greedy.
    pub temperature: Option<f32>,
    /// See [`Sampling::top_k`]; 0 turns it off.
    pub top_k: Option<usize>,
    /// See [`Sampling::top_p`]; 1 turns it off.
    pub top_p: Option<f32>,
    /// See [`Sampling::min_p`]; 0 turns it off.
    pub min_p: Option<f32>,
    /// See [`Sampling::typical_p`]; 1 turns it off.
    pub typical_p: Option<f32>,
    /// See [`Sampling::top_n_sigma`]; 0 turns it off.
    pub top_n_sigma: Option<f32>,
    /// See [`Sampling::xtc`]; a probability of 0 turns it off.
    pub xtc: Option<Xtc>,
    /// See [`Sampling::dynamic_temperature`]; a range of 0 turns it off.
    pub dynamic_temperature: Option<DynamicTemperature>,
    /// See [`Sampling::mirostat`].
    pub mirostat: Option<Mirostat>,
    /// See [`Penalties::repeat`]; 1 turns it off.
    pub repeat_penalty: Option<f32>,
    /// See [`Penalties::presence`]; 0 turns it off.
    pub presence_penalty: Option<f32>,
    /// See [`Penalties::frequency`]; 0 turns it off.
    pub frequency_penalty: Option<f32>,
    /// See [`Penalties::last_n`].
    pub penalty_last_n: Option<usize>,
    /// See [`Dry`].
    pub dry: Option<Dry>,
    /// Added to the logits of these tokens. Minus infinity bans a token; it is `null` in JSON.
    #[serde(with = "biases")]
    pub logit_bias: Vec<(u32, f32)>,
    /// Tokens that are never generated.
    pub banned: Vec<u32>,
    /// The stages of sampling, in the order in which they apply: see [`Sampling::order`].
    pub stages: Option<Vec<Stage>>,
    /// The seed of the random numbers, which makes a generation repeatable. Without one, each generation draws a seed,
    /// and [`Completion::seed`](crate::Completion::seed) returns it.
    pub seed: Option<u64>,
    /// Ends the generation before any of these texts. A stop string may span tokens, and no part of it is emitted.
    pub stop: Vec<String>,
    /// Ends the generation before any of these tokens; the token is not part of the text. They apply with
    /// [`ignore_eos`](field@Self::ignore_eos) too.
    pub stop_tokens: Vec<u32>,
    /// Returns the log probability of each token, and of this many of the most probable tokens at its position. They
    /// are the model's own, before any sampling setting applies.
    pub logprobs: Option<usize>,
    /// The time limit, counted from the start of the request, waiting included. When it is over, the generation ends
    /// with the text so far and [`FinishReason::Timeout`](crate::FinishReason::Timeout). A number of seconds with
    /// `serde`.
    #[serde(with = "seconds")]
    pub timeout: Option<Duration>,
    /// Variables of the model's chat template, such as `enable_thinking` or `reasoning_effort`: any JSON values. The
    /// source of the template shows which variables it uses. They have no effect on prompts without a template.
    pub template_vars: Map<String, Value>,
    /// Whether an answer must call tools: see [`ToolChoice`]. By default the model decides.
    pub tool_choice: Option<ToolChoice>,
    /// Whether an answer may have several tool calls (the default). If not, it ends after the first.
    pub parallel_tool_calls: Option<bool>,
    /// The most tokens of reasoning; after that, fewbit ends the reasoning for the model. 0 turns reasoning off.
    /// Reasoning is recognised where a chat template is used; elsewhere this has no effect.
    pub reasoning_budget: Option<usize>,
    /// Whether the keys and values of a beginning that prompts have in common may be shared (the default). The result
    /// is the same, but the time it takes reveals whether another request began with the same tokens.
    pub share_prefix: Option<bool>,
    /// Whether likely next tokens are drafted, so that one step may give several tokens. The result is the same. By
    /// default, fewbit drafts from the text so far where it expects to save time, as in summaries and edits; or with the
    /// model's own layer for that, if it was loaded with it ([`ModelBuilder::mtp`](crate::ModelBuilder::mtp)).
    pub speculation: Option<Speculation>,
    /// Continues after an end-of-text token, up to `max_tokens`: for measurements.
    pub ignore_eos: Option<bool>,
    /// The constraint that the text must satisfy.
    #[cfg(feature = "constraints")]
    pub constraint: Option<crate::Constraint>,
}

/// Methods that set a field of the same name.
macro_rules! fields {
    ($($name:ident: $type:ty),* $(,)?) => {$(
        #[doc = concat!("Sets [`", stringify!($name), "`](field@Self::", stringify!($name), ").")]
        #[must_use]
        pub fn $name(mut self, $name: $type) -> Self {
            self.$name = Some($name);
            self
        }
    )*};
}

impl GenerateOptions {
    /// Options of which none is set.
    pub fn new() -> Self {
        Self::default()
    }

    fields! {
        max_tokens: usize, temperature: f32, top_k: usize, top_p: f32, min_p: f32, typical_p: f32, top_n_sigma: f32,
        mirostat: Mirostat, repeat_penalty: f32, presence_penalty: f32, frequency_penalty: f32, penalty_last_n: usize,
        dry: Dry, seed: u64, logprobs: usize, timeout: Duration, share_prefix: bool, speculation: Speculation,
        ignore_eos: bool, xtc: Xtc, dynamic_temperature: DynamicTemperature, tool_choice: ToolChoice,
        parallel_tool_calls: bool, reasoning_budget: usize,
    }

    #[cfg(feature = "constraints")]
    fields! { constraint: crate::Constraint }

    /// Adds to [`logit_bias`](field@Self::logit_bias).
    #[must_use]
    pub fn logit_bias(mut self, token: u32, bias: f32) -> Self {
        self.logit_bias.push((token, bias));
        self
    }

    /// Adds to [`banned`](field@Self::banned).
    #[must_use]
    pub fn ban(mut self, tokens: impl IntoIterator<Item = u32>) -> Self {
        self.banned.extend(tokens);
        self
    }

    /// Sets [`stages`](field@Self::stages).
    #[must_use]
    pub fn stages(mut self, order: impl IntoIterator<Item = Stage>) -> Self {
        self.stages = Some(order.into_iter().collect());
        self
    }

    /// Adds to [`stop`](field@Self::stop).
    #[must_use]
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(text.into());
        self
    }

    /// Adds to [`stop_tokens`](field@Self::stop_tokens).
    #[must_use]
    pub fn stop_tokens(mut self, tokens: impl IntoIterator<Item = u32>) -> Self {
        self.stop_tokens.extend(tokens);
        self
    }

    /// Sets one of [`template_vars`](field@Self::template_vars).
    #[must_use]
    pub fn template_var(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.template_vars.insert(name.into(), value.into());
        self
    }

    /// Sets all sampling settings to those of `sampling`; its biases and bans are added.
    #[must_use]
    pub fn sampling(mut self, sampling: Sampling) -> Self {
        let Sampling { temperature, dynamic_temperature, top_k, top_p, min_p, typical_p, top_n_sigma, .. } = sampling;
        let Sampling { xtc, mirostat, penalties, dry, logit_bias, banned, order, seed, .. } = sampling;
        let Penalties { repeat, presence, frequency, last_n } = penalties;
        self.logit_bias.extend(logit_bias);
        self.banned.extend(banned);
        Self {
            temperature: Some(temperature),
            // Off, where the model may recommend something.
            dynamic_temperature: dynamic_temperature.or(Some(DynamicTemperature { range: 0.0, exponent: 1.0 })),
            top_k: Some(top_k),
            top_p: Some(top_p),
            min_p: Some(min_p),
            typical_p: Some(typical_p),
            top_n_sigma: Some(top_n_sigma),
            xtc: xtc.or(Some(Xtc { probability: 0.0, threshold: 0.1 })),
            mirostat,
            repeat_penalty: Some(repeat),
            presence_penalty: Some(presence),
            frequency_penalty: Some(frequency),
            penalty_last_n: Some(last_n),
            dry: Some(dry),
            stages: Some(order),
            seed,
            ..self
        }
    }

    /// These options, overridden by those that are set in `over`. Lists are appended, and template variables are
    /// merged.
    #[must_use]
    pub fn overlaid(mut self, over: Self) -> Self {
        macro_rules! take {
            ($($field:ident),* $(,)?) => {$( self.$field = over.$field.or(self.$field); )*};
        }
        take!(
            max_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            typical_p,
            top_n_sigma,
            xtc,
            dynamic_temperature,
            mirostat,
            repeat_penalty,
            presence_penalty,
            frequency_penalty,
            penalty_last_n,
            dry,
            stages,
            seed,
            logprobs,
            timeout,
            share_prefix,
            speculation,
            ignore_eos,
            tool_choice,
            parallel_tool_calls,
            reasoning_budget,
        );
        #[cfg(feature = "constraints")]
        take!(constraint);
        self.logit_bias.extend(over.logit_bias);
        self.banned.extend(over.banned);
        self.stop.extend(over.stop);
        self.stop_tokens.extend(over.stop_tokens);
        self.template_vars.extend(over.template_vars);
        self
    }

    /// `base`, overridden by the sampling settings that are set here; biases and bans are added.
    pub fn sampling_over(&self, base: Sampling) -> Sampling {
        let mut logit_bias = base.logit_bias;
        logit_bias.extend_from_slice(&self.logit_bias);
        let mut banned = base.banned;
        banned.extend_from_slice(&self.banned);
        Sampling {
            temperature: self.temperature.unwrap_or(base.temperature),
            dynamic_temperature: self.dynamic_temperature.or(base.dynamic_temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            typical_p: self.typical_p.unwrap_or(base.typical_p),
            top_n_sigma: self.top_n_sigma.unwrap_or(base.top_n_sigma),
            xtc: self.xtc.or(base.xtc),
            mirostat: self.mirostat.or(base.mirostat),
            penalties: Penalties {
                repeat: self.repeat_penalty.unwrap_or(base.penalties.repeat),
                presence: self.presence_penalty.unwrap_or(base.penalties.presence),
                frequency: self.frequency_penalty.unwrap_or(base.penalties.frequency),
                last_n: self.penalty_last_n.unwrap_or(base.penalties.last_n),
            },
            dry: self.dry.clone().unwrap_or(base.dry),
            logit_bias,
            banned,
            order: self.stages.clone().unwrap_or(base.order),
            seed: self.seed.or(base.seed),
        }
    }
}

impl From<Sampling> for GenerateOptions {
    fn from(sampling: Sampling) -> Self {
        Self::new().sampling(sampling)
    }
}

/// Biases with minus infinity as `null`, because JSON has no infinity.
mod biases {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(biases: &[(u32, f32)], serializer: S) -> Result<S::Ok, S::Error> {
        let some = |&(token, bias): &(u32, f32)| (token, Some(bias).filter(|bias| *bias != f32::NEG_INFINITY));
        biases.iter().map(some).collect::<Vec<_>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(u32, f32)>, D::Error> {
        let biases = Vec::<(u32, Option<f32>)>::deserialize(deserializer)?;
        Ok(biases.into_iter().map(|(token, bias)| (token, bias.unwrap_or(f32::NEG_INFINITY))).collect())
    }
}

/// A duration as a number of seconds.
mod seconds {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        time.map(|time| time.as_secs_f64()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let seconds = Option::<f64>::deserialize(deserializer)?;
        seconds.map(Duration::try_from_secs_f64).transpose().map_err(D::Error::custom)
    }
}

/// All settings of a generation.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The sampling settings recommended for the model.
    recommended: Sampling,
    pub(crate) data: GenerateOptions,
    pub(crate) deadline: Option<Instant>,
    pub(crate) cancel: Option<CancelToken>,
    /// Each adapter at most once.
    pub(crate) loras: Vec<(Lora, f32)>,
    pub(crate) draft: Option<Model>,
    pub(crate) custom: Option<CustomFactory>,
    pub(crate) stop_when: Option<StopWhen>,
    /// Control tokens whose text is shown in the output.
    pub(crate) shown: Vec<u32>,
}

impl Options {
    /// The default options of a model.
    pub(crate) fn new(model: &Model) -> Self {
        Self {
            recommended: model.recommended_sampling(),
            data: GenerateOptions { template_vars: model.template_vars().clone(), ..GenerateOptions::default() },
            loras: model.loras().iter().map(|(lora, scale)| (lora.clone(), scale)).collect(),
            deadline: None,
            cancel: None,
            draft: None,
            custom: None,
            stop_when: None,
            shown: Vec::new(),
        }
    }

    pub(crate) fn sampling(&self) -> Sampling {
        self.data.sampling_over(self.recommended.clone())
    }

    pub(crate) fn overlay(&mut self, over: GenerateOptions) {
        self.data = std::mem::take(&mut self.data).overlaid(over);
    }
}

/// Setters for single [`GenerateOptions`] of a builder.
macro_rules! option_shortcuts {
    ($($name:ident($($argument:ident: $type:ty),*)),* $(,)?) => {$(
        #[doc = concat!(
            "Sets one of the [options](Self::options): see [`GenerateOptions`](crate::GenerateOptions::",
            stringify!($name), ")."
        )]
        pub fn $name(mut self, $($argument: $type),*) -> Self {
            self.options.data = std::mem::take(&mut self.options.data).$name($($argument),*);
            self
        }
    )*};
}

/// Setters for all [`Options`] of a builder with a field `options`.
macro_rules! option_setters {
    () => {
        /// Sets the options that are set in `options` and keeps the others. Lists are appended, template variables
        /// merged.
        pub fn options(mut self, options: $crate::GenerateOptions) -> Self {
            self.options.overlay(options);
            self
        }

        $crate::options::option_shortcuts! {
            max_tokens(n: usize),
            temperature(temperature: f32),
            top_k(k: usize),
            top_p(p: f32),
            min_p(p: f32),
            seed(seed: u64),
            stop(text: impl Into<String>),
            stop_tokens(tokens: impl IntoIterator<Item = u32>),
            logprobs(n_top: usize),
            timeout(time: std::time::Duration),
            template_var(name: impl Into<String>, value: impl Into<serde_json::Value>),
            speculation(speculation: $crate::Speculation),
            ignore_eos(yes: bool),
            reasoning_budget(n_tokens: usize),
        }

        #[cfg(feature = "constraints")]
        $crate::options::option_shortcuts! { constraint(constraint: $crate::Constraint) }

        /// The sampling settings in use: those recommended for the model, overridden by the options set so far.
        pub fn current_sampling(&self) -> $crate::Sampling {
            self.options.sampling()
        }

        /// Adds a sampler of your own; `make` is called for each generation.
        pub fn custom_sampler<S: $crate::sample::CustomSampler + 'static>(
            mut self,
            make: impl Fn() -> S + Send + Sync + 'static,
        ) -> Self {
            self.options.custom = Some($crate::sample::CustomFactory::new(make));
            self
        }

        /// Ends the generation as soon as `is_enough` returns true, with the text so far and
        /// [`FinishReason::StopCondition`](crate::FinishReason::StopCondition). It is called after each token, on a
        /// thread of the engine, so slow code in it delays other requests. If it panics, only this generation fails.
        ///
        /// ```no_run
        /// # fn main() -> Result<(), fewbit::Error> {
        /// # let model = fewbit::Model::load("smollm2-135m-instruct")?;
        /// // Three sentences.
        /// let request = model.generate("Once upon a time").stop_when(|so_far| so_far.text.matches('.').count() == 3);
        /// println!("{}", request.run()?);
        /// # Ok(()) }
        /// ```
        pub fn stop_when(mut self, is_enough: impl Fn(&$crate::SoFar<'_>) -> bool + Send + Sync + 'static) -> Self {
            self.options.stop_when = Some($crate::stop::StopWhen::new(is_enough));
            self
        }

        /// Ends the generation at this time, with the text so far and
        /// [`FinishReason::Timeout`](crate::FinishReason::Timeout).
        pub fn deadline(mut self, at: std::time::Instant) -> Self {
            self.options.deadline = Some(at);
            self
        }

        /// Ends the generation when `token` is cancelled, from any thread.
        pub fn cancel_token(mut self, token: &$crate::CancelToken) -> Self {
            self.options.cancel = Some(token.clone());
            self
        }

        /// Applies a LoRA adapter, loaded for this model with [`Model::load_lora`](crate::Model::load_lora), with this
        /// scale. It is added to the adapters that the model was loaded with; for one of those, it replaces the scale.
        /// A scale of 1 is what the adapter was trained for, 0 turns it off.
        pub fn lora(mut self, lora: &$crate::Lora, scale: f32) -> Self {
            self.options.loras.retain(|(known, _)| known != lora);
            self.options.loras.push((lora.clone(), scale));
            self
        }

        /// Applies no adapter, not even those that the model was loaded with.
        pub fn without_loras(mut self) -> Self {
            self.options.loras.clear();
            self
        }

        /// Drafts the next tokens with a smaller model, instead of from the text so far or by this model itself. The draft model must have the
        /// same vocabulary. Its KV cache counts towards this model's limit and towards its own.
        pub fn draft(mut self, model: &$crate::Model) -> Self {
            self.options.draft = Some(model.clone());
            self
        }
    };
}

pub(crate) use {option_setters, option_shortcuts};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_round_trip_through_json() {
        let all = GenerateOptions::from(Sampling::plain())
            .max_tokens(1)
            .stages([Stage::TopK, Stage::Temperature])
            .logit_bias(3, f32::NEG_INFINITY)
            .logit_bias(4, -1.5)
            .ban([5])
            .stop("x")
            .stop_tokens([6, 7])
            .timeout(Duration::from_millis(1500))
            .template_var("enable_thinking", false)
            .mirostat(Mirostat::default())
            .tool_choice(ToolChoice::Named("f".to_owned()))
            .parallel_tool_calls(false)
            .reasoning_budget(9)
            .speculation(Speculation::Off);
        let value = serde_json::to_value(&all).unwrap();
        assert_eq!((&value["timeout"], &value["tool_choice"]), (&json!(1.5), &json!({ "named": "f" })));
        assert_eq!(value["stages"], json!(["top_k", "temperature"]));
        assert_eq!(value["logit_bias"], json!([[3, null], [4, -1.5]]));
        assert_eq!(serde_json::from_value::<GenerateOptions>(value).unwrap(), all);
        assert_eq!(serde_json::from_str::<GenerateOptions>("{}").unwrap(), GenerateOptions::default());
    }

    #[test]
    fn unknown_fields_and_invalid_timeouts_are_rejected() {
        let read = |value: Value| serde_json::from_value::<GenerateOptions>(value).map_err(|error| error.to_string());
        assert!(read(json!({ "temprature": 1 })).unwrap_err().contains("temprature"));
        assert!(read(json!({ "timeout": -1 })).is_err());
        assert!(read(json!({ "timeout": 1e300 })).is_err());
        assert!(read(json!({ "stages": ["heat"] })).unwrap_err().contains("heat"));
    }

    #[test]
    fn sampling_replaces_all_recommended_settings() {
        let recommended = Sampling {
            temperature: 0.2,
            dynamic_temperature: Some(DynamicTemperature { range: 1.0, exponent: 1.0 }),
            ..Sampling::default()
        };
        assert_eq!(GenerateOptions::new().sampling_over(recommended.clone()), recommended);
        let asked = GenerateOptions::from(Sampling::greedy()).sampling_over(recommended);
        assert!(asked.is_greedy());
        assert_eq!((asked.top_k, asked.order), (40, Sampling::default().order));
    }

    #[cfg(feature = "constraints")]
    #[test]
    fn constraints_round_trip_through_json() {
        use crate::Constraint;
        for constraint in [
            Constraint::json_schema(json!({ "type": "integer" })).compact(),
            Constraint::json_schema_str(
                r#"{ "enum": [1e2, -0.50, 123456789012345678901234567890, "a\"\u0001é", {}, [], [null, true]] }"#,
            )
            .unwrap(),
            Constraint::regex("a+"),
            Constraint::lark("start: \"a\""),
            Constraint::choice(["a", "b"]),
        ] {
            let options = GenerateOptions::new().constraint(constraint);
            let value = serde_json::to_value(&options).unwrap();
            assert_eq!(serde_json::from_value::<GenerateOptions>(value).unwrap(), options);
        }
    }
}
