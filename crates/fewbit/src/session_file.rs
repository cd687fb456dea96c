//! A saved conversation: its messages and its KV cache, so that it continues without computing the cache again.
//!
//! ```text
//! magic "fewbit s"   8 bytes
//! version            u32, 2
//! model              u128: see `Model::identity`
//! seed               u64
//! messages           u32 bytes, JSON: [{"role", "content", "fields", "omits_content": true if it does}]
//! tokens             u32 tokens, u32 each
//! cache              u64 bytes: `KvCache::serialize`
//! checksum           u64: XXH3 of everything before
//! ```
//!
//! All numbers are little-endian. The identity of a model is a hash of its weights, its configuration, the element type
//! of its cache and the version of the arithmetic; the file is refused if any of them differs. The checksum detects
//! damage, not malice: anybody who can write the file can make the model say anything. But no file can make the reader
//! panic, or allocate more than the cache of a full context takes.
//!
//! A file is written whole or not at all: see [`NewFile`].
#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use fewbit_format::NewFile;
use fewbit_tokenizer::Message;
use serde_json::{Map, Value};
use xxhash_rust::xxh3::Xxh3;

const MAGIC: &[u8; 8] = b"fewbit s";
const VERSION: u32 = 2;
/// The most bytes of messages. A context of a million tokens is about 4 MiB of text.
const MAX_MESSAGES_BYTES: u32 = 64 << 20;

/// Why a conversation cannot be saved, or a saved one cannot be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The file cannot be read or written.
    #[error("cannot read or write {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The file is not a saved conversation.
    #[error("{} is not a saved conversation", path.display())]
    NotASession {
        /// The file.
        path: PathBuf,
    },
    /// The file has another version of the format.
    #[error("{} is of version {found} of the format; this version of fewbit reads {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The conversation was with another model, other adapters, another type of KV cache, or a version of fewbit that
    /// computes differently.
    #[error(
        "{} was saved with another model, other adapters, another type of KV cache, or a version of fewbit that \
         computes differently: start a conversation with its history instead", path.display()
    )]
    OtherModel {
        /// The file.
        path: PathBuf,
    },
    /// The file is shorter or longer than its header says.
    #[error("{} does not have the length that its header gives", path.display())]
    Length {
        /// The file.
        path: PathBuf,
    },
    /// A part of the file is invalid.
    #[error("{}: the {what} cannot be used", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which part is invalid.
        what: &'static str,
    },
    /// The file was changed after it was written.
    #[error("{} is damaged: its checksum does not match", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
    },
}

/// What a file holds.
#[derive(Debug, PartialEq)]
pub(crate) struct Saved {
    pub(crate) model: u128,
    pub(crate) seed: u64,
    pub(crate) messages: Vec<Message>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) cache: Vec<u8>,
}

/// What the reader requires of a file.
pub(crate) struct Expected {
    pub(crate) model: u128,
    pub(crate) n_vocab: usize,
    /// The most tokens: the length of the context.
    pub(crate) max_tokens: usize,
    /// The size of the cache of a full context.
    pub(crate) max_cache_bytes: u64,
}

/// Reads or writes, and hashes the bytes on the way.
struct Hashing<W> {
    inner: W,
    hasher: Xxh3,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(bytes)?;
        self.hasher.update(bytes.get(..n).unwrap_or_default());
        Ok(n)
    }
}

impl Saved {
    /// Writes the file, whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<(), SessionError> {
        let written = NewFile::create(path).and_then(|file| self.write_to(file));
        written.map_err(|source| SessionError::Io { path: path.to_owned(), source })
    }

    fn write_to(&self, file: NewFile) -> io::Result<()> {
        let too_long = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let mut out = Hashing { inner: file, hasher: Xxh3::new() };
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&self.model.to_le_bytes())?;
        out.write_all(&self.seed.to_le_bytes())?;
        let messages: Vec<Value> = self.messages.iter().map(to_json).collect();
        let messages = serde_json::to_vec(&messages)?;
        out.write_all(&u32::try_from(messages.len()).map_err(too_long)?.to_le_bytes())?;
        out.write_all(&messages)?;
        out.write_all(&u32::try_from(self.tokens.len()).map_err(too_long)?.to_le_bytes())?;
        for token in &self.tokens {
            out.write_all(&token.to_le_bytes())?;
        }
        out.write_all(&(self.cache.len() as u64).to_le_bytes())?;
        out.write_all(&self.cache)?;
        let checksum = out.hasher.digest();
        out.write_all(&checksum.to_le_bytes())?;
        out.inner.finish()
    }

    /// Reads a file, and checks all of it.
    pub(crate) fn read(path: &Path, expected: &Expected) -> Result<Self, SessionError> {
        let error = |source: io::Error| match source.kind() {
            io::ErrorKind::UnexpectedEof => SessionError::Length { path: path.to_owned() },
            _ => SessionError::Io { path: path.to_owned(), source },
        };
        let damaged = |what| SessionError::Damaged { path: path.to_owned(), what };
        let file = File::open(path).map_err(error)?;
        let mut from = Hashing { inner: BufReader::new(file), hasher: Xxh3::new() };
        let mut magic = [0; 8];
        let has_magic = from.read_exact(&mut magic).is_ok() && &magic == MAGIC;
        if !has_magic {
            return Err(SessionError::NotASession { path: path.to_owned() });
        }
        let found = u32::from_le_bytes(array(&mut from).map_err(error)?);
        if found != VERSION {
            return Err(SessionError::Version { path: path.to_owned(), found });
        }
        let model = u128::from_le_bytes(array(&mut from).map_err(error)?);
        if model != expected.model {
            return Err(SessionError::OtherModel { path: path.to_owned() });
        }
        let seed = u64::from_le_bytes(array(&mut from).map_err(error)?);

        let n_bytes = u32::from_le_bytes(array(&mut from).map_err(error)?);
        if n_bytes > MAX_MESSAGES_BYTES {
            return Err(damaged("messages"));
        }
        let messages = bytes(&mut from, n_bytes.into()).map_err(error)?;
        let messages: Vec<Value> = serde_json::from_slice(&messages).map_err(|_| damaged("messages"))?;
        let messages: Option<Vec<Message>> = messages.into_iter().map(from_json).collect();

        let n_tokens = u32::from_le_bytes(array(&mut from).map_err(error)?);
        if n_tokens as usize > expected.max_tokens {
            return Err(damaged("tokens"));
        }
        let tokens = bytes(&mut from, u64::from(n_tokens).saturating_mul(4)).map_err(error)?;
        let tokens: Vec<u32> = tokens.as_chunks().0.iter().map(|token| u32::from_le_bytes(*token)).collect();
        if tokens.iter().any(|&token| token as usize >= expected.n_vocab) {
            return Err(damaged("tokens"));
        }

        let n_bytes = u64::from_le_bytes(array(&mut from).map_err(error)?);
        if n_bytes > expected.max_cache_bytes {
            return Err(damaged("keys and values"));
        }
        let cache = bytes(&mut from, n_bytes).map_err(error)?;

        let checksum = from.hasher.digest();
        if u64::from_le_bytes(array(&mut from).map_err(error)?) != checksum {
            return Err(SessionError::Checksum { path: path.to_owned() });
        }
        if from.read(&mut [0]).map_err(error)? != 0 {
            return Err(SessionError::Length { path: path.to_owned() });
        }
        let messages = messages.ok_or_else(|| damaged("messages"))?;
        Ok(Self { model, seed, messages, tokens, cache })
    }
}

fn array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut array = [0; N];
    from.read_exact(&mut array)?;
    Ok(array)
}

/// Reads `n` bytes. Memory is only allocated for bytes that are really there.
fn bytes(from: &mut impl Read, n: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(n).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == n { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn to_json(message: &Message) -> Value {
    let mut map = Map::new();
    map.insert("role".to_owned(), message.role.as_str().into());
    map.insert("content".to_owned(), message.content.clone().into());
    map.insert("fields".to_owned(), message.fields.clone().into());
    if message.omits_content {
        map.insert("omits_content".to_owned(), true.into());
    }
    map.into()
}

fn from_json(value: Value) -> Option<Message> {
    let Value::Object(mut map) = value else { return None };
    let mut text = |key: &str| match map.remove(key) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let (role, content) = (text("role")?, text("content")?);
    let Some(Value::Object(fields)) = map.remove("fields") else { return None };
    let omits_content = match map.remove("omits_content") {
        None => false,
        Some(Value::Bool(omits)) => omits,
        Some(_) => return None,
    };
    Some(Message { fields, omits_content, ..Message::new(role, content) })
}
