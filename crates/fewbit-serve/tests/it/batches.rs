//! Files and batches: the same answers as `fewbit batch`, each key for itself, through stops, expiry and cancellation.

use std::path::Path;
use std::time::Duration;

use fewbit_serve::{
    Backend, BackendError, BackendErrorKind, EngineBackend, FileLimits, Files, Keys, Script, ScriptedBackend,
    ServeError, Server,
};
use serde_json::{Value, json};

use crate::client::{Answer, request, send, wait_until};
use crate::{Running, stories};

const KEYS: [&str; 2] = ["0123456789abcdef", "fedcba9876543210"];

struct Client<'a> {
    server: &'a Running,
    key: &'a str,
}

impl Client<'_> {
    fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        send(&self.server.address, &request(method, path, &[("x-api-key", self.key)], body)).answer()
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "")
    }

    fn form(&self, parts: &[(&str, &str)]) -> Answer {
        let part =
            |(head, data): &(&str, &str)| format!("--B\r\nContent-Disposition: form-data; {head}\r\n\r\n{data}\r\n");
        let body: String = parts.iter().map(part).collect::<String>() + "--B--\r\n";
        let headers = [("x-api-key", self.key), ("Content-Type", "multipart/form-data; boundary=B")];
        send(&self.server.address, &request("POST", "/v1/files", &headers, &body)).answer()
    }

    fn upload(&self, text: &str) -> String {
        let uploaded = self.form(&[("name=\"purpose\"", "batch"), ("name=\"file\"; filename=\"in.jsonl\"", text)]);
        assert_eq!(uploaded.status, 200, "{}", uploaded.body);
        uploaded.json()["id"].as_str().unwrap().to_owned()
    }

    fn create(&self, file: &str, more: Value) -> Answer {
        let mut body = json!({ "input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.ask("POST", "/v1/batches", &body.to_string())
    }

    fn begin(&self, text: &str) -> String {
        let created = self.create(&self.upload(text), json!({}));
        assert_eq!(created.status, 200, "{}", created.body);
        created.json()["id"].as_str().unwrap().to_owned()
    }

    fn batch(&self, id: &str) -> Value {
        self.get(&format!("/v1/batches/{id}")).json()
    }

    /// Waits until the batch is over.
    fn end(&self, id: &str) -> Value {
        wait_until("the batch is over", || {
            let batch = self.batch(id);
            ["completed_at", "failed_at", "expired_at", "cancelled_at"].iter().any(|time| batch[time].is_u64())
        });
        self.batch(id)
    }

    /// The content of one of the batch's files.
    fn content(&self, batch: &Value, file: &str) -> String {
        match batch[file].as_str() {
            None => String::new(),
            Some(id) => {
                let content = self.get(&format!("/v1/files/{id}/content"));
                let meta = self.get(&format!("/v1/files/{id}")).json();
                assert_eq!(
                    (content.body.len() as u64, &meta["purpose"]),
                    (meta["bytes"].as_u64().unwrap(), &json!("batch_output"))
                );
                assert_eq!(content.header("content-length").unwrap().parse::<usize>().unwrap(), content.body.len());
                content.body
            }
        }
    }

    fn outputs(&self, batch: &Value) -> String {
        self.content(batch, "output_file_id")
    }

    fn errors(&self, batch: &Value) -> String {
        self.content(batch, "error_file_id")
    }
}

fn serve(folder: &Path, backend: impl Backend, limits: impl FnOnce(&mut FileLimits)) -> Running {
    let mut all = FileLimits::default();
    limits(&mut all);
    let files = Files::open(folder, all).unwrap();
    Running::start(backend, |server| server.keys(Keys::new(KEYS).unwrap()).files(files))
}

fn client(server: &Running) -> Client<'_> {
    Client { server, key: KEYS[0] }
}

fn line(id: &str, prompt: Value) -> String {
    let body = json!({ "prompt": prompt, "max_tokens": 12 });
    json!({ "custom_id": id, "method": "POST", "url": "/v1/completions", "body": body }).to_string() + "\n"
}

fn ids(lines: &str) -> Vec<String> {
    let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["custom_id"].as_str().unwrap().to_owned();
    lines.lines().map(id).collect()
}

#[test]
fn a_batch_is_what_fewbit_batch_writes() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineBackend::new([("stories", stories().clone())]).unwrap();
    let server = serve(folder.path(), engine.clone(), |_| ());
    let client = client(&server);
    let prompts = [json!("Once upon a time"), json!(3), json!("Lily"), json!("The cat"), json!("")];
    let input: String =
        prompts.iter().enumerate().map(|(i, prompt)| line(&i.to_string(), prompt.clone()) + "\n").collect();
    let file = client.upload(&input);
    let meta = client.get(&format!("/v1/files/{file}")).json();
    assert_eq!(
        (&meta["object"], &meta["filename"], &meta["purpose"]),
        (&json!("file"), &json!("in.jsonl"), &json!("batch"))
    );
    assert_eq!(client.get(&format!("/v1/files/{file}/content")).body, input);
    let created = client.create(&file, json!({ "metadata": { "of": "me" } })).json();
    assert_eq!((&created["object"], &created["status"]), (&json!("batch"), &json!("validating")));
    let batch = client.end(created["id"].as_str().unwrap());
    assert_eq!((&batch["status"], &batch["metadata"]["of"]), (&json!("completed"), &json!("me")));
    let failed = batch["request_counts"]["failed"].as_u64().unwrap();
    assert_eq!(batch["request_counts"], json!({ "total": 5, "completed": 5 - failed, "failed": failed }));
    // What `fewbit batch` writes into one file, is in two.
    let local = Server::new(engine).local();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (mut good, mut bad) = (String::new(), String::new());
    for (line, n) in input.lines().filter(|line| !line.is_empty()).zip(1..) {
        let answered = runtime.block_on(local.batch_line(n, line.as_bytes(), 0));
        if answered.is_good { &mut good } else { &mut bad }.push_str(&answered.text);
    }
    assert_eq!((client.outputs(&batch), client.errors(&batch)), (good.clone(), bad));
    assert!(ids(&good).starts_with(&["0".to_owned(), "2".to_owned(), "3".to_owned()]));
    assert!(client.errors(&batch).contains("\"status_code\":400"));
    // Once more, the same bytes; another seed gives others.
    let again = client.end(client.create(&file, json!({})).json()["id"].as_str().unwrap());
    assert_eq!(client.outputs(&again), good);
    let other = client.end(client.create(&file, json!({ "seed": 5 })).json()["id"].as_str().unwrap());
    assert_ne!(client.outputs(&other), good);
    // Newest first, in pages.
    let page = client.get("/v1/batches?limit=2").json();
    assert_eq!(
        (&page["data"][0]["id"], &page["data"][1]["id"], &page["has_more"]),
        (&other["id"], &again["id"], &json!(true))
    );
    let next = client.get(&format!("/v1/batches?limit=2&after={}", page["last_id"].as_str().unwrap())).json();
    assert_eq!((&next["data"][0]["id"], &next["has_more"]), (&batch["id"], &json!(false)));
    let files = client.get("/v1/files?purpose=batch").json();
    assert_eq!((files["data"].as_array().unwrap().len(), &files["data"][0]["id"]), (1, &json!(file)));
    client.get("/v1/files?limit=0").error(400);
    client.get("/v1/files?order=x").error(400);
    client.get("/v1/files?after=x").error(400);
}

#[test]
fn files_and_batches_belong_to_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), ScriptedBackend::new([Script::words("yes")]), |_| ());
    let owner = client(&server);
    let other = Client { server: &server, key: KEYS[1] };
    let file = owner.upload(&line("a", json!("x")));
    let id = owner.create(&file, json!({})).json()["id"].as_str().unwrap().to_owned();
    let batch = owner.end(&id);
    let output = batch["output_file_id"].as_str().unwrap();
    for path in [format!("/v1/files/{file}"), format!("/v1/files/{output}/content"), format!("/v1/batches/{id}")] {
        assert_eq!((owner.get(&path).status, other.get(&path).status), (200, 404), "{path}");
    }
    assert_eq!(other.ask("DELETE", &format!("/v1/files/{file}"), "").status, 404);
    assert_eq!(other.ask("POST", &format!("/v1/batches/{id}/cancel"), "{}").status, 404);
    assert_eq!(other.create(&file, json!({})).error(400).1.as_deref(), Some("input_file_id"));
    assert_eq!(
        (other.get("/v1/files").json()["data"].clone(), other.get("/v1/batches").json()["data"].clone()),
        (json!([]), json!([]))
    );
    assert_eq!(
        owner.ask("POST", &format!("/v1/batches/{id}/cancel"), "{}").error(409).2.as_deref(),
        Some("batch_over")
    );
    let deleted = owner.ask("DELETE", &format!("/v1/files/{file}"), "").json();
    assert_eq!(deleted, json!({ "id": file, "object": "file", "deleted": true }));
    assert_eq!(owner.get(&format!("/v1/files/{file}/content")).status, 404);
    for path in
        ["/v1/files/..%2Flock", "/v1/files/../../etc/passwd/content", "/v1/batches/x/cancel", "/v1/files/x/content"]
    {
        assert!([404, 405].contains(&owner.get(path).status), "{path}");
    }
    // One server at a time uses a folder.
    assert!(matches!(Files::open(folder.path(), FileLimits::default()), Err(ServeError::FilesInUse { .. })));
}

#[test]
fn uploads_have_limits() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), ScriptedBackend::default(), |limits| {
        (limits.file_bytes, limits.key_bytes, limits.total_bytes) = (1000, 1500, 2000);
    });
    let (first, second) = (client(&server), Client { server: &server, key: KEYS[1] });
    let file = |n: usize| "x".repeat(n);
    let upload =
        |client: &Client<'_>, n: usize| client.form(&[("name=purpose", "batch"), ("name=file; filename=x", &file(n))]);
    assert_eq!(upload(&first, 1001).error(413).2.as_deref(), Some("file_too_large"));
    assert_eq!(upload(&first, 200_000).status, 413);
    let kept = upload(&first, 1000).json()["id"].as_str().unwrap().to_owned();
    assert_eq!(upload(&first, 501).error(413).2.as_deref(), Some("file_quota_exceeded"));
    assert_eq!(upload(&first, 500).status, 200);
    assert_eq!(upload(&second, 501).error(507).2.as_deref(), Some("storage_full"));
    // What was refused or broke off takes no place.
    let head = "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nx-api-key: 0123456789abcdef\r\nContent-Length: 900\r\n\
                Content-Type: multipart/form-data; boundary=B\r\n\r\n--B\r\nContent-Disposition: form-data; name=file\r\n\r\nxxx";
    drop(send(&server.address, head.as_bytes()));
    let names =
        || std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    wait_until("nothing is left of the upload", || !names().any(|name| name.starts_with("upload-")));
    assert_eq!(upload(&second, 500).status, 200);
    assert_eq!(first.ask("DELETE", &format!("/v1/files/{kept}"), "").status, 200);
    assert_eq!(upload(&first, 1000).status, 200);
    for parts in [
        &[("name=purpose", "batch")][..],
        &[("name=file", "")],
        &[("name=purpose", "fine-tune"), ("name=file", "")],
        &[("name=file", ""), ("name=file", "")],
        &[("filename=x", "")],
    ] {
        first.form(parts).error(400);
    }
    assert_eq!(first.ask("POST", "/v1/files", "{}").status, 400);
    // Without a folder for them there are no files.
    let server = Running::start(ScriptedBackend::default(), |server| server.keys(Keys::new(KEYS).unwrap()));
    for path in ["/v1/files", "/v1/batches", "/v1/files/x", "/v1/batches/x", "/v1/files/x/content"] {
        assert_eq!(client(&server).get(path).error(404).2.as_deref(), Some("no_store"), "{path}");
    }
}

#[test]
fn a_file_that_is_wrong_is_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), ScriptedBackend::default(), |limits| limits.lines = 6);
    let client = client(&server);
    let failed = |text: &str| {
        let batch = client.end(&client.begin(text));
        assert_eq!((&batch["status"], &batch["output_file_id"]), (&json!("failed"), &Value::Null));
        let errors = batch["errors"]["data"].as_array().unwrap().clone();
        errors
            .iter()
            .map(|error| (error["code"].as_str().unwrap().to_owned(), error["line"].clone()))
            .collect::<Vec<_>>()
    };
    let other = json!({ "custom_id": "c", "url": "/v1/embeddings", "body": {} }).to_string() + "\n";
    let get = json!({ "custom_id": "d", "method": "GET", "url": "/v1/completions", "body": {} }).to_string() + "\n";
    let nameless = json!({ "url": "/v1/completions", "body": {} }).to_string() + "\n";
    let text = line("a", json!("x")) + "no JSON\n" + &line("a", json!("x")) + &other + &get + &nameless;
    let want = [
        ("invalid_json_line", 2),
        ("duplicate_custom_id", 3),
        ("mismatched_endpoint", 4),
        ("invalid_request", 5),
        ("missing_custom_id", 6),
    ];
    assert_eq!(failed(&text), want.map(|(code, line)| (code.to_owned(), json!(line))));
    assert_eq!(failed("\n\n"), [("empty_file".to_owned(), Value::Null)]);
    let many: String = (0..7).map(|i| line(&i.to_string(), json!("x"))).collect();
    assert_eq!(failed(&many), [("too_many_lines".to_owned(), Value::Null)]);
    let file = client.upload(&line("a", json!("x")));
    for (more, param) in [
        (json!({ "endpoint": "/v1/models" }), "endpoint"),
        (json!({ "completion_window": "1h" }), "completion_window"),
        (json!({ "input_file_id": "file-none" }), "input_file_id"),
        (json!({ "metadata": { "a": "x".repeat(513) } }), "metadata"),
        (json!({ "metadata": { "a": 1 } }), "metadata.a"),
    ] {
        assert_eq!(client.create(&file, more).error(400).1.as_deref(), Some(param));
    }
}

#[test]
fn a_batch_goes_on_after_a_stop() {
    let folder = tempfile::tempdir().unwrap();
    let input: String = (0..6).map(|i| line(&i.to_string(), json!("x"))).collect();
    let one_by_one = |limits: &mut FileLimits| limits.jobs = 1;
    let hour = || Script::new().wait(Duration::from_secs(3600));
    let words = |n: usize| (0..n).map(|_| Script::words("a word"));
    let refuse = |kind| Script::refuse(BackendError::new(kind, "no"));
    // The third line is refused for a moment, the second fails for good.
    let scripts = words(1)
        .chain([refuse(BackendErrorKind::Internal), refuse(BackendErrorKind::Busy)])
        .chain(words(1))
        .chain([hour()]);
    let backend = ScriptedBackend::new(scripts);
    let server = serve(folder.path(), backend.clone(), one_by_one);
    let id = client(&server).begin(&input);
    wait_until("three lines are answered", || {
        client(&server).batch(&id)["request_counts"] == json!({ "total": 6, "completed": 2, "failed": 1 })
    });
    let file = client(&server).batch(&id)["input_file_id"].as_str().unwrap().to_owned();
    assert_eq!(
        client(&server).ask("DELETE", &format!("/v1/files/{file}"), "").error(409).2.as_deref(),
        Some("file_in_use")
    );
    wait_until("the fourth is being answered", || backend.running() == 1);
    assert!(server.join());
    assert_eq!(backend.running(), 0);
    // A line was cut by a power failure, and an upload was interrupted.
    let part = folder.path().join(format!("{id}.out"));
    let text = std::fs::read_to_string(&part).unwrap();
    std::fs::write(&part, format!("{text}{{\"id\":\"batch_req_4")).unwrap();
    std::fs::write(folder.path().join("upload-file-x"), "x").unwrap();
    let backend = ScriptedBackend::new(words(3));
    let server = serve(folder.path(), backend.clone(), one_by_one);
    let client = client(&server);
    let batch = client.end(&id);
    assert_eq!((&batch["status"], &batch["request_counts"]["completed"]), (&json!("completed"), &json!(5)));
    assert_eq!(backend.jobs().len(), 3);
    assert_eq!(
        (ids(&client.outputs(&batch)).join(""), ids(&client.errors(&batch)).join("")),
        ("02345".into(), "1".into())
    );
    assert!(!folder.path().join("upload-file-x").exists());
    assert!(server.join());
    // What is over stays so.
    let server = serve(folder.path(), ScriptedBackend::default(), one_by_one);
    assert_eq!(self::client(&server).batch(&id), batch);
}

#[test]
fn a_batch_ends_before_its_last_line() {
    let folder = tempfile::tempdir().unwrap();
    let input: String = (0..4).map(|i| line(&i.to_string(), json!("x"))).collect();
    let hour = Script::new().wait(Duration::from_secs(3600));
    let backend = ScriptedBackend::new([Script::words("a word"), hour.clone()]);
    let server = serve(folder.path(), backend.clone(), |limits| limits.jobs = 1);
    // By cancellation: what there is so far is kept.
    {
        let client = client(&server);
        let id = client.begin(&input);
        wait_until("a line is answered", || client.batch(&id)["request_counts"]["completed"] == 1);
        let cancelled = client.ask("POST", &format!("/v1/batches/{id}/cancel"), "{}").json();
        assert_eq!(cancelled["status"], "cancelling");
        let batch = client.end(&id);
        assert_eq!((&batch["status"], backend.running()), (&json!("cancelled"), 0));
        assert_eq!((client.outputs(&batch).lines().count(), &batch["error_file_id"]), (1, &Value::Null));
    }
    assert!(server.join());
    // By expiry: the other lines are errors.
    backend.push(Script::words("a word"));
    backend.push(hour.clone());
    let server =
        serve(folder.path(), backend.clone(), |limits| (limits.jobs, limits.window) = (1, Duration::from_secs(1)));
    {
        let client = client(&server);
        let batch = client.end(&client.begin(&input));
        assert_eq!(batch["status"], "expired");
        assert_eq!(client.outputs(&batch).lines().count() + client.errors(&batch).lines().count(), 4);
        assert!(client.errors(&batch).lines().all(|line| line.contains("\"batch_expired\"")));
    }
    assert!(server.join());
    // Because its key is gone when the server starts again. On a busy machine the other one has scripts left.
    let backend = ScriptedBackend::new([hour]);
    let server = serve(folder.path(), backend.clone(), |_| ());
    let id = client(&server).begin(&input);
    wait_until("it is being answered", || backend.running() == 1);
    assert!(server.join());
    let files = Files::open(folder.path(), FileLimits::default()).unwrap();
    let server = Running::start(backend.clone(), |server| server.keys(Keys::new([KEYS[1]]).unwrap()).files(files));
    let path = folder.path().join(format!("{id}.json"));
    wait_until("it has failed", || std::fs::read_to_string(&path).unwrap().contains("\"status\":\"failed\""));
    assert!(std::fs::read_to_string(&path).unwrap().contains("invalid_api_key"));
    assert_eq!(backend.running(), 0);
    drop(server);
}
