//! Metadata: the named values at the front of a model file, and typed access to them.
//!
//! Files of the same model family use different integer types for the same key, so the integer getters convert any
//! width that fits; nothing else is converted. A string that is not UTF-8 is kept as bytes, and reading it as text is
//! an error: half-repaired tokens would be wrong tokens.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::error::FormatError;

/// Declares [`Array`] and [`Value`] with their GGUF type numbers and names in one table.
macro_rules! values {
    ($($(#[$doc:meta])* $variant:ident($scalar:ty) = $id:literal, $name:literal, $array_name:literal;)*) => {
        /// One metadata value.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum Value {
            $($(#[$doc])* $variant($scalar),)*
            /// A list of values of one type.
            Array(Array),
        }

        /// A list of metadata values of one type.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum Array {
            $($(#[$doc])* $variant(Vec<$scalar>),)*
            /// A list of lists, whose types may differ.
            Nested(Vec<Array>),
        }

        impl Value {
            /// The name of the value's type, as used in error messages.
            pub fn type_name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                    Self::Array(array) => array.type_name(),
                }
            }

            /// The number of this type in GGUF files.
            pub(crate) fn gguf_id(&self) -> u32 {
                match self {
                    $(Self::$variant(_) => $id,)*
                    Self::Array(_) => ARRAY_ID,
                }
            }
        }

        impl Array {
            /// The name of the array's type, as used in error messages.
            pub fn type_name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $array_name,)*
                    Self::Nested(_) => "array of arrays",
                }
            }

            /// The number of the element type in GGUF files.
            pub(crate) fn element_gguf_id(&self) -> u32 {
                match self {
                    $(Self::$variant(_) => $id,)*
                    Self::Nested(_) => ARRAY_ID,
                }
            }

            /// The number of elements.
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$variant(list) => list.len(),)*
                    Self::Nested(list) => list.len(),
                }
            }
        }

        $(impl From<$scalar> for Value {
            fn from(value: $scalar) -> Self {
                Self::$variant(value)
            }
        }

        impl From<Vec<$scalar>> for Value {
            fn from(list: Vec<$scalar>) -> Self {
                Self::Array(Array::$variant(list))
            }
        })*
    };
}

/// The number of the array type in GGUF files.
pub(crate) const ARRAY_ID: u32 = 9;

/// A string that is not UTF-8, as it is in the file.
pub(crate) type RawString = Box<[u8]>;

values! {
    /// An 8-bit unsigned integer.
    U8(u8) = 0, "u8", "array of u8";
    /// An 8-bit signed integer.
    I8(i8) = 1, "i8", "array of i8";
    /// A 16-bit unsigned integer.
    U16(u16) = 2, "u16", "array of u16";
    /// A 16-bit signed integer.
    I16(i16) = 3, "i16", "array of i16";
    /// A 32-bit unsigned integer.
    U32(u32) = 4, "u32", "array of u32";
    /// A 32-bit signed integer.
    I32(i32) = 5, "i32", "array of i32";
    /// A 32-bit float.
    F32(f32) = 6, "f32", "array of f32";
    /// A boolean.
    Bool(bool) = 7, "bool", "array of bool";
    /// Text.
    String(String) = 8, "string", "array of strings";
    /// Text that is not valid UTF-8, as it is in the file. An array of strings is kept in this form if any of its
    /// strings is not valid UTF-8.
    Bytes(RawString) = 8, "string that is not UTF-8", "array of strings that are not UTF-8";
    /// A 64-bit unsigned integer.
    U64(u64) = 10, "u64", "array of u64";
    /// A 64-bit signed integer.
    I64(i64) = 11, "i64", "array of i64";
    /// A 64-bit float.
    F64(f64) = 12, "f64", "array of f64";
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<Array> for Value {
    fn from(array: Array) -> Self {
        Self::Array(array)
    }
}

impl Value {
    /// The value as an integer, whatever its width; `None` if it is not an integer.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }
}

impl Array {
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Converts a list of integers of any width. `None` if the elements are not integers; the error is the first
    /// element that does not fit.
    fn to_integers<T>(&self) -> Option<Result<Vec<T>, i128>>
    where
        T: TryFrom<i128>,
    {
        fn convert<S: Copy + Into<i128>, T: TryFrom<i128>>(list: &[S]) -> Result<Vec<T>, i128> {
            list.iter().map(|&v| T::try_from(v.into()).map_err(|_| v.into())).collect()
        }
        Some(match self {
            Self::U8(list) => convert(list),
            Self::I8(list) => convert(list),
            Self::U16(list) => convert(list),
            Self::I16(list) => convert(list),
            Self::U32(list) => convert(list),
            Self::I32(list) => convert(list),
            Self::U64(list) => convert(list),
            Self::I64(list) => convert(list),
            _ => return None,
        })
    }
}

/// The metadata of a model file: named values in the order of the file, with unique names.
///
/// The typed getters return `Ok(None)` if the key is missing and an error if the value has another type; the `require_`
/// getters return an error for a missing key as well.
///
/// ```
/// use fewbit_format::Metadata;
///
/// let mut metadata = Metadata::default();
/// metadata.set("llama.block_count", 30u64);
/// assert_eq!(metadata.u32("llama.block_count")?, Some(30));
/// assert_eq!(metadata.u32("llama.expert_count")?, None);
/// assert!(metadata.str("llama.block_count").is_err());
/// # Ok::<(), fewbit_format::FormatError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    /// Index of each key in `entries`.
    index: HashMap<String, usize>,
}

/// Equal if both have the same keys with the same values in the same order.
impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

/// Defines a typed getter and its `require_` form.
macro_rules! getter {
    ($(#[$doc:meta])* $name:ident, $require:ident, $expected:literal -> $out:ty, |$this:ident, $key:ident, $value:ident| $get:expr) => {
        $(#[$doc])*
        pub fn $name(&self, $key: &str) -> Result<Option<$out>, FormatError> {
            let $this = self;
            let Some($value) = $this.get($key) else { return Ok(None) };
            match $get {
                Some(result) => result.map(Some),
                None => Err(FormatError::MetadataType {
                    key: $key.to_owned(),
                    expected: $expected,
                    found: $value.type_name(),
                }),
            }
        }

        #[doc = concat!("[`", stringify!($name), "`](Self::", stringify!($name), ") for a key that must be there.")]
        pub fn $require(&self, key: &str) -> Result<$out, FormatError> {
            self.$name(key)?.ok_or_else(|| FormatError::MissingKey { key: key.to_owned() })
        }
    };
}

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let place = *self.index.get(key)?;
        self.entries.get(place).map(|entry| &entry.1)
    }

    /// Whether there is a value of this key.
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All keys and values, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Sets a value: replaces the value of an existing key, or adds a new key at the end.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        match self.index.get(&key).and_then(|&place| self.entries.get_mut(place)) {
            Some(entry) => entry.1 = value,
            None => {
                self.index.insert(key.clone(), self.entries.len());
                self.entries.push((key, value));
            }
        }
    }

    /// Removes a value and returns it.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let place = self.index.remove(key)?;
        let (_, value) = self.entries.remove(place);
        for later in self.index.values_mut().filter(|later| **later > place) {
            *later -= 1;
        }
        Some(value)
    }

    getter! {
        /// A string.
        str, require_str, "string" -> &str, |_this, key, value| match value {
            Value::String(text) => Some(Ok(text.as_str())),
            Value::Bytes(_) => Some(Err(FormatError::MetadataUtf8 { key: key.to_owned(), index: 0 })),
            _ => None,
        }
    }

    getter! {
        /// A boolean.
        bool, require_bool, "bool" -> bool, |_this, key, value| match value {
            Value::Bool(value) => Some(Ok(*value)),
            _ => None,
        }
    }

    getter! {
        /// A float; a 64-bit float is rounded.
        f32, require_f32, "f32" -> f32, |_this, key, value| match value {
            Value::F32(value) => Some(Ok(*value)),
            Value::F64(value) => Some(Ok(*value as f32)),
            _ => None,
        }
    }

    getter! {
        /// An integer of any width that fits 32 bits.
        u32, require_u32, "u32" -> u32, |_this, key, value| value.as_integer().map(|v| fit(key, "u32", v))
    }

    getter! {
        /// An integer of any width that is not negative.
        u64, require_u64, "u64" -> u64, |_this, key, value| value.as_integer().map(|v| fit(key, "u64", v))
    }

    getter! {
        /// An integer of any width.
        i64, require_i64, "i64" -> i64, |_this, key, value| value.as_integer().map(|v| fit(key, "i64", v))
    }

    getter! {
        /// A list of strings, such as the tokens of a vocabulary.
        str_array, require_str_array, "array of strings" -> &[String], |_this, key, value| match value {
            Value::Array(Array::String(list)) => Some(Ok(list.as_slice())),
            Value::Array(Array::Bytes(list)) => {
                let index = list.iter().position(|raw| std::str::from_utf8(raw).is_err()).unwrap_or(0);
                Some(Err(FormatError::MetadataUtf8 { key: key.to_owned(), index }))
            }
            _ => None,
        }
    }

    getter! {
        /// A list of floats.
        f32_array, require_f32_array, "array of f32" -> &[f32], |_this, key, value| match value {
            Value::Array(Array::F32(list)) => Some(Ok(list.as_slice())),
            _ => None,
        }
    }

    getter! {
        /// A list of booleans.
        bool_array, require_bool_array, "array of bool" -> &[bool], |_this, key, value| match value {
            Value::Array(Array::Bool(list)) => Some(Ok(list.as_slice())),
            _ => None,
        }
    }

    getter! {
        /// A list of integers of any width; borrowed if it is stored as `i32`.
        i32_array, require_i32_array, "array of i32" -> Cow<'_, [i32]>, |_this, key, value| match value {
            Value::Array(Array::I32(list)) => Some(Ok(Cow::Borrowed(list.as_slice()))),
            Value::Array(array) => array.to_integers().map(|list| fit_all(key, "array of i32", list)),
            _ => None,
        }
    }

    getter! {
        /// A list of non-negative integers of any width; borrowed if it is stored as `u32`.
        u32_array, require_u32_array, "array of u32" -> Cow<'_, [u32]>, |_this, key, value| match value {
            Value::Array(Array::U32(list)) => Some(Ok(Cow::Borrowed(list.as_slice()))),
            Value::Array(array) => array.to_integers().map(|list| fit_all(key, "array of u32", list)),
            _ => None,
        }
    }
}

/// Converts an integer to the requested type, or returns the error that explains why it does not fit.
fn fit<T: TryFrom<i128>>(key: &str, expected: &'static str, found: i128) -> Result<T, FormatError> {
    T::try_from(found).map_err(|_| FormatError::MetadataRange { key: key.to_owned(), expected, found })
}

/// [`fit`] for a converted list.
fn fit_all<'a, T: Clone>(
    key: &str,
    expected: &'static str,
    list: Result<Vec<T>, i128>,
) -> Result<Cow<'a, [T]>, FormatError> {
    match list {
        Ok(list) => Ok(Cow::Owned(list)),
        Err(found) => Err(FormatError::MetadataRange { key: key.to_owned(), expected, found }),
    }
}
