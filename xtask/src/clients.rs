//! Official clients against `fewbit serve`, each in an environment of its own under `target/`.
//!
//! The server is the program as it is built, with SmolLM2 and a key; a client's tests get where it is and the key in
//! `FEWBIT_URL` and `FEWBIT_KEY`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::shell;

const FOLDER: &str = "crates/fewbit-serve/tests/clients";
const MODEL: &str = "smollm2-135m-instruct";
const KEY: &str = "a-key-for-the-tests-of-clients";

/// Ends the server, whatever happens.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes the environment, starts the server, runs every `*_client.py`.
pub(crate) fn run() -> Result<()> {
    let target = shell::target();
    let python = environment(&target)?;
    shell::run(&shell::cargo(), &["build", "--release", "--quiet", "-p", "fewbit-cli"])?;
    let program = target.join("release/fewbit").with_extension(std::env::consts::EXE_EXTENSION);
    let keys = target.join("clients/keys");
    fs::write(&keys, KEY)?;
    let mut command = Command::new(&program);
    command.args(["serve", MODEL, "--listen", "127.0.0.1:0", "--api-key-file"]).arg(&keys).stdout(Stdio::piped());
    eprintln!("$ fewbit serve {MODEL} --listen 127.0.0.1:0 --api-key-file {}", keys.display());
    let mut server = Server(command.spawn().with_context(|| program.display().to_string())?);
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().context("no stdout")?).read_line(&mut line)?;
    let url = line.trim_end().strip_prefix("listening on ").context("the server does not listen")?;

    let mut scripts: Vec<_> = fs::read_dir(shell::root().join(FOLDER))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with("_client.py"))
        .collect();
    scripts.sort();
    for script in scripts {
        eprintln!("$ python {}", script.display());
        let mut test = Command::new(&python);
        let status = test.arg(&script).env("FEWBIT_URL", url).env("FEWBIT_KEY", KEY).status()?;
        if !status.success() {
            bail!("{} failed: {status}", script.display());
        }
    }
    Ok(())
}

/// A virtual environment with what the tests name. It is made once, and again when they name something else.
fn environment(target: &Path) -> Result<PathBuf> {
    let folder = target.join("clients");
    let python = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    let wanted = fs::read_to_string(shell::root().join(FOLDER).join("requirements.txt"))?;
    let installed = folder.join("installed.txt");
    if fs::read_to_string(&installed).is_ok_and(|has| has == wanted) && python.exists() {
        return Ok(python);
    }
    let (path, requirements) = (folder.to_string_lossy(), format!("{FOLDER}/requirements.txt"));
    shell::run("python3", &["-m", "venv", &path]).context("the clients need python3 with its module venv")?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", &requirements];
    shell::run(&python.to_string_lossy(), &pip)?;
    fs::write(&installed, wanted)?;
    Ok(python)
}
