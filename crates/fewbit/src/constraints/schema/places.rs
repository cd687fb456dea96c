//! The schemas inside a schema: their places, and the targets of references.
//!
//! A reference is resolved against the base URI of its place: the nearest `$id` around it, which is itself resolved in
//! the same way. The target must be in the same document; nothing is fetched.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::exact::Json;

/// Keywords whose value is a schema.
const SCHEMA: [&str; 12] = [
    "additionalItems",
    "additionalProperties",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];
/// Keywords whose value is a list of schemas.
const LISTS: [&str; 5] = ["allOf", "anyOf", "items", "oneOf", "prefixItems"];
/// Keywords whose value has schemas by name.
const NAMED: [&str; 6] =
    ["$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"];

/// The index of a place.
pub(super) type Id = usize;

#[derive(Clone)]
pub(super) struct Place<'a> {
    pub(super) json: &'a Json,
    /// A JSON pointer, after `#`.
    pub(super) pointer: Rc<str>,
    base: Rc<str>,
}

pub(super) struct Places<'a> {
    root: &'a Json,
    /// Roots of resources by their URIs.
    resources: HashMap<Rc<str>, &'a Json>,
    anchors: HashMap<(Rc<str>, &'a str), &'a Json>,
    /// Pointers and base URIs of all schemas that were found, by their addresses.
    known: HashMap<*const Json, (Rc<str>, Rc<str>)>,
    /// How many times a name is used as a dynamic anchor.
    dynamic: HashMap<&'a str, usize>,
    recursive: bool,
    table: RefCell<(Vec<Place<'a>>, HashMap<*const Json, Id>)>,
}

/// Why a reference has no target.
pub(super) enum Lost {
    /// It refers to another document.
    Outside,
    /// The document has no such part.
    Nothing,
}

impl<'a> Places<'a> {
    pub(super) fn new(root: &'a Json) -> Self {
        let mut this = Self {
            root,
            resources: HashMap::new(),
            anchors: HashMap::new(),
            known: HashMap::new(),
            dynamic: HashMap::new(),
            recursive: false,
            table: RefCell::default(),
        };
        this.resources.insert("".into(), root);
        this.visit(root, String::new(), "".into());
        this
    }

    fn visit(&mut self, json: &'a Json, pointer: String, mut base: Rc<str>) {
        if let Json::Object(fields) = json {
            if let Some(id) = json.get("$id").and_then(Json::as_str) {
                // Before 2019, an `$id` with only a fragment was an anchor.
                let (uri, fragment) = id.split_once('#').unwrap_or((id, ""));
                if !uri.is_empty() {
                    base = join(&base, uri).into();
                    self.resources.entry(Rc::clone(&base)).or_insert(json);
                }
                if !fragment.is_empty() {
                    self.anchors.insert((Rc::clone(&base), fragment), json);
                }
            }
            for name in ["$anchor", "$dynamicAnchor"] {
                if let Some(anchor) = json.get(name).and_then(Json::as_str) {
                    self.anchors.insert((Rc::clone(&base), anchor), json);
                    *self.dynamic.entry(anchor).or_default() += usize::from(name == "$dynamicAnchor");
                }
            }
            self.recursive |= json.get("$recursiveAnchor") == Some(&Json::Bool(true));
            for (name, value) in fields {
                let name = name.as_str();
                let pointer = step(&pointer, name);
                match value {
                    Json::Array(schemas) if LISTS.contains(&name) => {
                        for (i, schema) in schemas.iter().enumerate() {
                            self.visit(schema, step(&pointer, &i.to_string()), Rc::clone(&base));
                        }
                    }
                    Json::Object(named) if NAMED.contains(&name) => {
                        for (name, schema) in named {
                            self.visit(schema, step(&pointer, name), Rc::clone(&base));
                        }
                    }
                    value if SCHEMA.contains(&name) => self.visit(value, pointer, Rc::clone(&base)),
                    _ => {}
                }
            }
        }
        self.known.insert(json, (pointer.into(), base));
    }

    pub(super) fn root(&self) -> Id {
        self.id(self.root, "", "")
    }

    /// The place of a part of `parent`.
    pub(super) fn child(&self, parent: Id, path: &[&str], json: &'a Json) -> Id {
        let parent = self.get(parent);
        let pointer = path.iter().fold(parent.pointer.to_string(), |pointer, name| step(&pointer, name));
        self.id(json, &pointer, &parent.base)
    }

    /// `pointer` and `base` are used if the place is not known yet.
    fn id(&self, json: &'a Json, pointer: &str, base: &str) -> Id {
        let mut table = self.table.borrow_mut();
        let (places, ids) = &mut *table;
        *ids.entry(std::ptr::from_ref(json)).or_insert_with(|| {
            let known = self.known.get(&std::ptr::from_ref(json)).cloned();
            let (pointer, base) = known.unwrap_or_else(|| (pointer.into(), base.into()));
            places.push(Place { json, pointer, base });
            places.len() - 1
        })
    }

    pub(super) fn get(&self, id: Id) -> Place<'a> {
        self.table.borrow().0[id].clone()
    }

    pub(super) fn json(&self, id: Id) -> &'a Json {
        self.table.borrow().0[id].json
    }

    /// Whether a dynamic reference to this anchor can only mean one place.
    pub(super) fn is_static(&self, reference: &str) -> bool {
        let (_, anchor) = reference.split_once('#').unwrap_or((reference, ""));
        self.dynamic.get(anchor).is_none_or(|n| *n < 2)
    }

    /// Whether a recursive reference may mean several places.
    pub(super) fn has_recursive_anchor(&self) -> bool {
        self.recursive
    }

    /// The target of a reference at `from`.
    pub(super) fn target(&self, from: Id, reference: &str) -> Result<Id, Lost> {
        let base = self.get(from).base;
        let (uri, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let uri: Rc<str> = if uri.is_empty() { base } else { join(&base, uri).into() };
        let resource = *self.resources.get(&uri).ok_or(Lost::Outside)?;
        let fragment = percent_decoded(fragment).ok_or(Lost::Nothing)?;
        if fragment.is_empty() {
            return Ok(self.id(resource, "", &uri));
        }
        let Some(path) = fragment.strip_prefix('/') else {
            let found = self.anchors.iter().find(|((at, anchor), _)| *at == uri && *anchor == fragment);
            return found.map(|(_, json)| self.id(json, &fragment, &uri)).ok_or(Lost::Nothing);
        };
        let mut json = resource;
        let mut pointer = self.known.get(&std::ptr::from_ref(resource)).map_or(String::new(), |(at, _)| at.to_string());
        let mut base = uri.to_string();
        for name in path.split('/') {
            let name = name.replace("~1", "/").replace("~0", "~");
            json = match json {
                Json::Object(_) => json.get(&name),
                Json::Array(items) => name.parse::<usize>().ok().and_then(|i| items.get(i)),
                _ => None,
            }
            .ok_or(Lost::Nothing)?;
            pointer = step(&pointer, &name);
            if let Some(id) = json.get("$id").and_then(Json::as_str) {
                base = join(&base, id.split('#').next().unwrap_or_default());
            }
        }
        Ok(self.id(json, &pointer, &base))
    }
}

/// A JSON pointer, extended by one name.
fn step(pointer: &str, name: &str) -> String {
    format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

/// Resolves a URI reference against a base (RFC 3986, 5.2), both without fragments.
fn join(base: &str, reference: &str) -> String {
    let has_scheme = |uri: &str| {
        let end = uri.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))).unwrap_or(uri.len());
        end > 0 && uri[end..].starts_with(':') && uri.as_bytes()[0].is_ascii_alphabetic()
    };
    if reference.is_empty() {
        return base.to_owned();
    }
    if has_scheme(reference) {
        return reference.to_owned();
    }
    let (scheme, rest) = if has_scheme(base) { base.split_once(':').unwrap_or(("", base)) } else { ("", base) };
    let scheme = if scheme.is_empty() { String::new() } else { format!("{scheme}:") };
    if reference.starts_with("//") {
        return format!("{scheme}{reference}");
    }
    let (authority, path) = match rest.strip_prefix("//") {
        Some(rest) => {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            (format!("//{}", &rest[..end]), &rest[end..])
        }
        None => (String::new(), rest),
    };
    let path = path.split('?').next().unwrap_or_default();
    let (reference, query) = reference.split_once('?').map_or((reference, None), |(path, query)| (path, Some(query)));
    let merged = if reference.starts_with('/') {
        reference.to_owned()
    } else {
        let folder = path.rfind('/').map_or("", |end| &path[..=end]);
        let folder = if folder.is_empty() && !authority.is_empty() { "/" } else { folder };
        format!("{folder}{reference}")
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in merged.split('/') {
        match part {
            "." => {}
            ".." => {
                if parts.len() > 1 {
                    parts.pop();
                }
            }
            part => parts.push(part),
        }
    }
    if merged.ends_with("/.") || merged.ends_with("/..") {
        parts.push("");
    }
    let query = query.map_or(String::new(), |query| format!("?{query}"));
    format!("{scheme}{authority}{}{query}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_joined_as_in_rfc_3986() {
        // RFC 3986, 5.4.
        for (reference, joined) in [
            ("g:h", "g:h"),
            ("g", "http://a/b/c/g"),
            ("./g", "http://a/b/c/g"),
            ("g/", "http://a/b/c/g/"),
            ("/g", "http://a/g"),
            ("//g", "http://g"),
            ("g?y", "http://a/b/c/g?y"),
            (".", "http://a/b/c/"),
            ("..", "http://a/b/"),
            ("../g", "http://a/b/g"),
            ("../../g", "http://a/g"),
            ("../../../g", "http://a/g"),
        ] {
            assert_eq!(join("http://a/b/c/d;p?q", reference), joined, "{reference}");
        }
        assert_eq!(join("", "item.json"), "item.json");
        assert_eq!(join("urn:x:y", "urn:z"), "urn:z");
    }

    #[test]
    fn references_are_resolved() {
        let text = r##"{
            "$id": "http://example.com/root.json",
            "$defs": {
                "a/b~c d%": { "type": "null" },
                "A": { "$id": "nested/a.json", "$defs": { "x": { "$anchor": "here", "type": "string" } } },
                "old": { "$id": "#old" }
            },
            "enum": [{ "$anchor": "nowhere" }],
            "odd": { "place": [1, { "type": "integer" }] }
        }"##;
        let json = Json::read(text).unwrap();
        let places = Places::new(&json);
        let find = |reference: &str| match places.target(places.root(), reference) {
            Ok(id) => places.get(id).pointer.to_string(),
            Err(Lost::Outside) => "outside".to_owned(),
            Err(Lost::Nothing) => "nothing".to_owned(),
        };
        for (reference, pointer) in [
            ("#", ""),
            ("#/$defs/a~1b~0c%20d%25", "/$defs/a~1b~0c d%"),
            ("nested/a.json", "/$defs/A"),
            ("nested/a.json#here", "/$defs/A/$defs/x"),
            ("http://example.com/nested/a.json#/$defs/x", "/$defs/A/$defs/x"),
            ("root.json#old", "/$defs/old"),
            ("#/odd/place/1", "/odd/place/1"),
            ("#here", "nothing"),
            ("#nowhere", "nothing"),
            ("#/$defs/none", "nothing"),
            ("#/%zz", "nothing"),
            ("other.json", "outside"),
        ] {
            assert_eq!(find(reference), pointer, "{reference}");
        }
    }
}
