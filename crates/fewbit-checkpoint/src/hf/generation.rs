//! `generation_config.json`: how the makers of a model recommend to sample from it.

use super::HfError;
use super::json::{self, Object};
use std::path::Path;

const FILE: &str = "generation_config.json";

/// Recommended sampling settings; `None` where nothing is recommended.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct GenerationDefaults {
    /// Temperature.
    pub temperature: Option<f32>,
    /// How many of the most probable tokens are kept; 0 for all.
    pub top_k: Option<usize>,
    /// How much probability the tokens that are kept have together.
    pub top_p: Option<f32>,
    /// How probable a token must be, as a fraction of the most probable one.
    pub min_p: Option<f32>,
    /// Divisor of the scores of tokens that occurred.
    pub repetition_penalty: Option<f32>,
    /// Values that make no sense, and what was taken in their place, one sentence each.
    pub warnings: Vec<String>,
}

impl GenerationDefaults {
    /// Reads the file in `folder`; without one, nothing is recommended. Neither is anything by a file that turns
    /// sampling off: that is no advice for those who turn it on.
    ///
    /// # Errors
    /// [`HfError`] if the file cannot be read or is no JSON object.
    pub fn read(folder: &Path) -> Result<Self, HfError> {
        let Some(map) = json::read(&folder.join(FILE))? else { return Ok(Self::default()) };
        let json = Object::new(FILE, &map);
        if json.get("do_sample").and_then(serde_json::Value::as_bool) == Some(false) {
            return Ok(Self::default());
        }
        Ok(Self::collect(FILE, |setting| match json.get(setting)? {
            serde_json::Value::Number(x) => x.as_f64().map_or(Some(Err(x.to_string())), |x| Some(Ok(x))),
            other => Some(Err(other.to_string())),
        }))
    }

    /// Collects the settings by the names of their fields from `get`, which gives numbers, or the text of what is none.
    /// A number that is out of range stands for "off", as it does in files that are written for other programs (a
    /// `top_k` of -1, a `top_p` above 1); what is no number says nothing. Both are in
    /// [`warnings`](Self::warnings), where the settings are said to be in `place`.
    pub fn collect(place: &str, get: impl Fn(&str) -> Option<Result<f64, String>>) -> Self {
        let mut warnings = Vec::new();
        // The setting, if it is in range; what turns it off, if it is not.
        let mut number = |setting: &str, is_fine: fn(f64) -> bool, off: f64| match get(setting)? {
            Ok(x) if is_fine(x) => Some(x),
            Ok(x) => {
                warnings.push(format!("{place}: {setting} is {x}, which is out of range: it is off"));
                Some(off)
            }
            Err(other) => {
                let shown: String = other.chars().take(40).collect();
                warnings.push(format!("{place}: {setting} is {shown}, which is no number: it is passed over"));
                None
            }
        };
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let temperature = number("temperature", |x| (0.0..=1e6).contains(&x), 1.0);
        let top_k = number("top_k", |x| x.fract() == 0.0 && (0.0..=4e9).contains(&x), 0.0);
        let top_p = number("top_p", |x| x > 0.0 && x <= 1.0, 1.0);
        let min_p = number("min_p", |x| (0.0..=1.0).contains(&x), 0.0);
        let repetition_penalty = number("repetition_penalty", positive, 1.0);
        let float = |x: Option<f64>| x.map(|x| x as f32);
        Self {
            temperature: float(temperature),
            top_k: top_k.map(|k| k as usize),
            top_p: float(top_p),
            min_p: float(min_p),
            repetition_penalty: float(repetition_penalty),
            warnings,
        }
    }
}
