//! Installs Debian packages for commands that need them.

use anyhow::{Context, Result};

use crate::shell::{self, Missing};

/// Makes sure that these packages are there: installs those that are missing, if it may. `before` comes before that.
pub(crate) fn install(packages: &[&str], before: &str) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(" ");
    let by_hand = format!("{before}apt-get update && apt-get install --yes --no-install-recommends {missing}");
    if !shell::works("apt-get", &["--version"]) || !is_root() {
        let say =
            format!("these packages are missing, and only root may install them: {missing}\n  as root: {by_hand}");
        return Err(Missing(say).into());
    }
    shell::run("sh", &["-c", &by_hand]).with_context(|| format!("installing Debian's packages {missing}"))
}

fn is_installed(package: &str) -> bool {
    let output = shell::command("dpkg-query").args(["--show", "--showformat=${Status}\n", package]).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("install ok installed"))
}

fn is_root() -> bool {
    let output = shell::command("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}
