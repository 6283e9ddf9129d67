//! Selectors by labels, with what a format leaves to be understood written out.
//!
//! Validation follows `k8s.io/apimachinery/pkg/apis/meta/v1/validation`; the meaning of Cilium's
//! keys and the namespaces that selectors get follow `pkg/labels` and
//! `pkg/k8s/apis/cilium.io/utils` of Cilium.

use super::node::{Key, Node, Place};
use super::walk::{Walk, listed};
use super::{suggest, syntax};
use crate::policy::{Entity, Labels, Operator, Peer, Requirement, Selector, source};

/// How keys of labels are written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keys {
    /// Of pods, as Kubernetes writes them.
    Pods,
    /// Of namespaces, as Kubernetes writes them.
    Namespaces,
    /// As Cilium writes them: `source:key`, without a source from any.
    Cilium,
}

/// What `reserved:` labels there are.
const RESERVED: [&str; 11] = [
    "health",
    "host",
    "ingress",
    "init",
    "kube-apiserver",
    "none",
    "remote-node",
    "unmanaged",
    "world",
    "world-ipv4",
    "world-ipv6",
];
/// Where labels are from, for Cilium. Here they are from the first three.
const SOURCES: [&str; 7] = [
    source::ANY,
    source::K8S,
    source::RESERVED,
    source::CIDR,
    "container",
    "fqdn",
    "unspec",
];
const OPERATORS: [&str; 4] = ["In", "NotIn", "Exists", "DoesNotExist"];

/// Reads a selector as it is written.
pub(super) fn read(walk: &Walk<'_>, node: &Node, name: &str, keys: Keys) -> Option<Selector> {
    let fields = walk.map(node, name, &["matchLabels", "matchExpressions"])?;
    let mut selector = Selector::default();
    if let Some(labels) = fields.get("matchLabels") {
        for (key, node, value) in walk.texts(labels, "`matchLabels`") {
            check_value(walk, node, value);
            if let Some((source, key)) = read_key(walk, &key.name, key.at, keys) {
                selector = selector.equal(&source, &key, value);
            }
        }
    }
    if let Some(list) = fields.get("matchExpressions") {
        let items = walk.list(list, "`matchExpressions`")?;
        let requirements = items.iter().filter(|item| !item.is_null());
        let requirements = requirements.filter_map(|item| expression(walk, item, keys));
        selector.requirements.extend(requirements);
    }
    Some(selector)
}

/// The pods of a namespace whose labels fit.
pub(super) fn in_namespace(selector: Selector, namespace: &str) -> Selector {
    selector.equal(source::K8S, Labels::NAMESPACE, namespace)
}

/// The endpoints that a policy of Cilium is for: of its namespace, whichever its selector says.
///
/// Cilium replaces `k8s:io.kubernetes.pod.namespace` under `matchLabels` by the policy's own
/// namespace: such a policy applies to its own namespace only, and it does apply there.
pub(super) fn subject_of_cilium(mut selector: Selector, namespace: Option<&str>) -> Selector {
    let Some(namespace) = namespace else {
        return selector;
    };
    selector.requirements.retain(|requirement| {
        let named = requirement.source == source::K8S && requirement.key == Labels::NAMESPACE;
        !(named && matches!(&requirement.operator, Operator::In(values) if values.len() == 1))
    });
    in_namespace(selector, namespace)
}

/// The peers that a selector of Cilium fits: pods of the policy's namespace, unless it names
/// namespaces itself; pods of all namespaces for a policy without one, also where the selector is
/// empty; or what is no pod, where it names a `reserved:` label.
pub(super) fn peer_of_cilium(selector: Selector, namespace: Option<&str>) -> Peer {
    let reserved = |requirement: &Requirement| requirement.source == source::RESERVED;
    if selector.requirements.iter().any(reserved) {
        return if is_world(&selector) {
            Peer::Entity(Entity::World)
        } else {
            Peer::Labelled(selector)
        };
    }
    let names_namespaces = |requirement: &Requirement| {
        requirement.key == Labels::NAMESPACE
            || requirement.key.starts_with(Labels::NAMESPACE_LABELS)
    };
    let named = selector.requirements.iter().any(names_namespaces);
    Peer::Labelled(match namespace {
        Some(namespace) if !named => in_namespace(selector, namespace),
        _ => pods(selector),
    })
}

/// Whether a selector fits exactly what is outside of the cluster. Prefixes and both families are
/// identities of their own, so that no label says it.
fn is_world(selector: &Selector) -> bool {
    match &*selector.requirements {
        [only] => {
            only.key == "world"
                && match &only.operator {
                    Operator::Exists => true,
                    Operator::In(values) => values.iter().any(String::is_empty),
                    Operator::NotIn(_) | Operator::DoesNotExist => false,
                }
        }
        _ => false,
    }
}

/// The pods of any namespace whose labels fit. What is no pod has no namespace, and requirements
/// such as `NotIn` would fit it.
pub(super) fn pods(selector: Selector) -> Selector {
    let implies_namespace = |requirement: &Requirement| {
        let of_pods = requirement.key == Labels::NAMESPACE
            || requirement.key.starts_with(Labels::NAMESPACE_LABELS);
        of_pods && matches!(requirement.operator, Operator::In(_) | Operator::Exists)
    };
    if selector.requirements.iter().any(implies_namespace) {
        return selector;
    }
    selector.with(source::K8S, Labels::NAMESPACE, Operator::Exists)
}

/// The nodes whose labels fit: this one, and others.
pub(super) fn nodes(selector: &Selector) -> [Peer; 2] {
    ["host", "remote-node"].map(|name| {
        let node = selector.clone();
        Peer::Labelled(node.with(source::RESERVED, name, Operator::Exists))
    })
}

fn expression(walk: &Walk<'_>, node: &Node, keys: Keys) -> Option<Requirement> {
    let name = "an item of `matchExpressions`";
    let fields = walk.map(node, name, &["key", "operator", "values"])?;
    let key = required(walk, node, fields.get("key"), "key");
    let key = key.and_then(|key| {
        let text = walk.text(key, "`key`")?;
        read_key(walk, text, key.at, keys)
    });
    let operator = required(walk, node, fields.get("operator"), "operator");
    let word = operator.and_then(|operator| walk.word(operator, "`operator`", &OPERATORS));
    let mut values = Vec::new();
    if let Some(list) = fields.get("values") {
        for item in walk.list(list, "`values`").unwrap_or_default() {
            if item.is_null() {
                continue;
            }
            if let Some(value) = walk.text(item, "an item of `values`") {
                check_value(walk, item, value);
                values.push(value.to_owned());
            }
        }
    }
    let given = fields.get("values").and_then(Node::list);
    let given = given.is_some_and(|items| !items.is_empty());
    let word = word?;
    if matches!(word, "Exists" | "DoesNotExist") {
        if given {
            let problem = format!("operator `{word}` takes no values");
            let help = "leave `values` out, or write `operator: In` or `NotIn`";
            walk.wrong_so(fields.place("values"), problem, help);
        }
    } else if !given {
        let problem = format!("operator `{word}` needs values");
        walk.wrong_so(
            node.at,
            problem,
            "add `values: [...]`, or write `Exists` or `DoesNotExist`",
        );
    }
    let (source, key) = key?;
    let operator = match word {
        "In" => Operator::In(values),
        "NotIn" => Operator::NotIn(values),
        "Exists" => Operator::Exists,
        _ => Operator::DoesNotExist,
    };
    Some(Requirement {
        source,
        key,
        operator,
    })
}

fn required<'n>(
    walk: &Walk<'_>,
    of: &Node,
    found: Option<&'n Node>,
    key: &str,
) -> Option<&'n Node> {
    if found.is_none() {
        walk.wrong(of.at, format!("`{key}` is missing"));
    }
    found
}

/// Reads a key of a label: its source, and the key proper.
fn read_key(walk: &Walk<'_>, text: &str, at: Place, keys: Keys) -> Option<(String, String)> {
    let (from, key) = match keys {
        Keys::Pods | Keys::Namespaces => (source::K8S, text),
        Keys::Cilium => text.split_once(':').unwrap_or((source::ANY, text)),
    };
    if let Some(why) = syntax::label_key(key) {
        walk.wrong(at, format!("`{text}` is no key of a label: {why}"));
        return None;
    }
    if matches!(keys, Keys::Cilium) {
        if !SOURCES.contains(&from) {
            let help = format!("sources are {}", listed(&SOURCES));
            walk.wrong_so(at, format!("no label is from `{from}`"), help);
            return None;
        }
        // Others fit nobody, and are written to say so.
        let misspelt = from == source::RESERVED && !RESERVED.contains(&key);
        if let Some(meant) = suggest::meant(key, &RESERVED).filter(|_| misspelt) {
            let help = format!("did you mean `reserved:{meant}`?");
            walk.wrong_so(at, format!("there is no label `reserved:{key}`"), help);
            return None;
        }
    }
    let key = match keys {
        Keys::Namespaces => format!("{}{key}", Labels::NAMESPACE_LABELS),
        Keys::Pods | Keys::Cilium => key.to_owned(),
    };
    Some((from.to_owned(), key))
}

fn check_value(walk: &Walk<'_>, node: &Node, value: &str) {
    if let Some(why) = syntax::label_value(value) {
        walk.wrong(node.at, format!("`{value}` is no value of a label: {why}"));
    }
}

/// Checks labels that an object has.
pub(super) fn check_labels(walk: &Walk<'_>, node: &Node) {
    for (Key { name, at }, node, value) in walk.texts(node, "`labels`") {
        if let Some(why) = syntax::label_key(name) {
            walk.wrong(*at, format!("`{name}` is no key of a label: {why}"));
        }
        check_value(walk, node, value);
    }
}
