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

    /// Looks at a text that is no YAML, line by line: the endpoints of its namespace are to be
    /// guarded even so.
    pub(super) fn of_text(text: &str) -> Self {
        let mut found = Self::default();
        let mut in_metadata = false;
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.split(" #").next().unwrap_or_default();
            let value = value.trim().trim_matches(['"', '\'']);
            let said = (!value.is_empty()).then(|| value.to_owned());
            if !key.starts_with([' ', '\t', '-', '#']) {
                in_metadata = key == "metadata";
                if key == "kind" {
                    found.kind = said;
                }
            } else if in_metadata {
                match key.trim() {
                    "name" if found.name.is_none() => found.name = said,
                    "namespace" if found.namespace.is_none() => found.namespace = said,
                    _ => {}
                }
            }
        }
        found
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
