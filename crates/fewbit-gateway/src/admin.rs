//! What administrators can ask about the usage, the audit log and the prompts of a running server.

use std::collections::BTreeMap;

use fewbit_serve::api::admin::{Approval, AuditCheck, AuditState, PromptDifference, PromptInfo, UsageRow};
use fewbit_serve::{Admin, Backend, BackendError, BackendErrorKind};

use crate::audit::{Outcome, verify};
use crate::error::GatewayError;
use crate::gateway::{Gateway, lock};
use crate::usage::date;

impl<B: Backend> Admin for Gateway<B> {
    fn usage(&self, key: Option<&str>) -> Result<Vec<UsageRow>, BackendError> {
        type Group = (String, String, String, Option<String>, Option<String>);
        let mut rows: BTreeMap<Group, UsageRow> = BTreeMap::new();
        let read = verify(self.store(), None, |entry| {
            let of = entry.key.as_deref().unwrap_or("-");
            if !entry.is_of_answer() || key.is_some_and(|key| key != of) {
                return;
            }
            let (prompt, feature) = (entry.prompt.clone(), entry.feature.clone());
            let group = (date(entry.time_ms), of.to_owned(), entry.model.clone(), prompt, feature);
            let row = rows.entry(group).or_default();
            match entry.outcome {
                Outcome::Refused => row.refused += 1,
                outcome => {
                    row.answers += 1;
                    row.failed += u64::from(outcome == Outcome::Failed);
                    row.elapsed_ms = row.elapsed_ms.saturating_add(entry.elapsed_ms);
                }
            }
            row.prompt_tokens += entry.prompt_tokens;
            row.cached_tokens += entry.cached_tokens;
            row.completion_tokens += entry.completion_tokens;
            row.cost += entry.cost;
        });
        read.map_err(|error| {
            // The error names a file of the server, which is nothing for clients.
            tracing::error!(error = &error as &dyn std::error::Error, "the log cannot be read");
            let message = "the log cannot be read: `fewbit audit verify` on the server says why";
            BackendError::new(BackendErrorKind::Internal, message)
        })?;
        let row = |((day, key, model, prompt, feature), row)| UsageRow { day, key, model, prompt, feature, ..row };
        Ok(rows.into_iter().map(row).collect())
    }

    fn prompts(&self) -> Vec<PromptInfo> {
        self.books().prompts().map(|prompts| prompts.infos()).unwrap_or_default()
    }

    fn difference(&self, from: &str, to: &str) -> Result<PromptDifference, BackendError> {
        let Some(prompts) = self.books().prompts() else {
            return Err(BackendError::invalid("from", "this server has no prompts"));
        };
        let named = |param: &str, id: &str| {
            prompts.version(id).map_err(|error| BackendError { param: Some(param.to_owned()), ..error })
        };
        let (from, to) = (named("from", from)?, named("to", to)?);
        Ok(from.difference(&to))
    }

    fn audit(&self) -> AuditState {
        let (head, is_complete) = lock(&self.books().audit).state();
        AuditState { lines: head.n, hash: head.hash, is_complete }
    }

    fn approvals(&self) -> Vec<Approval> {
        self.tools().map(|tools| tools.approvals().list()).unwrap_or_default()
    }

    fn decide(&self, id: &str, approve: bool, by: Option<&str>) -> bool {
        self.tools().is_some_and(|tools| tools.approvals().decide(id, approve, by))
    }

    fn verify(&self) -> AuditCheck {
        // What was written up to now must be a part of the file.
        let (head, _) = lock(&self.books().audit).state();
        match verify(self.store(), Some(&head), |_| ()) {
            Ok(head) => AuditCheck { is_intact: true, lines: head.n, hash: Some(head.hash), problem: None },
            Err(error) => {
                let problem = match error {
                    GatewayError::Broken { line, what, .. } => format!("line {line} {what}"),
                    GatewayError::OtherHead { line, .. } => {
                        format!("line {line} is missing, or all lines were written anew")
                    }
                    error => {
                        tracing::error!(error = &error as &dyn std::error::Error, "the log cannot be verified");
                        "the log cannot be read".to_owned()
                    }
                };
                AuditCheck { is_intact: false, lines: head.n, hash: None, problem: Some(problem) }
            }
        }
    }
}
