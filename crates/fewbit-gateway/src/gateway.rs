//! The gate of a server, and the wrapper around its backend: keys, scopes, limits, audit log.
//!
//! ```text
//! enter:    check the key -> check that the log can be written -> endpoint scope -> requests per minute
//! generate: model and tool scopes -> reserve tokens and cost -> call the backend -> settle, write a line of the log
//! ```
//!
//! Every answer is logged when it ends, whether it was completed, was refused, failed, or its client disconnected. If a
//! line cannot be written, all new requests are refused until it can.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use fewbit_serve::api::common::Prompt;
use fewbit_serve::api::prompt::PromptParam;
use fewbit_serve::{
    AnsweredBy, Backend, BackendError, BackendErrorKind, Boxed, Caller, Embedded, Event, Gate, Generating, Input, Job,
    ModelInfo, Models, PromptUsed, Prompts, RenderedPrompt, Reranked, Sample, Usage,
};
use futures_core::Stream;
use serde_json::{Map, Value};

use crate::audit::{Audit, Entry, Head, Outcome};
use crate::config::Config;
use crate::error::GatewayError;
use crate::keys::{Key, KeyStore};
use crate::limits::{Limits, Refusal, Reserved};
use crate::now_ms;
use crate::output::Heard;
use crate::prompts::PromptStore;
use crate::replay::request_sha256;
use crate::texts::{Text, Texts};
use crate::tools::{Tools, WithTools};

/// Prices per million tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Price {
    /// Prompt tokens.
    pub input: f64,
    /// Prompt tokens that were found in the cache.
    pub cached_input: f64,
    /// Generated tokens.
    pub output: f64,
}

/// Prices by model name. A model without a price costs nothing.
pub type Prices = BTreeMap<String, Price>;

/// The settings of a configuration that concern a [`Gateway`].
#[derive(Debug, Default)]
pub struct Settings {
    prices: Prices,
    prompts: Option<PromptStore>,
    texts: Option<Texts>,
}

impl Settings {
    /// The settings of a configuration. Reads the prompts.
    ///
    /// # Errors
    /// If a prompt cannot be read or is wrong.
    pub fn of(config: &Config) -> Result<Self, GatewayError> {
        Ok(Self { prices: config.prices(), prompts: config.prompts()?, texts: config.texts()? })
    }
}

impl Price {
    fn of(&self, used: Usage) -> f64 {
        let part = |n: usize, price: f64| n as f64 * price / 1e6;
        part(used.prompt.saturating_sub(used.cached), self.input)
            + part(used.cached, self.cached_input)
            + part(used.completion, self.output)
    }
}

/// The gate of a server. It is created with [`Gateway::open`].
#[derive(Debug)]
pub struct Gateway<B> {
    shared: Arc<Shared<B>>,
}

impl<B> Clone for Gateway<B> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// A backend whose requests are checked, limited and logged. It is created with [`Gateway::backend`].
#[derive(Debug)]
pub struct Guarded<B> {
    shared: Arc<Shared<B>>,
}

impl<B> Clone for Guarded<B> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<B> Guarded<B> {
    /// The key of a caller.
    pub(crate) fn key(&self, caller: &Caller) -> Result<Key, BackendError> {
        self.shared.books.key(caller)
    }

    /// Writes an entry of the log. Returns whether it was written.
    pub(crate) fn write(&self, entry: Entry) -> bool {
        self.shared.books.write(entry, None)
    }
}

#[derive(Debug)]
struct Shared<B> {
    backend: B,
    prices: RwLock<Prices>,
    /// The tools of MCP servers, if there are some.
    tools: OnceLock<Arc<Tools>>,
    books: Arc<Books>,
}

/// The mutable state: keys, limits and the audit log.
#[derive(Debug)]
pub(crate) struct Books {
    store: PathBuf,
    keys: Mutex<KeyStore>,
    limits: Mutex<Limits>,
    pub(crate) audit: Mutex<Log>,
    prompts: Mutex<Option<Arc<PromptStore>>>,
}

#[derive(Debug)]
pub(crate) struct Log {
    audit: Audit,
    /// Entries that have not been written yet, oldest first, with the lines of their texts.
    waiting: Vec<(Entry, Option<String>)>,
    /// The number of the last change of a prompt that was logged.
    logged_change: u64,
    texts: Option<Texts>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: Backend> Gateway<B> {
    /// Creates a gate for this backend, with the keys of this store. Today's usage is read from the store's log.
    ///
    /// # Errors
    /// If the store cannot be read, its log was tampered with, or another server is using the store.
    pub fn open(store: impl AsRef<Path>, prices: Prices, backend: B) -> Result<Self, GatewayError> {
        let keys = KeyStore::open(&store)?;
        let mut limits = Limits::default();
        let mut logged_change = 0;
        let audit = Audit::open(&store, |entry| {
            logged_change = entry.change.as_ref().map_or(logged_change, |change| change.n);
            if let Some(key) = &entry.key {
                let tokens = entry.prompt_tokens.saturating_add(entry.completion_tokens);
                limits.settle(key, Reserved::default(), tokens, entry.cost, entry.time_ms);
            }
        })?;
        let audit = Mutex::new(Log { audit, waiting: Vec::new(), logged_change, texts: None });
        let (keys, limits, prompts) = (Mutex::new(keys), Mutex::new(limits), Mutex::default());
        let store = store.as_ref().to_owned();
        let books = Arc::new(Books { store, keys, limits, audit, prompts });
        Ok(Self { shared: Arc::new(Shared { backend, prices: RwLock::new(prices), tools: OnceLock::new(), books }) })
    }

    /// Replaces the prices. Answers in progress keep the prices with which they began.
    pub fn set_prices(&self, prices: Prices) {
        *self.shared.prices.write().unwrap_or_else(PoisonError::into_inner) = prices;
    }

    pub(crate) fn books(&self) -> &Books {
        &self.shared.books
    }

    pub(crate) fn store(&self) -> &Path {
        &self.shared.books.store
    }

    /// As [`backend`](Self::backend), for a server that also runs these tools. Replaces no tools that were given before.
    pub fn backend_with(&self, tools: Tools) -> WithTools<B> {
        let tools = Arc::clone(self.shared.tools.get_or_init(|| Arc::new(tools)));
        WithTools::new(self.backend(), tools)
    }

    pub(crate) fn tools(&self) -> Option<&Arc<Tools>> {
        self.shared.tools.get()
    }

    /// Uses the settings of a configuration.
    pub fn apply(&self, settings: Settings) {
        let Settings { prices, prompts, texts } = settings;
        self.set_prices(prices);
        let books = &self.shared.books;
        let mut log = lock(&books.audit);
        log.texts = texts;
        if let Some(prompts) = &prompts {
            log.log_changes(prompts);
        }
        drop(log);
        *lock(&books.prompts) = prompts.map(Arc::new);
    }

    /// The guarded backend, to pass to the server.
    pub fn backend(&self) -> Guarded<B> {
        Guarded { shared: Arc::clone(&self.shared) }
    }
}

impl Books {
    /// The key of a caller, with its scopes and limits.
    fn key(&self, caller: &Caller) -> Result<Key, BackendError> {
        let keys = lock(&self.keys);
        let key = caller.key.as_deref().and_then(|name| keys.named(name));
        key.cloned().ok_or_else(|| BackendError::new(BackendErrorKind::WrongKey, "the key is not in use any more"))
    }

    /// Finds a key in the newest version of the keys.
    fn current_key(&self, find: impl FnOnce(&KeyStore) -> Option<&Key>) -> Result<Option<Key>, BackendError> {
        let mut keys = lock(&self.keys);
        if let Err(error) = keys.refresh() {
            // It is unknown which keys were revoked, so nobody is let in.
            tracing::error!(error = &error as &dyn std::error::Error, "the keys cannot be read: nothing is let in");
            return Err(BackendError::new(BackendErrorKind::Unavailable, "the server cannot read its keys"));
        }
        Ok(find(&keys).cloned())
    }

    /// Admits a request with this key, or refuses it.
    fn admit(&self, key: Key, endpoint: &str) -> Result<Arc<str>, BackendError> {
        self.refresh_prompts();
        if !lock(&self.audit).catch_up() {
            return Err(BackendError::new(BackendErrorKind::Unavailable, "the server cannot write its log"));
        }
        if !key.may_ask(endpoint) {
            return Err(BackendError::new(BackendErrorKind::Forbidden, format!("the key may not ask {endpoint}")));
        }
        lock(&self.limits).enter(&key, Instant::now()).map_err(refused)?;
        Ok(key.name.into())
    }

    /// Writes an entry. If it cannot be written, it waits. Returns whether it was written.
    fn write(&self, mut entry: Entry, text: Option<Text>) -> bool {
        let mut log = lock(&self.audit);
        let mut line = None;
        if let (Some(text), Some(texts)) = (text, &log.texts) {
            match texts.line(text) {
                Ok((text, hash)) => (line, entry.text_sha256) = (Some(text), Some(hash)),
                // A text that cannot be masked is not kept.
                Err(error) => tracing::warn!(%error, request = entry.request, "a text cannot be kept"),
            }
        }
        log.waiting.push((entry, line));
        log.catch_up()
    }

    /// The prompts, if there are some.
    pub(crate) fn prompts(&self) -> Option<Arc<PromptStore>> {
        lock(&self.prompts).clone()
    }

    /// Takes over new promotions of prompts, and logs them.
    fn refresh_prompts(&self) {
        let mut prompts = lock(&self.prompts);
        let Some(store) = &*prompts else { return };
        match store.refreshed() {
            Ok(None) => {}
            Ok(Some(new)) => {
                lock(&self.audit).log_changes(&new);
                *prompts = Some(Arc::new(new));
            }
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "the prompts cannot be read again: those in use stay"
            ),
        }
    }
}

impl Log {
    /// The head of the log, and whether all entries are in it.
    pub(crate) fn state(&self) -> (Head, bool) {
        (self.audit.head().clone(), self.waiting.is_empty())
    }

    /// Writes the waiting entries. Returns whether all of them were written.
    fn catch_up(&mut self) -> bool {
        while let Some((entry, text)) = self.waiting.first_mut() {
            let kept = match (&*text, &mut self.texts) {
                (Some(line), Some(texts)) => texts.write(line, entry.time_ms),
                _ => Ok(()),
            };
            if kept.is_ok() {
                *text = None;
            }
            if let Err(error) = kept.and_then(|()| self.audit.append(entry.clone())) {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the log cannot be written: nothing is let in"
                );
                return false;
            }
            self.waiting.remove(0);
        }
        true
    }

    /// Logs the changes of prompts that were not logged yet.
    fn log_changes(&mut self, prompts: &PromptStore) {
        for change in prompts.changes().iter().filter(|change| change.n > self.logged_change) {
            self.waiting.push((Entry::of_change(change), None));
        }
        self.logged_change = prompts.changes().last().map_or(self.logged_change, |change| change.n);
        self.catch_up();
    }
}

fn refused(refusal: Refusal) -> BackendError {
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
    let (kind, message) = match refusal {
        Refusal::Requests { retry_after } => (
            BackendErrorKind::TooMany { retry_after_s: seconds(retry_after) },
            "the key has used its requests a minute",
        ),
        Refusal::Tokens { retry_after } => (
            BackendErrorKind::TooMany { retry_after_s: seconds(retry_after) },
            "the key does not have that many tokens left today: ask for fewer, or try again tomorrow",
        ),
        Refusal::Cost => (BackendErrorKind::Spent, "what the key may cost a day is spent"),
    };
    BackendError::new(kind, message)
}

impl<B: Backend> Gate for Gateway<B> {
    fn enter(&self, key: Option<&[u8]>, endpoint: &'static str) -> Result<Arc<str>, BackendError> {
        let Some(shown) = key else {
            let message = "this server wants a key: send `Authorization: Bearer KEY`";
            return Err(BackendError::new(BackendErrorKind::NoKey, message));
        };
        let books = &self.shared.books;
        let unknown = || BackendError::new(BackendErrorKind::WrongKey, "this server does not know the key");
        books.admit(books.current_key(|keys| keys.find(shown))?.ok_or_else(unknown)?, endpoint)
    }

    fn enter_as(&self, name: &str, endpoint: &'static str) -> Result<Arc<str>, BackendError> {
        let books = &self.shared.books;
        let unknown = || BackendError::new(BackendErrorKind::WrongKey, "the key is not in use any more");
        books.admit(books.current_key(|keys| keys.named(name))?.ok_or_else(unknown)?, endpoint)
    }
}

impl<B: Backend> Prompts for Gateway<B> {
    fn render(&self, caller: &Caller, prompt: &PromptParam) -> Result<RenderedPrompt, BackendError> {
        match self.shared.books.prompts() {
            Some(store) => store.render(caller, prompt),
            None => {
                let message = "this server has no prompts: leave `prompt` out, or name a folder in its configuration";
                Err(BackendError::invalid("prompt", message))
            }
        }
    }
}

/// The accounting of one answer. Dropping it settles the limits and writes the log entry.
struct Account {
    books: Arc<Books>,
    price: Price,
    caller: Caller,
    model: String,
    start: Instant,
    reserved: Reserved,
    used: Usage,
    /// Estimated prompt tokens, used if the answer ends before their exact number is known.
    estimated_prompt: usize,
    answered_by: Option<AnsweredBy>,
    masked: usize,
    prompt: Option<Arc<PromptUsed>>,
    seed: Option<u64>,
    request_sha256: Option<String>,
    /// The request as JSON, if texts are kept.
    job: Option<serde_json::Value>,
    heard: Heard,
    outcome: Outcome,
}

impl Account {
    /// Sets the outcome of an answer that did not begin, because of this error.
    fn ends_by(&mut self, error: &BackendError) {
        use BackendErrorKind::{Internal, LoadFailed, Upstream};
        let has_failed = matches!(error.kind, Internal | LoadFailed | Upstream);
        self.outcome = if has_failed { Outcome::Failed } else { Outcome::Refused };
    }

    /// Notes what the request was.
    fn note(&mut self, job: &Job) {
        let json = job.to_json();
        self.seed = Some(job.seed);
        self.request_sha256 = Some(request_sha256(&json));
        let keeps = lock(&self.books.audit).texts.is_some();
        self.job = keeps.then_some(json);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut used = self.used;
        let has_begun = matches!(self.outcome, Outcome::Failed | Outcome::Cancelled);
        if has_begun && used.prompt == 0 && self.estimated_prompt > 0 {
            (used.prompt, used.is_estimated) = (self.estimated_prompt, true);
        }
        let (now_ms, cost) = (now_ms(), self.price.of(used));
        if let Some(key) = &self.caller.key {
            let tokens = (used.prompt as u64).saturating_add(used.completion as u64);
            lock(&self.books.limits).settle(key, self.reserved, tokens, cost, now_ms);
        }
        let answer = std::mem::take(&mut self.heard).answer();
        let output_sha256 = (self.outcome == Outcome::Complete && self.seed.is_some()).then(|| answer.sha256());
        let text = self.job.take().map(|job| Text {
            request: self.caller.request.to_string(),
            time_ms: now_ms,
            masked: 0,
            job,
            answer,
        });
        let prompt = self.prompt.as_ref();
        let entry = Entry {
            n: 0,
            prev: String::new(),
            time_ms: now_ms,
            request: self.caller.request.to_string(),
            key: self.caller.key.as_deref().map(str::to_owned),
            endpoint: self.caller.endpoint.to_owned(),
            feature: self.caller.feature.as_deref().map(str::to_owned),
            model: std::mem::take(&mut self.model),
            backend: self.answered_by.as_ref().map(|by| by.backend.to_string()),
            fallback: self.answered_by.as_ref().is_some_and(|by| by.is_fallback),
            prompt: prompt.map(|prompt| prompt.id.clone()),
            prompt_sha256: prompt.map(|prompt| prompt.sha256.clone()),
            change: None,
            seed: self.seed,
            request_sha256: self.request_sha256.take(),
            output_sha256,
            text_sha256: None,
            masked: self.masked as u64,
            outcome: self.outcome,
            prompt_tokens: used.prompt as u64,
            cached_tokens: used.cached as u64,
            completion_tokens: used.completion as u64,
            estimated: used.is_estimated,
            cost,
            elapsed_ms: u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX),
            tool: None,
        };
        self.books.write(entry, text);
    }
}

impl<B: Backend> Shared<B> {
    fn account(&self, caller: &Caller, model: &str) -> Account {
        Account {
            books: Arc::clone(&self.books),
            price: self.price(model),
            caller: caller.clone(),
            model: model.to_owned(),
            start: Instant::now(),
            reserved: Reserved::default(),
            used: Usage::default(),
            estimated_prompt: 0,
            answered_by: None,
            masked: 0,
            prompt: None,
            seed: None,
            request_sha256: None,
            job: None,
            heard: Heard::default(),
            outcome: Outcome::Refused,
        }
    }

    fn price(&self, model: &str) -> Price {
        let prices = self.prices.read().unwrap_or_else(PoisonError::into_inner);
        prices.get(model).copied().unwrap_or_default()
    }

    /// The caller's key, if its scope includes this model.
    fn admit(&self, caller: &Caller, model: &str) -> Result<Key, BackendError> {
        let key = self.books.key(caller)?;
        if key.may_name(model) {
            Ok(key)
        } else {
            Err(BackendError::new(BackendErrorKind::Forbidden, format!("the key may not use the model {model:?}")))
        }
    }

    fn admit_job(&self, job: &Job) -> Result<Key, BackendError> {
        let key = self.admit(&job.caller, &job.model)?;
        let Input::Chat { tools, .. } = &job.input else { return Ok(key) };
        for (i, tool) in tools.iter().enumerate() {
            let name = tool.pointer("/function/name").and_then(|name| name.as_str()).unwrap_or_default();
            if !key.may_offer(name) {
                let error =
                    BackendError::invalid(format!("tools[{i}]"), format!("the key may not offer the tool {name:?}"));
                return Err(BackendError { kind: BackendErrorKind::Forbidden, ..error });
            }
        }
        Ok(key)
    }

    fn reserve(&self, key: &Key, account: &mut Account, completion: usize) -> Result<(), BackendError> {
        let cost = account.price.of(Usage { completion, ..Usage::default() });
        let want = Reserved { tokens: completion as u64, cost };
        lock(&self.books.limits).reserve(key, want, now_ms()).map_err(refused)?;
        account.reserved = want;
        Ok(())
    }
}

impl<B: Backend> Models for Guarded<B> {
    fn list(&self, caller: &Caller) -> Vec<ModelInfo> {
        let Ok(key) = self.shared.books.key(caller) else { return Vec::new() };
        let mut models = self.shared.backend.models().list(caller);
        models.retain(|model| key.may_name(&model.id));
        models
    }

    fn tokenizer_info<'a>(
        &'a self,
        caller: &'a Caller,
        model: &'a str,
    ) -> Boxed<'a, Result<Map<String, Value>, BackendError>> {
        Box::pin(async move {
            self.shared.admit(caller, model)?;
            self.shared.backend.models().tokenizer_info(caller, model).await
        })
    }

    fn tokenize<'a>(
        &'a self,
        caller: &'a Caller,
        model: &'a str,
        text: &'a str,
        add_special: bool,
        parse: bool,
    ) -> Boxed<'a, Result<Vec<u32>, BackendError>> {
        Box::pin(async move {
            self.shared.admit(caller, model)?;
            self.shared.backend.models().tokenize(caller, model, text, add_special, parse).await
        })
    }

    fn detokenize<'a>(
        &'a self,
        caller: &'a Caller,
        model: &'a str,
        tokens: &'a [u32],
    ) -> Boxed<'a, Result<String, BackendError>> {
        Box::pin(async move {
            self.shared.admit(caller, model)?;
            self.shared.backend.models().detokenize(caller, model, tokens).await
        })
    }

    fn samples(&self) -> Vec<Sample> {
        self.shared.backend.models().samples()
    }
}

impl<B: Backend> Backend for Guarded<B> {
    fn models(&self) -> &dyn Models {
        self
    }

    fn generate(&self, job: Job) -> Boxed<'_, Result<Generating, BackendError>> {
        Box::pin(async move {
            let mut account = self.shared.account(&job.caller, &job.model);
            account.prompt.clone_from(&job.prompt);
            let key = self.shared.admit_job(&job)?;
            account.note(&job);
            self.shared.reserve(&key, &mut account, job.max_tokens.unwrap_or(0))?;
            let estimated_prompt = job.estimated_prompt_tokens();
            // Until the backend answers, the client may disconnect.
            account.outcome = Outcome::Cancelled;
            let answer = self.shared.backend.generate(job).await.inspect_err(|error| account.ends_by(error))?;
            account.estimated_prompt = estimated_prompt;
            let by = answer.answered_by().cloned();
            account.answered_by.clone_from(&by);
            account.masked = answer.n_masked();
            Ok(Generating::new(Metered { answer, account: Some(account) }).by(by))
        })
    }

    fn count(&self, job: Job) -> Boxed<'_, Result<usize, BackendError>> {
        Box::pin(async move {
            self.shared.admit_job(&job)?;
            self.shared.backend.count(job).await
        })
    }

    fn embed(&self, caller: &Caller, model: &str, texts: Vec<Prompt>) -> Boxed<'_, Result<Embedded, BackendError>> {
        let (caller, model) = (caller.clone(), model.to_owned());
        Box::pin(async move {
            let mut account = self.shared.account(&caller, &model);
            let key = self.shared.admit(&caller, &model)?;
            self.shared.reserve(&key, &mut account, 0)?;
            account.outcome = Outcome::Cancelled;
            let embedded = self.shared.backend.embed(&caller, &model, texts).await;
            match &embedded {
                Ok(embedded) => {
                    account.outcome = Outcome::Complete;
                    account.used.prompt = embedded.prompt_tokens;
                    account.used.is_estimated = embedded.is_estimated;
                    account.answered_by.clone_from(&embedded.answered_by);
                    account.masked = embedded.masked;
                }
                Err(error) => account.ends_by(error),
            }
            embedded
        })
    }

    fn rerank(
        &self,
        caller: &Caller,
        model: &str,
        query: String,
        documents: Vec<String>,
    ) -> Boxed<'_, Result<Reranked, BackendError>> {
        let (caller, model) = (caller.clone(), model.to_owned());
        Box::pin(async move {
            let mut account = self.shared.account(&caller, &model);
            let key = self.shared.admit(&caller, &model)?;
            self.shared.reserve(&key, &mut account, 0)?;
            account.outcome = Outcome::Cancelled;
            let reranked = self.shared.backend.rerank(&caller, &model, query, documents).await;
            let reranked = reranked.inspect_err(|error| account.ends_by(error))?;
            account.outcome = Outcome::Complete;
            account.used.prompt = reranked.prompt_tokens;
            account.masked = reranked.masked;
            account.answered_by.clone_from(&reranked.answered_by);
            Ok(reranked)
        })
    }
}

/// A stream of an answer that counts its tokens as they pass.
struct Metered {
    answer: Generating,
    /// `None` once the answer has ended.
    account: Option<Account>,
}

impl Stream for Metered {
    type Item = Result<Event, BackendError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let event = std::task::ready!(Pin::new(&mut this.answer).poll_next(context));
        let mut has_ended = false;
        if let Some(account) = &mut this.account {
            if let Some(Ok(event)) = &event {
                account.heard.hear(event);
            }
            match &event {
                Some(Ok(Event::Begin { prompt })) => account.used.prompt = *prompt,
                Some(Ok(Event::Piece(piece))) => account.used.completion += piece.tokens.len().max(1),
                Some(Ok(Event::End(end))) => {
                    (account.used, account.outcome, has_ended) = (end.usage, Outcome::Complete, true);
                }
                Some(Err(_)) | None => (account.outcome, has_ended) = (Outcome::Failed, true),
            }
        }
        if has_ended {
            // The entry is written before the client sees the end of the answer. If it cannot be, the client gets an error:
            // nobody gets a complete answer that has no line.
            let books = this.account.take().map(|account| Arc::clone(&account.books));
            let is_written = books.is_none_or(|books| lock(&books.audit).waiting.is_empty());
            if !is_written && matches!(event, Some(Ok(_))) {
                let error = BackendError::new(BackendErrorKind::Unavailable, "the server cannot write its log");
                return Poll::Ready(Some(Err(error)));
            }
        }
        Poll::Ready(event)
    }
}
