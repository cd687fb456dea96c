//! The settings of sampling, their ranges, and what is wrong with settings out of range.

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

/// The order in which the stages act if nothing else is asked for: llama.cpp's.
pub const DEFAULT_ORDER: [Stage; 7] =
    [Stage::TopNSigma, Stage::TopK, Stage::Typical, Stage::TopP, Stage::MinP, Stage::Xtc, Stage::Temperature];

/// A temperature that follows the entropy of what is possible: low where the model is sure, high where it is not.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamicTemperature {
    /// The temperature moves this far below and above [`Sampling::temperature`], not below 0.
    pub range: f32,
    /// Power of the normalized entropy that says where in the range. 1 is linear.
    pub exponent: f32,
}

/// Exclude top choices: with some probability, all tokens that are probable enough go, but for the least probable
/// of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Xtc {
    /// How often it acts.
    pub probability: f32,
    /// How probable a token must be to count as a top choice. Above 0.5 there can be no two of them.
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

/// Penalizes what occurred lately, whatever it was part of.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Penalties {
    /// Divides positive logits of tokens that occurred and multiplies negative ones; 1 (the default) does nothing.
    pub repeat: f32,
    /// Subtracted once from the logits of tokens that occurred. Default 0.
    pub presence: f32,
    /// Subtracted for each time that a token occurred. Default 0.
    pub frequency: f32,
    /// How many of the last tokens count, those of the prompt included. Default 64; [`usize::MAX`] counts all.
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

/// DRY ("don't repeat yourself"): penalizes a token that would go on with a sequence that occurred before, the more
/// the longer the sequence is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Dry {
    /// Penalty of the shortest sequence that is penalized; 0 (the default) turns it off.
    pub multiplier: f32,
    /// The penalty of one token more, as a factor. Default 1.75.
    pub base: f32,
    /// How many tokens may repeat without a penalty for the next. Default 2.
    pub allowed_length: usize,
    /// How many of the last tokens count, those of the prompt included. Default: all.
    pub last_n: usize,
    /// Texts over which no sequence reaches. Default: newline, colon, quotation mark, asterisk.
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

/// How the next token is chosen. The [module](super) says in which order the settings act.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// Divides the logits: below 1 sharper, above 1 flatter, 0 greedy. Default 0.8.
    pub temperature: f32,
    /// Lets the temperature follow the entropy. Default: it does not.
    pub dynamic_temperature: Option<DynamicTemperature>,
    /// Keeps the k most probable tokens; 0 keeps all. Default 40.
    pub top_k: usize,
    /// Keeps the most probable tokens that together have this probability; 1 keeps all. Default 0.95.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the most probable; 0 keeps all. Default 0.05.
    pub min_p: f32,
    /// Keeps the tokens whose surprise is nearest to what is expected, that together have this probability;
    /// 1 (the default) keeps all.
    pub typical_p: f32,
    /// Keeps tokens whose logits are at most so many standard deviations below the largest; 0 (the default) keeps
    /// all.
    pub top_n_sigma: f32,
    /// Now and then excludes the most probable tokens. Default: never.
    pub xtc: Option<Xtc>,
    /// Takes the place of all stages but the temperature. Default: it does not.
    pub mirostat: Option<Mirostat>,
    /// Penalties for tokens that occurred. Default: none.
    pub penalties: Penalties,
    /// Penalties for sequences that occurred. Default: none.
    pub dry: Dry,
    /// Added to the logits of tokens; minus infinity makes a token impossible.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tokens that never come.
    pub banned: Vec<u32>,
    /// The stages, in the order in which they act; what is not in it does not act. Default: [`DEFAULT_ORDER`].
    pub order: Vec<Stage>,
    /// Seed of the random numbers; `None` (the default) takes a new one each time.
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

    /// Whether the most probable token always comes.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 && self.dynamic_temperature.is_none_or(|dynamic| dynamic.range == 0.0)
    }

    /// Whether every setting is in its range.
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

/// Settings out of range, or logits that nothing can be drawn from.
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
        /// Which.
        setting: &'static str,
        /// What it is.
        value: f32,
        /// What it may be.
        range: &'static str,
    },
    /// A bias that is no number, or plus infinity.
    #[error("the bias of token {token} is {bias}: give a number, or minus infinity to ban the token")]
    Bias {
        /// The token.
        token: u32,
        /// Its bias.
        bias: f32,
    },
    /// A bias or a ban for a token that does not exist.
    #[error("token {token} has a bias or is banned, and the vocabulary has {n_vocab} tokens")]
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
