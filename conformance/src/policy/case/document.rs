//! A file's YAML documents, each with the line where it begins.

use std::borrow::Cow;

use serde::{Deserialize, de::DeserializeOwned};

/// Kinds of documents that are policies, whatever version they claim.
const POLICIES: [(&str, bool); 3] = [
    ("NetworkPolicy", true),
    ("CiliumNetworkPolicy", true),
    ("CiliumClusterwideNetworkPolicy", false),
];

/// A policy document as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyText {
    /// What it is called: `Kind/namespace/name`, or `Kind/name` where the kind has no namespace.
    pub object: String,
    /// The line of the file that its text begins on, counted from one.
    pub line: u64,
    /// The document alone.
    pub text: String,
}

/// What is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) line: u64,
    pub(super) problem: String,
}

impl Problem {
    pub(super) fn at(line: u64, problem: impl Into<String>) -> Self {
        let problem = problem.into();
        Self { line, problem }
    }
}

/// One document of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    /// The line of the file that its text begins on, counted from one.
    pub(super) line: u64,
}

/// Takes a file apart at its lines `---`; what holds nothing but comments is left out.
pub(super) fn split(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let (mut begin, mut first, mut at) = (0, 1, 0);
    let lines = (1_u64..).zip(text.split_inclusive('\n'));
    for (number, line) in lines {
        if is_border(line) {
            pieces.extend(text.get(begin..at).map(|text| Piece { text, line: first }));
            begin = at + line.len();
            first = number + 1;
        }
        at += line.len();
    }
    pieces.extend(text.get(begin..).map(|text| Piece { text, line: first }));
    pieces.retain(|piece| piece.text.lines().any(says_something));
    pieces
}

fn is_border(line: &str) -> bool {
    let rest = line.strip_prefix("---");
    rest.is_some_and(|rest| {
        rest.split('#')
            .next()
            .is_some_and(|it| it.trim().is_empty())
    })
}

fn says_something(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#')
}

impl Piece<'_> {
    /// Reads it; lines in errors are those of the file.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_saphyr::from_str(&self.placed()).map_err(|error| {
            let line = error.location().map_or(self.line, |place| place.line());
            let whole = error.to_string();
            // The message may go on with an excerpt of the text.
            let problem = whole.lines().next().unwrap_or("it cannot be read");
            Problem::at(line, problem)
        })
    }

    /// Its `apiVersion` and `kind`.
    pub(super) fn kind(&self) -> Result<(String, String), Problem> {
        let Head { version, kind } = self.read()?;
        Ok((version, kind))
    }

    /// It, if its kind is one of a policy, also where the rest cannot be read.
    pub(super) fn policy(&self) -> Option<PolicyText> {
        let kind = self.find("kind", None)?;
        let &(_, has_namespace) = POLICIES.iter().find(|(known, _)| *known == kind)?;
        let name = self.find("name", Some("metadata")).unwrap_or_default();
        let object = if has_namespace {
            let namespace = self.find("namespace", Some("metadata"));
            let namespace = namespace.unwrap_or_else(|| "default".into());
            format!("{kind}/{namespace}/{name}")
        } else {
            format!("{kind}/{name}")
        };
        Some(PolicyText {
            object,
            line: self.line,
            text: self.text.to_owned(),
        })
    }

    pub(super) fn wrong(&self, problem: impl Into<String>) -> Problem {
        Problem::at(self.first_line(), problem)
    }

    /// The line that says something first.
    pub(super) fn first_line(&self) -> u64 {
        let empty = self.text.lines().take_while(|line| !says_something(line));
        self.line + empty.count() as u64
    }

    /// The text at its place in the file.
    fn placed(&self) -> String {
        let before = usize::try_from(self.line.saturating_sub(1)).unwrap_or_default();
        "\n".repeat(before) + self.text
    }

    /// Finds a scalar by looking at lines only: at the top level, or one level below `parent`.
    ///
    /// Policies that are no good YAML are to be refused by their names, too.
    fn find(&self, key: &str, parent: Option<&str>) -> Option<Cow<'_, str>> {
        let mut within = None;
        let mut indent = None;
        for line in self.text.lines().filter(|line| says_something(line)) {
            let depth = line.len() - line.trim_start().len();
            let (name, value) = line.trim().split_once(':').unwrap_or((line.trim(), ""));
            if depth == 0 {
                within = Some(name);
                indent = None;
            } else {
                indent = indent.or(Some(depth));
            }
            let here = match parent {
                None => depth == 0,
                Some(parent) => within == Some(parent) && depth != 0 && indent == Some(depth),
            };
            if here && name == key {
                return Some(unquoted(value));
            }
            if here && parent.is_none() {
                continue;
            }
            // `metadata: {name: x, namespace: y}`
            if depth == 0 && parent == Some(name) && value.trim().starts_with('{') {
                let inside = value.trim().trim_start_matches('{').trim_end_matches('}');
                let pairs = inside.split(',').filter_map(|pair| pair.split_once(':'));
                let mut fitting = pairs.filter(|(name, _)| name.trim() == key);
                if let Some((_, value)) = fitting.next() {
                    return Some(unquoted(value));
                }
            }
        }
        None
    }
}

fn unquoted(value: &str) -> Cow<'_, str> {
    let value = value.split(" #").next().unwrap_or_default().trim();
    let bare = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
    Cow::Borrowed(bare.unwrap_or(value))
}

#[derive(Deserialize)]
struct Head {
    #[serde(rename = "apiVersion")]
    version: String,
    kind: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_know_their_lines() {
        let text = "# a case\n---\na: 1\n--- # next\n\n# b\nb: 2\n---\n";
        let lines: Vec<_> = split(text).iter().map(|piece| piece.line).collect();
        assert_eq!(lines, [3, 5]);
        assert_eq!(split(text)[1].first_line(), 7);
    }

    #[test]
    fn policies_have_their_names_though_they_cannot_be_read() {
        let named = |text| split(text)[0].policy().map(|policy| policy.object);
        let text =
            "kind: NetworkPolicy\nmetadata:\n  labels:\n    name: no\n  name: 'p'\n   bad: [";
        assert_eq!(named(text).as_deref(), Some("NetworkPolicy/default/p"));
        let text = "metadata: {name: p, namespace: x}\nkind: CiliumNetworkPolicy # good\n";
        assert_eq!(named(text).as_deref(), Some("CiliumNetworkPolicy/x/p"));
        let text = "kind: CiliumClusterwideNetworkPolicy\nmetadata:\n  name: \"all\"\n";
        assert_eq!(
            named(text).as_deref(),
            Some("CiliumClusterwideNetworkPolicy/all")
        );
        assert_eq!(named("kind: Pod\nmetadata:\n  name: p\n"), None);
    }

    #[test]
    fn a_mistake_is_told_with_its_line_in_the_file() {
        let text = "a: 1\n---\n# b\nkind: Pod\n";
        let problem = split(text)[1].kind().unwrap_err();
        assert!(problem.problem.contains("apiVersion"), "{problem:?}");
        let text = "a: 1\n---\nkind: Pod\napiVersion: [1\n";
        assert!(split(text)[1].kind().unwrap_err().line >= 4);
    }
}
