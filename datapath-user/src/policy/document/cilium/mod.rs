//! `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy`, `cilium.io/v2`.
//!
//! Validation follows the schema of the custom resource and `pkg/policy/api/rule_validation.go` of
//! Cilium.

mod icmp;
mod peers;
mod ports;
mod rule;

use super::node::Node;
use super::selector::{self, Keys};
use super::walk::{Fields, Walk};
use crate::policy::{Section, Spec, Subject};

/// What a specification may have.
const SPEC: [&str; 10] = [
    "endpointSelector",
    "nodeSelector",
    "ingress",
    "ingressDeny",
    "egress",
    "egressDeny",
    "enableDefaultDeny",
    "labels",
    "description",
    "log",
];

/// Reads its specifications: those of `spec`, and of `specs`.
pub(super) fn specs(
    walk: &Walk<'_>,
    document: &Node,
    namespace: Option<&str>,
    lines_before: u64,
) -> Vec<Spec> {
    let known = ["apiVersion", "kind", "metadata", "spec", "specs", "status"];
    let Some(fields) = walk.map(document, "the document", &known) else {
        return Vec::new();
    };
    let reader = Reader {
        walk,
        namespace,
        lines_before,
    };
    let one = fields.get("spec");
    let several = fields.get("specs");
    if one.is_none() && several.is_none() {
        let help = "say for whom it is, and what is allowed";
        walk.wrong_so(document.at, "`spec` is missing", help);
    }
    let mut specs = Vec::new();
    specs.extend(one.and_then(|node| reader.spec(node, "spec")));
    if let Some(list) = several {
        let items = walk.list(list, "`specs`").unwrap_or_default();
        if items.is_empty() && one.is_none() {
            walk.wrong(list.at, "`specs` is empty, and there is no `spec`");
        }
        for (at, item) in items.iter().enumerate().filter(|(_, item)| !item.is_null()) {
            specs.extend(reader.spec(item, &format!("specs[{at}]")));
        }
    }
    specs
}

/// Reads only for whom it is, if that is one selector.
pub(super) fn subject(
    walk: &Walk<'_>,
    document: &Node,
    namespace: Option<&str>,
) -> Option<Subject> {
    let several = document.get("specs").and_then(Node::list);
    let mut specs = document
        .get("spec")
        .into_iter()
        .chain(several.unwrap_or_default());
    let spec = specs.next()?;
    if specs.next().is_some() {
        return None;
    }
    match (spec.get("endpointSelector"), spec.get("nodeSelector")) {
        (Some(node), None) => {
            let selector = selector::read(walk, node, "", Keys::Cilium)?;
            let selector = selector::subject_of_cilium(selector, namespace);
            Some(Subject::Endpoints(selector))
        }
        (None, Some(node)) if namespace.is_none() => {
            let selector = selector::read(walk, node, "", Keys::Cilium)?;
            Some(Subject::Nodes(selector))
        }
        _ => None,
    }
}

/// Reads the specifications of one document.
struct Reader<'w, 't> {
    walk: &'w Walk<'t>,
    /// None: the document is of all namespaces.
    namespace: Option<&'w str>,
    lines_before: u64,
}

/// One of the two directions, and what the lists are called there.
#[derive(Clone, Copy, Debug)]
struct Direction {
    allow: &'static str,
    deny: &'static str,
    endpoints: &'static str,
    requires: &'static str,
    cidr: &'static str,
    cidr_set: &'static str,
    entities: &'static str,
    nodes: &'static str,
    groups: &'static str,
}

const INGRESS: Direction = Direction {
    allow: "ingress",
    deny: "ingressDeny",
    endpoints: "fromEndpoints",
    requires: "fromRequires",
    cidr: "fromCIDR",
    cidr_set: "fromCIDRSet",
    entities: "fromEntities",
    nodes: "fromNodes",
    groups: "fromGroups",
};
const EGRESS: Direction = Direction {
    allow: "egress",
    deny: "egressDeny",
    endpoints: "toEndpoints",
    requires: "toRequires",
    cidr: "toCIDR",
    cidr_set: "toCIDRSet",
    entities: "toEntities",
    nodes: "toNodes",
    groups: "toGroups",
};

impl Reader<'_, '_> {
    fn spec(&self, node: &Node, path: &str) -> Option<Spec> {
        let walk = self.walk;
        let fields = walk.map(node, &format!("`{path}`"), &SPEC)?;
        let subject = self.whom(&fields);
        check_labels(walk, &fields);
        if let Some(text) = fields.get("description") {
            walk.text(text, "`description`");
        }
        if let Some(log) = fields.get("log") {
            let log = walk.map(log, "`log`", &["value"]);
            if let Some(value) = log.and_then(|log| log.get("value")) {
                walk.text(value, "`value`");
            }
        }
        let [ingress, egress] = self.default_deny(&fields);
        let ingress = self.section(&fields, path, &INGRESS, ingress);
        let egress = self.section(&fields, path, &EGRESS, egress);
        let lists = [&INGRESS, &EGRESS].map(|direction| [direction.allow, direction.deny]);
        let counted = |name: &&str| {
            let list = fields.get(name);
            list.is_some_and(|list| list.list().is_none_or(|items| !items.is_empty()))
        };
        let mut lists = lists.iter().flatten();
        if !lists.clone().any(counted) && !lists.any(|name| fields.misspells(name)) {
            walk.wrong_so(
                node.at,
                format!("`{path}` has no rule"),
                "give it at least one in `ingress`, `ingressDeny`, `egress` or `egressDeny`: \
                 `ingress: [{}]` allows nobody in",
            );
        }
        Some(Spec {
            subject: subject?,
            ingress,
            egress,
        })
    }

    fn whom(&self, fields: &Fields<'_>) -> Option<Subject> {
        let walk = self.walk;
        let endpoints = fields.get("endpointSelector");
        let nodes = fields.get("nodeSelector");
        match (endpoints, nodes) {
            (None, None) => {
                if fields.lacks("endpointSelector") && fields.lacks("nodeSelector") {
                    let help = "`endpointSelector: {}` is all pods that the policy may be for";
                    walk.wrong_so(fields.node.at, "`endpointSelector` is missing", help);
                }
                None
            }
            (Some(_), Some(_)) => {
                walk.wrong_so(
                    fields.place("nodeSelector"),
                    "`nodeSelector` cannot be beside `endpointSelector`",
                    "make two of it, under `specs`",
                );
                None
            }
            (Some(node), None) => {
                let read = selector::read(walk, node, "`endpointSelector`", Keys::Cilium)?;
                let selector = selector::subject_of_cilium(read, self.namespace);
                Some(Subject::Endpoints(selector))
            }
            (None, Some(node)) => {
                if self.namespace.is_some() {
                    walk.wrong_so(
                        fields.place("nodeSelector"),
                        "a `CiliumNetworkPolicy` is for no nodes: they are in no namespace",
                        "make it a `CiliumClusterwideNetworkPolicy`",
                    );
                    return None;
                }
                let read = selector::read(walk, node, "`nodeSelector`", Keys::Cilium)?;
                Some(Subject::Nodes(read))
            }
        }
    }

    /// Reads the rules of a direction. A direction with any, even with one that allows nobody,
    /// isolates, unless `enableDefaultDeny` says otherwise.
    fn section(
        &self,
        fields: &Fields<'_>,
        path: &str,
        direction: &'static Direction,
        default_deny: Option<bool>,
    ) -> Section {
        let mut rules = Vec::new();
        let mut any = false;
        for (list, denies) in [(direction.allow, false), (direction.deny, true)] {
            let Some(node) = fields.get(list) else {
                continue;
            };
            let items = self.walk.list(node, &format!("`{list}`"));
            for (at, item) in items.unwrap_or_default().iter().enumerate() {
                any = true;
                if !item.is_null() {
                    let path = format!("{path}.{list}[{at}]");
                    rules.extend(self.rule(item, path, direction, denies));
                }
            }
        }
        Section {
            isolates: default_deny.unwrap_or(any),
            rules,
        }
    }

    /// Reads what `enableDefaultDeny` says of both directions.
    fn default_deny(&self, fields: &Fields<'_>) -> [Option<bool>; 2] {
        let node = fields.get("enableDefaultDeny");
        let both = node.and_then(|node| {
            self.walk
                .map(node, "`enableDefaultDeny`", &["ingress", "egress"])
        });
        ["ingress", "egress"].map(|direction| {
            let said = both.as_ref()?.get(direction)?;
            self.walk.boolean(said, &format!("`{direction}`"))
        })
    }
}

/// Checks the labels that a specification is called by.
fn check_labels(walk: &Walk<'_>, fields: &Fields<'_>) {
    let Some(list) = fields.get("labels") else {
        return;
    };
    for item in walk.list(list, "`labels`").unwrap_or_default() {
        if item.is_null() {
            continue;
        }
        let Some(label) = walk.map(item, "an item of `labels`", &["key", "value", "source"]) else {
            continue;
        };
        if label.get("key").is_none() {
            walk.wrong(item.at, "`key` is missing");
        }
        for name in ["key", "value", "source"] {
            if let Some(node) = label.get(name) {
                walk.text(node, &format!("`{name}`"));
            }
        }
    }
}
