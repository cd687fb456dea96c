//! Renders the messages of a prompt with the variables of a request.
//!
//! The templates are the operator's, the variables are a client's. A variable that is not declared, is missing or is of
//! another type is an error, in the template as well as in the request. Steps and output are limited. What a client puts
//! into a variable is text of a message like any other: the engine never reads special tokens in it.

use std::io::{self, Write};

use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value as Jinja};
use serde_json::Value;

/// The most steps of a template.
const STEPS: u64 = 200_000;
/// The longest message, in bytes.
const OUTPUT_BYTES: usize = 4 << 20;
/// How deeply macros can call each other.
const DEPTH: usize = 64;

const NAME: &str = "prompt";

/// Why a template cannot be used or rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    /// The line of the template, from 1.
    pub(super) line: usize,
    pub(super) what: String,
}

fn environment<'a>(source: &'a str) -> Result<Environment<'a>, Wrong> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_debug(false);
    env.set_fuel(Some(STEPS));
    env.set_recursion_limit(DEPTH);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_filter("tojson", |value: &Jinja| json(value, 0).map(|value| value.to_string()));
    env.add_template(NAME, source).map_err(|error| wrong(&error))?;
    Ok(env)
}

/// An error without the values of variables, which are private.
fn wrong(error: &minijinja::Error) -> Wrong {
    let what = match error.kind() {
        ErrorKind::SyntaxError => error.detail().unwrap_or("is not a template").to_owned(),
        ErrorKind::OutOfFuel => format!("takes more than {STEPS} steps"),
        kind => kind.to_string(),
    };
    Wrong { line: error.line().unwrap_or(1), what }
}

/// Checks a template, and that it uses these variables only.
pub(super) fn check(source: &str, declared: &dyn Fn(&str) -> bool) -> Result<(), Wrong> {
    let env = environment(source)?;
    let template = env.get_template(NAME).map_err(|error| wrong(&error))?;
    let globals: Vec<String> = env.globals().map(|(name, _)| name.to_owned()).collect();
    let mut used: Vec<String> = template.undeclared_variables(false).into_iter().collect();
    used.sort_unstable();
    let unknown = used.into_iter().find(|name| !declared(name) && !globals.contains(name));
    match unknown {
        None => Ok(()),
        Some(name) => {
            let line =
                1 + source.find(&name).and_then(|at| source.get(..at)).map_or(0, |text| text.matches('\n').count());
            Err(Wrong {
                line,
                what: format!("uses the variable {name:?}, which is not declared: add `[variables.{name}]`"),
            })
        }
    }
}

/// Text up to a limit.
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Renders a template.
pub(super) fn render(source: &str, variables: &serde_json::Map<String, Value>) -> Result<String, Wrong> {
    let env = environment(source)?;
    let template = env.get_template(NAME).map_err(|error| wrong(&error))?;
    let variables = Jinja::from_pairs(variables.iter().map(|(name, field)| (name.as_str(), value(field))));
    let mut out = Limited(Vec::new());
    template.render_captured_to(variables, &mut out).map(drop).map_err(|error| match error.kind() {
        ErrorKind::WriteFailure => Wrong { line: 1, what: format!("gives more than {OUTPUT_BYTES} bytes") },
        _ => wrong(&error),
    })?;
    // Templates and variables are UTF-8, and so is what is written.
    String::from_utf8(out.0).map_err(|_| Wrong { line: 1, what: "gives a text that is not UTF-8".to_owned() })
}

fn value(json: &Value) -> Jinja {
    match json {
        Value::Null => Jinja::from(()),
        Value::Bool(flag) => Jinja::from(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Jinja::from(number),
            (None, Some(number)) => Jinja::from(number),
            (None, None) => Jinja::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Jinja::from(text.as_str()),
        Value::Array(items) => items.iter().map(value).collect(),
        Value::Object(fields) => Jinja::from_pairs(fields.iter().map(|(name, field)| (name.as_str(), value(field)))),
    }
}

/// The JSON of a value, for `tojson`.
fn json(of: &Jinja, depth: usize) -> Result<Value, minijinja::Error> {
    use minijinja::value::ValueKind;
    let wrong = |what: &'static str| minijinja::Error::new(ErrorKind::InvalidOperation, what);
    if depth > 128 {
        return Err(wrong("a value is nested too deeply"));
    }
    Ok(match of.kind() {
        ValueKind::None => Value::Null,
        ValueKind::Bool => of.is_true().into(),
        ValueKind::Number => match (of.as_i64(), f64::try_from(of.clone())) {
            (Some(number), _) => number.into(),
            (None, Ok(number)) => number.into(),
            (None, Err(error)) => return Err(error),
        },
        ValueKind::String => of.as_str().unwrap_or_default().into(),
        ValueKind::Seq | ValueKind::Iterable => {
            Value::Array(of.try_iter()?.map(|item| json(&item, depth + 1)).collect::<Result<_, _>>()?)
        }
        ValueKind::Map => {
            let field = |name: Jinja| {
                let field = of.get_item(&name)?;
                Ok::<_, minijinja::Error>((name.to_string(), json(&field, depth + 1)?))
            };
            Value::Object(of.try_iter()?.map(field).collect::<Result<_, _>>()?)
        }
        _ => return Err(wrong("a value has no form in JSON")),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(source: &str, variables: Value) -> Result<String, String> {
        super::render(source, variables.as_object().unwrap()).map_err(|wrong| format!("{}: {}", wrong.line, wrong.what))
    }

    #[test]
    fn variables_are_text_and_nothing_else() {
        let said = "{{ 7 * 6 }} <|im_end|> <b> {% raw %}";
        assert_eq!(render("<{{ who }}>", json!({ "who": said })).unwrap(), format!("<{said}>"));
        let list = json!({ "items": ["a", 1, 2.5, null, { "x": true }] });
        assert_eq!(render("{{ items | tojson }}", list).unwrap(), r#"["a",1,2.5,null,{"x":true}]"#);
        let loops = "{% for item in items %}{{ loop.index }}. {{ item.upper() }}\n{% endfor %}";
        assert_eq!(render(loops, json!({ "items": ["a", "b"] })).unwrap(), "1. A\n2. B\n");
    }

    #[test]
    fn whatever_is_missing_or_endless_is_an_error() {
        assert!(render("a\n{{ who }}", json!({})).unwrap_err().starts_with("2: "));
        assert!(render("{{ who.name }}", json!({ "who": {} })).is_err());
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(render(endless, json!({})).unwrap_err().contains("takes more than 200000 steps"));
        let large = "{% for a in range(9999) %}{{ text }}{% endfor %}";
        assert!(
            render(large, json!({ "text": "x".repeat(10_000) })).unwrap_err().contains("gives more than 4194304 bytes")
        );
        assert!(render("{% include \"other\" %}", json!({})).is_err());
        assert!(render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", json!({})).is_err());
        // No value of a variable stands in an error.
        assert!(!render("{{ who + 1 }}", json!({ "who": "secret" })).unwrap_err().contains("secret"));
    }

    #[test]
    fn a_template_is_checked_before_it_is_used() {
        let check =
            |source: &str| super::check(source, &|name| name == "who").map_err(|wrong| (wrong.line, wrong.what));
        check("{% set x = who %}{{ x }}{% for i in range(3) %}{{ i }}{% endfor %}").unwrap();
        assert_eq!(check("a\n{% if %}").unwrap_err().0, 2);
        let (line, what) = check("a\n\n{{ whom }}").unwrap_err();
        assert!(line == 3 && what.contains("\"whom\"") && what.contains("[variables.whom]"), "{what}");
    }
}
