//! JSON schemas, compiled to grammars.
//!
//! ```text
//! exact.rs     the schema as JSON, with numbers of any size
//! places.rs    where schemas stand in it, what references refer to
//! keywords.rs  the table of keywords: what each says, and its denial
//! cases.rs     a conjunction of schemas as cases without alternatives
//! numbers.rs   strings.rs  patterns.rs  formats.rs: scalars, and the regular expressions of their texts
//! graph.rs     the graph of all conjunctions that occur, and which of them have values
//! lark.rs      the graph as a grammar
//! ```
//!
//! The generated text always satisfies the schema. A keyword that cannot be enforced is an error with its name and its
//! place. Not every text that satisfies the schema can be generated: properties come in the order of the schema,
//! numbers have a bounded number of digits, characters have one spelling. `docs/constraints.md` has the whole list.

mod cases;
mod exact;
mod formats;
mod graph;
mod keywords;
mod lark;
mod numbers;
mod patterns;
mod places;
mod strings;
#[cfg(test)]
mod tests;

pub(crate) use exact::Json;

use super::{ConstraintError, WHITE_SPACE};

/// A Lark grammar of the JSON that satisfies a schema, with its white space.
///
/// Inside another grammar it is written as `%lark { … }`.
pub(crate) fn grammar(schema: &Json, compact: bool, any_of_one: bool) -> Result<String, ConstraintError> {
    let mut solver = cases::Solver::new(schema, any_of_one);
    let graph = graph::Graph::new(&mut solver)?;
    if !graph.has_values[0] {
        let reason = "its parts contradict each other".to_owned();
        return Err(ConstraintError::Unsatisfiable { kind: "JSON schema", reason });
    }
    let rules = lark::Lark::write(&solver.places, &graph)?;
    let space = if compact { String::new() } else { format!("%ignore /{WHITE_SPACE}/\n") };
    Ok(format!("%llguidance {{\"ignore_once\": true}}\n{space}{rules}"))
}
