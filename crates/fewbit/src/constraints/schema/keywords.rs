//! The keywords: what each requires, the negation of that, and which keywords are annotations.
//!
//! Unknown keywords are annotations, as JSON Schema specifies. The table of keywords in the documentation is
//! `KEYWORDS`; a test compares the two.

mod apply;

use std::collections::VecDeque;
use std::rc::Rc;

use super::super::ConstraintError;
use super::cases::{ArrayPart, Atom, Case, ObjectPart, Scope, Solver, types};
use super::exact::{Json, Number};
use super::formats;
use super::patterns::Pattern;
use super::places::{Id, Lost};

/// How a keyword is treated, for the documentation.
#[cfg(test)]
pub(super) const KEYWORDS: [(&str, &str); 58] = [
    ("type", "enforced; an integer is written without a point"),
    ("const", "enforced, numbers of any size; objects in the order given"),
    ("enum", "enforced, numbers of any size"),
    ("allOf", "enforced"),
    ("anyOf", "enforced"),
    ("oneOf", "enforced; refused where two parts may fit the same value and the second cannot be denied"),
    ("not", "enforced for schemas of the keywords that can be denied, else refused"),
    ("if", "enforced where it can be denied, else refused"),
    ("then", "as `if`"),
    ("else", "as `if`"),
    ("$ref", "enforced within the document, recursive too; other documents are refused"),
    ("$dynamicRef", "as `$ref` where one place has the anchor, else refused"),
    ("$recursiveRef", "refused, but for `#` without `$recursiveAnchor`"),
    ("minimum", "enforced, numbers of any size"),
    ("maximum", "enforced, numbers of any size"),
    ("exclusiveMinimum", "enforced, numbers of any size"),
    ("exclusiveMaximum", "enforced, numbers of any size"),
    (
        "multipleOf",
        "enforced for numbers of up to 4 digits, and for those whose multiples end alike (powers of ten, 0.25, ..); else refused",
    ),
    ("minLength", "enforced"),
    ("maxLength", "enforced"),
    ("pattern", "enforced; lookaround, references to groups, `\\b`, and `^` or `$` inside are refused"),
    ("format", "enforced for the formats below, for others an annotation"),
    ("items", "enforced"),
    ("prefixItems", "enforced"),
    ("additionalItems", "enforced"),
    ("minItems", "enforced"),
    ("maxItems", "enforced"),
    ("uniqueItems", "enforced for up to 8 possible items, or at most one; else `true` is refused"),
    ("contains", "enforced: as many items as `minContains` says satisfy it"),
    ("minContains", "enforced"),
    ("maxContains", "refused, unless it is without effect"),
    ("unevaluatedItems", "enforced; refused next to `contains`"),
    ("properties", "enforced, in the order of the schema"),
    ("patternProperties", "enforced"),
    ("additionalProperties", "enforced; such properties come last"),
    ("propertyNames", "enforced"),
    ("required", "enforced"),
    ("minProperties", "enforced; refused where two properties without given names would be needed"),
    ("maxProperties", "enforced"),
    ("dependentRequired", "enforced"),
    ("dependentSchemas", "enforced"),
    ("dependencies", "enforced"),
    ("unevaluatedProperties", "enforced"),
    ("$defs", "holds schemas"),
    ("definitions", "holds schemas"),
    ("$id", "base of references"),
    ("$anchor", "place of references"),
    ("$dynamicAnchor", "place of references"),
    ("$recursiveAnchor", "see `$recursiveRef`"),
    ("$schema", "annotation"),
    ("$vocabulary", "annotation"),
    ("$comment", "annotation"),
    ("title", "annotation, and so are `description`, `default`, `examples`"),
    ("deprecated", "annotation, and so are `readOnly`, `writeOnly`"),
    ("contentEncoding", "annotation"),
    ("contentMediaType", "annotation"),
    ("contentSchema", "annotation"),
    ("(others)", "annotations"),
];

/// Steps that apply together.
pub(super) type Alternative<'a> = Vec<Step<'a>>;

/// A condition to add to a case.
#[derive(Debug, Clone)]
pub(super) enum Step<'a> {
    Atom(Atom, Scope),
    Types(u8),
    Bound { number: Number, is_excluded: bool, is_lower: bool, at: Id },
    Excluded(&'a Json),
    MinLength(u64),
    MaxLength(u64),
    Pattern(Rc<Pattern>, bool),
    MinItems(u64),
    MaxItems(u64),
    MaxProperties(u64, Id),
    MinProperties(u64, Id),
    Require(&'a str),
    Property(&'a str, Atom),
}

/// An error about a keyword, with the place of its schema.
pub(super) fn refused(places: &super::places::Places<'_>, at: Id, keyword: &str, reason: &str) -> ConstraintError {
    let pointer = places.get(at).pointer;
    let place = if keyword.is_empty() { format!("#{pointer}") } else { format!("#{pointer}/{keyword}") };
    ConstraintError::Invalid { kind: "JSON schema", reason: format!("{place}: {reason}") }
}

/// A value in short form, for errors.
fn shown(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

/// The types that a name stands for.
fn named(name: &str) -> Option<u8> {
    Some(match name {
        "null" => types::NULL,
        "boolean" => types::TRUE | types::FALSE,
        "integer" => types::INTEGER,
        "number" => types::NUMBER,
        "string" => types::STRING,
        "array" => types::ARRAY,
        "object" => types::OBJECT,
        _ => return None,
    })
}

fn type_of(json: &Json) -> u8 {
    match json {
        Json::Null => types::NULL,
        Json::Bool(value) => {
            if *value {
                types::TRUE
            } else {
                types::FALSE
            }
        }
        Json::Number(number) if number.is_integer() => types::INTEGER,
        Json::Number(_) => types::FRACTION,
        Json::String(_) => types::STRING,
        Json::Array(_) => types::ARRAY,
        Json::Object(_) => types::OBJECT,
    }
}

impl<'a> Solver<'a> {
    fn refused(&self, at: Id, keyword: &str, reason: &str) -> ConstraintError {
        refused(&self.places, at, keyword, reason)
    }

    fn expected(&self, at: Id, keyword: &str, expected: &str, found: &Json) -> ConstraintError {
        self.refused(at, keyword, &format!("expected {expected}, found {}", shown(found)))
    }

    /// Applies one step.
    pub(super) fn apply(
        &mut self,
        step: Step<'a>,
        case: &mut Case<'a>,
        todo: &mut VecDeque<Step<'a>>,
        branches: &mut VecDeque<Vec<Alternative<'a>>>,
    ) -> Result<(), ConstraintError> {
        match step {
            Step::Types(found) => case.types &= found,
            Step::Bound { number, is_excluded, is_lower, at } => {
                case.numbers_at = Some(at);
                match is_lower {
                    true => case.numbers.at_least(number, is_excluded),
                    false => case.numbers.at_most(number, is_excluded),
                }
            }
            Step::Excluded(Json::Number(number)) => case.numbers.excluded.push(number.clone()),
            Step::Excluded(Json::String(text)) => case.strings.excluded.push(text.clone()),
            Step::Excluded(json) => case.types &= !type_of(json),
            Step::MinLength(n) => case.strings.min = case.strings.min.max(n),
            Step::MaxLength(n) => case.strings.max = Some(case.strings.max.map_or(n, |max| max.min(n))),
            Step::Pattern(pattern, is_found) => {
                if !case.strings.patterns.contains(&(Rc::clone(&pattern), is_found)) {
                    case.strings.patterns.push((pattern, is_found));
                }
            }
            Step::MinItems(n) => case.min_items = case.min_items.max(n),
            Step::MaxItems(n) => case.max_items = Some(case.max_items.map_or(n, |max| max.min(n))),
            Step::MinProperties(n, at) => {
                case.min_properties = case.min_properties.max(n);
                case.counted_at = Some(at);
            }
            Step::MaxProperties(n, at) => {
                case.max_properties = Some(case.max_properties.map_or(n, |max| max.min(n)));
                case.counted_at = Some(at);
            }
            Step::Require(name) => case.require(name),
            Step::Property(name, atom) => case.objects.push(ObjectPart {
                properties: vec![(name, atom)],
                patterns: Vec::new(),
                additional: None,
                scope: Scope::default(),
            }),
            Step::Atom(Atom::Never, _) => case.types = 0,
            Step::Atom(Atom::Equal(id), scope) => {
                if case.is_new(Atom::Equal(id), &scope) {
                    self.equal(id, case);
                }
            }
            Step::Atom(Atom::Not(id), scope) => {
                if case.is_new(Atom::Not(id), &scope) {
                    branches.push_back(self.denied(id, "not")?);
                }
            }
            Step::Atom(atom @ (Atom::Is(id) | Atom::Beside(id)), scope) => {
                if case.is_new(atom, &scope) {
                    self.hold(id, matches!(atom, Atom::Beside(_)), scope, case, todo, branches)?;
                }
            }
        }
        Ok(())
    }

    /// Narrows the case to this value.
    fn equal(&self, id: Id, case: &mut Case<'a>) {
        let json = self.places.json(id);
        case.types &= type_of(json);
        match json {
            Json::Number(number) => {
                case.numbers_at = Some(id);
                let known = case.numbers.values.take();
                let values = known.map_or_else(
                    || vec![number.clone()],
                    |values| values.into_iter().filter(|value| value == number).collect(),
                );
                case.numbers.values = Some(values);
            }
            Json::String(text) => {
                let known = case.strings.values.take();
                let values = known.map_or_else(
                    || vec![text.clone()],
                    |values| values.into_iter().filter(|value| value == text).collect(),
                );
                case.strings.values = Some(values);
            }
            Json::Array(items) => {
                case.min_items = case.min_items.max(items.len() as u64);
                case.max_items = Some(case.max_items.unwrap_or(u64::MAX).min(items.len() as u64));
                let prefix = items.iter().enumerate();
                let prefix = prefix.map(|(i, item)| Atom::Equal(self.places.child(id, &[&i.to_string()], item)));
                case.arrays.push(ArrayPart {
                    prefix: prefix.collect(),
                    rest: Some(Atom::Never),
                    scope: Scope::default(),
                });
            }
            Json::Object(fields) => {
                let mut properties = Vec::new();
                for (name, value) in fields {
                    properties.push((name.as_str(), Atom::Equal(self.places.child(id, &[name], value))));
                    case.require(name);
                }
                case.objects.push(ObjectPart {
                    properties,
                    patterns: Vec::new(),
                    additional: Some(Atom::Never),
                    scope: Scope::default(),
                });
            }
            _ => {}
        }
    }

    /// A list of values has one branch for all that are neither arrays nor objects, and one for each of the others.
    fn one_of_values(
        &self,
        id: Id,
        value: &'a Json,
        case: &mut Case<'a>,
        branches: &mut VecDeque<Vec<Alternative<'a>>>,
    ) -> Result<(), ConstraintError> {
        let Json::Array(values) = value else { return Err(self.expected(id, "enum", "a list of values", value)) };
        let is_large = |json: &Json| matches!(json, Json::Array(_) | Json::Object(_));
        let mut found = 0;
        let (mut numbers, mut strings) = (Vec::new(), Vec::new());
        for value in values {
            match value {
                Json::Number(number) => numbers.push(number.clone()),
                Json::String(text) => strings.push(text.clone()),
                _ => {}
            }
            found |= type_of(value);
        }
        // These hold in every branch: of the types they say something of, no others are there.
        if case.types & types::NUMBER != 0 && !numbers.is_empty() {
            let known = case.numbers.values.take();
            case.numbers_at = Some(id);
            case.numbers.values = Some(
                known.map_or(numbers.clone(), |known| known.into_iter().filter(|n| numbers.contains(n)).collect()),
            );
        }
        if case.types & types::STRING != 0 && !strings.is_empty() {
            let known = case.strings.values.take();
            case.strings.values = Some(
                known.map_or(strings.clone(), |known| known.into_iter().filter(|s| strings.contains(s)).collect()),
            );
        }
        case.types &= found;
        if found & (types::ARRAY | types::OBJECT) != 0 {
            let mut alternatives = vec![vec![Step::Types(!(types::ARRAY | types::OBJECT))]];
            for (i, value) in values.iter().enumerate().filter(|(_, value)| is_large(value)) {
                let atom = Atom::Equal(self.places.child(id, &["enum", &i.to_string()], value));
                alternatives.push(vec![Step::Atom(atom, Scope::default())]);
            }
            branches.push_back(alternatives);
        }
        Ok(())
    }

    /// Exactly one part holds. Parts that are not proven to exclude each other are negated.
    fn one_of(&mut self, id: Id, value: &'a Json, scope: &Scope) -> Result<Vec<Alternative<'a>>, ConstraintError> {
        let parts = self.list(id, "oneOf", value)?;
        let ids: Vec<Id> =
            parts.iter().enumerate().map(|(i, part)| self.places.child(id, &["oneOf", &i.to_string()], part)).collect();
        let mut alternatives: Vec<Alternative<'a>> =
            ids.iter().map(|part| vec![Step::Atom(Atom::Is(*part), Rc::clone(scope))]).collect();
        if self.any_of_one {
            return Ok(alternatives);
        }
        for i in 1..ids.len() {
            for j in 0..i {
                let both = super::cases::sorted(vec![Atom::Beside(id), Atom::Is(ids[i]), Atom::Is(ids[j])]);
                if self.is_empty(&both)? {
                    continue;
                }
                for (of, other) in [(i, j), (j, i)] {
                    // Whether it can be negated is known now; the ways to do so are found when it is its turn.
                    if self.denied(ids[other], "").is_err() {
                        let reason = format!(
                            "parts {j} and {i} may both fit the same value; give them a property with different \
                             constants and require it in both, or use anyOf"
                        );
                        return Err(self.refused(id, "oneOf", &reason));
                    }
                    alternatives[of].push(Step::Atom(Atom::Not(ids[other]), Rc::clone(scope)));
                }
            }
        }
        Ok(alternatives)
    }

    /// The ways in which the schema at a place can fail to hold.
    fn denied(&mut self, id: Id, at: &str) -> Result<Vec<Alternative<'a>>, ConstraintError> {
        let json = self.places.json(id);
        let none = Scope::default;
        let fields = match json {
            Json::Bool(true) => return Ok(Vec::new()),
            Json::Bool(false) => return Ok(vec![Vec::new()]),
            Json::Object(fields) => fields,
            other => return Err(self.expected(id, at, "a schema: an object or a boolean", other)),
        };
        let not = |solver: &Self, path: &[&str], json: &'a Json| Atom::Not(solver.places.child(id, path, json));
        let mut ways: Vec<Alternative<'a>> = Vec::new();
        for (keyword, value) in fields {
            let keyword = keyword.as_str();
            let unable = |solver: &Self| {
                Err(solver.refused(id, keyword, "its denial cannot be followed (`not`, `if` or `oneOf` needs it)"))
            };
            match keyword {
                "type" => ways.push(vec![Step::Types(!self.types(id, value)?)]),
                "const" | "enum" => {
                    let single = std::slice::from_ref(value);
                    let values = match value {
                        Json::Array(values) if keyword == "enum" => values.as_slice(),
                        other if keyword == "enum" => {
                            return Err(self.expected(id, keyword, "a list of values", other));
                        }
                        _ => single,
                    };
                    if values.iter().any(|value| matches!(value, Json::Array(_) | Json::Object(_))) {
                        return unable(self);
                    }
                    ways.push(values.iter().map(Step::Excluded).collect());
                }
                "allOf" => {
                    for (i, part) in self.list(id, keyword, value)?.iter().enumerate() {
                        ways.push(vec![Step::Atom(not(self, &[keyword, &i.to_string()], part), none())]);
                    }
                }
                "anyOf" => {
                    let parts = self.list(id, keyword, value)?.iter().enumerate();
                    ways.push(
                        parts
                            .map(|(i, part)| Step::Atom(not(self, &[keyword, &i.to_string()], part), none()))
                            .collect(),
                    );
                }
                "not" => ways.push(vec![Step::Atom(Atom::Is(self.places.child(id, &[keyword], value)), none())]),
                "$ref" => ways.push(vec![Step::Atom(Atom::Not(self.reference(id, keyword, value)?), none())]),
                "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                    if let Some(Step::Bound { number, is_excluded, is_lower, at }) =
                        self.bound(id, keyword, value, json)?
                    {
                        let bound = Step::Bound { number, is_excluded: !is_excluded, is_lower: !is_lower, at };
                        ways.push(vec![Step::Types(types::NUMBER), bound]);
                    }
                }
                "minLength" => match self.count(id, keyword, value)? {
                    0 => {}
                    n => ways.push(vec![Step::Types(types::STRING), Step::MaxLength(n - 1)]),
                },
                "maxLength" => {
                    let n = self.count(id, keyword, value)?.saturating_add(1);
                    ways.push(vec![Step::Types(types::STRING), Step::MinLength(n)]);
                }
                "pattern" => {
                    let pattern = self.pattern(id, keyword, value)?;
                    ways.push(vec![Step::Types(types::STRING), Step::Pattern(pattern, false)]);
                }
                "minItems" => match self.count(id, keyword, value)? {
                    0 => {}
                    n => ways.push(vec![Step::Types(types::ARRAY), Step::MaxItems(n - 1)]),
                },
                "maxItems" => {
                    let n = self.count(id, keyword, value)?.saturating_add(1);
                    ways.push(vec![Step::Types(types::ARRAY), Step::MinItems(n)]);
                }
                "minProperties" => match self.count(id, keyword, value)? {
                    0 => {}
                    n => ways.push(vec![Step::Types(types::OBJECT), Step::MaxProperties(n - 1, id)]),
                },
                "maxProperties" => {
                    let n = self.count(id, keyword, value)?.saturating_add(1);
                    ways.push(vec![Step::Types(types::OBJECT), Step::MinProperties(n, id)]);
                }
                "required" => {
                    for name in self.names(id, keyword, value)? {
                        ways.push(vec![Step::Types(types::OBJECT), Step::Property(name, Atom::Never)]);
                    }
                }
                "properties" => {
                    for (name, value) in self.object(id, keyword, value)? {
                        let denied = not(self, &[keyword, name], value);
                        ways.push(vec![Step::Types(types::OBJECT), Step::Require(name), Step::Property(name, denied)]);
                    }
                }
                // A format that is enforced more strictly than specified cannot be negated; an annotation negates
                // nothing.
                "format" if formats::pattern(self.text(id, keyword, value)?).is_some() => return unable(self),
                "uniqueItems" if *value == Json::Bool(false) => {}
                "multipleOf"
                | "oneOf"
                | "if"
                | "items"
                | "prefixItems"
                | "additionalItems"
                | "contains"
                | "uniqueItems"
                | "unevaluatedItems"
                | "patternProperties"
                | "additionalProperties"
                | "propertyNames"
                | "dependentRequired"
                | "dependentSchemas"
                | "dependencies"
                | "unevaluatedProperties"
                | "$dynamicRef"
                | "$recursiveRef" => return unable(self),
                _ => {}
            }
        }
        Ok(ways)
    }

    fn types(&self, id: Id, value: &Json) -> Result<u8, ConstraintError> {
        let one = |value: &Json| {
            let name = value.as_str().and_then(named);
            name.ok_or_else(|| match value.as_str() {
                Some(name) => self.refused(id, "type", &format!("{name:?} is no type of JSON")),
                None => self.expected(id, "type", "the name of a type", value),
            })
        };
        match value {
            Json::Array(several) => several.iter().try_fold(0, |found, value| Ok(found | one(value)?)),
            value => one(value),
        }
    }

    /// A bound. In draft 4, `exclusive…` may be a boolean next to it.
    fn bound(&self, id: Id, keyword: &str, value: &'a Json, json: &Json) -> Result<Option<Step<'a>>, ConstraintError> {
        let is_lower = keyword.ends_with("inimum");
        if matches!(value, Json::Bool(_)) && keyword.starts_with("exclusive") {
            return Ok(None);
        }
        let number = self.number(id, keyword, value)?.clone();
        let exclusive = if is_lower { "exclusiveMinimum" } else { "exclusiveMaximum" };
        let is_excluded = keyword == exclusive || json.get(exclusive) == Some(&Json::Bool(true));
        Ok(Some(Step::Bound { number, is_excluded, is_lower, at: id }))
    }

    fn reference(&self, id: Id, keyword: &str, value: &'a Json) -> Result<Id, ConstraintError> {
        let reference = self.text(id, keyword, value)?;
        if (keyword == "$dynamicRef" && !self.places.is_static(reference))
            || (keyword == "$recursiveRef" && self.places.has_recursive_anchor())
        {
            return Err(self.refused(id, keyword, "what it refers to depends on where it is used from; use $ref"));
        }
        self.places.target(id, reference).map_err(|lost| {
            let reason = match lost {
                Lost::Outside => "refers to another document; put what it refers to into $defs",
                Lost::Nothing => "refers to nothing in the schema",
            };
            self.refused(id, keyword, &format!("{reference:?} {reason}"))
        })
    }

    fn array_part(&self, id: Id, json: &'a Json, scope: &Scope) -> Result<ArrayPart, ConstraintError> {
        let is = |path: &[&str], json: &'a Json| Atom::Is(self.places.child(id, path, json));
        // Before 2020, a list in `items` was what `prefixItems` is now, and `additionalItems` what `items` is.
        let (name, rest) = match json.get("items") {
            Some(Json::Array(_)) => ("items", "additionalItems"),
            _ => ("prefixItems", "items"),
        };
        let mut prefix = Vec::new();
        if let Some(list) = json.get(name) {
            for (i, item) in self.list(id, name, list)?.iter().enumerate() {
                prefix.push(is(&[name, &i.to_string()], item));
            }
        }
        let rest = json.get(rest).map(|value| is(&[rest], value));
        Ok(ArrayPart { prefix, rest, scope: Rc::clone(scope) })
    }

    fn object_part(&mut self, id: Id, json: &'a Json, scope: &Scope) -> Result<ObjectPart<'a>, ConstraintError> {
        let mut properties = Vec::new();
        if let Some(value) = json.get("properties") {
            for (name, value) in self.object(id, "properties", value)? {
                properties.push((name.as_str(), Atom::Is(self.places.child(id, &["properties", name], value))));
            }
        }
        let mut patterns = Vec::new();
        if let Some(value) = json.get("patternProperties") {
            for (name, value) in self.object(id, "patternProperties", value)? {
                let atom = Atom::Is(self.places.child(id, &["patternProperties", name], value));
                patterns.push((self.compiled(id, "patternProperties", name)?, atom));
            }
        }
        let additional = json.get("additionalProperties");
        let additional = additional.map(|value| Atom::Is(self.places.child(id, &["additionalProperties"], value)));
        Ok(ObjectPart { properties, patterns, additional, scope: Rc::clone(scope) })
    }

    fn pattern(&mut self, id: Id, keyword: &str, value: &'a Json) -> Result<Rc<Pattern>, ConstraintError> {
        let source = self.text(id, keyword, value)?;
        self.compiled(id, keyword, source)
    }

    fn compiled(&mut self, id: Id, keyword: &str, source: &'a str) -> Result<Rc<Pattern>, ConstraintError> {
        if let Some(known) = self.patterns.get(source) {
            return Ok(Rc::clone(known));
        }
        let pattern = Pattern::new(source);
        let pattern =
            Rc::new(pattern.map_err(|reason| self.refused(id, keyword, &format!("the pattern {source:?}: {reason}")))?);
        self.patterns.insert(source, Rc::clone(&pattern));
        Ok(pattern)
    }

    fn list(&self, id: Id, keyword: &str, value: &'a Json) -> Result<&'a [Json], ConstraintError> {
        match value {
            Json::Array(items) => Ok(items),
            other => Err(self.expected(id, keyword, "a list of schemas", other)),
        }
    }

    fn object(&self, id: Id, keyword: &str, value: &'a Json) -> Result<&'a [(String, Json)], ConstraintError> {
        match value {
            Json::Object(fields) => Ok(fields),
            other => Err(self.expected(id, keyword, "an object", other)),
        }
    }

    fn names(&self, id: Id, keyword: &str, value: &'a Json) -> Result<Vec<&'a str>, ConstraintError> {
        let found = match value {
            Json::Array(items) => items.iter().map(Json::as_str).collect(),
            _ => None,
        };
        found.ok_or_else(|| self.expected(id, keyword, "a list of names", value))
    }

    fn text(&self, id: Id, keyword: &str, value: &'a Json) -> Result<&'a str, ConstraintError> {
        value.as_str().ok_or_else(|| self.expected(id, keyword, "a string", value))
    }

    fn number<'b>(&self, id: Id, keyword: &str, value: &'b Json) -> Result<&'b Number, ConstraintError> {
        match value {
            Json::Number(number) => Ok(number),
            other => Err(self.expected(id, keyword, "a number", other)),
        }
    }

    fn count(&self, id: Id, keyword: &str, value: &Json) -> Result<u64, ConstraintError> {
        let number = self.number(id, keyword, value)?;
        number
            .as_count()
            .ok_or_else(|| self.refused(id, keyword, "expected a whole number, 0 or more, of 18 digits at most"))
    }
}
