//! Chat templates for Mistral's own files, which do not contain one: the format follows from the tokenizer's version.

const TEMPLATE: &str = include_str!("mistral.jinja");

/// The template for a tokenizer version (`v1`, `v2`, `v3`, `v7`, possibly with a suffix as in `v7m1`).
pub(super) fn template(version: &str) -> Option<String> {
    let digits = version.strip_prefix('v')?;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let version: u32 = digits.get(..end)?.parse().ok()?;
    matches!(version, 1 | 2 | 3 | 7).then(|| format!("{{%- set version = {version} -%}}\n{TEMPLATE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn template_exists_for_known_versions() {
        for (version, known) in [("v1", true), ("v3", true), ("v7m1", true), ("v13", false), ("v", false), ("3", false)]
        {
            assert_eq!(template(version).is_some(), known, "{version}");
        }
        assert!(template("v7m1").is_some_and(|template| template.starts_with("{%- set version = 7 -%}")));
    }
}
