//! Answers as Rust values: the JSON schema comes from the type, and the model is constrained to it.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::chat::Ask;
use crate::completion::{Completion, FinishReason};
use crate::constraints::Constraint;
use crate::error::{Error, ErrorKind};
use crate::generate::Generate;

impl Generate {
    /// Generates JSON that satisfies the schema of `T`, and deserializes it.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// #[derive(serde::Deserialize, schemars::JsonSchema)]
    /// struct City {
    ///     name: String,
    ///     population: u64,
    /// }
    ///
    /// let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// let city: City = model.generate("Facts about Paris, as JSON").templated().json()?;
    /// println!("{}: {}", city.name, city.population);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] if the generation ended early (by a limit, for example), [`ErrorKind::Json`] if the
    /// type rejects a value that its schema allows; and those of [`run`](Self::run).
    pub fn json<T: DeserializeOwned + JsonSchema>(self) -> Result<T, Error> {
        read(&self.constraint(Constraint::for_type::<T>()).run()?)
    }
}

impl<C: std::ops::DerefMut<Target = crate::Chat>> Ask<C> {
    /// Waits for the answer as JSON of the schema of `T`, and deserializes it. The conversation keeps its text.
    ///
    /// # Errors
    /// Those of [`Generate::json`].
    pub fn json<T: DeserializeOwned + JsonSchema>(self) -> Result<T, Error> {
        read(&self.constraint(Constraint::for_type::<T>()).run()?)
    }
}

impl Completion {
    /// Deserializes the text as JSON, unless a limit cut it short. A stop string is not in the text.
    ///
    /// # Errors
    /// Those of [`Generate::json`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        read(self)
    }
}

fn read<T: DeserializeOwned>(completion: &Completion) -> Result<T, Error> {
    let text = &completion.text;
    let is_cut = matches!(
        completion.finish_reason,
        FinishReason::Length | FinishReason::Timeout | FinishReason::Cancelled | FinishReason::ToolCalls
    );
    if is_cut {
        return Err(ErrorKind::Incomplete { reason: completion.finish_reason, text: text.clone() }.into());
    }
    serde_json::from_str(text).map_err(|error| Error::new(ErrorKind::Json { text: text.clone() }, error))
}
