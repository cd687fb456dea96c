//! `fewbit serve`: models over HTTP until a signal comes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use fewbit_serve::{EngineBackend, Keys, Server, check_address};
use serde_json::json;

use crate::args::{Common, ServeArgs};
use crate::loading;
use crate::output::{Out, note, print_json};
use crate::signals::{self, Tidy};

/// How often it is looked whether a signal came.
const GLANCE: Duration = Duration::from_millis(50);

pub(crate) fn run(common: &Common, args: &ServeArgs) -> anyhow::Result<()> {
    // What can be known before the models are loaded.
    let keys = args.api_key_file.as_ref().map(Keys::from_file).transpose()?;
    check_address(&args.listen, keys.is_some())?;
    let mut models = Vec::new();
    for given in &args.models {
        let id = EngineBackend::name_of(given);
        if models.iter().any(|(known, _)| *known == id) {
            return Err(fewbit_serve::ServeError::SameName { id }.into());
        }
        let model = loading::load(common, given).with_context(|| format!("model {id}"))?;
        models.push((id, model));
    }
    let mut server = Server::new(EngineBackend::new(models)?);
    if let Some(keys) = keys {
        server = server.keys(keys);
    }
    // The engines compute in threads of their own: these only carry what comes and goes.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("cannot start the threads of the server")?;
    let is_done = runtime.block_on(async {
        let bound = server.bind(&args.listen).await?;
        // From here on a signal ends the server, not the program; a second one does not wait.
        let _tidy = Tidy::new();
        let url = format!("http://{}", bound.local_addr());
        if common.json {
            print_json(&json!({ "listening": url }))?;
        } else {
            let mut out = Out::new();
            out.line(format_args!("listening on {url}"))?;
            out.flush()?;
        }
        let stopped = async {
            while !signals::flag().load(Ordering::SeqCst) {
                tokio::time::sleep(GLANCE).await;
            }
            note(format_args!("stopping: what is under way is answered first"));
        };
        anyhow::Ok(bound.run(stopped).await)
    })?;
    signals::was_expected();
    if !is_done {
        bail!("some answers took too long and were broken off");
    }
    Ok(())
}
