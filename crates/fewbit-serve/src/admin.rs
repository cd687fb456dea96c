//! The trait [`Admin`]: what a server's administrators can ask about its usage, its log and its prompts, and decide about
//! calls.

use fewbit_api::admin::{Approval, AuditCheck, AuditState, PromptDifference, PromptInfo, UsageRow};

use crate::backend::BackendError;

/// Answers questions about usage, the audit log and prompts, and has the queue of approvals. The methods may block.
pub trait Admin: Send + Sync + 'static {
    /// The usage by day, key, model, prompt and feature; only that of one key, if it is given.
    ///
    /// # Errors
    /// If the usage cannot be read.
    fn usage(&self, key: Option<&str>) -> Result<Vec<UsageRow>, BackendError>;

    /// The state of the audit log.
    fn audit(&self) -> AuditState;

    /// Verifies every line of the audit log.
    fn verify(&self) -> AuditCheck;

    /// The prompts under version.
    fn prompts(&self) -> Vec<PromptInfo>;

    /// How one version of a prompt differs from another. Both are named as in requests.
    ///
    /// # Errors
    /// If there is no such version.
    fn difference(&self, from: &str, to: &str) -> Result<PromptDifference, BackendError>;

    /// The calls of tools that wait for approval, oldest first.
    fn approvals(&self) -> Vec<Approval>;

    /// Decides about a call. `by` is the name of the key of who decides. Returns whether the call was waiting.
    fn decide(&self, id: &str, approve: bool, by: Option<&str>) -> bool;
}
