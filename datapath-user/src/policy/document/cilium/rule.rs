//! One rule.

use super::super::node::Node;
use super::super::walk::Fields;
use super::{Direction, Reader};
use crate::policy::{Peers, Ports, Rule, RuleVerdict};

/// What the datapath does not do yet, and why each would mean something wider if it were left out.
const LATER: [(&str, &str); 2] = [
    (
        "toServices",
        "rules by service are not built yet: name its pods under `toEndpoints`, or \
         `toEntities: [kube-apiserver]`",
    ),
    (
        "toFQDNs",
        "rules by names of DNS are not built yet: name prefixes under `toCIDR`",
    ),
];

impl Reader<'_, '_> {
    pub(super) fn rule(
        &self,
        node: &Node,
        path: String,
        direction: &'static Direction,
        denies: bool,
    ) -> Option<Rule> {
        let walk = self.walk;
        let list = if denies {
            direction.deny
        } else {
            direction.allow
        };
        let outward = direction.allow == super::EGRESS.allow;
        let mut known = vec![
            direction.endpoints,
            direction.cidr,
            direction.cidr_set,
            direction.entities,
            direction.nodes,
            direction.groups,
            direction.requires,
            "toPorts",
            "icmps",
        ];
        if outward {
            known.push("toServices");
        }
        if outward && !denies {
            known.push("toFQDNs");
        }
        if !denies {
            known.push("authentication");
        }
        let fields = walk.map(node, &format!("a rule of `{list}`"), &known)?;
        self.refuse_later(&fields, direction, &known);
        let peers = self.peers(&fields, direction);
        let (ports, icmps) = (fields.get("toPorts"), fields.get("icmps"));
        let some = |list: Option<&Node>| list.and_then(Node::list).is_some_and(|l| !l.is_empty());
        if some(ports) && some(icmps) {
            walk.wrong_so(
                fields.place("icmps"),
                "`icmps` cannot be beside `toPorts`",
                "make two rules of it",
            );
        }
        let mut rules = Vec::new();
        if let Some(list) = ports {
            rules.extend(self.ports(list, denies));
        }
        if let Some(list) = icmps {
            rules.extend(self.icmps(list));
        }
        let ports = if some(ports) || some(icmps) {
            Ports::Of(rules)
        } else {
            Ports::Any
        };
        let peers = match peers {
            Some(peers) => Peers::Of(peers),
            // A rule that says nothing is about nobody; one that says ports is about everyone.
            None if ports == Ports::Any => Peers::Of(Vec::new()),
            None => Peers::Any,
        };
        Some(Rule {
            path,
            line: self.lines_before + node.at.line,
            verdict: if denies {
                RuleVerdict::Deny
            } else {
                RuleVerdict::Allow
            },
            peers,
            ports,
        })
    }

    fn refuse_later(&self, fields: &Fields<'_>, direction: &Direction, known: &[&str]) {
        let walk = self.walk;
        for (key, help) in LATER {
            if known.contains(&key) && fields.get(key).is_some() {
                let problem = format!("`{key}` cannot be enforced");
                walk.wrong_so(fields.place(key), problem, help);
            }
        }
        if fields.get(direction.requires).is_some() {
            walk.wrong_so(
                fields.place(direction.requires),
                format!("`{}` is not known any more", direction.requires),
                format!(
                    "write the requirements into `{}`, or deny the others",
                    direction.endpoints
                ),
            );
        }
        if fields.get(direction.groups).is_some() {
            walk.wrong_so(
                fields.place(direction.groups),
                format!("`{}` cannot be enforced", direction.groups),
                format!(
                    "groups of a cloud are not known here: name prefixes under `{}`",
                    direction.cidr
                ),
            );
        }
        let authentication = fields.get("authentication");
        let Some(node) = authentication.filter(|_| known.contains(&"authentication")) else {
            return;
        };
        let Some(authentication) = walk.map(node, "`authentication`", &["mode"]) else {
            return;
        };
        let Some(mode) = authentication.get("mode") else {
            walk.wrong(node.at, "`mode` is missing in `authentication`");
            return;
        };
        let known = ["disabled", "required", "test-always-fail"];
        if let Some(word) = walk.word(mode, "`mode`", &known)
            && word != "disabled"
        {
            walk.wrong_so(
                mode.at,
                format!("authentication `{word}` cannot be enforced"),
                "peers are not authenticated yet: leave `authentication` out if that is enough",
            );
        }
    }
}
