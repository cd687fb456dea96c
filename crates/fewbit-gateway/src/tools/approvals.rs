//! The queue of calls that wait for the approval of a person.
//!
//! A call is run only if it is approved in time. Everything else denies it: a decision against it, no decision in time, a
//! full queue, the end of the request or of the server. The arguments of a call are in memory only, for the people who decide.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fewbit_serve::Caller;
use fewbit_serve::api::admin::Approval;
use serde_json::{Map, Value};
use tokio::sync::oneshot;

use crate::audit::Permission;
use crate::now_ms;

/// The most calls that can wait at a time.
const MAX_WAITING: usize = 1000;

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Approvals {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    shown: Approval,
    decide: oneshot::Sender<(bool, Option<String>)>,
}

/// A decision: whether the call may be run, and who decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) permission: Permission,
    pub(crate) by: Option<String>,
}

impl Approvals {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the decision about a call.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        caller: &Caller,
        model: &str,
        tool: &str,
        arguments: &Map<String, Value>,
        timeout: Duration,
    ) -> Decision {
        let (place, decided) = {
            let mut queue = self.queue();
            if queue.waiting.len() >= MAX_WAITING {
                return Decision { permission: Permission::Expired, by: None };
            }
            let place = queue.next;
            queue.next += 1;
            let (decide, decided) = oneshot::channel();
            let now = now_ms();
            let shown = Approval {
                id: format!("call_{place}"),
                request: caller.request.to_string(),
                key: caller.key.as_deref().map(str::to_owned),
                model: model.to_owned(),
                tool: tool.to_owned(),
                arguments: arguments.clone(),
                asked_ms: now,
                expires_ms: now.saturating_add(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            };
            queue.waiting.insert(place, Waiting { shown, decide });
            (place, decided)
        };
        // Leaves the queue whatever happens, also if nobody waits for the call any more.
        let _place = Place { approvals: self, place };
        match tokio::time::timeout(timeout, decided).await {
            Ok(Ok((true, by))) => Decision { permission: Permission::Approved, by },
            Ok(Ok((false, by))) => Decision { permission: Permission::Denied, by },
            Ok(Err(_)) | Err(_) => Decision { permission: Permission::Expired, by: None },
        }
    }

    /// The calls that wait, oldest first.
    pub(crate) fn list(&self) -> Vec<Approval> {
        self.queue().waiting.values().map(|waiting| waiting.shown.clone()).collect()
    }

    /// Decides about a call. Returns whether it was waiting.
    pub(crate) fn decide(&self, id: &str, approve: bool, by: Option<&str>) -> bool {
        let mut queue = self.queue();
        let place = queue.waiting.iter().find(|(_, waiting)| waiting.shown.id == id).map(|(place, _)| *place);
        let waiting = place.and_then(|place| queue.waiting.remove(&place));
        waiting.is_some_and(|waiting| waiting.decide.send((approve, by.map(str::to_owned))).is_ok())
    }
}

struct Place<'a> {
    approvals: &'a Approvals,
    place: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.approvals.queue().waiting.remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_an_approval_in_time_permits() {
        let all = Arc::new(Approvals::default());
        let ask = |timeout| {
            let all = Arc::clone(&all);
            tokio::spawn(async move {
                all.ask(&Caller::default(), "m", "files__write", &Map::new(), Duration::from_millis(timeout)).await
            })
        };
        let waiting = async || {
            while all.list().is_empty() {
                tokio::task::yield_now().await;
            }
            all.list().remove(0)
        };
        for (approve, permission) in [(true, Permission::Approved), (false, Permission::Denied)] {
            let asked = ask(60_000);
            let shown = waiting().await;
            assert_eq!((shown.tool.as_str(), shown.expires_ms - shown.asked_ms), ("files__write", 60_000));
            assert!(!all.decide("call_99", true, None));
            assert!(all.decide(&shown.id, approve, Some("ops")));
            assert!(!all.decide(&shown.id, true, Some("ops")), "it can be decided once");
            assert_eq!(asked.await.unwrap(), Decision { permission, by: Some("ops".into()) });
            assert!(all.list().is_empty());
        }
        assert_eq!(ask(5).await.unwrap().permission, Permission::Expired);
        assert!(all.list().is_empty());
        // The end of a request takes its calls out of the queue.
        let asked = ask(60_000);
        let shown = waiting().await;
        asked.abort();
        assert!(asked.await.is_err() && all.list().is_empty());
        assert!(!all.decide(&shown.id, true, None));
    }
}
