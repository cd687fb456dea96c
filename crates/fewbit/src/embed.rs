//! Texts as vectors: texts with similar meanings have vectors that point in similar directions.
//!
//! A text's vector is made of the hidden states after the model's last norm, as llama.cpp does it. Each text is a
//! request of its own to the engine, like any other: texts are computed together with each other
//! and with generations, wait in the same queue, and give the same bits whatever else runs. Known prefixes
//! are not used, since the cache keeps keys and values but no hidden states; nor are texts remembered as prefixes.
//!
//! Of a long list, only as many texts are in the engine at a time as keep it busy. The others wait here, where
//! they take no place in its queue.

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

/// The vectors of some texts.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Embeddings {
    /// One for each text, in their order: `[dim]`.
    pub vectors: Vec<Vec<f32>>,
    /// How many tokens each text has.
    pub tokens: Vec<usize>,
    /// The tokens of all of them.
    pub usage: Usage,
    /// From the start to the last vector.
    pub elapsed: Duration,
}

impl Model {
    /// Turns texts, or token ids, into vectors. A text is encoded as a model for embeddings expects it: after the
    /// token that begins a text and before the one that ends it, if the model wants them.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// let out = model.embed(["A cat sat on the mat.", "There was a feline on the rug."]).run()?;
    /// // Of length 1, so that their product is the cosine of the angle between them.
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

    /// How texts become vectors by default: as the model's file says, else the mean of their tokens.
    pub fn default_pooling(&self) -> Pooling {
        self.config().pooling.unwrap_or(Pooling::Mean)
    }

    /// The tokens of a text that is complete.
    fn encode_whole(&self, text: &str) -> Vec<u32> {
        let tokenizer = self.tokenizer();
        let mut tokens = self.encode_raw(text);
        tokens.extend(tokenizer.eos().filter(|_| tokenizer.add_eos()));
        tokens
    }
}

impl Embed {
    /// How the hidden states of a text's tokens become one vector: by default as the model's file says, else by
    /// their mean.
    pub fn pooling(mut self, pooling: Pooling) -> Self {
        self.pooling = Some(pooling);
        self
    }

    /// Whether vectors are scaled to length 1 (the default).
    pub fn normalize(mut self, yes: bool) -> Self {
        self.normalize = yes;
        self
    }

    /// Fails with [`ErrorKind::NotEmbedded`] if there is a text left at this time.
    pub fn deadline(mut self, at: Instant) -> Self {
        self.deadline = Some(at);
        self
    }

    /// The same, this long after the start.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = Some(time);
        self
    }

    /// Lets this token end it from elsewhere, with [`ErrorKind::NotEmbedded`].
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

    /// Computes the vectors. Errors of the texts come first, before anything is computed.
    pub fn run(self) -> Result<Embeddings, Error> {
        let mut batch = self.start()?;
        while let Some(receiver) = batch.next()? {
            let event = receiver.recv();
            batch.take(event)?;
        }
        Ok(batch.finish())
    }

    /// As [`run`](Self::run), without blocking.
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

/// A list of texts under way.
struct Batch {
    model: Model,
    /// Those that the engine does not have yet.
    texts: VecDeque<Vec<u32>>,
    pooling: Pooling,
    normalize: bool,
    loras: LoraSet,
    deadline: Option<Instant>,
    cancel: Option<CancelToken>,
    /// Those that it has, in order. Dropping them cancels them.
    running: VecDeque<Receiver>,
    vectors: Vec<Vec<f32>>,
    tokens: Vec<usize>,
    usage: Usage,
    start: Instant,
}

impl Batch {
    /// Whom to wait for, after giving the engine what it can take; `None` at the end.
    fn next(&mut self) -> Result<Option<&Receiver>, Error> {
        // As many wait as are computed: who ends is followed at once.
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
                    // There will be room again when those before it are done.
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

    /// Takes the end of the first that was waited for.
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
