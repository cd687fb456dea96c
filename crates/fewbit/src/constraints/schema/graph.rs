//! A schema as a graph: the shapes of the values of every conjunction that occurs.
//!
//! The nodes are conjunctions, so a recursive schema is a graph with cycles. Which nodes have any values is a least
//! fixed point over the graph; alternatives, optional properties and items without values are left out.

use std::collections::HashMap;

use super::super::ConstraintError;
use super::cases::{Atom, Case, Conjunction, Solver, sorted, types};
use super::exact::Json;
use super::keywords::refused;
use super::numbers::{Numbers, Written};
use super::places::Id;
use super::strings::{self, Strings, quoted};

/// The most nodes of a schema.
const MAX_NODES: usize = 20_000;

/// The most patterns for names that may apply to one object.
const MAX_PATTERNS: usize = 6;

/// The number of a node.
pub(super) type Node = usize;

/// Regular expressions, each of which a text must match, or must not match.
pub(super) type Regexes = Vec<(String, bool)>;

#[derive(Debug)]
pub(super) enum Shape {
    /// The values of another node.
    Same(Node),
    /// Texts.
    Texts(Vec<String>),
    Regex(Regexes),
    /// A schema for the engine's own compiler.
    Multiple(String),
    Array(Array),
    Object(Object),
}

#[derive(Debug)]
pub(super) struct Array {
    pub(super) prefix: Vec<Node>,
    pub(super) rest: Node,
    pub(super) min: u64,
    pub(super) max: Option<u64>,
    /// The place that requires all items to differ.
    pub(super) unique: Option<Id>,
    /// How many items must belong to another node, and that node for each index: those of `prefix`, then of `rest`.
    pub(super) contains: Option<(u64, Vec<Node>)>,
}

#[derive(Debug)]
pub(super) struct Object {
    pub(super) named: Vec<Named>,
    /// Other names, and the nodes of their values.
    pub(super) others: Vec<(Regexes, Node)>,
    pub(super) min: u64,
    pub(super) max: Option<u64>,
    pub(super) counted_at: Option<Id>,
}

#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) value: Node,
    pub(super) is_required: bool,
}

pub(super) struct Graph {
    pub(super) nodes: Vec<Vec<Shape>>,
    /// Whether each node has any values.
    pub(super) has_values: Vec<bool>,
}

impl Graph {
    /// The graph of a schema; its first node is the whole schema.
    pub(super) fn new(solver: &mut Solver<'_>) -> Result<Self, ConstraintError> {
        let root = solver.places.root();
        let mut builder = Builder { solver, index: HashMap::new(), todo: Vec::new(), n: 0 };
        builder.node(vec![Atom::Is(root)])?;
        let mut nodes: Vec<Vec<Shape>> = Vec::new();
        while let Some((node, conjunction)) = builder.todo.pop() {
            let shapes = builder.shapes(&conjunction)?;
            if nodes.len() <= node {
                nodes.resize_with(builder.n.max(node + 1), Vec::new);
            }
            nodes[node] = shapes;
        }
        nodes.resize_with(builder.n, Vec::new);
        let has_values = vec![false; nodes.len()];
        let mut this = Self { nodes, has_values };
        let mut changed = true;
        while std::mem::take(&mut changed) {
            for node in 0..this.nodes.len() {
                if !this.has_values[node] && this.nodes[node].iter().any(|shape| this.is_possible(shape)) {
                    (this.has_values[node], changed) = (true, true);
                }
            }
        }
        Ok(this)
    }

    /// Whether a shape has any values, as far as is known.
    pub(super) fn is_possible(&self, shape: &Shape) -> bool {
        match shape {
            Shape::Same(node) => self.has_values[*node],
            Shape::Texts(texts) => !texts.is_empty(),
            Shape::Regex(_) | Shape::Multiple(_) => true,
            Shape::Array(array) => {
                self.most_items(array).is_none_or(|max| max >= array.min)
                    && array.contains.as_ref().is_none_or(|(_, found)| found.iter().any(|node| self.has_values[*node]))
            }
            Shape::Object(object) => {
                let n = object.named.iter().filter(|named| self.has_values[named.value]).count() as u64;
                object.named.iter().all(|named| !named.is_required || self.has_values[named.value])
                    && (n >= object.min || object.others.iter().any(|(_, node)| self.has_values[*node]))
            }
        }
    }

    /// The most items of a list: it ends where no item is possible.
    pub(super) fn most_items(&self, array: &Array) -> Option<u64> {
        let end = array.prefix.iter().position(|node| !self.has_values[*node]);
        let end = end.or_else(|| (!self.has_values[array.rest]).then_some(array.prefix.len()));
        let end = end.map(|end| end as u64);
        array.max.map_or(end, |max| Some(end.map_or(max, |end| end.min(max))))
    }
}

struct Builder<'b, 'a> {
    solver: &'b mut Solver<'a>,
    index: HashMap<Conjunction, Node>,
    todo: Vec<(Node, Conjunction)>,
    n: usize,
}

/// Keywords that neither constrain values nor refer to schemas.
const SILENT: [&str; 17] = [
    "$anchor",
    "$comment",
    "$defs",
    "$dynamicAnchor",
    "$id",
    "$schema",
    "$vocabulary",
    "default",
    "definitions",
    "deprecated",
    "description",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
    "discriminator",
    "nullable",
];

impl<'a> Builder<'_, 'a> {
    fn node(&mut self, conjunction: Conjunction) -> Result<Node, ConstraintError> {
        let mut all = Vec::with_capacity(conjunction.len());
        for atom in conjunction {
            if let Some(atom) = self.followed(atom) {
                all.push(atom);
            }
        }
        let conjunction = sorted(all);
        if let Some(node) = self.index.get(&conjunction) {
            return Ok(*node);
        }
        if self.n >= MAX_NODES {
            let reason = format!("it comes to more than {MAX_NODES} different parts");
            return Err(ConstraintError::TooLarge { kind: "JSON schema", reason });
        }
        self.index.insert(conjunction.clone(), self.n);
        self.todo.push((self.n, conjunction));
        self.n += 1;
        Ok(self.n - 1)
    }

    /// The target of a schema that is only a reference; `None` if it has no condition.
    fn followed(&self, atom: Atom) -> Option<Atom> {
        let Atom::Is(mut id) = atom else { return Some(atom) };
        for _ in 0..64 {
            let fields = match self.solver.places.json(id) {
                Json::Bool(true) => return None,
                Json::Object(fields) => fields,
                _ => break,
            };
            let mut spoken = fields.iter().filter(|(name, _)| !SILENT.contains(&name.as_str()));
            match (spoken.next(), spoken.next()) {
                (None, _) => return None,
                (Some((name, Json::String(reference))), None) if name == "$ref" => {
                    match self.solver.places.target(id, reference) {
                        Ok(target) => id = target,
                        Err(_) => break,
                    }
                }
                _ => break,
            }
        }
        Some(Atom::Is(id))
    }

    /// The parts of a schema that is only `anyOf`; they are shared with other places that refer to them.
    fn alternatives(&self, conjunction: &[Atom]) -> Option<Vec<Atom>> {
        let [Atom::Is(id)] = conjunction else { return None };
        let Json::Object(fields) = self.solver.places.json(*id) else { return None };
        let mut spoken = fields.iter().filter(|(name, _)| !SILENT.contains(&name.as_str()));
        match (spoken.next(), spoken.next()) {
            (Some((name, Json::Array(parts))), None)
                if name == "anyOf" || (name == "oneOf" && self.solver.any_of_one) =>
            {
                let parts = parts.iter().enumerate();
                Some(
                    parts
                        .map(|(i, part)| Atom::Is(self.solver.places.child(*id, &[name, &i.to_string()], part)))
                        .collect(),
                )
            }
            _ => None,
        }
    }

    fn shapes(&mut self, conjunction: &[Atom]) -> Result<Vec<Shape>, ConstraintError> {
        if let Some(parts) = self.alternatives(conjunction) {
            return parts.into_iter().map(|part| self.node(vec![part]).map(Shape::Same)).collect();
        }
        let cases = self.solver.cases(conjunction)?;
        let mut shapes = Vec::new();
        let mut literals: Vec<String> = Vec::new();
        let mut known_literals = std::collections::HashSet::new();
        let mut add = |text: &str| {
            if known_literals.insert(text.to_owned()) {
                literals.push(text.to_owned());
            }
        };
        let mut known_numbers: Vec<(u8, Numbers)> = Vec::new();
        let mut known_strings: Vec<Strings> = Vec::new();
        for case in &cases {
            for (bit, text) in [(types::NULL, "null"), (types::FALSE, "false"), (types::TRUE, "true")] {
                if case.types & bit != 0 {
                    add(text);
                }
            }
            let numbers = (case.types & types::NUMBER, case.numbers.clone());
            if numbers.0 != 0 && !known_numbers.contains(&numbers) {
                let written = numbers.1.write(numbers.0 & types::INTEGER != 0, numbers.0 & types::FRACTION != 0);
                let at = case.numbers_at.unwrap_or(self.solver.places.root());
                let blamed = numbers.1.blamed();
                match written.map_err(|reason| refused(&self.solver.places, at, blamed, &reason))? {
                    Written::Regex(all) => shapes.push(Shape::Regex(all)),
                    Written::Multiple(schema) => shapes.push(Shape::Multiple(schema)),
                }
                known_numbers.push(numbers);
            }
            if case.types & types::STRING != 0 && !known_strings.contains(&case.strings) {
                let written = case.strings.write();
                let at = self.solver.places.root();
                match written.map_err(|reason| refused(&self.solver.places, at, "minLength", &reason))? {
                    strings::Written::Texts(texts) => texts.iter().for_each(|text| add(text)),
                    strings::Written::Regex(all) => shapes.push(Shape::Regex(all)),
                }
                known_strings.push(case.strings.clone());
            }
        }
        if !literals.is_empty() {
            shapes.insert(0, Shape::Texts(literals));
        }
        for case in &cases {
            if case.types & types::ARRAY != 0 {
                shapes.push(Shape::Array(self.array(case)?));
            }
            if case.types & types::OBJECT != 0 {
                shapes.push(Shape::Object(self.object(case)?));
            }
        }
        Ok(shapes)
    }

    fn array(&mut self, case: &Case<'a>) -> Result<Array, ConstraintError> {
        let n = case.n_prefix();
        let mut conjunctions: Vec<Conjunction> = (0..=n).map(|i| case.item(i)).collect();
        let contains = match case.contains.as_slice() {
            [] => None,
            [(atom, min, None, _)] => {
                let mut nodes = Vec::new();
                for conjunction in &conjunctions {
                    let mut both = conjunction.clone();
                    both.push(*atom);
                    nodes.push(self.node(sorted(both))?);
                }
                (*min > 0).then_some((*min, nodes))
            }
            [(atom, 0, Some(0), at)] => {
                // None is: all are not.
                let Atom::Is(id) = atom else { return Err(refused(&self.solver.places, *at, "contains", "")) };
                for conjunction in &mut conjunctions {
                    conjunction.push(Atom::Not(*id));
                }
                None
            }
            [(_, _, Some(_), at), ..] => {
                return Err(refused(&self.solver.places, *at, "maxContains", "an upper count cannot be followed"));
            }
            [(.., at), ..] => {
                return Err(refused(&self.solver.places, *at, "contains", "two of them at once cannot be followed"));
            }
        };
        let rest = self.node(sorted(conjunctions.pop().unwrap_or_default()))?;
        let prefix = conjunctions.into_iter().map(|all| self.node(sorted(all))).collect::<Result<_, _>>()?;
        Ok(Array { prefix, rest, min: case.min_items, max: case.max_items, unique: case.unique, contains })
    }

    fn object(&mut self, case: &Case<'a>) -> Result<Object, ConstraintError> {
        let mut named = Vec::new();
        let mentioned = case.mentioned();
        for name in &mentioned {
            let is_allowed = case.names.is_empty() || self.solver.admits_string(&case.names, name)?;
            let conjunction = if is_allowed {
                case.property(|pattern| pattern.is_match(name), Some(name))
            } else {
                vec![Atom::Never]
            };
            let value = self.node(conjunction)?;
            let is_required = case.required.contains(name);
            named.push(Named { name: (*name).to_owned(), value, is_required });
        }
        let others = self.others(case, &mentioned)?;
        Ok(Object { named, others, min: case.min_properties, max: case.max_properties, counted_at: case.counted_at })
    }

    /// The properties whose names do not occur: one part for each set of patterns that a name may match.
    fn others(&mut self, case: &Case<'a>, mentioned: &[&str]) -> Result<Vec<(Regexes, Node)>, ConstraintError> {
        let mut patterns = Vec::new();
        for (pattern, _) in case.objects.iter().flat_map(|part| &part.patterns) {
            if !patterns.contains(pattern) {
                patterns.push(std::rc::Rc::clone(pattern));
            }
        }
        if patterns.len() > MAX_PATTERNS {
            let reason = format!("more than {MAX_PATTERNS} patterns in patternProperties of one object");
            return Err(ConstraintError::TooLarge { kind: "JSON schema", reason });
        }
        let names: Vec<Strings> = if case.names.is_empty() {
            vec![Strings::default()]
        } else {
            let cases = self.solver.cases(&case.names)?;
            cases.into_iter().filter(|case| case.types & types::STRING != 0).map(|case| case.strings).collect()
        };
        let taken: Vec<String> = mentioned.iter().map(|name| regex_syntax::escape(&quoted(name))).collect();
        let mut others = Vec::new();
        for set in 0..1_usize << patterns.len() {
            let is_in = |i: usize| set >> i & 1 == 1;
            let matches = |pattern: &super::patterns::Pattern| {
                patterns.iter().enumerate().any(|(i, found)| **found == *pattern && is_in(i))
            };
            let conjunction = case.property(matches, None);
            let is_never = conjunction.iter().any(|atom| match atom {
                Atom::Never => true,
                Atom::Is(id) => *self.solver.places.json(*id) == Json::Bool(false),
                _ => false,
            });
            if is_never {
                continue;
            }
            let value = self.node(conjunction)?;
            for names in &names {
                let mut names = names.clone();
                names
                    .patterns
                    .extend(patterns.iter().enumerate().map(|(i, pattern)| (std::rc::Rc::clone(pattern), is_in(i))));
                if names.is_empty() {
                    continue;
                }
                let at = self.solver.places.root();
                let written =
                    names.write().map_err(|reason| refused(&self.solver.places, at, "propertyNames", &reason))?;
                let mut all = match written {
                    strings::Written::Texts(texts) => {
                        let texts: Vec<String> = texts.iter().map(|text| regex_syntax::escape(text)).collect();
                        vec![(texts.join("|"), false)]
                    }
                    strings::Written::Regex(all) => all,
                };
                if !taken.is_empty() {
                    all.push((taken.join("|"), true));
                }
                others.push((all, value));
            }
        }
        Ok(others)
    }
}
