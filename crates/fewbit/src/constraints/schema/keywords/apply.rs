//! Applies each keyword of a schema to a case: what it narrows at once, what is left to do, and where cases branch.

use std::collections::VecDeque;
use std::rc::Rc;

use super::super::super::ConstraintError;
use super::super::cases::{Atom, Case, Scope, Solver, Unevaluated, sorted};
use super::super::exact::Json;
use super::super::formats;
use super::super::places::Id;
use super::{Alternative, Step};

/// A schema that is being applied to a case.
struct Held<'s, 'a> {
    id: Id,
    json: &'a Json,
    fields: &'a [(String, Json)],
    /// Whether `oneOf` is applied elsewhere.
    without_one_of: bool,
    scope: Scope,
    case: &'s mut Case<'a>,
    todo: &'s mut VecDeque<Step<'a>>,
    branches: &'s mut VecDeque<Vec<Alternative<'a>>>,
}

impl Held<'_, '_> {
    /// Whether this is the first of some keywords that are applied together, and so only once.
    fn is_first(&self, keyword: &str, together: [&str; 3]) -> bool {
        let first = self.fields.iter().find(|(name, _)| together.contains(&name.as_str()));
        first.is_some_and(|(name, _)| name == keyword)
    }
}

impl<'a> Solver<'a> {
    /// Applies the schema at a place.
    pub(super) fn hold(
        &mut self,
        id: Id,
        without_one_of: bool,
        scope: Scope,
        case: &mut Case<'a>,
        todo: &mut VecDeque<Step<'a>>,
        branches: &mut VecDeque<Vec<Alternative<'a>>>,
    ) -> Result<(), ConstraintError> {
        let json = self.places.json(id);
        let fields = match json {
            Json::Bool(true) => return Ok(()),
            Json::Bool(false) => {
                case.types = 0;
                return Ok(());
            }
            Json::Object(fields) => fields,
            other => return Err(self.expected(id, "", "a schema: an object or a boolean", other)),
        };
        let mut scope = scope;
        if json.get("unevaluatedProperties").is_some() || json.get("unevaluatedItems").is_some() {
            let mut inner = (*scope).clone();
            inner.insert(id);
            scope = Rc::new(inner);
        }
        let mut at = Held { id, json, fields, without_one_of, scope, case, todo, branches };
        for (keyword, value) in fields {
            // Other keywords are annotations, or of no draft.
            let _ = self.hold_values(&mut at, keyword, value)?
                || self.hold_combined(&mut at, keyword, value)?
                || self.hold_items(&mut at, keyword, value)?
                || self.hold_properties(&mut at, keyword, value)?;
        }
        Ok(())
    }

    /// That a part of this schema applies as well.
    fn step(&self, at: &Held<'_, 'a>, path: &[&str], json: &'a Json) -> Step<'a> {
        Step::Atom(Atom::Is(self.places.child(at.id, path, json)), Rc::clone(&at.scope))
    }

    /// Applies a keyword of any value, of numbers or of strings. Returns whether it is one.
    fn hold_values(
        &mut self,
        at: &mut Held<'_, 'a>,
        keyword: &'a str,
        value: &'a Json,
    ) -> Result<bool, ConstraintError> {
        match keyword {
            "type" => at.case.types &= self.types(at.id, value)?,
            "const" => self.equal(self.places.child(at.id, &[keyword], value), at.case),
            "enum" => self.one_of_values(at.id, value, at.case, at.branches)?,
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                if let Some(bound) = self.bound(at.id, keyword, value, at.json)? {
                    at.todo.push_back(bound);
                }
            }
            "multipleOf" => {
                let number = self.number(at.id, keyword, value)?;
                if number.is_negative || number.is_zero() {
                    return Err(self.refused(at.id, keyword, "expected a number above 0"));
                }
                at.case.numbers_at = Some(at.id);
                if !at.case.numbers.multiples.contains(number) {
                    at.case.numbers.multiples.push(number.clone());
                }
            }
            "minLength" => at.todo.push_back(Step::MinLength(self.count(at.id, keyword, value)?)),
            "maxLength" => at.todo.push_back(Step::MaxLength(self.count(at.id, keyword, value)?)),
            "pattern" => at.todo.push_back(Step::Pattern(self.pattern(at.id, keyword, value)?, true)),
            "format" => {
                let name = self.text(at.id, keyword, value)?;
                if let Some(pattern) = formats::pattern(name) {
                    at.todo.push_back(Step::Pattern(pattern, true));
                } else if at.json.get("type").and_then(Json::as_str) == Some("integer") {
                    at.case.numbers.format = Some(name.to_owned());
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Applies a keyword that combines schemas. Returns whether it is one.
    fn hold_combined(
        &mut self,
        at: &mut Held<'_, 'a>,
        keyword: &'a str,
        value: &'a Json,
    ) -> Result<bool, ConstraintError> {
        match keyword {
            "allOf" => {
                for (i, part) in self.list(at.id, keyword, value)?.iter().enumerate() {
                    at.todo.push_back(self.step(at, &[keyword, &i.to_string()], part));
                }
            }
            "anyOf" => {
                let parts = self.list(at.id, keyword, value)?.iter().enumerate();
                at.branches
                    .push_back(parts.map(|(i, part)| vec![self.step(at, &[keyword, &i.to_string()], part)]).collect());
            }
            "oneOf" if !at.without_one_of => {
                let alternatives = self.one_of(at.id, value, &at.scope)?;
                at.branches.push_back(alternatives);
            }
            "not" => {
                let denied = self.places.child(at.id, &[keyword], value);
                let alternatives = self.denied(denied, "")?;
                at.branches.push_back(alternatives);
            }
            "if" => {
                let then = at.json.get("then").map(|then| self.step(at, &["then"], then));
                let otherwise = at.json.get("else").map(|then| self.step(at, &["else"], then));
                if then.is_none() && otherwise.is_none() {
                    return Ok(true);
                }
                let mut first = vec![self.step(at, &[keyword], value)];
                first.extend(then);
                let mut alternatives = vec![first];
                for mut denied in self.denied(self.places.child(at.id, &[keyword], value), "")? {
                    denied.extend(otherwise.clone());
                    alternatives.push(denied);
                }
                at.branches.push_back(alternatives);
            }
            "$ref" | "$dynamicRef" | "$recursiveRef" => {
                let target = self.reference(at.id, keyword, value)?;
                at.todo.push_back(Step::Atom(Atom::Is(target), Rc::clone(&at.scope)));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Applies a keyword of arrays. Returns whether it is one.
    fn hold_items(
        &mut self,
        at: &mut Held<'_, 'a>,
        keyword: &'a str,
        value: &'a Json,
    ) -> Result<bool, ConstraintError> {
        match keyword {
            "items" | "prefixItems" | "additionalItems" => {
                if at.is_first(keyword, ["items", "prefixItems", "additionalItems"]) {
                    at.case.arrays.push(self.array_part(at.id, at.json, &at.scope)?);
                }
            }
            "minItems" => at.todo.push_back(Step::MinItems(self.count(at.id, keyword, value)?)),
            "maxItems" => at.todo.push_back(Step::MaxItems(self.count(at.id, keyword, value)?)),
            "uniqueItems" => match value {
                Json::Bool(true) => at.case.unique = Some(at.id),
                Json::Bool(false) => {}
                other => return Err(self.expected(at.id, keyword, "a boolean", other)),
            },
            "contains" => {
                let count = |name: &str| at.json.get(name).map(|value| self.count(at.id, name, value)).transpose();
                let (min, max) = (count("minContains")?.unwrap_or(1), count("maxContains")?);
                if min > 0 || max.is_some() {
                    let atom = Atom::Is(self.places.child(at.id, &[keyword], value));
                    at.case.contains.push((atom, min, max, at.id));
                    at.case.min_items = at.case.min_items.max(min);
                }
                if at.json.get("unevaluatedItems").is_some() || !at.scope.is_empty() {
                    let is_closed = |outer: &Id| self.places.json(*outer).get("unevaluatedItems").is_some();
                    if at.scope.iter().any(is_closed) {
                        return Err(self.refused(at.id, keyword, "next to unevaluatedItems it cannot be followed"));
                    }
                }
            }
            "unevaluatedItems" => {
                let atom = Atom::Is(self.places.child(at.id, &[keyword], value));
                at.case.unevaluated_items.push(Unevaluated { at: at.id, atom, scope: Rc::clone(&at.scope) });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Applies a keyword of objects. Returns whether it is one.
    fn hold_properties(
        &mut self,
        at: &mut Held<'_, 'a>,
        keyword: &'a str,
        value: &'a Json,
    ) -> Result<bool, ConstraintError> {
        match keyword {
            "properties" | "patternProperties" | "additionalProperties" => {
                if at.is_first(keyword, ["properties", "patternProperties", "additionalProperties"]) {
                    at.case.objects.push(self.object_part(at.id, at.json, &at.scope)?);
                }
            }
            "propertyNames" => {
                let mut names = std::mem::take(&mut at.case.names);
                names.push(Atom::Is(self.places.child(at.id, &[keyword], value)));
                at.case.names = sorted(names);
            }
            // In draft 3 it was a boolean of a property.
            "required" if !matches!(value, Json::Bool(_)) => {
                for name in self.names(at.id, keyword, value)? {
                    at.case.require(name);
                }
            }
            "minProperties" => at.todo.push_back(Step::MinProperties(self.count(at.id, keyword, value)?, at.id)),
            "maxProperties" => at.todo.push_back(Step::MaxProperties(self.count(at.id, keyword, value)?, at.id)),
            "dependentRequired" | "dependentSchemas" | "dependencies" => {
                for (name, value) in self.object(at.id, keyword, value)? {
                    let mut with = vec![Step::Require(name)];
                    if let Json::Array(_) = value {
                        let path = format!("{keyword}/{name}");
                        with.extend(self.names(at.id, &path, value)?.into_iter().map(Step::Require));
                    } else {
                        with.push(self.step(at, &[keyword, name], value));
                    }
                    at.branches.push_back(vec![vec![Step::Property(name, Atom::Never)], with]);
                }
            }
            "unevaluatedProperties" => {
                let atom = Atom::Is(self.places.child(at.id, &[keyword], value));
                at.case.unevaluated_properties.push(Unevaluated { at: at.id, atom, scope: Rc::clone(&at.scope) });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}
