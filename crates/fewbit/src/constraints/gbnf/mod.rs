//! llama.cpp's grammar notation (GBNF), translated to Lark.
//!
//! GBNF has no lexer: its rules describe characters. Lark has one, whose tokens are as long as possible. So every
//! regular part, which refers to no recursive rule, becomes one token, and only recursive parts become rules; in a
//! sequence of a recursive rule, adjacent regular parts become one token together. If the longest token would take text
//! of the next one (`greedy.rs`), it becomes a rule of single characters instead: that is slower, but every text of the
//! grammar can be generated.

mod chars;
mod greedy;

use std::collections::HashMap;
use std::fmt::Write;

use self::chars::CharSet;
use super::ConstraintError;

/// How deep parentheses may nest.
const MAX_DEPTH: usize = 64;

/// The most copies that a repetition may require.
const MAX_REPEAT: u32 = 10_000;

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(String),
    /// `::=`
    Is,
    Text(String),
    Class(CharSet),
    Symbol(char),
    /// `{m,n}`
    Repeat(u32, Option<u32>),
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Alternatives(Vec<Node>),
    Sequence(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
    Text(String),
    Class(CharSet),
    Rule(usize),
}

fn invalid(reason: impl Into<String>) -> ConstraintError {
    ConstraintError::Invalid { kind: "GBNF grammar", reason: reason.into() }
}

/// The same grammar in Lark; the start rule is `start`.
pub(super) fn to_lark(source: &str) -> Result<String, ConstraintError> {
    let tokens = tokenize(source)?;
    let mut starts: Vec<usize> = (0..tokens.len().saturating_sub(1)).filter(|&i| tokens[i + 1] == Token::Is).collect();
    if starts.first() != Some(&0) {
        return Err(invalid("it does not begin with a rule"));
    }
    let mut names = HashMap::new();
    for (i, &at) in starts.iter().enumerate() {
        let Token::Name(name) = &tokens[at] else { return Err(invalid("`::=` does not follow a name")) };
        if names.insert(name.as_str(), i).is_some() {
            return Err(invalid(format!("rule {name:?} is defined twice")));
        }
    }
    let root = *names.get("root").ok_or_else(|| invalid("it has no rule `root`"))?;
    starts.push(tokens.len());
    let mut rules = Vec::new();
    for range in starts.windows(2) {
        let mut parser = Parser { tokens: &tokens[range[0] + 2..range[1]], at: 0, names: &names };
        let node = parser.alternatives(0)?;
        if parser.at < parser.tokens.len() {
            return Err(invalid("a parenthesis closes nothing"));
        }
        rules.push(node);
    }
    Ok(Writer::new(&rules).write(root))
}

fn tokenize(source: &str) -> Result<Vec<Token>, ConstraintError> {
    let mut tokens = Vec::new();
    let mut chars = source.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '#' => while chars.next_if(|&c| c != '\n').is_some() {},
            ':' => {
                if !(chars.next() == Some(':') && chars.next() == Some('=')) {
                    return Err(invalid("a colon that is not part of `::=`"));
                }
                tokens.push(Token::Is);
            }
            '"' => {
                let mut text = String::new();
                loop {
                    match chars.next().ok_or_else(|| invalid("a text does not end"))? {
                        '"' => break,
                        '\\' => text.push(escape(&mut chars)?),
                        c => text.push(c),
                    }
                }
                tokens.push(Token::Text(text));
            }
            '[' => tokens.push(Token::Class(class(&mut chars)?)),
            '.' => tokens.push(Token::Class(CharSet::any())),
            '{' => {
                let mut inside = String::new();
                loop {
                    match chars.next().ok_or_else(|| invalid("a brace does not end"))? {
                        '}' => break,
                        c => inside.push(c),
                    }
                }
                let number = |text: &str| {
                    let n = text.trim().parse::<u32>().ok().filter(|n| *n <= MAX_REPEAT);
                    n.ok_or_else(|| invalid(format!("{{{inside}}} is no repetition")))
                };
                let (min, max) = match inside.split_once(',') {
                    None => (number(&inside)?, Some(number(&inside)?)),
                    Some((min, max)) if max.trim().is_empty() => (number(min)?, None),
                    Some((min, max)) => (number(min)?, Some(number(max)?)),
                };
                if max.is_some_and(|max| max < min) {
                    return Err(invalid(format!("{{{inside}}} is no repetition")));
                }
                tokens.push(Token::Repeat(min, max));
            }
            '(' | ')' | '|' | '*' | '+' | '?' => tokens.push(Token::Symbol(c)),
            c if c.is_ascii_alphanumeric() || c == '-' || c == '_' => {
                let mut name = String::from(c);
                while let Some(c) = chars.next_if(|&c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
                    name.push(c);
                }
                tokens.push(Token::Name(name));
            }
            c => return Err(invalid(format!("unexpected {c:?}"))),
        }
    }
    Ok(tokens)
}

/// Reads the character after a backslash.
fn escape(chars: &mut impl Iterator<Item = char>) -> Result<char, ConstraintError> {
    let c = chars.next().ok_or_else(|| invalid("it ends in a backslash"))?;
    let n_digits = match c {
        'n' => return Ok('\n'),
        't' => return Ok('\t'),
        'r' => return Ok('\r'),
        '\\' | '"' | '[' | ']' | '-' | '^' => return Ok(c),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        c => return Err(invalid(format!("unknown escape \\{c}"))),
    };
    let digits: String = chars.take(n_digits).collect();
    let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == n_digits);
    code.and_then(char::from_u32).ok_or_else(|| invalid(format!("\\{c}{digits} is no character")))
}

/// Reads a character class, after its bracket.
fn class(chars: &mut std::iter::Peekable<impl Iterator<Item = char>>) -> Result<CharSet, ConstraintError> {
    let negated = chars.next_if_eq(&'^').is_some();
    let one = |chars: &mut std::iter::Peekable<_>| match Iterator::next(chars) {
        Some('\\') => escape(chars),
        Some(c) => Ok(c),
        None => Err(invalid("a character class does not end")),
    };
    let mut ranges = Vec::new();
    while chars.next_if_eq(&']').is_none() {
        let from = one(chars)?;
        let to = if chars.next_if_eq(&'-').is_none() {
            from
        } else if chars.peek() == Some(&']') {
            // A hyphen at the end is a literal.
            ranges.push(('-', '-'));
            from
        } else {
            one(chars)?
        };
        if to < from {
            return Err(invalid(format!("{from:?} to {to:?} is no range")));
        }
        ranges.push((from, to));
    }
    if ranges.is_empty() {
        return Err(invalid("a character class is empty"));
    }
    let set = CharSet::new(ranges);
    let set = if negated { set.complement() } else { set };
    if set.is_empty() {
        return Err(invalid("a character class leaves no character"));
    }
    Ok(set)
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    names: &'a HashMap<&'a str, usize>,
}

impl Parser<'_> {
    fn alternatives(&mut self, depth: usize) -> Result<Node, ConstraintError> {
        if depth > MAX_DEPTH {
            return Err(invalid(format!("parentheses nest more than {MAX_DEPTH} levels")));
        }
        let mut all = vec![self.sequence(depth)?];
        while self.tokens.get(self.at) == Some(&Token::Symbol('|')) {
            self.at += 1;
            all.push(self.sequence(depth)?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Node::Alternatives(all) })
    }

    fn sequence(&mut self, depth: usize) -> Result<Node, ConstraintError> {
        let mut parts: Vec<Node> = Vec::new();
        while let Some(token) = self.tokens.get(self.at) {
            let (min, max) = match token {
                Token::Symbol('|' | ')') => break,
                Token::Symbol('*') => (0, None),
                Token::Symbol('+') => (1, None),
                Token::Symbol('?') => (0, Some(1)),
                Token::Repeat(min, max) => (*min, *max),
                other => {
                    self.at += 1;
                    parts.push(self.part(other, depth)?);
                    continue;
                }
            };
            self.at += 1;
            let repeated = parts.pop().ok_or_else(|| invalid("there is nothing to repeat"))?;
            parts.push(Node::Repeat(Box::new(repeated), min, max));
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Node::Sequence(parts) })
    }

    fn part(&mut self, token: &Token, depth: usize) -> Result<Node, ConstraintError> {
        Ok(match token {
            Token::Text(text) => Node::Text(text.clone()),
            Token::Class(class) => Node::Class(class.clone()),
            Token::Name(name) => match self.names.get(name.as_str()) {
                Some(&rule) => Node::Rule(rule),
                None => return Err(invalid(format!("there is no rule {name:?}"))),
            },
            Token::Symbol('(') => {
                let inside = self.alternatives(depth + 1)?;
                if self.tokens.get(self.at) != Some(&Token::Symbol(')')) {
                    return Err(invalid("a parenthesis does not close"));
                }
                self.at += 1;
                inside
            }
            other => return Err(invalid(format!("unexpected {other:?}"))),
        })
    }
}

struct Writer<'a> {
    rules: &'a [Node],
    /// Which rules refer to no recursive rule.
    regular: Vec<bool>,
    /// Which rules match the empty text.
    nullable: Vec<bool>,
    /// Regular parts that are written as single characters, because a token would take too much text.
    split: Vec<Node>,
}

impl<'a> Writer<'a> {
    fn new(rules: &'a [Node]) -> Self {
        let references: Vec<Vec<usize>> = rules.iter().map(references).collect();
        // A rule is regular once all rules that it refers to are. The others are recursive, or refer to recursive
        // rules.
        let mut regular = vec![false; rules.len()];
        let mut changed = true;
        while std::mem::take(&mut changed) {
            for (i, references) in references.iter().enumerate() {
                if !regular[i] && references.iter().all(|&rule| regular[rule]) {
                    (regular[i], changed) = (true, true);
                }
            }
        }
        let mut this = Self { rules, regular, nullable: vec![false; rules.len()], split: Vec::new() };
        changed = true;
        while std::mem::take(&mut changed) {
            for (i, rule) in rules.iter().enumerate() {
                if !this.nullable[i] && this.is_nullable(rule) {
                    (this.nullable[i], changed) = (true, true);
                }
            }
        }
        this
    }

    fn write(mut self, root: usize) -> String {
        loop {
            let parts = self.parts(root);
            let Some(found) = greedy::conflicts(&parts) else { return self.lark(&parts) };
            self.split.extend(found);
        }
    }

    /// The grammar as rules over tokens.
    fn parts(&self, root: usize) -> Parts {
        let mut parts = Parts { rules: Vec::new(), terminals: Vec::new(), start: Item::Rule(root) };
        parts.rules.resize(self.rules.len(), None);
        parts.start = self.item(&Node::Rule(root), &mut parts);
        let mut left = vec![root];
        while let Some(rule) = left.pop() {
            // A regular rule is written where it is used; but as single characters it can be shared.
            if parts.rules[rule].is_some() || (self.regular[rule] && !self.is_split(&Node::Rule(rule))) {
                continue;
            }
            let item = self.item(&self.rules[rule], &mut parts);
            parts.rules[rule] = Some(item);
            left.extend(references(&self.rules[rule]));
        }
        parts
    }

    fn is_split(&self, node: &Node) -> bool {
        self.split.contains(node)
    }

    fn is_regular(&self, node: &Node) -> bool {
        references(node).iter().all(|&rule| self.regular[rule])
    }

    fn is_nullable(&self, node: &Node) -> bool {
        match node {
            Node::Alternatives(nodes) => nodes.iter().any(|node| self.is_nullable(node)),
            Node::Sequence(nodes) => nodes.iter().all(|node| self.is_nullable(node)),
            Node::Repeat(node, min, _) => *min == 0 || self.is_nullable(node),
            Node::Text(text) => text.is_empty(),
            Node::Class(_) => false,
            Node::Rule(rule) => self.nullable[*rule],
        }
    }

    /// Converts a part of a rule: regular parts become tokens, unless they are split.
    fn item(&self, node: &Node, parts: &mut Parts) -> Item {
        if self.is_regular(node) && !self.is_split(node) {
            return self.terminal(std::slice::from_ref(node), parts);
        }
        match node {
            Node::Alternatives(nodes) => Item::Alternatives(nodes.iter().map(|node| self.item(node, parts)).collect()),
            Node::Sequence(nodes) => {
                let together = |node: &Node| self.is_regular(node) && !self.is_split(node);
                let mut items = Vec::new();
                for part in nodes.chunk_by(|a, b| together(a) && together(b)) {
                    let sequence = Node::Sequence(part.to_vec());
                    if part.len() > 1 && self.is_split(&sequence) {
                        items.extend(part.iter().map(|node| self.item(node, parts)));
                    } else if together(&part[0]) {
                        items.push(self.terminal(part, parts));
                    } else {
                        items.extend(part.iter().map(|node| self.item(node, parts)));
                    }
                }
                Item::Sequence(items)
            }
            Node::Repeat(node, min, max) => Item::Repeat(Box::new(self.item(node, parts)), *min, *max),
            Node::Rule(rule) => Item::Rule(*rule),
            Node::Text(text) => {
                let mut chars = text.chars();
                let items = chars.by_ref().map(|c| {
                    let one = Node::Class(CharSet::new(vec![(c, c)]));
                    self.terminal(std::slice::from_ref(&one), parts)
                });
                Item::Sequence(items.collect())
            }
            Node::Class(_) => self.terminal(std::slice::from_ref(node), parts),
        }
    }

    /// A token for adjacent regular parts.
    fn terminal(&self, nodes: &[Node], parts: &mut Parts) -> Item {
        let node = match nodes {
            [node] => node.clone(),
            nodes => Node::Sequence(nodes.to_vec()),
        };
        let is_nullable = self.is_nullable(&node);
        let known = parts.terminals.iter().position(|terminal| terminal.node == node);
        let at = known.unwrap_or_else(|| {
            let inlined = self.inlined(&node);
            parts.terminals.push(Terminal { node, inlined });
            parts.terminals.len() - 1
        });
        // A token is never empty, but may be optional.
        if is_nullable { Item::Repeat(Box::new(Item::Terminal(at)), 0, Some(1)) } else { Item::Terminal(at) }
    }

    /// A regular part with its references replaced; `None` if it becomes too large.
    fn inlined(&self, node: &Node) -> Option<Node> {
        fn go(rules: &[Node], node: &Node, left: &mut usize) -> Option<Node> {
            *left = left.checked_sub(1)?;
            let mut all = |nodes: &[Node]| nodes.iter().map(|node| go(rules, node, left)).collect::<Option<Vec<_>>>();
            Some(match node {
                Node::Alternatives(nodes) => Node::Alternatives(all(nodes)?),
                Node::Sequence(nodes) => Node::Sequence(all(nodes)?),
                Node::Repeat(node, min, max) => Node::Repeat(Box::new(go(rules, node, left)?), *min, *max),
                Node::Rule(rule) => go(rules, &rules[*rule], left)?,
                Node::Text(_) | Node::Class(_) => node.clone(),
            })
        }
        go(self.rules, node, &mut greedy::MAX_POSITIONS.clone())
    }

    fn lark(&self, parts: &Parts) -> String {
        let mut out = format!("start: {}\n", self.lark_item(&parts.start));
        for (i, item) in parts.rules.iter().enumerate() {
            if let Some(item) = item {
                let _ = writeln!(out, "rule_{i}: {}", self.lark_item(item));
            }
        }
        // The definitions of tokens refer to those of regular rules.
        let mut left: Vec<usize> = parts.terminals.iter().flat_map(|terminal| references(&terminal.node)).collect();
        let mut written = vec![false; self.rules.len()];
        while let Some(rule) = left.pop() {
            if !std::mem::replace(&mut written[rule], true) {
                let _ = writeln!(out, "RULE_{rule}: {}", self.token_body(&self.rules[rule]));
                left.extend(references(&self.rules[rule]));
            }
        }
        for (i, terminal) in parts.terminals.iter().enumerate() {
            let _ = writeln!(out, "PART_{i}: {}", self.token_body(&terminal.node));
        }
        out
    }

    fn lark_item(&self, item: &Item) -> String {
        let all = |items: &[Item], between: &str| {
            let all: Vec<_> = items.iter().map(|item| self.lark_item(item)).collect();
            format!("({})", all.join(between))
        };
        match item {
            Item::Alternatives(items) => all(items, " | "),
            Item::Sequence(items) if items.is_empty() => "\"\"".to_owned(),
            Item::Sequence(items) => all(items, " "),
            Item::Repeat(item, min, max) => repeat(&format!("({})", self.lark_item(item)), *min, *max),
            Item::Rule(rule) => format!("rule_{rule}"),
            Item::Terminal(at) => format!("PART_{at}"),
        }
    }

    /// The definition of a token.
    fn token_body(&self, node: &Node) -> String {
        match node {
            Node::Alternatives(nodes) => {
                let all: Vec<_> = nodes.iter().map(|node| self.token_body(node)).collect();
                format!("({})", all.join(" | "))
            }
            Node::Sequence(nodes) if nodes.is_empty() => "\"\"".to_owned(),
            Node::Sequence(nodes) => {
                let all: Vec<_> = nodes.iter().map(|node| self.token_body(node)).collect();
                format!("({})", all.join(" "))
            }
            Node::Repeat(node, min, max) => repeat(&format!("({})", self.token_body(node)), *min, *max),
            Node::Text(text) => serde_json::Value::String(text.clone()).to_string(),
            Node::Class(set) => format!("/{}/", set.regex()),
            Node::Rule(rule) => format!("RULE_{rule}"),
        }
    }
}

/// A grammar over tokens: what they match, and in which order they follow.
#[derive(Debug)]
struct Parts {
    /// The item of each rule that is not part of a token.
    rules: Vec<Option<Item>>,
    terminals: Vec<Terminal>,
    start: Item,
}

#[derive(Debug)]
struct Terminal {
    node: Node,
    /// The same with its references replaced; `None` if that is too large.
    inlined: Option<Node>,
}

#[derive(Debug, Clone)]
enum Item {
    Alternatives(Vec<Item>),
    Sequence(Vec<Item>),
    Repeat(Box<Item>, u32, Option<u32>),
    Rule(usize),
    Terminal(usize),
}

fn repeat(body: &str, min: u32, max: Option<u32>) -> String {
    match (min, max) {
        (0, None) => format!("{body}*"),
        (1, None) => format!("{body}+"),
        (0, Some(1)) => format!("{body}?"),
        (min, None) => format!("{body}{{{min},}}"),
        (min, Some(max)) => format!("{body}{{{min},{max}}}"),
    }
}

/// The rules that a node refers to.
fn references(node: &Node) -> Vec<usize> {
    match node {
        Node::Alternatives(nodes) | Node::Sequence(nodes) => nodes.iter().flat_map(references).collect(),
        Node::Repeat(node, ..) => references(node),
        Node::Rule(rule) => vec![*rule],
        Node::Text(_) | Node::Class(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(source: &str) -> Vec<String> {
        to_lark(source).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn regular_rules_become_one_token() {
        let found = lines("root ::= [a-z]+ \" \" num # a comment\nnum ::= \"-\"? [0-9]{1,3}");
        assert_eq!(
            found,
            [
                "start: PART_0",
                r#"RULE_0: ((/[\x{61}-\x{7A}]/)+ " " RULE_1)"#,
                r#"RULE_1: (("-")? (/[\x{30}-\x{39}]/){1,3})"#,
                "PART_0: RULE_0",
            ]
        );
    }

    #[test]
    fn recursive_rules_become_lark_rules() {
        let found = lines("root ::= ws \"(\" root? \")\"\nws ::= [ ]*");
        assert_eq!(found[..2], ["start: rule_0", "rule_0: (PART_0 (rule_0)? PART_1)"]);
        assert_eq!(found[2], r"RULE_1: (/[\x{20}-\x{20}]/)*");
        assert_eq!(found[3..], [r#"PART_0: (RULE_1 "(")"#, r#"PART_1: ")""#]);
    }

    #[test]
    fn tokens_that_would_match_too_much_are_split() {
        // White space may end in the line break that follows it.
        let found = lines("root ::= (expr \"\\n\")+\nexpr ::= [0-9]+ ws | \"(\" expr \")\" ws\nws ::= [ \\n]*");
        assert!(found.iter().any(|line| line.contains("(PART_4)*")), "{found:#?}");
        assert!(found.contains(&r"PART_4: /[\x{A}-\x{A}\x{20}-\x{20}]/".to_owned()), "{found:#?}");
        // Without a line break in it, it stays a token.
        let found = lines("root ::= (expr \"\\n\")+\nexpr ::= [0-9]+ ws | \"(\" expr \")\" ws\nws ::= [ ]*");
        assert!(found.iter().any(|line| line.starts_with("PART_") && line.contains("RULE_2")), "{found:#?}");
    }

    #[test]
    fn invalid_grammars_are_rejected() {
        for bad in [
            "",
            "a b",
            "x ::= \"a\"",
            "root ::= nothing",
            "root ::= \"a",
            "root ::= [a",
            "root ::= []",
            "root ::= [z-a]",
            "root ::= \"\\q\"",
            "root ::= \"\\x0\"",
            "root ::= (\"a\"",
            "root ::= \"a\")",
            "root ::= * \"a\"",
            "root ::= \"a\"{2,1}",
            "root ::= \"a\"{99999999}",
            "root ::= \"a\"{",
            "root ::= \"a\"\nroot ::= \"b\"",
            "root : \"a\"",
            "root ::= ! \"a\"",
            &format!("root ::= {}", "(".repeat(1000)),
        ] {
            assert!(matches!(to_lark(bad), Err(ConstraintError::Invalid { .. })), "{bad:?}");
        }
    }
}
