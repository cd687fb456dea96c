//! Official clients against `fewbit serve`, each in its own environment under `target/`: those for Python and Node, and the
//! crate async-openai.
//!
//! The server is the program as built, with SmolLM2, a store and two keys; the tests of a client get its address and the
//! keys in `FEWBIT_URL`, `FEWBIT_KEY` and `FEWBIT_ADMIN_KEY`. It also has the model under a second name, loaded on demand,
//! and a route to a server of scripted answers with reasoning.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result};

use crate::shell;

pub(crate) const FOLDER: &str = "crates/fewbit-serve/tests/clients";
pub(crate) const MODEL: &str = "smollm2-135m-instruct";
pub(crate) const KEY: &str = "a-key-for-the-tests-of-clients";

/// The name of the model that is loaded on demand: the server takes it for a reranker.
const ON_DEMAND: &str = "smollm2-reranker";

/// A server that is stopped when this is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Builds the program, and starts `fewbit serve` with these arguments on a free port.
    pub(crate) fn start(args: &[&str]) -> Result<Self> {
        let program = program()?;
        let args = [&["serve"], args, &["--listen", "127.0.0.1:0"]].concat();
        eprintln!("$ fewbit {}", args.join(" "));
        let mut child = shell::command(&program)
            .args(&args)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| program.display().to_string())?;
        let stdout = child.stdout.take();
        let mut server = Self { child, url: String::new() };
        let mut line = String::new();
        BufReader::new(stdout.context("no stdout")?).read_line(&mut line)?;
        let url = line.trim_end().strip_prefix("listening on ").context("the server does not listen")?;
        url.clone_into(&mut server.url);
        Ok(server)
    }

    /// Starts a server with SmolLM2 and [`KEY`].
    pub(crate) fn start_with_key() -> Result<Self> {
        let keys = shell::target().join("clients/keys");
        fs::write(&keys, KEY)?;
        Self::start(&[MODEL, "--api-key-file", &keys.to_string_lossy()])
    }

    /// Whether the server is still running.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

/// A server of scripted answers with reasoning, for the route `thinker`. It ends with this value.
struct Thinker {
    child: Child,
    url: String,
}

impl Thinker {
    fn start(python: &Path) -> Result<Self> {
        let script = shell::root().join(FOLDER).join("thinking_server.py");
        let mut command = shell::command(python);
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| python.display().to_string())?;
        let stdout = child.stdout.take();
        let mut thinker = Self { child, url: String::new() };
        BufReader::new(stdout.context("no stdout")?).read_line(&mut thinker.url)?;
        thinker.url.truncate(thinker.url.trim_end().len());
        Ok(thinker)
    }
}

impl Drop for Thinker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Builds the program. Returns its path.
pub(crate) fn program() -> Result<PathBuf> {
    shell::run(&shell::cargo(), &["build", "--release", "--quiet", "-p", "fewbit-cli"])?;
    Ok(shell::target().join("release/fewbit").with_extension(std::env::consts::EXE_EXTENSION))
}

/// Creates the environments, starts the server, and runs every `*_client.py` and `*_client.mjs`, and the client in Rust.
pub(crate) fn run() -> Result<()> {
    let python = environment(FOLDER, "clients")?;
    let node = node_environment(FOLDER, "clients-node")?;
    let rust = rust_client()?;
    let folder = shell::target().join("clients");
    let (config, store) = (folder.join("fewbit.toml"), folder.join("store"));
    if store.exists() {
        fs::remove_dir_all(&store)?;
    }
    let thinker = Thinker::start(&python)?;
    fs::write(
        &config,
        format!(
            "store = \"store\"\n[[models]]\nmodel = \"{MODEL}\"\n[[models]]\nmodel = \"{MODEL}\"\n\
             name = \"{ON_DEMAND}\"\nload = \"on_demand\"\nunload_after_s = 60\nkv_memory = \"512 MiB\"\n\
             [[upstreams]]\nname = \"scripts\"\nurl = \"{}\"\n\
             [[routes]]\nname = \"thinker\"\nto = [{{ upstream = \"scripts\", model = \"thinker\" }}]\n",
            thinker.url
        ),
    )?;
    let program = program()?;
    let key = |name: &str, more: &[&str]| -> Result<String> {
        let mut command = shell::command(&program);
        command.args(["keys", "add", name, "--config"]).arg(&config).args(more).stderr(Stdio::inherit());
        let output = command.output().with_context(|| program.display().to_string())?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let (key, admin_key) = (key("tests", &[])?, key("admin", &["--endpoint", "/admin", "--endpoint", "/v1"])?);
    let server = Server::start(&["--config", &config.to_string_lossy()])?;

    let mut scripts: Vec<_> = fs::read_dir(shell::root().join(FOLDER))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| ["_client.py", "_client.mjs"].iter().any(|end| path.to_string_lossy().ends_with(end)))
        .collect();
    scripts.sort();
    let scripts = scripts.iter().map(|script| {
        let is_python = script.extension().is_some_and(|extension| extension == "py");
        let mut test = shell::command(if is_python { python.as_path() } else { Path::new("node") });
        test.arg(script);
        test
    });
    for mut test in scripts.chain([shell::command(&rust)]) {
        test.env("FEWBIT_URL", &server.url).env("FEWBIT_KEY", &key).env("FEWBIT_ADMIN_KEY", &admin_key);
        test.env("FEWBIT_NODE_FOLDER", &node);
        shell::run_command(test)?;
    }
    Ok(())
}

/// Builds the client in Rust, which is a package of its own. Returns its path.
fn rust_client() -> Result<PathBuf> {
    let manifest = format!("{FOLDER}/rust/Cargo.toml");
    let target = shell::target().join("clients-rust");
    let folder = target.to_string_lossy();
    shell::run(
        &shell::cargo(),
        &["build", "--locked", "--quiet", "--manifest-path", &manifest, "--target-dir", &folder],
    )?;
    Ok(target.join("debug/fewbit-client-tests").with_extension(std::env::consts::EXE_EXTENSION))
}

/// A virtual environment `name` in the build folder, with the packages that the `requirements.txt` of the folder `tests`
/// lists. It is created once, and again if these change.
pub(crate) fn environment(tests: &str, name: &str) -> Result<PathBuf> {
    let folder = shell::target().join(name);
    let python = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    let wanted = fs::read_to_string(shell::root().join(tests).join("requirements.txt"))?;
    let installed = folder.join("installed.txt");
    if fs::read_to_string(&installed).is_ok_and(|has| has == wanted) && python.exists() {
        return Ok(python);
    }
    let (path, requirements) = (folder.to_string_lossy(), format!("{tests}/requirements.txt"));
    shell::run("python3", &["-m", "venv", &path]).context("this needs python3 with its module venv")?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", &requirements];
    shell::run(&python.to_string_lossy(), &pip)?;
    fs::write(&installed, wanted)?;
    Ok(python)
}

/// The folder `name` of the build folder, with the packages of the `package.json` in the folder `tests`.
pub(crate) fn node_environment(tests: &str, name: &str) -> Result<PathBuf> {
    let folder = shell::target().join(name);
    let wanted = fs::read_to_string(shell::root().join(tests).join("package.json"))?;
    let installed = folder.join("installed.json");
    if fs::read_to_string(&installed).is_ok_and(|has| has == wanted) {
        return Ok(folder);
    }
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("package.json"), &wanted)?;
    let path = folder.to_string_lossy();
    let npm = if cfg!(windows) { "npm.cmd" } else { "npm" };
    let install = ["install", "--prefix", &path, "--no-audit", "--no-fund", "--ignore-scripts", "--silent"];
    shell::run(npm, &install).context("this needs node (20 or later) with npm")?;
    fs::write(&installed, wanted)?;
    Ok(folder)
}
