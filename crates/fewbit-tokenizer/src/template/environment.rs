//! The template environment, as set up by Hugging Face: functions, filters, methods, limits.

use std::fmt::Write as _;

use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value};

use super::Clock;
use super::guard::is_noncharacter;
use super::python;

/// The variable that carries the time of a [`Clock::Fixed`] to `strftime_now`.
pub(super) const CLOCK: &str = "__clock";

/// Larger than the indentation of any template.
const MAX_INDENT: usize = 1000;

/// JSON that is nested more deeply is an error, in templates as elsewhere.
const MAX_JSON_DEPTH: usize = 128;

/// The message that a template passed to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refusal(pub(super) String);

/// Creates an environment without templates.
pub(super) fn build() -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.expect("the default delimiters are valid"));
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    // No copies of the source for error messages, in debug and release builds alike.
    env.set_debug(false);
    env.set_unknown_method_callback(method);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", strftime_now);
    env.set_formatter(|out, state, value| match float_text(value) {
        Some(text) => out.write_str(&text).map_err(Error::from),
        None => minijinja::escape_formatter(out, state, value),
    });
    env.add_filter("string", |value: &Value| match (value.kind(), float_text(value)) {
        (ValueKind::String, _) => value.clone(),
        (_, Some(text)) => text.into(),
        _ => value.to_string().into(),
    });
    for name in ["length", "count"] {
        env.add_filter(name, length);
    }
    env.add_filter("int", python::int);
    env.add_filter("float", python::float);
    env.add_function("dict", python::dict);
    env.add_function("__items", python::items);
    env.add_function("joiner", minijinja_contrib::globals::joiner);
    env.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.to_vec()));
    env.add_filter("tojson", tojson);
    env.add_filter("indent", indent);
    // Not part of Jinja: for the templates of this crate.
    env.add_filter("parsed", parsed);
    env.add_filter("format", |format: &str, args: Rest<Value>| -> Result<String, Error> {
        check_format(format)?;
        minijinja::formatting::format(minijinja::formatting::FormatStyle::Printf, format, &args)
    });
    // As in Python: strings, mappings and undefined values are both iterable and sequences; `none` is neither.
    env.add_test("iterable", |value: &Value| {
        use ValueKind::{Bool, Bytes, Invalid, None, Number, Plain};
        !matches!(value.kind(), None | Bool | Number | Plain | Bytes | Invalid)
    });
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
    });
    // Both can make lists of any length from one number.
    env.remove_filter("batch");
    env.remove_filter("slice");
    env
}

/// Converts JSON to values of the engine. Objects keep their order.
pub(super) fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(flag) => Value::from(*flag),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(value).collect(),
        serde_json::Value::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(key, field)| (key.as_str(), value(field))))
        }
    }
}

/// As in Jinja, the length of an undefined value is 0.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    let reason = || format!("cannot calculate the length of a value of type {}", value.kind());
    value.len().ok_or_else(|| Error::new(ErrorKind::InvalidOperation, reason()))
}

/// Parses a text that is JSON; any other value or text is returned unchanged.
fn parsed(value: &Value) -> Value {
    let json = value.as_str().and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    json.map_or_else(|| value.clone(), |json| self::value(&json))
}

/// Python's methods, as far as templates use them.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str().filter(|_| name == "format") {
        check_format(text)?;
    }
    if let Some(result) = python::method(value, name, args) {
        return result;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Rejects formats whose result could be long even for short arguments.
fn check_format(format: &str) -> Result<(), Error> {
    let mut n_digits = 0;
    let mut depth = 0usize;
    for c in format.chars() {
        n_digits = if c.is_ascii_digit() { n_digits + 1 } else { 0 };
        depth = match c {
            '{' => depth + 1,
            '}' => depth.saturating_sub(1),
            _ => depth,
        };
        if n_digits > 3 {
            return Err(Error::new(ErrorKind::InvalidOperation, "a width in a format is too large"));
        }
    }
    if format.contains('*') || depth > 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "computed widths are not supported"));
    }
    Ok(())
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Refusal(message)))
}

/// The value of [`CLOCK`] for `strftime_now`.
pub(super) fn clock_variable(clock: Clock) -> serde_json::Value {
    match clock {
        Clock::System => serde_json::Value::Null,
        Clock::Fixed { unix_s } => unix_s.into(),
    }
}

fn strftime_now(state: &State<'_, '_>, format: &str) -> Result<String, Error> {
    let bad = |error: jiff::Error| Error::new(ErrorKind::InvalidOperation, error.to_string());
    check_format(format)?;
    let now = match state.lookup(CLOCK).and_then(|unix_s| unix_s.as_i64()) {
        Some(unix_s) => jiff::Timestamp::from_second(unix_s).map_err(bad)?.to_zoned(TimeZone::UTC),
        None => jiff::Zoned::now(),
    };
    strtime::format(format, &now).map_err(bad)
}

/// Jinja2's `indent`: indents every line except the first, and no empty lines, unless asked to.
fn indent(
    text: String,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let width = width.or(kwargs.get("width")?);
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let pad = indentation(width.as_ref().unwrap_or(&Value::from(4)))?;
    let mut out = String::with_capacity(text.len());
    for (i, line) in text.lines().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i > 0 && (blank || !line.is_empty())) || (i == 0 && first) {
            out.push_str(&pad);
        }
        out.push_str(line);
    }
    if text.ends_with('\n') {
        out.push('\n');
        if blank {
            out.push_str(&pad);
        }
    }
    Ok(out)
}

/// An indentation, given as a number of spaces or as text.
fn indentation(width: &Value) -> Result<String, Error> {
    if let Some(text) = width.as_str() {
        return Ok(text.to_owned());
    }
    // Python treats a negative number as 0.
    let width = width.as_i64().map(|width| usize::try_from(width).unwrap_or(0));
    match width {
        Some(width) if width <= MAX_INDENT => Ok(" ".repeat(width)),
        _ => Err(Error::new(ErrorKind::InvalidOperation, "an indentation is not a small number")),
    }
}

/// The style of JSON that [`write_json`] writes.
struct JsonStyle {
    ensure_ascii: bool,
    /// `None` writes one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// Python's `json.dumps`, with which Hugging Face replaces Jinja2's HTML-safe `tojson`.
fn tojson(value: &Value, indent: Option<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let indent = indent.or(kwargs.get("indent")?).filter(|indent| !indent.is_none());
    let separators: Option<Value> = kwargs.get("separators")?;
    let separators = separators.filter(|pair| !pair.is_none());
    let mut style = JsonStyle {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        item_separator: if indent.is_some() { "," } else { ", " }.to_owned(),
        key_separator: ": ".to_owned(),
        indent: indent.as_ref().map(indentation).transpose()?,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    if let Some(pair) = separators {
        let pair: Vec<Value> = pair.try_iter()?.collect();
        let [item, key] = pair.as_slice() else {
            return Err(Error::new(ErrorKind::InvalidOperation, "separators must be a pair"));
        };
        style.item_separator = item.to_string();
        style.key_separator = key.to_string();
    }
    let mut out = String::new();
    write_json(value, &style, 0, &mut out)?;
    Ok(out)
}

/// JSON as a template's `tojson` writes it.
pub(super) fn json_text(json: &serde_json::Value) -> String {
    let style = JsonStyle {
        ensure_ascii: false,
        indent: None,
        item_separator: ", ".to_owned(),
        key_separator: ": ".to_owned(),
        sort_keys: false,
    };
    let mut out = String::new();
    match write_json(&value(json), &style, 0, &mut out) {
        Ok(()) => out,
        // It is nested more deeply than a template may write.
        Err(_) => json.to_string(),
    }
}

fn write_json(value: &Value, style: &JsonStyle, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_JSON_DEPTH {
        return Err(Error::new(ErrorKind::BadSerialization, "nested too deeply"));
    }
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    };
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => write_number(value, out),
        ValueKind::String => write_string(value.as_str().unwrap_or_default(), style, out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut empty = true;
            for item in value.try_iter()? {
                if !empty {
                    out.push_str(&style.item_separator);
                }
                empty = false;
                line(depth + 1, out);
                write_json(&item, style, depth + 1, out)?;
            }
            if !empty {
                line(depth, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            out.push('{');
            for (i, key) in keys.iter().enumerate() {
                if i > 0 {
                    out.push_str(&style.item_separator);
                }
                line(depth + 1, out);
                match key.as_str() {
                    Some(text) => write_string(text, style, out),
                    None => {
                        // Python converts other keys to strings of their JSON.
                        let mut text = String::new();
                        write_json(key, style, depth + 1, &mut text)?;
                        write_string(&text, style, out);
                    }
                }
                out.push_str(&style.key_separator);
                write_json(&value.get_item(key)?, style, depth + 1, out)?;
            }
            if !keys.is_empty() {
                line(depth, out);
            }
            out.push('}');
        }
        kind => {
            let detail = format!("{kind} cannot be written as JSON");
            return Err(Error::new(ErrorKind::BadSerialization, detail));
        }
    }
    Ok(())
}

/// A float as Python writes it; `None` for all other values. (Inside a list or mapping that is written as a whole, and
/// in the operands of `~`, floats are formatted by the engine.)
fn float_text(value: &Value) -> Option<String> {
    if value.kind() != ValueKind::Number || value.is_integer() {
        return None;
    }
    let mut text = String::new();
    write_number(value, &mut text);
    Some(text)
}

/// Numbers as Python writes them: floats always look like floats.
fn write_number(value: &Value, out: &mut String) {
    let float = f64::try_from(value.clone()).unwrap_or(f64::NAN);
    if value.is_integer() {
        let _ = write!(out, "{value}");
    } else if float.is_nan() {
        out.push_str("NaN");
    } else if float.is_infinite() {
        out.push_str(if float > 0.0 { "Infinity" } else { "-Infinity" });
    } else if float == 0.0 || (1e-4..1e16).contains(&float.abs()) {
        let _ = write!(out, "{float:?}");
    } else {
        // Rust writes 1e16 and 1e-5, Python 1e+16 and 1e-05.
        let text = format!("{float:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        let sign = if exponent < 0 { '-' } else { '+' };
        let _ = write!(out, "{digits}e{sign}{:02}", exponent.abs());
    }
}

fn write_string(text: &str, style: &JsonStyle, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{C}' => out.push_str("\\f"),
            // A noncharacter may be the guard's marker, which must not be escaped.
            c if (c as u32) < 0x20 || (style.ensure_ascii && !c.is_ascii() && !is_noncharacter(c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Turns `{% generation %}` blocks, which mark the assistant's text for training, into blocks without effect, because
/// the engine cannot be extended with new tags. Line numbers do not change.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    // Expressions and comments are skipped as a whole: a tag inside them is not a tag.
    while let Some(start) = rest.find('{') {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let close = match tag.as_bytes().get(1) {
            Some(b'%') => "%}",
            Some(b'{') => "}}",
            Some(b'#') => "#}",
            _ => {
                out.push('{');
                rest = &tag[1..];
                continue;
            }
        };
        let Some(end) = tag[2..].find(close).map(|end| 2 + end + close.len()) else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end);
        let inside = &tag[2..end - 2];
        let word = inside.trim_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+'));
        match word {
            "generation" if close == "%}" => out.push_str(&tag.replacen(word, "if true", 1)),
            "endgeneration" if close == "%}" => out.push_str(&tag.replacen(word, "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
