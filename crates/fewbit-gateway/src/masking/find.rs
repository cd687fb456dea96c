//! Finds what is to be masked in a text: addresses, numbers with their check digits, keys, patterns of the operator.
//!
//! A number only counts if it stands alone: neither a letter nor a digit may touch it. Card numbers must pass the Luhn
//! check and IBANs the one modulo 97, so most other long numbers stay as they are. Whatever is found wrongly does
//! little harm, because it is put back in the answer.

use std::ops::Range;

use regex::{Regex, RegexBuilder};

/// The size limit of a compiled pattern, in bytes.
const MAX_COMPILED: usize = 1 << 20;
/// The length limit of a pattern, in bytes.
pub(super) const MAX_PATTERN: usize = 1000;
/// The digits of a card number.
const CARD_DIGITS: std::ops::RangeInclusive<usize> = 13..=19;
/// The characters of an IBAN.
const IBAN_CHARS: std::ops::RangeInclusive<usize> = 15..=34;
/// The digits of a phone number, with its country code (E.164 allows 15).
const PHONE_DIGITS: std::ops::RangeInclusive<usize> = 7..=15;

/// How many digits of a run are looked at together.
const RUN_DIGITS: usize = 4096;

/// The kinds that are known without a pattern.
pub(super) const KINDS: [&str; 5] = ["email", "phone", "iban", "card", "key"];

/// Finds one kind of text.
#[derive(Debug)]
pub(super) struct Finder {
    /// Its name in the configuration.
    pub(super) name: String,
    /// Its name in placeholders.
    pub(super) shown: String,
    what: What,
}

#[derive(Debug)]
enum What {
    /// What matches one of these. If an expression has a group, only that group.
    Patterns(Vec<Regex>),
    Phones(Vec<Regex>),
    Iban(Regex),
    Card,
}

/// A part of a text that is to be masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) at: Range<usize>,
    /// The index of the finder.
    pub(super) finder: usize,
}

fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).build()
}

/// Compiles patterns of this file, which are valid.
fn known(patterns: &[&str]) -> Vec<Regex> {
    patterns.iter().map(|pattern| Regex::new(pattern).expect("the patterns of this file are valid")).collect()
}

/// The e-mail addresses that people have; quoted local parts and addresses without a domain name are none.
const EMAIL: &str = r"[\p{L}\p{N}._%+'&=-]+@(?:[\p{L}\p{N}](?:[\p{L}\p{N}-]*[\p{L}\p{N}])?\.)+[\p{L}][\p{L}\p{N}-]*";

/// With a country code; with the leading zero of a country's own notation, in groups or in one; as in North America.
const PHONES: [&str; 4] = [
    r"(?:\+|00)[1-9](?:[ \-./()\u{a0}]{0,3}[0-9]){6,14}",
    r"(?:\(0[0-9]{1,5}\)|0[0-9]{1,5})(?:[ \-./\u{a0}]{1,3}[0-9]{1,8}){1,5}",
    r"0[0-9]{8,11}",
    r"(?:\([2-9][0-9]{2}\)|[2-9][0-9]{2})[ .\-]{1,2}[2-9][0-9]{2}[ .\-][0-9]{4}",
];

/// Without an end, because an IBAN can be followed by words: the longest part with a right checksum is taken.
const IBAN: &str = r"(?i-u:[a-z]{2}[0-9]{2}(?:[ \-]?[a-z0-9]){11,30})";

/// Keys with a known beginning, web tokens, private keys, passwords in addresses, and what follows the name of a secret.
const KEYS: [&str; 9] = [
    r"(?-u:\b)(?:sk|pk|rk|fb)[-_][A-Za-z0-9_-]{16,}",
    r"(?-u:\b)(?:gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|xox[abeoprs]-[A-Za-z0-9-]{10,})",
    r"(?-u:\b)(?:A3T[A-Z0-9]|AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}",
    r"(?-u:\b)(?:AIza[A-Za-z0-9_-]{30,}|ya29\.[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{20,}|pypi-[A-Za-z0-9_-]{16,}|dop_v1_[a-f0-9]{32,}|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,})",
    r"(?-u:\b)eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){1,3}",
    // A private key that does not end is masked up to the end of the text.
    r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\z)",
    r"(?i-u:\bbearer[ ]+)([A-Za-z0-9._~+/=-]{16,})",
    r"(?i-u:\b[a-z][a-z0-9+.-]{1,20}://)[^\s/:@]*:([^\s/@]+)@",
    r#"(?i-u:\b(?:password|passwd|passphrase|api[_-]?key|secret[_-]?key|client[_-]?secret|access[_-]?key|access[_-]?token|auth[_-]?token)\b["']?\s{0,3}(?:=|:)\s{0,3}["']?)([^\s"',;\\]{8,})"#,
];

impl Finder {
    /// The finder of a known kind.
    pub(super) fn known(name: &str) -> Option<Self> {
        let what = match name {
            "email" => What::Patterns(known(&[EMAIL])),
            "phone" => What::Phones(known(&PHONES)),
            "iban" => What::Iban(known(&[IBAN]).pop()?),
            "card" => What::Card,
            "key" => What::Patterns(known(&KEYS)),
            _ => return None,
        };
        Some(Self { name: name.to_owned(), shown: name.to_ascii_uppercase(), what })
    }

    /// The finder of an operator's pattern.
    pub(super) fn of_pattern(name: &str, pattern: &str) -> Result<Self, String> {
        if pattern.len() > MAX_PATTERN {
            return Err(format!("has more than {MAX_PATTERN} bytes: give a shorter one"));
        }
        let regex = compile(pattern).map_err(|error| format!("is not a regular expression: {error}"))?;
        if regex.is_match("") {
            return Err("matches an empty text, and so any text: give one that does not".to_owned());
        }
        Ok(Self { name: name.to_owned(), shown: name.to_ascii_uppercase(), what: What::Patterns(vec![regex]) })
    }

    /// Adds what it finds in a text.
    fn find(&self, text: &str, finder: usize, all: &mut Vec<Found>) {
        let mut push = |at: Range<usize>| all.push(Found { at, finder });
        match &self.what {
            What::Patterns(patterns) => {
                for regex in patterns {
                    if regex.captures_len() == 1 {
                        regex.find_iter(text).filter(|found| !found.is_empty()).for_each(|found| push(found.range()));
                    } else {
                        let groups =
                            regex.captures_iter(text).filter_map(|found| found.get(1).or_else(|| found.get(0)));
                        groups.filter(|found| !found.is_empty()).for_each(|found| push(found.range()));
                    }
                }
            }
            What::Phones(patterns) => {
                for regex in patterns {
                    each_alone(regex, text, |at| {
                        let phone = text.get(at.clone()).unwrap_or_default();
                        let is_one = PHONE_DIGITS.contains(&digits(phone).count()) && !is_date(phone);
                        is_one.then(|| push(at.clone())).map(|()| at.end)
                    });
                }
            }
            What::Iban(regex) => each_match(regex, text, |at| {
                let end = iban_end(text, at.clone())?;
                push(at.start..end);
                Some(end)
            }),
            What::Card => cards(text, push),
        }
    }
}

/// What these finders find in a text, in its order. Parts that overlap are one.
pub(super) fn find<'a>(finders: impl IntoIterator<Item = (usize, &'a Finder)>, text: &str) -> Vec<Found> {
    let mut all = Vec::new();
    finders.into_iter().for_each(|(i, finder)| finder.find(text, i, &mut all));
    all.sort_by_key(|found| (found.at.start, std::cmp::Reverse(found.at.end), found.finder));
    let mut merged: Vec<Found> = Vec::with_capacity(all.len());
    for found in all {
        match merged.last_mut() {
            Some(last) if found.at.start < last.at.end => last.at.end = last.at.end.max(found.at.end),
            _ => merged.push(found),
        }
    }
    merged
}

fn digits(text: &str) -> impl Iterator<Item = u32> {
    text.chars().filter_map(|c| c.to_digit(10))
}

/// Whether neither a letter nor a digit touches this part of a text.
fn is_alone(text: &str, at: &Range<usize>) -> bool {
    let before = text.get(..at.start).and_then(|text| text.chars().next_back());
    let after = text.get(at.end..).and_then(|text| text.chars().next());
    !before.into_iter().chain(after).any(char::is_alphanumeric)
}

/// Calls `accept` for each match. It returns where to go on, or `None` to go on after the match's first character.
fn each_match(regex: &Regex, text: &str, mut accept: impl FnMut(Range<usize>) -> Option<usize>) {
    let mut from = 0;
    while let Some(found) = regex.find_at(text, from) {
        let next =
            found.start() + text.get(found.start()..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8);
        from = accept(found.range()).unwrap_or(next).max(next);
        if from > text.len() {
            break;
        }
    }
}

/// Like [`each_match`], for matches that neither a letter nor a digit touches.
fn each_alone(regex: &Regex, text: &str, mut accept: impl FnMut(Range<usize>) -> Option<usize>) {
    each_match(regex, text, |at| if is_alone(text, &at) { accept(at) } else { None });
}

/// Whether this is a date such as 28.11.2026, which has the form of a phone number.
fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split(['.', '/', '-']).collect();
    let is_part = |part: &&str, n: &[usize]| n.contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    matches!(&parts[..], [day, month, year] if is_part(day, &[1, 2]) && is_part(month, &[1, 2]) && is_part(year, &[2, 4]))
}

/// Where the longest IBAN ends that begins there.
fn iban_end(text: &str, at: Range<usize>) -> Option<usize> {
    let part = text.get(at.clone())?;
    let is_begun = text.get(..at.start)?.chars().next_back().is_some_and(char::is_alphanumeric);
    if is_begun {
        return None;
    }
    let chars: Vec<(usize, u8)> = part.bytes().enumerate().filter(|(_, byte)| byte.is_ascii_alphanumeric()).collect();
    IBAN_CHARS.rev().find_map(|n| {
        let (last, _) = chars.get(n.checked_sub(1)?)?;
        let end = at.start + last + 1;
        let is_ended = !text.get(end..)?.chars().next().is_some_and(char::is_alphanumeric);
        (is_ended && is_iban(chars.get(..n)?.iter().map(|(_, byte)| *byte))).then_some(end)
    })
}

/// The check of ISO 13616: the number modulo 97 is 1, with the first four characters at the end and letters as 10 to 35.
fn is_iban(chars: impl Iterator<Item = u8> + Clone) -> bool {
    let moved = chars.clone().skip(4).chain(chars.take(4));
    let rest = moved.fold(0_u32, |rest, byte| match byte {
        b'0'..=b'9' => (rest * 10 + u32::from(byte - b'0')) % 97,
        _ => (rest * 100 + u32::from(byte.to_ascii_uppercase() - b'A') + 10) % 97,
    });
    rest == 1
}

/// Finds card numbers in runs of digits, which single spaces, hyphens or dots may divide.
fn cards(text: &str, mut push: impl FnMut(Range<usize>)) {
    let bytes = text.as_bytes();
    let is_digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
    let mut at = 0;
    while at < bytes.len() {
        if !is_digit(at) {
            at += 1;
            continue;
        }
        // The places of the digits of the run.
        let mut places = vec![at];
        let mut end = at + 1;
        loop {
            let gap = usize::from(bytes.get(end).is_some_and(|byte| b" -.".contains(byte)));
            if !is_digit(end + gap) || places.len() == RUN_DIGITS {
                break;
            }
            places.push(end + gap);
            end += gap + 1;
        }
        let mut from = 0;
        while from < places.len() {
            let found = CARD_DIGITS.rev().find_map(|n| {
                let at = *places.get(from)?..places.get(from + n - 1)? + 1;
                let number = places.get(from..from + n)?.iter().filter_map(|&i| bytes.get(i)).map(|byte| byte - b'0');
                (is_alone(text, &at) && is_card(number)).then_some((at, n))
            });
            match found {
                Some((at, n)) => {
                    push(at);
                    from += n;
                }
                None => from += 1,
            }
        }
        // A run that goes on is looked at again from where a number could still have begun.
        let is_cut = places.len() == RUN_DIGITS;
        at = if is_cut { places.get(RUN_DIGITS - CARD_DIGITS.end()).copied().unwrap_or(end).max(at + 1) } else { end };
    }
}

/// The first digit of an issuer of cards, and the check of Luhn.
fn is_card(mut number: impl DoubleEndedIterator<Item = u8> + Clone) -> bool {
    let sum: u32 = number.clone().rev().enumerate().fold(0, |sum, (i, digit)| {
        let digit = u32::from(digit) * if i % 2 == 1 { 2 } else { 1 };
        sum + digit / 10 + digit % 10
    });
    sum.is_multiple_of(10) && number.next().is_some_and(|first| (2..=6).contains(&first))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kind: &str, text: &str) -> Vec<String> {
        let finder = Finder::known(kind).unwrap();
        find([(0, &finder)], text).into_iter().map(|found| text[found.at].to_owned()).collect()
    }

    /// Keys are put together here, so that nobody takes them for real ones.
    fn key(parts: &[&str]) -> String {
        parts.concat()
    }

    #[test]
    fn each_kind_is_found_in_a_sentence() {
        let keys = [
            key(&["sk-", "proj-abcdefghijklmnop1234"]),
            key(&["fb-", &"0a1b".repeat(16)]),
            key(&["gh", "p_", &"aB3".repeat(12)]),
            key(&["AK", "IA", "ABCDEFGHIJKLMNOP"]),
            key(&["eyJ", "hbGciOiJIUzI1NiJ9", ".eyJzdWIiOiIxIn0", ".c2lnbmF0dXJl"]),
            key(&["-----BEGIN RSA PRIVATE", " KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----"]),
            key(&["-----BEGIN OPENSSH PRIVATE", " KEY-----\nb3Bl and no end"]),
        ];
        let mut cases: Vec<(&str, String)> = [
            ("email", "ada.lovelace+tag@mail.example.org"),
            ("email", "jürgen@müller.example"),
            ("phone", "+49 (0)30 1234567"),
            ("phone", "+442079460958"),
            ("phone", "0049 30 901820"),
            ("phone", "030 / 901 82 0"),
            ("phone", "(212) 555-0142"),
            ("phone", "01701234567"),
            // The examples of the registry of ISO 13616.
            ("iban", "DE89 3704 0044 0532 0130 00"),
            ("iban", "GB29NWBK60161331926819"),
            ("iban", "no9386011117947"),
            ("iban", "MT84MALT011000012345MTLCAST001S"),
            // The numbers that card issuers give for tests.
            ("card", "4111 1111 1111 1111"),
            ("card", "378282246310005"),
            ("card", "5555-5555-5555-4444"),
            ("card", "6011000990139424"),
        ]
        .map(|(kind, text)| (kind, text.to_owned()))
        .into();
        cases.extend(keys.map(|key| ("key", key)));
        for (kind, part) in cases {
            let sentences = [
                part.clone(),
                format!("It is {part}"),
                format!("{{\"a\":\"{part}\"}} is it"),
                format!("ä({part}), yes"),
            ];
            for text in sentences {
                let all = found(kind, &text);
                // What follows a private key without an end belongs to it.
                assert!(all.len() == 1 && all[0].starts_with(&part), "{kind} {text:?}: {all:?}");
                assert!(all[0] == part || part.contains("OPENSSH"), "{kind} {text:?}: {all:?}");
            }
        }
    }

    #[test]
    fn what_only_looks_alike_stays() {
        for (kind, text) in [
            ("email", "a@b, @ada, ada@, see example.org"),
            ("phone", "On 28.11.2026 at 09:41, 3.14159265, version 1.2.3, 2026-11-28, 1234567, id 550e8400-e29b-41d4"),
            ("iban", "DE89 3704 0044 0532 0130 01"),
            ("iban", "xDE89370400440532013000"),
            ("card", "4111 1111 1111 1112"),
            ("card", "41111111111111111111111"),
            ("card", "x4111111111111111 4111111111111111x"),
            ("card", "1234567812345670"),
            ("key", "skip-this, eyJ is how it begins, sk-short, task-abcdefghijklmnopqrst"),
        ] {
            assert_eq!(found(kind, text), Vec::<String>::new(), "{kind} {text}");
        }
    }

    #[test]
    fn only_the_secret_part_is_masked() {
        let secret = key(&["hunter2", "hunter2"]);
        for text in [
            format!("postgres://ada:{secret}@db.example/x"),
            format!("Authorization: Bearer {secret}hunter2"),
            format!("PASSWORD = \"{secret}\""),
            format!("{{\"api_key\": \"{secret}\"}}"),
        ] {
            assert_eq!(found("key", &text).len(), 1, "{text}");
            assert!(found("key", &text)[0].starts_with(&secret), "{text}");
        }
        // A card number next to other digits, and an IBAN before words.
        assert_eq!(found("card", "4111 1111 1111 1111 123 12/28"), ["4111 1111 1111 1111"]);
        assert_eq!(found("iban", "DE89 3704 0044 0532 0130 00 and more"), ["DE89 3704 0044 0532 0130 00"]);
    }

    #[test]
    fn overlapping_parts_are_one() {
        let finders = [Finder::of_pattern("a", "bcd").unwrap(), Finder::of_pattern("b", "cde+").unwrap()];
        let all = find(finders.iter().enumerate(), "abcdeef bcd");
        assert_eq!(all, [Found { at: 1..6, finder: 0 }, Found { at: 8..11, finder: 0 }]);
    }

    #[test]
    fn own_patterns_are_checked() {
        assert!(Finder::of_pattern("a", "(").unwrap_err().contains("not a regular expression"));
        assert!(Finder::of_pattern("a", "x*").unwrap_err().contains("matches an empty text"));
        assert!(Finder::of_pattern("a", &"x".repeat(1001)).unwrap_err().contains("more than 1000 bytes"));
        assert!(Finder::of_pattern("a", r"(?:\w{100}){200}").unwrap_err().contains("not a regular expression"));
        let finder = Finder::of_pattern("staff", r"staff no\. (\d+)").unwrap();
        let text = "See staff no. 1234.";
        assert_eq!(find([(0, &finder)], text).into_iter().map(|found| &text[found.at]).collect::<Vec<_>>(), ["1234"]);
    }

    #[test]
    fn long_texts_are_searched_in_little_time() {
        // Quadratic time would take hours.
        for part in ["1", "1 ", "a@", "eyJ", "+1", "DE00", "-----BEGIN PRIVATE KEY-----", "a.", "0 0"] {
            let text = part.repeat((1 << 20) / part.len());
            for kind in KINDS {
                found(kind, &text);
            }
        }
    }
}
