//! `generation_config.json`: how the makers of a model recommend to sample from it.

use super::HfError;
use super::json::{self, Object};
use std::path::Path;

const FILE: &str = "generation_config.json";

/// Recommended sampling settings; `None` where the file says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct GenerationDefaults {
    /// Temperature.
    pub temperature: Option<f32>,
    /// How many of the most probable tokens are kept.
    pub top_k: Option<usize>,
    /// How much probability the tokens that are kept have together.
    pub top_p: Option<f32>,
    /// How probable a token must be, as a fraction of the most probable one.
    pub min_p: Option<f32>,
    /// Divisor of the scores of tokens that occurred.
    pub repetition_penalty: Option<f32>,
}

impl GenerationDefaults {
    /// Reads the file in `folder`; without one, nothing is recommended. Neither is anything by a file that turns
    /// sampling off: that is no advice for those who turn it on.
    ///
    /// # Errors
    /// [`HfError`] if the file cannot be read or a value is no number.
    pub fn read(folder: &Path) -> Result<Self, HfError> {
        let Some(map) = json::read(&folder.join(FILE))? else { return Ok(Self::default()) };
        let json = Object::new(FILE, &map);
        if json.bool("do_sample")? == Some(false) {
            return Ok(Self::default());
        }
        let float = |key: &str| json.f64(key).map(|x| x.map(|x| x as f32));
        Ok(Self {
            temperature: float("temperature")?,
            top_k: json.count("top_k")?,
            top_p: float("top_p")?,
            min_p: float("min_p")?,
            repetition_penalty: float("repetition_penalty")?,
        })
    }
}
