//! Sets of numbers, and the regular expressions of their texts.
//!
//! A text of a number is described by several simple regular expressions that must all match: how a number is written
//! and how many digits it may have, what is at least the minimum, what is at most the maximum, what is a multiple.
//! Bounds are compared digit by digit, so they may be of any size.
//!
//! Numbers have a bounded length. If a schema has no bounds, integers stay within their `format`, or else within the
//! range that an f64 holds exactly; other numbers have at most [`INTEGER_DIGITS`] digits before the point,
//! [`FRACTION_DIGITS`] after it (an f64 has 17) and [`EXPONENT_DIGITS`] in the exponent, which only numbers without
//! bounds have.

use std::fmt::Write;

use super::exact::Number;

pub(crate) const INTEGER_DIGITS: usize = 15;
pub(crate) const FRACTION_DIGITS: usize = 17;
pub(crate) const EXPONENT_DIGITS: usize = 2;

/// The most digits of a number in a schema.
pub(super) const MAX_DIGITS: usize = 400;

/// The most endings of a multiple that are listed.
const MAX_ENDINGS: u64 = 1000;

/// The most digits of a divisor whose multiples cannot be told by their last digits.
const MAX_DIVISOR_DIGITS: usize = 4;

/// A set of numbers: those that satisfy all of these conditions.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Numbers {
    /// The largest lower bound, and whether it is excluded.
    pub(super) min: Option<(Number, bool)>,
    pub(super) max: Option<(Number, bool)>,
    pub(super) multiples: Vec<Number>,
    /// If set, the only values.
    pub(super) values: Option<Vec<Number>>,
    pub(super) excluded: Vec<Number>,
    /// The integer `format`, whose range bounds numbers without bounds of their own.
    pub(super) format: Option<String>,
}

/// How a set of values is written in a grammar.
pub(super) enum Written {
    /// Regular expressions that must all hold; each with whether it is negated.
    Regex(Vec<(String, bool)>),
    /// A JSON schema for the engine's own compiler.
    Multiple(String),
}

impl Numbers {
    pub(super) fn at_least(&mut self, bound: Number, is_excluded: bool) {
        let is_tighter =
            self.min.as_ref().is_none_or(|(min, excluded)| bound > *min || (bound == *min && is_excluded && !excluded));
        if is_tighter {
            self.min = Some((bound, is_excluded));
        }
    }

    pub(super) fn at_most(&mut self, bound: Number, is_excluded: bool) {
        let is_tighter =
            self.max.as_ref().is_none_or(|(max, excluded)| bound < *max || (bound == *max && is_excluded && !excluded));
        if is_tighter {
            self.max = Some((bound, is_excluded));
        }
    }

    /// Whether the set has a value.
    #[cfg(test)]
    pub(super) fn admits(&self, value: &Number) -> bool {
        self.values.as_ref().is_none_or(|values| values.contains(value)) && self.keeps(value)
    }

    /// Whether the value is allowed by the list of values, if there is one.
    fn keeps(&self, value: &Number) -> bool {
        self.min.as_ref().is_none_or(|(min, excluded)| value > min || (value == min && !excluded))
            && self.max.as_ref().is_none_or(|(max, excluded)| value < max || (value == max && !excluded))
            && self.multiples.iter().all(|of| is_multiple(value, of))
            && !self.excluded.contains(value)
    }

    /// The keyword that makes the set impossible to write, for errors.
    pub(super) fn blamed(&self) -> &'static str {
        let is_long = |bound: &Option<(Number, bool)>| {
            bound.as_ref().is_some_and(|(number, _)| number.plain(MAX_DIGITS).is_none())
        };
        match () {
            () if self.values.is_some() => "",
            () if is_long(&self.min) => "minimum",
            () if is_long(&self.max) => "maximum",
            () if !self.multiples.is_empty() => "multipleOf",
            () => "",
        }
    }

    /// The values, if they are listed.
    pub(super) fn listed(&self) -> Option<Vec<Number>> {
        let values = self.values.as_ref()?;
        Some(values.iter().filter(|value| self.keeps(value)).cloned().collect())
    }

    /// Whether the set is empty, as far as bounds and values show. `integers`: counts only integers.
    pub(super) fn is_empty(&self, integers: bool) -> bool {
        if let Some(values) = self.listed() {
            return !values.iter().any(|value| !integers || value.is_integer());
        }
        let (Some((min, min_excluded)), Some((max, max_excluded))) = (&self.min, &self.max) else { return false };
        if min > max || (min == max && (*min_excluded || *max_excluded)) {
            return true;
        }
        integers && {
            let (min, max) = (whole(min, *min_excluded, true), whole(max, *max_excluded, false));
            min.zip(max).is_some_and(|(min, max)| min > max)
        }
    }

    /// Writes the set: integers, numbers with a fraction, or both.
    pub(super) fn write(&self, integers: bool, fractions: bool) -> Result<Written, String> {
        let too_long = || format!("a number has more than {MAX_DIGITS} digits");
        let digits = |number: &Number| number.plain(MAX_DIGITS).ok_or_else(too_long);
        let mut all = Vec::new();
        if let Some(values) = self.listed() {
            let mut texts = Vec::new();
            for value in values.iter().filter(|value| if value.is_integer() { integers } else { fractions }) {
                texts.push(regex_syntax::escape(&value.text(MAX_DIGITS).ok_or_else(too_long)?));
            }
            return Ok(Written::Regex(vec![(texts.join("|"), false)]));
        }
        let (mut min, mut max) = (self.min.clone(), self.max.clone());
        if !fractions {
            self.bound_integers(&mut min, &mut max);
        }
        // Makes room for the bounds themselves.
        let (mut n_integer, mut n_fraction) = (INTEGER_DIGITS, FRACTION_DIGITS);
        for (bound, _) in [&min, &max].into_iter().flatten() {
            let (integer, fraction) = digits(bound)?;
            n_integer = n_integer.max(integer.len() + usize::from(min.is_none() || max.is_none()));
            n_fraction = n_fraction.max(fraction.len() + 1);
        }
        let fraction = format!("(\\.[0-9]{{1,{n_fraction}}})?");
        if !fractions {
            all.push((format!("0|-?[1-9][0-9]{{0,{}}}", n_integer.max(1) - 1), false));
        } else {
            let is_free = min.is_none() && max.is_none() && self.multiples.is_empty() && self.excluded.is_empty();
            let exponent = if is_free { format!("([eE][+-]?[0-9]{{1,{EXPONENT_DIGITS}}})?") } else { String::new() };
            all.push((format!("-?(0|[1-9][0-9]{{0,{}}}){fraction}{exponent}", n_integer - 1), false));
            if !integers {
                all.push((r"-?[0-9]+\.[0-9]*[1-9][0-9]*".to_owned(), false));
            }
        }
        let any = r"(\.[0-9]+)?";
        if let Some((bound, is_excluded)) = &min {
            let (integer, after) = digits(bound)?;
            all.push((
                if bound.is_negative {
                    format!("-({})|[0-9]+{any}", up_to(&integer, &after, *is_excluded))
                } else if bound.is_zero() && !is_excluded {
                    format!("[0-9]+{any}")
                } else {
                    from(&integer, &after, *is_excluded)
                },
                false,
            ));
        }
        if let Some((bound, is_excluded)) = &max {
            let (integer, after) = digits(bound)?;
            all.push((
                if bound.is_negative {
                    format!("-({})", from(&integer, &after, *is_excluded))
                } else if bound.is_zero() && *is_excluded {
                    format!("-({})", from("0", "", true))
                } else {
                    format!("-[0-9]+{any}|{}", up_to(&integer, &after, *is_excluded))
                },
                false,
            ));
        }
        for value in &self.excluded {
            let text = value.text(MAX_DIGITS).ok_or_else(too_long)?;
            let point = if value.is_integer() { r"(\.0+)?" } else { "0*" };
            let sign = if value.is_zero() { "-?" } else { "" };
            all.push((format!("{sign}{}{point}", regex_syntax::escape(&text)), true));
        }
        let mut rest = Vec::new();
        for of in &self.multiples {
            match endings(of, fractions) {
                Some(regex) => all.push((regex, false)),
                None => rest.push(of),
            }
        }
        match rest.as_slice() {
            [] => Ok(Written::Regex(all)),
            [of] if self.multiples.len() == 1 && self.excluded.is_empty() && (integers || of.is_integer()) => {
                // The engine can test divisibility; its bounds are f64.
                let bound = |bound: &Number| {
                    let text = bound.text(15).ok_or("bounds have too many digits for a multiple of this number");
                    text.map_err(str::to_owned)
                };
                let whole =
                    if fractions { (*of).clone() } else { whole_multiple(of).ok_or("it has too many digits")? };
                // Testing divisibility takes as many states as the divisor is large, without its point.
                let n_digits = |text: &str| text.bytes().filter(u8::is_ascii_digit).count();
                let of_text = whole.text(MAX_DIVISOR_DIGITS).filter(|text| n_digits(text) <= MAX_DIVISOR_DIGITS);
                let of_text = of_text.ok_or("it has too many digits")?;
                let ty = if fractions { "number" } else { "integer" };
                let mut schema = format!(r#"{{"type":"{ty}","multipleOf":{of_text}"#);
                let limit = (Number::of("999999999999999"), false);
                let (min, max) = if fractions {
                    (min.or_else(|| Some((limit.0.clone().negated(), false))), max.or(Some(limit)))
                } else {
                    let clamp = |found: Option<(Number, bool)>, limit: (Number, bool), least: bool| match found {
                        Some(found) if (found.0 < limit.0) == least || found.0.text(15).is_none() => limit,
                        Some(found) => found,
                        None => limit,
                    };
                    let low = (limit.0.clone().negated(), false);
                    let is_far = min.as_ref().is_some_and(|(min, _)| *min > limit.0)
                        || max.as_ref().is_some_and(|(max, _)| *max < low.0);
                    if is_far {
                        return Err("bounds have too many digits for a multiple of this number".to_owned());
                    }
                    (Some(clamp(min, low, true)), Some(clamp(max, limit, false)))
                };
                for (found, plain, exclusive) in
                    [(&min, "minimum", "exclusiveMinimum"), (&max, "maximum", "exclusiveMaximum")]
                {
                    if let Some((number, is_excluded)) = found {
                        let name = if *is_excluded { exclusive } else { plain };
                        let _ = write!(schema, r#","{name}":{}"#, bound(number)?);
                    }
                }
                schema.push_str(r#","x-guidance":{"whitespace_flexible":false}}"#);
                Ok(Written::Multiple(schema))
            }
            _ => Err("multiples of all these numbers at once cannot be enforced".to_owned()),
        }
    }

    /// The bounds of integers, where the schema has none.
    fn bound_integers(&self, min: &mut Option<(Number, bool)>, max: &mut Option<(Number, bool)>) {
        const EXACT: &str = "9007199254740991";
        let (low, high) = match self.format.as_deref().unwrap_or_default() {
            "int8" => ("-128", "127"),
            "uint8" => ("0", "255"),
            "int16" => ("-32768", "32767"),
            "uint16" => ("0", "65535"),
            "int32" => ("-2147483648", "2147483647"),
            "uint32" => ("0", "4294967295"),
            "uint64" | "uint" | "uint128" => ("0", EXACT),
            _ => ("-9007199254740991", EXACT),
        };
        let (low, high) = (Number::of(low), Number::of(high));
        // A bound beyond these implies that larger numbers are meant: then only the number of digits is bounded.
        let is_far_up = min.as_ref().is_some_and(|(min, _)| *min >= high);
        let is_far_down = max.as_ref().is_some_and(|(max, _)| *max <= low);
        if max.is_none() && !is_far_up {
            *max = Some((high, false));
        }
        if min.is_none() && !is_far_down {
            *min = Some((low, false));
        }
    }
}

/// The nearest integer that satisfies a bound; `None` if it has too many digits.
fn whole(bound: &Number, is_excluded: bool, is_lower: bool) -> Option<Number> {
    let (integer, fraction) = bound.plain(MAX_DIGITS)?;
    let sign = if bound.is_negative { "-" } else { "" };
    let toward_zero = Number::of(&format!("{sign}{integer}"));
    let has_fraction = !fraction.is_empty();
    // Away from zero is outward for this side, unless the sign turns it.
    let inward = if has_fraction { is_lower != bound.is_negative } else { is_excluded };
    if !inward {
        return Some(toward_zero);
    }
    let by = if is_lower { 1 } else { -1 };
    let value: i128 = toward_zero.text(36)?.parse().ok()?;
    Some(Number::of(&(value + by).to_string()))
}

/// `value = k * of`, for an integer `k`.
fn is_multiple(value: &Number, of: &Number) -> bool {
    let ((digits, exponent), (divisor, other)) = (value.parts(), of.parts());
    if digits.is_empty() {
        return true;
    }
    let shift = exponent - other;
    let Ok(mut divisor) = divisor.parse::<u128>() else { return false };
    if divisor == 0 || shift.unsigned_abs() > MAX_DIGITS as u64 {
        return false;
    }
    // digits * 10^shift / divisor
    if shift < 0 {
        for _ in 0..-shift {
            let Some(more) = divisor.checked_mul(10) else { return false };
            divisor = more;
        }
    }
    let zeros = std::iter::repeat_n(b'0', shift.max(0) as usize);
    if divisor > u128::MAX / 16 {
        return false;
    }
    digits.bytes().chain(zeros).fold(0_u128, |rest, digit| (rest * 10 + u128::from(digit - b'0')) % divisor) == 0
}

/// A regular expression of the multiples of a number, if their last digits show them.
fn endings(of: &Number, fractions: bool) -> Option<String> {
    let (digits, exponent) = of.parts();
    let digits: u64 = digits.parse().ok()?;
    if digits == 0 {
        return None;
    }
    if exponent < 0 && fractions {
        // Multiples of d * 10^-k: with k digits after the point, which begin again at every integer.
        let k = u32::try_from(-exponent).ok().filter(|k| *k <= 9)?;
        let one = 10_u64.pow(k);
        if digits == 1 {
            return Some(format!("-?[0-9]+(\\.[0-9]{{1,{k}}})?"));
        }
        if !one.is_multiple_of(digits) || one / digits > MAX_ENDINGS {
            return None;
        }
        let fractions: Vec<String> =
            (0..one / digits).map(|i| format!("{:0width$}", i * digits, width = k as usize)).collect();
        let mut all: Vec<String> = Vec::new();
        for fraction in fractions {
            let trimmed = fraction.trim_end_matches('0');
            all.push(if trimmed.is_empty() { "0".into() } else { trimmed.into() });
        }
        return Some(format!("-?[0-9]+(\\.({})0*)?", all.join("|")));
    }
    let whole: u64 = whole_multiple(of)?.text(19)?.parse().ok()?;
    let none = if fractions { r"(\.0+)?" } else { "" };
    for k in 0..=18_u32 {
        let power = 10_u64.pow(k);
        if !power.is_multiple_of(whole) {
            continue;
        }
        if k == 0 {
            return Some(format!("-?[0-9]+{none}"));
        }
        if power / whole > MAX_ENDINGS {
            return None;
        }
        let values: Vec<u64> = (0..power / whole).map(|i| i * whole).collect();
        let short: Vec<String> = values.iter().map(u64::to_string).collect();
        let long: Vec<String> = values.iter().map(|value| format!("{value:0width$}", width = k as usize)).collect();
        return Some(format!("-?({}|[1-9][0-9]*({})){none}", short.join("|"), long.join("|")));
    }
    None
}

/// The smallest positive integer that is a multiple: an integer is a multiple of both, or of neither.
fn whole_multiple(of: &Number) -> Option<Number> {
    let (digits, exponent) = of.parts();
    let digits: u64 = digits.parse().ok()?;
    let whole = if exponent < 0 {
        let one = 10_u64.checked_pow(u32::try_from(-exponent).ok()?)?;
        digits / gcd(digits, one)
    } else {
        digits.checked_mul(10_u64.checked_pow(u32::try_from(exponent).ok()?)?)?
    };
    Some(Number::of(&whole.to_string()))
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Texts, without a sign, of numbers that are at least `integer.fraction`.
fn from(integer: &str, fraction: &str, is_excluded: bool) -> String {
    let any = r"(\.[0-9]+)?";
    let mut all = vec![format!("[1-9][0-9]{{{},}}{any}", integer.len())];
    for (i, digit) in integer.bytes().enumerate().filter(|(_, digit)| *digit < b'9') {
        let least = char::from(digit + 1);
        all.push(format!("{}[{least}-9][0-9]{{{}}}{any}", &integer[..i], integer.len() - i - 1));
    }
    let mut tail = Vec::new();
    for (i, digit) in fraction.bytes().enumerate().filter(|(_, digit)| *digit < b'9') {
        tail.push(format!("{}[{}-9][0-9]*", &fraction[..i], char::from(digit + 1)));
    }
    tail.push(match is_excluded {
        true => format!("{fraction}0*[1-9][0-9]*"),
        false if fraction.is_empty() => "[0-9]+".to_owned(),
        false => format!("{fraction}[0-9]*"),
    });
    let is_optional = fraction.is_empty() && !is_excluded;
    all.push(format!("{integer}(\\.({})){}", tail.join("|"), if is_optional { "?" } else { "" }));
    all.join("|")
}

/// Texts, without a sign, of numbers that are at most `integer.fraction`.
fn up_to(integer: &str, fraction: &str, is_excluded: bool) -> String {
    let any = r"(\.[0-9]+)?";
    let mut all = Vec::new();
    if integer.len() > 1 {
        all.push(format!("(0|[1-9][0-9]{{0,{}}}){any}", integer.len() - 2));
    }
    for (i, digit) in integer.bytes().enumerate() {
        let least = if i == 0 && integer.len() > 1 { b'1' } else { b'0' };
        if digit > least {
            let (least, most) = (char::from(least), char::from(digit - 1));
            all.push(format!("{}[{least}-{most}][0-9]{{{}}}{any}", &integer[..i], integer.len() - i - 1));
        }
    }
    let mut tail = Vec::new();
    for (i, digit) in fraction.bytes().enumerate() {
        if digit > b'0' {
            tail.push(format!("{}[0-{}][0-9]*", &fraction[..i], char::from(digit - 1)));
        }
        if i > 0 {
            // The text ends before the bound does.
            tail.push(fraction[..i].to_owned());
        }
    }
    if !is_excluded {
        tail.push(if fraction.is_empty() { "0+".to_owned() } else { format!("{fraction}0*") });
    }
    if fraction.is_empty() && is_excluded {
        // The integer itself is too large.
    } else {
        all.push(format!("{integer}(\\.({}))?", tail.join("|")));
    }
    // A regular expression that matches nothing: no number is below 0 here.
    if all.is_empty() { r"[^\x{0}-\x{10FFFF}]".to_owned() } else { all.join("|") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a text is one of the numbers' texts.
    fn is_written(numbers: &Numbers, integers: bool, fractions: bool, text: &str) -> bool {
        let Ok(Written::Regex(all)) = numbers.write(integers, fractions) else { panic!("not by a regular expression") };
        all.iter().all(|(regex, is_denied)| {
            regex_automata::meta::Regex::new(&format!("^(?:{regex})$")).unwrap().is_match(text) != *is_denied
        })
    }

    /// Numbers between -1.2 and 1.2 and some large ones, in several spellings.
    fn texts() -> Vec<String> {
        let mut texts: Vec<String> = (-130..=130).map(|n: i32| format!("{}.{:02}", n / 100, n.abs() % 100)).collect();
        texts.extend((-130..0).map(|n: i32| format!("-{}.{:02}", n.abs() / 100, n.abs() % 100)));
        texts.extend((-1200..=1200).map(|n: i32| n.to_string()));
        for large in ["9007199254740992", "175928847299117063", "18446744073709551616", "99.95", "100.05", "1000000.5"]
        {
            texts.extend([large.to_owned(), format!("-{large}")]);
        }
        texts
    }

    #[test]
    fn bounds_hold_for_every_number_text() {
        let bounds = [
            "0",
            "0.1",
            "0.2",
            "0.05",
            "-0.05",
            "1",
            "-1",
            "9",
            "10",
            "-10",
            "99",
            "100",
            "-100",
            "101",
            "0.95",
            "999",
            "1.15",
            "-1.15",
            "9007199254740992",
            "175928847299117063",
            "-18446744073709551616",
            "99.95",
            "1000000",
        ];
        let texts = texts();
        for (i, bound) in bounds.iter().enumerate() {
            for is_excluded in [false, true] {
                for is_lower in [false, true] {
                    let mut numbers = Numbers::default();
                    match is_lower {
                        true => numbers.at_least(Number::of(bound), is_excluded),
                        false => numbers.at_most(Number::of(bound), is_excluded),
                    }
                    let Ok(Written::Regex(all)) = numbers.write(true, true) else { panic!() };
                    let all: Vec<_> = all
                        .iter()
                        .map(|(regex, _)| regex_automata::meta::Regex::new(&format!("^(?:{regex})$")).unwrap())
                        .collect();
                    for text in &texts {
                        let is_in = all.iter().all(|regex| regex.is_match(text));
                        let n_digits = |text: &str| text.trim_start_matches('-').split('.').next().unwrap().len();
                        let is_long = n_digits(text) > INTEGER_DIGITS.max(n_digits(bound) + 1);
                        if !is_long {
                            assert_eq!(
                                is_in,
                                numbers.admits(&Number::of(text)),
                                "{i}: {bound} {is_excluded} {is_lower}: {text}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn integers_are_bounded_even_if_the_schema_has_no_bounds() {
        let open = Numbers::default();
        for (text, is_in) in [
            ("9007199254740991", true),
            ("9007199254740992", false),
            ("-9007199254740991", true),
            ("0", true),
            ("-0", false),
            ("01", false),
            ("1.0", false),
        ] {
            assert_eq!(is_written(&open, true, false, text), is_in, "{text}");
        }
        let far = Numbers { min: Some((Number::of("1e20"), false)), ..Numbers::default() };
        assert!(is_written(&far, true, false, "175928847299117063000"));
        assert!(!is_written(&far, true, false, "17592884729911706"));
        assert!(!is_written(&far, true, false, &"9".repeat(30)));
        let byte = Numbers { format: Some("uint8".into()), ..Numbers::default() };
        assert!(is_written(&byte, true, false, "255") && !is_written(&byte, true, false, "256"));
        for text in ["1.5", "-0.25e-7", "1E+20", "999999999999999"] {
            assert!(is_written(&open, true, true, text), "{text}");
        }
        for text in ["1e100", "1234567890123456", "0.123456789012345678", "1.", ".5", "+1"] {
            assert!(!is_written(&open, true, true, text), "{text}");
        }
        assert!(is_written(&open, false, true, "1.50") && !is_written(&open, false, true, "1.0"));
    }

    #[test]
    fn multiples_and_exclusions_hold_for_every_number_text() {
        for of in ["1", "2", "5", "10", "25", "16", "1000", "0.5", "0.01", "0.25", "0.1", "0.05", "4e1"] {
            for fractions in [false, true] {
                let mut numbers = Numbers { multiples: vec![Number::of(of)], ..Numbers::default() };
                numbers.excluded.push(Number::of("50"));
                let Ok(Written::Regex(all)) = numbers.write(true, fractions) else { panic!("{of}") };
                let all: Vec<_> = all
                    .iter()
                    .map(|(regex, denied)| {
                        (regex_automata::meta::Regex::new(&format!("^(?:{regex})$")).unwrap(), *denied)
                    })
                    .collect();
                for text in texts().iter().filter(|text| text.len() < 10 && (fractions || !text.contains('.'))) {
                    let is_in = all.iter().all(|(regex, denied)| regex.is_match(text) != *denied);
                    // `-0.00` and the like: with a fraction, zeros that the multiple has no digits for are left out.
                    let value = Number::of(text);
                    if is_in {
                        assert!(numbers.admits(&value), "{of}: {text}");
                    } else if !text.contains('.') && text != "-0" {
                        assert!(!numbers.admits(&value), "{of}: {text}");
                    }
                }
            }
        }
        let three = Numbers { multiples: vec![Number::of("3")], ..Numbers::default() };
        assert!(matches!(three.write(true, false), Ok(Written::Multiple(_))));
        let range = Numbers {
            min: Some((Number::of("0.1"), true)),
            max: Some((Number::of("0.9"), false)),
            ..Numbers::default()
        };
        assert!(range.is_empty(true) && !range.is_empty(false));
        assert!(three.admits(&Number::of("12")) && !three.admits(&Number::of("1.5")));
        assert!(Numbers { multiples: vec![Number::of("0.1")], ..Numbers::default() }.admits(&Number::of("0.3")));
    }
}
