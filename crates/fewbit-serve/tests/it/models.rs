//! Models that are loaded on demand: one loading for all who wait, a memory limit, idle models, failures.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use fewbit::Model;
use fewbit_serve::{BuilderSource, EngineBackend, ModelSource, ServedModel, SourceError};
use serde_json::{Value, json};

use crate::client::{Answer, Sent, get, post, request, send, wait_until};
use crate::{Running, STORIES, TEMPLATE, load, stories};

const KV_BYTES: u64 = 1 << 20;
const COMPLETIONS: &str = "/v1/completions";

/// A source whose loading a test can hold up, and let fail.
#[derive(Clone, Default)]
struct Source {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    loads: AtomicUsize,
    is_held: Mutex<bool>,
    freed: Condvar,
    /// What the next loadings do instead, last first.
    accidents: Mutex<Vec<Accident>>,
    bytes: Option<u64>,
}

enum Accident {
    Error,
    Panic,
}

impl Source {
    fn hold(&self, is_held: bool) {
        *self.shared.is_held.lock().unwrap() = is_held;
        self.shared.freed.notify_all();
    }

    fn loads(&self) -> usize {
        self.shared.loads.load(Ordering::SeqCst)
    }
}

impl ModelSource for Source {
    fn needed_bytes(&self) -> Result<u64, SourceError> {
        Ok(self.shared.bytes.unwrap_or_else(bytes))
    }

    fn load(&self) -> Result<Model, SourceError> {
        self.shared.loads.fetch_add(1, Ordering::SeqCst);
        let held = self.shared.freed.wait_while(self.shared.is_held.lock().unwrap(), |held| *held);
        drop(held.unwrap());
        let accident = self.shared.accidents.lock().unwrap().pop();
        match accident {
            None => Ok(small()),
            Some(Accident::Error) => Err("/a/secret/path is torn".into()),
            Some(Accident::Panic) => panic!("the test says so"),
        }
    }
}

fn small() -> Model {
    load(|builder| builder.kv_memory(KV_BYTES))
}

/// The memory that the pool counts for [`small`].
fn bytes() -> u64 {
    let metrics = small().metrics();
    metrics.weight_bytes + metrics.kv_pages_limit as u64 * metrics.kv_page_bytes
}

fn serve(models: Vec<ServedModel>, limit: Option<u64>) -> Running {
    let engine = EngineBackend::with_models(models, limit).unwrap();
    Running::start(engine.clone(), |server| server.models(&engine).keep_alive(Duration::from_millis(20)))
}

fn body(model: &str, more: Value) -> Value {
    let mut body = json!({ "model": model, "prompt": "Once upon a time", "seed": 3, "max_tokens": 8 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn ask(server: &Running, model: &str) -> Answer {
    post(&server.address, COMPLETIONS, &body(model, json!({})))
}

/// An answer that does not end before the client reads it, because it is larger than all buffers on its way.
fn endless(server: &Running, model: &str) -> Sent {
    let more = json!({ "stream": true, "n": 32, "max_tokens": 480, "logprobs": 20, "logit_bias": { "2": -100 } });
    let mut sent = send(&server.address, &request("POST", COMPLETIONS, &[], &body(model, more).to_string()));
    sent.read_to("data: ");
    sent
}

fn status(server: &Running, model: &str) -> Value {
    let all = get(&server.address, "/admin/models").json();
    all["data"].as_array().unwrap().iter().find(|status| status["id"] == model).unwrap().clone()
}

fn metric(server: &Running, name: &str, model: &str) -> f64 {
    let text = get(&server.address, "/metrics").body;
    let start = format!("fewbit_{name}{{model=\"{model}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
}

#[test]
fn one_loading_serves_all_who_wait() {
    let source = Source::default();
    source.hold(true);
    let models = vec![ServedModel::on_demand("late", source.clone()), ServedModel::loaded("ready", small())];
    let server = serve(models, None);
    let state = || get(&server.address, "/v1/models").json()["data"][0]["state"].clone();
    assert_eq!(state(), "unloaded");
    let stream = body("late", json!({ "stream": true }));
    let mut waiting: Vec<Sent> =
        (0..6).map(|_| send(&server.address, &request("POST", COMPLETIONS, &[], &stream.to_string()))).collect();
    let whole = send(&server.address, &request("POST", COMPLETIONS, &[], &body("late", json!({})).to_string()));
    // A stream is kept alive while the model is being loaded.
    for sent in &mut waiting {
        assert!(sent.line().contains(" 200 "));
        sent.read_to(": keep-alive");
    }
    // Others are answered meanwhile, and the model is listed.
    assert_eq!(ask(&server, "ready").status, 200);
    assert_eq!(state(), "loading");
    // Somebody who disconnects does not end it for the others.
    drop(waiting.pop());
    source.hold(false);
    let want = stories().generate("Once upon a time").seed(3).max_tokens(8).run().unwrap().text;
    assert_eq!(whole.answer().json()["choices"][0]["text"], want.as_str());
    for mut sent in waiting {
        let mut text = String::new();
        loop {
            let event = sent.read_to("data: ");
            let Ok(event) = serde_json::from_str::<Value>(&event["data: ".len()..]) else { break };
            text += event["choices"][0]["text"].as_str().unwrap();
        }
        assert_eq!(text, want);
    }
    assert_eq!((source.loads(), state()), (1, json!("loaded")));
    // What is neither an answer nor a stream loads a model as well.
    let other = Source::default();
    let server = serve(vec![ServedModel::on_demand("late", other.clone())], None);
    assert_eq!(post(&server.address, "/tokenize", &json!({ "content": "Once" })).status, 200);
    assert_eq!((other.loads(), metric(&server, "model_loads_total", "late")), (1, 1.0));
}

#[test]
fn all_who_wait_may_leave() {
    let source = Source::default();
    source.hold(true);
    let server = serve(vec![ServedModel::on_demand("late", source.clone())], None);
    let sent = send(&server.address, &request("POST", COMPLETIONS, &[], &body("late", json!({})).to_string()));
    wait_until("it is being loaded", || source.loads() == 1);
    drop(sent);
    wait_until("nobody waits", || status(&server, "late")["requests"] == 0);
    source.hold(false);
    wait_until("it is loaded", || status(&server, "late")["state"] == "loaded");
    assert_eq!((ask(&server, "late").status, source.loads()), (200, 1));
}

#[test]
fn idle_models_are_unloaded() {
    let source = Source::default();
    let idle = ServedModel::on_demand("idle", source.clone()).unload_after(Duration::from_millis(50));
    let server = serve(vec![idle, ServedModel::loaded("ready", small())], None);
    let stream = endless(&server, "idle");
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(status(&server, "idle")["state"], "loaded", "it is in use");
    drop(stream);
    wait_until("it is unloaded", || status(&server, "idle")["state"] == "unloaded");
    assert_eq!(status(&server, "idle")["memory_bytes"], 0);
    // Even if it was loaded for nobody, and again after each loading.
    let loaded = post(&server.address, "/admin/models/load", &json!({ "model": "idle" })).json();
    assert_eq!((&loaded["state"], &loaded["loads"]), (&json!("loaded"), &json!(2)));
    wait_until("it is unloaded again", || metric(&server, "model_unloads_total", "idle") == 2.0);
    assert_eq!((ask(&server, "idle").status, source.loads()), (200, 3));
    assert_eq!(metric(&server, "model_loaded", "ready"), 1.0);
}

#[test]
fn models_share_the_memory() {
    let source = Source::default();
    let huge = Source { shared: Arc::new(Shared { bytes: Some(bytes() * 3), ..Shared::default() }) };
    let on_demand = |id: &str| ServedModel::on_demand(id, source.clone());
    let mut models: Vec<_> = ["a", "b", "c"].into_iter().map(on_demand).collect();
    models.push(ServedModel::on_demand("huge", huge));
    // Room for two and a half.
    let server = serve(models, Some(bytes() * 5 / 2));
    let loaded = || {
        let all = get(&server.address, "/admin/models").json();
        assert!(all["memory_bytes"].as_u64().unwrap() <= all["memory_limit_bytes"].as_u64().unwrap());
        let ids = all["data"].as_array().unwrap().iter().filter(|status| status["state"] == "loaded");
        ids.map(|status| status["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for id in ["a", "b", "a"] {
        assert_eq!(ask(&server, id).status, 200);
    }
    // The one that was used the longest ago makes room.
    assert_eq!(ask(&server, "c").status, 200);
    assert_eq!(loaded(), ["a", "c"]);
    // Models in use stay.
    let streams = [endless(&server, "a"), endless(&server, "c")];
    let refused = ask(&server, "b");
    assert_eq!(refused.error(503).2.as_deref(), Some("model_not_loaded"));
    assert_eq!(refused.header("retry-after"), Some("5"));
    assert!(refused.body.contains("MiB") && loaded() == ["a", "c"], "{}", refused.body);
    drop(streams);
    wait_until("nothing is in use", || ["a", "c"].iter().all(|id| status(&server, id)["requests"] == 0));
    assert_eq!(ask(&server, "b").status, 200);
    assert!(loaded().contains(&"b".to_owned()));
    // What can never be loaded makes nobody go.
    let before = loaded();
    let refused = ask(&server, "huge");
    assert_eq!((refused.error(503).2.as_deref(), refused.header("retry-after")), (Some("model_too_large"), None));
    assert_eq!(loaded(), before);
    assert_eq!(metric(&server, "model_load_failures_total", "huge"), 1.0);
    assert!(metric(&server, "models_memory_limit_bytes", "") > 0.0);
    // All at once: each is answered or told to try again, and the limit holds.
    std::thread::scope(|scope| {
        let server = &server;
        let ask = |id| scope.spawn(move || (0..5).map(|_| ask(server, id).status).collect::<Vec<_>>());
        let threads = ["a", "b", "c"].map(ask);
        while threads.iter().any(|thread| !thread.is_finished()) {
            loaded();
        }
        for thread in threads {
            assert!(thread.join().unwrap().iter().all(|status| [200, 503].contains(status)));
        }
    });
    wait_until("nothing is in use", || ["a", "b", "c"].iter().all(|id| status(&server, id)["requests"] == 0));
    assert_eq!(ask(&server, "a").status, 200);
}

#[test]
fn a_failure_is_that_of_its_requests() {
    let source = Source::default();
    source.shared.accidents.lock().unwrap().extend([Accident::Panic, Accident::Error, Accident::Error]);
    let server = serve(vec![ServedModel::on_demand("late", source.clone())], None);
    let failed = ask(&server, "late");
    assert_eq!(failed.error(500).2.as_deref(), Some("model_load_failed"));
    assert!(!failed.body.contains("secret"), "{}", failed.body);
    assert_eq!(status(&server, "late")["error"], "/a/secret/path is torn");
    // In a stream that was opened already, it is an event.
    source.hold(true);
    let stream = body("late", json!({ "stream": true }));
    let mut sent = send(&server.address, &request("POST", COMPLETIONS, &[], &stream.to_string()));
    sent.read_to(": keep-alive");
    source.hold(false);
    let event: Value = serde_json::from_str(&sent.read_to("data: ")["data: ".len()..]).unwrap();
    assert_eq!(event["error"]["code"], "model_load_failed");
    assert_eq!(ask(&server, "late").status, 500, "it panics");
    assert_eq!(ask(&server, "late").status, 200);
    assert_eq!(
        (status(&server, "late")["failures"].clone(), status(&server, "late")["error"].clone()),
        (json!(3), Value::Null)
    );
}

#[test]
fn models_are_loaded_and_unloaded_by_hand() {
    let source = Source::default();
    let server = serve(vec![ServedModel::on_demand("late", source), ServedModel::loaded("ready", small())], None);
    let by_hand =
        |what: &str, model: &str| post(&server.address, &format!("/admin/models/{what}"), &json!({ "model": model }));
    assert_eq!(by_hand("load", "late").json()["state"], "loaded");
    let stream = endless(&server, "late");
    by_hand("unload", "late").error(409);
    drop(stream);
    wait_until("it is unloaded", || by_hand("unload", "late").status == 200);
    assert_eq!(status(&server, "late")["state"], "unloaded");
    assert_eq!(by_hand("unload", "late").status, 200);
    by_hand("unload", "ready").error(409);
    assert_eq!(by_hand("load", "ready").status, 200);
    assert_eq!(by_hand("load", "none").error(404).2.as_deref(), Some("model_not_found"));
    assert_eq!(post(&server.address, "/admin/models/load", &json!({})).error(400).1.as_deref(), Some("model"));
}

#[test]
fn a_file_needs_what_it_then_takes() {
    let builder = Model::builder().threads(1).chat_template(TEMPLATE);
    let source = BuilderSource::new(builder.clone(), STORIES).kv_memory(KV_BYTES);
    assert!((bytes()..bytes() + (8 << 20)).contains(&source.needed_bytes().unwrap()));
    assert_eq!(source.load().unwrap().metrics().kv_pages_limit, small().metrics().kv_pages_limit);
    assert!(BuilderSource::new(builder, "/nonexistent/model.gguf").needed_bytes().is_err());
    // What is loaded at the start must fit.
    let error = EngineBackend::with_models([ServedModel::loaded("ready", small())], Some(bytes() - 1)).unwrap_err();
    assert!(error.to_string().contains("MiB"), "{error}");
}

#[test]
fn administrators_see_where_models_are() {
    let models = vec![ServedModel::on_demand("late", Source::default()), ServedModel::loaded("ready", small())];
    let server = serve(models, None);
    let model = stories();
    let ready = status(&server, "ready");
    let layers = model.config().n_layers();
    let devices = ready["devices"].as_array().unwrap();
    assert_eq!((devices.len(), &devices[0]["layers"], &devices[0]["is_cpu"]), (1, &json!(layers), &json!(true)));
    assert_eq!(devices[0]["weight_bytes"], model.metrics().weight_bytes);
    assert_eq!(devices[0]["device"], format!("cpu ({})", model.isa()));
    assert_eq!(ready["isa"], model.isa().name());
    assert_eq!(
        (&ready["threads"], &ready["context_length"]),
        (&json!(model.n_threads()), &json!(model.context_length()))
    );
    assert_eq!(ready["kv_bytes"], 0);
    assert!(ready["kv_limit_bytes"].as_u64().unwrap() > 0 && ready["idle_s"].as_f64().is_some());
    let late = status(&server, "late");
    assert_eq!((&late["devices"], &late["isa"], &late["context_length"]), (&json!([]), &Value::Null, &json!(0)));
    let all = get(&server.address, "/admin/models").json();
    assert_eq!((&all["devices"][0]["name"], &all["devices"][0]["unusable"]), (&json!("cpu"), &Value::Null));
}
