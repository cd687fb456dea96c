//! The API keys of a store: scopes, limits, and how a key is recognized.
//!
//! A key is `fb-` followed by 256 random bits in hexadecimal, and is shown once. Only its SHA-256 is stored, so reading
//! the file does not reveal usable keys. The key of a request is compared with all keys, each in constant time.
//!
//! The file is replaced atomically, and read again when it has changed, so a running server refuses a revoked key at
//! once.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::GatewayError;
use crate::{hex, now_ms};

const FILE: &str = "keys.json";
const KEY_BYTES: usize = 32;

/// A key with its scopes and limits. A missing list allows everything; an empty list allows nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Key {
    /// The name of the key, which also appears in the log.
    pub name: String,
    /// SHA-256 of the key, in hexadecimal.
    pub sha256: String,
    /// When the key was created, in seconds since 1970.
    pub created_s: u64,
    /// When the key was revoked, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_s: Option<u64>,
    /// Models and routes that its requests may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
    /// Endpoints that it may call. A path includes all paths below it. Without a list, all endpoints except those under
    /// `/admin` are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<String>>,
    /// Tools that its requests may offer to a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<String>>,
    /// Requests per minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers per day (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_day: Option<u64>,
    /// Cost per day (UTC), in the currency of the prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_per_day: Option<f64>,
}

/// Whether a path is one of those that administer the server. A key may call them only if its scopes name them.
fn is_admin(path: &str) -> bool {
    path == "/admin" || path.starts_with("/admin/")
}

impl Key {
    pub(crate) fn may_ask(&self, endpoint: &str) -> bool {
        let is_of = |scope: &String| match endpoint.strip_prefix(scope.trim_end_matches('/')) {
            Some(rest) => rest.is_empty() || rest.starts_with('/'),
            None => false,
        };
        match &self.endpoints {
            Some(all) if is_admin(endpoint) => all.iter().any(|scope| is_admin(scope) && is_of(scope)),
            Some(all) => all.iter().any(is_of),
            None => !is_admin(endpoint),
        }
    }

    pub(crate) fn may_name(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|all| all.iter().any(|known| known == model))
    }

    pub(crate) fn may_offer(&self, tool: &str) -> bool {
        self.tools.as_ref().is_none_or(|all| all.iter().any(|known| known == tool))
    }
}

/// A newly created key.
pub struct NewKey {
    /// The key itself, to send with requests. It cannot be shown again.
    pub secret: String,
    /// What is stored about it.
    pub key: Key,
}

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKey").field("key", &self.key).finish_non_exhaustive()
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    keys: Vec<Key>,
}

/// The keys of a store.
#[derive(Debug)]
pub struct KeyStore {
    path: PathBuf,
    keys: Vec<(Key, [u8; KEY_BYTES])>,
    /// Modification time and length of the file when it was last read.
    stamp: Option<(SystemTime, u64)>,
}

impl KeyStore {
    /// Reads the keys in this folder. Without a file there are none yet.
    ///
    /// # Errors
    /// If the file cannot be read, or is not a valid key file.
    pub fn open(store: impl AsRef<Path>) -> Result<Self, GatewayError> {
        let mut this = Self { path: store.as_ref().join(FILE), keys: Vec::new(), stamp: None };
        this.read()?;
        Ok(this)
    }

    /// All keys, including revoked ones, in the order of their creation.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter().map(|(key, _)| key)
    }

    /// Creates a key with this name, and with the scopes and limits of `scope`.
    ///
    /// # Errors
    /// If the name is taken or invalid, or the file cannot be read or written.
    pub fn add(&mut self, name: &str, scope: Key) -> Result<NewKey, GatewayError> {
        self.read()?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 64 || !name.chars().all(is_name) {
            return Err(GatewayError::Name { name: name.to_owned() });
        }
        // Names are never reused: a name in the log always means the same key.
        if self.keys().any(|key| key.name == name) {
            return Err(GatewayError::SameName { name: name.to_owned() });
        }
        let mut bytes = [0; KEY_BYTES];
        getrandom::fill(&mut bytes).map_err(GatewayError::Random)?;
        let secret = format!("fb-{}", hex(&bytes));
        let hash: [u8; KEY_BYTES] = Sha256::digest(secret.as_bytes()).into();
        let created_s = now_ms() / 1000;
        let key = Key { name: name.to_owned(), sha256: hex(&hash), created_s, revoked_s: None, ..scope };
        self.keys.push((key.clone(), hash));
        self.write()?;
        Ok(NewKey { secret, key })
    }

    /// Revokes a key.
    ///
    /// # Errors
    /// If there is no key of this name in use, or the file cannot be read or written.
    pub fn revoke(&mut self, name: &str) -> Result<Key, GatewayError> {
        self.read()?;
        let found = self.keys.iter_mut().find(|(key, _)| key.name == name && key.revoked_s.is_none());
        let Some((key, _)) = found else { return Err(GatewayError::NoSuchKey { name: name.to_owned() }) };
        key.revoked_s = Some(now_ms() / 1000);
        let key = key.clone();
        self.write()?;
        Ok(key)
    }

    /// The key that a request sent, if it is known and not revoked.
    pub(crate) fn find(&self, shown: &[u8]) -> Option<&Key> {
        let shown: [u8; KEY_BYTES] = Sha256::digest(shown).into();
        let mut found = None;
        // Always compares with all keys, so that the time does not depend on which one matches.
        for (key, hash) in &self.keys {
            if bool::from(hash.ct_eq(&shown)) {
                found = Some(key);
            }
        }
        found.filter(|key| key.revoked_s.is_none())
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Key> {
        self.keys().find(|key| key.name == name && key.revoked_s.is_none())
    }

    /// Reads the file again if it has changed.
    pub(crate) fn refresh(&mut self) -> Result<(), GatewayError> {
        if self.stamp == stamp(&self.path) { Ok(()) } else { self.read() }
    }

    fn read(&mut self) -> Result<(), GatewayError> {
        let stamp = stamp(&self.path);
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                (self.keys, self.stamp) = (Vec::new(), None);
                return Ok(());
            }
            Err(error) => return Err(GatewayError::file("read", &self.path)(error)),
        };
        let wrong = |error| GatewayError::Keys { path: self.path.clone(), error };
        let file: File = serde_json::from_slice(&text).map_err(wrong)?;
        let of = |key: Key| match unhex(&key.sha256) {
            Some(hash) => Ok((key, hash)),
            None => Err(wrong(serde::de::Error::custom(format_args!("the hash of {:?} is not a SHA-256", key.name)))),
        };
        self.keys = file.keys.into_iter().map(of).collect::<Result<_, _>>()?;
        self.stamp = stamp;
        Ok(())
    }

    fn write(&mut self) -> Result<(), GatewayError> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(GatewayError::file("make", folder))?;
        let failed = || GatewayError::file("write", &self.path);
        let file = File { version: 1, keys: self.keys().cloned().collect() };
        let mut text = serde_json::to_vec_pretty(&file).map_err(|error| failed()(error.into()))?;
        text.push(b'\n');
        // A temporary file is readable by its owner only, and keeps that mode when it is renamed.
        let mut new = tempfile::NamedTempFile::new_in(folder).map_err(failed())?;
        new.write_all(&text).and_then(|()| new.as_file().sync_all()).map_err(failed())?;
        new.persist(&self.path).map_err(|error| failed()(error.error))?;
        self.stamp = stamp(&self.path);
        Ok(())
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn unhex(text: &str) -> Option<[u8; KEY_BYTES]> {
    let bytes: Option<Vec<u8>> =
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok()).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_created_found_and_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = KeyStore::open(folder.path().join("new")).unwrap();
        let mut server = KeyStore::open(folder.path().join("new")).unwrap();
        let scope = Key { models: Some(vec!["m".into()]), ..Key::default() };
        let made = store.add("ada", scope).unwrap();
        assert!(made.secret.len() == 67 && made.secret.starts_with("fb-"));
        let text = fs::read_to_string(&store.path).unwrap();
        assert!(!text.contains(&made.secret) && !format!("{made:?}").contains(&made.secret));
        assert!(server.find(made.secret.as_bytes()).is_none());
        server.refresh().unwrap();
        assert_eq!(server.find(made.secret.as_bytes()), Some(&made.key));
        assert!(server.find(&made.secret.as_bytes()[..66]).is_none() && server.find(b"").is_none());
        assert!(matches!(store.add("ada", Key::default()), Err(GatewayError::SameName { .. })));
        assert!(matches!(store.add("a b", Key::default()), Err(GatewayError::Name { .. })));
        store.revoke("ada").unwrap();
        assert!(matches!(store.revoke("ada"), Err(GatewayError::NoSuchKey { .. })));
        assert!(matches!(store.add("ada", Key::default()), Err(GatewayError::SameName { .. })));
        server.refresh().unwrap();
        assert!(server.find(made.secret.as_bytes()).is_none() && server.named("ada").is_none());
        #[cfg(unix)]
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&store.path).unwrap().permissions()) & 0o77,
            0
        );
    }

    #[test]
    fn invalid_key_files_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = KeyStore::open(folder.path()).unwrap();
        store.add("ada", Key::default()).unwrap();
        for text in [
            "",
            "{}",
            "{\"version\":1,\"keys\":[{\"name\":\"x\",\"sha256\":\"00\",\"created_s\":0}]}",
            "{\"version\":1,\"keys\":[{\"name\":\"x\",\"sha256\":\"\",\"created_s\":0,\"model\":[]}]}",
        ] {
            fs::write(folder.path().join(FILE), text).unwrap();
            assert!(matches!(KeyStore::open(folder.path()), Err(GatewayError::Keys { .. })), "{text}");
            assert!(store.refresh().is_err());
            // The keys that were read before stay.
            assert_eq!(store.keys().count(), 1);
        }
    }

    #[test]
    fn scopes_limit_endpoints_models_and_tools() {
        let all = Key::default();
        assert!(all.may_ask("/v1/models") && all.may_name("m") && all.may_offer("f"));
        let list = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
        let key =
            Key { endpoints: list(&["/v1/messages", "/v1/models/"]), models: list(&["m"]), tools: list(&[]), ..all };
        assert!(key.may_ask("/v1/messages") && key.may_ask("/v1/messages/count_tokens") && key.may_ask("/v1/models"));
        assert!(!key.may_ask("/v1/messagesx") && !key.may_ask("/v1/chat/completions"));
        assert!(!key.may_ask("/admin/reload") && !Key::default().may_ask("/admin/reload"));
        let with = |scope: &str| Key { endpoints: list(&[scope]), ..Key::default() };
        assert!(with("/admin").may_ask("/admin/reload") && !with("/admin").may_ask("/v1/models"));
        assert!(!with("/").may_ask("/admin/reload") && with("/").may_ask("/v1/models"));
        assert!(key.may_name("m") && !key.may_name("M") && !key.may_offer("f"));
    }
}
