//! Environment variables of Hugging Face's own tools, with the same meaning.
//!
//! Crate `hf-hub` (0.5) is not used for it, nor for the cache folder ([`snapshots`](super::snapshots)): it knows `HF_HOME`
//! alone (not `HF_HUB_CACHE`, `HF_TOKEN_PATH`, `XDG_CACHE_HOME`, nor offline mode), finds no file by its commit, panics
//! where there is no home folder, and its HTTP clients have no timeouts and check no hash. Looking models up must also
//! work in builds without the feature `hub`.

use std::path::PathBuf;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Settings for the Hugging Face Hub, from the environment or set by the caller.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HfSettings {
    /// The URL of the server (`HF_ENDPOINT`), without a slash at its end.
    pub endpoint: String,
    /// The user's token: `HF_TOKEN`, or the contents of the file `HF_TOKEN_PATH` (`$HF_HOME/token`). It is sent only to
    /// the endpoint.
    pub token: Option<String>,
    /// Offline mode: nothing may be fetched (`HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`).
    pub offline: bool,
    /// The cache folder of Hugging Face's tools: `HF_HUB_CACHE`, or `$HF_HOME/hub`.
    pub cache: Option<PathBuf>,
    /// Trusted certificates instead of Mozilla's, a PEM file or a folder of them: the first of `SSL_CERT_FILE`,
    /// `SSL_CERT_DIR`, `REQUESTS_CA_BUNDLE` and `CURL_CA_BUNDLE` that is set.
    pub certificates: Option<PathBuf>,
}

impl std::fmt::Debug for HfSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "...");
        f.debug_struct("HfSettings")
            .field("endpoint", &self.endpoint)
            .field("token", &token)
            .field("offline", &self.offline)
            .field("cache", &self.cache)
            .field("certificates", &self.certificates)
            .finish()
    }
}

impl HfSettings {
    /// The settings of the environment.
    pub fn from_env() -> Self {
        Self::read(&|name| std::env::var(name).ok(), std::env::home_dir())
    }

    /// The server at the URL `endpoint`: online, without a token and without a cache.
    pub fn new(endpoint: &str) -> Self {
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: None,
            offline: false,
            cache: None,
            certificates: None,
        }
    }

    /// Sets [`token`](Self::token).
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Sets [`offline`](Self::offline).
    pub fn offline(mut self, yes: bool) -> Self {
        self.offline = yes;
        self
    }

    /// Sets [`cache`](Self::cache).
    pub fn cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(folder.into());
        self
    }

    /// Sets [`certificates`](Self::certificates).
    pub fn certificates(mut self, path: impl Into<PathBuf>) -> Self {
        self.certificates = Some(path.into());
        self
    }

    fn read(variable: &dyn Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Self {
        let text = |name: &str| variable(name).map(|v| v.trim().to_owned()).filter(|value| !value.is_empty());
        let is_true = |value: String| matches!(&*value.to_ascii_uppercase(), "1" | "ON" | "YES" | "TRUE");
        let path = |name: &str| {
            let value = text(name)?;
            match (value.strip_prefix("~/").or(value.strip_prefix("~\\")), &home) {
                (Some(rest), Some(home)) => Some(home.join(rest)),
                _ => Some(PathBuf::from(value)),
            }
        };
        let hf_home = path("HF_HOME").or_else(|| {
            let cache = path("XDG_CACHE_HOME").or_else(|| Some(home.as_ref()?.join(".cache")))?;
            Some(cache.join("huggingface"))
        });
        let in_home = |name: &str| Some(hf_home.as_ref()?.join(name));
        let stored = || {
            let token = std::fs::read_to_string(path("HF_TOKEN_PATH").or_else(|| in_home("token"))?).ok()?;
            Some(token.trim().to_owned()).filter(|token| !token.is_empty())
        };
        let given = || text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
        let not_sent = text("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(is_true);
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: if not_sent { None } else { given().or_else(stored) },
            // The first one that is set counts, as in Hugging Face's tools.
            offline: text("HF_HUB_OFFLINE").or_else(|| text("TRANSFORMERS_OFFLINE")).is_some_and(is_true),
            certificates: ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
                .into_iter()
                .find_map(|name| text(name).map(PathBuf::from)),
            cache: path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).or_else(|| in_home("hub")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::HfSettings;
    use std::path::PathBuf;

    fn read(variables: &[(&str, &str)]) -> HfSettings {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        HfSettings::read(&find, Some(PathBuf::from("/home/u")))
    }

    #[test]
    fn variables_are_read_like_huggingface_hub_does() {
        let plain = read(&[]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache, Some("/home/u/.cache/huggingface/hub".into()));
        assert!(!plain.offline && plain.token.is_none());
        for (value, offline) in [("1", true), ("on", true), ("Yes", true), ("TRUE", true), ("0", false), ("2", false)] {
            assert_eq!(read(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
            assert_eq!(read(&[("TRANSFORMERS_OFFLINE", value)]).offline, offline, "{value}");
        }
        assert!(!read(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]).offline);
        assert!(read(&[("HF_HUB_OFFLINE", ""), ("TRANSFORMERS_OFFLINE", "1")]).offline);
        assert_eq!(read(&[("XDG_CACHE_HOME", "/x")]).cache, Some("/x/huggingface/hub".into()));
        assert_eq!(read(&[("HF_HOME", "~/hf"), ("XDG_CACHE_HOME", "/x")]).cache, Some("/home/u/hf/hub".into()));
        assert_eq!(read(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]).cache, Some("/c".into()));
        assert_eq!(read(&[("HF_ENDPOINT", "http://mirror/hf/")]).endpoint, "http://mirror/hf");
        let certificates = ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];
        for n in 0..certificates.len() {
            let set: Vec<_> = certificates[n..].iter().map(|&name| (name, name)).collect();
            assert_eq!(read(&set).certificates, Some(certificates[n].into()));
        }
        assert!(plain.certificates.is_none() && read(&[("SSL_CERT_FILE", "")]).certificates.is_none());
    }

    #[test]
    fn token_is_found_where_it_is_stored_and_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("token"), "hf_stored\n").unwrap();
        std::fs::write(folder.path().join("other"), "hf_other").unwrap();
        let other = folder.path().join("other").to_str().unwrap().to_owned();
        let token = |more: &[(&str, &str)]| read(&[&[("HF_HOME", home)], more].concat()).token;
        assert_eq!(token(&[]).as_deref(), Some("hf_stored"));
        assert_eq!(token(&[("HF_TOKEN_PATH", &other)]).as_deref(), Some("hf_other"));
        assert_eq!(token(&[("HF_TOKEN", " hf_given\n"), ("HF_TOKEN_PATH", &other)]).as_deref(), Some("hf_given"));
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert!(!format!("{:?}", read(&[("HF_TOKEN", "secret")])).contains("secret"));
    }
}
