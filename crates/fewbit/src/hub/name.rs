//! Names of models on the Hugging Face Hub, as people write them.
//!
//! ```text
//! org/repo                          the file that is best for most computers, or the folder of a repo without GGUF
//! org/repo:Q4_K_M                   the file of this type
//! org/repo@REVISION[:Q4_K_M]        at a branch, a tag or a commit
//! hf.co/org/repo[...]               the same, as Ollama has it; also huggingface.co/, https://..., hf:
//! hf.co/org/repo/file.gguf          one file; also with blob/REVISION/ or resolve/REVISION/ before it, as a browser
//!                                   shows it
//! ```

use super::HubError;

/// A model on the Hugging Face Hub.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepoName {
    /// `owner/name`.
    pub repo: String,
    /// A branch, tag or commit. Default: `main`.
    pub revision: String,
    /// Which file of the repo.
    pub choice: Choice,
}

/// Selects a file of a repo.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// The file that is best for most computers: Q4_K_M if there is one. For a repo without GGUF files, the folder.
    Default,
    /// The original weights, to quantize: the folder of safetensors, or else the GGUF file with the most bits per
    /// weight.
    Original,
    /// A LoRA adapter: the folder as PEFT writes it, or else the GGUF file.
    Adapter,
    /// The file of this type, such as `Q4_K_M`; for adapters, also the folder with this name.
    Tag(String),
    /// The file with this path.
    File(String),
}

const HOSTS: [&str; 3] = ["hf.co", "huggingface.co", "www.huggingface.co"];

impl RepoName {
    /// Parses a name; `None` for a text that is not the name of a hub model, but a path or a name of the registry.
    pub fn parse(text: &str) -> Option<Result<Self, HubError>> {
        let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let rest = match bare.unwrap_or(text).split_once('/') {
            Some((host, rest)) if HOSTS.contains(&host) => Some(rest),
            _ => text.strip_prefix("hf://").or_else(|| text.strip_prefix("hf:")),
        };
        if rest.is_none() && bare.is_some() {
            let problem = "a URL that is not of huggingface.co: fetch the file, and give its path";
            return Some(Err(HubError::BadName { name: text.to_owned(), problem }));
        }
        let has_host = rest.is_some();
        let path = rest.unwrap_or(text).trim_end_matches('/');
        let path = path.split(['?', '#']).next().unwrap_or(path);
        match Self::of_path(path, has_host) {
            Ok(name) => name.map(Ok),
            Err(problem) => Some(Err(HubError::BadName { name: text.to_owned(), problem })),
        }
    }

    /// `has_host`: the text begins with a host, so it can only be the name of a hub model.
    fn of_path(path: &str, has_host: bool) -> Result<Option<Self>, &'static str> {
        let other = if has_host { Err("give org/repo, org/repo:TYPE or org/repo/file.gguf") } else { Ok(None) };
        let Some((owner, rest)) = path.split_once('/') else { return other };
        let end = rest.find(['/', ':', '@']).unwrap_or(rest.len());
        let (name, mut rest) = rest.split_at(end);
        if !is_repo_part(owner) || !is_repo_part(name) || rest.len() == 1 {
            return other;
        }
        let is_file = |path: &str| path.to_ascii_lowercase().ends_with(".gguf");
        if !has_host && (is_file(name) || rest.starts_with('/')) {
            // It looks like a local path, and there are many of those.
            return Ok(None);
        }
        let mut revision = "main".to_owned();
        if let Some(after) = rest.strip_prefix('@') {
            let end = match after.strip_prefix("refs/") {
                // refs/pr/7 and refs/convert/parquet have slashes of their own.
                Some(_) => after.find(':').unwrap_or(after.len()),
                None => after.find([':', '/']).unwrap_or(after.len()),
            };
            revision = after[..end].to_owned();
            rest = &after[end..];
        }
        let mut choice = Choice::Default;
        if let Some(tag) = rest.strip_prefix(':') {
            choice = match tag {
                // As Ollama names what is the default.
                "latest" => Choice::Default,
                tag if is_file(tag) => Choice::File(tag.to_owned()),
                tag if tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) => {
                    Choice::Tag(tag.to_owned())
                }
                _ => return Err("after the colon is the type of the file, such as Q4_K_M"),
            };
        } else if let Some(mut file) = rest.strip_prefix('/') {
            for page in ["blob/", "resolve/", "raw/", "tree/"] {
                if let Some((given, path)) = file.strip_prefix(page).map(|at| at.split_once('/').unwrap_or((at, ""))) {
                    revision = given.replace("%2F", "/");
                    file = path;
                    break;
                }
            }
            match file {
                "" => {}
                file if is_file(file) => choice = Choice::File(file.to_owned()),
                _ => return Err("a file of a repo is a .gguf file; a folder of safetensors is named by its repo"),
            }
        }
        if !is_safe_path(&revision) {
            return Err("that is no branch, tag or commit");
        }
        if let Choice::File(file) = &choice
            && !is_safe_path(file)
        {
            return Err("that is no path of a file in a repo");
        }
        Ok(Some(Self { repo: path[..owner.len() + 1 + name.len()].to_owned(), revision, choice }))
    }
}

impl RepoName {
    /// The original weights of the same repo, unless the name selects a file.
    #[must_use]
    pub fn original(mut self) -> Self {
        if self.choice == Choice::Default {
            self.choice = Choice::Original;
        }
        self
    }

    /// The adapter of the same repo, unless the name selects a file.
    #[must_use]
    pub fn adapter(mut self) -> Self {
        if self.choice == Choice::Default {
            self.choice = Choice::Adapter;
        }
        self
    }
}

impl std::fmt::Display for RepoName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if matches!(self.choice, Choice::File(_)) {
            f.write_str("hf.co/")?;
        }
        f.write_str(&self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        match &self.choice {
            Choice::Default | Choice::Original | Choice::Adapter => Ok(()),
            Choice::Tag(tag) => write!(f, ":{tag}"),
            Choice::File(file) => write!(f, "/{file}"),
        }
    }
}

/// Only letters, digits, '.', '-' and '_', and no name that refers to another folder.
fn is_repo_part(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !text.contains("..")
}

/// Whether a path from elsewhere can be appended to a folder without leaving it, on every platform.
pub(super) fn is_safe_path(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', ':', '*', '?', '"', '<', '>', '|'])
        && !path.chars().any(char::is_control)
        && path
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with("..") && part != "." && !part.ends_with(['.', ' ']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Option<String> {
        RepoName::parse(text).map(|name| name.map_or_else(|error| format!("! {error}"), |name| format!("{name:?}")))
    }

    #[test]
    fn repo_names_are_parsed_in_every_notation() {
        let of = |revision: &str, choice: Choice| {
            let name = RepoName { repo: "org/repo-1.5".into(), revision: revision.into(), choice };
            Some(format!("{name:?}"))
        };
        let (tag, file) = (|t: &str| Choice::Tag(t.into()), |f: &str| Choice::File(f.into()));
        for (text, expected) in [
            ("org/repo-1.5", of("main", Choice::Default)),
            ("org/repo-1.5:Q4_K_M", of("main", tag("Q4_K_M"))),
            ("org/repo-1.5:latest", of("main", Choice::Default)),
            ("org/repo-1.5@v2", of("v2", Choice::Default)),
            ("org/repo-1.5@refs/pr/7:UD-Q2_K_XL", of("refs/pr/7", tag("UD-Q2_K_XL"))),
            ("hf.co/org/repo-1.5", of("main", Choice::Default)),
            ("hf.co/org/repo-1.5:q8_0", of("main", tag("q8_0"))),
            ("hf:org/repo-1.5:q8_0", of("main", tag("q8_0"))),
            ("hf.co/org/repo-1.5:sub/x.gguf", of("main", file("sub/x.gguf"))),
            ("huggingface.co/org/repo-1.5/", of("main", Choice::Default)),
            ("hf.co/org/repo-1.5/a/b.Q4_0.gguf", of("main", file("a/b.Q4_0.gguf"))),
            ("hf.co/org/repo-1.5@v2/b.GGUF", of("v2", file("b.GGUF"))),
            ("https://huggingface.co/org/repo-1.5/resolve/abc/b.gguf?download=true", of("abc", file("b.gguf"))),
            ("https://huggingface.co/org/repo-1.5/blob/refs%2Fpr%2F1/b.gguf", of("refs/pr/1", file("b.gguf"))),
            ("https://huggingface.co/org/repo-1.5/tree/main", of("main", Choice::Default)),
        ] {
            assert_eq!(name(text), expected, "{text}");
        }
    }

    #[test]
    fn paths_and_registry_names_are_not_repo_names() {
        for text in ["smollm2", "./a/b", "../a/b", "/a/b", "a/b/c", "a/b.gguf", "a/b/c.gguf", "~/a", "a//b", "a/..", ""]
        {
            assert_eq!(name(text), None, "{text}");
        }
        assert_eq!(name("a\\b"), None);
        for text in [
            "https://example.com/a/b",
            "hf.co/a",
            "hf.co/a/b/../c.gguf",
            "hf.co/a/b@../x",
            "hf.co/a/b/readme",
            "a/b:x y",
        ] {
            assert!(name(text).is_some_and(|text| text.starts_with('!')), "{text}");
        }
    }

    #[test]
    fn unsafe_paths_are_detected() {
        for path in ["a.gguf", "a/b.gguf", ".gitattributes", "a b/c"] {
            assert!(is_safe_path(path), "{path}");
        }
        for path in ["", "/a", "a/../b", "..", "a//b", "a\\b", "C:a", "a/", "./a", "a\nb", "a/...", "con ", "a./b"] {
            assert!(!is_safe_path(path), "{path}");
        }
    }
}
