//! Requests to the Hugging Face Hub, or to a server with the same URLs.

use std::io::Read;
use std::time::Duration;

use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, header};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body, Proxy, ResponseExt};

use super::{HfSettings, HubError, certificates};

/// How many times a request is sent if the server is busy.
const MAX_TRIES: u32 = 4;
/// The longest wait that a busy server can ask for.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// The most bytes of an answer other than a file.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// A client for one server, with the user's token for it.
#[derive(Debug, Clone)]
pub(super) struct Client {
    agent: Agent,
    token: Option<String>,
    endpoint: String,
}

impl Client {
    pub(super) fn new(settings: &HfSettings) -> Result<Self, HubError> {
        Self::with_redirects(settings, 10)
    }

    /// A client that returns redirections instead of following them.
    pub(super) fn without_redirects(settings: &HfSettings) -> Result<Self, HubError> {
        Self::with_redirects(settings, 0)
    }

    fn with_redirects(settings: &HfSettings, max_redirects: u32) -> Result<Self, HubError> {
        let mut tls = TlsConfig::builder();
        // A server without TLS needs no certificates.
        if let Some(path) = settings.certificates.as_ref().filter(|_| settings.endpoint.starts_with("https:")) {
            tls = tls.root_certs(certificates::roots(path)?);
        }
        let agent = Agent::config_builder()
            .tls_config(tls.build())
            .max_redirects(max_redirects)
            .max_redirects_will_error(max_redirects > 0)
            .proxy(proxy(&settings.endpoint, &|name| std::env::var(name).ok()))
            .timeout_resolve(Some(Duration::from_secs(10)))
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            .timeout_per_read(Some(Duration::from_secs(30)))
            .http_status_as_error(false)
            // The token is meant for the server, not for the storage that it redirects to.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("fewbit/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Ok(Self { agent, token: settings.token.clone(), endpoint: settings.endpoint.clone() })
    }

    /// Sends one request; `range` is `bytes=FROM-TO`. Waits and tries again if the server is busy; all other answers
    /// are returned for the caller to check.
    pub(super) fn send(&self, is_head: bool, url: &str, range: Option<&str>) -> Result<Response<Body>, HubError> {
        let mut tries = 0;
        loop {
            let mut request = if is_head { self.agent.head(url) } else { self.agent.get(url) };
            if let Some(token) = self.token.as_ref().filter(|_| self.is_ours(url)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some(range) = range {
                request = request.header(header::RANGE, range);
            }
            let response =
                request.call().map_err(|error| HubError::Network { url: url.to_owned(), reason: describe(&error) })?;
            let status = response.status().as_u16();
            if !matches!(status, 429 | 502 | 503 | 504) {
                return Ok(response);
            }
            let says = text(&response, "retry-after").and_then(|seconds| seconds.trim().parse().ok());
            let wait = says.map(Duration::from_secs);
            tries += 1;
            if tries == MAX_TRIES || wait.is_some_and(|wait| wait > MAX_WAIT) {
                return Err(HubError::Busy { url: url.to_owned(), status, retry_after_s: says });
            }
            let wait = wait.unwrap_or(Duration::from_millis(100) * 4u32.pow(tries));
            tracing::info!(url, status, ?wait, "the server has no time: waiting");
            std::thread::sleep(wait);
        }
    }

    /// Whether a URL belongs to the server that the token is for.
    fn is_ours(&self, url: &str) -> bool {
        url.strip_prefix(&*self.endpoint).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Gets a whole answer, of at most `limit` bytes.
    pub(super) fn get(&self, url: &str, limit: Option<u64>) -> Result<Vec<u8>, HubError> {
        let limit = limit.unwrap_or(MAX_ANSWER_BYTES);
        let response = check(self.send(false, url, None)?, url)?;
        read(response, url, limit, 0)
    }

    /// Gets the bytes of a file from `from` up to `to` (exclusive). Also returns the size of the file, and the URL that
    /// the server redirected to.
    pub(super) fn range(&self, url: &str, from: u64, to: u64) -> Result<(Vec<u8>, u64, String), HubError> {
        let response = check(self.send(false, url, Some(&format!("bytes={from}-{}", to.saturating_sub(1))))?, url)?;
        let bad = |reason: &str| HubError::BadAnswer { url: url.to_owned(), reason: reason.to_owned() };
        let place = response.get_uri().to_string();
        if response.status().as_u16() == 200 {
            let total = text(&response, "content-length").and_then(|n| n.parse().ok());
            let total: u64 = total.ok_or_else(|| bad("it has no ranges, and names no length"))?;
            if from > 0 || total > to {
                return Err(bad("the server gives no parts of files (ranges)"));
            }
            return Ok((read(response, url, total, total)?, total, place));
        }
        let range = text(&response, "content-range").and_then(|text| parse_range(&text));
        let Some((start, Some(total))) = range else {
            return Err(bad("a partial answer that does not say which part"));
        };
        if start != from {
            return Err(bad("a part that was not asked for"));
        }
        let expected = to.min(total).saturating_sub(from);
        Ok((read(response, url, expected, expected)?, total, place))
    }
}

/// Returns an error for an unsuccessful answer, with the details in Hugging Face's headers.
pub(super) fn check(response: Response<Body>, url: &str) -> Result<Response<Body>, HubError> {
    let status = response.status().as_u16();
    if status < 400 {
        return Ok(response);
    }
    let url = url.to_owned();
    Err(match (status, text(&response, "x-error-code").as_deref()) {
        (_, Some("GatedRepo")) => HubError::Gated { url },
        (_, Some("RepoNotFound")) => HubError::NoSuchRepo { url },
        (_, Some("RevisionNotFound")) => HubError::NoSuchRevision { url },
        _ => HubError::Status { url, status },
    })
}

/// Reads the body, of at most `limit` bytes and at least `expected`.
fn read(response: Response<Body>, url: &str, limit: u64, expected: u64) -> Result<Vec<u8>, HubError> {
    // Reserves memory for the announced size, within reason; after that, memory grows with the bytes received.
    let mut bytes = Vec::with_capacity(usize::try_from(expected.min(16 << 20)).unwrap_or(0));
    let mut reader = response.into_body().into_reader().take(limit.saturating_add(1));
    let network = |reason: String| HubError::Network { url: url.to_owned(), reason };
    reader.read_to_end(&mut bytes).map_err(|error| network(error.to_string()))?;
    let found = bytes.len() as u64;
    if found > limit {
        return Err(HubError::BadAnswer { url: url.to_owned(), reason: format!("more than {limit} bytes") });
    }
    if found < expected {
        return Err(network(format!("ended after {found} of {expected} bytes")));
    }
    Ok(bytes)
}

pub(super) fn text(response: &Response<Body>, name: &str) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}

/// Parses `bytes START-END/TOTAL` (or `/*`) of a `Content-Range` header: the start, and the total if known.
pub(super) fn parse_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

/// The HTTP client's messages are for programmers; these are for the cases that users meet.
pub(super) fn describe(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "the host name cannot be resolved".to_owned(),
        ureq::Error::Timeout(what) => format!("timed out ({what})"),
        ureq::Error::Io(error) if is_untrusted(&error.to_string()) => untrusted(&error.to_string()),
        ureq::Error::Io(error) => error.to_string(),
        other if is_untrusted(&other.to_string()) => untrusted(&other.to_string()),
        other => other.to_string(),
    }
}

fn is_untrusted(reason: &str) -> bool {
    reason.contains("UnknownIssuer")
}

fn untrusted(reason: &str) -> String {
    format!("{reason}: nobody who is trusted vouches for it (for a company's own certificates set SSL_CERT_FILE)")
}

/// The proxy for a URL, chosen like in curl and Python: by the scheme of the URL, then the one for all URLs. (The HTTP
/// client would use the first variable that is set, whatever its scheme.)
fn proxy(endpoint: &str, variable: &dyn Fn(&str) -> Option<String>) -> Option<Proxy> {
    let names: [&str; 4] = match endpoint.starts_with("https:") {
        true => ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
        false => ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"],
    };
    let get = |name: &str| variable(name).map(|v| v.trim().to_owned()).filter(|value| !value.is_empty());
    let address = names.iter().find_map(|name| get(name))?;
    let host = endpoint.split("://").nth(1)?.split('/').next()?;
    let host = host.rsplit_once(':').filter(|(_, p)| p.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(h, _)| h);
    let direct = get("no_proxy").or_else(|| get("NO_PROXY")).unwrap_or_default();
    let is_direct = direct.split(',').map(str::trim).filter(|name| !name.is_empty()).any(|name| {
        let name = name.trim_start_matches('*').trim_start_matches('.').to_ascii_lowercase();
        let host = host.to_ascii_lowercase();
        name.is_empty() || host == name || host.strip_suffix(&*name).is_some_and(|before| before.ends_with('.'))
    });
    if is_direct {
        return None;
    }
    match Proxy::new(&address) {
        Ok(proxy) => Some(proxy),
        Err(error) => {
            tracing::warn!(%error, "the address of the proxy cannot be used");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{parse_range, proxy};

    #[test]
    fn proxy_is_chosen_by_the_url_scheme() {
        let of = |endpoint: &str, variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            proxy(endpoint, &find).map(|proxy| format!("{}:{}", proxy.host(), proxy.port()))
        };
        let (https, http) = ("https://huggingface.co", "http://127.0.0.1:81");
        let all = [("HTTPS_PROXY", "http://s:1"), ("HTTP_PROXY", "p:2"), ("ALL_PROXY", "socks5://a:3")];
        assert_eq!(of(https, &all).as_deref(), Some("s:1"));
        assert_eq!(of(http, &all).as_deref(), Some("p:2"));
        assert_eq!(of(https, &all[1..]).as_deref(), Some("a:3"));
        assert_eq!(of(https, &all[1..2]), None);
        assert_eq!(of(https, &[]), None);
        for (direct, is_direct) in [
            ("huggingface.co", true),
            (".co", true),
            ("*", true),
            ("x.co, HuggingFace.co", true),
            ("face.co", false),
            ("", false),
            ("hf.co", false),
        ] {
            let found = of(https, &[all[0], ("NO_PROXY", direct)]);
            assert_eq!(found.is_none(), is_direct, "{direct}");
        }
        assert_eq!(of(http, &[all[1], ("no_proxy", "127.0.0.1")]), None);
    }

    #[test]
    fn content_ranges_are_parsed() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(parse_range("bytes */10"), None);
    }
}
