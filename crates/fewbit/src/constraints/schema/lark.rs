//! The graph of a schema as a grammar in Lark: a rule for each node, a token for each scalar.
//!
//! White space may occur between tokens, so the rules do not mention it; property names, colons and commas are tokens
//! of their own. A list of optional parts has a rule for each part and each count so far, from which each later part is
//! reached in one step: the grammar grows in proportion to the schema.

use std::collections::HashMap;
use std::fmt::Write;

use super::super::ConstraintError;
use super::graph::{Array, Graph, Node, Object, Regexes, Shape};
use super::keywords::refused;
use super::places::Places;
use super::strings::quoted;

/// The most states of an object's parts, or of a list's distinct items.
const MAX_STATES: usize = 4096;

/// The most distinct items that `uniqueItems` may choose from.
const MAX_UNIQUE: usize = 8;

/// The most copies that a repetition may require, so that the grammar can be compiled.
const MAX_COPIES: u64 = 10_000;

pub(super) struct Lark<'a, 'g> {
    places: &'g Places<'a>,
    graph: &'g Graph,
    out: String,
    /// Names of tokens, by their definitions.
    tokens: HashMap<String, String>,
    n_rules: usize,
}

impl<'a, 'g> Lark<'a, 'g> {
    /// Writes the grammar, beginning with `start`. The first node must have values.
    pub(super) fn write(places: &'g Places<'a>, graph: &'g Graph) -> Result<String, ConstraintError> {
        let mut this = Self { places, graph, out: "start: n0\n".to_owned(), tokens: HashMap::new(), n_rules: 0 };
        let mut is_written = vec![false; graph.nodes.len()];
        let mut left = vec![0];
        while let Some(node) = left.pop() {
            if std::mem::replace(&mut is_written[node], true) {
                continue;
            }
            let mut found = Vec::new();
            let alternatives = this.node(node, &mut found)?;
            let _ = writeln!(this.out, "n{node}: {}", alternatives.join(" | "));
            left.extend(found);
        }
        let mut tokens: Vec<_> = this.tokens.into_iter().collect();
        tokens.sort_by(|a, b| (a.1.len(), &a.1).cmp(&(b.1.len(), &b.1)));
        for (body, name) in tokens {
            let _ = writeln!(this.out, "{name}: {body}");
        }
        Ok(this.out)
    }

    /// The alternatives of a node; adds the nodes that they refer to to `found`.
    fn node(&mut self, node: Node, found: &mut Vec<Node>) -> Result<Vec<String>, ConstraintError> {
        let mut alternatives = Vec::new();
        let graph = self.graph;
        for shape in graph.nodes[node].iter().filter(|shape| graph.is_possible(shape)) {
            alternatives.push(match shape {
                Shape::Same(node) => self.reference(*node, found),
                Shape::Texts(texts) => {
                    let texts: Vec<String> = texts.iter().map(|text| literal(text)).collect();
                    self.token(texts.join(" | "))
                }
                Shape::Regex(all) => self.regex(all),
                Shape::Multiple(schema) => format!("%json {schema} "),
                Shape::Array(array) => self.array(array, found)?,
                Shape::Object(object) => self.object(object, found)?,
            });
        }
        Ok(alternatives)
    }

    fn reference(&self, node: Node, found: &mut Vec<Node>) -> String {
        found.push(node);
        format!("n{node}")
    }

    /// The name of a token.
    fn token(&mut self, body: String) -> String {
        let n = self.tokens.len();
        self.tokens.entry(body).or_insert_with(|| format!("T{n}")).clone()
    }

    /// A token that matches all of these expressions.
    fn regex(&mut self, all: &Regexes) -> String {
        let mut names = Vec::new();
        for (regex, is_denied) in all {
            // A slash ends a regular expression in Lark.
            let name = self.token(format!("/{}/", regex.replace('/', r"\x2F")));
            names.push(if *is_denied { format!("~{name}") } else { name });
        }
        if let [one] = names.as_slice() { one.clone() } else { self.token(names.join(" & ")) }
    }

    fn rule(&mut self, body: &str) -> String {
        self.n_rules += 1;
        let name = format!("r{}", self.n_rules);
        let _ = writeln!(self.out, "{name}: {body}");
        name
    }

    fn array(&mut self, array: &Array, found: &mut Vec<Node>) -> Result<String, ConstraintError> {
        let max = self.graph.most_items(array);
        let mut prefix = array.prefix.clone();
        if let Some(max) = max {
            prefix.truncate(usize::try_from(max).unwrap_or(usize::MAX));
        }
        if array.min > MAX_COPIES {
            let reason = format!("arrays of at least {} items", array.min);
            return Err(ConstraintError::TooLarge { kind: "JSON schema", reason });
        }
        let max = max.filter(|max| *max <= MAX_COPIES);
        if let Some(at) = array.unique.filter(|_| max.is_none_or(|max| max > 1)) {
            let texts = if prefix.is_empty() && array.contains.is_none() { self.texts(array.rest) } else { None };
            let Some(texts) = texts.filter(|texts| texts.len() <= MAX_UNIQUE) else {
                let reason = format!(
                    "that all items differ can only be followed for up to {MAX_UNIQUE} possible items (an enum), or with \
                     maxItems 1"
                );
                return Err(refused(self.places, at, "uniqueItems", &reason));
            };
            if (texts.len() as u64) < array.min {
                return Err(refused(self.places, at, "uniqueItems", "there are not as many different items"));
            }
            return Ok(self.unique(&texts, array.min, max));
        }
        if let Some((least, nodes)) = &array.contains {
            return self.containing(&prefix, array.rest, (array.min, max), *least, nodes, found);
        }
        // Built from the last item on: what may follow after `i` items.
        let n = prefix.len() as u64;
        let mut tail = if max.is_some_and(|max| max <= n) {
            String::new()
        } else {
            let rest = self.reference(array.rest, found);
            let (from, to) = (array.min.saturating_sub(n), max.map(|max| max - n));
            if n == 0 {
                let more = repeat("\",\" ", &rest, from.saturating_sub(1), to.map(|to| to - 1));
                let all = format!("{rest} {more}");
                let all = if from == 0 { format!("({all})?") } else { all };
                return Ok(format!("\"[\" {all} \"]\""));
            }
            repeat("\",\" ", &rest, from, to)
        };
        for (i, node) in prefix.iter().enumerate().rev() {
            let item = self.reference(*node, found);
            let comma = if i == 0 { "" } else { "\",\" " };
            let body = format!("{comma}{item} {tail}");
            let name = self.rule(&body);
            tail = if (i as u64) < array.min { name } else { format!("{name}?") };
        }
        Ok(format!("\"[\" {tail} \"]\""))
    }

    /// The texts of a node, if it has only finitely many.
    fn texts(&self, node: Node) -> Option<Vec<String>> {
        let mut all = Vec::new();
        for shape in &self.graph.nodes[node] {
            match shape {
                Shape::Texts(texts) => all.extend(texts.iter().map(|text| literal(text))),
                // Numbers from a list.
                Shape::Regex(regexes) => match regexes.as_slice() {
                    [(regex, false)] if regex.bytes().all(|byte| byte.is_ascii_digit() || b"-|\\.".contains(&byte)) => {
                        all.extend(regex.split('|').map(|text| literal(&text.replace('\\', ""))));
                    }
                    _ => return None,
                },
                Shape::Same(other) if *other != node => all.extend(self.texts(*other)?),
                _ => return None,
            }
        }
        all.sort();
        all.dedup();
        Some(all)
    }

    /// Lists of distinct texts: one rule for each set of texts that is left.
    fn unique(&mut self, texts: &[String], min: u64, max: Option<u64>) -> String {
        let all = (1_usize << texts.len()) - 1;
        let mut names: Vec<String> = Vec::new();
        for left in 0..=all {
            let n_taken = u64::from((all & !left).count_ones());
            let mut ways: Vec<String> = Vec::new();
            if max.is_none_or(|max| n_taken < max) {
                for (i, text) in texts.iter().enumerate().filter(|(i, _)| left >> i & 1 == 1) {
                    let comma = if left == all { "" } else { "\",\" " };
                    ways.push(format!("{comma}{text} {}", names[left & !(1 << i)]));
                }
            }
            if n_taken >= min {
                ways.push("\"\"".to_owned());
            }
            names.push(self.rule(&ways.join(" | ")));
        }
        format!("\"[\" {} \"]\"", names[all])
    }

    /// Lists in which at least `least` items belong to other nodes.
    fn containing(
        &mut self,
        prefix: &[Node],
        rest: Node,
        (min, max): (u64, Option<u64>),
        least: u64,
        nodes: &[Node],
        found: &mut Vec<Node>,
    ) -> Result<String, ConstraintError> {
        // Beyond this, all counts are equivalent.
        let last = max.unwrap_or_else(|| min.max(prefix.len() as u64));
        if (last + 1).saturating_mul(least + 1) > MAX_STATES as u64 {
            let reason = format!("arrays of {last} items, {least} of which satisfy `contains`");
            return Err(ConstraintError::TooLarge { kind: "JSON schema", reason });
        }
        let has = |node: Node| self.graph.has_values[node];
        let at = |i: u64| usize::try_from(i).unwrap_or(usize::MAX);
        let fitting = |i: u64| *nodes.get(at(i)).unwrap_or(&nodes[nodes.len() - 1]);
        let plain = |i: u64| *prefix.get(at(i)).unwrap_or(&rest);
        let next = |i: u64| if max.is_none() { (i + 1).min(last) } else { i + 1 };
        // The states in which a list can end.
        let mut can_end = std::collections::HashSet::new();
        for _ in 0..=last + least + 1 {
            for i in (0..=last).rev() {
                for k in 0..=least {
                    let goes_on = max.is_none_or(|max| i < max)
                        && ((has(plain(i)) && can_end.contains(&(next(i), k)))
                            || (k < least && has(fitting(i)) && can_end.contains(&(next(i), k + 1))));
                    if goes_on || (k == least && i >= min) {
                        can_end.insert((i, k));
                    }
                }
            }
        }
        if !can_end.contains(&(0, 0)) {
            let reason = "no array has the items that `contains` asks for".to_owned();
            return Err(ConstraintError::Unsatisfiable { kind: "JSON schema", reason });
        }
        self.n_rules += 1;
        let of = self.n_rules;
        let name = |i: u64, k: u64| format!("r{of}_{i}_{k}");
        for i in 0..=last {
            for k in (0..=least).filter(|k| can_end.contains(&(i, *k))) {
                let mut ways = Vec::new();
                if max.is_none_or(|max| i < max) {
                    let comma = if i == 0 { "" } else { "\",\" " };
                    if has(plain(i)) && can_end.contains(&(next(i), k)) {
                        ways.push(format!("{comma}{} {}", self.reference(plain(i), found), name(next(i), k)));
                    }
                    if k < least && has(fitting(i)) && can_end.contains(&(next(i), k + 1)) {
                        ways.push(format!("{comma}{} {}", self.reference(fitting(i), found), name(next(i), k + 1)));
                    }
                }
                if k == least && i >= min {
                    ways.push("\"\"".to_owned());
                }
                let _ = writeln!(self.out, "{}: {}", name(i, k), ways.join(" | "));
            }
        }
        Ok(format!("\"[\" {} \"]\"", name(0, 0)))
    }

    fn object(&mut self, object: &Object, found: &mut Vec<Node>) -> Result<String, ConstraintError> {
        let has = |node: Node| self.graph.has_values[node];
        let named: Vec<_> = object.named.iter().filter(|named| has(named.value)).collect();
        let others: Vec<_> = object.others.iter().filter(|(_, node)| has(*node)).collect();
        // Only one property with a free name can be counted on; a second might have the same name.
        let most = named.len() as u64 + u64::from(!others.is_empty());
        if object.min > most && !others.is_empty() && object.max.is_none_or(|max| max >= object.min) {
            let reason =
                "properties with different names, none of them given, cannot be counted; name them in properties";
            return Err(match object.counted_at {
                Some(at) => refused(self.places, at, "minProperties", reason),
                None => ConstraintError::Invalid { kind: "JSON schema", reason: reason.to_owned() },
            });
        }
        let cap = object.min.max(object.max.map_or(1, |max| max.min(most.max(1) + 1))).max(1);
        if (named.len() as u64 + 1).saturating_mul(cap + 1) > MAX_STATES as u64 && cap > 1 {
            let reason = format!("objects of {} properties that are counted", named.len());
            return Err(ConstraintError::TooLarge { kind: "JSON schema", reason });
        }
        let mut ways = Vec::new();
        for (names, node) in others {
            let name = self.regex(names);
            ways.push(format!("{name} \":\" {}", self.reference(*node, found)));
        }
        let other = (!ways.is_empty()).then(|| self.rule(&ways.join(" | ")));
        let within = |n: u64| object.max.is_none_or(|max| n <= max);
        // The parts after the last named property, with `count` properties before.
        let mut tails: Vec<Option<String>> = (0..=cap)
            .map(|count| {
                let Some(other) = &other else {
                    return (count >= object.min && within(count)).then(String::new);
                };
                let (least, most) = (object.min.saturating_sub(count), object.max.map(|max| max.saturating_sub(count)));
                if !within(count) {
                    return None;
                }
                if most == Some(0) {
                    return (least == 0).then(String::new);
                }
                if count > 0 {
                    return Some(repeat("\",\" ", other, least, most));
                }
                let more = repeat("\",\" ", other, least.saturating_sub(1), most.map(|most| most - 1));
                Some(if least == 0 { format!("({other} {more})?") } else { format!("{other} {more}") })
            })
            .collect();
        for named in named.iter().rev() {
            let item = format!("{} \":\" {}", literal(&quoted(&named.name)), self.reference(named.value, found));
            let mut now = Vec::new();
            for count in 0..=cap {
                let comma = if count == 0 { "" } else { "\",\" " };
                // Counts above the cap are equivalent, unless there is a maximum.
                let next = (count + 1).min(cap);
                let is_full = !within(count + 1);
                let with = (!is_full).then(|| tails[next as usize].as_ref()).flatten();
                let without = tails[count as usize].as_ref().filter(|_| !named.is_required);
                let body = match (with, without) {
                    (Some(with), Some(without)) if count > 0 && with == without => {
                        Some(format!("({comma}{item})? {with}"))
                    }
                    (Some(with), Some(without)) => {
                        let without = if without.is_empty() { "\"\"" } else { without };
                        Some(format!("{comma}{item} {with} | {without}"))
                    }
                    (Some(with), None) => Some(format!("{comma}{item} {with}")),
                    (None, Some(without)) => Some(without.clone()),
                    (None, None) => None,
                };
                now.push(body.map(|body| if body.is_empty() { body } else { self.rule(&body) }));
            }
            tails = now;
        }
        match &tails[0] {
            Some(all) => Ok(format!("\"{{\" {all} \"}}\"")),
            None => {
                let reason = "no object has as many properties".to_owned();
                Err(ConstraintError::Unsatisfiable { kind: "JSON schema", reason })
            }
        }
    }
}

/// Repeats `before item`.
fn repeat(before: &str, item: &str, min: u64, max: Option<u64>) -> String {
    match (min, max) {
        (_, Some(0)) => String::new(),
        (0, None) => format!("({before}{item})*"),
        (1, None) => format!("({before}{item})+"),
        (min, None) => format!("({before}{item}){{{min},}}"),
        (min, Some(max)) => format!("({before}{item}){{{min},{max}}}"),
    }
}

/// A string literal in Lark.
fn literal(text: &str) -> String {
    quoted(text).replace('\u{7f}', "\\u007f")
}
