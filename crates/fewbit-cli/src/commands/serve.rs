//! `fewbit serve`: serves models over HTTP until a signal comes.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use fewbit_gateway::{Config, EXAMPLE, Gateway, KeyStore, Live, LoadWhen, Prices, Settings};
use fewbit_serve::{
    Backend, BuilderSource, EngineBackend, Files, Keys, ServeError, ServedModel, Server, Tls, check_address,
};
use serde_json::json;

use crate::args::{Common, ServeArgs};
use crate::loading;
use crate::output::{Out, note, print_json, with_causes};
use crate::signals::{self, Tidy};

/// How often the server checks whether a signal came.
const GLANCE: Duration = Duration::from_millis(50);

/// The part of the memory limit that a model gets for keys and values, if its `kv_memory` is not set: an eighth.
const KV_PART: u64 = 8;

/// The default address, which only this machine can reach.
const LISTEN: &str = "127.0.0.1:8080";

pub(crate) fn run(common: &Common, args: &ServeArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.init {
        return init(common, path);
    }
    // Check everything that can be checked before the models are loaded.
    let config = args.config.as_ref().map(Config::read).transpose()?.unwrap_or_default();
    let keys = args.api_key_file.as_ref().map(Keys::from_file).transpose()?;
    let listen = args.listen.clone().or_else(|| config.listen.clone());
    let listen = listen.as_deref().unwrap_or(LISTEN);
    check_address(listen, keys.is_some() || config.store.is_some())?;
    let tls = match (&args.tls_cert, &args.tls_key, &config.tls) {
        (Some(certificate), Some(key), _) => Some(Tls::from_files(certificate, key)?),
        (.., Some(tls)) => Some(Tls::from_files(&tls.certificate, &tls.key)?),
        _ => None,
    };
    let memory_limit = args.memory_limit.or(config.memory_limit).map(|limit| limit.0);
    let models = served(common, args, &config, memory_limit)?;
    let settings = Settings::of(&config)?;
    let tools = config.tools()?;
    let ids: Vec<String> = models.iter().map(|(id, _)| id.clone()).collect();
    let models = models.into_iter().map(|(_, model)| model);
    let engine = if ids.is_empty() && config.has_routes() {
        None
    } else {
        Some(EngineBackend::with_models(models, memory_limit)?)
    };
    let local = engine.clone().map(|local| Arc::new(local) as Arc<dyn Backend>);
    let (store, file_limits) = (config.store.clone(), config.file_limits());
    let live = Arc::new(Live::new(args.config.clone().unwrap_or_default(), config, local, ids)?);
    let backend = live.backend();
    // Dropped at the end of this function, when all answers have been recorded.
    #[cfg(feature = "otel")]
    let _telemetry = crate::telemetry::start()?;
    #[cfg(feature = "otel")]
    let backend = fewbit_serve::Traced::new(backend);
    // Replaced below if there is a gateway whose prices must be replaced as well.
    let mut reload: Arc<dyn Fn() -> anyhow::Result<()> + Send + Sync> = {
        let live = Arc::clone(&live);
        Arc::new(move || Ok(live.reload(drop)?))
    };
    let mut server = match (&store, keys) {
        (Some(store), _) => {
            if !KeyStore::open(store)?.keys().any(|key| key.revoked_s.is_none()) {
                note(format_args!(
                    "there is no key yet: make one with `fewbit keys add NAME --store {}`",
                    store.display()
                ));
            }
            let gateway = Gateway::open(store, Prices::new(), backend)?;
            gateway.apply(settings);
            let changed = gateway.clone();
            reload = Arc::new(move || Ok(live.reload(|settings| changed.apply(settings))?));
            // After the gateway, which makes sure that no other server uses the store.
            let files = Files::open(store.join("files"), file_limits)?;
            let server = Server::new(gateway.backend_with(tools)).admin(gateway.clone()).prompts(gateway.clone());
            server.gate(gateway).files(files)
        }
        (None, Some(keys)) => Server::new(backend).keys(keys),
        (None, None) => Server::new(backend),
    };
    if let Some(engine) = &engine {
        server = server.models(engine);
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    if let Some(tls) = tls {
        server = server.tls(tls.clone());
        let of_config = args.config.as_ref().map(|_| Arc::clone(&reload));
        // A certificate is renewed every few months. It is only used if the configuration is right as well.
        reload = Arc::new(move || {
            let certificate = tls.read_again()?;
            of_config.as_ref().map_or(Ok(()), |reload| reload())?;
            tls.replace(certificate);
            Ok(())
        });
    }
    if args.config.is_some() || scheme == "https" {
        signals::hangup_reloads();
        let reload = Arc::clone(&reload);
        server = server.on_reload(move || reload_and_report(&*reload));
    }
    // The engines compute in threads of their own: the runtime only handles connections.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("cannot start the threads of the server")?;
    let is_done = runtime.block_on(async {
        let bound = server.bind(listen).await?;
        // From here on, the first signal stops the server gracefully. A second one ends the program at once.
        let _tidy = Tidy::new();
        let url = format!("{scheme}://{}", bound.local_addr());
        if common.json {
            print_json(&json!({ "listening": url }))?;
        } else {
            let mut out = Out::new();
            out.line(format_args!("listening on {url}"))?;
            out.flush()?;
        }
        let stopped = async {
            while !signals::flag().load(Ordering::SeqCst) {
                if signals::takes_reload() {
                    let reload = Arc::clone(&reload);
                    // Reloading reads files, so it must not block the runtime. A failure is only reported: the server
                    // continues.
                    let _ = tokio::task::spawn_blocking(move || reload_and_report(&*reload)).await;
                }
                tokio::time::sleep(GLANCE).await;
            }
            note(format_args!("stopping once the requests in progress are answered"));
        };
        anyhow::Ok(bound.run(stopped).await)
    })?;
    signals::was_expected();
    if !is_done {
        bail!("some answers took too long and were broken off");
    }
    Ok(())
}

/// The models to serve, by their names in requests. Loads those that are not loaded on demand.
fn served(
    common: &Common,
    args: &ServeArgs,
    config: &Config,
    memory_limit: Option<u64>,
) -> anyhow::Result<Vec<(String, ServedModel)>> {
    struct Given<'a> {
        name: Option<&'a str>,
        model: &'a str,
        on_demand: bool,
        unload_after_s: Option<u32>,
        kv_memory: Option<u64>,
    }
    let of_config = config.models.iter().map(|of| Given {
        name: of.name.as_deref(),
        model: &of.model,
        on_demand: of.load == LoadWhen::OnDemand,
        unload_after_s: of.unload_after_s.as_ref().map(|seconds| *seconds.get_ref()),
        kv_memory: of.kv_memory.map(|size| size.0),
    });
    let of_args = args.models.iter().map(|model| Given {
        name: None,
        model,
        on_demand: args.on_demand,
        unload_after_s: args.unload_after,
        kv_memory: None,
    });
    let given: Vec<_> = of_config.chain(of_args).collect();
    let id = |of: &Given<'_>| of.name.map_or_else(|| EngineBackend::name_of(of.model), str::to_owned);
    for (i, of) in given.iter().enumerate() {
        if given[..i].iter().any(|other| id(other) == id(of)) {
            return Err(ServeError::SameName { id: id(of) }.into());
        }
    }
    let served = given.iter().map(|of| {
        let id = id(of);
        // Several models that share a limit cannot each take half of the free memory, the default.
        let kv_memory = of.kv_memory.or(memory_limit.map(|limit| limit / KV_PART));
        let model = if of.on_demand {
            let source = BuilderSource::new(loading::builder(common), of.model);
            let model = ServedModel::on_demand(
                &id,
                match kv_memory {
                    Some(bytes) => source.kv_memory(bytes),
                    None => source,
                },
            );
            match of.unload_after_s {
                Some(seconds) => model.unload_after(Duration::from_secs(seconds.into())),
                None => model,
            }
        } else {
            let loaded = loading::load_with_kv(common, of.model, kv_memory).with_context(|| format!("model {id}"))?;
            ServedModel::loaded(&id, loaded)
        };
        anyhow::Ok((id, model))
    });
    served.collect()
}

fn reload_and_report(reload: &dyn Fn() -> anyhow::Result<()>) -> Result<(), String> {
    let reloaded = reload().map_err(|error| with_causes(error.as_ref()));
    match &reloaded {
        Ok(()) => note(format_args!("reloaded the configuration")),
        Err(error) => note(format_args!("the configuration in use stays, because the new one is wrong: {error}")),
    }
    reloaded
}

/// Writes the example configuration, but never overwrites a file.
fn init(common: &Common, path: &Path) -> anyhow::Result<()> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    let written = file.and_then(|mut file| file.write_all(EXAMPLE.as_bytes()));
    written.with_context(|| format!("cannot write {}", path.display()))?;
    if common.json {
        return print_json(&json!({ "written": path }));
    }
    note(format_args!("wrote {}: change what is to be changed, then `fewbit serve --config` it", path.display()));
    Ok(())
}
