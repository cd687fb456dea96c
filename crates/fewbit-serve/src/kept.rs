//! Stored answers of the Responses interface, from which later requests can continue.
//!
//! They are kept in memory, each only for the key that requested it. When the memory limit is reached, the oldest are
//! dropped.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use fewbit_api::chat::ChatMessage;
use serde_json::Value;

/// How much memory all stored answers may take together.
const LIMIT_BYTES: usize = 64 << 20;

/// Estimated memory of a message in addition to its text.
const OVERHEAD_BYTES: usize = 512;

/// A stored answer.
#[derive(Debug, Clone)]
pub(crate) struct Answered {
    /// The key that requested it.
    pub(crate) key: Option<Arc<str>>,
    /// The whole conversation including the answer, without instructions. Messages are shared with the earlier answers
    /// that it continues from.
    pub(crate) messages: Vec<Arc<ChatMessage>>,
    /// The answer as it was sent to the client.
    pub(crate) response: Value,
}

/// All stored answers.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    by_id: HashMap<String, (Answered, usize)>,
    /// Oldest first; some of them may have been deleted.
    order: VecDeque<String>,
    n_bytes: usize,
}

impl All {
    fn remove(&mut self, id: &str) -> Option<Answered> {
        let (answered, n_bytes) = self.by_id.remove(id)?;
        self.n_bytes -= n_bytes;
        Some(answered)
    }
}

impl Kept {
    /// Stores an answer. Shared messages are counted once per answer, so the counted size is never too small.
    pub(crate) fn put(&self, id: String, answered: Answered) {
        let messages: usize = answered.messages.iter().map(|message| size(message)).sum();
        let n_bytes = messages + answered.response.to_string().len() * 4 + OVERHEAD_BYTES;
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        while all.n_bytes + n_bytes > LIMIT_BYTES {
            match all.order.pop_front() {
                Some(oldest) => drop(all.remove(&oldest)),
                // The answer alone exceeds the limit.
                None => return,
            }
        }
        all.n_bytes += n_bytes;
        all.order.push_back(id.clone());
        all.by_id.insert(id, (answered, n_bytes));
    }

    /// The stored answer with this id, if this key requested it.
    pub(crate) fn get(&self, id: &str, key: Option<&Arc<str>>) -> Option<Answered> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let (answered, _) = all.by_id.get(id)?;
        (answered.key.as_ref() == key).then(|| answered.clone())
    }

    /// Deletes an answer, if this key requested it. Returns whether one was deleted.
    pub(crate) fn delete(&self, id: &str, key: Option<&Arc<str>>) -> bool {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let is_own = all.by_id.get(id).is_some_and(|(answered, _)| answered.key.as_ref() == key);
        if is_own {
            all.remove(id);
            all.order.retain(|known| known != id);
        }
        is_own
    }
}

fn size(message: &ChatMessage) -> usize {
    let text: usize = message.content.0.iter().flatten().map(|part| part.len() + OVERHEAD_BYTES / 8).sum();
    let calls = message.tool_calls.iter().flatten();
    let calls: usize =
        calls.map(|call| call.function.arguments.len() + call.function.name.len() + OVERHEAD_BYTES).sum();
    text + calls + message.reasoning_content.as_ref().map_or(0, String::len) + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use fewbit_api::chat::Role;

    use super::*;

    #[test]
    fn oldest_are_evicted_and_keys_are_isolated() {
        let kept = Kept::default();
        let key: Arc<str> = "a".into();
        let answered = |n: usize| Answered {
            key: Some(key.clone()),
            messages: vec![Arc::new(ChatMessage::new(Role::User, "x".repeat(n)))],
            response: Value::Null,
        };
        kept.put("1".into(), answered(10));
        assert!(kept.get("1", Some(&key)).is_some());
        assert!(kept.get("1", None).is_none() && kept.get("1", Some(&"b".into())).is_none());
        assert!(!kept.delete("1", Some(&"b".into())));
        kept.put("2".into(), answered(LIMIT_BYTES - 4000));
        assert!(kept.get("1", Some(&key)).is_some() && kept.get("2", Some(&key)).is_some());
        kept.put("3".into(), answered(8000));
        assert!(kept.get("1", Some(&key)).is_none() && kept.get("2", Some(&key)).is_none());
        kept.put("4".into(), answered(LIMIT_BYTES));
        assert!(kept.get("4", Some(&key)).is_none());
        kept.put("5".into(), answered(1));
        assert!(kept.delete("5", Some(&key)) && kept.get("5", Some(&key)).is_none());
        let all = kept.all.lock().unwrap();
        assert_eq!((all.n_bytes, all.order.len(), all.by_id.len()), (0, 0, 0));
    }
}
