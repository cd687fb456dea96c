//! A [`Vocabulary`] as GGUF metadata.

use fewbit_format::Metadata;

use crate::hf::filler;
use crate::vocabulary::{TokenKind, Vocabulary};

impl Vocabulary<'_> {
    /// The metadata of a GGUF file with this vocabulary, for a model of `n_vocab` tokens. Ids without a token get
    /// fillers that no text is encoded to, and tokens beyond `n_vocab` are left out.
    pub fn to_gguf(&self, n_vocab: usize) -> Metadata {
        let mut meta = Metadata::default();
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        meta.set(key("model"), self.model.as_str());
        if let Some(pre) = &self.pre {
            meta.set(key("pre"), pre.as_str());
        }
        let mut tokens: Vec<String> = self.tokens.iter().take(n_vocab).cloned().collect();
        let mut kinds: Vec<i32> = match self.kinds.is_empty() {
            true => vec![TokenKind::Normal.to_gguf(); tokens.len()],
            false => self.kinds.iter().take(n_vocab).map(|kind| kind.to_gguf()).collect(),
        };
        let mut scores: Vec<f32> = self.scores.iter().take(n_vocab).copied().collect();
        tokens.extend((tokens.len()..n_vocab).map(|id| filler(id as u32)));
        kinds.resize(n_vocab, TokenKind::Unused.to_gguf());
        meta.set(key("tokens"), tokens);
        meta.set(key("token_type"), kinds);
        if !scores.is_empty() {
            let least = scores.iter().copied().fold(0.0, f32::min);
            scores.resize(n_vocab, least);
            meta.set(key("scores"), scores);
        }
        if !self.merges.is_empty() {
            meta.set(key("merges"), self.merges.to_vec());
        }
        let mut further = self.end_of_generation.iter().copied().filter(|&id| Some(id) != self.eos);
        let ids = [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("unknown_token_id", self.unknown),
            ("padding_token_id", self.padding),
            ("eot_token_id", further.next()),
            ("eom_token_id", further.next()),
        ];
        for (name, id) in ids {
            if let Some(id) = id.filter(|&id| (id as usize) < n_vocab) {
                meta.set(key(name), id);
            }
        }
        let flags = [
            ("add_bos_token", self.add_bos),
            ("add_eos_token", self.add_eos),
            ("add_space_prefix", self.add_space_prefix),
        ];
        for (name, flag) in flags {
            if let Some(flag) = flag {
                meta.set(key(name), flag);
            }
        }
        if let Some(template) = &self.chat_template {
            meta.set("tokenizer.chat_template", template.as_str());
        }
        if let Some(template) = &self.tool_template {
            // The names of all templates but the default one.
            meta.set("tokenizer.chat_templates", vec!["tool_use".to_owned()]);
            meta.set("tokenizer.chat_template.tool_use", template.as_str());
        }
        meta
    }
}
