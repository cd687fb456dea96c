//! `fewbit bench`: measures the speed of a model with `fewbit::bench`, and prints a table or JSON.

use anyhow::bail;
use fewbit::KernelTime;
use fewbit::bench::{
    Bench, BenchReport, BenchTest, DeviceCheck, Figure, Measured, Serving, Spread, Target, TimedKernels,
};
use fewbit::expert::engine::LoadOptions;
use fewbit::random::{RandomWeights, Shape};
use serde_json::{Value, json};

use crate::args::{BenchArgs, Common};
use crate::loading::{devices, load, on_cpu};
use crate::output::{Out, bytes, note, print_json};
use crate::placed::{placed, placed_json};

pub(crate) fn run(common: &Common, args: &BenchArgs) -> anyhow::Result<()> {
    let batch: Vec<usize> = args.batch.iter().map(|&n| n.into()).collect();
    let bench = Bench::new().prompt(&*args.prompt).n_gen(&*args.n_gen).depth(&*args.depth).batch(batch);
    let bench = bench.repetitions(args.repetitions.into()).kernels(args.kernels);
    match (&args.model, &args.shape, &args.r#type) {
        (Some(name), _, _) => {
            let model = load(common, name)?;
            if let Some(n) = args.concurrency {
                let (&[prompt], &[n_gen]) = (&args.prompt[..], &args.n_gen[..]) else {
                    bail!("with --concurrency, -p and -n are one number each");
                };
                let serving = Serving::new(n.into()).prompt(prompt).n_gen(n_gen).repetitions(args.repetitions.into());
                return show_serving(common, (n, prompt, n_gen), name, &serving.run(&model)?);
            }
            let target = Target::of(&model)?;
            let check = match args.check {
                Some(n) => {
                    let model = load(&on_cpu(common), name)?;
                    Some(DeviceCheck::run(&target, &Target::of(&model)?, n.into())?)
                }
                None => None,
            };
            show(common, args, name, check, &bench.run(&target)?)
        }
        (None, Some(shape), Some(ty)) => {
            let named = Shape::named(shape)?;
            let weights = RandomWeights::new(named, ty)?;
            let mut options = LoadOptions::new();
            options.kv_type = common.kv_type.map(Into::into);
            options.threads = common.threads.map(usize::from);
            options.quantize = common.quantize;
            devices(common).check()?;
            note(format_args!("writing random weights to {}", std::env::temp_dir().display()));
            let target = Target::random(&weights, &options, &devices(common))?;
            let check = match args.check {
                Some(n) => {
                    let reference = Target::random(&weights, &options, &devices(&on_cpu(common)))?;
                    Some(DeviceCheck::run(&target, &reference, n.into())?)
                }
                None => None,
            };
            show(common, args, &format!("{shape} {ty}"), check, &bench.run(&target)?)
        }
        _ => bail!("give a model, or --shape and --type"),
    }
}

fn spread(value: &Spread) -> Value {
    json!({ "median": value.median, "min": value.min, "max": value.max })
}

fn test_json(test: BenchTest) -> Value {
    match test {
        BenchTest::Prefill { prompt, depth } => json!({ "test": "prefill", "prompt": prompt, "depth": depth }),
        BenchTest::Decode { n_gen, depth, batch } => {
            json!({ "test": "decode", "n_gen": n_gen, "depth": depth, "batch": batch })
        }
        _ => json!({}),
    }
}

fn result_json(result: &Measured) -> Value {
    let mut json = test_json(result.test);
    json["tok_s"] = spread(&result.tokens_per_s);
    let fraction = match result.test {
        BenchTest::Prefill { .. } => "peak_fraction",
        _ => "bandwidth_fraction",
    };
    json[fraction] = result.fraction.into();
    json
}

fn kernels_json(kernels: &TimedKernels) -> Value {
    let mut json = test_json(kernels.test);
    json["device"] = kernels.device[..].into();
    let of = |time: &KernelTime| {
        json!({
            "kernel": time.kernel, "launches": time.n_launches, "seconds": time.time.as_secs_f64(),
            "weight_bytes": time.weight_bytes,
        })
    };
    json["times"] = kernels.times.iter().map(of).collect();
    json
}

/// Prints the kernels of a combination, the ones that take longest first.
fn show_kernels(out: &mut Out, kernels: &TimedKernels) -> anyhow::Result<()> {
    let what = match kernels.test {
        BenchTest::Prefill { prompt, depth } => format!("prefill of {prompt} at depth {depth}"),
        BenchTest::Decode { n_gen, depth, batch } => format!("decode of {n_gen} at depth {depth}, batch {batch}"),
        _ => String::new(),
    };
    out.line(format_args!("kernels on {}, {what}:", kernels.device))?;
    out.line("  share         ms   launches    us each  GB/s of weights  kernel")?;
    let whole = kernels.times.iter().map(|time| time.time.as_secs_f64()).sum::<f64>();
    for KernelTime { kernel, n_launches, time, weight_bytes, .. } in &kernels.times {
        let s = time.as_secs_f64();
        let read = match weight_bytes {
            0 => "-".to_owned(),
            bytes => format!("{:.1}", *bytes as f64 * 1e-9 / s),
        };
        let (share, each) = (s / whole * 100.0, s * 1e6 / *n_launches as f64);
        out.line(format_args!("{share:5.1} % {:10.2} {n_launches:10} {each:10.1} {read:>16}  {kernel}", s * 1e3))?;
    }
    out.line(format_args!("        {:10.2}", whole * 1e3))
}

/// Formats a row of the table.
fn line(result: &Measured) -> String {
    let (name, n, batch) = match result.test {
        BenchTest::Prefill { prompt, .. } => ("prefill", prompt, "-".to_owned()),
        BenchTest::Decode { n_gen, batch, .. } => ("decode", n_gen, batch.to_string()),
        _ => return String::new(),
    };
    let Spread { median, min, max, .. } = result.tokens_per_s;
    let of = result.fraction.map_or("-".to_owned(), |f| format!("{:.0} %", f * 100.0));
    format!("{name:7} {n:6} {:6} {batch:>5} {median:10.1} {min:9.1} {max:9.1} {of:>10}", result.test.depth())
}

fn check_json(check: &DeviceCheck) -> Value {
    json!({
        "steps": check.n_steps, "same_bits": check.n_same_bits, "same_tokens": check.n_same_tokens,
        "largest_gap": check.largest_gap, "mean_kl": check.mean_kl, "max_kl": check.max_kl,
    })
}

fn show_check(out: &mut Out, check: &DeviceCheck) -> anyhow::Result<()> {
    let DeviceCheck { n_steps, n_same_bits, n_same_tokens, largest_gap, mean_kl, max_kl, .. } = *check;
    if n_same_bits == n_steps {
        return out.line(format_args!("compared with the CPU: {n_steps} steps, all with its bits"));
    }
    let gap = match n_same_tokens == n_steps {
        true => String::new(),
        false => format!(" (the others' at most {largest_gap:.2e} less likely in its logits)"),
    };
    out.line(format_args!(
        "compared with the CPU: {n_steps} steps, {n_same_bits} with its bits, {n_same_tokens} with its most likely \
         token{gap}, KL {mean_kl:.1e} nats in the mean, {max_kl:.1e} at most"
    ))
}

fn show(
    common: &Common,
    args: &BenchArgs,
    name: &str,
    check: Option<DeviceCheck>,
    report: &BenchReport,
) -> anyhow::Result<()> {
    let (load_s, ceilings) = (report.load.as_secs_f64(), &report.ceilings);
    if common.json {
        let first = |of: fn(&BenchTest) -> bool| report.results.iter().find(|result| of(&result.test));
        let prefill = first(|test| matches!(test, BenchTest::Prefill { .. }));
        let decode = first(|test| matches!(test, BenchTest::Decode { .. }));
        return print_json(&json!({
            "model": name,
            "load_s": load_s,
            "prefill_tok_s": prefill.map(|result| spread(&result.tokens_per_s)),
            "decode_tok_s": decode.map(|result| spread(&result.tokens_per_s)),
            "decode_bandwidth_fraction": decode.map(|result| result.fraction),
            "prefill_peak_fraction": prefill.map(|result| result.fraction),
            "tests": report.results.iter().map(result_json).collect::<Vec<_>>(),
            "check": check.as_ref().map(check_json),
            "kernels": report.kernels.iter().map(kernels_json).collect::<Vec<_>>(),
            "prompt": args.prompt.first(),
            "n_gen": args.n_gen.first(),
            "depth": args.depth.first(),
            "batch": args.batch.first(),
            "repetitions": args.repetitions,
            "peak_rss_bytes": report.peak_rss_bytes,
            "weight_bytes": report.weight_bytes,
            "read_bandwidth_gb_s": ceilings.read_gb_s,
            "int8_peak_gmac_s": ceilings.int8_gmac_s,
            "isa": report.isa.to_string(),
            "threads": report.n_threads,
            "placed": placed_json(&report.placed),
        }));
    }
    let mut out = Out::new();
    out.line(format_args!("{name}: {}, {} threads, loaded in {load_s:.2} s", report.isa, report.n_threads))?;
    placed(&mut out, &report.placed)?;
    check.iter().try_for_each(|check| show_check(&mut out, check))?;
    out.line("        tokens  depth batch   tokens/s       min       max of ceiling")?;
    for result in &report.results {
        out.line(line(result))?;
    }
    report.kernels.iter().try_for_each(|kernels| show_kernels(&mut out, kernels))?;
    if args.kernels && report.kernels.is_empty() {
        note(format_args!("no kernels were timed: the model is on no GPU, or on one without a clock (see --device)"));
    }
    if let Some(rss) = report.peak_rss_bytes {
        out.line(format_args!("peak memory {}, weights {}", bytes(rss), bytes(report.weight_bytes)))?;
    }
    let gpu = report.placed.iter().find(|part| !part.is_host).map(|part| &part.device[..]);
    if gpu.is_some() && ceilings.read_gb_s.is_none() {
        out.line("ceilings: not measured for a model that is on several devices")?;
        return out.flush();
    }
    let figure = |what: &str, value: Option<f64>, unit: &str| match value {
        Some(value) => format!("{what} {value:.1} {unit}"),
        None => format!("{what}: not measured"),
    };
    out.line(format_args!(
        "ceilings of {}: {}, {}",
        gpu.unwrap_or("this machine"),
        figure("reading (decode)", ceilings.read_gb_s, "GB/s"),
        figure("int8 multiply-adds (prefill)", ceilings.int8_gmac_s, "GMAC/s")
    ))?;
    out.flush()
}

fn show_serving(
    common: &Common,
    (n, prompt, n_gen): (u16, usize, usize),
    name: &str,
    figures: &[Figure],
) -> anyhow::Result<()> {
    if common.json {
        let mut all = json!({ "model": name, "concurrency": n, "prompt": prompt, "n_gen": n_gen });
        figures.iter().for_each(|figure| all[figure.name] = spread(&figure.value));
        return print_json(&all);
    }
    let mut out = Out::new();
    out.line(format_args!("{name}: {n} requests of {n_gen} tokens, a prompt of {prompt}"))?;
    for Figure { name, value, .. } in figures {
        out.line(format_args!("{name:34} {:9.3} ({:.3} to {:.3})", value.median, value.min, value.max))?;
    }
    out.flush()
}
