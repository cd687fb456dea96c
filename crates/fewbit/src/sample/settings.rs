//! The sampling settings, their ranges, and the errors of settings that are out of range.

use serde::{Deserialize, Serialize};

/// A step that narrows the candidates for the next token, or reshapes their probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stage {
    /// [`Sampling::top_n_sigma`].
    TopNSigma,
    /// [`Sampling::top_k`].
    TopK,
    /// [`Sampling::typical_p`].
    Typical,
    /// [`Sampling::top_p`].
    TopP,
    /// [`Sampling::min_p`].
    MinP,
    /// [`Sampling::xtc`].
    Xtc,
    /// [`Sampling::temperature`] and [`Sampling::dynamic_temperature`].
    Temperature,
}

/// The default order of the stages: the same as in llama.cpp.
pub const DEFAULT_ORDER: [Stage; 7] =
    [Stage::TopNSigma, Stage::TopK, Stage::Typical, Stage::TopP, Stage::MinP, Stage::Xtc, Stage::Temperature];

/// A temperature that follows the entropy of the candidates: low where the model is sure, high where it is not.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamicTemperature {
    /// How far the temperature may move below and above [`Sampling::temperature`]; it never goes below 0.
    pub range: f32,
    /// Exponent of the normalized entropy, which gives the position within the range. 1 is linear.
    pub exponent: f32,
}

/// XTC, "exclude top choices": with some probability, removes all tokens that are probable enough, except the least
/// probable of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Xtc {
    /// How often it acts, from 0 (never) to 1 (always).
    pub probability: f32,
    /// The probability from which a token counts as a top choice. Above 0.5 there can be only one, so nothing is
    /// removed.
    pub threshold: f32,
}

/// Mirostat v2: keeps the surprise of the chosen tokens near a target.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mirostat {
    /// Target surprise, in bits. 5 in the paper.
    pub tau: f32,
    /// Learning rate. 0.1 in the paper.
    pub eta: f32,
}

impl Default for Mirostat {
    fn default() -> Self {
        Self { tau: 5.0, eta: 0.1 }
    }
}

/// Penalizes tokens that occurred recently, in whatever context.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Penalties {
    /// Divides positive logits of tokens that occurred and multiplies negative ones; 1 (the default) does nothing.
    pub repeat: f32,
    /// Subtracted once from the logits of tokens that occurred. Default 0.
    pub presence: f32,
    /// Subtracted for each time that a token occurred. Default 0.
    pub frequency: f32,
    /// How many of the latest tokens count, those of the prompt included. Default 64; [`usize::MAX`] counts all.
    pub last_n: usize,
}

impl Default for Penalties {
    fn default() -> Self {
        Self { repeat: 1.0, presence: 0.0, frequency: 0.0, last_n: 64 }
    }
}

impl Penalties {
    pub(super) fn is_off(&self) -> bool {
        self.last_n == 0 || (self.repeat == 1.0 && self.presence == 0.0 && self.frequency == 0.0)
    }
}

/// DRY ("don't repeat yourself"): penalizes a token that would continue a sequence that occurred before. The longer the
/// sequence, the larger the penalty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Dry {
    /// Penalty of the shortest sequence that is penalized; 0 (the default) turns it off.
    pub multiplier: f32,
    /// Factor by which the penalty grows with each further token of the sequence. Default 1.75.
    pub base: f32,
    /// How many tokens may repeat before the next one is penalized. Default 2.
    pub allowed_length: usize,
    /// How many of the latest tokens count, those of the prompt included. Default: all.
    pub last_n: usize,
    /// Texts that end a sequence. Default: newline, colon, quotation mark, asterisk.
    pub breakers: Vec<String>,
}

impl Default for Dry {
    fn default() -> Self {
        Self {
            multiplier: 0.0,
            base: 1.75,
            allowed_length: 2,
            last_n: usize::MAX,
            breakers: ["\n", ":", "\"", "*"].map(str::to_owned).into(),
        }
    }
}

impl Dry {
    /// The defaults with this multiplier; 0.8 is usual.
    pub fn new(multiplier: f32) -> Self {
        Self { multiplier, ..Self::default() }
    }

    pub(super) fn is_off(&self) -> bool {
        self.last_n == 0 || self.multiplier == 0.0
    }
}

/// How the next token is chosen. The [module](super) documents the order in which the settings act.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// Divides the logits: below 1 sharper, above 1 flatter, 0 greedy. Default 0.8.
    pub temperature: f32,
    /// Lets the temperature follow the entropy of the candidates. Default: off.
    pub dynamic_temperature: Option<DynamicTemperature>,
    /// Keeps the k most probable tokens; 0 keeps all. Default 40.
    pub top_k: usize,
    /// Keeps the smallest set of most probable tokens whose probabilities sum to at least this; 1 keeps all. Default
    /// 0.95.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the most probable; 0 keeps all. Default 0.05.
    pub min_p: f32,
    /// Keeps the tokens whose surprise is nearest to the entropy, until their probabilities sum to this; 1 (the
    /// default) keeps all.
    pub typical_p: f32,
    /// Keeps tokens whose logits are at most this many standard deviations below the largest; 0 (the default) keeps
    /// all.
    pub top_n_sigma: f32,
    /// Sometimes removes the most probable tokens. Default: off.
    pub xtc: Option<Xtc>,
    /// Replaces all stages but the temperature. Default: off.
    pub mirostat: Option<Mirostat>,
    /// Penalties for tokens that occurred recently. Default: off.
    pub penalties: Penalties,
    /// Penalties for continuing repeated sequences. Default: off.
    pub dry: Dry,
    /// Added to the logits of these tokens; minus infinity bans a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tokens that are never chosen.
    pub banned: Vec<u32>,
    /// The stages, in the order in which they act; a stage that is left out does not act. Default: [`DEFAULT_ORDER`].
    pub order: Vec<Stage>,
    /// The seed of the random numbers; `None` (the default) draws a new one each time.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            dynamic_temperature: None,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            top_n_sigma: 0.0,
            xtc: None,
            mirostat: None,
            penalties: Penalties::default(),
            dry: Dry::default(),
            logit_bias: Vec::new(),
            banned: Vec::new(),
            order: DEFAULT_ORDER.into(),
            seed: None,
        }
    }
}

impl Sampling {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// The plain distribution of the model: no stage narrows it, and the temperature is 1.
    pub fn plain() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Self::default() }
    }

    /// Whether the most probable token is always chosen.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 && self.dynamic_temperature.is_none_or(|dynamic| dynamic.range == 0.0)
    }

    /// Checks that every setting is in its range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        // Written so that NaN fails each of them.
        let at_least = |value: f32, low: f32| value >= low && value.is_finite();
        if !at_least(self.temperature, 0.0) {
            return Err(SamplingError::Temperature(self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(SamplingError::TopP(self.top_p));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(SamplingError::MinP(self.min_p));
        }
        let setting = |setting, value, ok, range| {
            if ok { Ok(()) } else { Err(SamplingError::Setting { setting, value, range }) }
        };
        if let Some(DynamicTemperature { range, exponent }) = self.dynamic_temperature {
            setting("the range of the dynamic temperature", range, at_least(range, 0.0), "0 or more")?;
            setting("the exponent of the dynamic temperature", exponent, at_least(exponent, 0.0), "0 or more")?;
        }
        let p = self.typical_p;
        setting("typical_p", p, p > 0.0 && p <= 1.0, "above 0 and at most 1 (1 turns it off)")?;
        setting("top_n_sigma", self.top_n_sigma, at_least(self.top_n_sigma, 0.0), "0 (off) or more")?;
        if let Some(Xtc { probability, threshold }) = self.xtc {
            setting("the probability of XTC", probability, (0.0..=1.0).contains(&probability), "from 0 to 1")?;
            setting("the threshold of XTC", threshold, (0.0..=1.0).contains(&threshold), "from 0 to 1")?;
        }
        if let Some(Mirostat { tau, eta }) = self.mirostat {
            setting("tau of Mirostat", tau, at_least(tau, 0.0), "0 or more")?;
            setting("eta of Mirostat", eta, at_least(eta, 0.0), "0 or more")?;
        }
        let Penalties { repeat, presence, frequency, .. } = self.penalties;
        setting("the repeat penalty", repeat, repeat > 0.0 && repeat.is_finite(), "above 0 (1 turns it off)")?;
        setting("the presence penalty", presence, presence.is_finite(), "a finite number")?;
        setting("the frequency penalty", frequency, frequency.is_finite(), "a finite number")?;
        setting("the multiplier of DRY", self.dry.multiplier, at_least(self.dry.multiplier, 0.0), "0 (off) or more")?;
        setting("the base of DRY", self.dry.base, at_least(self.dry.base, 1.0), "1 or more")?;
        match self.logit_bias.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY) {
            Some(&(token, bias)) => Err(SamplingError::Bias { token, bias }),
            None => Ok(()),
        }
    }
}

/// A setting that is out of range, or logits from which no token can be chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// The temperature is negative or not a finite number.
    #[error("temperature is {0}: give 0 (greedy) or a positive number")]
    Temperature(f32),
    /// `top_p` is not in its range.
    #[error("top_p is {0}: give a number above 0 and at most 1 (1 turns it off)")]
    TopP(f32),
    /// `min_p` is not in its range.
    #[error("min_p is {0}: give a number from 0 (off) to 1")]
    MinP(f32),
    /// Another setting is not in its range.
    #[error("{setting} is {value}: give a number that is {range}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// Its value.
        value: f32,
        /// The allowed range.
        range: &'static str,
    },
    /// A bias is NaN or plus infinity.
    #[error("the bias of token {token} is {bias}: give a number, or minus infinity to ban the token")]
    Bias {
        /// The token.
        token: u32,
        /// Its bias.
        bias: f32,
    },
    /// A token with a bias or a ban is not in the vocabulary.
    #[error("token {token} has a bias or is banned, but the vocabulary has only {n_vocab} tokens")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// The model computed NaN or plus infinity.
    #[error("the logit of token {token} is {value}: the model file is damaged, or its arithmetic overflows")]
    NotFinite {
        /// The token.
        token: u32,
        /// Its logit.
        value: f32,
    },
    /// No token is possible: there are no logits, or all are minus infinity.
    #[error("no token is possible: all {n_tokens} logits are minus infinity")]
    NoCandidate {
        /// How many logits there were.
        n_tokens: usize,
    },
    /// A custom sampler chose a token that was not among its candidates.
    #[error("the custom sampler chose token {token}, which is not among the candidates")]
    NotACandidate {
        /// The token.
        token: u32,
    },
}
