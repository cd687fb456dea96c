//! Listening, connections and graceful shutdown: requests in progress are answered, new ones are refused.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::admin::Admin;
use crate::backend::{Backend, Gate, Prompts};
use crate::batch::files::Files;
use crate::endpoints;
use crate::engine::EngineBackend;
use crate::error::ServeError;
use crate::kept::Kept;
use crate::keys::Keys;
use crate::live::LiveRequests;
use crate::local::Local;
use crate::models::Pool;
use crate::stats::Stats;
use crate::tls::Tls;

/// The default size limit of request bodies, in bytes.
const BODY_LIMIT: usize = 16 << 20;
/// The most connections at once; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;
/// How long a client may take to send the head of a request, and to wait between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// A server that does not listen yet.
#[must_use = "nothing listens before `bind`"]
pub struct Server {
    shared: Shared,
    drain: Duration,
    tls: Option<Tls>,
}

/// Reloads the configuration, or returns what is wrong with it.
pub(crate) type Reload = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// State that all requests share.
pub(crate) struct Shared {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) gate: Option<Box<dyn Gate>>,
    pub(crate) prompts: Option<Box<dyn Prompts>>,
    pub(crate) kept: Kept,
    pub(crate) body_limit: usize,
    pub(crate) keep_alive: Duration,
    pub(crate) stats: Arc<Stats>,
    pub(crate) live: Arc<LiveRequests>,
    pub(crate) admin: Option<Arc<dyn Admin>>,
    pub(crate) reload: Option<Reload>,
    pub(crate) pool: Option<Pool>,
    pub(crate) files: Option<Files>,
    draining: AtomicBool,
}

impl Shared {
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Server {
    /// Creates a server with this backend, without keys.
    pub fn new(backend: impl Backend) -> Self {
        let shared = Shared {
            backend: Box::new(backend),
            gate: None,
            prompts: None,
            kept: Kept::default(),
            body_limit: BODY_LIMIT,
            keep_alive: Duration::from_secs(10),
            stats: Arc::default(),
            live: Arc::default(),
            admin: None,
            reload: None,
            pool: None,
            files: None,
            draining: AtomicBool::new(false),
        };
        Self { shared, drain: Duration::from_secs(30), tls: None }
    }

    /// Requires one of these keys from clients.
    pub fn keys(self, keys: Keys) -> Self {
        self.gate(keys)
    }

    /// Only answers requests that this gate admits.
    pub fn gate(mut self, gate: impl Gate) -> Self {
        self.shared.gate = Some(Box::new(gate));
        self
    }

    /// Sets what answers questions about usage and the audit log.
    pub fn admin(mut self, admin: impl Admin) -> Self {
        self.shared.admin = Some(Arc::new(admin));
        self
    }

    /// Lets requests name these prompts. Without any, a request that names one is refused.
    pub fn prompts(mut self, prompts: impl Prompts) -> Self {
        self.shared.prompts = Some(Box::new(prompts));
        self
    }

    /// Sets the size limit of request bodies in bytes. The default is 16 MiB.
    pub fn body_limit(mut self, bytes: usize) -> Self {
        self.shared.body_limit = bytes;
        self
    }

    /// Sets how often a stream sends a keep-alive comment while there are no events. The default is every 10 seconds.
    pub fn keep_alive(mut self, every: Duration) -> Self {
        self.shared.keep_alive = every;
        self
    }

    /// Sets how long answers in progress may take after the server was told to stop. The default is 30 seconds.
    pub fn drain(mut self, time: Duration) -> Self {
        self.drain = time;
        self
    }

    /// Encrypts connections with this certificate. Then nothing is answered over plain HTTP.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets what `POST /admin/reload` does. If it returns an error (what is wrong with the configuration), nothing must
    /// have changed.
    pub fn on_reload(mut self, reload: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.shared.reload = Some(Arc::new(reload));
        self
    }

    /// Sets whose models `/admin/models` shows, loads and unloads. Give the engine that also answers the requests, which
    /// may be wrapped in other backends.
    pub fn models(mut self, engine: &EngineBackend) -> Self {
        self.shared.pool = Some(engine.pool().clone());
        self
    }

    /// Serves `/v1/files` and `/v1/batches` with these files. When the server runs, it also continues the batches that an
    /// earlier one left unfinished.
    pub fn files(mut self, files: Files) -> Self {
        self.shared.files = Some(files);
        self
    }

    /// Creates a server without a socket, for requests from within this process. Like a listening one, it needs tokio's
    /// runtime.
    pub fn local(self) -> Local {
        Local::new(Arc::new(self.shared))
    }

    /// Starts listening. Port 0 takes a free port.
    ///
    /// # Errors
    /// If the address is invalid or in use, or other machines could reach it and there are no keys.
    pub async fn bind(self, address: &str) -> Result<Bound, ServeError> {
        let address = check_address(address, self.shared.gate.is_some())?;
        let bind_error = |error| ServeError::Bind { address, error };
        let listener = TcpListener::bind(address).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        Ok(Bound { listener, address, shared: Arc::new(self.shared), drain: self.drain, tls: self.tls })
    }
}

/// Parses an address to listen on: `IP:PORT`, or `localhost:PORT`.
///
/// # Errors
/// If the address is invalid, or other machines could reach it and there are no keys.
pub fn check_address(address: &str, has_keys: bool) -> Result<SocketAddr, ServeError> {
    let parsed = match address.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}").parse(),
        None => address.parse::<SocketAddr>(),
    };
    let address = parsed.map_err(|_| ServeError::Address { address: address.to_owned() })?;
    if has_keys || address.ip().to_canonical().is_loopback() { Ok(address) } else { Err(ServeError::Open { address }) }
}

/// A server that listens.
#[must_use = "nothing is answered before `run`"]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    drain: Duration,
    tls: Option<Tls>,
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bound").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Bound {
    /// The address on which it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers requests until `stop` is ready. Then it finishes those in progress and refuses new ones. Returns whether
    /// all of them were finished in time.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) -> bool {
        let Self { listener, shared, drain, tls, .. } = self;
        let app = endpoints::router(Arc::clone(&shared));
        if let Some(files) = &shared.files {
            files.unfinished().into_iter().for_each(|id| files.shared.running.start(&shared, files, id));
        }
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            let accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            };
            let (place, socket) = tokio::select! {
                () = &mut stop => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                (place, accepted) = accepted => match accepted {
                    Ok((socket, _)) => (place, socket),
                    Err(error) => {
                        // Usually too many files are open: wait until some are closed.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            // Each token is a small write, which must not be delayed to be merged with the next one.
            let _ = socket.set_nodelay(true);
            let (app, watcher, tls) = (app.clone(), graceful.watcher(), tls.clone());
            connections.spawn(async move {
                match tls {
                    None => answer(socket, app, watcher).await,
                    Some(tls) => match tls.accept(socket).await {
                        Ok(socket) => answer(socket, app, watcher).await,
                        Err(error) => tracing::debug!(%error, "a client did not agree on keys"),
                    },
                }
                drop(place);
            });
        }
        drop(listener);
        shared.draining.store(true, Ordering::Release);
        if let Some(files) = &shared.files {
            files.shared.running.stop();
        }
        tracing::info!(connections = connections.len(), "stopping");
        let is_done = tokio::time::timeout(drain, graceful.shutdown()).await.is_ok();
        connections.shutdown().await;
        is_done
    }
}

/// Answers the requests of a connection.
async fn answer(socket: impl AsyncRead + AsyncWrite + Unpin + 'static, app: axum::Router, watcher: Watcher) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(app));
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// A random number.
pub(crate) fn random() -> u64 {
    // `RandomState` takes its keys from the operating system's random numbers once per thread, and increments them
    // after that.
    RandomState::new().hash_one(0_u8)
}

/// A random id.
pub(crate) fn random_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", random(), random())
}
