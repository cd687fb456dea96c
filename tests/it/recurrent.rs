//! A model with recurrent layers: speculation, shared prefixes, other requests, want of memory and saved conversations
//! change no token.

use std::sync::OnceLock;

use fewbit::expert::format::{GgufFile, GgufWriter};
use fewbit::{Generate, Model, ModelBuilder, Speculation, TensorType};

use crate::{STORIES, TEMPLATE, together};

/// A Qwen3.5 of random weights with the vocabulary of the stories model: layers of both kinds, twice.
fn load(configure: impl FnOnce(ModelBuilder) -> ModelBuilder) -> Model {
    static FILE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FILE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("random.gguf"));
        folder
    });
    configure(Model::builder().threads(2).chat_template(TEMPLATE)).load(folder.path().join("random.gguf")).unwrap()
}

fn write(path: &std::path::Path) {
    let stories = GgufFile::open(STORIES.as_ref()).unwrap();
    let mut w = GgufWriter::new();
    w.set("general.architecture", "qwen35");
    for (key, value) in stories.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
        w.set(key, value.clone());
    }
    let n_vocab = stories.tensor("token_embd.weight").unwrap().shape[0];
    let counts = [
        ("context_length", 1024),
        ("embedding_length", 48),
        ("block_count", 4),
        ("feed_forward_length", 64),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 16),
        ("attention.value_length", 16),
        ("rope.dimension_count", 4),
        ("ssm.conv_kernel", 4),
        ("ssm.state_size", 8),
        ("ssm.group_count", 2),
        ("ssm.time_step_rank", 4),
        ("ssm.inner_size", 64),
        ("full_attention_interval", 2),
    ];
    for (key, n) in counts {
        w.set(format!("qwen35.{key}"), n as u32);
    }
    w.set("qwen35.attention.layer_norm_rms_epsilon", 1e-6f32);
    let mut state = 1u64;
    let mut add = |name: String, shape: &[u64], scale: f32, offset: f32| {
        let n = shape.iter().product::<u64>();
        let bytes = (0..n).flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale + offset).to_le_bytes()
        });
        w.tensor(name, shape, TensorType::F32, bytes.collect()).unwrap();
    };
    add("token_embd.weight".into(), &[n_vocab, 48], 1.0, 0.0);
    add("output.weight".into(), &[n_vocab, 48], 0.5, 0.0);
    add("output_norm.weight".into(), &[48], 0.2, 1.0);
    for i in 0..4 {
        let mut add = |name: &str, shape: &[u64], scale, offset| add(format!("blk.{i}.{name}"), shape, scale, offset);
        if i % 2 == 0 {
            add("attn_qkv.weight", &[96, 48], 0.3, 0.0);
            add("attn_gate.weight", &[64, 48], 0.3, 0.0);
            add("ssm_beta.weight", &[4, 48], 0.3, 0.0);
            add("ssm_alpha.weight", &[4, 48], 0.3, 0.0);
            add("ssm_conv1d.weight", &[96, 4], 0.8, 0.0);
            add("ssm_a", &[4], 0.1, -0.2);
            add("ssm_dt.bias", &[4], 0.5, 0.0);
            add("ssm_norm.weight", &[16], 0.2, 1.0);
            add("ssm_out.weight", &[48, 64], 0.3, 0.0);
        } else {
            add("attn_q.weight", &[128, 48], 0.3, 0.0);
            add("attn_k.weight", &[32, 48], 0.3, 0.0);
            add("attn_v.weight", &[32, 48], 0.3, 0.0);
            add("attn_q_norm.weight", &[16], 0.2, 1.0);
            add("attn_k_norm.weight", &[16], 0.2, 1.0);
            add("attn_output.weight", &[48, 64], 0.3, 0.0);
        }
        add("attn_norm.weight", &[48], 0.2, 1.0);
        add("post_attention_norm.weight", &[48], 0.2, 1.0);
        add("ffn_gate.weight", &[64, 48], 0.3, 0.0);
        add("ffn_up.weight", &[64, 48], 0.3, 0.0);
        add("ffn_down.weight", &[48, 64], 0.3, 0.0);
    }
    w.write_file(path).unwrap();
}

/// Prompts that begin alike, of different lengths, with greedy and with random tokens.
fn request(model: &Model, i: usize) -> Generate {
    let prompt = "Lily had a red ball. Tom had a blue car. ".repeat(1 + i % 4 * 6) + &"Once ".repeat(i % 3);
    let request = model.generate(prompt).seed(i as u64).max_tokens(40 + i % 5 * 9).ignore_eos(true);
    request.temperature(if i % 2 == 0 { 0.0 } else { 0.7 })
}

/// The tokens of each request, computed alone, without drafts and shared prefixes.
fn alone() -> &'static [Vec<u32>] {
    static TOKENS: OnceLock<Vec<Vec<u32>>> = OnceLock::new();
    TOKENS.get_or_init(|| {
        let model = load(|b| b.prefix_memory(0));
        let run = |i| request(&model, i).speculation(Speculation::Off).run().unwrap().tokens;
        (0..16).map(run).collect()
    })
}

#[test]
fn drafts_change_no_token_of_a_recurrent_model() {
    let model = load(|b| b.prefix_memory(0));
    let (mut drafted, mut accepted) = (0, 0);
    for (i, want) in alone().iter().enumerate() {
        let out = request(&model, i).speculation(Speculation::Always).run().unwrap();
        assert_eq!(&out.tokens, want, "request {i}");
        drafted += out.usage.drafted;
        accepted += out.usage.accepted;
    }
    assert!(accepted > 0 && accepted < drafted, "{accepted} of {drafted}: both kinds must come up");
}

#[test]
fn shared_prefixes_and_other_requests_change_no_token_of_a_recurrent_model() {
    let model = load(|b| b.prefill_chunk(100));
    let mut cached = 0;
    for round in 0..2 {
        let outs = together(16, |i| request(&model, i).run().unwrap());
        for (i, (out, want)) in outs.iter().zip(alone()).enumerate() {
            assert_eq!(&out.tokens, want, "request {i}, round {round}");
            cached += out.usage.cached;
        }
    }
    assert!(cached > 500, "{cached} tokens were known");
    model.clear_prefixes().unwrap();
    assert_eq!(model.metrics().kv_pages, 0, "everything is given back");
}

#[test]
fn want_of_memory_changes_no_token_of_a_recurrent_model() {
    let page = load(|b| b).metrics().kv_page_bytes;
    let model = load(|b| b.kv_memory(24 * page).prefill_chunk(64).max_running(8));
    let outs = together(16, |i| request(&model, i).run().unwrap());
    for (i, (out, want)) in outs.iter().zip(alone()).enumerate() {
        assert_eq!(&out.tokens, want, "request {i}");
    }
}

#[test]
fn saved_conversations_of_a_recurrent_model_continue() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.session");
    let model = load(|b| b);
    let mut chat = model.chat().temperature(0.0).max_tokens(30).start().unwrap();
    chat.send(format!("Who? {}", "They were happy. ".repeat(50))).unwrap();
    chat.save(&path).unwrap();
    let cached = chat.cached_tokens();
    assert!(cached > 256);
    let want = chat.send("And then?").unwrap();
    let mut restored = model.chat().temperature(0.0).max_tokens(30).restore(&path).unwrap();
    assert_eq!(restored.cached_tokens(), cached);
    assert_eq!(restored.send("And then?").unwrap().tokens, want.tokens);
}
