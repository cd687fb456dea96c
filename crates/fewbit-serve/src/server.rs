//! Listening, connections, and the end: what is under way is answered, what is new is refused.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::backend::{Backend, Gate};
use crate::endpoints;
use crate::error::ServeError;
use crate::kept::Kept;
use crate::keys::Keys;
use crate::local::Local;
use crate::stats::Stats;

/// The largest body that is read, unless another limit is set.
const BODY_LIMIT: usize = 16 << 20;
/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;
/// A client has this long to send the head of a request, and as long between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// A server that does not listen yet.
#[must_use = "nothing listens before `bind`"]
pub struct Server {
    shared: Shared,
    drain: Duration,
}

/// Reads the configuration again, or says what is wrong with it.
pub(crate) type Reload = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What requests share.
pub(crate) struct Shared {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) gate: Option<Box<dyn Gate>>,
    pub(crate) kept: Kept,
    pub(crate) body_limit: usize,
    pub(crate) keep_alive: Duration,
    pub(crate) stats: Arc<Stats>,
    pub(crate) reload: Option<Reload>,
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
    /// A server over this backend, without keys.
    pub fn new(backend: impl Backend) -> Self {
        let shared = Shared {
            backend: Box::new(backend),
            gate: None,
            kept: Kept::default(),
            body_limit: BODY_LIMIT,
            keep_alive: Duration::from_secs(10),
            stats: Arc::default(),
            reload: None,
            draining: AtomicBool::new(false),
        };
        Self { shared, drain: Duration::from_secs(30) }
    }

    /// Asks clients for one of these keys.
    pub fn keys(self, keys: Keys) -> Self {
        self.gate(keys)
    }

    /// Lets in what this gate lets in.
    pub fn gate(mut self, gate: impl Gate) -> Self {
        self.shared.gate = Some(Box::new(gate));
        self
    }

    /// The largest body of a request that is read, in bytes: 16 MiB if nothing is said.
    pub fn body_limit(mut self, bytes: usize) -> Self {
        self.shared.body_limit = bytes;
        self
    }

    /// How often a stream says that it is alive while nothing else is to be said: every 10 seconds if nothing is said.
    pub fn keep_alive(mut self, every: Duration) -> Self {
        self.shared.keep_alive = every;
        self
    }

    /// How long answers that are under way may take when the server is to stop: 30 seconds if nothing is said.
    pub fn drain(mut self, time: Duration) -> Self {
        self.drain = time;
        self
    }

    /// What `POST /admin/reload` does: an error says what is wrong with the configuration, and that nothing has changed.
    pub fn on_reload(mut self, reload: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.shared.reload = Some(Arc::new(reload));
        self
    }

    /// Listens nowhere: only this process asks. It needs a runtime of tokio's, as one that listens does.
    pub fn local(self) -> Local {
        Local::new(self.shared)
    }

    /// Listens. Port 0 takes a free one.
    ///
    /// # Errors
    /// If the address cannot be had, or other machines could reach it and there are no keys.
    pub async fn bind(self, address: &str) -> Result<Bound, ServeError> {
        let address = check_address(address, self.shared.gate.is_some())?;
        let bind_error = |error| ServeError::Bind { address, error };
        let listener = TcpListener::bind(address).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        Ok(Bound { listener, address, shared: Arc::new(self.shared), drain: self.drain })
    }
}

/// Where `address` says to listen: `IP:PORT`, or `localhost:PORT`.
///
/// # Errors
/// If it says nothing, or other machines could reach it and there are no keys.
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
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bound").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Bound {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` is there; then ends what is under way, and refuses what is new. Returns whether all of it
    /// was answered in time.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) -> bool {
        let Self { listener, shared, drain, .. } = self;
        let app = endpoints::router(Arc::clone(&shared));
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
                        // Mostly there are too many open files: others will be closed.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let connection = connection(socket, app.clone());
            let connection = graceful.watch(connection);
            connections.spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection ended early");
                }
                drop(place);
            });
        }
        drop(listener);
        shared.draining.store(true, Ordering::Release);
        tracing::info!(connections = connections.len(), "stopping");
        let is_done = tokio::time::timeout(drain, graceful.shutdown()).await.is_ok();
        connections.shutdown().await;
        is_done
    }
}

type Connection = hyper::server::conn::http1::Connection<TokioIo<TcpStream>, TowerToHyperService<axum::Router>>;

fn connection(socket: TcpStream, app: axum::Router) -> Connection {
    // Each token is a small write, and shall not wait for the next.
    let _ = socket.set_nodelay(true);
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(app))
}

/// A number that is another one each time.
pub(crate) fn random() -> u64 {
    // Keyed by the operating system's random numbers, anew for each thread, and counted up from there.
    RandomState::new().hash_one(0_u8)
}

/// An id that is another one each time.
pub(crate) fn random_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", random(), random())
}
