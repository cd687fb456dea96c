//! Tests the page of `fewbit serve` in Debian's headless Chromium, driven by npm's `playwright-core`.
//!
//! The server has SmolLM2, a store, and two keys, one of which may ask `/admin`. The screenshots are in `target/page`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::clients::{Server, node_environment, program};
use crate::debian;
use crate::shell::{self, Missing};

const FOLDER: &str = "crates/fewbit-serve/tests/page";
const MCP_SERVER: &str = "crates/fewbit-gateway/tests/tools/mcp_server.py";
const CHROMIUM: &str = "/usr/bin/chromium";

const CONFIG: &str = r#"
store = "store"
prompts = "prompts"

[[models]]
model = "smollm2-135m-instruct"
name = "small"

[prices.small]
input = 100
output = 400
"#;

pub(crate) fn run() -> Result<()> {
    if !Path::new(CHROMIUM).exists() {
        if !cfg!(target_os = "linux") {
            return Err(Missing(format!("the page is tested with {CHROMIUM}, which is not here")).into());
        }
        debian::install(&["chromium"], "")?;
    }
    let node = node_environment(FOLDER, "page-node")?;
    let folder = shell::target().join("page");
    // A store of its own each time, so that the sums are known.
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let config = folder.join("fewbit.toml");
    let (server, notes) = (shell::root().join(MCP_SERVER), folder.join("notes"));
    let tools = format!(
        "[[tools.servers]]\nname = \"notes\"\ncommand = [\"python3\", {server:?}]\nenv = {{ MCP_NOTES = {notes:?} }}\n\
         approve = \"all\"\n"
    );
    fs::write(&config, format!("{CONFIG}{tools}"))?;
    let config = config.to_string_lossy();
    let program = program()?;
    let admin = key(&program, &config, &["admin", "--endpoint", "/admin", "--endpoint", "/"])?;
    let user = key(&program, &config, &["user", "--tool", "notes__write"])?;
    make_prompts(&program, &folder, &config)?;
    let server = Server::start(&["--config", &config])?;
    let mut test = shell::command("node");
    test.args(["--test", "--test-concurrency=1", &format!("{FOLDER}/page_test.mjs")]);
    test.env("FEWBIT_URL", &server.url).env("FEWBIT_ADMIN_KEY", admin).env("FEWBIT_KEY", user);
    test.env("FEWBIT_NODE_FOLDER", node).env("FEWBIT_CHROMIUM", CHROMIUM).env("FEWBIT_SCREENSHOTS", folder);
    test.env("FEWBIT_NOTES", notes);
    shell::run_command(test)
}

/// Writes two versions of a prompt, and promotes the first; some requests get the other.
fn make_prompts(program: &Path, folder: &Path, config: &str) -> Result<()> {
    let prompt = folder.join("prompts/story");
    fs::create_dir_all(&prompt)?;
    for (version, words) in [(1, "Be brief."), (2, "Be brief, and kind.")] {
        let text = format!(
            "description = \"Tells stories.\"\n[variables.animal]\n[variables.tone]\ndefault = \"friendly\"\n\
             [[messages]]\nrole = \"system\"\ncontent = \"\"\"You tell stories.\n{words}\"\"\"\n\
             [[messages]]\nrole = \"user\"\ncontent = \"A {{{{ tone }}}} story about a {{{{ animal }}}}.\"\n"
        );
        fs::write(prompt.join(format!("{version}.toml")), text)?;
    }
    for args in [&["promote", "story@1"][..], &["canary", "story@2", "--percent", "25"]] {
        let program = program.to_string_lossy();
        shell::run(&program, &[&["prompts", "--config", config], args].concat())?;
    }
    Ok(())
}

/// Creates a key.
fn key(program: &Path, config: &str, args: &[&str]) -> Result<String> {
    let output = shell::command(program).args(["keys", "add", "--json", "--config", config]).args(args).output()?;
    if !output.status.success() {
        bail!("fewbit keys add failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let made: Value = serde_json::from_slice(&output.stdout)?;
    made["secret"].as_str().map(str::to_owned).context("no key")
}
