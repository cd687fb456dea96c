//! Whether a text of PTX is what its sources say, without compiling them: a hash of the sources in its first line, and no
//! instruction that rounds otherwise than the CPU. `cargo xtask ptx` writes the line; tests of fewbit-gpu use this file too.

use std::fs;
use std::io;
use std::path::Path;

/// The folders of the sources and of the PTX, from the root of the repository.
#[allow(dead_code)]
pub(crate) const SOURCES: &str = "crates/fewbit-gpu/src/cuda/kernels";
#[allow(dead_code)]
pub(crate) const TEXTS: &str = "crates/fewbit-gpu/src/cuda/ptx";

/// The architectures that there is PTX for.
pub(crate) const ARCHITECTURES: [&str; 2] = ["compute_75", "compute_80"];

/// How the sources are compiled: every multiplication, addition, division and square root is rounded on its own, to nearest,
/// and small numbers stay what they are.
pub(crate) const OPTIONS: [&str; 5] =
    ["--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"];

/// A source with macros, which is compiled to one text.
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) file: String,
    /// As options of the compiler.
    pub(crate) macros: Vec<String>,
}

/// What is compiled of a folder, as the list there says: names, files and macros.
pub(crate) fn modules(folder: &Path) -> io::Result<Vec<Module>> {
    let list = fs::read_to_string(folder.join("modules.txt"))?;
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    let modules = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let (name, file) = (words.next()?.to_owned(), words.next()?.to_owned());
        Some(Module { name, file, macros: words.map(|word| format!("-D{word}")).collect() })
    });
    Ok(modules.collect())
}

/// The first line of the PTX of a module. It has a hash of the source, of all headers and of the options.
pub(crate) fn first_line(folder: &Path, module: &Module, architecture: &str) -> io::Result<String> {
    let mut headers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "h") {
            headers.push(path);
        }
    }
    headers.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |text: &str| {
        // As in any checkout, whatever ends its lines; the 0 keeps files apart.
        let bytes = text.bytes().filter(|&b| b != b'\r').chain([0]);
        bytes.for_each(|b| hash = (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    };
    for path in headers {
        add(&path.file_name().unwrap_or_default().to_string_lossy());
        add(&fs::read_to_string(path)?);
    }
    add(&fs::read_to_string(folder.join(&module.file))?);
    add(architecture);
    module.macros.iter().for_each(|option| add(option));
    OPTIONS.iter().for_each(|option| add(option));
    Ok(format!("// {} for {architecture}, {hash:016x}; made by `cargo xtask ptx`", module.name))
}

/// The instructions of a text of PTX whose results could differ from the CPU's: floats that are multiplied, added,
/// subtracted, divided or rooted without saying how they are rounded, that flush small numbers to zero, or that are
/// approximate.
pub(crate) fn inexact(text: &str) -> Vec<&str> {
    let is_inexact = |line: &&str| {
        let Some(instruction) = line.split_whitespace().find(|word| !word.starts_with('@')) else { return false };
        let instruction = instruction.trim_end_matches(';');
        let parts: Vec<&str> = instruction.split('.').collect();
        let is_float = parts[1..].iter().any(|part| ["f32", "f64", "f16", "f16x2", "bf16", "bf16x2"].contains(part));
        let must_round = ["add", "sub", "mul", "mad", "fma", "div", "sqrt", "rcp"].contains(&parts[0]);
        let rounds = ["rn", "rz", "rm", "rp"].iter().any(|mode| parts.contains(mode));
        parts[1..].contains(&"ftz") || parts[1..].contains(&"approx") || (is_float && must_round && !rounds)
    };
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("//") && !line.starts_with('.'))
        .filter(is_inexact)
        .collect()
}

/// What is wrong with the PTX in a folder, given the folder of the sources: one line for each finding.
pub(crate) fn findings(sources: &Path, texts: &Path) -> io::Result<Vec<String>> {
    let mut findings = Vec::new();
    let mut wanted = Vec::new();
    for module in modules(sources)? {
        for architecture in ARCHITECTURES {
            let file = format!("{}.{architecture}.ptx", module.name);
            match fs::read_to_string(texts.join(&file)) {
                Ok(text) => {
                    let line = first_line(sources, &module, architecture)?;
                    if text.lines().next() != Some(&line[..]) {
                        findings.push(format!("{file} is of other sources: run `cargo xtask ptx`"));
                    }
                    findings.extend(inexact(&text).iter().take(5).map(|line| format!("{file}: {line}")));
                }
                Err(_) => findings.push(format!("{file} is not there: run `cargo xtask ptx`")),
            }
            wanted.push(file);
        }
    }
    for entry in fs::read_dir(texts)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".ptx") && !wanted.contains(&name) {
            findings.push(format!("{name} has no source"));
        }
    }
    Ok(findings)
}
