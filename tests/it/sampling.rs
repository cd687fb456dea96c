//! Sampling through the public API: the stages compared with float64 definitions, and the effect of each setting on a
//! text.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use fewbit::sample::{
    Choice, CustomSampler, Dry, DynamicTemperature, Mirostat, Penalties, Sampler, Sampling, Stage, Xtc,
};
use fewbit::{GenerateOptions, SamplingError};
use serde_json::Value;

use crate::stories;

/// Written by `tests/data/sampling.py`.
const CASES: &str = include_str!("../data/sampling.json");

/// Takes the best candidate, and records the candidates.
struct Best(Arc<Mutex<Vec<Choice>>>);

impl CustomSampler for Best {
    fn choose(&mut self, choices: &[Choice]) -> Option<u32> {
        let mut choices = choices.to_vec();
        choices.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token)));
        let best = choices[0].token;
        *self.0.lock().unwrap() = choices;
        Some(best)
    }
}

fn settings(case: &Value) -> Sampling {
    let float = |value: &Value| value.as_f64().unwrap() as f32;
    let integer = |value: &Value| value.as_u64().unwrap() as usize;
    let mut s = Sampling::plain();
    for (key, value) in case.as_object().unwrap() {
        match key.as_str() {
            "temperature" => s.temperature = float(value),
            "top_k" => s.top_k = integer(value),
            "top_p" => s.top_p = float(value),
            "min_p" => s.min_p = float(value),
            "typical_p" => s.typical_p = float(value),
            "top_n_sigma" => s.top_n_sigma = float(value),
            "xtc" => {
                s.xtc = Some(Xtc { probability: float(&value["probability"]), threshold: float(&value["threshold"]) });
            }
            "dynamic_temperature" => {
                s.dynamic_temperature =
                    Some(DynamicTemperature { range: float(&value["range"]), exponent: float(&value["exponent"]) });
            }
            "mirostat" => s.mirostat = Some(Mirostat { tau: float(&value["tau"]), eta: float(&value["eta"]) }),
            "banned" => s.banned = value.as_array().unwrap().iter().map(|token| integer(token) as u32).collect(),
            "logit_bias" => {
                let pairs = value.as_array().unwrap().iter();
                s.logit_bias = pairs.map(|pair| (integer(&pair[0]) as u32, float(&pair[1]))).collect();
            }
            "penalties" => {
                let mut penalties = Penalties::default();
                for (key, value) in value.as_object().unwrap() {
                    match key.as_str() {
                        "repeat" => penalties.repeat = float(value),
                        "presence" => penalties.presence = float(value),
                        "frequency" => penalties.frequency = float(value),
                        "last_n" => penalties.last_n = integer(value),
                        other => panic!("unknown penalty {other}"),
                    }
                }
                s.penalties = penalties;
            }
            "dry" => {
                let mut dry = Dry::new(float(&value["multiplier"]));
                dry.base = float(&value["base"]);
                dry.allowed_length = integer(&value["allowed_length"]);
                dry.last_n = value.get("last_n").map_or(usize::MAX, integer);
                s.dry = dry;
            }
            "order" => {
                let stage = |name: &Value| match name.as_str().unwrap() {
                    "top_n_sigma" => Stage::TopNSigma,
                    "top_k" => Stage::TopK,
                    "typical_p" => Stage::Typical,
                    "top_p" => Stage::TopP,
                    "min_p" => Stage::MinP,
                    "xtc" => Stage::Xtc,
                    "temperature" => Stage::Temperature,
                    other => panic!("unknown stage {other}"),
                };
                s.order = value.as_array().unwrap().iter().map(stage).collect();
            }
            other => panic!("unknown setting {other}"),
        }
    }
    s
}

#[test]
fn candidates_match_the_definitions_in_float64() {
    let data: Value = serde_json::from_str(CASES).unwrap();
    let prompt: Vec<u32> = serde_json::from_value(data["prompt"].clone()).unwrap();
    let rows: Vec<Vec<f32>> = serde_json::from_value(data["logits"].clone()).unwrap();
    for case in data["cases"].as_array().unwrap() {
        let name = &case["name"];
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut sampler = Sampler::new(&settings(&case["settings"])).unwrap().with_custom(Best(Arc::clone(&seen)));
        sampler.begin(&prompt);
        for (i, row) in rows.iter().enumerate() {
            let expected: Vec<(u32, f64)> = serde_json::from_value(case["steps"][i].clone()).unwrap();
            assert_eq!(sampler.sample(&mut row.clone()).unwrap(), expected[0].0, "{name}, step {i}");
            let found = seen.lock().unwrap();
            let ids = |list: &mut dyn Iterator<Item = u32>| list.collect::<BTreeSet<_>>();
            let expected_ids = ids(&mut expected.iter().map(|x| x.0));
            assert_eq!(ids(&mut found.iter().map(|c| c.token)), expected_ids, "{name}, step {i}");
            for (token, p) in expected {
                let found = found.iter().find(|c| c.token == token).unwrap().probability;
                // Logits are f32 where penalties act on them.
                assert!((found - p).abs() < 1e-6, "{name}, step {i}, token {token}: {found} for {p}");
            }
        }
    }
}

const PROMPT: &str = "Once upon a time";

#[test]
fn logprobs_match_the_scores_of_the_model() {
    let greedy = || stories().generate(PROMPT).temperature(0.0).max_tokens(20);
    let plain = greedy().run().unwrap();
    assert!(plain.logprobs.is_empty());
    let out = greedy().logprobs(3).run().unwrap();
    assert_eq!((&out.text, &out.tokens), (&plain.text, &plain.tokens));
    let all: Vec<u32> = out.prompt_tokens.iter().chain(&out.tokens).copied().collect();
    let nll = stories().score(&all).unwrap();
    let scored = stories().logprobs(&all[..], 3).unwrap();
    assert_eq!((scored.len(), scored[0].token, scored[0].logprob), (all.len(), all[0], None));
    assert_eq!(scored[out.prompt_tokens.len()..], out.logprobs, "generating and scoring agree bit for bit");
    for (i, (token, logprob)) in out.tokens.iter().zip(&out.logprobs).enumerate() {
        assert_eq!(logprob.token, *token);
        let found = logprob.logprob.unwrap();
        assert!((f64::from(found) + nll[out.prompt_tokens.len() - 1 + i]).abs() < 1e-5);
        assert_eq!((logprob.top[0].token, logprob.top[0].logprob), (*token, found), "greedy takes the best");
        assert!(logprob.top.len() == 3 && logprob.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
    }
    // The reported log probabilities do not include the effects of sampling.
    let again = greedy().logprobs(0).options(GenerateOptions::new().logit_bias(all[0], 1.0)).run().unwrap();
    assert_eq!(again.logprobs[0].logprob, out.logprobs[0].logprob);
    assert!(again.logprobs[0].top.is_empty());
    // Each piece has its own.
    let pieces = greedy().logprobs(3).stream().unwrap().flat_map(|piece| piece.unwrap().logprobs);
    assert!(pieces.eq(out.logprobs));
}

#[test]
fn bans_exclude_tokens_and_biases_force_them() {
    let greedy = || stories().generate(PROMPT).temperature(0.0).max_tokens(30);
    let first = greedy().run().unwrap().tokens[0];
    let out = greedy().options(GenerateOptions::new().ban([first])).run().unwrap();
    assert!(!out.tokens.contains(&first));
    let out = greedy().options(GenerateOptions::new().logit_bias(300, 1000.0)).run().unwrap();
    assert!(out.tokens.iter().all(|token| *token == 300));
    let error = greedy().options(GenerateOptions::new().ban([512])).run().unwrap_err();
    assert!(matches!(error.cause(), Some(SamplingError::UnknownToken { token: 512, n_vocab: 512 })), "{error:?}");
    let error = greedy().options(GenerateOptions::new().ban(0..512)).run().unwrap_err();
    assert!(matches!(error.cause(), Some(SamplingError::NoCandidate { .. })), "{error:?}");
}

#[test]
fn penalties_reduce_repetition() {
    // Small models fall into a loop sooner or later; the longest sequence that repeats says how far.
    let text = |builder: fewbit::Generate| builder.ignore_eos(true).max_tokens(250).run().unwrap().tokens;
    let repeated = |tokens: &[u32]| {
        let common = |i: usize, j: usize| tokens[i..].iter().zip(&tokens[j..]).take_while(|(a, b)| a == b).count();
        (0..tokens.len()).flat_map(|j| (0..j).map(move |i| (i, j))).map(|(i, j)| common(i, j).min(j - i)).max()
    };
    let greedy = || stories().generate(PROMPT).temperature(0.0);
    let plain = repeated(&text(greedy()));
    let dry = repeated(&text(greedy().options(GenerateOptions::new().dry(Dry::new(2.0)))));
    assert!(dry < plain, "{dry:?} with DRY, {plain:?} without");
    let all = text(greedy().options(GenerateOptions::new().repeat_penalty(1.3).penalty_last_n(usize::MAX)));
    let distinct = |tokens: &[u32]| tokens.iter().collect::<BTreeSet<_>>().len();
    assert!(distinct(&all) > distinct(&text(greedy())));
}

#[test]
fn every_setting_is_reproducible_with_its_seed() {
    let builder = |seed| {
        let mut dry = Dry::new(0.8);
        dry.breakers = vec![".".into()];
        stories()
            .generate(PROMPT)
            .temperature(1.2)
            .options(
                GenerateOptions::new()
                    .dynamic_temperature(DynamicTemperature { range: 0.5, exponent: 1.0 })
                    .top_n_sigma(2.5)
                    .typical_p(0.95)
                    .xtc(Xtc { probability: 0.5, threshold: 0.1 })
                    .dry(dry)
                    .repeat_penalty(1.1)
                    .presence_penalty(0.1)
                    .frequency_penalty(0.1),
            )
            .max_tokens(60)
            .seed(seed)
    };
    assert_eq!(builder(1).run().unwrap().text, builder(1).run().unwrap().text);
    assert_ne!(builder(1).run().unwrap().text, builder(2).run().unwrap().text);
    let mirostat = |seed| {
        builder(seed).options(GenerateOptions::new().mirostat(Mirostat { tau: 3.0, eta: 0.1 })).run().unwrap().text
    };
    assert_eq!(mirostat(1), mirostat(1));
    assert_ne!(mirostat(1), builder(1).run().unwrap().text);
}

#[test]
fn out_of_range_settings_fail_before_running() {
    let refused = |builder: fewbit::Generate| match builder.stream() {
        Err(error) => error.cause::<SamplingError>().unwrap().to_string(),
        other => panic!("{other:?}"),
    };
    let begin = || stories().generate(PROMPT);
    for (builder, word) in [
        (begin().options(GenerateOptions::new().typical_p(0.0)), "typical_p"),
        (begin().options(GenerateOptions::new().top_n_sigma(f32::NAN)), "top_n_sigma"),
        (begin().options(GenerateOptions::new().xtc(Xtc { probability: 1.5, threshold: 0.1 })), "XTC"),
        (begin().options(GenerateOptions::new().xtc(Xtc { probability: 0.5, threshold: -0.1 })), "XTC"),
        (
            begin()
                .options(GenerateOptions::new().dynamic_temperature(DynamicTemperature { range: -1.0, exponent: 1.0 })),
            "dynamic temperature",
        ),
        (
            begin().options(
                GenerateOptions::new().dynamic_temperature(DynamicTemperature { range: 1.0, exponent: f32::INFINITY }),
            ),
            "exponent",
        ),
        (begin().options(GenerateOptions::new().mirostat(Mirostat { tau: -1.0, eta: 0.1 })), "tau"),
        (begin().options(GenerateOptions::new().mirostat(Mirostat { tau: 5.0, eta: f32::NAN })), "eta"),
        (begin().options(GenerateOptions::new().repeat_penalty(0.0)), "repeat"),
        (begin().options(GenerateOptions::new().presence_penalty(f32::NAN)), "presence"),
        (begin().options(GenerateOptions::new().frequency_penalty(f32::INFINITY)), "frequency"),
        (begin().options(GenerateOptions::new().dry(Dry::new(-1.0))), "DRY"),
        (begin().options(GenerateOptions::new().logit_bias(5, f32::INFINITY)), "token 5"),
    ] {
        let message = refused(builder);
        assert!(message.contains(word), "{message}");
    }
}

/// Chooses a token that is not among the candidates.
struct OutsideCandidates;

impl CustomSampler for OutsideCandidates {
    fn choose(&mut self, choices: &[Choice]) -> Option<u32> {
        choices.iter().map(|choice| choice.token).max().map(|token| token + 1)
    }
}

/// Never chooses the same token twice in a row.
struct NeverTwice;

impl CustomSampler for NeverTwice {
    fn adjust(&mut self, tokens: &[u32], logits: &mut [f32]) {
        if let Some(&last) = tokens.last() {
            logits[last as usize] = f32::NEG_INFINITY;
        }
    }
}

#[test]
fn custom_samplers_change_the_tokens() {
    let biased = || {
        stories()
            .generate(PROMPT)
            .temperature(0.0)
            .max_tokens(12)
            .options(GenerateOptions::new().logit_bias(300, 1000.0))
    };
    let out = biased().custom_sampler(|| NeverTwice).run().unwrap();
    assert!(out.tokens.windows(2).all(|pair| pair[0] != pair[1]) && out.tokens.contains(&300), "{:?}", out.tokens);
    let error = biased().custom_sampler(|| OutsideCandidates).run().unwrap_err();
    assert!(matches!(error.cause(), Some(SamplingError::NotACandidate { token: 301 })), "{error:?}");
}

#[test]
fn echo_puts_the_prompt_first() {
    let begin = || stories().generate(PROMPT).temperature(0.0).max_tokens(10).logprobs(1);
    let (plain, echo) = (begin().run().unwrap(), begin().echo(true).run().unwrap());
    assert_eq!(echo.text, format!("{PROMPT}{}", plain.text));
    assert_eq!((&echo.tokens, &echo.logprobs), (&plain.tokens, &plain.logprobs));
    assert_eq!(echo.prompt_logprobs, stories().logprobs(PROMPT, 1).unwrap());
    assert!(plain.prompt_logprobs.is_empty());
    let pieces: Vec<_> = begin().echo(true).stream().unwrap().map(|piece| piece.unwrap()).collect();
    assert_eq!((&pieces[0].token_ids, pieces[0].text.as_str()), (&echo.prompt_tokens, PROMPT));
    assert_eq!(pieces.iter().map(|piece| piece.text.as_str()).collect::<String>(), echo.text);
}

#[test]
fn samples_equal_single_runs_with_their_seeds() {
    let begin = || stories().generate(PROMPT).temperature(1.2).max_tokens(20);
    let all = begin().seed(5).samples(4).unwrap();
    assert_eq!(all.iter().map(|out| out.seed).collect::<Vec<_>>(), [5, 6, 7, 8]);
    for out in &all {
        assert_eq!(begin().seed(out.seed).run().unwrap().text, out.text);
    }
    assert!(begin().samples(0).unwrap().is_empty());
    let free = begin().samples(2).unwrap();
    assert_eq!(begin().seed(free[1].seed).run().unwrap().text, free[1].text);
}
