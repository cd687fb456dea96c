//! The settings that one prompt and a conversation share, and the builder methods for them.

use std::time::{Duration, Instant};

use fewbit_model::Lora;
use serde_json::{Map, Value};

use crate::model::Model;
use crate::sample::{CustomFactory, Sampling};
use crate::scheduler::{CancelToken, Speculation};

/// Settings of a generation.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) sampling: Sampling,
    /// `None`: as far as the context reaches.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stop: Vec<String>,
    pub(crate) ignore_eos: bool,
    pub(crate) deadline: Option<Instant>,
    /// From the start of the generation.
    pub(crate) timeout: Option<Duration>,
    pub(crate) cancel: Option<CancelToken>,
    pub(crate) share_prefix: bool,
    /// Each once.
    pub(crate) loras: Vec<(Lora, f32)>,
    pub(crate) speculation: Speculation,
    pub(crate) draft: Option<Model>,
    /// How many alternatives to report beside the log probability of each token; `None` reports nothing.
    pub(crate) logprobs: Option<usize>,
    pub(crate) custom: Option<CustomFactory>,
    /// Variables of the chat template.
    pub(crate) template_vars: Map<String, Value>,
    /// Control tokens that are shown in the text.
    pub(crate) shown: Vec<u32>,
    #[cfg(feature = "constraints")]
    pub(crate) constraint: Option<crate::constraints::Constraint>,
}

impl Options {
    /// The settings that a model recommends.
    pub(crate) fn new(model: &Model) -> Self {
        Self {
            sampling: model.recommended_sampling(),
            loras: model.loras().iter().map(|(lora, scale)| (lora.clone(), scale)).collect(),
            max_tokens: None,
            stop: Vec::new(),
            ignore_eos: false,
            deadline: None,
            timeout: None,
            cancel: None,
            share_prefix: true,
            speculation: Speculation::default(),
            draft: None,
            logprobs: None,
            custom: None,
            template_vars: model.template_vars().clone(),
            shown: Vec::new(),
            #[cfg(feature = "constraints")]
            constraint: None,
        }
    }
}

/// Writes the setters of [`Options`] for a builder with a field `options`.
macro_rules! option_setters {
    () => {
        /// Ends after so many tokens. Without it, a generation goes on until the model ends it or the
        /// context is full.
        pub fn max_tokens(mut self, n: usize) -> Self {
            self.options.max_tokens = Some(n);
            self
        }

        /// See [`Sampling::temperature`](crate::Sampling::temperature); 0 is greedy.
        pub fn temperature(mut self, temperature: f32) -> Self {
            self.options.sampling.temperature = temperature;
            self
        }

        /// See [`Sampling::top_k`](crate::Sampling::top_k); 0 turns it off.
        pub fn top_k(mut self, k: usize) -> Self {
            self.options.sampling.top_k = k;
            self
        }

        /// See [`Sampling::top_p`](crate::Sampling::top_p); 1 turns it off.
        pub fn top_p(mut self, p: f32) -> Self {
            self.options.sampling.top_p = p;
            self
        }

        /// See [`Sampling::min_p`](crate::Sampling::min_p); 0 turns it off.
        pub fn min_p(mut self, p: f32) -> Self {
            self.options.sampling.min_p = p;
            self
        }

        /// See [`Sampling::typical_p`](crate::Sampling::typical_p); 1 turns it off.
        pub fn typical_p(mut self, p: f32) -> Self {
            self.options.sampling.typical_p = p;
            self
        }

        /// See [`Sampling::top_n_sigma`](crate::Sampling::top_n_sigma); 0 turns it off.
        pub fn top_n_sigma(mut self, n: f32) -> Self {
            self.options.sampling.top_n_sigma = n;
            self
        }

        /// See [`Sampling::xtc`](crate::Sampling::xtc); a probability of 0 turns it off.
        pub fn xtc(mut self, probability: f32, threshold: f32) -> Self {
            self.options.sampling.xtc = Some(crate::sample::Xtc { probability, threshold });
            self
        }

        /// See [`Sampling::dynamic_temperature`](crate::Sampling::dynamic_temperature); a range of 0 turns it off.
        pub fn dynamic_temperature(mut self, range: f32, exponent: f32) -> Self {
            self.options.sampling.dynamic_temperature = Some(crate::sample::DynamicTemperature { range, exponent });
            self
        }

        /// See [`Sampling::mirostat`](crate::Sampling::mirostat).
        pub fn mirostat(mut self, tau: f32, eta: f32) -> Self {
            self.options.sampling.mirostat = Some(crate::sample::Mirostat { tau, eta });
            self
        }

        /// See [`Penalties::repeat`](crate::sample::Penalties::repeat); 1 turns it off.
        pub fn repeat_penalty(mut self, penalty: f32) -> Self {
            self.options.sampling.penalties.repeat = penalty;
            self
        }

        /// See [`Penalties::presence`](crate::sample::Penalties::presence); 0 turns it off.
        pub fn presence_penalty(mut self, penalty: f32) -> Self {
            self.options.sampling.penalties.presence = penalty;
            self
        }

        /// See [`Penalties::frequency`](crate::sample::Penalties::frequency); 0 turns it off.
        pub fn frequency_penalty(mut self, penalty: f32) -> Self {
            self.options.sampling.penalties.frequency = penalty;
            self
        }

        /// See [`Penalties::last_n`](crate::sample::Penalties::last_n).
        pub fn penalty_last_n(mut self, n: usize) -> Self {
            self.options.sampling.penalties.last_n = n;
            self
        }

        /// See [`Dry`](crate::sample::Dry).
        pub fn dry(mut self, dry: crate::sample::Dry) -> Self {
            self.options.sampling.dry = dry;
            self
        }

        /// Adds to the logit of a token. Can be called several times.
        pub fn logit_bias(mut self, token: u32, bias: f32) -> Self {
            self.options.sampling.logit_bias.push((token, bias));
            self
        }

        /// Tokens that never come. Can be called several times.
        pub fn ban(mut self, tokens: impl IntoIterator<Item = u32>) -> Self {
            self.options.sampling.banned.extend(tokens);
            self
        }

        /// The stages of sampling, in the order in which they act: see
        /// [`Sampling::order`](crate::Sampling::order).
        pub fn stages(mut self, order: impl IntoIterator<Item = crate::sample::Stage>) -> Self {
            self.options.sampling.order = order.into_iter().collect();
            self
        }

        /// Reports the log probability of each token, and of the `n_top` most probable tokens beside it. They are
        /// those of the model, before anything of sampling acts on them.
        pub fn logprobs(mut self, n_top: usize) -> Self {
            self.options.logprobs = Some(n_top);
            self
        }

        /// Lets code of the caller's take part in sampling; `make` is called for each generation.
        pub fn custom_sampler<S: crate::sample::CustomSampler + 'static>(
            mut self,
            make: impl Fn() -> S + Send + Sync + 'static,
        ) -> Self {
            self.options.custom = Some(crate::sample::CustomFactory::new(make));
            self
        }

        /// Says what the text must be. The last constraint counts.
        #[cfg(feature = "constraints")]
        pub fn constraint(mut self, constraint: crate::Constraint) -> Self {
            self.options.constraint = Some(constraint);
            self
        }

        /// The text is JSON that a schema describes: see
        /// [`Constraint::json_schema`](crate::Constraint::json_schema).
        #[cfg(feature = "constraints")]
        pub fn json_schema(self, schema: impl Into<serde_json::Value>) -> Self {
            self.constraint(crate::Constraint::json_schema(schema))
        }

        /// The text is one that a regular expression matches: see
        /// [`Constraint::regex`](crate::Constraint::regex).
        #[cfg(feature = "constraints")]
        pub fn regex(self, pattern: impl Into<String>) -> Self {
            self.constraint(crate::Constraint::regex(pattern))
        }

        /// The text is one of these.
        #[cfg(feature = "constraints")]
        pub fn choice<S: Into<String>>(self, texts: impl IntoIterator<Item = S>) -> Self {
            self.constraint(crate::Constraint::choice(texts))
        }

        /// Makes the random numbers repeat. Without a seed each generation draws one, and
        /// [`Completion::seed`](crate::Completion::seed) tells which.
        pub fn seed(mut self, seed: u64) -> Self {
            self.options.sampling.seed = Some(seed);
            self
        }

        /// The sampling settings as they are now.
        pub fn current_sampling(&self) -> &crate::Sampling {
            &self.options.sampling
        }

        /// All sampling settings at once.
        pub fn sampling(mut self, sampling: crate::Sampling) -> Self {
            self.options.sampling = sampling;
            self
        }

        /// Ends where this text would come; it may span tokens, and no part of it is emitted. Can be
        /// called several times.
        pub fn stop(mut self, text: impl Into<String>) -> Self {
            self.options.stop.push(text.into());
            self
        }

        /// Sets a variable of the model's chat template, such as `enable_thinking` or `reasoning_effort`: any JSON
        /// value. Can be called several times. Which variables a template knows, its source says. Without a template
        /// it has no effect.
        pub fn template_var(mut self, name: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
            self.options.template_vars.insert(name.into(), value.into());
            self
        }

        /// Ends at this time, with what there is by then and
        /// [`FinishReason::Timeout`](crate::FinishReason::Timeout).
        pub fn deadline(mut self, at: std::time::Instant) -> Self {
            self.options.deadline = Some(at);
            self
        }

        /// Ends so long after its start, the time in the queue included; see [`deadline`](Self::deadline).
        pub fn timeout(mut self, time: std::time::Duration) -> Self {
            self.options.timeout = Some(time);
            self
        }

        /// Lets this token end it from elsewhere.
        pub fn cancel_token(mut self, token: &$crate::CancelToken) -> Self {
            self.options.cancel = Some(token.clone());
            self
        }

        /// Whether prompts that begin alike may be computed once (the default). The result is the same, but how
        /// long it takes tells whether another request began like this one.
        pub fn share_prefix(mut self, yes: bool) -> Self {
            self.options.share_prefix = yes;
            self
        }

        /// Applies a LoRA adapter, which was loaded for this model ([`Model::load_lora`](crate::Model::load_lora)),
        /// with this scale: beside those that the model was loaded with, or, of one of these, in place of its scale
        /// there. 1 is what it was trained for, 0 turns it off.
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

        /// Whether tokens are computed that are only expected, so that a step may bring several. The result is
        /// the same; by default it is done where it is expected to save time, as in summaries and edits, with what
        /// came up in the text before.
        pub fn speculation(mut self, speculation: $crate::Speculation) -> Self {
            self.options.speculation = speculation;
            self
        }

        /// A smaller model that says what to expect, instead of the text before. Its vocabulary must be the same.
        /// Its keys and values count within what this model's may take, and within what its own may.
        pub fn draft(mut self, model: &$crate::Model) -> Self {
            self.options.draft = Some(model.clone());
            self
        }

        /// Goes on after a token that ends a text, to the limit of tokens: for measurements.
        pub fn ignore_eos(mut self, yes: bool) -> Self {
            self.options.ignore_eos = yes;
            self
        }
    };
}

pub(crate) use option_setters;
