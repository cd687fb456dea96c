//! Prompts for people: what there is of them, and how two versions differ.

use fewbit_serve::api::admin::{
    CanaryInfo, DifferenceLine, PromptDifference, PromptInfo, PromptMessage, PromptVariable, PromptVersionInfo,
};
use fewbit_serve::api::chat::Role;

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

/// The lines of two texts: `" "` in both, `"-"` only in the first, `"+"` only in the second, by their longest common
/// subsequence.
fn lines_of_both<'a>(before: &'a [String], after: &'a [String]) -> Vec<(&'static str, &'a str)> {
    let (n, m) = (before.len(), after.len());
    // Prompts are short. For very long ones, memory matters more than the shortest answer.
    if n.saturating_mul(m) > 4_000_000 {
        let removed = before.iter().map(|line| ("-", line.as_str()));
        return removed.chain(after.iter().map(|line| ("+", line.as_str()))).collect();
    }
    let mut longest = vec![vec![0_u32; m + 1]; n + 1];
    for i in (0..n).rev() {
        for j in (0..m).rev() {
            longest[i][j] = if before[i] == after[j] {
                longest[i + 1][j + 1] + 1
            } else {
                longest[i + 1][j].max(longest[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut all) = (0, 0, Vec::with_capacity(n + m));
    while i < n || j < m {
        if i < n && j < m && before[i] == after[j] {
            all.push((" ", before[i].as_str()));
            (i, j) = (i + 1, j + 1);
        } else if j == m || (i < n && longest[i + 1][j] >= longest[i][j + 1]) {
            all.push(("-", before[i].as_str()));
            i += 1;
        } else {
            all.push(("+", after[j].as_str()));
            j += 1;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_the_shortest() {
        let lines = |text: &str| text.chars().map(|c| c.to_string()).collect::<Vec<_>>();
        let (before, after) = (lines("abcdef"), lines("axcdfg"));
        let shown: String = lines_of_both(&before, &after).iter().map(|(sign, text)| format!("{sign}{text}")).collect();
        assert_eq!(shown, " a-b+x c d-e f+g");
        assert!(lines_of_both(&[], &[]).is_empty());
    }
}
