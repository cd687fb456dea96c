//! The source `hf`: a file in a Hugging Face repository.
//!
//! Crate `hf-hub` knows the conventions: where the user's token and the shared cache folder are, and
//! how that folder is laid out. It is used without its own HTTP clients, because those set no
//! timeouts, write to a folder of their own, and (in the asynchronous one) bring an async runtime and
//! C code. The transfer is a plain ranged GET with `ureq`, straight into the `.part` file.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use hf_hub::{Cache, Repo, RepoType};
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::http::header;

use super::{HubError, PartFile, Pin, Pinned, Source};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// How often a broken connection is taken up again, as long as each brings new bytes.
const MAX_RECONNECTS: u32 = 5;

/// A file in a Hugging Face repository, or in a server with the same URLs.
#[derive(Debug, Clone)]
pub struct HfSource {
    endpoint: String,
    repo: Repo,
    revision: String,
    repo_id: String,
    file: String,
    token: Option<String>,
    /// Where Hugging Face's own tools would have put the file.
    shared: Option<PathBuf>,
}

impl HfSource {
    /// The file `file` of `repo` at `revision`, on the server that `HF_ENDPOINT` names or else on
    /// huggingface.co, with the token in `HF_TOKEN` or the one that `hf auth login` stored.
    pub fn from_env(repo: &str, revision: &str, file: &str) -> Self {
        let cache = Cache::from_env();
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut source =
            Self::new(&variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()), repo, revision, file);
        source.token = variable("HF_TOKEN").or_else(|| cache.token());
        source.shared = Some(cache.repo(source.repo.clone()).pointer_path(revision).join(file));
        source
    }

    /// The file on the server `endpoint`, without a token and without looking into the cache of
    /// other tools.
    pub fn new(endpoint: &str, repo: &str, revision: &str, file: &str) -> Self {
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            repo: Repo::with_revision(repo.to_owned(), RepoType::Model, revision.to_owned()),
            revision: revision.to_owned(),
            repo_id: repo.to_owned(),
            file: file.to_owned(),
            token: None,
            shared: None,
        }
    }

    fn agent() -> Agent {
        Self::agent_with(10)
    }

    fn agent_with(max_redirects: u32) -> Agent {
        Agent::config_builder()
            .max_redirects(max_redirects)
            .max_redirects_will_error(max_redirects > 0)
            .timeout_resolve(Some(Duration::from_secs(10)))
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            .timeout_per_read(Some(Duration::from_secs(30)))
            .http_status_as_error(false)
            // A file is served by another host; the token is none of its business.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("fewbit/", env!("CARGO_PKG_VERSION")))
            .build()
            .into()
    }

    /// What the server says about the file: it answers with a redirection to the bytes, whose headers name the
    /// commit, and size and SHA-256 of a large file.
    fn ask(&self) -> Result<Option<(Pin, String)>, HubError> {
        let url = self.location();
        let mut request = Self::agent_with(0).head(&url);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let response =
            request.call().map_err(|error| HubError::Network { url: url.clone(), reason: describe(&error) })?;
        let status = response.status().as_u16();
        if status >= 400 {
            return Err(HubError::Status { url, status });
        }
        let text = |name: &str| response.headers().get(name)?.to_str().ok();
        let bytes = text("x-linked-size").and_then(|size| size.parse().ok());
        let sha256 = text("x-linked-etag").map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
        let Some(pin) = bytes.zip(sha256).and_then(|(bytes, sha256)| Pin::new(bytes, sha256).ok()) else {
            return Ok(None);
        };
        let is_commit = |commit: &&str| !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_hexdigit());
        let commit = text("x-repo-commit").filter(is_commit).unwrap_or(&self.revision);
        Ok(Some((pin, commit.to_owned())))
    }

    /// One GET for what is missing.
    fn get(&self, agent: &Agent, url: &str, part: &mut PartFile<'_>) -> Result<(), HubError> {
        let network = |reason: String| HubError::Network { url: url.to_owned(), reason };
        let mut request = agent.get(url);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if !part.is_empty() {
            request = request.header(header::RANGE, format!("bytes={}-", part.len()));
        }
        let response = request.call().map_err(|error| network(describe(&error)))?;

        let status = response.status().as_u16();
        let number = |name| {
            let text = response.headers().get(name)?.to_str().ok()?;
            Some(text.to_owned())
        };
        let total = match status {
            200 => {
                part.restart()?;
                number(header::CONTENT_LENGTH).and_then(|text| text.parse().ok())
            }
            206 => {
                let range = number(header::CONTENT_RANGE).and_then(|text| parse_range(&text));
                let Some((start, total)) = range else {
                    return Err(network("a partial answer that does not say which part".into()));
                };
                if start != part.len() {
                    return Err(network("a part that was not asked for".into()));
                }
                total
            }
            // Nothing after what is here: then what is here is not this file.
            416 => {
                part.restart()?;
                return Err(network("the server has no more bytes".into()));
            }
            _ => {
                return Err(HubError::Status { url: url.to_owned(), status });
            }
        };
        if let Some(found_bytes) = total
            && found_bytes != part.expected_bytes()
        {
            return Err(HubError::Size {
                location: url.to_owned(),
                expected_bytes: part.expected_bytes(),
                found_bytes,
            });
        }
        let mut reader = response.into_body().into_reader();
        part.append(&mut reader, url, &|error| network(error.to_string()))
    }
}

impl Source for HfSource {
    fn name(&self) -> &'static str {
        "hf"
    }

    fn location(&self) -> String {
        let Self { endpoint, repo_id, revision, file, .. } = self;
        format!("{endpoint}/{repo_id}/resolve/{}/{file}", revision.replace('/', "%2F"))
    }

    fn pin(&self) -> Result<Option<Pinned>, HubError> {
        let Some((pin, commit)) = self.ask()? else { return Ok(None) };
        // The branch may move on between the question and the download.
        let mut source = Self::new(&self.endpoint, &self.repo_id, &commit, &self.file);
        source.token = self.token.clone();
        Ok(Some(Pinned { pin, source: Box::new(source) }))
    }

    fn fetch(&self, part: &mut PartFile<'_>) -> Result<(), HubError> {
        if let Some(path) = &self.shared
            && let Ok(mut file) = File::open(path)
            && file.metadata().is_ok_and(|meta| meta.len() == part.expected_bytes())
        {
            tracing::info!(path = %path.display(), "found in the Hugging Face cache");
            part.restart()?;
            return part.append(&mut file, &path.display().to_string(), &|error| HubError::io("read", path, error));
        }

        let url = self.location();
        let agent = Self::agent();
        let mut reconnects = 0;
        loop {
            let before = part.len();
            let result = self.get(&agent, &url, part);
            match result {
                Err(HubError::Network { reason, .. }) if part.len() > before && reconnects < MAX_RECONNECTS => {
                    reconnects += 1;
                    tracing::info!(%reason, at = part.len(), "connection broke: continuing");
                }
                other => return other,
            }
        }
    }
}

/// `bytes START-END/TOTAL` (or `/*`) of a `Content-Range` header: the start, and the total if known.
fn parse_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

/// The client's own words are for programmers; these are the cases that people meet.
fn describe(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "the host name cannot be resolved".to_owned(),
        ureq::Error::Timeout(what) => format!("timed out ({what})"),
        ureq::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}
