//! A client for other servers that are configured by the operator. Redirects are not followed, and everything is limited in
//! size and time. The gateway uses it for MCP servers.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderName, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::error::ServeError;

/// A pool of connections.
pub(crate) type Connections = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Creates a pool that gives up connecting after this time.
pub(crate) fn connections(connect_timeout: Duration) -> Connections {
    let connector = hyper_rustls::HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_http1();
    let mut http = HttpConnector::new();
    http.set_connect_timeout(Some(connect_timeout));
    http.set_nodelay(true);
    http.enforce_http(false);
    Client::builder(TokioExecutor::new()).build(connector.wrap_connector(http))
}

/// Sends requests to one URL.
pub struct HttpClient {
    connections: Connections,
    url: Uri,
    key: Option<HeaderValue>,
    limit: usize,
}

/// Why another server gave no answer. No message contains a key or the text of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// No connection could be made.
    #[error("cannot be reached")]
    Unreachable,
    /// The connection ended before the answer was complete.
    #[error("closed the connection before the end of its answer")]
    Closed,
    /// The answer exceeds the limit.
    #[error("sent more than {limit} bytes in one piece")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// A header of the request has characters that none can have.
    #[error("was to get a header with characters that none can have")]
    Header,
}

impl std::fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpClient").field("url", &self.url).finish_non_exhaustive()
    }
}

impl HttpClient {
    /// Creates a client. Nothing is sent yet. `limit` is the size limit, in bytes, of a body or an event.
    ///
    /// # Errors
    /// If the address is not an HTTP URL, or the key cannot be a header.
    pub fn new(url: &str, key: Option<&str>, connect_timeout: Duration, limit: usize) -> Result<Self, ServeError> {
        let wrong = |what| ServeError::Upstream { url: url.to_owned(), what };
        let uri: Uri = url.parse().map_err(|_| wrong("is not a URL of a server: give one such as https://HOST/mcp"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(wrong("is not a URL of a server: give one such as https://HOST/mcp"));
        }
        let key = key.map(|key| {
            let mut value = HeaderValue::try_from(format!("Bearer {key}"))?;
            value.set_sensitive(true);
            Ok::<_, axum::http::header::InvalidHeaderValue>(value)
        });
        let key =
            key.transpose().map_err(|_| wrong("has a key with characters that a header cannot hold: check the key"))?;
        Ok(Self { connections: connections(connect_timeout), url: uri, key, limit })
    }

    /// Posts JSON.
    ///
    /// # Errors
    /// If the server cannot be reached, or ends the connection.
    pub async fn post(&self, headers: &[(&'static str, &str)], json: Vec<u8>) -> Result<HttpAnswer, HttpError> {
        self.send(Method::POST, headers, json).await
    }

    /// Sends a DELETE.
    ///
    /// # Errors
    /// As for [`post`](Self::post).
    pub async fn delete(&self, headers: &[(&'static str, &str)]) -> Result<HttpAnswer, HttpError> {
        self.send(Method::DELETE, headers, Vec::new()).await
    }

    async fn send(
        &self,
        method: Method,
        headers: &[(&'static str, &str)],
        body: Vec<u8>,
    ) -> Result<HttpAnswer, HttpError> {
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = method;
        self.url.clone_into(request.uri_mut());
        let all = request.headers_mut();
        all.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        all.extend(self.key.clone().map(|key| (header::AUTHORIZATION, key)));
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).map_err(|_| HttpError::Header)?;
            all.insert(HeaderName::from_static(name), value);
        }
        let response = self.connections.request(request).await;
        let response =
            response.map_err(|error| if error.is_connect() { HttpError::Unreachable } else { HttpError::Closed })?;
        Ok(HttpAnswer { response, rest: Vec::new(), limit: self.limit })
    }
}

/// The answer of another server.
#[derive(Debug)]
pub struct HttpAnswer {
    response: Response<Incoming>,
    /// The bytes of an incomplete event.
    rest: Vec<u8>,
    limit: usize,
}

impl HttpAnswer {
    /// The status.
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The whole body.
    ///
    /// # Errors
    /// If it exceeds the limit, or the connection ends before.
    pub async fn whole(mut self) -> Result<Vec<u8>, HttpError> {
        while self.read().await? {}
        Ok(self.rest)
    }

    /// The data of the next server-sent event; `None` at the end.
    ///
    /// # Errors
    /// If it exceeds the limit, or the connection ends before.
    pub async fn event(&mut self) -> Result<Option<String>, HttpError> {
        loop {
            if let Some(text) = take_event(&mut self.rest) {
                if !text.is_empty() {
                    return Ok(Some(text));
                }
            } else if !self.read().await? {
                return Ok(None);
            }
        }
    }

    /// Reads more of the body. Returns whether there was any.
    async fn read(&mut self) -> Result<bool, HttpError> {
        loop {
            let Some(frame) = self.response.body_mut().frame().await else { return Ok(false) };
            let Ok(data) = frame.map_err(|_| HttpError::Closed)?.into_data() else { continue };
            if self.rest.len() + data.len() > self.limit {
                return Err(HttpError::TooLarge { limit: self.limit });
            }
            self.rest.extend_from_slice(&data);
            return Ok(true);
        }
    }
}

/// Takes the first event out of these bytes. Returns its data, or `None` if it is not complete.
fn take_event(bytes: &mut Vec<u8>) -> Option<String> {
    // A line ends with "\n" or "\r\n", and an event with an empty line.
    let mut start = 0;
    let mut data = Vec::new();
    loop {
        let n = bytes[start..].iter().position(|&byte| byte == b'\n')?;
        let line = bytes[start..start + n].strip_suffix(b"\r").unwrap_or(&bytes[start..start + n]);
        start += n + 1;
        if line.is_empty() {
            break;
        }
        if let Some(text) = line.strip_prefix(b"data:") {
            data.push(String::from_utf8_lossy(text.strip_prefix(b" ").unwrap_or(text)).into_owned());
        }
    }
    bytes.drain(..start);
    Some(data.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_one_by_one() {
        let mut bytes = b": hello\n\nevent: message\r\ndata: a\r\ndata:b\r\n\r\nid: 7\ndata: c\n".to_vec();
        assert_eq!(take_event(&mut bytes).as_deref(), Some(""));
        assert_eq!(take_event(&mut bytes).as_deref(), Some("a\nb"));
        assert_eq!(take_event(&mut bytes), None);
        bytes.extend(b"\n");
        assert_eq!(take_event(&mut bytes).as_deref(), Some("c"));
        assert!(bytes.is_empty());
    }

    #[test]
    fn only_urls_of_servers() {
        let new = |url: &str, key| HttpClient::new(url, key, Duration::from_secs(1), 1);
        assert!(new("http://localhost:1/mcp", Some("k")).is_ok());
        for url in ["ftp://x/y", "/mcp", "file:///etc/passwd", ""] {
            assert!(new(url, None).is_err(), "{url}");
        }
        let error = new("http://x/", Some("secret\n")).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
