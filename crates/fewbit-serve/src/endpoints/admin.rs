//! Requests in progress, usage, the audit log, prompts and approvals: of all keys under `/admin`, of the asking key under
//! `/v1`.

use std::marker::PhantomData;
use std::sync::Arc;

use axum::http::StatusCode;
use fewbit_api::admin::{Cancelled, DecideRequest, Decided, List, Verdict};

use crate::admin::Admin;
use crate::backend::Caller;
use crate::error::ApiError;
use crate::line::{Call, Endpoint, Reply};
use crate::server::Shared;

/// Whose requests and usage an endpoint shows.
pub(super) trait Whose: Send + 'static {
    const REQUESTS: &'static str;
    const CANCEL: &'static str;
    const USAGE: &'static str;
    const IS_OWN: bool;
}

/// Those of all keys.
pub(super) struct All;

impl Whose for All {
    const REQUESTS: &'static str = "/admin/requests";
    const CANCEL: &'static str = "/admin/requests/{id} (delete)";
    const USAGE: &'static str = "/admin/usage";
    const IS_OWN: bool = false;
}

/// Those of the asking key.
pub(super) struct Own;

impl Whose for Own {
    const REQUESTS: &'static str = "/v1/requests";
    const CANCEL: &'static str = "/v1/requests/{id} (delete)";
    const USAGE: &'static str = "/v1/usage";
    const IS_OWN: bool = true;
}

fn is_shown<W: Whose>(asking: &Caller) -> impl Fn(&Caller) -> bool + '_ {
    move |caller| !W::IS_OWN || caller.key == asking.key
}

/// Lists the requests in progress.
pub(super) struct Requests<W>(PhantomData<W>);

impl<W: Whose> Endpoint for Requests<W> {
    const PATH: &'static str = W::REQUESTS;
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        Reply::json(&List::new(server.live.list(is_shown::<W>(&call.caller))))
    }
}

/// Cancels a request.
pub(super) struct Cancel<W>(PhantomData<W>);

impl<W: Whose> Endpoint for Cancel<W> {
    const PATH: &'static str = W::CANCEL;
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let id = call.path.rsplit('/').next().unwrap_or_default();
        if !server.live.cancel(id, is_shown::<W>(&call.caller)) {
            return Err(ApiError::new(StatusCode::NOT_FOUND, format!("no request {id:?} is in progress here")));
        }
        Reply::json(&Cancelled { id: id.to_owned(), cancelled: true })
    }
}

fn admin(server: &Shared) -> Result<Arc<dyn Admin>, ApiError> {
    let missing = || {
        let message = "this server was started without a store: nothing is written down about usage";
        ApiError::new(StatusCode::NOT_FOUND, message)
    };
    server.admin.clone().ok_or_else(missing)
}

/// Runs a function that blocks.
async fn blocking<T: Send + 'static>(does: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(does).await.map_err(|_| ApiError::internal())
}

/// Shows the usage by day, key, model, prompt and feature.
pub(super) struct Usage<W>(PhantomData<W>);

impl<W: Whose> Endpoint for Usage<W> {
    const PATH: &'static str = W::USAGE;
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let admin = admin(server)?;
        let key = call.caller.key.filter(|_| W::IS_OWN);
        let rows = blocking(move || admin.usage(key.as_deref())).await??;
        Reply::json(&List::new(rows))
    }
}

/// Shows the state of the audit log.
pub(super) struct Audit;

impl Endpoint for Audit {
    const PATH: &'static str = "/admin/audit";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, _: Call) -> Result<Reply, ApiError> {
        let admin = admin(server)?;
        Reply::json(&blocking(move || admin.audit()).await?)
    }
}

/// Verifies the audit log.
pub(super) struct Verify;

impl Endpoint for Verify {
    const PATH: &'static str = "/admin/audit/verify";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, _: Call) -> Result<Reply, ApiError> {
        let admin = admin(server)?;
        Reply::json(&blocking(move || admin.verify()).await?)
    }
}

/// Lists the prompts under version.
pub(super) struct Prompts;

impl Endpoint for Prompts {
    const PATH: &'static str = "/admin/prompts";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, _: Call) -> Result<Reply, ApiError> {
        let admin = admin(server)?;
        Reply::json(&List::new(blocking(move || admin.prompts()).await?))
    }
}

/// The version of a prompt that a parameter of the address names.
fn named(call: &Call, name: &str) -> Result<String, ApiError> {
    let missing = || ApiError::invalid(name, format!("`{name}` is missing: name a version, such as support@3"));
    call.query(name).ok_or_else(missing)
}

/// Shows how one version of a prompt differs from another.
pub(super) struct Difference;

impl Endpoint for Difference {
    const PATH: &'static str = "/admin/prompts/difference";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let admin = admin(server)?;
        let (from, to) = (named(&call, "from")?, named(&call, "to")?);
        Reply::json(&blocking(move || admin.difference(&from, &to)).await??)
    }
}

/// Lists the calls that wait for approval.
pub(super) struct Approvals;

impl Endpoint for Approvals {
    const PATH: &'static str = "/admin/approvals";
    const HAS_BODY: bool = false;

    async fn answer(server: &Arc<Shared>, _: Call) -> Result<Reply, ApiError> {
        Reply::json(&List::new(admin(server)?.approvals()))
    }
}

/// Decides about a call.
pub(super) struct Decide;

impl Endpoint for Decide {
    const PATH: &'static str = "/admin/approvals/{id}";

    async fn answer(server: &Arc<Shared>, call: Call) -> Result<Reply, ApiError> {
        let DecideRequest { decision } = call.read()?;
        let id = call.path.rsplit('/').next().unwrap_or_default();
        if !admin(server)?.decide(id, decision == Verdict::Approve, call.caller.key.as_deref()) {
            let message =
                format!("no call {id:?} waits for approval here: it was decided about, or nobody waits any more");
            return Err(ApiError::new(StatusCode::NOT_FOUND, message));
        }
        Reply::json(&Decided { id: id.to_owned(), decision })
    }
}
