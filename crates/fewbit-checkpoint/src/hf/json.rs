//! Reading JSON configurations: values by key with type checks, and errors that contain the full path of the key.

use super::HfError;
use crate::CheckpointError;
use serde_json::{Map, Value};
use std::path::Path;

/// The largest configuration that is read. Real ones have a few kilobytes; those that list every quantized module have
/// a few hundred.
const MAX_BYTES: u64 = 16 << 20;

/// Reads a file that holds a JSON object; `None` if there is no such file.
///
/// # Errors
/// [`HfError::Io`], [`HfError::TooLarge`], [`HfError::Json`].
pub fn read(path: &Path) -> Result<Option<Map<String, Value>>, HfError> {
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
    let parsed = serde_json::from_slice(&bytes)
        .or_else(|error| without_infinities(&bytes).and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or(error));
    parsed.map(Some).map_err(|source| HfError::Json { path: path.to_owned(), source })
}

/// The same text with `null` in place of the numbers that Python writes and JSON does not have; `None` if there are none.
fn without_infinities(json: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut rest, mut is_text, mut found) = (Vec::with_capacity(json.len()), json, false, false);
    while let Some((&byte, after)) = rest.split_first() {
        let number = [&b"-Infinity"[..], b"Infinity", b"NaN"].into_iter().find(|name| rest.starts_with(name));
        match (byte, number) {
            (b'\\', _) if is_text => {
                let (escaped, after) = rest.split_at(rest.len().min(2));
                out.extend_from_slice(escaped);
                rest = after;
                continue;
            }
            (b'"', _) => is_text = !is_text,
            (_, Some(name)) if !is_text => {
                out.extend_from_slice(b"null");
                (rest, found) = (rest.strip_prefix(name)?, true);
                continue;
            }
            _ => {}
        }
        out.push(byte);
        rest = after;
    }
    found.then_some(out)
}

/// An object of a configuration.
#[derive(Clone, Copy)]
pub struct Object<'a> {
    file: &'static str,
    /// The keys of the enclosing objects, each followed by a dot.
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    /// Creates the object of a whole file.
    pub fn new(file: &'static str, map: &'a Map<String, Value>) -> Self {
        Self { file, prefix: "", map }
    }

    /// The object at `key`; paths of its keys start with `prefix`.
    ///
    /// # Errors
    /// [`HfError::KeyType`] if the value has another type.
    pub fn object(&self, key: &str, prefix: &'a str) -> Result<Option<Self>, HfError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { file: self.file, prefix, map })),
            Some(other) => Err(self.wrong(key, "an object", other)),
        }
    }

    /// The full path of a key.
    pub fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The value of `key`; `null` counts as missing.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key exists, even with the value `null`.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The entries of this object, completed by those of `other` for missing keys.
    pub fn over(&self, other: Self) -> Map<String, Value> {
        let mut map = other.map.clone();
        map.extend(self.map.iter().map(|(key, value)| (key.clone(), value.clone())));
        map
    }

    /// Whether it has no keys.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Its keys, in the order of the file.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
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

    /// Unwraps a required value.
    ///
    /// # Errors
    /// [`HfError::MissingKey`] if it is missing.
    pub fn require<T>(&self, key: &str, value: Option<T>) -> Result<T, HfError> {
        value.ok_or_else(|| HfError::MissingKey { file: self.file, key: self.path(key) })
    }

    /// A string.
    ///
    /// # Errors
    /// [`HfError::KeyType`] if the value has another type.
    pub fn str(&self, key: &str) -> Result<Option<&'a str>, HfError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// True or false.
    ///
    /// # Errors
    /// [`HfError::KeyType`] if the value has another type.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, HfError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A number.
    ///
    /// # Errors
    /// [`HfError::KeyType`] if the value has another type.
    pub fn f64(&self, key: &str) -> Result<Option<f64>, HfError> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A count. Some files write it as a float.
    ///
    /// # Errors
    /// [`HfError::KeyType`] if the value has another type.
    pub fn count(&self, key: &str) -> Result<Option<usize>, HfError> {
        self.typed(key, "a number of things", |value| {
            let whole = || value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..=9e15).contains(x)).map(|x| x as u64);
            value.as_u64().or_else(whole).and_then(|n| usize::try_from(n).ok())
        })
    }

    /// A required count.
    ///
    /// # Errors
    /// [`HfError::MissingKey`], [`HfError::KeyType`].
    pub fn required_count(&self, key: &str) -> Result<usize, HfError> {
        let value = self.count(key)?;
        self.require(key, value)
    }

    /// A list of any values.
    ///
    /// # Errors
    /// [`HfError::KeyType`] if the value has another type.
    pub fn list(&self, key: &str) -> Result<Option<&'a [Value]>, HfError> {
        self.typed(key, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// [`HfError::KeyType`] if the value has another type.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, HfError> {
        self.typed(key, "a list of numbers", |value| {
            value.as_array()?.iter().map(|x| x.as_f64().map(|x| x as f32)).collect()
        })
    }

    /// A list of strings, such as names of layers.
    ///
    /// # Errors
    /// [`HfError::KeyType`] if the value has another type.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>, HfError> {
        self.typed(key, "a list of strings", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// The error for a value that enables a feature which the decoder does not have.
    pub fn unsupported(&self, key: &str, feature: &'static str) -> CheckpointError {
        let value = self.get(key).map_or_else(|| "missing".to_owned(), Value::to_string);
        CheckpointError::UnsupportedFeature { feature, key: self.path(key), value }
    }
}

#[cfg(test)]
mod tests {
    use super::without_infinities;

    #[test]
    fn numbers_that_json_does_not_have_become_null_outside_texts() {
        let of = |json: &str| without_infinities(json.as_bytes()).map(|json| String::from_utf8(json).expect("text"));
        let changed = of(r#"{"a\"NaN": [0.0, Infinity, -Infinity], "b": NaN}"#);
        assert_eq!(changed.as_deref(), Some(r#"{"a\"NaN": [0.0, null, null], "b": null}"#));
        for unchanged in [r#"{"a": "Infinity"}"#, "{", r#"{"\"#, ""] {
            assert_eq!(of(unchanged), None, "{unchanged}");
        }
    }
}
