//! Reading documents: `NetworkPolicy` of Kubernetes, `CiliumNetworkPolicy` and
//! `CiliumClusterwideNetworkPolicy` of Cilium, in YAML or JSON.
//!
//! Nobody else checks them on a node without an API server, so what an API server checks is checked
//! here: a key that nobody knows, a value of another type, a prefix that is none. What means
//! something that the datapath does not do yet (rules about HTTP, names of DNS) is refused, and
//! never taken for something wider.
//!
//! | where | what is read otherwise than by an API server |
//! |---|---|
//! | `spec.podSelector` of a `NetworkPolicy` | must be there: to leave it out by mistake would select all pods |
//! | an item of a list | must have a value: nothing behind a `-` would be a rule for everyone |
//! | plain `yes`, `no`, `on`, `off` | no text without quotes, and no boolean |
//! | numbers | in decimal, without a `0` in front |
//! | prefixes | without a `0` in front of a number, and not IPv4 in IPv6 |
//! | `metadata.generateName` | is no name |
//! | a namespace | `default`, where none is said |
//! | two documents of one name in a text | the second one is refused |

mod cidr;
mod cilium;
mod directory;
mod files;
mod head;
mod networkpolicy;
mod node;
mod refusal;
mod selector;
mod split;
mod suggest;
mod syntax;
mod walk;

use std::collections::BTreeMap;
use std::path::Path;

pub use self::directory::Directory;
pub use self::files::files_of;
use self::head::Glance;
use self::node::{Node, Place};
pub use self::refusal::Refusal;
pub use self::split::{Piece, split};
use self::walk::{Null, Problem, Walk};
use super::model::{Document, DocumentKind, Spec, Subject};

/// The largest document that is read, bytes. An API server takes 3 MiB of a request.
pub const LARGEST_DOCUMENT_BYTES: usize = 4 << 20;
/// Mistakes of one document that are told.
const MOST_PROBLEMS: usize = 50;

/// What was read of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The documents that can be used, in the order of the text.
    pub documents: Vec<Document>,
    /// What is wrong with the others, in the order of the text. One document may have several.
    pub refused: Vec<Refusal>,
}

/// Reads a text of any number of documents, and lists of them. What is wrong with one leaves the
/// others as they are.
///
/// `file` is where the text is from: it is kept in what is read, and nothing is opened.
#[must_use]
pub fn read(text: &str, file: Option<&Path>) -> Reading {
    let mut reader = Reader::default();
    reader.text(text, file);
    reader.finish()
}

/// Reads the text of one document, or of one list of them, that begins `lines_before` lines into
/// its file.
#[must_use]
pub fn read_one(text: &str, file: Option<&Path>, lines_before: u64) -> Reading {
    let mut reader = Reader::default();
    reader.piece(text, file, lines_before);
    reader.finish()
}

/// Reads several texts and files as one, so that no two documents of one name come out.
#[derive(Debug, Default)]
pub struct Reader {
    /// Documents, each with the line of its file where it begins.
    documents: Vec<(u64, Document)>,
    refused: Vec<Refusal>,
}

impl Reader {
    /// Reads a text, as [`read`] does.
    pub fn text(&mut self, text: &str, file: Option<&Path>) {
        for Piece { text, lines_before } in split(text) {
            self.piece(text, file, lines_before);
        }
    }

    fn piece(&mut self, text: &str, file: Option<&Path>, lines_before: u64) {
        let origin = Origin {
            text,
            file,
            lines_before,
        };
        let problem = if text.len() > LARGEST_DOCUMENT_BYTES {
            let size = text.len();
            Problem {
                at: Place::START,
                what: format!(
                    "the document has {size} bytes, and {LARGEST_DOCUMENT_BYTES} are allowed"
                ),
                help: Some("make several of it, with a line `---` between them".to_owned()),
            }
        } else {
            match Node::parse(text) {
                Ok(node) => return origin.read(&node, self),
                Err(problem) => problem,
            }
        };
        let glance = Glance::of_text(text);
        self.refused.push(origin.refusal(problem, &glance, None));
    }

    /// Returns what was read. Of documents with one name the first counts, and the others are
    /// refused: which of them was meant, nobody can tell.
    #[must_use]
    pub fn finish(self) -> Reading {
        let Self {
            documents,
            mut refused,
        } = self;
        let mut first = BTreeMap::new();
        let mut kept: Vec<Document> = Vec::new();
        for (line, document) in documents {
            match first.get(&document.id) {
                None => {
                    first.insert(document.id.clone(), (document.file.clone(), line));
                    kept.push(document);
                }
                Some((file, before)) => {
                    refused.push(namesake(document, line, file.as_deref(), *before));
                }
            }
        }
        refused.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        Reading {
            documents: kept,
            refused,
        }
    }
}

/// Where a document is from.
#[derive(Clone, Copy)]
struct Origin<'a> {
    text: &'a str,
    file: Option<&'a Path>,
    lines_before: u64,
}

impl Origin<'_> {
    /// Reads an object, or the items of a list.
    fn read(self, node: &Node, found: &mut Reader) {
        let kind = node.get("kind").and_then(Node::text).unwrap_or_default();
        let walk = Walk::new(self.text, Null::Absent);
        if node.is_null() {
            return;
        }
        if walk.mapping(node, "a document").is_none() {
            let glance = Glance::default();
            let noted = walk.finish().into_iter();
            let noted = noted.map(|problem| self.refusal(problem, &glance, None));
            found.refused.extend(noted);
            return;
        }
        let is_list = matches!(
            kind,
            "List"
                | "NetworkPolicyList"
                | "CiliumNetworkPolicyList"
                | "CiliumClusterwideNetworkPolicyList"
        );
        if !is_list {
            self.object(node, found);
            return;
        }
        let known = ["apiVersion", "kind", "metadata", "items"];
        let fields = walk.map(node, "the list", &known);
        let items = fields.and_then(|fields| fields.get("items"));
        let items = items.and_then(|items| walk.list(items, "`items`"));
        let noted = walk.finish();
        let glance = Glance::default();
        let noted = noted
            .into_iter()
            .map(|problem| self.refusal(problem, &glance, None));
        found.refused.extend(noted);
        for item in items
            .unwrap_or_default()
            .iter()
            .filter(|item| !item.is_null())
        {
            self.object(item, found);
        }
    }

    fn object(self, node: &Node, found: &mut Reader) {
        let glance = Glance::of(node);
        let walk = Walk::new(self.text, Null::Absent);
        let kind = head::kind(&walk, node);
        let id = kind.and_then(|kind| head::metadata(&walk, node, kind));
        let mut problems = walk.finish();
        let mut specs = Vec::new();
        if let Some(kind) = kind {
            let of_kubernetes = kind == DocumentKind::NetworkPolicy;
            let null = if of_kubernetes {
                Null::Absent
            } else {
                Null::Wrong
            };
            let walk = Walk::new(self.text, null);
            specs = self.specs(&walk, node, kind, &glance);
            problems.extend(walk.finish());
            problems.sort_by_key(|problem| problem.at);
        }
        if let Some(id) = id
            && problems.is_empty()
        {
            let file = self.file.map(Path::to_owned);
            let line = self.lines_before + node.at.line;
            found.documents.push((line, Document { id, file, specs }));
            return;
        }
        let subject = self.subject(node, &glance);
        let all = problems.len();
        if let Some(after) = problems.get(MOST_PROBLEMS) {
            let at = after.at;
            problems.truncate(MOST_PROBLEMS);
            let what = format!("{} more mistakes from here on", all - MOST_PROBLEMS);
            let help = None;
            problems.push(Problem { at, what, help });
        }
        let problems = problems.into_iter();
        let refused = problems.map(|problem| self.refusal(problem, &glance, subject.clone()));
        found.refused.extend(refused);
    }

    fn specs(self, walk: &Walk<'_>, node: &Node, kind: DocumentKind, glance: &Glance) -> Vec<Spec> {
        let namespace = glance.namespace();
        if kind != DocumentKind::NetworkPolicy {
            return cilium::specs(walk, node, namespace.as_deref(), self.lines_before);
        }
        let known = ["apiVersion", "kind", "metadata", "spec", "status"];
        let Some(fields) = walk.map(node, "the document", &known) else {
            return Vec::new();
        };
        let Some(spec) = fields.get("spec") else {
            let help = "say which pods it is for, and what is allowed";
            walk.wrong_so(fields.place("spec"), "`spec` is missing", help);
            return Vec::new();
        };
        let namespace = namespace.unwrap_or_default();
        let spec = networkpolicy::spec(walk, spec, &namespace, self.lines_before);
        spec.into_iter().collect()
    }

    /// For whom a document with mistakes would have been, if that is none of them.
    fn subject(self, node: &Node, glance: &Glance) -> Option<Subject> {
        let walk = Walk::new(self.text, Null::Wrong);
        let namespace = glance.namespace();
        let subject = match glance.document_kind()? {
            DocumentKind::NetworkPolicy => {
                networkpolicy::subject(&walk, node.get("spec")?, &namespace?)
            }
            _ => cilium::subject(&walk, node, namespace.as_deref()),
        };
        subject.filter(|_| walk.finish().is_empty())
    }

    fn refusal(self, problem: Problem, glance: &Glance, subject: Option<Subject>) -> Refusal {
        let Problem { at, what, help } = problem;
        let excerpt = usize::try_from(at.line - 1).ok();
        let excerpt = excerpt.and_then(|line| self.text.lines().nth(line));
        let is_policy = glance.document_kind().is_some();
        Refusal {
            id: glance.id(),
            kind: glance.kind.clone(),
            namespace: glance.namespace().filter(|_| is_policy),
            file: self.file.map(Path::to_owned),
            line: self.lines_before + at.line,
            column: at.column,
            problem: what,
            help,
            excerpt: excerpt.and_then(|line| refusal::excerpt(line, at.column)),
            subject,
        }
    }
}

/// The refusal of a document that has the name of one before it.
fn namesake(document: Document, line: u64, other: Option<&Path>, before: u64) -> Refusal {
    let Document { id, file, specs } = document;
    let place = match other {
        Some(other) if file.as_deref() != Some(other) => format!("{}:{before}", other.display()),
        _ => format!("line {before}"),
    };
    let problem = format!("{id} is there already, in {place}");
    let mut subjects = specs.into_iter().map(|spec| spec.subject);
    Refusal {
        kind: Some(id.kind.to_string()),
        namespace: id.namespace.clone(),
        id: Some(id),
        file,
        line,
        column: 1,
        problem,
        help: Some("give one of them another name, or leave it out".to_owned()),
        excerpt: None,
        subject: subjects.next().filter(|_| subjects.next().is_none()),
    }
}
