//! Methods and functions of Python's types that templates use and that neither the engine nor its shims provide.

use std::collections::BTreeMap;

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, Value};

/// Larger than the padding of any template.
const MAX_WIDTH: usize = 1000;

fn wrong(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

/// The result of a method; `None` if no method has this name.
pub(super) fn method(value: &Value, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    if let Some(text) = value.as_str() {
        return string_method(text, name, args);
    }
    match (value.kind(), name) {
        (ValueKind::Seq, "index") => Some(index(value, args)),
        (ValueKind::Seq, "copy") => Some(from_args(args).map(|()| value.clone())),
        (ValueKind::Map, "copy") => Some(from_args(args).map(|()| value.clone())),
        _ => None,
    }
}

fn index(list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (item,): (Value,) = from_args(args)?;
    list.try_iter()?.position(|other| other == item).map(Value::from).ok_or_else(|| wrong("it is not in the list"))
}

fn string_method(text: &str, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let result = match name {
        "removeprefix" => {
            from_args(args).map(|(prefix,): (&str,)| Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            from_args(args).map(|(suffix,): (&str,)| Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "partition" | "rpartition" => partition(text, args, name == "partition"),
        "rsplit" => rsplit(text, args),
        "index" | "rindex" => from_args(args).and_then(|(part,): (&str,)| {
            let at = if name == "index" { text.find(part) } else { text.rfind(part) };
            let at = at.ok_or_else(|| wrong("the text does not have this part"))?;
            Ok(Value::from(text[..at].chars().count()))
        }),
        "swapcase" => from_args(args).map(|()| {
            let swapped = text.chars().map(|c| {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect::<String>() }
            });
            Value::from(swapped.collect::<String>())
        }),
        "casefold" => from_args(args).map(|()| Value::from(text.to_lowercase().replace('ß', "ss"))),
        "zfill" => from_args(args).and_then(|(width,): (usize,)| {
            let n = padding(text, width)?;
            let sign = usize::from(text.starts_with(['+', '-']));
            let (sign, digits) = text.split_at(sign);
            Ok(Value::from(format!("{sign}{}{digits}", "0".repeat(n))))
        }),
        "ljust" | "rjust" | "center" => from_args(args).and_then(|(width, fill): (usize, Option<char>)| {
            let n = padding(text, width)?;
            let before = match name {
                "ljust" => 0,
                "rjust" => n,
                // If the padding cannot be the same on both sides, Python also considers the width.
                _ => n / 2 + (n & width & 1),
            };
            let fill = fill.unwrap_or(' ').to_string();
            Ok(Value::from(format!("{}{text}{}", fill.repeat(before), fill.repeat(n - before))))
        }),
        _ => return None,
    };
    Some(result)
}

/// Number of characters that a text is shorter than a width.
fn padding(text: &str, width: usize) -> Result<usize, Error> {
    if width > MAX_WIDTH {
        return Err(wrong("a width is too large"));
    }
    Ok(width.saturating_sub(text.chars().count()))
}

fn partition(text: &str, args: &[Value], forward: bool) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    let parts = if forward { text.split_once(separator) } else { text.rsplit_once(separator) };
    let parts = match parts {
        Some((before, after)) => [before, separator, after],
        None if forward => [text, "", ""],
        None => ["", "", text],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, limit): (&str, Option<usize>) = from_args(args)?;
    let limit = limit.map_or(usize::MAX, |n| n.saturating_add(1));
    let mut parts: Vec<&str> = text.rsplitn(limit, separator).collect();
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Jinja2's `int`: returns `default` for values that are not numbers.
pub(super) fn int(value: &Value, default: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = default.or(kwargs.get("default")?).unwrap_or_else(|| Value::from(0));
    kwargs.assert_all_used()?;
    let truncated = |float: f64| {
        let is_whole = float.is_finite() && float.abs() < 2f64.powi(63);
        #[expect(clippy::cast_possible_truncation, reason = "checked")]
        is_whole.then(|| Value::from(float.trunc() as i64))
    };
    let number = match value.as_str() {
        Some(text) => {
            let text = text.trim();
            text.parse::<i128>().ok().map(Value::from).or_else(|| truncated(text.parse().ok()?))
        }
        None if value.kind() == ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        None if value.is_integer() => Some(value.clone()),
        None if value.kind() == ValueKind::Number => f64::try_from(value.clone()).ok().and_then(truncated),
        None => None,
    };
    Ok(number.unwrap_or(default))
}

/// Jinja2's `float`: returns `default` for values that are not numbers.
pub(super) fn float(value: &Value, default: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = default.or(kwargs.get("default")?).unwrap_or_else(|| Value::from(0.0));
    kwargs.assert_all_used()?;
    let number = match value.as_str() {
        Some(text) => text.trim().parse::<f64>().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None if value.kind() == ValueKind::Number => f64::try_from(value.clone()).ok(),
        None => None,
    };
    Ok(number.map_or(default, Value::from))
}

/// Python's `dict(..)`: from a mapping or a list of pairs, with additional fields.
pub(super) fn dict(of: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let mut pairs = Vec::new();
    match of.first() {
        None => {}
        Some(_) if of.len() > 1 => return Err(wrong("`dict` takes one mapping or list of pairs")),
        Some(fields) if fields.kind() == ValueKind::Map => {
            for key in fields.try_iter()? {
                pairs.push((key.clone(), fields.get_item(&key)?));
            }
        }
        Some(list) => {
            for pair in list.try_iter()? {
                let mut pair = pair.try_iter()?;
                match (pair.next(), pair.next(), pair.next()) {
                    (Some(key), Some(value), None) => pairs.push((key, value)),
                    _ => return Err(wrong("`dict` wants pairs")),
                }
            }
        }
    }
    for key in kwargs.args() {
        pairs.push((Value::from(key), kwargs.get::<Value>(key)?));
    }
    // A repeated key keeps its first position and gets its last value.
    let mut places = BTreeMap::new();
    let mut fields: Vec<(Value, Value)> = Vec::new();
    for (key, value) in pairs {
        let place = *places.entry(key.clone()).or_insert(fields.len());
        match fields.get_mut(place) {
            Some(field) => field.1 = value,
            None => fields.push((key, value)),
        }
    }
    Ok(Value::from_pairs(fields))
}

/// The items that a `for` iterates over, with a length: a text becomes a list of its characters, for `loop.last`.
pub(super) fn items(value: &Value) -> Value {
    match value.as_str() {
        Some(text) => text.chars().map(|c| Value::from(c.to_string())).collect::<Vec<_>>().into(),
        None => value.clone(),
    }
}

/// The name under which templates find [`items`].
const ITEMS: &str = "__items";

/// Wraps the iterated expression of every `for` of a template in [`items`]. Loops that cannot be parsed stay unchanged.
pub(super) fn with_items(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut is_raw = false;
    while let Some(start) = rest.find('{') {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let close = match tag.as_bytes().get(1) {
            Some(b'%') => "%}",
            Some(b'{') if !is_raw => "}}",
            Some(b'#') if !is_raw => "#}",
            _ => {
                out.push('{');
                rest = &tag[1..];
                continue;
            }
        };
        let Some(end) = tag[2..].find(close).map(|end| 2 + end) else {
            rest = tag;
            break;
        };
        let (inside, after) = (&tag[2..end], &tag[end + 2..]);
        rest = after;
        let word = inside.trim_start_matches(['-', '+']).trim_start();
        let word = word.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
        match word {
            "endraw" if close == "%}" => is_raw = false,
            "raw" if close == "%}" => is_raw = true,
            "for" if close == "%}" && !is_raw => {
                if let Some((head, of, tail)) = for_parts(inside) {
                    // Parentheses are needed, because `for x in 1, 2` iterates over a tuple.
                    out.push_str(&format!("{{%{head} {ITEMS}(({of})) {tail}%}}"));
                    continue;
                }
            }
            _ => {}
        }
        out.push_str(&tag[..end + 2]);
    }
    out.push_str(rest);
    out
}

/// Splits a `for` into the parts before, of and after its iterated expression; `None` if it cannot be parsed.
fn for_parts(inside: &str) -> Option<(&str, &str, &str)> {
    let bytes = inside.as_bytes();
    let (mut depth, mut quote, mut from, mut to) = (0usize, None, None, None);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match (quote, byte) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, b'\'' | b'"') => quote = Some(byte),
            (None, b'(' | b'[' | b'{') => depth += 1,
            (None, b')' | b']' | b'}') => depth = depth.checked_sub(1)?,
            (None, byte) if depth == 0 && (byte.is_ascii_alphabetic() || byte == b'_') => {
                let n = bytes[at..].iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
                let is_attribute = at > 0 && bytes[at - 1] == b'.';
                match &inside[at..at + n] {
                    "in" if from.is_none() => from = Some(at + n),
                    "if" | "recursive" if from.is_some() && to.is_none() && !is_attribute => to = Some(at),
                    _ => {}
                }
                at += n - 1;
            }
            _ => {}
        }
        at += 1;
    }
    if depth > 0 || quote.is_some() {
        return None;
    }
    let from = from?;
    let trim = inside.trim_end_matches(['-', '+']).trim_end().len();
    let to = to.unwrap_or(trim);
    let of = inside.get(from..to)?.trim();
    (!of.is_empty()).then(|| (&inside[..from], of, &inside[to..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_rewritten_to_run_over_items() {
        for (source, expected) in [
            ("{% for x in y %}", "{% for x in __items((y)) %}"),
            ("{%- for k, v in d.items() -%}", "{%- for k, v in __items((d.items()))  -%}"),
            ("{% for x in y if x in z %}", "{% for x in __items((y)) if x in z %}"),
            ("{% for x in f('if in', [1, 2]) recursive %}", "{% for x in __items((f('if in', [1, 2]))) recursive %}"),
            ("{% for x in 1, 2 %}", "{% for x in __items((1, 2)) %}"),
            ("{% for x in y.split('%}') %}", "{% for x in y.split('%}') %}"),
            ("{% for x in a.if %}", "{% for x in __items((a.if)) %}"),
            (
                "{% raw %}{% for x in y %}{{{% endraw %}{% for x in y %}",
                "{% raw %}{% for x in y %}{{{% endraw %}{% for x in __items((y)) %}",
            ),
            ("{# {% for x in y %} #}{{ '{% for x in y %}' }}", "{# {% for x in y %} #}{{ '{% for x in y %}' }}"),
            ("{% for %}{% for x %}{% for x in %}{% for", "{% for %}{% for x %}{% for x in %}{% for"),
        ] {
            let squeezed = |text: &str| text.replace("  ", " ");
            assert_eq!(squeezed(&with_items(source)), squeezed(expected));
        }
    }
}
