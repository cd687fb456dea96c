//! Reading a folder of prompts, choosing a version, and what is wrong with one.

use serde_json::json;

use super::*;

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

const ONE: &str = "description = \"Answers customers.\"\n[variables.name]\n[variables.tone]\ndefault = \"friendly\"\nmax_bytes = 20\n\
                   [variables.n]\ntype = \"number\"\ndefault = 3\n[[messages]]\nrole = \"system\"\nfile = \"tone.jinja\"\n\
                   [[messages]]\nrole = \"user\"\ncontent = \"\"\"I am {{ name }}.\"\"\"\n";

/// A folder with two versions of a prompt, and a store.
fn folder() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let all = tempfile::tempdir().unwrap();
    let (folder, store) = (all.path().join("prompts"), all.path().join("store"));
    write(&folder, "support/1.toml", ONE);
    write(&folder, "support/tone.jinja", "Be {{ tone }}, in {{ n }} sentences.");
    write(&folder, "support/2.toml", "[variables.name]\n[[messages]]\nrole = \"user\"\ncontent = \"{{ name }}?\"");
    (all, folder, store)
}

fn param(id: &str, variables: Value) -> PromptParam {
    PromptParam { id: id.to_owned(), version: None, variables: variables.as_object().unwrap().clone() }
}

fn texts(rendered: &RenderedPrompt) -> Vec<String> {
    rendered.messages.iter().map(|message| message.content.as_text().unwrap()).collect()
}

#[test]
fn a_version_is_rendered_with_its_variables() {
    let (_all, folder, store) = folder();
    let prompts = PromptStore::open(folder, store).unwrap();
    let render = |variables: Value| prompts.render(&Caller::default(), &param("support@1", variables));
    let rendered = render(json!({ "name": "Ada <|im_end|>" })).unwrap();
    assert_eq!(texts(&rendered), ["Be friendly, in 3 sentences.", "I am Ada <|im_end|>."]);
    assert_eq!((rendered.used.id.as_str(), rendered.used.sha256.len()), ("support@1", 64));
    // OpenAI's form of the version and of a text.
    let openai = PromptParam {
        id: "support".to_owned(),
        version: Some("2".to_owned()),
        variables: json!({ "name": { "type": "input_text", "text": "Ada" } }).as_object().unwrap().clone(),
    };
    assert_eq!(texts(&prompts.render(&Caller::default(), &openai).unwrap()), ["Ada?"]);
    let error = |variables: Value| render(variables).map(|_| ()).unwrap_err();
    for (variables, field) in [
        (json!({}), "name"),
        (json!({ "name": "Ada", "other": 1 }), "other"),
        (json!({ "name": 3 }), "name"),
        (json!({ "name": "Ada", "tone": "x".repeat(21) }), "tone"),
        (json!({ "name": "Ada", "n": "3" }), "n"),
    ] {
        let error = error(variables);
        assert_eq!(
            (error.kind, error.param.unwrap()),
            (BackendErrorKind::Invalid, format!("prompt.variables.{field}"))
        );
    }
    for (id, words) in
        [("other", "no prompt \"other\""), ("support@9", "it has 1, 2"), ("support", "no version of the prompt")]
    {
        let error = prompts.render(&Caller::default(), &param(id, json!({}))).map(|_| ()).unwrap_err();
        assert!(error.message.contains(words), "{}", error.message);
    }
}

fn refresh(store: &mut PromptStore) -> bool {
    let new = store.refreshed().unwrap();
    let has_changed = new.is_some();
    *store = new.unwrap_or_else(|| PromptStore::open(&store.folder, &store.store).unwrap());
    has_changed
}

#[test]
fn promotions_and_canaries_choose_a_version() {
    let (_all, folder, store) = folder();
    let mut prompts = PromptStore::open(&folder, &store).unwrap();
    let mut server = PromptStore::open(&folder, &store).unwrap();
    let wrong = |result: Result<Change, GatewayError>| result.unwrap_err().to_string();
    let canary = |percent, by_key| Action::Canary { percent, by_key };
    assert!(wrong(prompts.change("support@2", canary(10, false), None, None)).contains("promote one"));
    assert!(wrong(prompts.change("support", Action::Promote, None, None)).contains("names no version"));
    assert!(wrong(prompts.change("support@7", Action::Promote, None, None)).contains("no version \"7\""));
    let change = prompts.change("support@1", Action::Promote, Some("ada".into()), Some("at last".into())).unwrap();
    assert_eq!((change.n, change.version), (1, 1));
    assert!(refresh(&mut server) && !refresh(&mut server));
    let used = |server: &PromptStore, i: usize| {
        let caller = Caller {
            request: format!("req_{i}").into(),
            key: Some(format!("key{}", i % 50).into()),
            ..Caller::default()
        };
        server.render(&caller, &param("support", json!({ "name": "x" }))).unwrap().used.id.clone()
    };
    assert_eq!(used(&server, 1), "support@1");
    prompts.change("support@2", canary(20, false), None, None).unwrap();
    assert!(refresh(&mut server));
    let n = (0..2000).filter(|&i| used(&server, i) == "support@2").count();
    assert!((320..480).contains(&n), "{n}");
    prompts.change("support@2", canary(20, true), None, None).unwrap();
    refresh(&mut server);
    assert!((0..50).all(|i| used(&server, i) == used(&server, i + 50)));
    assert!((0..50).any(|i| used(&server, i) == "support@2"));
    let state = server.states().remove(0);
    assert_eq!((state.promoted, state.canary), (Some(1), Some((2, 20, true))));
    prompts.change("support@2", canary(0, false), None, None).unwrap();
    refresh(&mut server);
    assert!((0..100).all(|i| used(&server, i) == "support@1"));
    // A version that was changed since is not used, until it is promoted again.
    write(&folder, "support/tone.jinja", "Be {{ tone }}! {{ n }}");
    let mut server = PromptStore::open(&folder, &store).unwrap();
    let error = server.render(&Caller::default(), &param("support", json!({ "name": "x" }))).map(|_| ()).unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Unavailable);
    server.change("support@1", Action::Promote, None, None).unwrap();
    assert_eq!(used(&server, 1), "support@1");
    assert_eq!(server.changes().iter().map(|change| change.n).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}

#[test]
fn what_is_wrong_has_its_file_and_line() {
    let error = |name: &str, text: &str| {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "support/tone.jinja", "a\n{{ other }}");
        write(folder.path(), name, text);
        let error = PromptStore::open(folder.path(), folder.path()).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        format!("{error} {source}")
    };
    let message = |more: &str| format!("[[messages]]\nrole = \"user\"\n{more}");
    for (name, text, words) in [
        ("support/1.toml", "messages = 3".to_owned(), "line 1"),
        (
            "support/1.toml",
            message("content = \"{{ x }}\""),
            "1.toml, line 3: line 1 of this template: uses the variable \"x\"",
        ),
        ("support/1.toml", message("file = \"tone.jinja\""), "tone.jinja, line 2: uses the variable \"other\""),
        ("support/1.toml", message("content = \"{% if %}\""), "1.toml, line 3: line 1 of this template"),
        ("support/1.toml", message("file = \"../x\""), "outside the folder"),
        ("support/1.toml", message("file = \"none.jinja\""), "cannot read"),
        ("support/1.toml", message(""), "either `content` or `file`"),
        ("support/1.toml", message("content = \"x\"\nrolle = 1"), "line 4"),
        ("support/1.toml", "messages = []".to_owned(), "at least one"),
        (
            "support/1.toml",
            message("content = \"x\"\n[variables.n]\ntype = \"number\"\ndefault = \"x\""),
            "must be a number",
        ),
        ("support/one.toml", String::new(), "is no version of a prompt"),
        ("support/01.toml", String::new(), "is no version of a prompt"),
        ("sup port/1.toml", message("content = \"x\""), "cannot be a prompt"),
    ] {
        let shown = error(name, &text);
        assert!(shown.contains(words), "{words}: {shown}");
    }
}
