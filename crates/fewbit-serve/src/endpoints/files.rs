//! `/v1/files`: files for batches, in OpenAI's form.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode, header};
use fewbit_api::files::Page;
use futures_util::stream;
use serde_json::json;
use tokio::task::block_in_place;

use crate::backend::Caller;
use crate::batch::files::{Files, Owner, disk};
use crate::batch::multipart::Multipart;
use crate::error::ApiError;
use crate::line::{Call, Endpoint, Reply};
use crate::server::Shared;

/// What a form may have in addition to its file.
const FORM_BYTES: u64 = 64 << 10;
/// The most items of a page.
const MAX_PAGE: usize = 10_000;

/// The files of the server.
pub(super) fn files(server: &Shared) -> Result<&Files, ApiError> {
    server.files.as_ref().ok_or_else(|| {
        let message = "this server keeps no files: give its configuration a `store`";
        ApiError::new(StatusCode::NOT_FOUND, message).code("no_store")
    })
}

pub(super) fn owner(caller: &Caller) -> Owner {
    caller.key.as_deref().map(str::to_owned)
}

/// The page that the query of a list asks for: `limit`, `after` and `order`. The items are given oldest first.
pub(super) fn page<T>(
    mut items: Vec<T>,
    call: &Call,
    default_limit: usize,
    id: impl Fn(&T) -> String,
) -> Result<Page<T>, ApiError> {
    let limit = match call.query("limit") {
        None => default_limit,
        Some(text) => match text.parse() {
            Ok(limit) if (1..=MAX_PAGE).contains(&limit) => limit,
            _ => return Err(ApiError::invalid("limit", format!("`limit` is {text:?}: give 1 to {MAX_PAGE}"))),
        },
    };
    match call.query("order").as_deref() {
        None | Some("desc") => items.reverse(),
        Some("asc") => {}
        Some(other) => return Err(ApiError::invalid("order", format!("`order` is {other:?}: give asc or desc"))),
    }
    if let Some(after) = call.query("after") {
        let Some(place) = items.iter().position(|item| id(item) == after) else {
            return Err(ApiError::invalid("after", format!("`after`: there is no item {after:?}")));
        };
        items.drain(..=place);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let (first_id, last_id) = (items.first().map(&id), items.last().map(&id));
    Ok(Page { object: "list", data: items, first_id, last_id, has_more })
}

pub(super) struct UploadFile;

impl Endpoint for UploadFile {
    const PATH: &'static str = "/v1/files";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let files = files(server)?;
        let kind = |headers: &HeaderMap| Some(headers.get(header::CONTENT_TYPE)?.to_str().ok()?.to_owned());
        let kind = kind(&call.headers).unwrap_or_default();
        let limit = files.limits().file_bytes.saturating_add(FORM_BYTES);
        let mut form = Multipart::new(&kind, call.upload, limit)?;
        let (mut purpose, mut file) = (None, None);
        while let Some(part) = form.next().await? {
            match part.name.as_str() {
                "purpose" => purpose = Some(form.text("purpose", 100).await?),
                "file" => {
                    if file.is_some() {
                        return Err(ApiError::invalid("file", "the form has two files: upload one at a time"));
                    }
                    let mut upload = files.upload(&owner(&call.caller))?;
                    while let Some(piece) = form.piece().await? {
                        block_in_place(|| upload.write(&piece))?;
                    }
                    file = Some((upload, part.filename.unwrap_or_else(|| "file".to_owned())));
                }
                _ => {}
            }
        }
        match purpose.as_deref() {
            Some("batch") => {}
            None => return Err(ApiError::invalid("purpose", "`purpose` is missing: give batch")),
            Some(other) => {
                return Err(ApiError::invalid("purpose", format!("`purpose` is {other:?}: it can be batch here")));
            }
        }
        let Some((upload, name)) = file else { return Err(ApiError::invalid("file", "`file` is missing in the form")) };
        Reply::json(&block_in_place(|| upload.finish(&name))?)
    }
}

pub(super) struct ListFiles;

impl Endpoint for ListFiles {
    const PATH: &'static str = "/v1/files";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let mut all = files(server)?.files(&owner(&call.caller));
        if let Some(purpose) = call.query("purpose") {
            all.retain(|file| file.purpose == purpose);
        }
        Reply::json(&page(all, &call, MAX_PAGE, |file| file.id.clone())?)
    }
}

fn id_of(call: &Call) -> &str {
    call.path.strip_prefix("/v1/files/").unwrap_or_default()
}

pub(super) struct OneFile;

impl Endpoint for OneFile {
    const PATH: &'static str = "/v1/files/{id}";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        Reply::json(&files(server)?.file(&owner(&call.caller), id_of(&call))?)
    }
}

pub(super) struct DeleteFile;

impl Endpoint for DeleteFile {
    const PATH: &'static str = "/v1/files/{id} (delete)";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let id = id_of(&call);
        block_in_place(|| files(server)?.delete(&owner(&call.caller), id))?;
        Reply::json(&json!({ "id": id, "object": "file", "deleted": true }))
    }
}

pub(super) struct FileContent;

impl Endpoint for FileContent {
    const PATH: &'static str = "/v1/files/{id}/content";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let id = id_of(&call).strip_suffix("/content").unwrap_or_default();
        let path = files(server)?.content(&owner(&call.caller), id)?;
        let file = File::open(path).map_err(|error| disk(&error))?;
        let length = file.metadata().map_err(|error| disk(&error))?.len();
        let pieces = stream::try_unfold(file, |mut file| async move {
            let mut piece = vec![0; 64 << 10];
            let n = block_in_place(|| file.read(&mut piece))?;
            piece.truncate(n);
            Ok((n > 0).then_some((piece, file)))
        });
        Ok(Reply::file(pieces, length, "application/jsonl"))
    }
}
