//! From a name or a path to a model, and the errors if there is none.

use std::fs;
use std::path::Path;

use fewbit::expert::format::FormatError;
use fewbit::hub::HubError;
use fewbit::{Error, ErrorKind, Model};

use crate::STORIES;

#[test]
fn load_errors_name_the_file_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("model.gguf");
    fs::write(&text, "This is no model.\n").unwrap();
    let cut = folder.path().join("cut.gguf");
    let whole = fs::read(STORIES).unwrap();
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let missing = folder.path().join("missing.gguf");
    let cases = [
        (folder.path(), "config.json is missing"),
        (&text, "not a GGUF file"),
        (&cut, "cut.gguf"),
        (&missing, "does not exist"),
    ];
    for (path, expected) in cases {
        let error = format!("{:#}", Model::load(path.to_str().unwrap()).unwrap_err());
        assert!(error.contains(expected), "{error}");
        assert!(error.contains(path.to_str().unwrap()), "{error} does not name the file");
        assert_eq!(error.matches(path.to_str().unwrap()).count(), 1, "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert!(matches!(
        Model::load("no-such-model").as_ref().err().and_then(|e| e.cause()),
        Some(HubError::UnknownModel { .. })
    ));
    assert!(matches!(Model::load("").map_err(fewbit::Error::into_kind), Err(ErrorKind::NotFound { .. })));
    assert!(matches!(
        Model::load("./no-such-model").map_err(fewbit::Error::into_kind),
        Err(ErrorKind::NotFound { .. })
    ));
}

/// Printing the error chain gives each message once, and each cause can be found by its type.
#[test]
fn error_chain_gives_each_message_once() {
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.gguf");
    let whole = fs::read(STORIES).unwrap();
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let error = Model::load(cut.to_str().unwrap()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::File { path } if *path == cut), "{error:?}");
    let Some(FormatError::TensorOutOfBounds { tensor, n_bytes, file_bytes, .. }) = error.cause() else {
        panic!("{error:?}")
    };
    let (own, chain) = (error.to_string(), format!("{error:#}"));
    let mut parts = vec![own.clone()];
    let mut next = std::error::Error::source(&error);
    while let Some(cause) = next {
        assert!(!parts.last().unwrap().contains(&cause.to_string()), "{cause} is said twice");
        parts.push(cause.to_string());
        next = cause.source();
    }
    assert_eq!(chain, parts.join(": "));
    assert!(own.contains("cut.gguf") && !own.contains(tensor), "{own}");
    for word in [tensor, &n_bytes.to_string(), &file_bytes.to_string()] {
        assert!(chain.contains(word), "{chain}");
    }
    assert!(!error.is_retryable());

    let busy = HubError::Busy { url: String::new(), status: 429, retry_after_s: None };
    assert!(Error::from(busy).is_retryable());
    assert!(Error::from(ErrorKind::QueueFull { limit: 1 }).is_retryable());
    let gone = HubError::Status { url: String::new(), status: 404 };
    assert!(!Error::from(gone).is_retryable());
}

#[test]
fn context_longer_than_that_of_the_model_is_rejected() {
    let error = Model::builder().threads(1).context_length(1 << 20).load(STORIES).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ContextTooLong { asked, .. } if *asked == 1 << 20), "{error:?}");
}

#[test]
fn model_reports_its_properties() {
    let model = Model::builder().threads(2).load_file(STORIES).unwrap();
    assert_eq!(model.n_threads(), 2);
    assert_eq!(model.config().architecture, "llama");
    assert_eq!(model.tokenizer().n_vocab(), 512);
    assert!(fewbit::Isa::available().contains(&model.isa()) && !model.has_chat_template());
    assert_eq!(model.file_bytes(), fs::metadata(STORIES).unwrap().len());
}

#[test]
fn memory_is_estimated_before_loading() {
    let estimate = |n_ctx| Model::memory_estimate(STORIES, n_ctx).unwrap();
    let weights = fs::metadata(STORIES).unwrap().len();
    // Packing may pad rows; metadata does not count as weights.
    assert!((weights / 2..weights * 2).contains(&estimate(128).weight_bytes), "{:?}", estimate(128));
    assert_eq!(estimate(4096).weight_bytes, estimate(128).weight_bytes);
    // The cache grows by pages, so neighbouring lengths may take the same.
    assert!(estimate(4096).kv_bytes > estimate(128).kv_bytes);
}

#[test]
fn public_types_are_send_and_sync() {
    fn shared<T: Send + Sync + 'static>() {}
    fn moved<T: Send>() {}
    fn error<T: std::error::Error + Send + Sync + 'static>() {}
    shared::<Model>();
    shared::<fewbit::Generate>();
    shared::<fewbit::ChatBuilder>();
    shared::<fewbit::CancelToken>();
    shared::<fewbit::Constraint>();
    shared::<fewbit::Completion>();
    moved::<fewbit::Stream>();
    moved::<fewbit::Chat>();
    moved::<fewbit::Ask<&mut fewbit::Chat>>();
    moved::<fewbit::ChatStream<&mut fewbit::Chat>>();
    moved::<fewbit::AsyncStream<fewbit::Stream>>();
    error::<fewbit::Error>();
    error::<fewbit::ConstraintError>();
    error::<fewbit::SamplingError>();
    error::<fewbit::SessionError>();
    error::<fewbit::hub::HubError>();
}

#[test]
fn loading_reports_its_progress() {
    let progress = |recipe: Option<fewbit::quantize::Recipe>| {
        let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let told = std::sync::Arc::clone(&seen);
        let mut builder =
            Model::builder().threads(1).on_progress(move |done, total| told.lock().unwrap().push((done, total)));
        if let Some(recipe) = recipe {
            builder = builder.quantize(recipe);
        }
        builder.load(STORIES).unwrap();
        let seen = seen.lock().unwrap().clone();
        assert!(seen.len() > 10 && seen.is_sorted() && seen[0].0 > 0, "{seen:?}");
        let (done, total) = *seen.last().unwrap();
        assert_eq!(done, total, "all of it in the end");
        total
    };
    let plain = progress(None);
    assert!(plain <= fs::metadata(STORIES).unwrap().len());
    assert!(progress(Some(fewbit::quantize::Recipe::Q8_0)) < plain / 2, "those that the weights take in the end");
}

#[test]
fn models_load_from_names_paths_and_bytes() {
    let story = |model: &Model| model.generate("Once upon a time").temperature(0.0).max_tokens(20).run().unwrap().text;
    let builder = Model::builder().threads(1);
    let expected = story(&builder.clone().load(STORIES).unwrap());
    assert_eq!(story(&builder.clone().load(Path::new(STORIES)).unwrap()), expected);
    let bytes = fs::read(STORIES).unwrap();
    let in_memory = builder.clone().load_bytes("in memory", bytes.clone()).unwrap();
    assert_eq!((in_memory.path(), in_memory.file_bytes()), (Path::new("in memory"), bytes.len() as u64));
    assert_eq!(story(&in_memory), expected);
    let error = builder.clone().load_bytes("cut short", &bytes[..bytes.len() / 2]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::File { path } if path == Path::new("cut short")), "{error:?}");
    assert!(error.cause::<fewbit::expert::format::FormatError>().is_some(), "{error:?}");
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        // No text, so nothing to ask a registry for.
        let name = std::ffi::OsStr::from_bytes(b"\xffmodel");
        let error = builder.load(name).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NotFound { path } if path == Path::new(name)), "{error:?}");
    }
}
