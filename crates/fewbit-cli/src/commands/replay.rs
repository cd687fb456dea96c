//! `fewbit replay`: computes local answers of the log again, and compares them bit for bit.

use std::sync::Arc;

use anyhow::{Context, bail};
use fewbit_gateway::{Config, Entry, NoReplay, Which, answer_again, chosen, given_request, kept_request, local_model};
use fewbit_serve::{Backend, EngineBackend, Job};
use serde_json::{Value, json};

use crate::args::{Common, ReplayArgs};
use crate::loading;
use crate::output::{Out, print_json};

/// What a replay shows.
enum Verdict {
    Same,
    Different { sha256: String },
    Skipped(NoReplay),
}

pub(crate) fn run(common: &Common, args: &ReplayArgs) -> anyhow::Result<()> {
    let config = Config::read(&args.config)?;
    let store = config.store.clone().with_context(|| format!("{} names no `store`", args.config.display()))?;
    let which = match (&args.id, args.last, args.all) {
        (Some(id), None, false) => Which::Request(id.clone()),
        (None, Some(n), false) => Which::Last(n),
        (None, None, true) => Which::All,
        _ => bail!("say what to replay: the id of a request, --last N, or --all"),
    };
    let entries = chosen(&store, &which)?;
    if let (Which::Request(id), true) = (&which, entries.is_empty()) {
        bail!("the log has no request {id:?}");
    }
    let request = args
        .request
        .as_ref()
        .map(|path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display())));
    let request = request.transpose()?;
    let prompts = config.prompts()?.map(Arc::new);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("cannot start the threads of the server")?;
    let jobs: Vec<Result<Job, NoReplay>> = entries
        .iter()
        .map(|entry| {
            local_model(entry)?;
            match &request {
                Some(body) => runtime.block_on(given_request(body.clone(), entry, prompts.clone())),
                None => kept_request(&store, entry),
            }
        })
        .collect();
    // Only the models that are needed are loaded.
    let needed =
        |name: &str| entries.iter().zip(&jobs).any(|(entry, job)| job.is_ok() && local_model(entry) == Ok(name));
    let mut models = Vec::new();
    for of in &config.models {
        let name = of.name.clone().unwrap_or_else(|| EngineBackend::name_of(&of.model));
        if needed(&name) {
            models.push((name.clone(), loading::load(common, &of.model).with_context(|| format!("model {name}"))?));
        }
    }
    let local = if models.is_empty() { None } else { Some(Arc::new(EngineBackend::new(models)?) as Arc<dyn Backend>) };
    let backend = config.local_backend(local)?;
    let mut verdicts = Vec::with_capacity(entries.len());
    for (entry, job) in entries.iter().zip(jobs) {
        let verdict = match job {
            Err(error) => Verdict::Skipped(error),
            Ok(job) => {
                let answer = runtime.block_on(answer_again(&backend, job, entry));
                let answer =
                    answer.map_err(|error| anyhow::anyhow!("line {} of the log: {}", entry.n, error.message))?;
                let sha256 = answer.sha256();
                if entry.output_sha256.as_ref() == Some(&sha256) {
                    Verdict::Same
                } else {
                    Verdict::Different { sha256 }
                }
            }
        };
        verdicts.push(verdict);
    }
    report(common, &entries, &verdicts)
}

fn report(common: &Common, entries: &[Entry], verdicts: &[Verdict]) -> anyhow::Result<()> {
    let count = |is: fn(&Verdict) -> bool| verdicts.iter().filter(|verdict| is(verdict)).count();
    let same = count(|verdict| matches!(verdict, Verdict::Same));
    let different = count(|verdict| matches!(verdict, Verdict::Different { .. }));
    let skipped = verdicts.len() - same - different;
    if common.json {
        let line = |(entry, verdict): (&Entry, &Verdict)| {
            let (name, sha256, why) = match verdict {
                Verdict::Same => ("same", entry.output_sha256.clone(), None),
                Verdict::Different { sha256 } => ("different", Some(sha256.clone()), None),
                Verdict::Skipped(why) => ("skipped", None, Some(why.to_string())),
            };
            json!({ "line": entry.n, "request": entry.request, "verdict": name, "logged": entry.output_sha256, "replayed": sha256, "why": why })
        };
        let lines: Vec<Value> = entries.iter().zip(verdicts).map(line).collect();
        print_json(&json!({ "same": same, "different": different, "skipped": skipped, "answers": lines }))?;
    } else {
        let mut out = Out::new();
        for (entry, verdict) in entries.iter().zip(verdicts) {
            let (n, id) = (entry.n, &entry.request);
            match verdict {
                Verdict::Same => out.line(format_args!("line {n}, {id}: the same"))?,
                Verdict::Different { .. } => out.line(format_args!("line {n}, {id}: DIFFERENT"))?,
                Verdict::Skipped(why) => out.line(format_args!("line {n}, {id}: not replayed: {why}"))?,
            }
        }
        out.line(format_args!("{same} the same, {different} different, {skipped} not replayed"))?;
        out.flush()?;
    }
    if different > 0 {
        bail!(
            "{different} answers differ from those of the log: another model file, another version of fewbit, or another log"
        );
    }
    if same == 0 {
        bail!("nothing could be replayed");
    }
    Ok(())
}
