//! Many requests at once: each gets the same as alone, whatever happens to the others, and nothing is left over.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fewbit::sample::CustomSampler;
use fewbit::{CancelToken, ErrorKind, FinishReason, Generate, Model};

use crate::{load, together};

/// Repeatable random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n as u64) as usize
    }
}

const OPENINGS: [&str; 5] = [
    "Once upon a time",
    "Once upon a time, there was a little girl named Lily. She loved to play",
    "The dog said: \"",
    "One day, Tom and his mom went to the park. They saw a big, red ball and",
    "",
];

/// A request that differs from all others: in its prompt, how its tokens are chosen, how many and where it stops.
fn request(model: &Model, i: usize) -> Generate {
    let mut random = Random(i as u64);
    let filler = "They were very happy and played all day. ".repeat(random.below(8));
    let prompt = format!("{} {filler}{i}", OPENINGS[i % OPENINGS.len()]);
    let request = model.generate(prompt).seed(i as u64).max_tokens(10 + random.below(50));
    match i % 4 {
        0 => request.temperature(0.0),
        1 => request.temperature(1.3).top_k(0).top_p(0.9),
        2 => request.temperature(0.7).min_p(0.2).stop("."),
        _ => request.temperature(2.0).ignore_eos(true),
    }
}

/// The results of `n` requests, each alone on a model that keeps nothing.
fn alone(n: usize) -> Vec<(Vec<u32>, String, FinishReason)> {
    let model = load(|builder| builder.max_running(1).prefix_memory(0));
    (0..n).map(|i| request(&model, i).run().unwrap()).map(|out| (out.tokens, out.text, out.finish_reason)).collect()
}

/// Number of pages that remain if nothing is kept.
fn pages_left(model: &Model) -> usize {
    model.clear_prefixes().unwrap()
}

#[test]
fn sixty_four_concurrent_requests_equal_single_ones() {
    let want = alone(64);
    let models = [
        ("everything on", load(|b| b)),
        ("no prefixes, two threads", load(|b| b.prefix_memory(0).threads(2))),
        ("few at once, small chunks", load(|b| b.max_running(7).prefill_chunk(16))),
    ];
    for (what, model) in &models {
        // Two rounds, because the second one finds the prefixes of the first.
        for round in 0..2 {
            let got = together(64, |i| request(model, i).run().unwrap());
            for (i, (got, want)) in got.into_iter().zip(&want).enumerate() {
                assert_eq!(&(got.tokens, got.text, got.finish_reason), want, "request {i}, {what}, round {round}");
            }
        }
        assert_eq!(pages_left(model), 0, "{what}");
    }
}

#[test]
fn cancelling_half_of_the_requests_does_not_affect_the_rest() {
    let want = alone(64);
    let model = load(|b| b.max_running(40));
    together(64, |i| {
        let mut stream = request(&model, i).stream().unwrap();
        if i % 2 == 0 {
            stream.by_ref().take(i / 4).for_each(|piece| drop(piece.unwrap()));
            return;
        }
        stream.by_ref().for_each(|piece| drop(piece.unwrap()));
        let got = stream.into_completion();
        assert_eq!((got.tokens, got.text, got.finish_reason), want[i], "request {i}");
    });
    assert_eq!(pages_left(&model), 0);
}

#[test]
fn low_memory_delays_requests_but_changes_no_token() {
    let want = alone(24);
    let page = load(|b| b).metrics().kv_page_bytes;
    let model = load(|b| b.kv_memory(5 * page).prefill_chunk(64));
    let got = together(24, |i| request(&model, i).run().unwrap());
    for (i, (got, want)) in got.into_iter().zip(&want).enumerate() {
        assert_eq!(&(got.tokens, got.text, got.finish_reason), want, "request {i}");
    }
    // Two requests that fit while they are short, and no longer after they have grown.
    let long = |seed| model.generate("Once").temperature(1.5).seed(seed).ignore_eos(true).max_tokens(450);
    let want = together(1, |_| [0, 1, 2, 3].map(|seed| long(seed).run().unwrap().tokens)).remove(0);
    let before = model.metrics().preempted;
    let got = together(4, |i| long(i as u64).run().unwrap().tokens);
    assert!(model.metrics().preempted > before, "there was no want of memory");
    assert_eq!(got, want);
    assert_eq!(pages_left(&model), 0);
}

#[test]
fn requests_beyond_the_kv_memory_are_rejected_or_end() {
    let page = load(|b| b).metrics().kv_page_bytes;
    let model = load(|b| b.kv_memory(page));
    let error = model.generate(vec![5; 300]).run().unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::KvMemory { n_tokens: 301, needed_bytes, limit_bytes }
            if *needed_bytes == 2 * page && *limit_bytes == page),
        "{error:?}"
    );
    let out = model.generate(vec![5; 200]).ignore_eos(true).run().unwrap();
    // The last token is not in the cache.
    assert_eq!((out.usage.prompt + out.usage.completion, out.finish_reason), (257, FinishReason::Length));
    assert_eq!(pages_left(&model), 0);
}

#[test]
fn ten_thousand_ends_of_every_kind_leak_nothing() {
    const EVENTS: usize = 10_000;
    let model = load(|b| b.max_running(16).threads(1));
    let next = AtomicUsize::new(0);
    together(8, |thread| {
        let mut random = Random(thread as u64);
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= EVENTS {
                break;
            }
            let prompt = OPENINGS[random.below(OPENINGS.len())];
            let token = CancelToken::new();
            let request = model.generate(prompt).seed(i as u64).max_tokens(8).cancel_token(&token);
            match random.below(6) {
                0 => drop(request.stream().unwrap()),
                1 => {
                    let mut stream = request.stream().unwrap();
                    stream.by_ref().take(random.below(6)).for_each(|piece| drop(piece.unwrap()));
                }
                2 => {
                    let mut stream = request.max_tokens(1000).ignore_eos(true).stream().unwrap();
                    stream.by_ref().take(random.below(4)).for_each(|piece| drop(piece.unwrap()));
                    token.cancel();
                    assert!(stream.by_ref().count() <= 64, "a cancelled request ends");
                    assert_eq!(stream.finish_reason(), Some(FinishReason::Cancelled));
                }
                3 => {
                    let time = Duration::from_micros(random.below(500) as u64);
                    let out = request.timeout(time).run().unwrap();
                    assert!(matches!(out.finish_reason, FinishReason::Timeout | FinishReason::Length), "{out:?}");
                }
                4 => {
                    token.cancel();
                    let out = request.run().unwrap();
                    assert_eq!((out.finish_reason, out.usage.completion), (FinishReason::Cancelled, 0));
                }
                _ => assert!(!request.run().unwrap().tokens.is_empty()),
            }
        }
    });
    assert_eq!(pages_left(&model), 0);
    let metrics = model.metrics();
    assert_eq!((metrics.running, metrics.waiting), (0, 0), "{metrics:?}");
    let want = alone(1).remove(0);
    let out = request(&model, 0).run().unwrap();
    assert_eq!((out.tokens, out.text, out.finish_reason), want, "it still serves");
}

#[test]
fn unread_streams_stop_computing() {
    let model = load(|b| b);
    let mut stream = model.generate("Once").ignore_eos(true).seed(1).stream().unwrap();
    assert_eq!(model.metrics().steps, 0, "nothing before the first piece");
    stream.next().unwrap().unwrap();
    // Others are computed meanwhile.
    let other = model.generate("Once").temperature(0.0).max_tokens(200).run().unwrap();
    assert_eq!(other.tokens.len(), 200);
    let generated = model.metrics().generated_tokens;
    assert!(generated < 200 + 40, "{generated} tokens: the reader took one");
    // It continues where it stopped.
    let whole = model.generate("Once").ignore_eos(true).seed(1).run().unwrap();
    stream.by_ref().for_each(|piece| drop(piece.unwrap()));
    assert_eq!(stream.into_completion().tokens, whole.tokens);
}

#[test]
fn deadlines_and_cancellation_end_running_and_waiting_requests() {
    let model = load(|b| b.max_running(1));
    let mut blocker = model.generate("Once").ignore_eos(true).stream().unwrap();
    blocker.next().unwrap().unwrap();
    // The reader of the stream has stopped, and the stream holds the only place.
    let out = model.generate("Once").timeout(Duration::from_millis(20)).run().unwrap();
    assert_eq!((out.finish_reason, out.tokens.len()), (FinishReason::Timeout, 0));
    let out = model.generate("Once").deadline(Instant::now()).run().unwrap();
    assert_eq!(out.finish_reason, FinishReason::Timeout);
    let token = CancelToken::new();
    let out = thread::scope(|scope| {
        let waiting = scope.spawn(|| model.generate("Once").cancel_token(&token).run().unwrap());
        while model.metrics().waiting == 0 {
            thread::yield_now();
        }
        token.cancel();
        waiting.join().unwrap()
    });
    assert_eq!(out.finish_reason, FinishReason::Cancelled);
    drop(blocker);
    assert_eq!(model.generate("Once").max_tokens(5).ignore_eos(true).run().unwrap().tokens.len(), 5);
    assert_eq!(pages_left(&model), 0);
}

#[test]
fn full_queue_is_an_error() {
    let model = load(|b| b.max_running(1).max_waiting(2));
    let mut streams: Vec<_> = (0..3).map(|_| model.generate("Once").ignore_eos(true).stream().unwrap()).collect();
    streams[0].next().unwrap().unwrap();
    thread::scope(|scope| {
        let waiting: Vec<_> = streams.drain(1..).map(|mut s| scope.spawn(move || s.next().unwrap().unwrap())).collect();
        while model.metrics().waiting < 2 {
            thread::yield_now();
        }
        let error = model.generate("Once").run().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::QueueFull { limit: 2 }), "{error:?}");
        streams.clear();
        waiting.into_iter().for_each(|thread| drop(thread.join().unwrap()));
    });
    assert_eq!(model.generate("Once").max_tokens(5).ignore_eos(true).run().unwrap().tokens.len(), 5);
}

#[test]
fn shared_prompt_prefixes_are_computed_once() {
    let model = load(|b| b);
    let shared = "One day, Tom and his mom went to the park. They saw a big, red ball. ".repeat(4);
    let ask = |end: &str| model.generate(format!("{shared}{end}")).temperature(0.0).max_tokens(5).run().unwrap();
    let first = ask("Tom");
    let n = first.usage.prompt;
    assert_eq!(first.usage.cached, 0);
    let second = ask("Mom");
    assert!(second.usage.cached > n - 8 && second.usage.cached < n, "{:?} of {n}", second.usage);
    assert_eq!(second.timings.prefill_tokens + second.usage.cached, second.usage.prompt);
    // Also at the same time: one request computes, the others wait for it.
    model.clear_prefixes().unwrap();
    let before = model.metrics().prompt_tokens;
    let outs = together(8, |i| ask(&format!("{i}")));
    let computed = (model.metrics().prompt_tokens - before) as usize;
    assert!(computed < 2 * n, "{computed} tokens for 8 prompts of {n}");
    assert!(outs.iter().filter(|out| out.usage.cached > n - 8).count() >= 6);
    // Not for requests that opt out.
    assert_eq!(
        model
            .generate(shared)
            .options(fewbit::GenerateOptions::new().share_prefix(false))
            .max_tokens(1)
            .run()
            .unwrap()
            .usage
            .cached,
        0
    );
}

#[test]
fn conversation_keeps_its_cache_until_memory_is_needed() {
    let page = load(|b| b).metrics().kv_page_bytes;
    let model = load(|b| b.kv_memory(2 * page).prefix_memory(0));
    let mut chat = model.chat().temperature(0.0).max_tokens(10).start().unwrap();
    let first = chat.send("Once upon a time there was a cat.").unwrap();
    assert_eq!(chat.cached_tokens(), first.usage.prompt + first.usage.completion - 1);
    assert_eq!(pages_left(&model), 1);
    let messages = chat.messages().to_vec();
    // Another request needs two pages: the resting conversation gives up its own.
    model.generate(vec![5; 400]).max_tokens(1).ignore_eos(true).run().unwrap();
    assert_eq!(chat.cached_tokens(), 0);
    let second = chat.send("And a dog.").unwrap();
    assert_eq!(second.usage.cached, 0);
    let mut fresh = model.chat().history(messages).temperature(0.0).max_tokens(10).start().unwrap();
    assert_eq!(fresh.send("And a dog.").unwrap().tokens, second.tokens);
}

/// What a sampler of the caller's does with each token's logits.
struct Custom<F>(F);

impl<F: FnMut(&[u32], &mut [f32]) + Send> CustomSampler for Custom<F> {
    fn adjust(&mut self, tokens: &[u32], logits: &mut [f32]) {
        (self.0)(tokens, logits);
    }
}

#[test]
fn failing_or_panicking_samplers_fail_only_their_request() {
    let model = load(|b| b);
    let want = alone(8);
    let once = || model.generate("Once").max_tokens(20).ignore_eos(true);
    let results = together(24, |i| match i % 3 {
        0 => request(&model, i / 3).run(),
        1 => {
            let choose = |tokens: &[u32], _: &mut [f32]| assert!(tokens.len() < 8, "on purpose");
            once().custom_sampler(move || Custom(choose)).run()
        }
        _ => once().custom_sampler(|| Custom(|_: &[u32], logits: &mut [f32]| logits.fill(f32::NAN))).run(),
    });
    for (i, result) in results.into_iter().enumerate() {
        match (i % 3, result) {
            (0, Ok(got)) => assert_eq!((got.tokens, got.text, got.finish_reason), want[i / 3]),
            (1, Err(error)) => {
                assert!(matches!(error.kind(), ErrorKind::Panicked { message } if message == "on purpose"), "{error:?}")
            }
            (2, Err(error)) if matches!(error.kind(), ErrorKind::Model) => {}
            (_, other) => panic!("request {i}: {other:?}"),
        }
    }
    assert_eq!(pages_left(&model), 0);
    // A sampler cannot wait for the engine that waits for the sampler, and gets an error that says so.
    let inner = model.clone();
    let choose = move |_: &[u32], _: &mut [f32]| {
        assert!(matches!(inner.generate("Once").run().map_err(fewbit::Error::into_kind), Err(ErrorKind::InsideEngine)));
        assert!(matches!(inner.clear_prefixes().map_err(fewbit::Error::into_kind), Err(ErrorKind::InsideEngine)));
    };
    assert_eq!(once().custom_sampler(move || Custom(choose.clone())).run().unwrap().tokens.len(), 20);
}

/// Nanoseconds that the threads of this process have run.
#[cfg(target_os = "linux")]
fn cpu_time() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // A thread may have ended meanwhile.
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("schedstat")).ok());
    stats.map(|stat| stat.split(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[cfg(target_os = "linux")]
#[test]
fn idle_model_uses_no_cpu_time() {
    const NAME: &str = "engine::idle_model_uses_no_cpu_time";
    // In a process of its own, because other tests keep this one busy.
    if std::env::var_os("FEWBIT_TEST_IDLE").is_none() {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", NAME]).env("FEWBIT_TEST_IDLE", "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let model = load(|b| b.threads(4));
    together(8, |i| request(&model, i).run().unwrap());
    // One that waits for its reader is idle too.
    let mut stream = model.generate("Once").ignore_eos(true).stream().unwrap();
    stream.next().unwrap().unwrap();
    thread::sleep(Duration::from_millis(100));
    let before = cpu_time();
    thread::sleep(Duration::from_millis(400));
    let used = Duration::from_nanos(cpu_time() - before);
    assert!(used < Duration::from_millis(4), "{used:?} of 400 ms");
}
