//! Reading JSON configurations: values by key, each checked, errors with the whole path of the key.

use super::HfError;
use crate::ModelError;
use serde_json::{Map, Value};
use std::path::Path;

/// The longest configuration that is read. Real ones have some kilobytes; those that list every quantized module
/// a few hundred.
const MAX_BYTES: u64 = 16 << 20;

/// Reads a file that holds a JSON object; `None` if there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Map<String, Value>>, HfError> {
    let io = |source| HfError::Io { path: path.to_owned(), source };
    let n_bytes = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    if n_bytes > MAX_BYTES {
        return Err(HfError::TooLarge { path: path.to_owned(), n_bytes, limit: MAX_BYTES });
    }
    let bytes = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|source| HfError::Json { path: path.to_owned(), source })
}

/// An object of a configuration.
#[derive(Clone, Copy)]
pub(crate) struct Object<'a> {
    file: &'static str,
    /// The keys that lead to it, each followed by a dot.
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    pub(crate) fn new(file: &'static str, map: &'a Map<String, Value>) -> Self {
        Self { file, prefix: "", map }
    }

    /// The object at `key`, whose own keys are called `prefix` and theirs.
    pub(crate) fn object(&self, key: &str, prefix: &'a str) -> Result<Option<Self>, HfError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { file: self.file, prefix, map })),
            Some(other) => Err(self.wrong(key, "an object", other)),
        }
    }

    /// The whole path of a key.
    pub(crate) fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// What stands at `key`; `null` is nothing.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether there is such a key, even with `null`.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// What this object says, and for what it does not say the other one.
    pub(crate) fn over(&self, other: Self) -> Map<String, Value> {
        let mut map = other.map.clone();
        map.extend(self.map.iter().map(|(key, value)| (key.clone(), value.clone())));
        map
    }

    /// Whether it has no keys.
    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    fn wrong(&self, key: &str, expected: &'static str, found: &Value) -> HfError {
        let mut found = found.to_string();
        if let Some((end, _)) = found.char_indices().nth(60) {
            found.truncate(end);
            found.push_str("...");
        }
        HfError::KeyType { file: self.file, key: self.path(key), expected, found }
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, HfError> {
        self.get(key).map(|value| read(value).ok_or_else(|| self.wrong(key, expected, value))).transpose()
    }

    pub(crate) fn require<T>(&self, key: &str, value: Option<T>) -> Result<T, HfError> {
        value.ok_or_else(|| HfError::MissingKey { file: self.file, key: self.path(key) })
    }

    pub(crate) fn str(&self, key: &str) -> Result<Option<&'a str>, HfError> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>, HfError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn f64(&self, key: &str) -> Result<Option<f64>, HfError> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A number of things. Some files write it as a float.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>, HfError> {
        self.typed(key, "a number of things", |value| {
            let whole = || value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..=9e15).contains(x)).map(|x| x as u64);
            value.as_u64().or_else(whole).and_then(|n| usize::try_from(n).ok())
        })
    }

    pub(crate) fn required_count(&self, key: &str) -> Result<usize, HfError> {
        let value = self.count(key)?;
        self.require(key, value)
    }

    pub(crate) fn list(&self, key: &str) -> Result<Option<&'a [Value]>, HfError> {
        self.typed(key, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    /// A list of numbers.
    pub(crate) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, HfError> {
        self.typed(key, "a list of numbers", |value| {
            value.as_array()?.iter().map(|x| x.as_f64().map(|x| x as f32)).collect()
        })
    }

    /// Names of layers or the like.
    pub(crate) fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>, HfError> {
        self.typed(key, "a list of strings", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// A value that the model may have but the decoder has no part for.
    pub(crate) fn unsupported(&self, key: &str, feature: &'static str) -> ModelError {
        let value = self.get(key).map_or_else(|| "missing".to_owned(), Value::to_string);
        ModelError::UnsupportedFeature { feature, key: self.path(key), value }
    }
}
