//! Answers as Rust values: the schema comes from the type, and is enforced while generating.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::chat::Ask;
use crate::completion::{Completion, FinishReason};
use crate::constraints::Constraint;
use crate::error::{Error, ErrorKind};
use crate::generate::Generate;

impl Generate {
    /// Generates a `T`: JSON of its schema, read.
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
    /// [`ErrorKind::Incomplete`] if a limit cut the text, [`ErrorKind::Json`] if the type refuses what its schema allows.
    pub fn json<T: DeserializeOwned + JsonSchema>(self) -> Result<T, Error> {
        read(&self.constraint(Constraint::for_type::<T>()).run()?)
    }
}

impl<C: std::ops::DerefMut<Target = crate::Chat>> Ask<C> {
    /// Waits for the answer as a `T`: JSON of its schema, read. Its text is in the conversation like that of others.
    ///
    /// # Errors
    /// Those of [`Generate::json`].
    pub fn json<T: DeserializeOwned + JsonSchema>(self) -> Result<T, Error> {
        read(&self.constraint(Constraint::for_type::<T>()).run()?)
    }
}

impl Completion {
    /// Reads the text as JSON, if it is complete.
    ///
    /// # Errors
    /// Those of [`Generate::json`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        read(self)
    }
}

fn read<T: DeserializeOwned>(completion: &Completion) -> Result<T, Error> {
    let text = &completion.text;
    if completion.finish_reason != FinishReason::EndOfGeneration {
        return Err(ErrorKind::Incomplete { reason: completion.finish_reason, text: text.clone() }.into());
    }
    serde_json::from_str(text).map_err(|error| Error::new(ErrorKind::Json { text: text.clone() }, error))
}
