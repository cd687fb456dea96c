//! Masking a job, and putting back whatever the answer's division into pieces.

use fewbit_serve::api::chat::{ChatMessage, Role, ToolCall, ToolChoice};
use fewbit_serve::api::common::{Sampling, Stop};
use fewbit_serve::{CallDelta, End, Event, Finish, Input, Piece, Token, Usage};
use futures_util::StreamExt;
use serde_json::{Map, json};

use super::*;

fn masking(text: &str) -> Masking {
    toml::from_str::<MaskingConfig>(text).unwrap().build().unwrap()
}

fn job(messages: Vec<ChatMessage>, tools: Vec<Value>) -> Job {
    let input = Input::Chat { messages, tools, choice: ToolChoice::Auto, parallel: true, template_vars: Map::new() };
    let (caller, model) = (Caller::default(), "m".to_owned());
    Job {
        caller,
        model,
        input,
        sampling: Sampling::default(),
        seed: 0,
        max_tokens: None,
        logprobs: None,
        form: None,
        prompt: None,
    }
}

fn mask(masking: &Masking, job: &mut Job) -> Back {
    mask::job(&masking.chosen(&Caller::default(), "m", false).unwrap(), job).unwrap()
}

fn user(text: &str) -> ChatMessage {
    ChatMessage::new(Role::User, text)
}

fn texts(job: &Job) -> Vec<String> {
    let Input::Chat { messages, .. } = &job.input else { panic!() };
    messages.iter().map(|message| message.content.as_text().unwrap()).collect()
}

#[test]
fn the_same_text_has_the_same_placeholder() {
    let masking = masking("[[patterns]]\nname = \"staff\"\nregex = 'E-\\d+'");
    let said = "Mail ada@example.org or bob@example.org, not ada@example.org; E-17";
    let mut job = job(vec![user(said), user("bob@example.org, eve@example.org")], Vec::new());
    let back = mask(&masking, &mut job);
    let want = ["Mail [EMAIL_1] or [EMAIL_2], not [EMAIL_1]; [STAFF_1]", "[EMAIL_2], [EMAIL_3]"];
    assert_eq!(texts(&job), want);
    assert_eq!(back.whole(want[0], false), said);
    // A text that has the form of a placeholder stays what it is.
    let said = "[EMAIL_1] is not [EMAIL_A1] is not ada@example.org";
    let mut job = self::job(vec![user(said)], Vec::new());
    let back = mask(&masking, &mut job);
    assert_eq!(texts(&job), ["[EMAIL_1] is not [EMAIL_A1] is not [EMAIL_B1]"]);
    assert_eq!(back.whole(&texts(&job)[0], false), said);
}

#[test]
fn every_part_of_a_job_is_searched() {
    let masking = masking("");
    let secret = "ada@example.org";
    let mut tool = ChatMessage::new(Role::Tool, format!("{{\"mail\": \"{secret}\"}}"));
    tool.tool_call_id = Some(secret.to_owned());
    let mut assistant = ChatMessage::new(Role::Assistant, secret);
    assistant.name = Some(secret.to_owned());
    assistant.reasoning_content = Some(secret.to_owned());
    // The address is escaped, so that it is only found by decoding; a number becomes a string.
    let arguments = r#"{"to": "ada\u0040example.org", "n": 1.50, "card": 4111111111111111, "ada@example.org": []}"#;
    assistant.tool_calls = Some(vec![ToolCall::new(secret, secret, arguments)]);
    let mut halves = user("");
    halves.content.0 = Some(vec!["ada@exam".to_owned(), "ple.org".to_owned()]);
    let tools = vec![
        json!({ "function": { "description": secret, "parameters": { secret: { "enum": [secret, 4_111_111_111_111_111_u64] } } } }),
    ];
    let mut job = job(vec![ChatMessage::new(Role::System, secret), assistant, tool, halves], tools);
    job.sampling.stop = Some(Stop(vec![secret.to_owned()]));
    job.form = Some((Form::JsonSchema(json!({ "const": secret })), "x"));
    let Input::Chat { template_vars, choice, .. } = &mut job.input else { panic!() };
    template_vars.insert(secret.to_owned(), json!([secret]));
    *choice = ToolChoice::Named(secret.to_owned());
    let back = mask(&masking, &mut job);
    let shown = format!("{job:?}");
    assert!(!shown.contains("ada") && !shown.contains("example.org") && !shown.contains("4111"), "{shown}");
    let Input::Chat { messages, .. } = &job.input else { panic!() };
    let call = &messages[1].tool_calls.as_ref().unwrap()[0];
    let want = r#"{"to": "[EMAIL_1]", "n": 1.50, "card": "[CARD_1]", "[EMAIL_1]": []}"#;
    assert_eq!((call.function.arguments.as_str(), back.values.len()), (want, 2));
    // Arguments that are not JSON are searched as they are, and token ids are refused.
    let mut job = self::job(vec![user("x")], Vec::new());
    let Input::Chat { messages, .. } = &mut job.input else { panic!() };
    messages[0].tool_calls = Some(vec![ToolCall::new("", "", "{\"to\": ada@example.org")]);
    assert_eq!(mask(&masking, &mut job).values.len(), 1);
    job.input = Input::Text { prompt: Prompt::Tokens(vec![1]), echo: false };
    let error = mask::job(&masking.chosen(&Caller::default(), "m", false).unwrap(), &mut job).unwrap_err();
    assert_eq!((error.kind, error.param.as_deref()), (BackendErrorKind::Invalid, Some("prompt")));
}

#[test]
fn rules_hold_for_their_keys_and_models() {
    let masking = masking(
        "kinds = [\"email\", \"card\"]\n[[rules]]\nkeys = [\"ada\"]\nkinds = []\n[[rules]]\nmodels = [\"chat\"]\n\
         kinds = [\"card\"]\nwhere = [\"upstream\", \"local\"]",
    );
    let caller = |key: &str| Caller { key: Some(key.into()), ..Caller::default() };
    let n = |key: &str, model: &str, is_local: bool| {
        masking.chosen(&caller(key), model, is_local).map(|chosen| chosen.finders().count())
    };
    assert_eq!((n("ada", "chat", false), n("bob", "chat", false), n("bob", "other", false)), (None, Some(1), Some(2)));
    assert_eq!((n("bob", "chat", true), n("bob", "other", true)), (Some(1), None));
    assert!(masking.chosen(&Caller::default(), "other", false).is_some());
}

fn back() -> Back {
    let values = [("[EMAIL_1]", "ada@example.org"), ("[EMAIL_10]", "eve@example.org"), ("[KEY_1]", "line\n\"two\"")];
    Back { values: values.map(|(placeholder, value)| (placeholder.to_owned(), value.to_owned())).into() }
}

/// The events of an answer, put back, with the texts of each kind joined.
fn joined(pieces: Vec<Piece>) -> (String, String, Vec<String>, usize) {
    let usage = Usage::default();
    let end = Event::End(End { finish: Finish::Stop, stop: Some("[EMAIL_1]".to_owned()), usage });
    let events = pieces.into_iter().map(Event::Piece).chain([end]).map(Ok);
    let answer = Unmasked::new(Generating::new(futures_util::stream::iter(events)), back(), false);
    let events: Vec<_> = futures_util::FutureExt::now_or_never(answer.collect()).unwrap();
    let (mut text, mut reasoning, mut calls, mut n_tokens) = (String::new(), String::new(), Vec::new(), 0);
    for event in events {
        match event.unwrap() {
            Event::Piece(piece) => {
                text += &piece.text;
                reasoning += &piece.reasoning;
                n_tokens += piece.tokens.len();
                for call in piece.calls {
                    if call.index >= calls.len() {
                        calls.push(call.name.clone().unwrap() + ":");
                    }
                    calls[call.index] += &call.arguments;
                }
            }
            Event::End(end) => assert_eq!(end.stop.as_deref(), Some("ada@example.org")),
            Event::Begin { .. } => {}
        }
    }
    (text, reasoning, calls, n_tokens)
}

/// Every division of a text into three parts.
fn divisions(text: &str) -> impl Iterator<Item = [&str; 3]> {
    let n = text.len();
    (0..=n).flat_map(move |i| (i..=n).map(move |j| [&text[..i], &text[i..j], &text[j..]]))
}

#[test]
fn the_division_into_pieces_changes_nothing() {
    let token = || Token { text: "x".to_owned(), bytes: Vec::new(), logprob: None, top: Vec::new() };
    let answer = "[[EMAIL_1] and [EMAIL_10], [EMAIL_2] [KEY_1] [EMA";
    let want = "[ada@example.org and eve@example.org, [EMAIL_2] line\n\"two\" [EMA";
    let arguments = "{\"to\":\"[EMAIL_10]\",\"key\":\"[KEY_1]\"}[";
    let want_arguments = "f ada@example.org:{\"to\":\"eve@example.org\",\"key\":\"line\\n\\\"two\\\"\"}[";
    let of = |parts: &[&str], arguments: &[&str]| {
        let mut pieces = Vec::new();
        pieces.extend(parts.iter().map(|&part| Piece { reasoning: part.to_owned(), ..Piece::default() }));
        pieces.extend(parts.iter().map(|&part| Piece {
            text: part.to_owned(),
            tokens: vec![token()],
            ..Piece::default()
        }));
        let name = || Some("f [EMAIL_1]".to_owned());
        for index in 0..2 {
            pieces.extend(arguments.iter().enumerate().map(|(i, &part)| {
                let arguments = part.to_owned();
                let call = CallDelta { index, id: None, name: (i == 0).then(name).flatten(), arguments };
                Piece { calls: vec![call], ..Piece::default() }
            }));
        }
        let n = parts.len();
        let all = (want.to_owned(), want.to_owned(), vec![want_arguments.to_owned(); 2], n);
        assert_eq!(joined(pieces), all, "{parts:?} {arguments:?}");
    };
    divisions(answer).for_each(|parts| of(&parts, &[arguments]));
    divisions(arguments).for_each(|parts| of(&[answer], &parts));
    let bytes = |text: &'static str| (0..text.len()).map(move |i| &text[i..=i]).collect::<Vec<_>>();
    of(&bytes(answer), &bytes(arguments));
}

#[test]
fn pieces_come_as_soon_as_they_can() {
    let piece = |text: &str| Ok(Event::Piece(Piece { text: text.to_owned(), ..Piece::default() }));
    let events = ["a [", "x", "[EMAIL_", "3", "[EMAIL_1", "] b"].map(piece);
    let answer = Unmasked::new(Generating::new(futures_util::stream::iter(events)), back(), false);
    let events: Vec<_> = futures_util::FutureExt::now_or_never(answer.collect()).unwrap();
    let texts = events.into_iter().filter_map(|event| match event {
        Ok(Event::Piece(piece)) => Some(piece.text),
        _ => None,
    });
    assert_eq!(texts.collect::<Vec<_>>(), ["a ", "[x", "[EMAIL_3", "ada@example.org b"]);
}

#[test]
fn a_wrong_configuration_has_its_place() {
    let error = |text: &str| {
        let (at, what) = toml::from_str::<MaskingConfig>(text).unwrap().build().unwrap_err();
        (text[at].to_owned(), what)
    };
    let (at, what) = error("kinds = [\"mail\"]");
    assert!(at == "\"mail\"" && what.contains("there are email, phone, iban, card, key"), "{what}");
    let (at, what) = error("[[patterns]]\nname = \"a\"\nregex = '('");
    assert!(at == "'('" && what.starts_with("the pattern \"a\" is not a regular expression"), "{what}");
    assert!(error("[[patterns]]\nname = \"Card\"\nregex = 'x'").1.contains("two kinds"));
    assert!(error("[[patterns]]\nname = \"a-b\"\nregex = 'x'").1.contains("cannot be the name"));
}
