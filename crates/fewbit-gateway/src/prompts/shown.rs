//! Prompts for people: what there is of them, and how two versions differ.

use std::time::{Duration, Instant};

use fewbit_serve::api::admin::{
    CanaryInfo, DifferenceLine, PromptDifference, PromptInfo, PromptMessage, PromptVariable, PromptVersionInfo,
};
use fewbit_serve::api::chat::Role;
use similar::{Algorithm, ChangeTag};

use super::{Kind, PromptState, PromptStore, PromptVersion};

/// The name of the role of a prompt's message.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::Assistant => "assistant",
        _ => "user",
    }
}

impl PromptStore {
    /// All prompts with their versions, by name.
    pub fn infos(&self) -> Vec<PromptInfo> {
        let info = |PromptState { name, versions, promoted, canary }| PromptInfo {
            problem: promoted.and_then(|_| self.version(&name).err()).map(|error| error.message),
            name,
            promoted,
            canary: canary.map(|(version, percent, by_key)| CanaryInfo { version, percent, by_key }),
            versions: versions.iter().map(|version| version.info()).collect(),
        };
        self.states().into_iter().map(info).collect()
    }
}

impl PromptVersion {
    fn info(&self) -> PromptVersionInfo {
        let variable = |(name, variable): (&String, &super::Variable)| PromptVariable {
            name: name.clone(),
            kind: match variable.kind {
                Kind::Text => "text",
                Kind::Number => "number",
                Kind::Boolean => "boolean",
                Kind::Json => "json",
            },
            description: variable.description.clone(),
            default: variable.default.clone(),
        };
        let message =
            |(role, content): &(Role, String)| PromptMessage { role: role_name(*role), content: content.clone() };
        PromptVersionInfo {
            id: self.id(),
            version: self.version,
            sha256: self.sha256.clone(),
            description: self.description.clone(),
            variables: self.variables.iter().map(variable).collect(),
            messages: self.messages.iter().map(message).collect(),
        }
    }

    /// How another version differs from this one: their variables, then their messages, line by line.
    pub fn difference(&self, other: &Self) -> PromptDifference {
        let (before, after) = (self.lines(), other.lines());
        let before: Vec<_> = before.iter().map(String::as_str).collect();
        let after: Vec<_> = after.iter().map(String::as_str).collect();
        let lines = lines_of_both(&before, &after);
        let line = |(change, line): (&'static str, &str)| DifferenceLine { change, line: line.to_owned() };
        PromptDifference { from: self.id(), to: other.id(), lines: lines.into_iter().map(line).collect() }
    }

    fn lines(&self) -> Vec<String> {
        let variables = self
            .variables()
            .map(|(name, is_required)| format!("variable {name}{}", if is_required { "" } else { " (optional)" }));
        let message = |(role, text): &(Role, String)| {
            let head = format!("--- {}", role_name(*role));
            std::iter::once(head).chain(text.lines().map(str::to_owned)).collect::<Vec<_>>()
        };
        variables.chain(self.messages.iter().flat_map(message)).collect()
    }
}

/// A limit of the time that finding the shortest difference may take. Prompts can have megabytes.
const TIME: Duration = Duration::from_millis(500);

/// The lines of two texts: `" "` in both, `"-"` only in the first, `"+"` only in the second.
fn lines_of_both<'a>(before: &[&'a str], after: &[&'a str]) -> Vec<(&'static str, &'a str)> {
    let changes = similar::capture_diff_slices_deadline(Algorithm::Myers, before, after, Some(Instant::now() + TIME));
    let sign = |tag| match tag {
        ChangeTag::Equal => " ",
        ChangeTag::Delete => "-",
        ChangeTag::Insert => "+",
    };
    let changes = changes.iter().flat_map(|change| change.iter_changes(before, after));
    changes.map(|change| (sign(change.tag()), change.value())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_the_shortest() {
        let (before, after) = (["a", "b", "c", "d", "e", "f"], ["a", "x", "c", "d", "f", "g"]);
        let shown: String = lines_of_both(&before, &after).iter().map(|(sign, text)| format!("{sign}{text}")).collect();
        assert_eq!(shown, " a-b+x c d-e f+g");
        assert!(lines_of_both(&[], &[]).is_empty());
    }
}
