//! Masking: what is private in a request is replaced before it leaves, and put back in the answer.
//!
//! ```text
//! request -> route -> target -> mask -> backend -> unmask -> answer
//! ```
//!
//! It happens where a target gets its job, which every request of every endpoint passes, and for each target anew: a
//! route's target on this server sees the request as it is, its fallback on another server does not. Anything that cannot
//! be searched (such as token ids) is refused instead of sent.

mod find;
mod mask;
mod unmask;

use std::ops::Range;

use fewbit_serve::api::common::Prompt;
use fewbit_serve::{Backend, BackendError, BackendErrorKind, Caller, Embedded, Form, Generating, Job, Reranked};
use serde::Deserialize;
use serde_json::Value;
use toml::Spanned;

use find::{Finder, KINDS};
use mask::Back;
use unmask::Unmasked;

/// The most patterns of a configuration.
const MAX_PATTERNS: usize = 64;
/// The longest name of a pattern.
const MAX_NAME: usize = 32;

/// The part `[masking]` of a configuration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MaskingConfig {
    kinds: Option<Vec<Spanned<String>>>,
    #[serde(rename = "where")]
    places: Option<Vec<Place>>,
    #[serde(default)]
    patterns: Vec<PatternConfig>,
    #[serde(default)]
    rules: Vec<RuleConfig>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct PatternConfig {
    name: Spanned<String>,
    regex: Spanned<String>,
}

/// Other settings for some requests.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleConfig {
    keys: Option<Vec<String>>,
    models: Option<Vec<String>>,
    kinds: Option<Vec<Spanned<String>>>,
    #[serde(rename = "where")]
    places: Option<Vec<Place>>,
}

/// Before which backends texts are masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    Upstream,
    Local,
}

/// What is masked for which requests, and where.
#[derive(Debug)]
pub(crate) struct Masking {
    finders: Vec<Finder>,
    /// The first rule that fits a request holds for it; the last one fits all.
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    keys: Option<Vec<String>>,
    models: Option<Vec<String>>,
    /// The indices of its finders.
    finders: Vec<usize>,
    places: Vec<Place>,
}

/// What is masked in one request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chosen<'a> {
    all: &'a [Finder],
    finders: &'a [usize],
}

impl<'a> Chosen<'a> {
    fn finders(&self) -> impl Iterator<Item = (usize, &'a Finder)> + use<'a> {
        let all = self.all;
        self.finders.iter().filter_map(move |&i| Some((i, all.get(i)?)))
    }

    fn shown(&self, finder: usize) -> &'a str {
        self.all.get(finder).map_or("MASKED", |finder| &finder.shown)
    }
}

impl MaskingConfig {
    /// Checks the configuration and compiles its patterns. An error has its place in the file.
    pub(crate) fn build(&self) -> Result<Masking, (Range<usize>, String)> {
        let mut finders: Vec<Finder> = KINDS.iter().filter_map(|name| Finder::known(name)).collect();
        for (i, pattern) in self.patterns.iter().enumerate() {
            let name = pattern.name.get_ref();
            let wrong = |what: String| Err((pattern.name.span(), what));
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_name) {
                let what =
                    format!("{name:?} cannot be the name of a pattern: use 1 to {MAX_NAME} letters, digits and '_'");
                return wrong(what);
            }
            if finders.iter().any(|known| known.shown.eq_ignore_ascii_case(name)) {
                return wrong(format!("there are two kinds {name:?} to mask: rename this one"));
            }
            if i == MAX_PATTERNS {
                return wrong(format!("there are more than {MAX_PATTERNS} patterns: join some with `|`"));
            }
            let finder = Finder::of_pattern(name, pattern.regex.get_ref());
            finders.push(finder.map_err(|what| (pattern.regex.span(), format!("the pattern {name:?} {what}")))?);
        }
        let index = |kinds: &[Spanned<String>]| {
            let index = |kind: &Spanned<String>| {
                let found = finders.iter().position(|finder| finder.name == *kind.get_ref());
                let all = || finders.iter().map(|finder| finder.name.as_str()).collect::<Vec<_>>().join(", ");
                found.ok_or_else(|| {
                    (kind.span(), format!("{:?} is no kind of text to mask: there are {}", kind.get_ref(), all()))
                })
            };
            kinds.iter().map(index).collect::<Result<Vec<_>, _>>()
        };
        let every = || (0..finders.len()).collect::<Vec<_>>();
        let base = self.kinds.as_deref().map(index).transpose()?.unwrap_or_else(every);
        let places = self.places.clone().unwrap_or_else(|| vec![Place::Upstream]);
        let mut rules = Vec::with_capacity(self.rules.len() + 1);
        for rule in &self.rules {
            rules.push(Rule {
                keys: rule.keys.clone(),
                models: rule.models.clone(),
                finders: rule.kinds.as_deref().map(index).transpose()?.unwrap_or_else(|| base.clone()),
                places: rule.places.clone().unwrap_or_else(|| places.clone()),
            });
        }
        rules.push(Rule { keys: None, models: None, finders: base, places });
        Ok(Masking { finders, rules })
    }
}

impl Masking {
    /// Masks a JSON value with all kinds and patterns, whatever the rules say. Returns how many texts were masked.
    ///
    /// # Errors
    /// If too many texts would have to be replaced.
    pub(crate) fn mask_value(&self, value: &mut Value) -> Result<usize, BackendError> {
        let finders: Vec<usize> = (0..self.finders.len()).collect();
        mask::value(&Chosen { all: &self.finders, finders: &finders }, value)
    }

    /// What is masked before a target gets a request for this model (or route); `None` if nothing is.
    fn chosen(&self, caller: &Caller, model: &str, is_local: bool) -> Option<Chosen<'_>> {
        let place = if is_local { Place::Local } else { Place::Upstream };
        let is_in = |list: &Option<Vec<String>>, name: Option<&str>| {
            list.as_ref().is_none_or(|all| all.iter().any(|known| Some(known.as_str()) == name))
        };
        let fits = |rule: &&Rule| is_in(&rule.keys, caller.key.as_deref()) && is_in(&rule.models, Some(model));
        let rule = self.rules.iter().find(fits)?;
        let is_used = rule.places.contains(&place) && !rule.finders.is_empty();
        is_used.then_some(Chosen { all: &self.finders, finders: &rule.finders })
    }
}

/// A backend whose requests are masked as the configuration says.
#[derive(Clone, Copy)]
pub(crate) struct Masked<'a> {
    pub(crate) backend: &'a dyn Backend,
    pub(crate) masking: Option<&'a Masking>,
    /// The model or route that the request names.
    pub(crate) model: &'a str,
    /// Whether the backend is this server's own.
    pub(crate) is_local: bool,
}

impl<'a> Masked<'a> {
    fn chosen(&self, caller: &Caller) -> Option<Chosen<'a>> {
        self.masking?.chosen(caller, self.model, self.is_local)
    }

    pub(crate) async fn generate(self, mut job: Job) -> Result<Generating, BackendError> {
        let Some(chosen) = self.chosen(&job.caller) else { return self.backend.generate(job).await };
        let is_json = matches!(job.form, Some((Form::JsonObject | Form::JsonSchema(_), _)));
        let back = mask::job(&chosen, &mut job)?;
        let n = back.values.len();
        if n == 0 {
            return self.backend.generate(job).await;
        }
        let answer = self.backend.generate(job).await.map_err(|error| restored(error, &back))?;
        let by = answer.answered_by().cloned();
        Ok(Generating::new(Unmasked::new(answer, back, is_json)).by(by).masked(n))
    }

    pub(crate) async fn count(self, mut job: Job) -> Result<usize, BackendError> {
        let back = match self.chosen(&job.caller) {
            Some(chosen) => mask::job(&chosen, &mut job)?,
            None => Back::default(),
        };
        self.backend.count(job).await.map_err(|error| restored(error, &back))
    }

    pub(crate) async fn embed(
        self,
        caller: &Caller,
        model: &str,
        mut texts: Vec<Prompt>,
    ) -> Result<Embedded, BackendError> {
        let masked = match self.chosen(caller) {
            Some(chosen) => mask::texts(&chosen, &mut texts)?,
            None => 0,
        };
        let embedded = self.backend.embed(caller, model, texts).await?;
        Ok(Embedded { masked, ..embedded })
    }

    pub(crate) async fn rerank(
        self,
        caller: &Caller,
        model: &str,
        query: String,
        documents: Vec<String>,
    ) -> Result<Reranked, BackendError> {
        let Some(chosen) = self.chosen(caller) else {
            return self.backend.rerank(caller, model, query, documents).await;
        };
        let mut texts: Vec<Prompt> = std::iter::once(query).chain(documents).map(Prompt::Text).collect();
        let masked = mask::texts(&chosen, &mut texts)?;
        let mut texts = texts.into_iter().map(|text| match text {
            Prompt::Text(text) => text,
            // All of them are texts, and masking leaves them so.
            _ => String::new(),
        });
        let query = texts.next().unwrap_or_default();
        let reranked = self.backend.rerank(caller, model, query, texts.collect()).await?;
        Ok(Reranked { masked, ..reranked })
    }

    pub(crate) async fn tokenize(
        self,
        caller: &Caller,
        model: &str,
        text: &str,
        add_special: bool,
        parse: bool,
    ) -> Result<Vec<u32>, BackendError> {
        let Some(chosen) = self.chosen(caller) else {
            return self.backend.models().tokenize(caller, model, text, add_special, parse).await;
        };
        let (text, _) = mask::one(&chosen, text)?;
        self.backend.models().tokenize(caller, model, &text, add_special, parse).await
    }
}

/// An error of a backend, as the client gets it. Errors that are also logged stay masked.
fn restored(error: BackendError, back: &Back) -> BackendError {
    match error.kind {
        BackendErrorKind::Invalid | BackendErrorKind::TooLong => {
            let param = error.param.map(|param| back.whole(&param, false));
            BackendError { message: back.whole(&error.message, false), param, ..error }
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests;
