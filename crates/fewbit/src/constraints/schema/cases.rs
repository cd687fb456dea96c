//! The values that a conjunction of schemas allows, as a list of cases.
//!
//! A [`Case`] has no alternatives left: it has, for each type, the conditions of its values. `anyOf`, `oneOf`, `if`,
//! `not` and the dependent keywords branch; everything else narrows the case that it is applied to. A value satisfies
//! the conjunction if and only if it is in one of the cases. So two schemas exclude each other if their conjunction has
//! no case: this shows that a `oneOf` is equal to `anyOf`.
//!
//! Schemas of parts (properties, items) are not looked into here: they stay conjunctions of places ([`Atom`]s), of which
//! there are finitely many, and so recursive schemas come to an end.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;

use super::super::ConstraintError;
use super::exact::{Json, Number};
use super::keywords::{Alternative, Step};
use super::numbers::Numbers;
use super::patterns::Pattern;
use super::places::{Id, Places};
use super::strings::Strings;

/// The types, one bit each. A number with nothing after the point is an integer, the others are fractions.
pub(super) mod types {
    pub(in super::super) const NULL: u8 = 1;
    pub(in super::super) const FALSE: u8 = 2;
    pub(in super::super) const TRUE: u8 = 4;
    pub(in super::super) const INTEGER: u8 = 8;
    pub(in super::super) const FRACTION: u8 = 16;
    pub(in super::super) const STRING: u8 = 32;
    pub(in super::super) const ARRAY: u8 = 64;
    pub(in super::super) const OBJECT: u8 = 128;
    pub(in super::super) const ALL: u8 = 255;
    pub(in super::super) const NUMBER: u8 = INTEGER | FRACTION;
}

/// The most cases of a schema, in total.
const MAX_CASES: usize = 20_000;

/// How deep required parts are followed to prove that a schema has no values.
const MAX_PROOF_DEPTH: usize = 8;

/// A part of a conjunction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Atom {
    /// The schema at this place holds.
    Is(Id),
    /// The schema at this place holds, except for its `oneOf`.
    Beside(Id),
    /// The schema at this place does not hold.
    Not(Id),
    /// The value equals the one at this place.
    Equal(Id),
    /// No value is allowed.
    Never,
}

/// Sorted, without duplicates.
pub(super) type Conjunction = Vec<Atom>;

/// The schemas with `unevaluated…` that a part belongs to.
pub(super) type Scope = Rc<BTreeSet<Id>>;

/// What one schema requires of properties.
#[derive(Debug, Clone)]
pub(super) struct ObjectPart<'a> {
    pub(super) properties: Vec<(&'a str, Atom)>,
    pub(super) patterns: Vec<(Rc<Pattern>, Atom)>,
    pub(super) additional: Option<Atom>,
    pub(super) scope: Scope,
}

/// What one schema requires of items.
#[derive(Debug, Clone)]
pub(super) struct ArrayPart {
    pub(super) prefix: Vec<Atom>,
    pub(super) rest: Option<Atom>,
    pub(super) scope: Scope,
}

/// What one schema requires of parts that nothing in it evaluates.
#[derive(Debug, Clone)]
pub(super) struct Unevaluated {
    pub(super) at: Id,
    pub(super) atom: Atom,
    /// The schema itself, and those around it.
    pub(super) scope: Scope,
}

#[derive(Debug, Clone)]
pub(super) struct Case<'a> {
    pub(super) types: u8,
    pub(super) numbers: Numbers,
    pub(super) strings: Strings,
    pub(super) arrays: Vec<ArrayPart>,
    pub(super) min_items: u64,
    pub(super) max_items: Option<u64>,
    /// The place of `uniqueItems`.
    pub(super) unique: Option<Id>,
    /// What some items must be: the condition, the least and the largest number of them, and the place.
    pub(super) contains: Vec<(Atom, u64, Option<u64>, Id)>,
    pub(super) objects: Vec<ObjectPart<'a>>,
    pub(super) names: Conjunction,
    pub(super) required: Vec<&'a str>,
    pub(super) min_properties: u64,
    pub(super) max_properties: Option<u64>,
    /// The place of `minProperties` or `maxProperties`.
    pub(super) counted_at: Option<Id>,
    /// For each schema, what it requires of properties and items that nothing in it evaluates.
    pub(super) unevaluated_properties: Vec<Unevaluated>,
    pub(super) unevaluated_items: Vec<Unevaluated>,
    /// The place of the conditions of numbers, for errors.
    pub(super) numbers_at: Option<Id>,
    seen: BTreeSet<(Atom, Vec<Id>)>,
}

impl Default for Case<'_> {
    fn default() -> Self {
        Self {
            types: types::ALL,
            numbers: Numbers::default(),
            strings: Strings::default(),
            arrays: Vec::new(),
            min_items: 0,
            max_items: None,
            unique: None,
            contains: Vec::new(),
            objects: Vec::new(),
            names: Vec::new(),
            required: Vec::new(),
            min_properties: 0,
            max_properties: None,
            counted_at: None,
            unevaluated_properties: Vec::new(),
            unevaluated_items: Vec::new(),
            numbers_at: None,
            seen: BTreeSet::new(),
        }
    }
}

impl<'a> Case<'a> {
    /// Adds the atom, and returns whether it is new.
    pub(super) fn is_new(&mut self, atom: Atom, scope: &Scope) -> bool {
        self.seen.insert((atom, scope.iter().copied().collect()))
    }

    pub(super) fn require(&mut self, name: &'a str) {
        if !self.required.contains(&name) {
            self.required.push(name);
        }
    }

    /// Removes the types that have no values left.
    fn settle(&mut self) {
        if self.numbers.is_empty(true) {
            self.types &= !types::INTEGER;
        }
        if self.numbers.is_empty(false) || self.numbers.listed().is_some_and(|all| all.iter().all(Number::is_integer)) {
            self.types &= !types::FRACTION;
        }
        if self.strings.is_empty() {
            self.types &= !types::STRING;
        }
        if self.max_items.is_some_and(|max| max < self.min_items) {
            self.types &= !types::ARRAY;
        }
        let least = self.min_properties.max(self.required.len() as u64);
        if self.max_properties.is_some_and(|max| max < least) {
            self.types &= !types::OBJECT;
        }
        // What of numbers is out of reach is not an error later.
    }

    /// The conditions of the item at an index.
    pub(super) fn item(&self, i: usize) -> Conjunction {
        let mut all = Vec::new();
        for part in &self.arrays {
            all.extend(part.prefix.get(i).or(part.rest.as_ref()));
        }
        let evaluates = |part: &&ArrayPart| i < part.prefix.len() || part.rest.is_some();
        let evaluated = self.arrays.iter().filter(evaluates).flat_map(|part| part.scope.iter().copied()).collect();
        all.extend(rest(&self.unevaluated_items, evaluated));
        sorted(all)
    }

    /// The number of indices whose items have conditions of their own.
    pub(super) fn n_prefix(&self) -> usize {
        self.arrays.iter().map(|part| part.prefix.len()).max().unwrap_or(0)
    }

    /// The conditions of the property with a name, or of names that match exactly these patterns.
    pub(super) fn property(&self, matches: impl Fn(&Pattern) -> bool, name: Option<&str>) -> Conjunction {
        let mut all = Vec::new();
        let mut evaluated: BTreeSet<Id> = BTreeSet::new();
        for part in &self.objects {
            let own = part.properties.iter().filter(|(found, _)| name == Some(found)).map(|(_, atom)| *atom);
            let by_pattern = part.patterns.iter().filter(|(pattern, _)| matches(pattern)).map(|(_, atom)| *atom);
            let mut found: Vec<Atom> = own.chain(by_pattern).collect();
            if found.is_empty() {
                found.extend(part.additional);
            }
            if !found.is_empty() {
                evaluated.extend(part.scope.iter());
            }
            all.extend(found);
        }
        all.extend(rest(&self.unevaluated_properties, evaluated));
        sorted(all)
    }

    /// The names of properties that occur, in order.
    pub(super) fn mentioned(&self) -> Vec<&'a str> {
        let mut seen = BTreeSet::new();
        let all = self.objects.iter().flat_map(|part| part.properties.iter().map(|(name, _)| *name));
        all.chain(self.required.iter().copied()).filter(|name| seen.insert(*name)).collect()
    }
}

/// The remaining conditions of a part that these schemas evaluated.
fn rest(unevaluated: &[Unevaluated], mut evaluated: BTreeSet<Id>) -> Vec<Atom> {
    for found in unevaluated {
        // For the schemas around it, it evaluates everything.
        evaluated.extend(found.scope.iter().copied().filter(|id| *id != found.at));
    }
    unevaluated.iter().filter(|found| !evaluated.contains(&found.at)).map(|found| found.atom).collect()
}

pub(super) fn sorted(mut all: Conjunction) -> Conjunction {
    all.sort_unstable();
    all.dedup();
    all
}

/// Finds the cases of conjunctions.
pub(super) struct Solver<'a> {
    pub(super) places: Places<'a>,
    /// `oneOf` is read as `anyOf`.
    pub(super) any_of_one: bool,
    pub(super) patterns: HashMap<&'a str, Rc<Pattern>>,
    n_cases: usize,
    /// Conjunctions for which a proof that they are empty is under way.
    proving: Vec<Conjunction>,
}

impl<'a> Solver<'a> {
    pub(super) fn new(root: &'a Json, any_of_one: bool) -> Self {
        let places = Places::new(root);
        Self { places, any_of_one, patterns: HashMap::new(), n_cases: 0, proving: Vec::new() }
    }

    /// The cases that a conjunction allows.
    pub(super) fn cases(&mut self, conjunction: &[Atom]) -> Result<Vec<Case<'a>>, ConstraintError> {
        let scope = Scope::default();
        let todo = conjunction.iter().map(|atom| Step::Atom(*atom, Rc::clone(&scope))).collect();
        let mut cases = Vec::new();
        self.expand(Case::default(), todo, VecDeque::new(), &mut cases)?;
        Ok(cases)
    }

    fn expand(
        &mut self,
        mut case: Case<'a>,
        mut todo: VecDeque<Step<'a>>,
        mut branches: VecDeque<Vec<Alternative<'a>>>,
        cases: &mut Vec<Case<'a>>,
    ) -> Result<(), ConstraintError> {
        self.n_cases += 1;
        if self.n_cases > MAX_CASES {
            let reason = format!("its alternatives combine to more than {MAX_CASES} cases");
            return Err(ConstraintError::TooLarge { kind: "JSON schema", reason });
        }
        while let Some(step) = todo.pop_front() {
            self.apply(step, &mut case, &mut todo, &mut branches)?;
        }
        case.settle();
        if case.types == 0 {
            return Ok(());
        }
        let Some(alternatives) = branches.pop_front() else {
            cases.push(case);
            return Ok(());
        };
        for alternative in alternatives {
            self.expand(case.clone(), alternative.into(), branches.clone(), cases)?;
        }
        Ok(())
    }

    /// Whether it is certain that no value satisfies the conjunction.
    pub(super) fn is_empty(&mut self, conjunction: &Conjunction) -> Result<bool, ConstraintError> {
        if self.proving.len() > MAX_PROOF_DEPTH || self.proving.contains(conjunction) {
            return Ok(false);
        }
        self.proving.push(conjunction.clone());
        let result = self.cases(conjunction).and_then(|cases| {
            for case in cases {
                if !self.is_case_empty(case)? {
                    return Ok(false);
                }
            }
            Ok(true)
        });
        self.proving.pop();
        result
    }

    /// Required parts are looked at only if nothing else is left.
    fn is_case_empty(&mut self, case: Case<'a>) -> Result<bool, ConstraintError> {
        if case.types & !(types::OBJECT | types::ARRAY) != 0 {
            return Ok(false);
        }
        if case.types & types::ARRAY != 0 {
            let mut has_empty = false;
            for i in 0..usize::try_from(case.min_items).unwrap_or(usize::MAX).min(case.n_prefix() + 1) {
                has_empty |= self.is_empty(&case.item(i))?;
            }
            if !has_empty {
                return Ok(false);
            }
        }
        if case.types & types::OBJECT != 0 {
            let mut has_empty = false;
            for name in &case.required {
                let conjunction = case.property(|pattern| pattern.is_match(name), Some(name));
                has_empty |= self.is_empty(&conjunction)?;
                if has_empty {
                    break;
                }
            }
            if !has_empty {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a string is allowed.
    pub(super) fn admits_string(&mut self, conjunction: &Conjunction, text: &str) -> Result<bool, ConstraintError> {
        let cases = self.cases(conjunction)?;
        Ok(cases.iter().any(|case| case.types & types::STRING != 0 && case.strings.admits(text)))
    }
}
