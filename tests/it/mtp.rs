//! Drafts of a model by its own layer change the time, but not the tokens.

use fewbit::expert::format::{GgufFile, GgufWriter, TensorInfo, Value};
use fewbit::{ErrorKind, Generate, GenerateOptions, Model, ModelBuilder, Speculation};

use crate::{STORIES, TEMPLATE, stories, together};

/// The layers, and the width of the stories model and of its heads.
const N_LAYERS: usize = 5;
const DIM: usize = 64;
const HEAD_DIM: usize = 8;

/// What the layer that predicts a further token does.
#[derive(Clone, Copy, PartialEq)]
enum Drafts {
    /// Something: its input is half of the token, half of what the model makes of the text before, and the rest of it is as
    /// the model's last layer.
    Any,
    /// What the model does. For that, tokens of this model follow each other whatever the text: what is added to the
    /// embedding is nothing, in the model and in the layer.
    Right,
}

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// The rows of interleaved pairs in the order of half-split ones.
fn half_split(bytes: &[u8], n_rows: usize) -> Vec<u8> {
    let row = bytes.len() / n_rows;
    let source = |r: usize| {
        let (head, e) = (r / HEAD_DIM, r % HEAD_DIM);
        head * HEAD_DIM + 2 * (e % (HEAD_DIM / 2)) + e / (HEAD_DIM / 2)
    };
    (0..n_rows).flat_map(|r| bytes[source(r) * row..][..row].to_vec()).collect()
}

/// The bytes of a tensor of the new model.
fn changed(tensor: &TensorInfo, bytes: &[u8], drafts: Drafts) -> Vec<u8> {
    let name = &tensor.name;
    if name.contains("attn_q.") || name.contains("attn_k.") {
        return half_split(bytes, tensor.shape[0] as usize);
    }
    let adds = name.contains("attn_output") || name.contains("ffn_down");
    match drafts {
        Drafts::Right if adds => vec![0; bytes.len()],
        // A token is followed by the next but one.
        Drafts::Right if name == "output.weight" => {
            let row = bytes.len() / tensor.shape[0] as usize;
            [&bytes[bytes.len() - 2 * row..], &bytes[..bytes.len() - 2 * row]].concat()
        }
        _ => bytes.to_vec(),
    }
}

/// The stories model as one of GLM-4.5's architecture without experts, with a layer that predicts a further token.
fn file(drafts: Drafts) -> Vec<u8> {
    let file = GgufFile::open(STORIES.as_ref()).unwrap();
    let mut writer = GgufWriter::new();
    for (key, value) in file.metadata().iter() {
        let key = key.strip_prefix("llama.").map_or(key.to_owned(), |rest| format!("glm4moe.{rest}"));
        writer.set(key, value.clone());
    }
    writer.set("general.architecture", Value::from("glm4moe"));
    writer.set("glm4moe.block_count", N_LAYERS as u32 + 1);
    writer.set("glm4moe.nextn_predict_layers", 1u32);
    let ffn_norm = |name: &str| name.replace("ffn_norm", "post_attention_norm");
    for tensor in file.tensors() {
        let bytes = match (tensor.name.as_str(), drafts) {
            // Its rows are what follows: those of the embedding.
            ("output.weight", Drafts::Right) => file.tensor_bytes(file.tensor("token_embd.weight").unwrap()),
            _ => file.tensor_bytes(tensor),
        };
        let bytes = changed(tensor, bytes, drafts);
        let last = format!("blk.{}.", N_LAYERS - 1);
        if let Some(part) = tensor.name.strip_prefix(&last) {
            let name = ffn_norm(&format!("blk.{N_LAYERS}.{part}"));
            writer.tensor(name, &tensor.shape, tensor.ty, bytes.clone()).unwrap();
        }
        writer.tensor(ffn_norm(&tensor.name), &tensor.shape, tensor.ty, bytes).unwrap();
    }
    let dim = DIM as u64;
    let hidden = if drafts == Drafts::Right { 0.0 } else { 0.5 };
    let diagonal = |at: usize| match (at / (2 * DIM), at % (2 * DIM)) {
        (row, col) if col == row => 0.5,
        (row, col) if col == row + DIM => hidden,
        _ => 0.0,
    };
    let mut add = |name: &str, shape: &[u64], values: Vec<u8>| {
        let ty = file.tensor("output_norm.weight").unwrap().ty;
        writer.tensor(format!("blk.{N_LAYERS}.nextn.{name}.weight"), shape, ty, values).unwrap();
    };
    add("eh_proj", &[dim, 2 * dim], floats((0..DIM * 2 * DIM).map(diagonal)));
    add("enorm", &[dim], floats([1.0; DIM]));
    add("hnorm", &[dim], floats([1.0; DIM]));
    let norm = file.tensor_bytes(file.tensor("output_norm.weight").unwrap()).to_vec();
    add("shared_head_norm", &[dim], norm);
    writer.to_bytes().unwrap()
}

fn load(drafts: Drafts, configure: impl FnOnce(ModelBuilder) -> ModelBuilder) -> Model {
    let builder = Model::builder().threads(1).mtp(true).chat_template(TEMPLATE);
    configure(builder).load_bytes("stories with a further layer", file(drafts)).unwrap()
}

fn requests(model: &Model) -> Vec<Generate> {
    let mut all = Vec::new();
    for prompt in ["Lily had a red ball. Lily had a red ball. Tom had a blue", "Once upon a time", "a"] {
        let request = || model.generate(prompt).max_tokens(60).seed(5);
        all.push(request().temperature(0.0));
        all.push(request().temperature(0.0).ignore_eos(true).max_tokens(300));
        all.push(request().temperature(0.8));
        all.push(request().temperature(2.0).top_k(0).top_p(1.0).min_p(0.0).ignore_eos(true));
        all.push(request().temperature(0.0).stop("ball"));
        all.push(request().temperature(0.3).options(GenerateOptions::new().repeat_penalty(1.2)).min_p(0.1));
        all.push(request().max_tokens(1));
        all.push(request().max_tokens(2));
    }
    all
}

#[test]
fn the_file_is_the_stories_model() {
    let model = load(Drafts::Any, |b| b);
    let run = |model: &Model| {
        model.generate("Once upon a time").temperature(0.0).max_tokens(80).speculation(Speculation::Off).run().unwrap()
    };
    assert_eq!(run(&model).text, run(stories()).text);
}

#[test]
fn own_drafts_change_no_token() {
    // Nearly all drafts of a layer that was made for something else are wrong.
    for (drafts, at_least) in [(Drafts::Right, 0.2), (Drafts::Any, 0.0)] {
        let model = load(drafts, |b| b);
        let (mut drafted, mut accepted) = (0, 0);
        for (i, request) in requests(&model).into_iter().enumerate() {
            let plain = request.clone().speculation(Speculation::Off).run().unwrap();
            assert_eq!((plain.usage.drafted, plain.usage.accepted), (0, 0));
            for speculation in [Speculation::Always, Speculation::Auto] {
                let out = request.clone().speculation(speculation).run().unwrap();
                assert_eq!((&out.tokens, &out.text), (&plain.tokens, &plain.text), "request {i}, {speculation:?}");
                assert_eq!(out.finish_reason, plain.finish_reason, "request {i}, {speculation:?}");
                drafted += out.usage.drafted;
                accepted += out.usage.accepted;
            }
        }
        println!("{accepted} of {drafted}");
        assert!(accepted as f64 >= at_least * drafted as f64 && accepted < drafted, "{accepted} of {drafted}");
        assert_eq!(model.metrics().drafted_tokens, drafted as u64);
        assert_eq!(model.metrics().accepted_tokens, accepted as u64);
        model.clear_prefixes().unwrap();
        assert_eq!(model.metrics().kv_pages, 0, "drafting leaves nothing behind");
    }
}

/// Drafts that are right are all accepted, through pages' ends, and save steps.
#[test]
fn right_drafts_are_accepted() {
    let model = load(Drafts::Right, |b| b);
    let request = || model.generate("Once").temperature(0.0).ignore_eos(true).max_tokens(400);
    let plain = request().speculation(Speculation::Off).run().unwrap();
    let steps = model.metrics().steps;
    let out = request().speculation(Speculation::Always).run().unwrap();
    assert_eq!(out.tokens, plain.tokens);
    let usage = &out.usage;
    assert_eq!(usage.accepted, usage.drafted, "all drafts are right");
    assert!(usage.accepted >= 360 && model.metrics().steps - steps < 40, "{usage:?}");
}

/// Requests that share pages, give way to each other or wait have the same tokens.
#[test]
fn requests_together_have_the_tokens_of_one_alone() {
    for drafts in [Drafts::Right, Drafts::Any] {
        let alone = load(drafts, |b| b.prefix_memory(0));
        // Room for few pages, so that some give way.
        let page = alone.metrics().kv_page_bytes;
        for model in [load(drafts, |b| b.prefill_chunk(33)), load(drafts, |b| b.kv_memory(9 * page).max_running(4))] {
            let prompt = |i: usize| format!("{} They {i}", "Lily had a red ball. ".repeat(10 + 8 * (i % 3)));
            let run = |model: &Model, i: usize, speculation| {
                let request =
                    model.generate(prompt(i)).seed(i as u64).temperature(if i.is_multiple_of(2) { 0.0 } else { 0.9 });
                request.max_tokens(40).ignore_eos(true).speculation(speculation).run().unwrap().tokens
            };
            let got = together(6, |i| run(&model, i, Speculation::Always));
            for (i, got) in got.into_iter().enumerate() {
                assert_eq!(got, run(&alone, i, Speculation::Off), "request {i}");
            }
        }
    }
}

/// Conversations and several texts from one prompt.
#[test]
fn conversations_and_forks_have_the_same_tokens() {
    let folder = tempfile::tempdir().unwrap();
    for drafts in [Drafts::Right, Drafts::Any] {
        let model = load(drafts, |b| b);
        let run = |speculation| {
            let path = folder.path().join("chat.session");
            let options = || GenerateOptions::new().speculation(speculation).max_tokens(24).temperature(0.7).seed(4);
            let mut chat = model.chat().system("Tell a story.").options(options()).start().unwrap();
            let first = chat.send(format!("Who? {}", "They were happy. ".repeat(40))).unwrap();
            chat.save(&path).unwrap();
            let second = chat.send("And then?").unwrap();
            let mut restored = model.chat().options(options()).restore(&path).unwrap();
            assert_eq!(restored.send("And then?").unwrap().tokens, second.tokens);
            let samples = model.generate("Once upon a time").options(options()).samples(3).unwrap();
            let drafted: usize = samples.iter().map(|sample| sample.usage.drafted).sum();
            let tokens: Vec<_> = samples.into_iter().map(|sample| sample.tokens).collect();
            (first.tokens, second.tokens, tokens, drafted + first.usage.drafted + second.usage.drafted > 0)
        };
        let (plain, drafted) = (run(Speculation::Off), run(Speculation::Always));
        assert_eq!((plain.0, plain.1, plain.2), (drafted.0, drafted.1, drafted.2));
        assert_eq!((plain.3, drafted.3), (false, true));
    }
}

#[test]
fn drafts_end_at_the_context_length() {
    let model = load(Drafts::Right, |b| b.context_length(100));
    let run = |speculation| {
        model.generate("Once upon").temperature(0.0).ignore_eos(true).speculation(speculation).run().unwrap()
    };
    let (plain, out) = (run(Speculation::Off), run(Speculation::Always));
    assert_eq!((out.tokens, out.finish_reason), (plain.tokens, plain.finish_reason));
    assert!(out.usage.accepted > 0);
}

/// A smaller model drafts in the place of the layer, and a model without the layer is an error.
#[test]
fn the_layer_is_chosen_and_missed() {
    let model = load(Drafts::Any, |b| b);
    let right = load(Drafts::Any, |b| b.mtp(false));
    let request =
        || model.generate("Once upon a time").temperature(0.0).max_tokens(60).speculation(Speculation::Always);
    let usage = request().draft(&right).run().unwrap().usage;
    assert_eq!(usage.accepted, usage.drafted, "of the same model");
    assert!(request().run().unwrap().usage.accepted < usage.accepted);
    let error = Model::builder().mtp(true).load(STORIES).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::File { .. }) && format!("{error:#}").contains("nextn_predict_layers"),
        "{error:#}"
    );
}
