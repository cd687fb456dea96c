//! Models named by their repo: choosing a file, fetching in parts, checking, using local files, inspecting before
//! fetching.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use fewbit::hub::{Event, HfSettings, HfSource, Hub, HubError, Progress, Registry, RepoName};
use tempfile::TempDir;

use crate::STORIES;
use crate::hub_server::{COMMIT, HubServer, sha256};

fn name(text: &str) -> RepoName {
    RepoName::parse(text).unwrap().unwrap()
}

fn hub(server: &HubServer) -> (TempDir, Hub) {
    let home = TempDir::new().unwrap();
    let hub = Hub::with_registry(home.path(), Registry::default()).settings(HfSettings::new(&server.url));
    (home, hub)
}

fn silent() -> impl Progress {
    |_: &Event<'_>| {}
}

fn stories() -> Vec<u8> {
    fs::read(STORIES).unwrap()
}

/// A repo with files of two types; one file is not a model, and one is only a part of a model.
fn server() -> HubServer {
    let bytes = stories();
    HubServer::new(&[
        ("README.md", b"# repo"),
        ("stories.Q4_K_M.gguf", &bytes),
        ("stories.Q8_0.gguf", &bytes[..bytes.len() / 2]),
        ("mmproj-stories.Q4_K_M.gguf", b"no model"),
    ])
}

fn snapshot(home: &TempDir) -> PathBuf {
    home.path().join("hub/models--org--repo/snapshots").join(COMMIT)
}

#[test]
fn repo_is_fetched_by_name_once_and_then_used_from_the_cache() {
    let server = server();
    let (home, hub) = hub(&server);
    assert_eq!(hub.cached_repo(&name("org/repo")), None);
    let path = hub.resolve_repo(&name("org/repo"), &silent()).unwrap();
    assert_eq!(path, snapshot(&home).join("stories.Q4_K_M.gguf"));
    assert_eq!(fs::read(&path).unwrap(), stories());
    let asked = server.paths().len();
    for text in ["org/repo", "org/repo:q4_k_m", "hf.co/org/repo/stories.Q4_K_M.gguf", &format!("org/repo@{COMMIT}")] {
        assert_eq!(hub.resolve_repo(&name(text), &silent()).unwrap(), path, "{text}");
    }
    assert_eq!(server.paths().len(), asked, "what is here is not asked for");
    assert_eq!(hub.pull_repo(&name("org/repo"), &silent()).unwrap(), path);
    assert_eq!(server.paths().len(), asked + 1, "pull asks whether the branch has moved on");
    let found = hub.found();
    let of_fewbit: Vec<_> = found.iter().filter(|found| found.place == "fewbit").collect();
    assert_eq!(of_fewbit.len(), 1);
    assert_eq!(RepoName::parse(&of_fewbit[0].name).unwrap().unwrap(), name("hf.co/org/repo/stories.Q4_K_M.gguf"));
    assert_eq!(of_fewbit[0].path, path);
}

#[test]
fn missing_files_and_repos_fail_with_helpful_errors() {
    let server = server();
    let (_home, hub) = hub(&server);
    let error = |text: &str| hub.resolve_repo(&name(text), &silent()).unwrap_err();
    let text = error("org/repo:Q2_K").to_string();
    assert!(text.contains("Q2_K") && text.contains("stories.Q8_0.gguf") && !text.contains("mmproj"), "{text}");
    assert!(matches!(error("org/repo@v9"), HubError::NoSuchRevision { .. }));
    assert!(matches!(error("org/other"), HubError::NoSuchRepo { .. }));
    for (status, code) in [(401, "GatedRepo"), (403, "GatedRepo"), (403, "")] {
        *server.faults.refuse.lock().unwrap() = Some((status, code));
        let error = error("org/repo");
        assert!(matches!(error, HubError::Gated { .. }), "{error:?}");
        assert!(error.to_string().contains("HF_TOKEN") && error.to_string().lines().count() == 1, "{error}");
    }
    *server.faults.refuse.lock().unwrap() = Some((401, "RepoNotFound"));
    assert!(matches!(error("org/repo"), HubError::NoSuchRepo { .. }));
    *server.faults.refuse.lock().unwrap() = Some((500, ""));
    assert!(matches!(error("org/repo"), HubError::Status { status: 500, .. }));
}

#[test]
fn busy_server_is_asked_again_after_retry_after() {
    let server = server();
    let (_home, hub) = hub(&server);
    *server.faults.busy.lock().unwrap() = vec![429, 503, 502];
    hub.resolve_repo(&name("org/repo"), &silent()).unwrap();
    *server.faults.busy.lock().unwrap() = vec![429; 4];
    let error = hub.pull_repo(&name("org/repo"), &silent()).unwrap_err();
    assert!(matches!(error, HubError::Busy { status: 429, retry_after_s: Some(0), .. }), "{error:?}");
}

#[test]
fn token_is_sent_to_the_hub_and_not_to_the_store() {
    let server = server();
    let (_home, hub) = hub(&server);
    let hub = hub.settings(HfSettings::new(&server.url).token("hf_secret"));
    hub.resolve_repo(&name("org/repo"), &silent()).unwrap();
    let asked = server.asked.lock().unwrap().clone();
    assert!(asked.iter().any(|asked| asked.path.starts_with("/store/")));
    for asked in asked {
        let expected = (!asked.path.starts_with("/store/")).then(|| "hf_secret".to_owned());
        assert_eq!(asked.token, expected, "{}", asked.path);
    }
}

#[test]
fn files_outside_of_their_folder_are_rejected() {
    for path in ["../evil.gguf", "a/../../evil.gguf", "/etc/evil.gguf", "..\\evil.gguf"] {
        let server = HubServer::new(&[(path, b"GGUF"), ("good.gguf", b"GGUF")]);
        let (home, hub) = hub(&server);
        let error = hub.resolve_repo(&name("org/repo"), &silent()).unwrap_err();
        assert!(matches!(error, HubError::UnsafePath { .. }), "{error:?}");
        assert!(!home.path().join("hub").exists(), "nothing was fetched");
    }
}

#[test]
fn contents_that_differ_from_the_file_list_are_rejected() {
    let server = server();
    let (home, hub) = hub(&server);
    let mut wrong = stories();
    wrong[1000] ^= 1;
    *server.faults.other.lock().unwrap() = Some(wrong);
    let error = hub.resolve_repo(&name("org/repo"), &silent()).unwrap_err();
    assert!(matches!(&error, HubError::Hash { expected, .. } if *expected == sha256(&stories())), "{error:?}");
    *server.faults.other.lock().unwrap() = Some(stories()[1..].to_vec());
    let error = hub.resolve_repo(&name("org/repo"), &silent()).unwrap_err();
    assert!(matches!(error, HubError::Size { .. }), "{error:?}");
    assert!(!snapshot(&home).join("stories.Q4_K_M.gguf").exists());
    *server.faults.other.lock().unwrap() = None;
    hub.resolve_repo(&name("org/repo"), &silent()).unwrap();
}

/// A pull of `stories.Q4_K_M.gguf` by its hash, in parts of 64 KiB.
fn pull_in_parts(server: &HubServer, home: &TempDir, progress: &dyn Progress) -> Result<PathBuf, HubError> {
    let text = format!(
        "[models.tiny]\nlicense = \"MIT\"\nfile = \"tiny.gguf\"\nbytes = {}\nsha256 = \"{}\"\nsources = []\n",
        stories().len(),
        sha256(&stories())
    );
    let hub = Hub::with_registry(home.path(), Registry::parse(&text, Path::new("test.toml")).unwrap());
    let source = HfSource::new(&server.url, "org/repo", COMMIT, "stories.Q4_K_M.gguf").parallel(4, 1 << 16);
    hub.pull_from("tiny", &[&source], progress)
}

#[test]
fn large_files_are_fetched_over_several_connections() {
    let server = server();
    server.faults.delay_ms.store(20, Ordering::SeqCst);
    let home = TempDir::new().unwrap();
    let path = pull_in_parts(&server, &home, &silent()).unwrap();
    assert_eq!(fs::read(path).unwrap(), stories());
    let n_parts = stories().len().div_ceil(1 << 16);
    let asked = server.paths();
    assert_eq!(asked.iter().filter(|path| path.starts_with("/store/")).count(), n_parts);
    assert_eq!(asked.len(), n_parts + 1, "the hub redirects once");
    assert!((2..=5).contains(&server.most_at_once.load(Ordering::SeqCst)), "{:?}", server.most_at_once);
}

#[test]
fn broken_connections_and_missing_ranges_are_handled() {
    let server = server();
    server.faults.cut.store(3, Ordering::SeqCst);
    let home = TempDir::new().unwrap();
    let path = pull_in_parts(&server, &home, &silent()).unwrap();
    assert_eq!(fs::read(path).unwrap(), stories());
    assert_eq!(server.faults.cut.load(Ordering::SeqCst), 0);
    let again = server.paths().iter().filter(|path| path.contains("/resolve/")).count();
    assert_eq!(again, 1 + 3, "each part that broke is asked for again, of the hub");
    *server.faults.no_ranges.lock().unwrap() = true;
    let home = TempDir::new().unwrap();
    let path = pull_in_parts(&server, &home, &silent()).unwrap();
    assert_eq!(fs::read(path).unwrap(), stories());
}

/// Cancels a download after half of it has arrived.
struct CancelHalfway(AtomicBool, u64);

impl Progress for CancelHalfway {
    fn event(&self, event: &Event<'_>) {
        if let Event::Progress { done_bytes, .. } = event
            && *done_bytes >= self.1
        {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

#[test]
fn cancelled_download_is_resumed() {
    let server = server();
    let home = TempDir::new().unwrap();
    let half = CancelHalfway(AtomicBool::new(false), stories().len() as u64 / 4);
    let error = pull_in_parts(&server, &home, &half).unwrap_err();
    assert!(matches!(error, HubError::Cancelled), "{error:?}");
    let part = home.path().join("models/tiny/tiny.gguf.part");
    let here = fs::metadata(&part).unwrap().len();
    assert!(here > 0 && here < stories().len() as u64);
    assert_eq!(fs::read(&part).unwrap(), stories()[..here as usize]);
    server.asked.lock().unwrap().clear();
    let path = pull_in_parts(&server, &home, &silent()).unwrap();
    assert_eq!(fs::read(path).unwrap(), stories());
    assert_eq!(server.bytes_asked(), stories().len() as u64 - here, "what was missing, and no more");
}

#[test]
fn offline_mode_sends_no_requests() {
    let server = server();
    let (home, hub) = hub(&server);
    let offline = hub.clone().settings(HfSettings::new(&server.url).offline(true));
    let error = offline.pull_repo(&name("org/repo"), &silent()).unwrap_err();
    assert!(matches!(&error, HubError::Offline { name } if name == "org/repo"), "{error:?}");
    assert!(matches!(offline.peek("org/repo"), Err(HubError::Offline { .. })));
    assert!(server.paths().is_empty() && !home.path().join("hub").exists());
    let path = hub.resolve_repo(&name("org/repo"), &silent()).unwrap();
    assert_eq!(offline.pull_repo(&name("org/repo"), &silent()).unwrap(), path);
}

/// A cache as Hugging Face's tools make it: links to blobs.
#[cfg(unix)]
#[test]
fn hugging_face_cache_is_used_in_place() {
    let server = server();
    let cache = TempDir::new().unwrap();
    let repo = cache.path().join("models--org--repo");
    let folder = repo.join("snapshots").join(COMMIT);
    for path in [repo.join("blobs"), repo.join("refs"), folder.clone()] {
        fs::create_dir_all(path).unwrap();
    }
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    fs::write(repo.join("blobs/abc"), stories()).unwrap();
    std::os::unix::fs::symlink("../../blobs/abc", folder.join("stories.Q4_K_M.gguf")).unwrap();
    let (home, hub) = hub(&server);
    let hub = hub.settings(HfSettings::new(&server.url).cache(cache.path()));
    let here = folder.join("stories.Q4_K_M.gguf");
    assert_eq!(hub.resolve_repo(&name("org/repo"), &silent()).unwrap(), here);
    assert!(server.paths().is_empty(), "nobody was asked");
    assert_eq!(hub.pull_repo(&name("org/repo:Q4_K_M"), &silent()).unwrap(), here);
    assert!(!home.path().join("hub/models--org--repo/snapshots").exists(), "nothing was fetched again");
    assert!(hub.found().iter().any(|found| found.path == here && found.place == "Hugging Face"));

    // A file that is not the first choice is used only if the hub cannot be reached.
    fs::rename(&here, folder.join("stories.Q8_0.gguf")).unwrap();
    fs::remove_dir_all(home.path().join("hub")).unwrap();
    let offline = hub.clone().settings(HfSettings::new("http://127.0.0.1:9").cache(cache.path()).offline(true));
    assert_eq!(offline.resolve_repo(&name("org/repo"), &silent()).unwrap(), folder.join("stories.Q8_0.gguf"));
    let path = hub.resolve_repo(&name("org/repo"), &silent()).unwrap();
    assert_eq!(path, snapshot(&home).join("stories.Q4_K_M.gguf"));
}

#[test]
fn peek_reads_only_the_header_of_a_model() {
    let mut long = stories();
    // Weights that are not needed to describe the model.
    long.resize(long.len() + (8 << 20), 0);
    let server = HubServer::new(&[("m.gguf", &long)]);
    let (home, hub) = hub(&server);
    let peek = hub.peek("org/repo").unwrap().unwrap();
    let file = fewbit::expert::open(peek.path()).unwrap();
    let whole = fewbit::expert::open(Path::new(STORIES)).unwrap();
    assert_eq!(file.weights().tensors(), whole.weights().tensors());
    assert_eq!(file.file_bytes(), long.len() as u64);
    assert_eq!((peek.total_bytes(), peek.files()), (long.len() as u64, &["m.gguf".to_owned()][..]));
    assert!(peek.fetched_bytes() <= 1 << 20 && server.bytes_asked() <= 1 << 20, "{}", server.bytes_asked());
    let estimate = |path: &Path| fewbit::Model::memory_estimate(path.to_str().unwrap(), 128).unwrap();
    assert_eq!(estimate(peek.path()), estimate(Path::new(STORIES)));
    let path = peek.path().to_owned();
    drop((file, peek));
    assert!(!path.exists() && !home.path().join("hub").exists(), "nothing stays");
    hub.resolve_repo(&name("org/repo"), &silent()).unwrap();
    assert!(hub.peek("org/repo").unwrap().is_none(), "what is here is looked at where it is");
    let server = HubServer::new(&[("m.gguf", &[7; 10_000])]);
    let (_home, hub) = self::hub(&server);
    assert!(matches!(hub.peek("org/repo"), Err(HubError::BadAnswer { .. })));
}

#[test]
fn safetensors_folder_is_peeked_at_and_fetched() {
    let local = crate::hf::folder();
    let files: Vec<(String, Vec<u8>)> = fs::read_dir(local.path())
        .unwrap()
        .map(|item| item.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap()))
        .chain([("onnx/model.onnx".to_owned(), vec![1; 10]), ("README.md".to_owned(), b"x".to_vec())])
        .collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (&**path, &**bytes)).collect();
    let server = HubServer::new(&files);
    let (home, hub) = hub(&server);
    let error = hub.resolve_repo(&name("org/repo:Q4_K_M"), &silent()).unwrap_err();
    assert!(error.to_string().contains("quantize it to Q4_K_M"), "{error}");
    let peek = hub.peek("org/repo").unwrap().unwrap();
    let tensors = fewbit::expert::open(local.path()).unwrap().weights().tensors().to_vec();
    assert_eq!(fewbit::expert::open(peek.path()).unwrap().weights().tensors(), tensors);
    let path = hub.resolve_repo(&name("org/repo"), &silent()).unwrap();
    assert_eq!(path, snapshot(&home));
    assert!(!path.join("onnx").exists() && !path.join("README.md").exists());
    let generate = |path: &str| {
        let model = fewbit::Model::builder().threads(1).quantize(fewbit::quantize::Recipe::Q8_0).load(path).unwrap();
        model.generate("Once upon").max_tokens(8).temperature(0.0).run().unwrap().tokens
    };
    assert_eq!(generate(path.to_str().unwrap()), generate(local.path().to_str().unwrap()));
    assert_eq!(hub.resolve_repo(&name("org/repo"), &silent()).unwrap(), path);
}
