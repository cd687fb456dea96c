//! Generation from a prompt: the output, when it ends, and that it does not depend on anything that it should not
//! depend on.

use std::thread;

use fewbit::expert::format::GgufWriter;
use fewbit::{Completion, ErrorKind, FinishReason, Model, SamplingError};

use crate::{STORIES, TEMPLATE, altered, load, stories, together};

const PROMPT: &str = "Once upon a time";

/// From a float64 implementation of the model: `crates/fewbit-model/tests/golden`.
const GREEDY: &str = ", there was a little girl named Lily. She loved to play outside in the park. One day, she saw a \
                      big, red ball. She wanted to play with it, but it was too high.";

fn greedy(model: &Model, n: usize) -> Completion {
    model.generate(PROMPT).temperature(0.0).max_tokens(n).run().unwrap()
}

#[test]
fn greedy_text_matches_the_reference() {
    let out = greedy(stories(), 57);
    assert_eq!(out.text, GREEDY);
    assert_eq!(out.prompt_tokens[0], 1, "the beginning of the text");
    assert_eq!((out.usage.prompt, out.usage.cached, out.usage.completion), (5, 0, 57));
    assert_eq!(out.tokens.len(), 57);
    assert_eq!(out.finish_reason, FinishReason::Length);
    assert_eq!((out.timings.prefill_tokens, out.timings.decode_tokens), (5, 56));
}

#[test]
fn streamed_pieces_add_up_to_the_completion() {
    let whole = greedy(stories(), 40);
    let mut stream = stories().generate(PROMPT).temperature(0.0).max_tokens(40).stream().unwrap();
    let (mut text, mut tokens) = (String::new(), Vec::new());
    for piece in &mut stream {
        let piece = piece.unwrap();
        assert!(piece.token_ids.len() <= 1, "one step, one token");
        text += &piece.text;
        tokens.extend(piece.token_ids);
    }
    assert!(stream.next().is_none(), "a stream that ended stays so");
    assert_eq!((&text, &tokens), (&whole.text, &whole.tokens));
    let completion = stream.into_completion();
    assert_eq!((&completion.text, &completion.tokens), (&whole.text, &whole.tokens));
}

#[test]
fn chunks_threads_and_concurrency_change_no_token() {
    // A prompt of several chunks, and every setting against the plain one.
    let prompt = GREEDY.repeat(3);
    let run = |model: &Model| model.generate(&prompt).temperature(0.9).seed(3).max_tokens(30).run().unwrap().tokens;
    let expected = run(stories());
    for (chunk, threads) in [(1, 1), (7, 2), (64, 1), (512, 2)] {
        let model = load(|b| b.threads(threads).prefill_chunk(chunk));
        assert_eq!(run(&model), expected, "chunks of {chunk}, {threads} threads");
    }
    for other in together(4, |_| run(&stories().clone())) {
        assert_eq!(other, expected, "beside others");
    }
}

#[test]
fn same_seed_repeats_and_another_seed_differs() {
    let run = |seed| stories().generate(PROMPT).temperature(1.5).seed(seed).max_tokens(40).run().unwrap();
    assert_eq!(run(7).text, run(7).text);
    assert_ne!(run(7).text, run(8).text);
    let free = stories().generate(PROMPT).temperature(1.5).max_tokens(40).run().unwrap();
    assert_eq!(run(free.seed).text, free.text, "the seed that was drawn is told");
}

#[test]
fn stop_string_across_tokens_is_not_emitted() {
    let stop = "play outside";
    let expected = GREEDY.split(stop).next().unwrap();
    let mut stream = stories().generate(PROMPT).temperature(0.0).stop(stop).stop("never").stream().unwrap();
    let mut text = String::new();
    for piece in &mut stream {
        text += &piece.unwrap().text;
        assert!(expected.starts_with(&text), "{text:?} goes too far");
    }
    assert_eq!(text, expected);
    assert_eq!(stream.finish_reason(), Some(FinishReason::StopString));
}

#[test]
fn text_held_back_for_a_stop_string_is_emitted_at_the_end() {
    // The text ends in the middle of a possible stop string.
    let whole = greedy(stories(), 20);
    let tail: String = whole.text.chars().rev().take(5).collect::<Vec<_>>().into_iter().rev().collect();
    let out = stories()
        .generate(PROMPT)
        .temperature(0.0)
        .max_tokens(20)
        .stop(format!("{tail} and something else"))
        .run()
        .unwrap();
    assert_eq!((out.text, out.finish_reason), (whole.text, FinishReason::Length));
}

#[test]
fn eos_token_ends_generation() {
    // The same model, for which a full stop is the end.
    let tokenizer = stories().tokenizer();
    let whole = greedy(stories(), 57).tokens;
    let at = whole.iter().position(|&id| tokenizer.token_bytes(id) == b".").unwrap();
    let metadata = |writer: &mut GgufWriter<'_>| {
        writer.set("tokenizer.ggml.eos_token_id", whole[at]);
    };
    let model = altered(metadata, |_, _| {});

    let out = model.generate(PROMPT).temperature(0.0).run().unwrap();
    assert_eq!(out.finish_reason, FinishReason::EndOfGeneration);
    assert_eq!(out.text, GREEDY.split('.').next().unwrap(), "the ending token is not part of the text");
    assert_eq!(out.tokens, whole[..at]);
    let on = model.generate(PROMPT).temperature(0.0).ignore_eos(true).max_tokens(57).run().unwrap();
    assert_eq!(on.tokens, whole);
}

#[test]
fn token_and_context_limits_are_enforced() {
    for n in [0, 1, 2] {
        let out = greedy(stories(), n);
        assert_eq!((out.tokens.len(), out.finish_reason), (n, FinishReason::Length));
    }
    let small = load(|b| b.context_length(32));
    let out = small.generate(PROMPT).temperature(0.0).ignore_eos(true).run().unwrap();
    assert_eq!(out.usage.prompt + out.usage.completion, 32);
    assert_eq!(out.finish_reason, FinishReason::Length);
    let error = small.generate(GREEDY).run().unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::TooLong { index: None, tokens, context_tokens: 32 } if *tokens > 32),
        "{error:?}"
    );
}

#[test]
fn whole_context_can_be_filled() {
    let n = stories().context_length();
    let out = stories().generate(PROMPT).temperature(0.0).ignore_eos(true).run().unwrap();
    assert_eq!(out.usage.prompt + out.usage.completion, n);
    // All but the last place are the prompt: one token fits.
    let full: Vec<u32> = [out.prompt_tokens, out.tokens].concat();
    let last = stories().generate(&full[..n - 1]).temperature(0.0).ignore_eos(true).run().unwrap();
    assert_eq!(last.tokens, full[n - 1..]);
    assert!(matches!(stories().generate(full).run().map_err(fewbit::Error::into_kind), Err(ErrorKind::TooLong { .. })));
}

#[test]
fn dropped_stream_leaves_the_model_usable() {
    let mut stream = stories().generate(PROMPT).temperature(0.0).stream().unwrap();
    let first = stream.next().unwrap().unwrap();
    drop(stream);
    assert!(GREEDY.starts_with(&first.text));
    assert_eq!(greedy(stories(), 10).text, GREEDY[..greedy(stories(), 10).text.len()]);
}

#[test]
fn stream_outlives_the_model_handle_and_moves_across_threads() {
    let model = Model::builder().threads(1).load(STORIES).unwrap();
    let stream = model.generate(PROMPT).temperature(0.0).max_tokens(57).stream().unwrap();
    drop(model);
    let text: String = thread::spawn(move || stream.map(|piece| piece.unwrap().text).collect()).join().unwrap();
    assert_eq!(text, GREEDY);
}

#[test]
fn special_tokens_in_a_prompt_are_plain_text() {
    let tokens = |prompt: &str| stories().generate(prompt).max_tokens(0).stream().unwrap().prompt_tokens().to_vec();
    let special = [1, 2];
    assert!(!tokens("<s> </s>")[1..].iter().any(|id| special.contains(id)));
    // Written by the template, the same text is the token; written by the user it is not.
    let stream = stories().generate("<s>").templated().max_tokens(0).stream().unwrap();
    assert_eq!(stream.prompt_tokens().iter().filter(|id| special.contains(id)).count(), 1);
    assert_eq!(stream.prompt_tokens()[0], 1);
}

#[test]
fn invalid_prompts_are_errors() {
    assert!(matches!(
        stories().generate(Vec::new()).run().map_err(fewbit::Error::into_kind),
        Err(ErrorKind::Empty { index: None })
    ));
    // An empty text still begins with the token that begins a text.
    assert_eq!(stories().generate("").max_tokens(3).run().unwrap().usage.prompt, 1);
    let error = stories().generate(vec![1, 512]).run().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TokenOutOfRange { token: 512, n_vocab: 512 }), "{error:?}");
    let error = stories().generate(PROMPT).temperature(f32::NAN).run().unwrap_err();
    assert!(matches!(error.cause(), Some(SamplingError::Temperature(_))), "{error:?}");
    let plain = Model::builder().threads(1).load(STORIES).unwrap();
    assert!(matches!(
        plain.generate(PROMPT).templated().run().map_err(fewbit::Error::into_kind),
        Err(ErrorKind::NoChatTemplate)
    ));
    assert!(matches!(plain.chat().start().map_err(fewbit::Error::into_kind), Err(ErrorKind::NoChatTemplate)));
}

#[test]
fn broken_template_fails_only_requests_that_use_it() {
    let model = load(|b| b.chat_template("{% if"));
    assert!(matches!(
        model.generate(PROMPT).templated().run().map_err(fewbit::Error::into_kind),
        Err(ErrorKind::Template)
    ));
    assert!(matches!(model.chat().start().map_err(fewbit::Error::into_kind), Err(ErrorKind::Template)));
    assert_eq!(greedy(&model, 5).tokens.len(), 5);
    let model = load(|b| b.chat_template(format!("{{{{ raise_exception('no') }}}}{TEMPLATE}")));
    let error = model.generate(PROMPT).templated().run().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Template), "{error:?}");
}

#[test]
fn text_has_only_whole_characters() {
    // Byte tokens of this vocabulary begin at 3: the two bytes of 'é', and one that is alone.
    let byte = |b: u32| 3 + b;
    let decoded = stories().tokenizer().decode(&[byte(0xc3), byte(0xa9)]);
    assert_eq!(decoded, "é");
    // Random enough to bring up byte tokens; `String` is what guarantees UTF-8, so what is tested is
    // that the pieces are those of the whole.
    let mut stream = stories()
        .generate(PROMPT)
        .temperature(50.0)
        .top_k(0)
        .top_p(1.0)
        .min_p(0.0)
        .seed(1)
        .max_tokens(200)
        .ignore_eos(true)
        .stream()
        .unwrap();
    let text: String = stream.by_ref().map(|piece| piece.unwrap().text).collect();
    let tokens = stream.into_completion().tokens;
    assert!(tokens.iter().any(|id| (3..259).contains(id)), "no byte token came");
    let prompt = stories().generate(PROMPT).max_tokens(0).stream().unwrap().prompt_tokens().to_vec();
    let whole = stories().tokenizer().decode(&[prompt, tokens].concat());
    assert_eq!(whole, format!("{PROMPT}{text}"));
}

#[test]
fn stop_token_ends_the_text_and_is_not_part_of_it() {
    let whole = greedy(stories(), 40);
    let token = whole.tokens[10];
    let at = whole.tokens.iter().position(|&other| other == token).unwrap();
    let request = || stories().generate(PROMPT).temperature(0.0).max_tokens(40).stop_tokens([token]);
    for request in [request(), request().ignore_eos(true), request().speculation(fewbit::Speculation::Off)] {
        let out = request.run().unwrap();
        assert_eq!((&out.tokens[..], out.finish_reason), (&whole.tokens[..at], FinishReason::StopToken));
        assert!(whole.text.starts_with(&out.text) && out.text.len() < whole.text.len());
    }
    let error = request().stop_tokens([512]).run().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TokenOutOfRange { token: 512, n_vocab: 512 }), "{error:?}");
}

#[test]
fn stop_condition_ends_the_text_when_it_is_met() {
    let request = || stories().generate(PROMPT).temperature(0.0).max_tokens(40);
    let seven = greedy(stories(), 7);
    // The end of the text might have been the beginning of a stop string, but belongs to the text.
    let held = format!("{}\u{0}", seven.text.chars().last().unwrap());
    for request in [request(), request().stop(held)] {
        let out = request.stop_when(|so_far| so_far.tokens.len() == 7).run().unwrap();
        assert_eq!((&out.text, &out.tokens), (&seven.text, &seven.tokens));
        assert_eq!((out.finish_reason, out.finish_reason.as_str()), (FinishReason::StopCondition, "stop"));
    }
    let out = request().stop_when(|so_far| so_far.text.contains("Lily")).run().unwrap();
    assert!(
        out.text.contains("Lily") && !greedy(stories(), out.tokens.len() - 1).text.contains("Lily"),
        "{}",
        out.text
    );
    // A stop string that ends with the same token comes first.
    let out = request().stop("Lily").stop_when(|so_far| so_far.text.contains("Li")).run().unwrap();
    assert!(!out.text.contains("Lily"), "{out}");
    let error = request().stop_when(|so_far| so_far.tokens.len() > 3 && panic!("on purpose")).run().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Panicked { message } if message == "on purpose"), "{error:?}");
    assert_eq!(request().stop_when(|_| false).run().unwrap().tokens, greedy(stories(), 40).tokens);
}

#[test]
fn text_is_written_as_it_is_generated() {
    /// Takes so many bytes.
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let request = || stories().generate(PROMPT).temperature(0.0).max_tokens(40);
    let mut written = Vec::new();
    let out = request().echo(true).write_to(&mut written).unwrap();
    assert_eq!(String::from_utf8(written).unwrap(), out.text);
    assert!(out.text.starts_with(PROMPT) && out.tokens == greedy(stories(), 40).tokens);
    let error = request().write_to(Full(10)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::System { .. }), "{error:?}");
    assert_eq!(error.cause::<std::io::Error>().unwrap().kind(), std::io::ErrorKind::StorageFull);
    let mut chat = stories().chat().temperature(0.0).max_tokens(20).start().unwrap();
    let mut written = Vec::new();
    let answer = chat.ask("Who?").write_to(&mut written).unwrap();
    assert_eq!(answer.text.as_bytes(), written);
    assert_eq!(chat.messages().len(), 2);
}
