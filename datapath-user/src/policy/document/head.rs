//! What an object says of itself: `apiVersion`, `kind` and `metadata`.

use super::node::Node;
use super::walk::{Fields, Walk, listed};
use super::{selector, suggest, syntax};
use crate::policy::{DocumentId, DocumentKind};

/// The namespace of an object that names none.
pub(super) const DEFAULT_NAMESPACE: &str = "default";

const GROUPS: [(&str, DocumentKind); 3] = [
    ("networking.k8s.io/v1", DocumentKind::NetworkPolicy),
    ("cilium.io/v2", DocumentKind::CiliumNetworkPolicy),
    ("cilium.io/v2", DocumentKind::CiliumClusterwideNetworkPolicy),
];
/// Keys of `metadata` that an API server takes, and those that it adds.
const METADATA: [&str; 15] = [
    "name",
    "generateName",
    "namespace",
    "labels",
    "annotations",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "finalizers",
    "ownerReferences",
    "managedFields",
    "selfLink",
];
/// Bytes that all annotations of an object may have.
const ANNOTATIONS_BYTES: usize = 256 << 10;

/// What can be read of an object's head, right or wrong.
#[derive(Clone, Debug, Default)]
pub(super) struct Glance {
    pub(super) kind: Option<String>,
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
}

impl Glance {
    /// Looks at an object.
    pub(super) fn of(object: &Node) -> Self {
        let text = |node: Option<&Node>| node.and_then(Node::text).map(str::to_owned);
        let metadata = object.get("metadata");
        Self {
            kind: text(object.get("kind")),
            name: text(metadata.and_then(|metadata| metadata.get("name"))),
            namespace: text(metadata.and_then(|metadata| metadata.get("namespace"))),
        }
    }

    /// Looks at a text that is no YAML for words that look like those of a head: the endpoints of
    /// its namespace are to be guarded even so.
    pub(super) fn of_text(text: &str) -> Self {
        let (before, rest) = text.split_once("metadata").unwrap_or((text, ""));
        let (metadata, after) = rest.split_once("spec").unwrap_or((rest, ""));
        Self {
            kind: word_under("kind", before).or_else(|| word_under("kind", after)),
            name: word_under("name", metadata),
            namespace: word_under("namespace", metadata),
        }
    }

    /// The kind, if it is one of policies.
    pub(super) fn document_kind(&self) -> Option<DocumentKind> {
        let kind = self.kind.as_deref()?;
        let mut kinds = GROUPS.iter().map(|(_, kind)| *kind);
        kinds.find(|known| known.to_string() == kind)
    }

    /// What it is called, as far as that can be told.
    pub(super) fn id(&self) -> Option<DocumentId> {
        let kind = self.document_kind()?;
        let namespace = self.namespace();
        let name = self.name.clone()?;
        Some(DocumentId {
            kind,
            namespace,
            name,
        })
    }

    /// Its namespace; none of a kind that has none.
    pub(super) fn namespace(&self) -> Option<String> {
        if self.document_kind() == Some(DocumentKind::CiliumClusterwideNetworkPolicy) {
            return None;
        }
        let namespace = self.namespace.as_deref().filter(|said| !said.is_empty());
        Some(namespace.unwrap_or(DEFAULT_NAMESPACE).to_owned())
    }
}

/// Reads which kind an object is of; whether it is a list of objects is known already.
pub(super) fn kind(walk: &Walk<'_>, object: &Node) -> Option<DocumentKind> {
    let at = object.at;
    let kind = object.get("kind");
    let version = object.get("apiVersion");
    if kind.is_none() {
        walk.wrong_so(at, "`kind` is missing", format!("kinds are {}", kinds()));
    }
    if version.is_none() {
        let help = match Glance::of(object).document_kind() {
            Some(kind) => format!("add `apiVersion: {}`", version_of(kind)),
            None => "`networking.k8s.io/v1` and `cilium.io/v2` are known".to_owned(),
        };
        walk.wrong_so(at, "`apiVersion` is missing", help);
    }
    let kind = kind.and_then(|node| {
        let text = walk.text(node, "`kind`")?;
        let mut known = GROUPS.iter().map(|(_, kind)| *kind);
        let found = known.find(|kind| kind.to_string() == text);
        if found.is_none() {
            let names = GROUPS.map(|(_, kind)| kind.to_string());
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let help = match suggest::meant(text, &names) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("kinds are {}", kinds()),
            };
            walk.wrong_so(node.at, format!("`{text}` is no kind of policy"), help);
        }
        found
    })?;
    let version = version?;
    let text = walk.text(version, "`apiVersion`")?;
    if text == version_of(kind) {
        return Some(kind);
    }
    let why = match text {
        "networking.k8s.io/v1beta1" | "extensions/v1beta1" => {
            ", and Kubernetes has none of it since 1.16"
        }
        "projectcalico.org/v3" | "crd.projectcalico.org/v1" => ": policies of Calico are others",
        _ => "",
    };
    let problem = format!("`{text}` has no `{kind}` that is known here{why}");
    let help = format!("write `apiVersion: {}`", version_of(kind));
    walk.wrong_so(version.at, problem, help);
    None
}

/// Reads `metadata`.
pub(super) fn metadata(walk: &Walk<'_>, object: &Node, kind: DocumentKind) -> Option<DocumentId> {
    let Some(node) = object.get("metadata") else {
        walk.wrong_so(object.at, "`metadata` is missing", "add it, with a `name`");
        return None;
    };
    let fields = walk.map(node, "`metadata`", &METADATA)?;
    if let Some(labels) = fields.get("labels") {
        selector::check_labels(walk, labels);
    }
    if let Some(annotations) = fields.get("annotations") {
        check_annotations(walk, annotations);
    }
    let namespace = namespace(walk, &fields, kind);
    let Some(name) = fields.get("name") else {
        let help = if fields.get("generateName").is_some() {
            "`generateName` makes another policy each time: give it a `name`"
        } else {
            "give it one"
        };
        walk.wrong_so(node.at, "`name` is missing in `metadata`", help);
        return None;
    };
    let text = walk.text(name, "`name`")?;
    if let Some(why) = syntax::subdomain(text) {
        walk.wrong(name.at, format!("`{text}` is no name of an object: {why}"));
    }
    Some(DocumentId {
        kind,
        namespace,
        name: text.to_owned(),
    })
}

fn namespace(walk: &Walk<'_>, fields: &Fields<'_>, kind: DocumentKind) -> Option<String> {
    let clusterwide = kind == DocumentKind::CiliumClusterwideNetworkPolicy;
    let Some(node) = fields.get("namespace") else {
        return (!clusterwide).then(|| DEFAULT_NAMESPACE.to_owned());
    };
    let text = walk.text(node, "`namespace`")?;
    if clusterwide {
        walk.wrong_so(
            fields.place("namespace"),
            format!("a `{kind}` has no namespace"),
            "leave it out, or make it a `CiliumNetworkPolicy`",
        );
        return None;
    }
    if text.is_empty() {
        return Some(DEFAULT_NAMESPACE.to_owned());
    }
    if let Some(why) = syntax::namespace(text) {
        walk.wrong(
            node.at,
            format!("`{text}` is no name of a namespace: {why}"),
        );
    }
    Some(text.to_owned())
}

fn check_annotations(walk: &Walk<'_>, node: &Node) {
    let mut bytes = 0;
    for (key, _, value) in walk.texts(node, "`annotations`") {
        bytes += key.name.len() + value.len();
        if let Some(why) = syntax::label_key(&key.name.to_lowercase()) {
            let problem = format!("`{}` is no key of an annotation: {why}", key.name);
            walk.wrong(key.at, problem);
        }
    }
    if bytes > ANNOTATIONS_BYTES {
        let problem =
            format!("annotations have {bytes} bytes, and {ANNOTATIONS_BYTES} are allowed");
        walk.wrong(node.at, problem);
    }
}

/// The version of a kind that is read.
fn version_of(kind: DocumentKind) -> &'static str {
    let mut known = GROUPS.iter().filter(|(_, known)| *known == kind);
    known.next().map_or("", |(version, _)| version)
}

fn kinds() -> String {
    let names = GROUPS.map(|(_, kind)| kind.to_string());
    listed(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The word behind a key in a text that is no YAML: of several, the one that is nested least.
fn word_under(key: &str, text: &str) -> Option<String> {
    let mut found: Option<((usize, bool, usize), String)> = None;
    let mut depth = 0_usize;
    for line in text.lines() {
        let line = line.split(" #").next().unwrap_or_default();
        for (at, c) in line.char_indices() {
            match c {
                '{' | '[' => depth += 1,
                '}' | ']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            let (before, rest) = line.split_at(at);
            let part_of_another = before.ends_with(|c: char| c.is_alphanumeric() || c == '-');
            let Some(rest) = rest.strip_prefix(key).filter(|_| !part_of_another) else {
                continue;
            };
            let rest = rest.trim_start_matches(['"', '\'', ' ']);
            let Some(value) = rest.strip_prefix(':') else {
                continue;
            };
            let value = value.trim_start_matches([' ', '"', '\'']);
            let end = value.find([' ', '"', '\'', ',', '}', ']']);
            let value = end.and_then(|end| value.get(..end)).unwrap_or(value);
            let rank = (depth, !before.trim_matches([' ', '"']).is_empty(), at);
            if !value.is_empty() && found.as_ref().is_none_or(|(best, _)| rank < *best) {
                found = Some((rank, value.to_owned()));
            }
        }
    }
    found.map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_texts_that_are_no_yaml_are_recognised() {
        for (text, kind, name, namespace) in [
            (
                "kind: NetworkPolicy # it\nmetadata:\n  labels:\n    name: x\n  name: \"a\"\n  \
                 namespace: b # there\nspec: [\n",
                "NetworkPolicy",
                "a",
                "b",
            ),
            (
                "kind: A\nmetadata: {labels: {name: x, namespace: y}, name: a, namespace: 'b'}\nspec: {",
                "A",
                "a",
                "b",
            ),
            (
                "{\"kind\":\"A\",\"metadata\":{\"name\":\"a\",\"namespace\":\"b\"},\"spec\":{",
                "A",
                "a",
                "b",
            ),
            (
                "metadata:\n  namespace: b\n  name: a\nspec:\n\tx\nkind: A\n",
                "A",
                "a",
                "b",
            ),
        ] {
            let found = Glance::of_text(text);
            assert_eq!(found.kind.as_deref(), Some(kind), "{text}");
            assert_eq!(found.name.as_deref(), Some(name), "{text}");
            assert_eq!(found.namespace.as_deref(), Some(namespace), "{text}");
        }
        let found = Glance::of_text("nickname: x\n");
        assert_eq!(
            (found.kind, found.name, found.namespace),
            (None, None, None)
        );
    }
}
