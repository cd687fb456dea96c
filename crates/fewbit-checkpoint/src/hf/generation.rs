//! `generation_config.json`: the sampling settings that the authors of a model recommend.

use super::HfError;
use super::json::{self, Object};
use std::path::Path;

const FILE: &str = "generation_config.json";

/// Recommended sampling settings; `None` for settings without a recommendation.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct GenerationDefaults {
    /// Temperature.
    pub temperature: Option<f32>,
    /// Number of most probable tokens to keep; 0 for all.
    pub top_k: Option<usize>,
    /// Total probability of the tokens to keep.
    pub top_p: Option<f32>,
    /// Minimum probability of a token, as a fraction of that of the most probable one.
    pub min_p: Option<f32>,
    /// Divisor of the scores of tokens that have occurred.
    pub repetition_penalty: Option<f32>,
    /// Invalid values and their replacements, one sentence each.
    pub warnings: Vec<String>,
}

impl GenerationDefaults {
    /// Reads the file in `folder`. Nothing is recommended if there is no such file, or if it turns sampling off: that
    /// is no advice for users who turn it on.
    ///
    /// # Errors
    /// [`HfError`] if the file cannot be read or is not a JSON object.
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

    /// Collects the settings by their field names from `get`, which returns a number, or the text of a value that is
    /// not a number. A number that is out of range means "off", as in files written for other programs (a `top_k` of
    /// -1, a `top_p` above 1); a value that is not a number is ignored. Both add a sentence to
    /// [`warnings`](Self::warnings), which names `place` as the source of the settings.
    pub fn collect(place: &str, get: impl Fn(&str) -> Option<Result<f64, String>>) -> Self {
        let mut warnings = Vec::new();
        // The setting if it is in range, otherwise the value that turns it off.
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
