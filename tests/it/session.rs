//! Conversations in files.

use std::fs;
use std::path::Path;

use fewbit::expert::engine::KvType;
use fewbit::{Chat, Error, ErrorKind, Message, Model, SessionError};

use crate::{STORIES, load, stories, together};

fn start() -> Chat {
    // All cached tokens must come from the file.
    let chat = stories().chat().system("Tell a story.").options(fewbit::GenerateOptions::new().share_prefix(false));
    chat.temperature(0.9).seed(3).max_tokens(20).start().unwrap()
}

fn restore(path: &Path) -> Result<Chat, Error> {
    stories()
        .chat()
        .options(fewbit::GenerateOptions::new().share_prefix(false))
        .temperature(0.9)
        .max_tokens(20)
        .restore(path)
}

fn error_of(path: &Path) -> SessionError {
    match restore(path) {
        Err(error) => *error.into_source().unwrap().downcast().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn restored_conversation_continues_as_if_never_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.session");
    let mut chat = start();
    // More than one page.
    chat.send(format!("Who? {}", "They were happy. ".repeat(50))).unwrap();
    chat.save(&path).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no other file is left");
    let cached = chat.cached_tokens();
    let want = chat.send("And then?").unwrap();

    for _ in 0..2 {
        let mut restored = restore(&path).unwrap();
        assert_eq!(restored.cached_tokens(), cached);
        let got = restored.send("And then?").unwrap();
        assert_eq!((&got.tokens, &got.text, got.seed), (&want.tokens, &want.text, want.seed));
        assert_eq!((got.usage.prompt, got.usage.cached), (want.usage.prompt, want.usage.cached));
        assert_eq!(got.timings.prefill_tokens, want.usage.prompt - want.usage.cached, "only what is new");
        assert_eq!(restored.messages(), chat.messages());
    }
    // A file is replaced, and an empty conversation is one too.
    let mut empty = stories().chat().start().unwrap();
    empty.save(&path).unwrap();
    assert_eq!(restore(&path).unwrap().messages(), empty.messages());
    assert!(empty.send("Who?").unwrap().usage.completion > 0);
}

#[test]
fn several_threads_may_save_to_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.session");
    // Files of different lengths, and no small ones.
    let chat = |i: usize| {
        let history = [Message::user(format!("{i}: {}", "They were happy. ".repeat(10_000 * (i + 1))))];
        stories().chat().history(history).start().unwrap()
    };
    let chats: Vec<Chat> = (0..4).map(chat).collect();
    together(chats.len(), |i| (0..10).for_each(|_| chats[i].save(&path).unwrap()));
    let restored = restore(&path).unwrap();
    assert!(chats.iter().any(|chat| chat.messages() == restored.messages()), "one of them, whole");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no other file is left");
}

#[test]
fn messages_keep_their_fields() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.session");
    let mut message = Message::user("\"quoted\"\n\u{1F642}");
    message.fields.insert("name".into(), "Ada".into());
    let chat = stories().chat().history([message.clone()]).start().unwrap();
    chat.save(&path).unwrap();
    assert_eq!(restore(&path).unwrap().messages(), [message]);
}

#[test]
fn restoring_with_another_model_or_cache_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.session");
    start().save(&path).unwrap();
    let with = |ty| load(|b| b.threads(2).kv_type(ty));
    // The same on more threads.
    with(KvType::F32).chat().restore(&path).unwrap();
    let error = with(KvType::F16).chat().restore(&path).unwrap_err();
    assert!(matches!(error.cause(), Some(SessionError::OtherModel { .. })), "{error:?}");
}

#[test]
fn damaged_session_files_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.session");
    let mut chat = start();
    chat.send("Who?").unwrap();
    chat.save(&path).unwrap();
    let good = fs::read(&path).unwrap();
    let with = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        error_of(&path)
    };

    assert!(matches!(error_of(&folder.path().join("nothing")), SessionError::Io { .. }));
    assert!(matches!(with(b""), SessionError::NotASession { .. }));
    assert!(matches!(with(b"GGUF and so on"), SessionError::NotASession { .. }));
    let changed = |at: usize, bytes: &[u8]| {
        let mut all = good.clone();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        all
    };
    assert!(matches!(with(&changed(8, &[1])), SessionError::Version { found: 1, .. }));
    assert!(matches!(with(&changed(12, &[good[12] ^ 1])), SessionError::OtherModel { .. }));
    // After magic, version, model and seed: the length of the messages.
    let messages = 8 + 4 + 16 + 8;
    let n_messages = u32::from_le_bytes(good[messages..messages + 4].try_into().unwrap()) as usize;
    let tokens = messages + 4 + n_messages;
    let n_tokens = u32::from_le_bytes(good[tokens..tokens + 4].try_into().unwrap()) as usize;
    let cache = tokens + 4 + 4 * n_tokens;
    for (at, bytes, part) in [
        (messages, &u32::MAX.to_le_bytes()[..], "messages"),
        (messages + 4, b"{", "messages"),
        (tokens, &u32::MAX.to_le_bytes()[..], "tokens"),
        (tokens + 4, &u32::MAX.to_le_bytes()[..], "tokens"),
        (cache, &u64::MAX.to_le_bytes()[..], "keys and values"),
    ] {
        let error = with(&changed(at, bytes));
        assert!(matches!(error, SessionError::Damaged { what, .. } if what == part), "{part}: {error:?}");
    }
    assert!(matches!(with(&changed(good.len() - 1, &[!good[good.len() - 1]])), SessionError::Checksum { .. }));
    assert!(matches!(with(&changed(good.len() - 100, &[!good[good.len() - 100]])), SessionError::Checksum { .. }));
    assert!(matches!(with(&[&good[..], b"more"].concat()), SessionError::Length { .. }));
    // Cut anywhere, or with any single byte changed, it gives an error and does not panic.
    for at in (0..cache + 64).chain((cache..good.len()).step_by(4999)) {
        with(&good[..at]);
        with(&changed(at, &[good[at] ^ 0x55]));
    }
    fs::write(&path, &good).unwrap();
    assert_eq!(restore(&path).unwrap().messages(), chat.messages());
}

#[test]
fn memory_estimate_scales_and_loading_fails_if_it_cannot_fit() {
    let builder = || Model::builder().threads(1);
    let one = builder().memory_estimate(STORIES).unwrap();
    let many = builder().sequences(10).memory_estimate(STORIES).unwrap();
    let short = builder().context_length(256).kv_type(KvType::F16).memory_estimate(STORIES).unwrap();
    assert_eq!(many.kv_bytes, 10 * one.kv_bytes);
    // Half of the pages, of half the size.
    assert_eq!(4 * short.kv_bytes, one.kv_bytes);
    assert_eq!(one.kv_bytes, 2 * stories().metrics().kv_page_bytes);
    builder().sequences(10).load(STORIES).unwrap();
    if cfg!(target_os = "linux") {
        let error = builder().sequences(1 << 40).load(STORIES).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::DoesNotFit { sequences, context_tokens: 512, available_bytes, .. }
                if *sequences == 1 << 40 && *available_bytes > 0),
            "{error:?}"
        );
    }
}
