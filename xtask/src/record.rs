//! Benchmark records: what the kernels and `fewbit bench` measured on one machine, at one commit, as a file in
//! `benches/records/`.
//!
//! ```text
//! # commit, date, CPU, cores, compiler
//! bench,isa,threads,case,value,unit,of_ceiling
//! ```
//! `of_ceiling` is the fraction of the ceiling measured in the same run, if a ceiling limits the case.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell;

/// The runs of `fewbit bench`: arguments that select weights, and arguments that set the length.
const MODELS: &[(&[&str], &[&str])] = &[
    (&["smollm2-135m-instruct"], &["-p", "512", "-n", "64", "-r", "5"]),
    (&["--shape", "tinyllama-1.1b", "--type", "Q4_0"], &["-p", "512", "-n", "32", "-r", "3"]),
    (
        &["--shape", "tinyllama-1.1b", "--type", "Q4_K_M"],
        &["-p", "512", "-n", "32", "-r", "3", "--depth", "0,4096", "--batch", "1,4,8"],
    ),
    (&["--shape", "tinyllama-1.1b", "--type", "Q5_K_M"], &["-p", "512", "-n", "32", "-r", "3"]),
    (&["--shape", "tinyllama-1.1b", "--type", "Q6_K"], &["-p", "512", "-n", "32", "-r", "3"]),
    (&["--shape", "tinyllama-1.1b", "--type", "Q8_0"], &["-p", "512", "-n", "32", "-r", "3"]),
    (&["--shape", "mistral-7b", "--type", "Q4_0"], &["-p", "256", "-n", "16", "-r", "2"]),
];

/// Which part of the record.
#[derive(Debug, clap::Args)]
pub(crate) struct Part {
    /// Only the kernels
    #[arg(long, conflicts_with = "models")]
    kernels: bool,
    /// Only the models
    #[arg(long)]
    models: bool,
    /// Few weight types, and only the first model
    #[arg(long)]
    quick: bool,
}

/// Measures and writes the record.
pub(crate) fn run(part: &Part) -> Result<()> {
    let (kernels, models) = (!part.models, !part.kernels);
    let cpu = cpu_name();
    let date = output("date", &["-u", "+%F"])?;
    let changed = if output("git", &["status", "--porcelain", "-uno"])?.is_empty() { "" } else { " and changes" };
    let mut record = String::new();
    writeln!(record, "# commit {}{changed}", output("git", &["rev-parse", "HEAD"])?)?;
    writeln!(record, "# date {date}")?;
    let n_cores = std::thread::available_parallelism().map_or(0, usize::from);
    writeln!(record, "# cpu {cpu}, {n_cores} cores")?;
    writeln!(record, "# compiler {}", output("rustc", &["--version"])?)?;
    record.push_str("bench,isa,threads,case,value,unit,of_ceiling\n");
    if kernels {
        record.push_str(&kernel_lines(&kernel_csv(part.quick)?)?);
    }
    if models {
        for (weights, how) in if part.quick { &MODELS[..1] } else { MODELS } {
            let args = [&["run", "--release", "--quiet", "-p", "fewbit-cli", "--", "bench", "--json"], *weights, *how];
            let json = output(&shell::cargo(), &args.concat())?;
            record.push_str(&model_lines(&serde_json::from_str(&json).context("the output of fewbit bench")?)?);
        }
    }
    let folder = shell::root().join("benches/records");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{date}-{}.csv", slug(&cpu)));
    fs::write(&path, record).with_context(|| path.display().to_string())?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

fn kernel_csv(quick: bool) -> Result<String> {
    let mut command = shell::command(shell::cargo());
    command.args(["bench", "--quiet", "-p", "fewbit-kernels", "--bench", "kernels", "--", "--csv"]);
    if quick {
        command.env("FEWBIT_BENCH", "Q4_0,Q4_K,Q8_0,attention,rows,section");
    }
    finish(command)
}

/// Converts lines of the kernels' own CSV (`isa,case,seconds,gb_s,gitems_s,of_read,of_int8`) to lines of a record.
fn kernel_lines(csv: &str) -> Result<String> {
    let mut lines = String::new();
    for line in csv.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let &[isa, case, seconds, gb_s, gitems_s, of_read, of_int8] = fields.as_slice() else {
            bail!("the kernel benchmarks printed {line:?}");
        };
        let rows = [(gb_s, "GB/s", of_read), (gitems_s, "GMAC/s", of_int8), (seconds, "s", "")];
        // A section has no multiply-adds, and a time has no ceiling.
        let is_wanted = |unit: &str| match unit {
            "s" => case.starts_with("section") || case.starts_with("rows"),
            _ => !case.starts_with("section"),
        };
        for (value, unit, of) in rows.into_iter().filter(|(value, unit, _)| is_wanted(unit) && !value.is_empty()) {
            writeln!(lines, "kernel,{isa},1,{case},{value},{unit},{of}")?;
        }
    }
    Ok(lines)
}

/// Converts one object of `fewbit bench --json` to lines of a record.
fn model_lines(object: &Value) -> Result<String> {
    let mut lines = String::new();
    let text = |key: &str| object[key].as_str().with_context(|| format!("fewbit bench gave no {key}"));
    let (model, isa) = (text("model")?.to_owned(), text("isa")?.to_owned());
    let threads = object["threads"].as_u64().context("fewbit bench gave no threads")?;
    let mut line = |case: &str, value: f64, unit: &str, of: Option<f64>| {
        let of = of.map_or(String::new(), |of| format!("{of:.3}"));
        writeln!(lines, "model,{isa},{threads},{model} {case},{value:.3},{unit},{of}")
    };
    for (key, unit, scale) in [
        ("read_bandwidth_gb_s", "GB/s", 1.0),
        ("int8_peak_gmac_s", "GMAC/s", 1.0),
        ("load_s", "s", 1.0),
        ("peak_rss_bytes", "MB", 1e-6),
    ] {
        if let Some(value) = object[key].as_f64() {
            line(key, value * scale, unit, None)?;
        }
    }
    for test in object["tests"].as_array().context("fewbit bench gave no tests")? {
        let of = test["peak_fraction"].as_f64().or(test["bandwidth_fraction"].as_f64());
        let number = |key: &str| test[key].as_u64();
        let mut case = format!(
            "{} {}",
            test["test"].as_str().unwrap_or_default(),
            number("prompt").or(number("n_gen")).unwrap_or(0)
        );
        for key in ["depth", "batch"] {
            if let Some(n) = number(key) {
                write!(case, " {key} {n}")?;
            }
        }
        line(&case, test["tok_s"]["median"].as_f64().context("no median")?, "tokens/s", of)?;
    }
    Ok(lines)
}

fn cpu_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    match (field("model name"), field("cpu family"), field("model")) {
        // Some machines report only the family of processors as name.
        (Some(name), Some(family), Some(model)) => format!("{name} (family {family} model {model})"),
        (Some(name), ..) => name,
        _ => std::env::consts::ARCH.to_owned(),
    }
}

/// Converts a name to a part of a file name.
fn slug(name: &str) -> String {
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    name.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

/// The output of a command; its error output goes to the terminal.
fn output(program: &str, args: &[&str]) -> Result<String> {
    let mut command = shell::command(program);
    command.args(args);
    finish(command)
}

fn finish(mut command: Command) -> Result<String> {
    eprintln!("$ {command:?}");
    let done = command
        .current_dir(shell::root())
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("{command:?} cannot be started"))?;
    if !done.status.success() {
        bail!("{command:?} failed: {}", done.status);
    }
    Ok(String::from_utf8(done.stdout).context("output in UTF-8")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_and_model_output_become_csv_lines() {
        let csv = "isa,case,seconds,gb_s,gitems_s,of_read,of_int8\navx2,ceiling,,17.50,150.00,,\n\
                   avx2,read Q4_0 x1,1.0e-3,16.20,28.800,0.926,0.192\navx2,section chunks on 2,1.2e-6,0.00,0.001,,\n";
        assert_eq!(
            kernel_lines(csv).unwrap(),
            "kernel,avx2,1,ceiling,17.50,GB/s,\nkernel,avx2,1,ceiling,150.00,GMAC/s,\n\
             kernel,avx2,1,read Q4_0 x1,16.20,GB/s,0.926\nkernel,avx2,1,read Q4_0 x1,28.800,GMAC/s,0.192\n\
             kernel,avx2,1,section chunks on 2,1.2e-6,s,\n"
        );
        assert!(kernel_lines("head\na,b\n").is_err());
        let object = serde_json::json!({
            "model": "m", "isa": "avx2", "threads": 2, "load_s": 0.5, "peak_rss_bytes": 2_000_000,
            "tests": [{
                "test": "decode", "n_gen": 8, "depth": 0, "batch": 4, "tok_s": { "median": 12.0 },
                "bandwidth_fraction": 0.5,
            }],
        });
        assert_eq!(
            model_lines(&object).unwrap(),
            "model,avx2,2,m load_s,0.500,s,\nmodel,avx2,2,m peak_rss_bytes,2.000,MB,\n\
             model,avx2,2,m decode 8 depth 0 batch 4,12.000,tokens/s,0.500\n"
        );
    }

    #[test]
    fn cpu_names_become_file_names() {
        assert_eq!(slug("Intel(R) Xeon(R) CPU @ 2.20GHz (family 6)"), "intel-r-xeon-r-cpu-2-20ghz-family-6");
    }
}
