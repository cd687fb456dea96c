//! `/admin/models`: which models are in memory, on which devices, and loading and unloading them by hand.

use std::sync::{Arc, LazyLock};

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::line::{Call, Endpoint, Reply};
use crate::models::{ModelStatus, Pool, Unloading};
use crate::server::Shared;

/// The models of the pool that the caller may use.
fn statuses(server: &Shared, call: &Call) -> Vec<ModelStatus> {
    let may_use = server.backend.models().list(&call.caller);
    let mut all = server.pool.as_ref().map(Pool::statuses).unwrap_or_default();
    all.retain(|status| may_use.iter().any(|model| model.id == status.id));
    all
}

/// The devices of this machine. They do not change while the server runs.
static DEVICES: LazyLock<Value> = LazyLock::new(|| {
    let shown = |device: fewbit::DeviceStatus| {
        json!({
            "name": device.name,
            "description": device.description,
            "is_software": device.is_software,
            "unusable": device.unusable,
        })
    };
    fewbit::devices().into_iter().map(shown).collect()
});

pub(super) struct Models;

impl Endpoint for Models {
    const PATH: &'static str = "/admin/models";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let data = statuses(server, &call);
        let memory = data.iter().fold(0_u64, |sum, status| sum.saturating_add(status.memory_bytes));
        // Asking drivers for their devices may take a while.
        let devices = tokio::task::spawn_blocking(|| DEVICES.clone()).await.map_err(|_| ApiError::internal())?;
        Reply::json(&json!({
            "object": "list",
            "devices": devices,
            "memory_limit_bytes": server.pool.as_ref().and_then(Pool::limit),
            "memory_bytes": memory,
            "data": data,
        }))
    }
}

#[derive(Deserialize)]
struct Named {
    model: String,
}

/// The model that a request names, with the pool it is in.
fn named<'a>(server: &'a Shared, call: &Call) -> Result<(&'a Pool, String), ApiError> {
    let Named { model } = call.read()?;
    match &server.pool {
        Some(pool) if statuses(server, call).iter().any(|status| status.id == model) => Ok((pool, model)),
        _ => {
            let message =
                format!("there is no model {model:?} here that is computed by this server: see /admin/models");
            let error = ApiError { param: Some("model".to_owned()), ..ApiError::new(StatusCode::NOT_FOUND, message) };
            Err(error.code("model_not_found"))
        }
    }
}

fn answer(server: &Shared, call: &Call, model: &str) -> Result<Reply, ApiError> {
    let status = statuses(server, call).into_iter().find(|status| status.id == model);
    Reply::json(&status.map_or(Value::Null, |status| json!(status)))
}

pub(super) struct Load;

impl Endpoint for Load {
    const PATH: &'static str = "/admin/models/load";

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let (pool, model) = named(server, &call)?;
        pool.preload(&model).await?;
        answer(server, &call, &model)
    }
}

pub(super) struct Unload;

impl Endpoint for Unload {
    const PATH: &'static str = "/admin/models/unload";

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let (pool, model) = named(server, &call)?;
        let conflict = |message: String| Err(ApiError::new(StatusCode::CONFLICT, message));
        match tokio::task::block_in_place(|| pool.unload(&model))? {
            Unloading::Done | Unloading::NotLoaded => answer(server, &call, &model),
            Unloading::InUse(n) => conflict(format!("{n} requests use the model {model:?}: try again when they ended")),
            Unloading::Permanent => {
                conflict(format!("the model {model:?} is loaded for as long as the server runs: serve it on demand"))
            }
        }
    }
}
