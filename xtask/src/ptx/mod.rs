//! Compiles the CUDA C of fewbit-gpu to PTX, the text that drivers compile for their GPU. It is part of the repository, so
//! nothing else needs a compiler of CUDA.
//!
//! NVRTC does it, in the version of CUDA 12.0, so that every driver since then can read the result.

mod text;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::clients::environment;
use crate::shell;

/// Where NVRTC is called from, and the package that it is in.
const FOLDER: &str = "xtask/ptx";

/// Compiles all sources, or with `check` only says whether the PTX is theirs.
pub(crate) fn run(check: bool) -> Result<()> {
    let (sources, texts) = (shell::root().join(text::SOURCES), shell::root().join(text::TEXTS));
    if !check {
        compile(&sources, &texts)?;
    }
    let findings = text::findings(&sources, &texts).with_context(|| texts.display().to_string())?;
    ensure!(findings.is_empty(), "{}", findings.join("\n"));
    let n = text::modules(&sources)?.len();
    println!("{}: the PTX of {n} modules is theirs, and rounds as the CPU does", text::TEXTS);
    Ok(())
}

fn compile(sources: &Path, texts: &Path) -> Result<()> {
    let python = environment(FOLDER, "ptx")?;
    fs::create_dir_all(texts)?;
    let mut made: Vec<PathBuf> = Vec::new();
    for module in text::modules(sources)? {
        for architecture in text::ARCHITECTURES {
            let out = texts.join(format!("{}.{architecture}.ptx", module.name));
            let mut command = shell::command(&python);
            command.arg(format!("{FOLDER}/nvrtc.py")).args([&sources.join(&module.file), &out]).arg(architecture);
            command.args(&module.macros).args(text::OPTIONS);
            shell::run_command(command)?;
            let ptx = fs::read_to_string(&out)?;
            fs::write(&out, format!("{}\n{ptx}", text::first_line(sources, &module, architecture)?))?;
            made.push(out);
        }
    }
    for entry in fs::read_dir(texts)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "ptx") && !made.contains(&path) {
            fs::remove_file(&path)?;
        }
    }
    if made.is_empty() {
        bail!("{} has no sources", sources.display());
    }
    Ok(())
}
