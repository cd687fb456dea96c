//! The program and its environment: models of a hub, outputs that are not files, signals, texts from other systems.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

#[path = "../../../tests/it/hub_server.rs"]
#[allow(dead_code)]
mod hub_server;

use hub_server::HubServer;

const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/stories260K-f32.gguf");

/// A command whose models and caches are all in `home`.
fn fewbit(home: &TempDir, endpoint: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fewbit"));
    command.args(args).stdin(Stdio::null()).env("FEWBIT_THREADS", "1").env("HOME", home.path());
    command.env("FEWBIT_HOME", home.path().join("fewbit")).env("HF_ENDPOINT", endpoint);
    for name in [
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "XDG_CACHE_HOME",
        "OLLAMA_MODELS",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    ] {
        command.env_remove(name);
    }
    command
}

const NOWHERE: &str = "http://127.0.0.1:9";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn hub_models_are_inspected_run_and_listed() {
    let stories = fs::read(STORIES).unwrap();
    let server = HubServer::new(&[("s.Q4_K_M.gguf", &stories), ("s.Q8_0.gguf", b"GGUF")]);
    let home = TempDir::new().unwrap();
    let run = |args: &[&str]| fewbit(&home, &server.url, args).output().unwrap();

    let look = json(&run(&["inspect", "org/repo:Q4_K_M", "--json"]));
    assert_eq!(look["path"], Value::Null);
    assert_eq!(look["remote"]["bytes"], stories.len());
    assert_eq!(look["remote"]["files"][0], "s.Q4_K_M.gguf");
    assert!(
        look["memory"]["total_bytes"].as_u64() > Some(0) && look["tensors"].as_array().is_some_and(|t| t.len() > 10)
    );
    assert!(!home.path().join("fewbit").exists(), "nothing was fetched");
    let shown = text(&run(&["inspect", "org/repo:Q4_K_M"]).stdout);
    assert!(shown.starts_with("not fetched: ") && shown.contains("org/repo:Q4_K_M: GGUF version 3"), "{shown}");

    let args = ["run", "org/repo:Q4_K_M", "Once upon a time", "--raw", "--temp", "0", "-n", "18"];
    let output = run(&args);
    assert_eq!(
        text(&output.stdout),
        ", there was a little girl named Lily. She loved to play out\n",
        "{}",
        text(&output.stderr)
    );
    assert!(text(&output.stderr).contains("fetching from hf"), "{}", text(&output.stderr));
    let again = fewbit(&home, NOWHERE, &args).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_eq!((again.stdout, text(&again.stderr)), (output.stdout, String::new()));

    let pulled = json(&run(&["pull", "hf.co/org/repo/s.Q4_K_M.gguf", "--json"]));
    assert_eq!((&pulled["bytes"], &pulled["verified_by"]), (&stories.len().into(), &"hub".into()));
    let listed = json(&run(&["list", "--all", "--json"]));
    assert_eq!(listed["found"][0]["name"], "hf.co/org/repo/s.Q4_K_M.gguf");
    assert_eq!(listed["found"][0]["path"], pulled["path"]);
    let name = listed["found"][0]["name"].as_str().unwrap();
    assert_eq!(json(&run(&["inspect", name, "--json"]))["path"], pulled["path"]);
    assert!(text(&run(&["list", "--all"]).stdout).contains("hf.co/org/repo/s.Q4_K_M.gguf"));

    let output = run(&["run", "org/repo:Q2_K", "x"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    let said = text(&output.stderr);
    assert!(said.contains("Q2_K") && said.contains("s.Q8_0.gguf"), "{said}");
}

#[test]
fn models_of_other_programs_run_by_their_listed_names() {
    let home = TempDir::new().unwrap();
    let studio = home.path().join(".lmstudio/models/pub/repo");
    fs::create_dir_all(&studio).unwrap();
    fs::copy(STORIES, studio.join("s.gguf")).unwrap();
    let list = fewbit(&home, NOWHERE, &["list", "--all", "--json"]).output().unwrap();
    let name = json(&list)["found"][0]["name"].as_str().unwrap().to_owned();
    assert_eq!(name, "lmstudio:pub/repo/s.gguf");
    let output =
        fewbit(&home, NOWHERE, &["run", &name, "Once upon a time", "--raw", "--temp", "0", "-n", "4", "--json"]);
    assert!(json(&{ output }.output().unwrap())["text"].as_str().unwrap().starts_with(", there was"));
    let output = fewbit(&home, NOWHERE, &["run", "ollama:none", "x"]).output().unwrap();
    assert!(text(&output.stderr).contains("list --all"), "{}", text(&output.stderr));
}

#[test]
fn offline_mode_sends_no_requests() {
    let server = HubServer::new(&[("s.gguf", b"GGUF")]);
    for (name, value) in [("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_OFFLINE", "yes")] {
        for args in [&["pull", "smollm2-360m-instruct"][..], &["run", "org/repo", "x"], &["inspect", "org/repo"]] {
            let home = TempDir::new().unwrap();
            let output = fewbit(&home, &server.url, args).env(name, value).output().unwrap();
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("HF_HUB_OFFLINE") && said.lines().count() == 1, "{said}");
        }
    }
    assert!(server.paths().is_empty());
}

#[test]
fn prompts_may_have_hyphens_and_byte_order_marks() {
    let home = TempDir::new().unwrap();
    let ids = |args: &[&str], input: &[u8]| {
        let args = [&["run", STORIES, "--raw", "-n", "1", "--json"], args].concat();
        let mut child = fewbit(&home, NOWHERE, &args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input).unwrap();
        json(&child.wait_with_output().unwrap())["prompt_token_ids"].clone()
    };
    assert_eq!(ids(&["- item one"], b""), ids(&["-"], b"- item one"));
    assert_eq!(ids(&["-"], "\u{feff}Once".as_bytes()), ids(&["Once"], b""));
    assert_eq!(ids(&["-"], b"\xff\xfeO\0n\0c\0e\0"), ids(&["Once"], b""));
    for (args, input) in [
        (&["tokenize", STORIES][..], "Once upon"),
        (&["tokenize", STORIES, "--jsonl"], "\"Once\"\n\"upon\"\n"),
        (&["embed", STORIES, "-f", "-"], "Once\nupon\n"),
    ] {
        let output = |input: &str| {
            let mut child = fewbit(&home, NOWHERE, args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        };
        let (plain, marked) = (output(input), output(&format!("\u{feff}{input}")));
        assert!(plain.status.success() && plain.stdout == marked.stdout, "{args:?}");
    }
    assert_eq!(ids(&["Once", "--system", "- Be brief"], b""), ids(&["- Be brief\n\nOnce"], b""));
    let wrong = fewbit(&home, NOWHERE, &["run", STORIES, "x", "--mx-tokens", "5"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("--max-tokens"));
}

#[cfg(unix)]
#[test]
fn output_to_pipes_and_links_is_written_through() {
    let home = TempDir::new().unwrap();
    let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let quantize = |out: &str| fewbit(&home, NOWHERE, &["quantize", STORIES, out, "--type", "Q8_0"]);
    assert!(quantize(&at("plain.gguf")).status().unwrap().success());
    let expected = fs::read(at("plain.gguf")).unwrap();

    assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    let (pipe, sender) = (at("pipe"), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        fs::File::open(pipe).unwrap().read_to_end(&mut bytes).unwrap();
        sender.0.send(bytes).unwrap();
    });
    assert!(quantize(&at("pipe")).status().unwrap().success());
    assert!(!fs::metadata(at("pipe")).unwrap().is_file(), "the pipe is still one");
    assert!(sender.1.recv().unwrap() == expected, "other bytes through a pipe");

    std::os::unix::fs::symlink("target.gguf", at("link.gguf")).unwrap();
    assert!(quantize(&at("link.gguf")).status().unwrap().success());
    assert!(Path::new(&at("link.gguf")).is_symlink());
    assert!(fs::read(at("target.gguf")).unwrap() == expected, "other bytes through a link");

    let output = quantize("/dev/stdout").output().unwrap();
    assert!(output.status.success() && output.stdout == expected, "nothing but the file: {}", text(&output.stderr));
    assert!(text(&output.stderr).contains("bits per weight"));
    let full = quantize("/dev/full").output().unwrap();
    assert_eq!(full.status.code(), Some(1), "{}", text(&full.stderr));
}

/// An adapter can be named by its repo. Quantizing a repo reads its original file, not its quantized one.
#[test]
fn adapters_and_original_weights_of_a_repo_are_found() {
    use fewbit::TensorType;
    let home = TempDir::new().unwrap();
    let adapter = home.path().join("adapter.gguf");
    let mut writer = fewbit::expert::format::GgufWriter::new();
    for (key, value) in [("general.architecture", "llama"), ("general.type", "adapter"), ("adapter.type", "lora")] {
        writer.set(key, value);
    }
    let ones = || 1.0f32.to_le_bytes().repeat(64);
    writer.tensor("blk.0.attn_q.weight.lora_a", &[1, 64], TensorType::F32, ones()).unwrap();
    writer.tensor("blk.0.attn_q.weight.lora_b", &[64, 1], TensorType::F32, ones()).unwrap();
    writer.write_file(&adapter).unwrap();
    let server = HubServer::new(&[("style-f32.gguf", &fs::read(&adapter).unwrap()), ("README.md", b"# style")]);
    let ids = |lora: &str| {
        let args = ["run", STORIES, "Once upon a time", "--raw", "--temp", "0", "-n", "12", "--json", "--lora", lora];
        json(&fewbit(&home, &server.url, &args).output().unwrap())["token_ids"].clone()
    };
    let path = adapter.to_str().unwrap();
    let look = ["inspect", STORIES, "--json", "--lora", "org/repo"];
    let looked = json(&fewbit(&home, &server.url, &look).output().unwrap());
    assert_eq!(looked["memory"]["lora_bytes"], 2 * 64 * 4);
    assert!(!home.path().join("fewbit").exists(), "nothing was fetched to look at it");
    assert_eq!(ids("org/repo"), ids(path));
    assert_eq!(ids("org/repo:style-f32.gguf=0.5"), ids(&format!("{path}=0.5")));
    assert_ne!(ids("org/repo"), ids("org/repo=0"));
    let missing = fewbit(&home, &server.url, &["run", STORIES, "x", "--lora", "org/repo:other.gguf"]).output().unwrap();
    let said = text(&missing.stderr);
    assert!(missing.status.code() == Some(1) && said.contains("style-f32.gguf"), "{said}");

    let stories = fs::read(STORIES).unwrap();
    let home = TempDir::new().unwrap();
    let server = HubServer::new(&[("s.Q4_K_M.gguf", &stories[..9000]), ("s.F32.gguf", &stories)]);
    let out = home.path().join("out.gguf");
    let args = ["quantize", "org/repo", out.to_str().unwrap(), "--type", "Q8_0", "--json"];
    assert!(json(&fewbit(&home, &server.url, &args).output().unwrap())["bytes"].as_u64() > Some(0));
    let run = |name: &str, more: &[&str]| {
        let args = [&["run", name, "Once upon a time", "--raw", "--temp", "0", "-n", "12", "--json"], more].concat();
        json(&fewbit(&home, &server.url, &args).output().unwrap())["token_ids"].clone()
    };
    assert_eq!(run("org/repo", &["--quantize", "Q8_0"]), run(out.to_str().unwrap(), &[]));
    let look = ["inspect", "org/repo", "--quantize", "Q8_0", "--json"];
    let path = json(&fewbit(&home, NOWHERE, &look).output().unwrap())["path"].as_str().unwrap().to_owned();
    assert!(path.ends_with("s.F32.gguf"), "{path}");
    // A draft model can be named like any other, and does not change any token.
    assert_eq!(run(STORIES, &["--draft", "org/repo:F32"]), run(STORIES, &[]));
}

/// A server whose certificate only the user trusts, such as one of a company.
#[test]
fn certificates_are_read_from_the_environment() {
    let stories = fs::read(STORIES).unwrap();
    let server = HubServer::new(&[("s.gguf", &stories)]);
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = authority.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(authority, key);
    let own_key = rcgen::KeyPair::generate().unwrap();
    let own = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&own_key, &issuer);
    let url = with_tls(&server.url, own.unwrap().der().to_vec(), own_key.serialize_der());

    let home = TempDir::new().unwrap();
    let folder = home.path().join("certs");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("company.pem");
    fs::write(&file, ca.pem()).unwrap();
    let other = home.path().join("other.pem");
    let stranger = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(&other, stranger.cert.pem()).unwrap();
    let inspect = |variables: &[(&str, &Path)]| {
        let mut command = fewbit(&home, &url, &["inspect", "org/repo", "--json"]);
        command.env("NO_PROXY", "localhost").envs(variables.iter().map(|(name, path)| (*name, *path)));
        command.output().unwrap()
    };
    for (name, path) in [("SSL_CERT_FILE", &file), ("SSL_CERT_DIR", &folder), ("REQUESTS_CA_BUNDLE", &file)] {
        assert_eq!(json(&inspect(&[(name, path)]))["remote"]["bytes"], stories.len(), "{name}");
    }
    let none = inspect(&[]);
    assert!(!none.status.success() && text(&none.stderr).contains("SSL_CERT_FILE"), "{}", text(&none.stderr));
    // The first variable that is set replaces all others.
    let first = inspect(&[("SSL_CERT_FILE", &other), ("REQUESTS_CA_BUNDLE", &file)]);
    assert!(!first.status.success(), "trusted by a certificate that was not to count");
    let missing = inspect(&[("SSL_CERT_FILE", Path::new("/nonexistent.pem"))]);
    assert!(text(&missing.stderr).contains("/nonexistent.pem"), "{}", text(&missing.stderr));
}

/// The URL of a TLS server with this certificate that forwards each request to the server at `behind`.
fn with_tls(behind: &str, certificate: Vec<u8>, key: Vec<u8>) -> String {
    let behind = behind.trim_start_matches("http://").to_owned();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key).into();
    let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into());
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = std::sync::Arc::new(config.with_single_cert(vec![certificate.into()], key).unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (behind, config) = (behind.clone(), config.clone());
            // A client that does not trust the certificate closes the connection.
            std::thread::spawn(move || drop(answer_over_tls(stream, &behind, config)));
        }
    });
    url
}

/// Handles one request, and closes the connection after the answer.
fn answer_over_tls(
    stream: std::net::TcpStream,
    behind: &str,
    config: std::sync::Arc<rustls::ServerConfig>,
) -> std::io::Result<()> {
    use std::io::Write;
    let connection = rustls::ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut tls = rustls::StreamOwned::new(connection, stream);
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if tls.read(&mut byte)? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
    }
    let mut server = std::net::TcpStream::connect(behind)?;
    server.write_all(&head)?;
    server.shutdown(std::net::Shutdown::Write)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    tls.write_all(&answer)?;
    tls.conn.send_close_notify();
    tls.flush()
}

/// Servers are reached through the proxy of the environment, except those that are excluded from it.
#[test]
fn proxies_from_the_environment_are_used() {
    let stories = fs::read(STORIES).unwrap();
    let server = HubServer::new(&[("s.gguf", &stories)]);
    let behind = server.url.trim_start_matches("http://").to_owned();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let (sender, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (behind, sender) = (behind.clone(), sender.clone());
            std::thread::spawn(move || tunnel(stream, &behind, &sender));
        }
    });
    let home = TempDir::new().unwrap();
    // A host name that only the proxy can resolve.
    let pull = |name: &str, value: &str| {
        let mut command = fewbit(&home, "http://hub.invalid", &["pull", "org/repo"]);
        command.env(name, value).env_remove("NO_PROXY").env_remove("no_proxy");
        command
    };
    for name in ["HTTP_PROXY", "ALL_PROXY"] {
        while asked.try_recv().is_ok() {}
        let output = pull(name, &proxy).output().unwrap();
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        assert_eq!(asked.recv().unwrap(), "CONNECT hub.invalid:80");
    }
    while asked.try_recv().is_ok() {}
    assert!(!pull("HTTPS_PROXY", &proxy).output().unwrap().status.success());
    assert!(!pull("HTTP_PROXY", &proxy).env("NO_PROXY", "hub.invalid").output().unwrap().status.success());
    assert!(asked.try_recv().is_err(), "a proxy for others");
}

/// Handles one connection of a proxy that always connects to `behind`, whatever host is requested.
fn tunnel(mut stream: std::net::TcpStream, behind: &str, asked: &std::sync::mpsc::Sender<String>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
        head.push(byte[0]);
    }
    let line = text(&head).lines().next().unwrap_or_default().replace(" HTTP/1.1", "");
    let _ = asked.send(line);
    let mut server = std::net::TcpStream::connect(behind).unwrap();
    std::io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let (mut from, mut to) = (server.try_clone().unwrap(), stream.try_clone().unwrap());
    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    let _ = std::io::copy(&mut stream, &mut server);
}

/// Signals during a download: the downloaded part is kept, the rest is cleaned up, and the exit status tells the
/// signal.
#[cfg(unix)]
#[test]
fn signals_during_a_download_keep_the_partial_file() {
    let stories = fs::read(STORIES).unwrap();
    for (signal, code) in [("TERM", 143), ("HUP", 129), ("INT", 130)] {
        let server = HubServer::new(&[("s.gguf", &stories)]);
        server.faults.delay_ms.store(1500, std::sync::atomic::Ordering::SeqCst);
        let home = TempDir::new().unwrap();
        let child = fewbit(&home, &server.url, &["pull", "org/repo"]).stderr(Stdio::piped()).spawn().unwrap();
        // The download has begun once the store has received a request.
        while !server.paths().iter().any(|path| path.starts_with("/store/")) {
            std::thread::yield_now();
        }
        kill(&child, signal);
        let output = child.wait_with_output().unwrap();
        if is_ignored(signal) {
            // The program inherits that the signal is ignored, and must not change it.
            assert_eq!(output.status.code(), Some(0), "{signal}: {}", text(&output.stderr));
            continue;
        }
        assert_eq!(output.status.code(), Some(code), "{signal}: {}", text(&output.stderr));
        let folder = home.path().join("fewbit/hub/models--org--repo/snapshots").join(hub_server::COMMIT);
        assert!(!folder.join("s.gguf").exists() && folder.join("s.gguf.part").exists());
    }
}

/// A signal while an importance matrix is measured: the program ends, and leaves no file.
#[cfg(unix)]
#[test]
fn signal_during_imatrix_leaves_no_partial_file() {
    let home = TempDir::new().unwrap();
    let text_file = home.path().join("text");
    fs::write(&text_file, "Once upon a time there was a little girl. ".repeat(3000)).unwrap();
    let out = home.path().join("out.imatrix.gguf");
    let args = ["imatrix", STORIES, "-f", text_file.to_str().unwrap(), "-o", out.to_str().unwrap(), "-v"];
    let mut child = fewbit(&home, NOWHERE, &args).stderr(Stdio::piped()).spawn().unwrap();
    // Wait for the line that the model is loaded; after it, the program computes for a while.
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("loaded") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut stderr, &mut line).unwrap() > 0, "ended too early");
    }
    kill(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let left: Vec<_> = fs::read_dir(home.path()).unwrap().map(|item| item.unwrap().file_name()).collect();
    if left != ["text"] {
        // On a busy machine the signal may come when all is done: then the file must be complete.
        assert_eq!(left.len(), 2, "{left:?}");
        fewbit::quantize::Importance::open(&out).unwrap();
    }
}

/// A signal while a model is quantized: the partial file is removed, and the old file stays.
#[cfg(unix)]
#[test]
fn signal_during_quantize_keeps_the_old_file() {
    use fewbit::random::{RandomWeights, Shape};
    let home = TempDir::new().unwrap();
    let input = home.path().join("in.gguf");
    let shape = Shape {
        n_layers: 4,
        dim: 1024,
        n_heads: 8,
        n_kv_heads: 4,
        ffn_dim: 2048,
        n_vocab: 1024,
        tied: true,
        name: "x",
    };
    RandomWeights::new(shape, "F16").unwrap().write(&input).unwrap();
    for (signal, code) in [("TERM", 143), ("HUP", 129), ("INT", 130)] {
        // On a busy machine the signal may come only after the work is done: then the file must be complete.
        let was_interrupted = (0..8).any(|_| {
            let folder = TempDir::new().unwrap();
            let out = folder.path().join("out.gguf");
            fs::write(&out, "old").unwrap();
            let args = ["quantize", input.to_str().unwrap(), out.to_str().unwrap(), "--type", "Q2_K"];
            let mut command = fewbit(&home, NOWHERE, &args);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let names = || {
                let mut names: Vec<_> =
                    fs::read_dir(folder.path()).unwrap().map(|item| item.unwrap().file_name()).collect();
                names.sort();
                names
            };
            // The partial file appears when writing begins.
            let mut ended = None;
            while names().len() < 2 && ended.is_none() {
                ended = child.try_wait().unwrap();
            }
            // Its exit status was not collected yet, so the process id is still valid, even if it has ended.
            if ended.is_none() {
                kill(&child, signal);
            }
            let status = child.wait().unwrap();
            assert_eq!(names(), ["out.gguf"], "{signal}");
            if status.success() {
                fewbit::expert::open(&out).unwrap();
                return false;
            }
            assert_eq!(status.code(), Some(code), "{signal}");
            if fs::read(&out).unwrap() == b"old" {
                return true;
            }
            // The signal came after the last byte was written.
            fewbit::expert::open(&out).unwrap();
            false
        });
        assert_ne!(was_interrupted, is_ignored(signal), "{signal}: never came in time, or is to be ignored");
    }
}

/// Whether these tests were started with a signal ignored, as by `nohup` or in background jobs. The program inherits
/// that and does not change it. Only detected on Linux, as in the program.
#[cfg(unix)]
fn is_ignored(signal: &str) -> bool {
    let number = match signal {
        "HUP" => 1,
        "INT" => 2,
        "TERM" => 15,
        other => panic!("the number of {other}?"),
    };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (number - 1)) != 0)
}

#[cfg(unix)]
fn kill(child: &std::process::Child, signal: &str) {
    assert!(Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap().success());
}
