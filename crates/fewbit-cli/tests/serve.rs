//! The command `serve`: prints its address on stdout, answers over a socket, and ends with status 0 after a signal.
#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

mod support;

use support::{STORIES, fewbit};

fn ask(address: &str, method: &str, path: &str, header: &str, body: &str) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(socket, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}Content-Length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

fn stop(mut server: Child) -> (Option<i32>, String) {
    let pid = server.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let mut text = String::new();
    server.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (server.wait().unwrap().code(), text)
}

#[test]
fn serve_answers_until_it_gets_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    fs::write(&keys, "# a comment\n0123456789abcdef\n").unwrap();
    let mut command = fewbit(&["serve", STORIES, "--listen", "127.0.0.1:0", "--api-key-file", keys.to_str().unwrap()]);
    let mut server = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim_end().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line:?}"));
    let body = r#"{"model": "stories260K-f32", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 18}"#;
    assert!(ask(address, "POST", "/v1/completions", "", body).starts_with("HTTP/1.1 401 "));
    let answer = ask(address, "POST", "/v1/completions", "Authorization: Bearer 0123456789abcdef\r\n", body);
    assert!(answer.contains(", there was a little girl named Lily. She loved to play out"), "{answer}");
    assert!(ask(address, "GET", "/health", "", "").starts_with("HTTP/1.1 200 "));
    let (code, stderr) = stop(server);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.ends_with("stopping once the requests in progress are answered\n"), "{stderr}");
}

#[test]
fn serve_json_prints_the_address() {
    let mut command = fewbit(&["serve", STORIES, "--listen", "127.0.0.1:0", "--json"]);
    let mut server = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    let address = value["listening"].as_str().unwrap().strip_prefix("http://").unwrap();
    assert!(ask(address, "GET", "/v1/models", "", "").contains("\"id\":\"stories260K-f32\""));
    assert_eq!(stop(server).0, Some(0));
}

#[test]
fn serve_reports_errors_before_loading_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let weak = folder.path().join("weak");
    fs::write(&weak, "secret\n").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (args, words) in [
        (&["--listen", "0.0.0.0:0"][..], "`--api-key-file FILE`"),
        (&["--listen", "here"], "IP:PORT"),
        (&["--listen", &taken], "cannot listen on"),
        (&["--api-key-file", weak.to_str().unwrap()], "line 1 is not a key"),
        (&["--api-key-file", "/nonexistent/keys"], "cannot read the keys"),
        (&[STORIES], "two models are called"),
    ] {
        let output = fewbit(&[&["serve", STORIES], args].concat()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
        assert!(text.starts_with("error: ") && text.contains(words) && !text.contains("secret"), "{text}");
        assert!(output.stdout.is_empty());
    }
    assert_eq!(fewbit(&["serve"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn init_config_serves_and_usage_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fewbit.toml");
    let config = path.to_str().unwrap();
    let run = |args: &[&str]| {
        let output = fewbit(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["serve", "--init", config]);
    assert_eq!(fewbit(&["serve", "--init", config]).output().unwrap().status.code(), Some(1));
    let example = fs::read_to_string(&path).unwrap();
    let example =
        example.replace("\"smollm2-135m-instruct\"", &format!("{STORIES:?}")).replace("127.0.0.1:8080", "127.0.0.1:0");
    fs::write(&path, example).unwrap();
    let key = run(&["keys", "add", "ada", "--config", config, "--model", "small", "--tokens-per-day", "1000"]);
    let key = key.trim_end();
    let mut command = fewbit(&["serve", "--config", config]);
    let mut server = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim_end().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line:?}"));
    let body = r#"{"model": "small", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 18, "metadata": {"feature": "tales"}}"#;
    assert!(ask(address, "POST", "/v1/completions", "", body).starts_with("HTTP/1.1 401 "));
    let header = format!("Authorization: Bearer {key}\r\n");
    assert!(ask(address, "POST", "/v1/completions", &header, body).contains("a little girl named Lily"));
    let verified: serde_json::Value =
        serde_json::from_str(&run(&["audit", "verify", "--config", config, "--json"])).unwrap();
    assert_eq!(verified["lines"], 1);
    let head = format!("1:{}", verified["hash"].as_str().unwrap());
    // The running server refuses the key at once.
    run(&["keys", "revoke", "ada", "--config", config]);
    assert!(ask(address, "POST", "/v1/completions", &header, body).starts_with("HTTP/1.1 401 "));
    assert_eq!(stop(server).0, Some(0));
    let usage: serde_json::Value = serde_json::from_str(&run(&["usage", "--config", config, "--json"])).unwrap();
    let row = &usage["rows"][0];
    assert_eq!((&row["of"], &row["answers"], &row["completion_tokens"]), (&"ada".into(), &1.into(), &18.into()));
    assert!(row["cost"].as_f64().unwrap() > 0.0);
    assert!(run(&["usage", "--config", config, "--by", "model"]).contains("small"));
    assert!(run(&["usage", "--config", config, "--csv"]).contains("ada,1,0,"));
    assert!(run(&["usage", "--config", config, "--csv", "--by", "feature"]).contains("\ntales,1,0,"));
    assert!(run(&["keys", "list", "--config", config]).contains("revoked  models: small; 1000 tokens a day"));
    run(&["audit", "verify", "--config", config, "--head", &head]);
    assert_eq!(run(&["audit", "head", "--config", config]).trim_end(), head);
    let line = fs::read_to_string(folder.path().join("store/audit.jsonl")).unwrap();
    let export = |more: &[&str]| run(&[&["audit", "export", "--config", config], more].concat());
    assert_eq!(export(&["--key", "ada", "--since", "2026-01-01"]), line, "the line as it is");
    assert!(export(&["--until", "2025-12-31"]).is_empty() && export(&["--key", "bob"]).is_empty());
    let wrong = fewbit(&["audit", "export", "--config", config, "--since", "yesterday"]).output().unwrap();
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("2026-11-28"), "{wrong:?}");
    let log = folder.path().join("store/audit.jsonl");
    let text = fs::read_to_string(&log).unwrap();
    assert!(!text.contains("Once") && !text.contains("Lily") && !text.contains(key));
    fs::write(&log, text.replace("\"completion_tokens\":18", "\"completion_tokens\":1")).unwrap();
    let changed = fewbit(&["audit", "verify", "--config", config, "--head", &head]).output().unwrap();
    assert_eq!(changed.status.code(), Some(1));
}

#[test]
fn batch_resumes_where_it_was_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (input, once, twice) = (path("in.jsonl"), path("once.jsonl"), path("twice.jsonl"));
    let completion = r#""url": "/v1/completions", "body": {"prompt": "Once upon a time", "max_tokens": 12"#;
    let lines = [
        format!(r#"{{"custom_id": "a", "method": "POST", {completion}, "temperature": 0}}}}"#),
        format!(r#"{{"custom_id": "b", {completion}}}}}"#),
        r#"{"custom_id": "c", "url": "/v1/completions", "body": {"prompt": 3}}"#.to_owned(),
        String::new(),
        r#"{"custom_id": "d", "url": "/v1/none", "body": {}}"#.to_owned(),
        "nothing".to_owned(),
        r#"{"custom_id": "e", "url": "/v1/embeddings", "body": {"input": "Lily"}}"#.to_owned(),
    ];
    fs::write(&input, lines.join("\n")).unwrap();
    let run = |out: &str, jobs: &str| {
        fewbit(&["batch", &input, out, "--model", STORIES, "--jobs", jobs, "--json"]).output().unwrap()
    };
    let output = run(&once, "64");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told["lines"], &told["answered"], &told["failed"]), (&6.into(), &6.into(), &3.into()));
    let whole = fs::read_to_string(&once).unwrap();
    let answers: Vec<serde_json::Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<_> = answers.iter().map(|answer| answer["custom_id"].as_str()).collect();
    assert_eq!(ids, [Some("a"), Some("b"), Some("c"), Some("d"), None, Some("e")]);
    let text = answers[0]["response"]["body"]["choices"][0]["text"].as_str().unwrap();
    assert!(text.starts_with(", there was a little girl"), "{text}");
    assert_eq!(answers[2]["response"]["status_code"], 400);
    assert!(answers[3]["response"].is_null() && answers[3]["error"]["message"].as_str().unwrap().contains("/v1/none"));
    // The same bytes again: with one request at a time, and after a run that was interrupted in the middle of a line.
    let second_line = whole.match_indices('\n').nth(1).unwrap().0 + 1;
    fs::write(&twice, &whole[..second_line + 20]).unwrap();
    let output = run(&twice, "1");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told["answered"], &told["new"]), (&6.into(), &4.into()));
    assert_eq!(fs::read_to_string(&twice).unwrap(), whole);
    // An output that belongs to another input is not continued.
    fs::write(&twice, whole.replace("\"b\"", "\"x\"")).unwrap();
    assert_eq!(run(&twice, "1").status.code(), Some(1));
}

#[test]
fn sighup_reloads_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fewbit.toml");
    let write = |route: &str| {
        let text = format!(
            "listen = \"127.0.0.1:0\"\n[[models]]\nmodel = {STORIES:?}\nname = \"small\"\n[[routes]]\nname = {route:?}\n\
             to = [{{ model = \"small\" }}]\n"
        );
        fs::write(&path, text).unwrap();
    };
    write("before");
    let mut command = fewbit(&["serve", "--config", path.to_str().unwrap()]);
    let mut server = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim_end().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line:?}"));
    let mut stderr = BufReader::new(server.stderr.take().unwrap());
    let hang_up = |server: &Child, stderr: &mut BufReader<_>| {
        let pid = server.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
        let mut line = String::new();
        // An error of the parser shows the place, on more lines.
        while !line.contains("the configuration") {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "the server has ended");
        }
        line
    };
    let body = |route: &str| {
        format!(r#"{{"model": "{route}", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 18}}"#)
    };
    let ask = |route: &str| ask(address, "POST", "/v1/completions", "", &body(route));
    assert!(ask("before").contains("x-fewbit-backend: local/small"), "{}", ask("before"));
    fs::write(&path, "listen = 3").unwrap();
    let said = hang_up(&server, &mut stderr);
    assert!(said.contains("stays") && said.contains("fewbit.toml"), "{said}");
    assert!(ask("before").contains("a little girl named Lily"));
    write("after");
    assert_eq!(hang_up(&server, &mut stderr), "reloaded the configuration\n");
    assert!(ask("after").contains("a little girl named Lily") && ask("before").starts_with("HTTP/1.1 404 "));
    server.stderr = Some(stderr.into_inner());
    assert_eq!(stop(server).0, Some(0));
}

/// A certificate for `localhost` and its key, written to these files.
fn write_certificate(certificate: &std::path::Path, key: &std::path::Path) -> Vec<u8> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(certificate, made.cert.pem()).unwrap();
    fs::write(key, made.signing_key.serialize_pem()).unwrap();
    made.cert.der().to_vec()
}

/// Asks a server over TLS, trusting only this certificate.
fn ask_over_tls(address: &str, trusted: &[u8], body: &str) -> std::io::Result<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.to_vec().into()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let connection = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut tls = rustls::StreamOwned::new(connection, TcpStream::connect(address)?);
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close";
    write!(tls, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = String::new();
    tls.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn connections_are_encrypted_and_a_renewed_certificate_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let paths = [certificate.to_str().unwrap(), key.to_str().unwrap()];
    let serve = |certificate: &str, key: &str| {
        fewbit(&["serve", STORIES, "--listen", "127.0.0.1:0", "--tls-cert", certificate, "--tls-key", key])
    };
    let first = write_certificate(&certificate, &key);
    let mut server = serve(paths[0], paths[1]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim_end().strip_prefix("listening on https://").unwrap_or_else(|| panic!("{line:?}"));
    let body = r#"{"prompt": "Once upon a time", "temperature": 0, "max_tokens": 18, "stream": true}"#;
    let answer = ask_over_tls(address, &first, body).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("Lily") && answer.contains("[DONE]"), "{answer}");

    // Nothing is answered without encryption. A client that says nothing keeps nobody out.
    let silent = TcpStream::connect(address).unwrap();
    let mut plain = TcpStream::connect(address).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");

    // A file that is damaged changes nothing; a new certificate is that of new connections.
    let mut stderr = BufReader::new(server.stderr.take().unwrap());
    let mut reload = || {
        let pid = server.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
        let mut line = String::new();
        while !line.contains("configuration") {
            line.clear();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "the server ended");
        }
        line
    };
    fs::write(&certificate, "nothing").unwrap();
    let said = reload();
    assert!(said.contains("stays") && said.contains("cert.pem") && said.contains("BEGIN CERTIFICATE"), "{said}");
    assert!(ask_over_tls(address, &first, body).is_ok());
    let second = write_certificate(&certificate, &key);
    assert!(reload().contains("reloaded"));
    assert!(ask_over_tls(address, &second, body).is_ok());
    assert!(ask_over_tls(address, &first, body).is_err());
    drop(silent);
    server.stderr = Some(stderr.into_inner());
    assert_eq!(stop(server).0, Some(0));

    // What is wrong is said before a model is loaded.
    let other = folder.path().join("other.pem");
    write_certificate(&folder.path().join("unused.pem"), &other);
    for (certificate, key, words) in [
        (paths[0], other.to_str().unwrap(), "cannot be used with"),
        (paths[0], "/nonexistent/key.pem", "/nonexistent/key.pem cannot be read"),
        (paths[1], paths[1], "has no certificate"),
        (paths[0], paths[0], "cert.pem cannot be read"),
    ] {
        let output = serve(certificate, key).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
        assert!(text.contains(words), "{text}");
    }
}
