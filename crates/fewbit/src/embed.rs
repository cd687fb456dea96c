//! Embeddings: texts as vectors. Texts with similar meanings have vectors that point in similar directions.
//!
//! The vector of a text is made from the hidden states after the model's last norm, as in llama.cpp. Each text is a
//! request of its own to the engine: texts run in one batch with each other and with generations, wait in the same
//! queue, and give bit-identical vectors whatever else runs. They do not use the prefix cache, which has keys and
//! values but no hidden states, and are not added to it either.
//!
//! Of a long list, only as many texts are submitted at a time as keep the engine busy. The others wait here, where they
//! take no place in its queue.

use std::collections::VecDeque;
#[cfg(feature = "async")]
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use fewbit_model::{Lora, LoraSet, Pooling};

use crate::completion::{FinishReason, Usage};
use crate::error::{Error, ErrorKind};
use crate::generate::Prompt;
use crate::model::Model;
use crate::scheduler::{CancelToken, Event, Pooler, Receiver, Request, Task};

/// A request for vectors: made by [`Model::embed`].
#[derive(Debug, Clone)]
#[must_use = "nothing happens before `run`"]
pub struct Embed {
    model: Model,
    texts: Vec<Prompt>,
    pooling: Option<Pooling>,
    normalize: bool,
    deadline: Option<Instant>,
    timeout: Option<Duration>,
    cancel: Option<CancelToken>,
    loras: Vec<(Lora, f32)>,
}

/// The vectors of a list of texts.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Embeddings {
    /// One vector for each text, in the same order: `[dim]`.
    pub vectors: Vec<Vec<f32>>,
    /// The number of tokens of each text.
    pub tokens: Vec<usize>,
    /// The token counts of all texts together.
    pub usage: Usage,
    /// The time from the start to the last vector.
    pub elapsed: Duration,
}

impl Model {
    /// Turns texts, or token ids, into vectors. A text is encoded as embedding models expect it: with the
    /// beginning-of-text and end-of-text tokens, if the model wants them.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// let out = model.embed(["A cat sat on the mat.", "There was a feline on the rug."]).run()?;
    /// // They have length 1, so their dot product is the cosine of the angle between them.
    /// let likeness: f32 = out.vectors[0].iter().zip(&out.vectors[1]).map(|(a, b)| a * b).sum();
    /// println!("{likeness} from {} tokens", out.usage.prompt);
    /// # Ok(()) }
    /// ```
    pub fn embed<T: Into<Prompt>>(&self, texts: impl IntoIterator<Item = T>) -> Embed {
        Embed {
            model: self.clone(),
            texts: texts.into_iter().map(Into::into).collect(),
            pooling: None,
            normalize: true,
            deadline: None,
            timeout: None,
            cancel: None,
            loras: self.loras().iter().map(|(lora, scale)| (lora.clone(), scale)).collect(),
        }
    }

    /// The default pooling: the one in the model's file, or else the mean over the tokens.
    pub fn default_pooling(&self) -> Pooling {
        self.config().pooling.unwrap_or(Pooling::Mean)
    }

    /// The tokens of a complete text, with an end-of-text token if the model wants one.
    fn encode_whole(&self, text: &str) -> Vec<u32> {
        let tokenizer = self.tokenizer();
        let mut tokens = self.encode_raw(text);
        tokens.extend(tokenizer.eos().filter(|_| tokenizer.add_eos()));
        tokens
    }
}

impl Embed {
    /// How the hidden states of a text's tokens become one vector. Default: [`Model::default_pooling`].
    pub fn pooling(mut self, pooling: Pooling) -> Self {
        self.pooling = Some(pooling);
        self
    }

    /// Whether vectors are scaled to length 1 (the default).
    pub fn normalize(mut self, yes: bool) -> Self {
        self.normalize = yes;
        self
    }

    /// The time by which all texts must be embedded; later, the call fails with [`ErrorKind::NotEmbedded`].
    pub fn deadline(mut self, at: Instant) -> Self {
        self.deadline = Some(at);
        self
    }

    /// Like [`deadline`](Self::deadline), but relative to the start.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = Some(time);
        self
    }

    /// Cancels the call when `token` is cancelled: it fails with [`ErrorKind::NotEmbedded`].
    pub fn cancel_token(mut self, token: &CancelToken) -> Self {
        self.cancel = Some(token.clone());
        self
    }

    /// Applies a LoRA adapter: see [`Generate::lora`](crate::Generate::lora).
    pub fn lora(mut self, lora: &Lora, scale: f32) -> Self {
        self.loras.retain(|(known, _)| known != lora);
        self.loras.push((lora.clone(), scale));
        self
    }

    /// Applies no adapter, not even those that the model was loaded with.
    pub fn without_loras(mut self) -> Self {
        self.loras.clear();
        self
    }

    /// Computes the vectors. Invalid texts are reported before anything is computed.
    ///
    /// # Errors
    /// [`ErrorKind::Empty`] and [`ErrorKind::TooLong`] with the index of the text, [`ErrorKind::TokenOutOfRange`],
    /// [`ErrorKind::NotEmbedded`], and those of the engine.
    pub fn run(self) -> Result<Embeddings, Error> {
        let mut batch = self.start()?;
        while let Some(receiver) = batch.next()? {
            let event = receiver.recv();
            batch.take(event)?;
        }
        Ok(batch.finish())
    }

    /// Like [`run`](Self::run), without blocking.
    #[cfg(feature = "async")]
    pub async fn run_async(self) -> Result<Embeddings, Error> {
        let mut batch = self.start()?;
        std::future::poll_fn(|context| batch.poll(context)).await?;
        Ok(batch.finish())
    }

    fn start(self) -> Result<Batch, Error> {
        let Self { model, texts, pooling, normalize, deadline, timeout, cancel, loras } = self;
        let encode = |(index, text)| {
            let tokens = match text {
                Prompt::Text(text) if text.is_empty() => Vec::new(),
                Prompt::Text(text) => model.encode_whole(&text),
                Prompt::Tokens(tokens) => tokens,
            };
            check(&model, index, &tokens)?;
            Ok::<_, Error>(tokens)
        };
        let texts: VecDeque<_> = texts.into_iter().enumerate().map(encode).collect::<Result<_, _>>()?;
        let start = Instant::now();
        let until = timeout.and_then(|timeout| start.checked_add(timeout));
        Ok(Batch {
            tokens: texts.iter().map(Vec::len).collect(),
            texts,
            pooling: pooling.unwrap_or(model.default_pooling()),
            normalize,
            loras: model.decoder().lora_set(&loras)?,
            deadline: [deadline, until].into_iter().flatten().min(),
            cancel,
            running: VecDeque::new(),
            vectors: Vec::new(),
            usage: Usage::default(),
            start,
            model,
        })
    }
}

fn check(model: &Model, index: usize, tokens: &[u32]) -> Result<(), Error> {
    if tokens.is_empty() {
        return Err(ErrorKind::Empty { index: Some(index) }.into());
    }
    model.check_tokens(tokens)?;
    let context_tokens = model.context_length();
    if tokens.len() > context_tokens {
        return Err(ErrorKind::TooLong { index: Some(index), tokens: tokens.len(), context_tokens }.into());
    }
    Ok(())
}

/// A list of texts that are being embedded.
struct Batch {
    model: Model,
    /// Texts that are not submitted yet.
    texts: VecDeque<Vec<u32>>,
    pooling: Pooling,
    normalize: bool,
    loras: LoraSet,
    deadline: Option<Instant>,
    cancel: Option<CancelToken>,
    /// Texts that are submitted, in order. Dropping a receiver cancels its request.
    running: VecDeque<Receiver>,
    vectors: Vec<Vec<f32>>,
    tokens: Vec<usize>,
    usage: Usage,
    start: Instant,
}

impl Batch {
    /// Submits as many texts as the engine can take, and returns the receiver to wait for; `None` at the end.
    fn next(&mut self) -> Result<Option<&Receiver>, Error> {
        // As many texts wait as are computed, so that the next one starts as soon as one ends.
        let most = self.model.inner.core.limits.max_running.saturating_mul(2);
        while self.running.len() < most
            && let Some(prompt) = self.texts.pop_front()
        {
            let dim = self.model.config().dim;
            let request = Request {
                prompt,
                deadline: self.deadline,
                cancel: self.cancel.clone(),
                slot: None,
                shares_prefix: false,
                loras: self.loras.clone(),
                task: Task::Embed(Pooler::new(self.pooling, self.normalize, dim)),
            };
            match self.model.inner.scheduler.submit(request, true) {
                Ok(receiver) => self.running.push_back(receiver),
                Err(refused) => match *refused {
                    // There will be room again when the texts before it are done.
                    (error, request)
                        if matches!(error.kind(), ErrorKind::QueueFull { .. }) && !self.running.is_empty() =>
                    {
                        self.texts.push_front(request.prompt);
                        break;
                    }
                    (error, _) => return Err(error),
                },
            }
        }
        Ok(self.running.front())
    }

    /// Handles the end of the first submitted text.
    fn take(&mut self, event: Event) -> Result<(), Error> {
        self.running.pop_front();
        match (event.end, event.vector) {
            (Some(Err(error)), _) => Err(error),
            (Some(Ok(_)), Some(vector)) => {
                self.vectors.push(vector);
                self.usage.prompt += event.usage.prompt;
                Ok(())
            }
            (reason, _) => Err(ErrorKind::NotEmbedded {
                index: self.vectors.len(),
                reason: reason.and_then(Result::ok).unwrap_or(FinishReason::Cancelled),
            }
            .into()),
        }
    }

    #[cfg(feature = "async")]
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while let Some(receiver) = self.next()? {
            match receiver.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(event) => self.take(event)?,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn finish(self) -> Embeddings {
        Embeddings { vectors: self.vectors, tokens: self.tokens, usage: self.usage, elapsed: self.start.elapsed() }
    }
}
