//! Finds tokens for which a lexer that takes the longest match would take too much.
//!
//! A lexer reads a token as long as any token that is allowed there can continue. That loses a text of the grammar if a
//! token A is complete, the next byte belongs to what may follow A, and some token B (A itself, or one that begins with
//! the same text) could continue with that byte. The text is in the grammar, but the lexer would not accept it.
//!
//! So the positions of each token are numbered (Glushkov's automaton: which positions can be first, which last, which
//! follow which). The search visits pairs of positions that A and B can reach with the same text. Where A may end, the
//! characters with which B continues are compared with those that may follow A anywhere in the grammar. It compares
//! first bytes instead of characters, and all pairs of tokens instead of those that are allowed together. At worst this
//! finds a conflict that does not exist, which costs speed but loses no text.

use std::collections::HashSet;

use super::chars::{Bytes, CharSet};
use super::{Item, Node, Parts};

/// The most positions of one token. A token with more, or two tokens with more pairs, count as a conflict.
pub(super) const MAX_POSITIONS: usize = 1024;
const MAX_PAIRS: usize = 1 << 16;

/// The tokens that must be split; `None` if all can stay. A token that is split is one of the given tokens.
pub(super) fn conflicts(parts: &Parts) -> Option<Vec<Node>> {
    let automata: Vec<Option<Automaton>> =
        parts.terminals.iter().map(|terminal| Automaton::new(terminal.inlined.as_ref()?)).collect();
    let follow = Follow::new(parts, &automata);
    let first_bytes: Vec<Bytes> = (0..automata.len()).map(|at| first_bytes(&automata, at)).collect();
    let mut split = vec![false; automata.len()];
    for (b, second) in automata.iter().enumerate() {
        // Single characters never continue, so a token that is split has several parts.
        split[b] = match second {
            None => true,
            Some(second) => automata.iter().enumerate().any(|(a, first)| {
                first_bytes[a].intersects(&first_bytes[b])
                    && first.as_ref().is_some_and(|first| first.loses_to(second, &follow.after[a]))
            }),
        };
    }
    let found: Vec<Node> = (0..split.len()).filter(|&i| split[i]).map(|i| parts.terminals[i].node.clone()).collect();
    (!found.is_empty()).then_some(found)
}

/// The bytes that a token can begin with; all bytes, if it is too large to analyze.
fn first_bytes(automata: &[Option<Automaton>], at: usize) -> Bytes {
    match &automata[at] {
        Some(automaton) => automaton.bytes(&automaton.first),
        None => CharSet::any().first_bytes(),
    }
}

/// Glushkov's automaton of a regular expression.
struct Automaton {
    chars: Vec<CharSet>,
    first: Vec<usize>,
    is_last: Vec<bool>,
    follow: Vec<Vec<usize>>,
}

/// The first and last positions of a part, and whether it can be empty.
struct Ends {
    first: Vec<usize>,
    last: Vec<usize>,
    nullable: bool,
}

impl Automaton {
    fn new(node: &Node) -> Option<Self> {
        let mut this = Self { chars: Vec::new(), first: Vec::new(), is_last: Vec::new(), follow: Vec::new() };
        let ends = this.add(node)?;
        this.is_last = vec![false; this.chars.len()];
        ends.last.iter().for_each(|&at| this.is_last[at] = true);
        this.first = ends.first;
        this.follow.iter_mut().for_each(|next| {
            next.sort_unstable();
            next.dedup();
        });
        Some(this)
    }

    fn empty() -> Ends {
        Ends { first: Vec::new(), last: Vec::new(), nullable: true }
    }

    fn position(&mut self, chars: CharSet) -> Option<Ends> {
        let at = self.chars.len();
        if at >= MAX_POSITIONS {
            return None;
        }
        self.chars.push(chars);
        self.follow.push(Vec::new());
        Some(Ends { first: vec![at], last: vec![at], nullable: false })
    }

    fn connect(&mut self, last: &[usize], first: &[usize]) {
        last.iter().for_each(|&at| self.follow[at].extend(first));
    }

    fn then(&mut self, mut a: Ends, b: Ends) -> Ends {
        self.connect(&a.last, &b.first);
        if a.nullable {
            a.first.extend(&b.first);
        }
        let mut last = b.last;
        if b.nullable {
            last.extend(&a.last);
        }
        Ends { first: a.first, last, nullable: a.nullable && b.nullable }
    }

    fn add(&mut self, node: &Node) -> Option<Ends> {
        match node {
            Node::Alternatives(nodes) => {
                let mut all = Ends { first: Vec::new(), last: Vec::new(), nullable: false };
                for node in nodes {
                    let ends = self.add(node)?;
                    all.first.extend(ends.first);
                    all.last.extend(ends.last);
                    all.nullable |= ends.nullable;
                }
                Some(all)
            }
            Node::Sequence(nodes) => {
                let mut all = Self::empty();
                for node in nodes {
                    let next = self.add(node)?;
                    all = self.then(all, next);
                }
                Some(all)
            }
            Node::Text(text) => {
                let mut all = Self::empty();
                for c in text.chars() {
                    let next = self.position(CharSet::new(vec![(c, c)]))?;
                    all = self.then(all, next);
                }
                Some(all)
            }
            Node::Class(chars) => self.position(chars.clone()),
            Node::Repeat(node, min, max) => {
                let mut all = Self::empty();
                for _ in 0..*min {
                    let next = self.add(node)?;
                    all = self.then(all, next);
                }
                match max {
                    None => {
                        let mut more = self.add(node)?;
                        self.connect(&more.last.clone(), &more.first);
                        more.nullable = true;
                        all = self.then(all, more);
                    }
                    Some(max) => {
                        for _ in *min..*max {
                            let mut more = self.add(node)?;
                            more.nullable = true;
                            all = self.then(all, more);
                        }
                    }
                }
                Some(all)
            }
            // A token has no references left.
            Node::Rule(_) => None,
        }
    }

    fn bytes(&self, positions: &[usize]) -> Bytes {
        let mut bytes = Bytes::default();
        positions.iter().for_each(|&at| {
            bytes.extend(self.chars[at].first_bytes());
        });
        bytes
    }

    /// Whether `other` can continue, with a byte of `after`, where this token may end.
    fn loses_to(&self, other: &Self, after: &Bytes) -> bool {
        let mut left = Vec::new();
        let mut seen = HashSet::new();
        let mut visit = |left: &mut Vec<(usize, usize)>, ours: &[usize], theirs: &[usize]| {
            for &a in ours {
                for &b in theirs {
                    if self.chars[a].intersects(&other.chars[b]) && seen.insert((a, b)) {
                        left.push((a, b));
                    }
                }
            }
            seen.len() <= MAX_PAIRS
        };
        if !visit(&mut left, &self.first, &other.first) {
            return true;
        }
        while let Some((a, b)) = left.pop() {
            if self.is_last[a] && other.bytes(&other.follow[b]).intersects(after) {
                return true;
            }
            if !visit(&mut left, &self.follow[a], &other.follow[b]) {
                return true;
            }
        }
        false
    }
}

/// The bytes that may follow each token.
struct Follow {
    /// By token.
    after: Vec<Bytes>,
}

/// What is known about the rules during the analysis.
struct Facts<'a> {
    parts: &'a Parts,
    automata: &'a [Option<Automaton>],
    nullable: Vec<bool>,
    first: Vec<Bytes>,
    after_rule: Vec<Bytes>,
    after: Vec<Bytes>,
    changed: bool,
}

impl Follow {
    fn new(parts: &Parts, automata: &[Option<Automaton>]) -> Self {
        let n_rules = parts.rules.len();
        let mut facts = Facts {
            parts,
            automata,
            nullable: vec![false; n_rules],
            first: vec![Bytes::default(); n_rules],
            after_rule: vec![Bytes::default(); n_rules],
            after: vec![Bytes::default(); parts.terminals.len()],
            changed: true,
        };
        while std::mem::take(&mut facts.changed) {
            for (i, item) in parts.rules.iter().enumerate() {
                let Some(item) = item else { continue };
                let nullable = facts.is_nullable(item);
                let first = facts.first(item);
                facts.changed |= facts.nullable[i] != nullable;
                facts.nullable[i] = nullable;
                facts.changed |= facts.first[i].extend(first);
            }
        }
        facts.changed = true;
        while std::mem::take(&mut facts.changed) {
            facts.spread(&parts.start, Bytes::default());
            for (i, item) in parts.rules.iter().enumerate() {
                if let Some(item) = item {
                    facts.spread(item, facts.after_rule[i]);
                }
            }
        }
        Self { after: facts.after }
    }
}

impl Facts<'_> {
    fn is_nullable(&self, item: &Item) -> bool {
        match item {
            Item::Alternatives(items) => items.iter().any(|item| self.is_nullable(item)),
            Item::Sequence(items) => items.iter().all(|item| self.is_nullable(item)),
            Item::Repeat(item, min, _) => *min == 0 || self.is_nullable(item),
            Item::Rule(rule) => self.nullable[*rule],
            Item::Terminal(_) => false,
        }
    }

    fn first(&self, item: &Item) -> Bytes {
        let mut bytes = Bytes::default();
        match item {
            Item::Alternatives(items) => items.iter().for_each(|item| {
                bytes.extend(self.first(item));
            }),
            Item::Sequence(items) => {
                for item in items {
                    bytes.extend(self.first(item));
                    if !self.is_nullable(item) {
                        break;
                    }
                }
            }
            Item::Repeat(item, ..) => bytes = self.first(item),
            Item::Rule(rule) => bytes = self.first[*rule],
            Item::Terminal(at) => bytes = first_bytes(self.automata, *at),
        }
        bytes
    }

    /// Passes what follows an item on to its parts.
    fn spread(&mut self, item: &Item, after: Bytes) {
        match item {
            Item::Alternatives(items) => items.iter().for_each(|item| self.spread(item, after)),
            Item::Sequence(items) => {
                let mut after = after;
                for item in items.iter().rev() {
                    self.spread(item, after);
                    let mut first = self.first(item);
                    if self.is_nullable(item) {
                        first.extend(after);
                    }
                    after = first;
                }
            }
            Item::Repeat(item, _, max) => {
                let mut after = after;
                if *max != Some(1) {
                    after.extend(self.first(item));
                }
                self.spread(item, after);
            }
            Item::Rule(rule) => {
                // A rule that is not part of a token has an entry.
                debug_assert!(self.parts.rules[*rule].is_some(), "rule {rule}");
                self.changed |= self.after_rule[*rule].extend(after);
            }
            Item::Terminal(at) => self.changed |= self.after[*at].extend(after),
        }
    }
}
