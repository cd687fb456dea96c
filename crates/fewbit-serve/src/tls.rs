//! Encrypted connections, with a certificate and its key from PEM files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::ServeError;

/// How long a client may take to agree on keys.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The certificate of a server (TLS 1.2 and 1.3). Clones share it, so that it can be replaced while the server runs.
#[derive(Clone)]
pub struct Tls {
    files: Arc<Files>,
    config: Arc<RwLock<Arc<ServerConfig>>>,
}

/// A certificate that was read, and is not used yet.
#[must_use = "the server goes on with the certificate that it has"]
pub struct NewCertificate(Arc<ServerConfig>);

struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("certificate", &self.files.certificate).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for NewCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewCertificate").finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads a certificate, with those that it depends on after it, and its private key (PKCS #8, PKCS #1 or SEC 1).
    ///
    /// # Errors
    /// [`ServeError::Tls`] if a file cannot be read, has no certificate or key, or they do not belong together.
    pub fn from_files(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Result<Self, ServeError> {
        let files = Files { certificate: certificate.into(), key: key.into() };
        let NewCertificate(config) = files.read()?;
        Ok(Self { files: Arc::new(files), config: Arc::new(RwLock::new(config)) })
    }

    /// Reads both files again, as when the certificate was renewed.
    ///
    /// # Errors
    /// As [`from_files`](Self::from_files).
    pub fn read_again(&self) -> Result<NewCertificate, ServeError> {
        self.files.read()
    }

    /// Uses this certificate for connections from now on.
    pub fn replace(&self, NewCertificate(config): NewCertificate) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// Agrees on keys with a client.
    pub(crate) async fn accept(&self, socket: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner));
        tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(socket)).await?
    }
}

impl Files {
    fn read(&self) -> Result<NewCertificate, ServeError> {
        let error = |path: &Path, what: String| ServeError::Tls { path: path.to_owned(), what };
        let of_certificate = |what: String| error(&self.certificate, what);
        let pem = |path: &Path, what: rustls::pki_types::pem::Error| error(path, format!("cannot be read: {what}"));
        let certificates = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|what| pem(&self.certificate, what))?;
        if certificates.is_empty() {
            return Err(of_certificate("has no certificate: give a PEM file with BEGIN CERTIFICATE".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|what| pem(&self.key, what))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key));
        let mut config =
            config.map_err(|what| of_certificate(format!("cannot be used with {}: {what}", self.key.display())))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(NewCertificate(Arc::new(config)))
    }
}
