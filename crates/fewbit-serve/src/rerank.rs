//! How relevant documents are to a query, computed by the engine.
//!
//! A **causal reranker** (Qwen3-Reranker) is a language model that was trained to answer whether a document meets a
//! query with `yes` or `no`. The relevance is the probability of `yes` if these are the only two answers, from the
//! logits after a prompt of a fixed form:
//!
//! ```text
//! score = P(yes) / (P(yes) + P(no))
//! ```
//!
//! For an **embedding model**, it is the cosine of the angle between the vectors of the query and the document, from -1
//! to 1. Other models cannot tell: their vectors and answers were not trained for it.

use fewbit::expert::tokenizer::{SpecialTokens, Tokenizer};
use fewbit::{GenerateOptions, Model};
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::backend::{BackendError, Reranked};

/// How many documents are submitted to the engine at a time.
const AT_ONCE: usize = 64;

// The prompt that Qwen3-Reranker was trained with, by its model card.
const BEFORE: &str = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the \
                      Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n";
const INSTRUCT: &str = "Given a web search query, retrieve relevant passages that answer the query";
const AFTER: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

/// The relevance of each document.
pub(crate) async fn rerank(
    model: &Model,
    id: &str,
    query: String,
    documents: Vec<String>,
    failed: impl Fn(fewbit::Error) -> BackendError + Copy,
) -> Result<Reranked, BackendError> {
    if is_reranker(model, id) {
        return by_answers(model, id, &query, documents, failed).await;
    }
    if model.config().pooling.is_some() {
        return by_vectors(model, query, documents, failed).await;
    }
    let message = format!(
        "the model {id:?} is neither an embedding model nor a reranker: serve one, such as Qwen3-Reranker, whose file or \
         name contains `rerank`"
    );
    Err(BackendError::invalid("model", message))
}

/// Whether a model is a causal reranker. Its weights and vocabulary are those of a chat model, so only its name tells.
fn is_reranker(model: &Model, id: &str) -> bool {
    let path = model.path();
    let folder = path.parent().and_then(|folder| folder.file_name());
    let names = [
        Some(id.into()),
        path.file_name().map(|name| name.to_string_lossy()),
        folder.map(|name| name.to_string_lossy()),
    ];
    names.into_iter().flatten().any(|name: std::borrow::Cow<'_, str>| name.to_ascii_lowercase().contains("rerank"))
}

async fn by_answers(
    model: &Model,
    id: &str,
    query: &str,
    documents: Vec<String>,
    failed: impl Fn(fewbit::Error) -> BackendError + Copy,
) -> Result<Reranked, BackendError> {
    let tokenizer = model.tokenizer();
    let (Some(yes), Some(no)) = (single(tokenizer, "yes"), single(tokenizer, "no")) else {
        let message =
            format!("the model {id:?} has no single tokens for `yes` and `no`: it is no reranker of a known kind");
        return Err(BackendError::invalid("model", message));
    };
    let (before, after) =
        (tokenizer.encode(BEFORE, SpecialTokens::Parse), tokenizer.encode(AFTER, SpecialTokens::Parse));
    let score = |(i, document): (usize, String)| {
        // The texts of the request never become special tokens.
        let text = format!("<Instruct>: {INSTRUCT}\n<Query>: {query}\n<Document>: {document}");
        let text = tokenizer.encode(&text, SpecialTokens::Plain);
        let tokens: Vec<u32> = before.iter().chain(&text).chain(&after).copied().collect();
        // Both answers are among all tokens.
        let options = GenerateOptions::new().max_tokens(1).temperature(0.0).logprobs(tokenizer.n_vocab());
        async move {
            let n_tokens = tokens.len();
            let answer = model.generate(tokens).options(options).run_async().await.map_err(|error| {
                let error = failed(error);
                BackendError { param: Some(format!("documents[{i}]")), ..error }
            })?;
            let top = answer.logprobs.first().map(|token| token.top.as_slice()).unwrap_or_default();
            let of =
                |id: u32| top.iter().find(|other| other.token == id).map_or(f32::NEG_INFINITY, |other| other.logprob);
            Ok::<_, BackendError>((probability(of(yes), of(no)), n_tokens))
        }
    };
    let scored: Vec<(f32, usize)> =
        stream::iter(documents.into_iter().enumerate()).map(score).buffered(AT_ONCE).try_collect().await?;
    let n_tokens = scored.iter().map(|(_, n)| n).sum();
    Ok(Reranked::new(scored.into_iter().map(|(score, _)| score).collect(), n_tokens))
}

/// The id of a text that is one token.
fn single(tokenizer: &Tokenizer, text: &str) -> Option<u32> {
    match tokenizer.encode(text, SpecialTokens::Plain)[..] {
        [id] => Some(id),
        _ => None,
    }
}

/// The probability of the first of two answers, from their log probabilities.
fn probability(yes: f32, no: f32) -> f32 {
    if yes == no { 0.5 } else { (1.0 / (1.0 + (f64::from(no) - f64::from(yes)).exp())) as f32 }
}

async fn by_vectors(
    model: &Model,
    query: String,
    documents: Vec<String>,
    failed: impl Fn(fewbit::Error) -> BackendError + Copy,
) -> Result<Reranked, BackendError> {
    let embedded = model.embed(std::iter::once(query).chain(documents)).run_async().await.map_err(|error| {
        let error = failed(error);
        // The first text is the query.
        let index =
            error.param.as_deref().and_then(|param| param.strip_prefix("input[")?.strip_suffix(']')?.parse().ok());
        let param = index.map(|index: usize| match index.checked_sub(1) {
            Some(index) => format!("documents[{index}]"),
            None => "query".to_owned(),
        });
        BackendError { param, ..error }
    })?;
    let mut vectors = embedded.vectors.into_iter();
    let query = vectors.next().unwrap_or_default();
    // Vectors have length 1.
    let cosine = |vector: Vec<f32>| {
        let dot: f64 = query.iter().zip(&vector).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        dot.clamp(-1.0, 1.0) as f32
    };
    Ok(Reranked::new(vectors.map(cosine).collect(), embedded.usage.prompt))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_answers_share_the_probability() {
        assert!((probability(-0.1, -2.5) - 0.916_827_3).abs() < 1e-6);
        assert!((probability(-2.5, -0.1) + probability(-0.1, -2.5) - 1.0).abs() < 1e-6);
        assert_eq!(probability(f32::NEG_INFINITY, -1.0), 0.0);
        assert_eq!(probability(-1.0, f32::NEG_INFINITY), 1.0);
        assert_eq!(probability(f32::NEG_INFINITY, f32::NEG_INFINITY), 0.5);
    }
}
