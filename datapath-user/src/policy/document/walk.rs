//! Going through a document, and noting all that is wrong with it.

use std::cell::RefCell;

use super::node::{Key, Node, Number, Place, Value};
use super::suggest;

/// Something wrong with a document.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) at: Place,
    pub(super) what: String,
    pub(super) help: Option<String>,
}

/// What it means that a key has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Null {
    /// The same as no key: so does the API server read its own kinds.
    Absent,
    /// A mistake: so does it read kinds that a schema defines.
    Wrong,
}

/// A document that is gone through. What is wrong is noted, and the reader goes on with what there
/// is: whatever it returns is used only if nothing was noted.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    text: &'a str,
    null: Null,
    problems: RefCell<Vec<Problem>>,
}

/// A mapping that is gone through.
#[derive(Clone, Debug)]
pub(super) struct Fields<'n> {
    /// The mapping itself.
    pub(super) node: &'n Node,
    entries: &'n [(Key, Node)],
    /// Keys of it that nobody knows.
    unknown: Vec<&'n str>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(text: &'a str, null: Null) -> Self {
        Self {
            text,
            null,
            problems: RefCell::default(),
        }
    }

    /// What was noted, in the order of the text.
    pub(super) fn finish(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.at);
        problems
    }

    /// Notes what is wrong at a place.
    pub(super) fn wrong(&self, at: Place, problem: impl Into<String>) {
        self.note(at, problem.into(), None);
    }

    /// Notes what is wrong at a place, and what to do.
    pub(super) fn wrong_so(&self, at: Place, problem: impl Into<String>, help: impl Into<String>) {
        self.note(at, problem.into(), Some(help.into()));
    }

    fn note(&self, at: Place, problem: String, help: Option<String>) {
        let noted = Problem {
            at,
            what: problem,
            help,
        };
        self.problems.borrow_mut().push(noted);
    }

    /// A mapping with none but these keys.
    pub(super) fn map<'n>(&self, node: &'n Node, name: &str, known: &[&str]) -> Option<Fields<'n>> {
        let mut fields = self.mapping(node, name)?;
        for (key, _) in fields.entries {
            if known.contains(&key.name.as_str()) {
                continue;
            }
            fields.unknown.push(&key.name);
            let problem = format!("unknown key `{}` in {name}", key.name);
            let help = match suggest::meant(&key.name, known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None if known.contains(&"matchLabels") => "put labels under `matchLabels`".into(),
                None => format!("keys are {}", listed(known)),
            };
            self.wrong_so(key.at, problem, help);
        }
        if self.null == Null::Wrong {
            self.no_nulls(&fields);
        }
        Some(fields)
    }

    /// A mapping of any keys to texts.
    pub(super) fn texts<'n>(
        &self,
        node: &'n Node,
        name: &str,
    ) -> Vec<(&'n Key, &'n Node, &'n str)> {
        let Some(fields) = self.mapping(node, name) else {
            return Vec::new();
        };
        let entries = fields.entries.iter();
        entries
            .filter_map(|(key, value)| {
                let text = self.text(value, &format!("`{}`", key.name))?;
                Some((key, value, text))
            })
            .collect()
    }

    /// A mapping of any keys.
    pub(super) fn mapping<'n>(&self, node: &'n Node, name: &str) -> Option<Fields<'n>> {
        match &node.value {
            Value::Map(entries) => Some(Fields {
                node,
                entries,
                unknown: Vec::new(),
            }),
            _ => self.other_kind(node, name, "a mapping", None),
        }
    }

    fn no_nulls(&self, fields: &Fields<'_>) {
        for (key, value) in fields.entries {
            if value.is_null() {
                let problem = format!("`{}` has no value", key.name);
                self.wrong_so(key.at, problem, "give it one, or leave the key out");
            }
        }
    }

    /// A list, none of whose items is null.
    pub(super) fn list<'n>(&self, node: &'n Node, name: &str) -> Option<&'n [Node]> {
        let Value::List(items) = &node.value else {
            let help = match node.value {
                Value::Map(_) => "put `- ` before its first key",
                _ => "write one as `[a, b]`, or each item on a line of its own after `- `",
            };
            return self.other_kind(node, name, "a list", Some(help.into()));
        };
        for item in items.iter().filter(|item| item.is_null()) {
            let problem = format!("an item of {name} has no value");
            self.wrong_so(item.at, problem, "give it one, or leave the `-` out");
        }
        Some(items)
    }

    /// Text that nobody takes for something else.
    pub(super) fn text<'n>(&self, node: &'n Node, name: &str) -> Option<&'n str> {
        let raw = self.raw(node);
        match &node.value {
            Value::Text(text) if raw == text && is_boolean_elsewhere(text) => {
                let problem = format!("{name} is a boolean for Kubernetes, and must be text");
                self.wrong_so(node.at, problem, format!("write \"{raw}\" in quotes"));
                None
            }
            Value::Text(text) => Some(text),
            Value::Number(_) | Value::Bool(_) => {
                let help = format!("write \"{raw}\" in quotes");
                self.other_kind(node, name, "text", Some(help))
            }
            _ => self.other_kind(node, name, "text", None),
        }
    }

    /// One of some words.
    pub(super) fn word<'k>(&self, node: &Node, name: &str, known: &[&'k str]) -> Option<&'k str> {
        let text = self.text(node, name)?;
        let found = known.iter().copied().find(|one| *one == text);
        if found.is_none() {
            let help = match suggest::meant(text, known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("write one of {}", listed(known)),
            };
            self.wrong_so(node.at, format!("{name} cannot be `{text}`"), help);
        }
        found
    }

    /// A whole number that nobody takes for another.
    pub(super) fn integer(&self, node: &Node, name: &str) -> Option<i128> {
        let raw = self.raw(node);
        match &node.value {
            Value::Number(Number::Whole(number)) => {
                let number = *number;
                let written = raw.starts_with(|c: char| c.is_ascii_digit() || c == '+' || c == '-');
                if written && raw != number.to_string() {
                    let problem = format!("{name} is `{raw}`, which may be read in two ways");
                    self.wrong_so(node.at, problem, format!("write {number}"));
                    return None;
                }
                Some(number)
            }
            // A `0` in front makes it octal in YAML 1.1, and no integer in YAML 1.2.
            Value::Number(Number::Fraction) if raw.bytes().all(|byte| byte.is_ascii_digit()) => {
                let problem = format!("{name} is `{raw}`, which may be read in two ways");
                let help = format!("write {}", raw.trim_start_matches('0'));
                self.wrong_so(node.at, problem, help);
                None
            }
            Value::Text(text) if text.parse::<i128>().is_ok() => {
                let help = format!("write {text} without quotes");
                self.other_kind(node, name, "an integer", Some(help))
            }
            _ => self.other_kind(node, name, "an integer", None),
        }
    }

    /// A whole number in a range.
    pub(super) fn integer_of<T: TryFrom<i128>>(
        &self,
        node: &Node,
        name: &str,
        range: std::ops::RangeInclusive<i128>,
    ) -> Option<T> {
        let number = self.integer(node, name)?;
        let fits = range.contains(&number).then(|| T::try_from(number).ok());
        let fits = fits.flatten();
        if fits.is_none() {
            let (low, high) = (range.start(), range.end());
            let problem = format!("{name} is {number}, and must be from {low} to {high}");
            self.wrong(node.at, problem);
        }
        fits
    }

    /// A boolean.
    pub(super) fn boolean(&self, node: &Node, name: &str) -> Option<bool> {
        match &node.value {
            Value::Bool(value) => Some(*value),
            Value::Text(text) => {
                let help = match &*text.to_lowercase() {
                    "true" | "yes" | "on" => "write true",
                    "false" | "no" | "off" => "write false",
                    _ => "write true or false",
                };
                self.other_kind(node, name, "a boolean", Some(help.into()))
            }
            _ => self.other_kind(node, name, "a boolean", None),
        }
    }

    fn other_kind<T>(
        &self,
        node: &Node,
        name: &str,
        wanted: &str,
        help: Option<String>,
    ) -> Option<T> {
        let problem = format!("{name} must be {wanted}, and it is {}", node.kind());
        self.note(node.at, problem, help);
        None
    }

    /// What stands where a scalar begins, up to where it ends if it is plain.
    fn raw(&self, node: &Node) -> &'a str {
        let rest = self.text.get(node.offset..).unwrap_or_default();
        let end = rest.find([' ', '\t', '\r', '\n', ',', ']', '}']);
        end.and_then(|end| rest.get(..end)).unwrap_or(rest)
    }
}

impl<'n> Fields<'n> {
    /// The value under a key; none too where there is nothing.
    pub(super) fn get(&self, name: &str) -> Option<&'n Node> {
        self.node.get(name)
    }

    /// Whether there is nothing under a key, and no unknown one looks as if it were meant: that is
    /// told already.
    pub(super) fn lacks(&self, name: &str) -> bool {
        self.get(name).is_none() && !self.misspells(name)
    }

    /// Whether an unknown key looks as if this one were meant.
    pub(super) fn misspells(&self, name: &str) -> bool {
        let mut unknown = self.unknown.iter();
        unknown.any(|key| suggest::meant(key, &[name]).is_some())
    }

    /// Where a key is; where the mapping is, if it has no such key.
    pub(super) fn place(&self, name: &str) -> Place {
        let entry = self.entries.iter().find(|(key, _)| key.name == name);
        entry.map_or(self.node.at, |(key, _)| key.at)
    }
}

/// Whether a plain word is a boolean in YAML 1.1, which Kubernetes reads. `y` and `n` are by the
/// letter of it, and to hardly any reader.
fn is_boolean_elsewhere(word: &str) -> bool {
    let word = word.to_lowercase();
    matches!(&*word, "yes" | "no" | "on" | "off" | "true" | "false")
}

/// Words for a sentence.
pub(super) fn listed(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    quoted.join(", ")
}
