//! The certificates for trusting servers: Mozilla's, which are compiled in, or those of the user instead.
//!
//! `huggingface_hub` reads them from `SSL_CERT_FILE`, or else `SSL_CERT_DIR` (with its present HTTP client); before, it
//! used `REQUESTS_CA_BUNDLE` or `CURL_CA_BUNDLE`. The first variable that is set counts, and replaces Mozilla's
//! certificates.

use std::fs;
use std::path::{Path, PathBuf};

use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};

use super::HubError;

/// Larger files are not certificates: a bundle of all widely trusted ones has about 250 kB.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The certificates in `path`: a PEM file, a folder of them, or several of either as in `PATH`.
pub(super) fn roots(path: &Path) -> Result<RootCerts, HubError> {
    let io = |path: &Path, error| HubError::Certificates { path: path.to_owned(), problem: format!("{error}") };
    let mut found = Vec::new();
    for path in std::env::split_paths(path) {
        if path.is_dir() {
            let items = fs::read_dir(&path).map_err(|error| io(&path, error))?;
            let mut files: Vec<PathBuf> = items.filter_map(|item| item.ok().map(|item| item.path())).collect();
            files.sort();
            // Other files in the folder are ignored.
            found.extend(files.iter().filter_map(|file| in_file(file).ok()).flatten());
        } else {
            found.extend(in_file(&path)?);
        }
    }
    match found.is_empty() {
        true => {
            Err(HubError::Certificates { path: path.to_owned(), problem: "there is no certificate in it".to_owned() })
        }
        false => Ok(RootCerts::from(found)),
    }
}

fn in_file(path: &Path) -> Result<Vec<Certificate<'static>>, HubError> {
    let bad = |problem: String| HubError::Certificates { path: path.to_owned(), problem };
    let meta = fs::metadata(path).map_err(|error| bad(error.to_string()))?;
    if !meta.is_file() || meta.len() > MAX_FILE_BYTES {
        return Err(bad("that is no PEM file".to_owned()));
    }
    let bytes = fs::read(path).map_err(|error| bad(error.to_string()))?;
    let mut found = Vec::new();
    for item in parse_pem(&bytes) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| bad(error.to_string()))? {
            found.push(certificate);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &Path) -> Result<usize, String> {
        match roots(path) {
            Ok(RootCerts::Specific(certificates)) => Ok(certificates.len()),
            Ok(_) => panic!("others"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn certificates_are_read_from_files_and_folders() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let one = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        fs::write(at("one.pem"), one).unwrap();
        fs::write(at("two.pem"), format!("# two\n{one}\n{one}")).unwrap();
        fs::write(at("README"), "nothing").unwrap();
        fs::write(at("broken.pem"), "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
        fs::create_dir(at("private")).unwrap();
        assert_eq!((count(&at("one.pem")), count(&at("two.pem")), count(folder.path())), (Ok(1), Ok(2), Ok(3)));
        let both = std::env::join_paths([at("one.pem"), at("two.pem")]).unwrap();
        assert_eq!(count(Path::new(&both)), Ok(3));
        for name in ["README", "private", "broken.pem", "missing.pem"] {
            let error = count(&at(name)).unwrap_err();
            assert!(error.contains(name) && error.contains("SSL_CERT_FILE"), "{error}");
        }
    }
}
