//! The formats of strings that are enforced. All others are annotations: JSON Schema 2020-12, Validation, 7.2.1.
//!
//! Each regular expression matches no more than the format allows, and in some places less: no leap seconds, host names
//! without two hyphens in a row, mail addresses without quoted parts.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::LazyLock;

use super::patterns::Pattern;

/// A part of a host name.
const LABEL: &str = "[A-Za-z0-9](-?[A-Za-z0-9]){0,31}";
const DATE: &str = concat!(
    "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))",
    "|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
);
const TIME: &str = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";
const OCTET: &str = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
const HEX: &str = "[0-9A-Fa-f]";

/// Names, and what they match, for the documentation.
pub(crate) const FORMATS: [(&str, &str); 12] = [
    ("date", "RFC 3339 full-date; days that the month has"),
    ("date-time", "RFC 3339 date-time; no leap seconds, at most 9 digits of a second"),
    ("duration", "RFC 3339 appendix A; at most 9 digits in a part"),
    ("email", "local part without quotes, host name"),
    ("hostname", "RFC 1123; no two hyphens in a row"),
    ("ipv4", "four numbers"),
    ("ipv6", "RFC 4291; no embedded IPv4 address, no zone"),
    ("json-pointer", "RFC 6901"),
    ("relative-json-pointer", "the draft's; at most 9 digits"),
    ("time", "RFC 3339 full-time; no leap seconds, at most 9 digits of a second"),
    ("uri", "RFC 3986 with a scheme; no IP literal as host"),
    ("uuid", "RFC 4122"),
];

fn regex(name: &str) -> Option<String> {
    let hostname = format!(r"{LABEL}(\.{LABEL}){{0,3}}");
    Some(match name {
        "date" => DATE.to_owned(),
        "time" => TIME.to_owned(),
        "date-time" => format!("{DATE}[Tt]{TIME}"),
        "duration" => {
            let n = "[0-9]{1,9}";
            let time = format!("T({n}H({n}M({n}S)?)?|{n}M({n}S)?|{n}S)");
            format!("P(({n}Y({n}M({n}D)?)?|{n}M({n}D)?|{n}D)({time})?|{time}|{n}W)")
        }
        "email" => {
            let atom = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]{1,20}";
            format!(r"{atom}(\.{atom}){{0,2}}@{hostname}")
        }
        "hostname" => hostname,
        "ipv4" => format!(r"{OCTET}(\.{OCTET}){{3}}"),
        "ipv6" => {
            let group = format!("{HEX}{{1,4}}");
            let mut all = vec![format!("({group}:){{7}}{group}")];
            // Two colons with `left` groups before them, and up to `6 - left` after.
            for left in 0..=7_usize {
                let before = match left {
                    0 => String::new(),
                    1 => group.clone(),
                    left => format!("({group}:){{{}}}{group}", left - 1),
                };
                let after = match 7 - left {
                    0 => String::new(),
                    1 => format!("({group})?"),
                    right => format!("({group}(:{group}){{0,{}}})?", right - 1),
                };
                all.push(format!("{before}::{after}"));
            }
            format!("({})", all.join("|"))
        }
        "json-pointer" => "(/([^~/]|~[01])*)*".to_owned(),
        "relative-json-pointer" => "(0|[1-9][0-9]{0,8})(#|(/([^~/]|~[01])*)*)".to_owned(),
        "uri" => {
            let escape = format!("%{HEX}{{2}}");
            let part = format!("([A-Za-z0-9._~!$&'()*+,;=:@-]|{escape})");
            let user = format!("([A-Za-z0-9._~!$&'()*+,;=:-]|{escape})*@");
            let authority = format!("({user})?([A-Za-z0-9._~!$&'()*+,;=-]|{escape})*(:[0-9]{{1,4}})?");
            let path = format!("(//{authority}(/{part}*)*|/({part}+(/{part}*)*)?|{part}+(/{part}*)*)");
            let query = format!("({part}|[/?])*");
            format!(r"[A-Za-z][A-Za-z0-9+.-]*:{path}(\?{query})?(#{query})?")
        }
        "uuid" => format!("{HEX}{{8}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{12}}"),
        _ => return None,
    })
}

/// What strings of an enforced format match.
pub(super) fn pattern(name: &str) -> Option<Rc<Pattern>> {
    thread_local! {
        static KNOWN: LazyLock<HashMap<&'static str, std::cell::OnceCell<Rc<Pattern>>>> =
            LazyLock::new(|| FORMATS.iter().map(|(name, _)| (*name, std::cell::OnceCell::new())).collect());
    }
    let source = regex(name)?;
    KNOWN.with(|known| Some(Rc::clone(known.get(name)?.get_or_init(|| Rc::new(Pattern::whole(&source))))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_accepts_valid_and_rejects_invalid_texts() {
        for (name, _) in FORMATS {
            assert!(pattern(name).is_some(), "{name}");
        }
        for (name, yes, no) in [
            ("date", &["2024-02-29", "2000-02-29", "1999-12-31"][..], &["2023-02-29", "1900-02-29", "2024-04-31"][..]),
            ("time", &["23:59:59Z", "00:00:00.5+01:30"], &["24:00:00Z", "10:00:00"]),
            (
                "ipv6",
                &["::", "::1", "1::", "1:2:3:4:5:6:7:8", "a::b:c", "1:2:3:4:5:6:7::"],
                &["1:2", ":::", "1:2:3:4:5:6:7:8::"],
            ),
            ("duration", &["P1Y2M3DT4H5M6S", "P2W", "PT1S"], &["P", "PT", "P1W2D"]),
            ("uri", &["http://a.b/c?d#e", "urn:x:y", "mailto:a@b"], &["a b", "//x", "http://a b"]),
            ("uuid", &["2eb8aa08-aa98-11ea-b4aa-73b441d16380"], &["2eb8aa08"]),
            ("json-pointer", &["", "/a~0b/~1"], &["a", "/~2"]),
            ("email", &["a.b+c@d-e.org"], &["a@", "@b", "a..b@c"]),
        ] {
            let pattern = pattern(name).unwrap();
            yes.iter().for_each(|text| assert!(pattern.is_match(text), "{name}: {text}"));
            no.iter().for_each(|text| assert!(!pattern.is_match(text), "{name}: {text}"));
        }
        assert!(pattern("password").is_none());
    }
}
