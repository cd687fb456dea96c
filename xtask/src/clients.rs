//! Official clients against `fewbit serve`, each in its own environment under `target/`.
//!
//! The server is the program as built, with SmolLM2, a store and two keys; the tests of a client get its address and the
//! keys in `FEWBIT_URL`, `FEWBIT_KEY` and `FEWBIT_ADMIN_KEY`. It also has the model under a second name, loaded on demand.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::shell;

pub(crate) const FOLDER: &str = "crates/fewbit-serve/tests/clients";
const MODEL: &str = "smollm2-135m-instruct";
/// The name of the model that is loaded on demand: the server takes it for a reranker.
const ON_DEMAND: &str = "smollm2-reranker";

/// Stops the server when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Creates the environments, starts the server, and runs every `*_client.py` and `*_client.mjs`.
pub(crate) fn run() -> Result<()> {
    let target = shell::target();
    let python = environment(&target)?;
    let node = node_environment(&target)?;
    shell::run(&shell::cargo(), &["build", "--release", "--quiet", "-p", "fewbit-cli"])?;
    let program = target.join("release/fewbit").with_extension(std::env::consts::EXE_EXTENSION);
    let folder = target.join("clients");
    let (config, store) = (folder.join("fewbit.toml"), folder.join("store"));
    if store.exists() {
        fs::remove_dir_all(&store)?;
    }
    fs::write(
        &config,
        format!(
            "listen = \"127.0.0.1:0\"\nstore = \"store\"\n[[models]]\nmodel = \"{MODEL}\"\n[[models]]\nmodel = \"{MODEL}\"\n\
             name = \"{ON_DEMAND}\"\nload = \"on_demand\"\nunload_after_s = 60\nkv_memory = \"512 MiB\"\n"
        ),
    )?;
    let key = |name: &str, more: &[&str]| -> Result<String> {
        let mut command = Command::new(&program);
        command.args(["keys", "add", name, "--config"]).arg(&config).args(more).stderr(Stdio::inherit());
        let output = command.output().with_context(|| program.display().to_string())?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let (key, admin_key) = (key("tests", &[])?, key("admin", &["--endpoint", "/admin", "--endpoint", "/v1"])?);
    let mut command = Command::new(&program);
    command.args(["serve", "--config"]).arg(&config).stdout(Stdio::piped());
    eprintln!("$ fewbit serve --config {}", config.display());
    let mut server = Server(command.spawn().with_context(|| program.display().to_string())?);
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().context("no stdout")?).read_line(&mut line)?;
    let url = line.trim_end().strip_prefix("listening on ").context("the server does not listen")?;

    let mut scripts: Vec<_> = fs::read_dir(shell::root().join(FOLDER))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| ["_client.py", "_client.mjs"].iter().any(|end| path.to_string_lossy().ends_with(end)))
        .collect();
    scripts.sort();
    for script in scripts {
        let is_python = script.extension().is_some_and(|extension| extension == "py");
        let program = if is_python { python.clone() } else { PathBuf::from("node") };
        eprintln!("$ {} {}", if is_python { "python" } else { "node" }, script.display());
        let mut test = Command::new(program);
        test.arg(&script).env("FEWBIT_URL", url).env("FEWBIT_KEY", &key).env("FEWBIT_ADMIN_KEY", &admin_key);
        test.env("FEWBIT_NODE_FOLDER", &node);
        let status = test.status()?;
        if !status.success() {
            bail!("{} failed: {status}", script.display());
        }
    }
    Ok(())
}

/// A virtual environment with the packages that the tests require. It is created once, and again if these change.
pub(crate) fn environment(target: &Path) -> Result<PathBuf> {
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

/// A folder with the packages that the JavaScript tests require.
fn node_environment(target: &Path) -> Result<PathBuf> {
    let folder = target.join("clients-node");
    let wanted = fs::read_to_string(shell::root().join(FOLDER).join("package.json"))?;
    let installed = folder.join("installed.json");
    if fs::read_to_string(&installed).is_ok_and(|has| has == wanted) {
        return Ok(folder);
    }
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("package.json"), &wanted)?;
    let path = folder.to_string_lossy();
    let npm = if cfg!(windows) { "npm.cmd" } else { "npm" };
    let install = ["install", "--prefix", &path, "--no-audit", "--no-fund", "--ignore-scripts", "--silent"];
    shell::run(npm, &install).context("the clients need node (20 or later) with npm")?;
    fs::write(&installed, wanted)?;
    Ok(folder)
}
