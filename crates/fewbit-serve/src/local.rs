//! Requests from within this process: the same endpoints without a socket.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, header};
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use crate::endpoints;
use crate::server::Shared;

/// A server for requests from within this process. It is created with [`Server::local`](crate::Server::local).
#[derive(Debug, Clone)]
pub struct Local {
    app: TowerToHyperService<Router>,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAnswer {
    /// As over HTTP.
    pub status: u16,
    /// As over HTTP.
    pub body: Bytes,
}

impl Local {
    pub(crate) fn new(shared: Shared) -> Self {
        Self { app: TowerToHyperService::new(endpoints::router(Arc::new(shared))) }
    }

    /// Posts a body to a path. Dropping the future ends the request.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> LocalAnswer {
        let request = Request::post(path).header(header::HOST, "localhost").body(Body::from(body.into()));
        let Ok(request) = request else {
            return LocalAnswer {
                status: 404,
                body: Bytes::from_static(b"{\"error\":{\"message\":\"this is no path\"}}"),
            };
        };
        let response = match self.app.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let status = response.status().as_u16();
        // The body is created in this process, so reading it does not fail.
        let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        LocalAnswer { status, body }
    }
}
