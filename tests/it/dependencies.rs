//! The dependencies that a program gets when it uses the library.

use std::collections::BTreeSet;
use std::process::Command;

/// The lines that `cargo tree` writes of packages that the arguments choose, each package once.
fn tree(args: &[&str]) -> BTreeSet<String> {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["tree", "--offline", "--prefix", "none"]).args(args);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
}

/// Packages that the library depends on, itself included, for every platform.
fn packages(features: &[&str]) -> BTreeSet<String> {
    let args = [&["--package", "fewbit", "--edges", "normal,build", "--format", "{p}"], features].concat();
    tree(&args).iter().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// README's second command would compile a package again, and all that depends on it, that the first command has built
/// with fewer features: minutes on two cores.
#[test]
fn tests_use_packages_with_the_features_that_the_program_has() {
    let program = tree(&["--package", "fewbit-cli", "--edges", "normal,build", "--format", "{p} {f}"]);
    let tests = tree(&["--edges", "normal,build,dev", "--format", "{p} {f}"]);
    let otherwise: Vec<_> = program.difference(&tests).collect();
    assert!(otherwise.is_empty(), "only without tests: {otherwise:#?}");
}

#[test]
fn default_features_need_no_network_runtime_or_c() {
    let packages = packages(&[]);
    assert!(packages.contains("fewbit-model"), "{packages:?}");
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        // Other platforms have other packages. Every package is one more to trust, so README states their number.
        let readme = include_str!("../../README.md");
        let said = format!("pure Rust with {} packages", packages.len());
        assert!(readme.contains(&said), "README.md does not say {said:?}: {packages:?}");
    }
    for unwanted in [
        "aws-lc-sys",
        "bindgen",
        "cc",
        "cmake",
        "onig_sys",
        "openssl-sys",
        "pkg-config",
        "ring",
        "hyper",
        "reqwest",
        "rustls",
        "ureq",
        "hf-hub",
        "tokio",
        "zip",
        "sha2",
        "clap",
        "indicatif",
        "tracing-subscriber",
    ] {
        assert!(!packages.contains(unwanted), "{unwanted} in {packages:?}");
    }
}

#[test]
fn hub_feature_needs_no_cmake_and_no_runtime() {
    let packages = packages(&["--features", "hub"]);
    assert!(packages.contains("ureq"), "{packages:?}");
    // Unpacking Python packages belongs to the feature `pypi`.
    for unwanted in ["cmake", "aws-lc-sys", "openssl-sys", "tokio", "zip"] {
        assert!(!packages.contains(unwanted), "{unwanted} in {packages:?}");
    }
}

/// The Rust version of the workspace is the one that its dependencies need: not lower, or it would not build, and not
/// higher, unless the code here needs it.
#[test]
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn rust_version_is_the_one_the_dependencies_need() {
    let mut command = Command::new(env!("CARGO"));
    // Not offline: it lists the packages of other systems too, which a build for this one does not download.
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["metadata", "--locked", "--format-version", "1"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let version = |package: &serde_json::Value| -> Option<Vec<u32>> {
        package["rust_version"].as_str()?.split('.').take(2).map(|part| part.parse().ok()).collect()
    };
    let of_library = packages(&["--features", "async,constraints,hub"]);
    let listed = metadata["packages"].as_array().unwrap();
    let ours = listed.iter().find(|package| package["name"] == "fewbit").and_then(version).unwrap();
    let others = listed.iter().filter(|package| !package["source"].is_null());
    let of_library =
        |package: &&serde_json::Value| package["name"].as_str().is_some_and(|name| of_library.contains(name));
    let (needed, by) = others
        .filter(of_library)
        .filter_map(|package| Some((version(package)?, package["name"].as_str()?)))
        .max()
        .unwrap();
    assert_eq!(ours, needed, "rust-version of Cargo.toml; {by} needs {needed:?}");
}
