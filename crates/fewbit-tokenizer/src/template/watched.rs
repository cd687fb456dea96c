//! The variables of a template, with a record of lookups that fail.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::Value;
use minijinja::value::{Enumerator, Object};

/// Names that were looked up and not found.
pub(super) type Missed = Arc<Mutex<BTreeSet<String>>>;

/// Variables whose lookups are recorded.
#[derive(Debug)]
struct Watched {
    variables: Value,
    missed: Missed,
}

/// Wraps the mapping `variables` so that its failed lookups are recorded.
pub(super) fn watched(variables: Value, missed: &Missed) -> Value {
    Value::from_object(Watched { variables, missed: Arc::clone(missed) })
}

impl Object for Watched {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let value = self.variables.get_item(key).ok().filter(|value| !value.is_undefined());
        if let (None, Some(name)) = (&value, key.as_str()) {
            self.missed.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        }
        value
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::NonEnumerable
    }
}
