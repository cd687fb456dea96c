//! `fewbit run`: answers one prompt, and prints the answer while it is generated.

use std::io::IsTerminal;

use fewbit::Completion;
use fewbit::sample::TokenLogprob;
use serde_json::{Value, json};

use crate::args::{Common, RunArgs};
use crate::loading::{check_sampling, constraint, load, load_draft, options, text_of_stdin};
use crate::output::{Out, note, print_json, seconds, timings_json, usage_json};

pub(crate) fn run(common: &Common, args: &RunArgs) -> anyhow::Result<()> {
    check_sampling(&args.sampling)?;
    let constraint = constraint(&args.constraint)?;
    let prompt = match args.prompt.as_str() {
        "-" => text_of_stdin("the prompt")?,
        text => text.to_owned(),
    };
    let (prompt, system) = match &args.system {
        // With `--raw` there is no template for the system message, so it is put before the prompt.
        Some(system) if args.raw => (format!("{system}\n\n{prompt}"), None),
        system => (prompt, system.as_ref()),
    };
    let model = load(common, &args.model.model)?;
    let mut request = model.generate(prompt).options(options(&args.sampling));
    if !args.raw {
        request = request.templated();
    }
    if let Some(system) = system {
        request = request.system(system);
    }
    for (name, value) in &args.template_var {
        request = request.template_var(name, value.clone());
    }
    if let Some(n) = args.reasoning_budget {
        request = request.reasoning_budget(n);
    }
    if let Some(name) = &args.draft {
        request = request.draft(&load_draft(common, name)?);
    }
    if let Some(constraint) = constraint {
        request = request.constraint(constraint);
    }
    if let Some(n_top) = args.logprobs {
        request = request.logprobs(n_top);
    }
    let mut stream = request.stream()?;
    if common.json {
        for piece in &mut stream {
            piece?;
        }
        let completion = stream.into_completion();
        let mut json = completion_json(&completion);
        if args.logprobs.is_some() {
            json["logprobs"] = completion.logprobs.iter().map(logprob_json).collect();
        }
        return print_json(&json);
    }
    let mut out = Out::new();
    for piece in &mut stream {
        let piece = piece?;
        crate::output::reasoning(&piece.reasoning);
        if !piece.text.is_empty() {
            out.text(&piece.text)?;
            out.flush()?;
        }
    }
    out.line("")?;
    out.flush()?;
    if common.verbose > 0 || (std::io::stderr().is_terminal() && std::io::stdout().is_terminal()) {
        summary(&stream.into_completion());
    }
    Ok(())
}

/// Prints a line about the speed on stderr.
pub(crate) fn summary(completion: &Completion) {
    let timings = &completion.timings;
    note(format_args!(
        "[load {}, prompt {} tokens ({} cached) at {:.0}/s, answer {} tokens at {:.1}/s, {}]",
        seconds(timings.load),
        completion.usage.prompt,
        completion.usage.cached,
        timings.prefill_tokens_per_second(),
        completion.usage.completion,
        timings.decode_tokens_per_second(),
        completion.finish_reason,
    ));
}

fn logprob_json(of: &TokenLogprob) -> Value {
    let top = of.top.iter().map(|other| json!({ "token_id": other.token, "logprob": other.logprob }));
    json!({ "token_id": of.token, "logprob": of.logprob, "top": top.collect::<Vec<_>>() })
}

pub(crate) fn completion_json(completion: &Completion) -> Value {
    json!({
        "text": completion.text,
        "reasoning": completion.reasoning,
        "token_ids": completion.tokens,
        "prompt_token_ids": completion.prompt_tokens,
        "finish_reason": completion.finish_reason.as_str(),
        "seed": completion.seed,
        "usage": usage_json(&completion.usage),
        "timings": timings_json(&completion.timings),
    })
}
