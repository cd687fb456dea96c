//! Reranking with an embedding model, and which models cannot; what is told of a tokenizer.

use fewbit::Model;
use fewbit::expert::format::{GgufFile, GgufWriter};
use fewbit_serve::{EngineBackend, ScriptedBackend};
use serde_json::{Value, json};

use crate::client::{get, post};
use crate::{Running, STORIES, stories};

/// The stories model as an embedding model: its file says how it pools.
fn embedding() -> Model {
    let file = GgufFile::open(STORIES.as_ref()).unwrap();
    let mut writer = GgufWriter::with_metadata(file.metadata().clone());
    writer.set("llama.pooling_type", 3u32);
    for tensor in file.tensors() {
        writer.tensor(&tensor.name, &tensor.shape, tensor.ty, file.tensor_bytes(tensor).to_vec()).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("embedding.gguf");
    writer.write_file(&path).unwrap();
    Model::builder().threads(1).load_file(&path).unwrap()
}

#[test]
fn documents_are_ordered_by_the_cosine_of_their_vectors() {
    let model = embedding();
    let server = Running::with(EngineBackend::new([("embedding", model.clone())]).unwrap());
    let documents =
        ["A dog ran in the park.", "The sun was hot.", "Lily had a big red ball.", "A dog ran in the park."];
    let query = "Once there was a dog";
    let body = json!({
        "query": query, "top_n": 3, "return_documents": true,
        "documents": [documents[0], { "text": documents[1] }, documents[2], documents[3]],
    });
    let answer = post(&server.address, "/v1/rerank", &body).json();
    let vectors = model.embed(std::iter::once(query).chain(documents)).run().unwrap();
    let dot = |i: usize| {
        vectors.vectors[0].iter().zip(&vectors.vectors[i + 1]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    let mut want: Vec<(usize, f64)> = (0..4).map(|i| (i, dot(i))).collect();
    want.sort_by(|a, b| b.1.total_cmp(&a.1));
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    for (result, (index, score)) in results.iter().zip(&want) {
        assert_eq!((&result["index"], &result["document"]["text"]), (&json!(index), &json!(documents[*index])));
        assert!((result["relevance_score"].as_f64().unwrap() - score).abs() < 1e-6);
    }
    assert_eq!(answer["usage"]["total_tokens"], vectors.usage.prompt);
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("embedding")));
    let plain = post(&server.address, "/rerank", &json!({ "query": query, "documents": documents })).json();
    assert_eq!((plain["results"].as_array().unwrap().len(), plain["results"][0].get("document")), (4, None));
    for (more, param) in [
        (json!({ "documents": ["a", ""] }), "documents[1]"),
        (json!({ "documents": [] }), "documents"),
        (json!({ "documents": [{ "image": "x" }] }), "documents[0]"),
        (json!({ "query": "" }), "query"),
        (json!({ "top_n": 0 }), "top_n"),
    ] {
        let mut body = json!({ "query": "a", "documents": ["a"] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(post(&server.address, "/v1/rerank", &body).error(400).1.as_deref(), Some(param), "{body}");
    }
}

#[test]
fn what_cannot_rerank_says_so() {
    let models = [("chat", stories().clone()), ("a-Reranker", stories().clone())];
    let server = Running::with(EngineBackend::new(models).unwrap());
    for model in ["chat", "a-Reranker"] {
        let body = json!({ "model": model, "query": "a", "documents": ["a"] });
        assert_eq!(post(&server.address, "/v1/rerank", &body).error(400).1.as_deref(), Some("model"));
    }
    // Documents of the same relevance keep their order.
    let server = Running::with(ScriptedBackend::default());
    let body = json!({ "query": "a", "documents": ["aa", "b", "cc", "d"] });
    let results = post(&server.address, "/v1/rerank", &body).json()["results"].clone();
    let order: Vec<_> = results.as_array().unwrap().iter().map(|result| result["index"].as_u64().unwrap()).collect();
    assert_eq!(order, [0, 2, 1, 3]);
}

#[test]
fn a_tokenizer_is_described() {
    let server = Running::with(EngineBackend::new([("stories", stories().clone())]).unwrap());
    let info = get(&server.address, "/tokenizer_info?model=stories").json();
    assert_eq!((&info["bos_token"], &info["eos_token"]), (&json!("<s>"), &json!("</s>")));
    assert_eq!((&info["vocab_size"], &info["model_max_length"]), (&json!(512), &json!(512)));
    assert_eq!(info["added_tokens_decoder"]["1"], json!({ "content": "<s>", "special": true }));
    assert!(info.get("tokenizer_class").is_some_and(Value::is_string));
    assert_eq!(get(&server.address, "/tokenizer_info?model=other").error(404).2.as_deref(), Some("model_not_found"));
}
