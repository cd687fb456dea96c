//! Requests from within this process: the same endpoints without a socket.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, header};
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use crate::endpoints;
use crate::line::FEATURE_HEADER;
use crate::server::Shared;

/// A server for requests from within this process. It is created with [`Server::local`](crate::Server::local).
#[derive(Debug, Clone)]
pub struct Local {
    app: TowerToHyperService<Router>,
    on_behalf: Option<OnBehalf>,
    feature: Option<Arc<str>>,
}

/// Marks a request that this process sends on behalf of a key. It is not part of HTTP, so clients cannot send it.
#[derive(Debug, Clone)]
pub(crate) struct OnBehalf(pub(crate) Option<Arc<str>>);

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAnswer {
    /// As over HTTP.
    pub status: u16,
    /// As over HTTP.
    pub body: Bytes,
    /// The header `Retry-After`.
    pub retry_after_s: Option<u32>,
}

impl Local {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { app: TowerToHyperService::new(endpoints::router(shared)), on_behalf: None, feature: None }
    }

    /// Sends requests on behalf of this key, which is checked with each of them.
    pub(crate) fn on_behalf(self, key: Option<Arc<str>>) -> Self {
        Self { on_behalf: Some(OnBehalf(key)), ..self }
    }

    /// Sends requests for this feature, if they name none.
    pub(crate) fn feature(self, feature: Option<Arc<str>>) -> Self {
        Self { feature, ..self }
    }

    /// Posts a body to a path. Dropping the future ends the request.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> LocalAnswer {
        let mut request = Request::post(path).header(header::HOST, "localhost");
        if let Some(feature) = &self.feature {
            request = request.header(FEATURE_HEADER, &**feature);
        }
        let request = request.body(Body::from(body.into()));
        let Ok(mut request) = request else {
            let body = Bytes::from_static(b"{\"error\":{\"message\":\"this is no path\"}}");
            return LocalAnswer { status: 404, body, retry_after_s: None };
        };
        if let Some(on_behalf) = &self.on_behalf {
            request.extensions_mut().insert(on_behalf.clone());
        }
        let response = match self.app.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let status = response.status().as_u16();
        let retry_after_s = response.headers().get(header::RETRY_AFTER).and_then(|of| of.to_str().ok()?.parse().ok());
        // The body is created in this process, so reading it does not fail.
        let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        LocalAnswer { status, body, retry_after_s }
    }
}
