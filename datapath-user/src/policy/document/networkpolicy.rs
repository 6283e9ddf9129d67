//! `NetworkPolicy` of Kubernetes, `networking.k8s.io/v1`.
//!
//! Validation follows `pkg/apis/networking/validation` of Kubernetes, defaults
//! `pkg/apis/networking/v1/defaults.go`.

use super::cidr::{self, Except};
use super::node::Node;
use super::selector::{self, Keys};
use super::syntax;
use super::walk::{Fields, Walk};
use crate::policy::{
    Peer, Peers, PortProtocol, PortRule, PortValue, Ports, Rule, RuleVerdict, Section, Selector,
    Spec, Subject,
};

/// Reads its `spec`.
pub(super) fn spec(
    walk: &Walk<'_>,
    node: &Node,
    namespace: &str,
    lines_before: u64,
) -> Option<Spec> {
    let known = ["podSelector", "policyTypes", "ingress", "egress"];
    let fields = walk.map(node, "`spec`", &known)?;
    let subject = pod_selector(walk, &fields);
    let types = fields.get("policyTypes").map(|node| types(walk, node));
    let types = types.filter(|types| !types.is_empty());
    let reader = Reader {
        walk,
        namespace,
        lines_before,
    };
    let ingress = fields.get("ingress");
    let egress = fields.get("egress");
    let ingress = ingress.map_or_else(Vec::new, |node| reader.rules(node, "ingress", "from"));
    let egress = egress.map_or_else(Vec::new, |node| reader.rules(node, "egress", "to"));
    let types = types.unwrap_or_else(|| {
        let with_egress = !egress.is_empty();
        let types = [Some("Ingress"), with_egress.then_some("Egress")];
        types.into_iter().flatten().collect()
    });
    // Rules of a direction that is not listed do nothing.
    let section = |listed: &str, rules| {
        let isolates = types.contains(&listed);
        let rules = if isolates { rules } else { Vec::new() };
        Section { isolates, rules }
    };
    Some(Spec {
        subject: Subject::Endpoints(selector::in_namespace(subject?, namespace)),
        ingress: section("Ingress", ingress),
        egress: section("Egress", egress),
    })
}

/// Reads only for whom it is.
pub(super) fn subject(walk: &Walk<'_>, node: &Node, namespace: &str) -> Option<Subject> {
    let selector = node.get("podSelector")?;
    let selector = selector::read(walk, selector, "`podSelector`", Keys::Pods)?;
    Some(Subject::Endpoints(selector::in_namespace(
        selector, namespace,
    )))
}

fn pod_selector(walk: &Walk<'_>, fields: &Fields<'_>) -> Option<Selector> {
    if fields.lacks("podSelector") {
        walk.wrong_so(
            fields.place("podSelector"),
            "`podSelector` is missing",
            "say which pods it is for: `podSelector: {}` is all of the namespace",
        );
    }
    let node = fields.get("podSelector")?;
    selector::read(walk, node, "`podSelector`", Keys::Pods)
}

fn types(walk: &Walk<'_>, node: &Node) -> Vec<&'static str> {
    let items = walk.list(node, "`policyTypes`").unwrap_or_default();
    if items.len() > 2 {
        walk.wrong(node.at, "`policyTypes` has more than two items");
    }
    let items = items.iter().filter(|item| !item.is_null());
    items
        .filter_map(|item| walk.word(item, "an item of `policyTypes`", &["Ingress", "Egress"]))
        .collect()
}

struct Reader<'w, 't> {
    walk: &'w Walk<'t>,
    namespace: &'w str,
    lines_before: u64,
}

impl Reader<'_, '_> {
    fn rules(&self, node: &Node, direction: &str, peers: &str) -> Vec<Rule> {
        let items = self.walk.list(node, &format!("`{direction}`"));
        let items = items.unwrap_or_default().iter().enumerate();
        items
            .filter(|(_, item)| !item.is_null())
            .filter_map(|(at, item)| {
                let path = format!("spec.{direction}[{at}]");
                self.rule(item, path, direction, peers)
            })
            .collect()
    }

    fn rule(&self, node: &Node, path: String, direction: &str, peers: &str) -> Option<Rule> {
        let name = format!("a rule of `{direction}`");
        let fields = self.walk.map(node, &name, &[peers, "ports"])?;
        let from = fields.get(peers);
        let from = from.and_then(|list| self.walk.list(list, &format!("`{peers}`")));
        let from = from.unwrap_or_default();
        let ports = fields.get("ports");
        let ports = ports.and_then(|list| self.walk.list(list, "`ports`"));
        let ports = ports.unwrap_or_default();
        let found = from.iter().filter(|item| !item.is_null());
        let found = found.filter_map(|item| self.peer(item, peers)).collect();
        let given = ports.iter().filter(|item| !item.is_null());
        let given = given.filter_map(|item| self.port(item)).collect();
        Some(Rule {
            path,
            line: self.lines_before + node.at.line,
            verdict: RuleVerdict::Allow,
            peers: if from.is_empty() {
                Peers::Any
            } else {
                Peers::Of(found)
            },
            ports: if ports.is_empty() {
                Ports::Any
            } else {
                Ports::Of(given)
            },
        })
    }

    fn peer(&self, node: &Node, list: &str) -> Option<Peer> {
        let walk = self.walk;
        let known = ["podSelector", "namespaceSelector", "ipBlock"];
        let name = format!("a peer of `{list}`");
        let fields = walk.map(node, &name, &known)?;
        let pods = fields.get("podSelector");
        let namespaces = fields.get("namespaceSelector");
        let pods_read =
            pods.and_then(|node| selector::read(walk, node, "`podSelector`", Keys::Pods));
        let namespaces_read = namespaces
            .and_then(|node| selector::read(walk, node, "`namespaceSelector`", Keys::Namespaces));
        let Some(block) = fields.get("ipBlock") else {
            if pods.is_none() && namespaces.is_none() {
                walk.wrong_so(
                    node.at,
                    format!("{name} says nobody: must specify a peer"),
                    format!(
                        "write podSelector, namespaceSelector or ipBlock; a rule without `{list}` \
                         is about everyone"
                    ),
                );
                return None;
            }
            if namespaces.is_none() {
                let pods = selector::in_namespace(pods_read?, self.namespace);
                return Some(Peer::Labelled(pods));
            }
            let mut both = namespaces_read?;
            if pods.is_some() {
                both.requirements.extend(pods_read?.requirements);
            }
            return Some(Peer::Labelled(selector::pods(both)));
        };
        if pods.is_some() || namespaces.is_some() {
            walk.wrong_so(
                fields.place("ipBlock"),
                "a peer with `ipBlock` can have no selector beside it",
                "make it an item of its own: put `- ` before `ipBlock`",
            );
        }
        let block = walk.map(block, "`ipBlock`", &["cidr", "except"])?;
        let cidr = block.get("cidr");
        if cidr.is_none() {
            walk.wrong(block.node.at, "`cidr` is missing in `ipBlock`");
        }
        let cidr = cidr.and_then(|node| cidr::read(walk, node, "`cidr`"));
        let except = block.get("except");
        let except = except.map(|node| cidr::excepts(walk, node, cidr, Except::Part));
        let except = except.unwrap_or_default();
        cidr.map(|cidr| Peer::Cidr { cidr, except })
    }

    fn port(&self, node: &Node) -> Option<PortRule> {
        let walk = self.walk;
        let fields = walk.map(node, "an item of `ports`", &["protocol", "port", "endPort"])?;
        let protocol = fields.get("protocol");
        let protocol = protocol.map(|node| {
            let word = walk.word(node, "`protocol`", &["TCP", "UDP", "SCTP"])?;
            let mut all = PortProtocol::ALL.into_iter();
            all.find(|protocol| protocol.to_string() == word)
        });
        let end = fields.get("endPort");
        let port = match fields.get("port") {
            None => {
                if let Some(end) = end {
                    let help = "add `port`, where the range begins";
                    walk.wrong_so(end.at, "`endPort` needs a `port`", help);
                }
                Some(PortValue::All)
            }
            Some(node) if node.text().is_some() => {
                if let Some(end) = end {
                    let problem =
                        "`endPort` needs a `port` that is a number, and this one is a name";
                    walk.wrong(end.at, problem);
                }
                self.port_name(node)
            }
            Some(node) => {
                let from = walk.integer_of::<u16>(node, "`port`", 1..=65_535);
                let to = end.map(|end| (end.at, walk.integer_of(end, "`endPort`", 1..=65_535)));
                let to = match to {
                    None => from,
                    Some((at, to)) => {
                        if let (Some(from), Some(to)) = (from, to)
                            && to < from
                        {
                            let problem = format!("`endPort` {to} is below `port` {from}");
                            walk.wrong_so(at, problem, "write the smaller one as `port`");
                        }
                        to
                    }
                };
                from.zip(to).map(|(from, to)| PortValue::Range(from..=to))
            }
        };
        Some(PortRule::Port {
            protocol: Some(protocol.unwrap_or(Some(PortProtocol::Tcp))?),
            port: port?,
        })
    }

    fn port_name(&self, node: &Node) -> Option<PortValue> {
        let name = self.walk.text(node, "`port`")?;
        let Some(why) = syntax::port_name(name, false) else {
            return Some(PortValue::Named(name.to_owned()));
        };
        let problem = format!("`{name}` is no name of a port: {why}");
        if name.parse::<u16>().is_ok() {
            let help = format!("write {name} without quotes");
            self.walk.wrong_so(node.at, problem, help);
        } else {
            self.walk.wrong(node.at, problem);
        }
        None
    }
}
