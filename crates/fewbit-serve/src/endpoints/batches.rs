//! `/v1/batches`: the requests in a file, answered in a file, in OpenAI's form.

use std::sync::Arc;

use axum::http::StatusCode;
use fewbit_api::batches::{Batch, BatchRequest, BatchStatus, RequestCounts};
use tokio::task::block_in_place;

use super::files::{files, owner, page};
use crate::batch::BATCH_ENDPOINTS;
use crate::batch::files::{Owned, StoredBatch, disk, is_over, now_ms};
use crate::error::ApiError;
use crate::line::{Call, Endpoint, Reply};
use crate::server::{Shared, random_id};

/// The most batches of a key that are not over.
const MAX_UNFINISHED: usize = 100;
/// The most pairs of `metadata`, and the most characters of a name and a value: OpenAI's limits.
const MAX_METADATA: (usize, usize, usize) = (16, 64, 512);

pub(super) struct CreateBatch;

impl Endpoint for CreateBatch {
    const PATH: &'static str = "/v1/batches";

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let files = files(server)?;
        let request: BatchRequest = call.read()?;
        let key = owner(&call.caller);
        let wrong = |param: &str, message: String| Err(ApiError::invalid(param, message));
        if !BATCH_ENDPOINTS.contains(&request.endpoint.as_str()) {
            let endpoints = BATCH_ENDPOINTS.join(", ");
            return wrong("endpoint", format!("`endpoint` is {:?}: it can be one of {endpoints}", request.endpoint));
        }
        if request.completion_window != "24h" {
            return wrong("completion_window", "`completion_window` can only be 24h".to_owned());
        }
        let (pairs, name, value) = MAX_METADATA;
        if let Some(metadata) = &request.metadata
            && (metadata.len() > pairs
                || metadata.iter().any(|(n, v)| n.chars().count() > name || v.chars().count() > value))
        {
            let message = format!(
                "`metadata` can have {pairs} pairs, of at most {name} characters for a name and {value} for a value"
            );
            return wrong("metadata", message);
        }
        let Some(file) = files.file(&key, &request.input_file_id).ok().filter(|file| file.purpose == "batch") else {
            let message = format!("`input_file_id`: there is no file {:?} of purpose batch", request.input_file_id);
            return wrong("input_file_id", message);
        };
        if files.batches(&key).iter().filter(|batch| !is_over(batch)).count() >= MAX_UNFINISHED {
            let message = format!("{MAX_UNFINISHED} batches of this key are not over yet: wait, or cancel one");
            let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).code("too_many_batches");
            return Err(ApiError { retry_after_s: Some(60), ..error });
        }
        let created_ms = now_ms();
        let batch = Batch {
            id: random_id("batch_"),
            object: "batch".into(),
            endpoint: request.endpoint,
            errors: None,
            input_file_id: file.id,
            completion_window: request.completion_window,
            status: BatchStatus::Validating,
            output_file_id: None,
            error_file_id: None,
            created_at: created_ms / 1000,
            in_progress_at: None,
            expires_at: Some(created_ms / 1000 + files.limits().window.as_secs()),
            finalizing_at: None,
            completed_at: None,
            failed_at: None,
            expired_at: None,
            cancelling_at: None,
            cancelled_at: None,
            request_counts: RequestCounts::default(),
            metadata: request.metadata,
        };
        let stored = StoredBatch {
            batch: batch.clone(),
            seed: request.seed.unwrap_or(0),
            feature: call.caller.feature.as_deref().map(str::to_owned),
            output_id: random_id("file-"),
            error_id: random_id("file-"),
            ends_as: None,
        };
        block_in_place(|| files.add_batch(Owned { key, created_ms, it: stored })).map_err(|error| disk(&error))?;
        files.shared.running.start(server, files, batch.id.clone());
        Reply::json(&batch)
    }
}

pub(super) struct ListBatches;

impl Endpoint for ListBatches {
    const PATH: &'static str = "/v1/batches";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let all = files(server)?.batches(&owner(&call.caller));
        Reply::json(&page(all, &call, 20, |batch| batch.id.clone())?)
    }
}

pub(super) struct OneBatch;

impl Endpoint for OneBatch {
    const PATH: &'static str = "/v1/batches/{id}";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let id = call.path.strip_prefix("/v1/batches/").unwrap_or_default();
        Reply::json(&files(server)?.batch(&owner(&call.caller), id)?)
    }
}

pub(super) struct CancelBatch;

impl Endpoint for CancelBatch {
    const PATH: &'static str = "/v1/batches/{id}/cancel";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let files = files(server)?;
        let id = call.path.strip_prefix("/v1/batches/").and_then(|rest| rest.strip_suffix("/cancel"));
        let id = id.unwrap_or_default();
        files.batch(&owner(&call.caller), id)?;
        let cancelled = block_in_place(|| {
            files.change(id, true, |stored| {
                let can_end = matches!(stored.batch.status, BatchStatus::Validating | BatchStatus::InProgress);
                if can_end && stored.ends_as.is_none() {
                    stored.batch.status = BatchStatus::Cancelling;
                    stored.batch.cancelling_at = Some(now_ms() / 1000);
                }
                stored.batch.clone()
            })
        });
        let batch = cancelled.map_err(|error| disk(&error))?;
        if batch.status != BatchStatus::Cancelling {
            let message = format!("the batch {id:?} is over, or about to be");
            return Err(ApiError::new(StatusCode::CONFLICT, message).code("batch_over"));
        }
        files.shared.running.cancel(id);
        Reply::json(&batch)
    }
}
