//! The trait [`Admin`]: what a server's administrators can ask about its usage and its log, and decide about calls.

use fewbit_api::admin::{Approval, AuditCheck, AuditState, UsageRow};

use crate::backend::BackendError;

/// Answers questions about usage and the audit log, and has the queue of approvals. The methods may block.
pub trait Admin: Send + Sync + 'static {
    /// The usage by day, key and model; only that of one key, if it is given.
    ///
    /// # Errors
    /// If the usage cannot be read.
    fn usage(&self, key: Option<&str>) -> Result<Vec<UsageRow>, BackendError>;

    /// The state of the audit log.
    fn audit(&self) -> AuditState;

    /// Verifies every line of the audit log.
    fn verify(&self) -> AuditCheck;

    /// The calls of tools that wait for approval, oldest first.
    fn approvals(&self) -> Vec<Approval>;

    /// Decides about a call. `by` is the name of the key of who decides. Returns whether the call was waiting.
    fn decide(&self, id: &str, approve: bool, by: Option<&str>) -> bool;
}
