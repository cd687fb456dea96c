//! `GET /`: the page, for people. It consists of a few files, and asks no other host for anything.

use std::sync::Arc;

use axum::http::StatusCode;

use crate::error::ApiError;
use crate::line::{Call, Endpoint, Reply};
use crate::server::Shared;

const SCRIPT: &str = "text/javascript; charset=utf-8";
const FILES: [(&str, &str, &str); 6] = [
    ("/", include_str!("../../page/index.html"), "text/html; charset=utf-8"),
    ("/page/style.css", include_str!("../../page/style.css"), "text/css; charset=utf-8"),
    ("/page/page.js", include_str!("../../page/page.js"), SCRIPT),
    ("/page/base.js", include_str!("../../page/base.js"), SCRIPT),
    ("/page/usage.js", include_str!("../../page/usage.js"), SCRIPT),
    ("/page/prompts.js", include_str!("../../page/prompts.js"), SCRIPT),
];

/// The page may only load its own files, may only ask this server, and no other page may show it in a frame.
const HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
];

pub(super) struct Page;

impl Endpoint for Page {
    const PATH: &'static str = "/";
    /// It is the same for everyone. What it asks for needs a key.
    const IS_OPEN: bool = true;
    const HAS_BODY: bool = false;

    async fn answer(_: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let file = FILES.iter().find(|(path, ..)| *path == call.path);
        let (_, text, kind) = file.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "there is no such file"))?;
        Ok(Reply::bytes(*text, kind).headers(HEADERS))
    }
}
