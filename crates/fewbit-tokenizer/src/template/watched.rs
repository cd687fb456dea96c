//! The variables of a template, with a note of those that it looks for and does not find.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::Value;
use minijinja::value::{Enumerator, Object};

/// Names that were looked for and not found.
pub(super) type Missed = Arc<Mutex<BTreeSet<String>>>;

/// Variables that are watched.
#[derive(Debug)]
struct Watched {
    variables: Value,
    missed: Missed,
}

/// `variables`, a mapping, under watch.
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
