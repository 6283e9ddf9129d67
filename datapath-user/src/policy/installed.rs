//! Documents in force: their selectors interned, their rules numbered, their ports as claims.

use datapath_kern::abi::flow::verdict;
use datapath_kern::abi::metric::Direction;
use datapath_kern::abi::policy::{PortVerdict, matched};

use super::claim::Claim;
use super::matcher::{Matcher, MatcherId, Matchers, SubjectMatcher, Use};
use super::model::{
    Document, Entity, Peer, Peers, PortProtocol, PortRule, PortValue, Ports, Rule, RuleVerdict,
    Section, Spec, Subject,
};
use super::universe::{NamedPorts, Universe};

/// A document in force.
#[derive(Debug)]
pub(super) struct Installed {
    /// The document.
    pub(super) document: Document,
    /// Its specifications, in its order.
    pub(super) specs: Vec<InstalledSpec>,
}

/// A specification in force.
#[derive(Debug)]
pub(super) struct InstalledSpec {
    /// For whom it is.
    pub(super) subject: SubjectMatcher,
    /// What others may begin with them.
    pub(super) ingress: InstalledSection,
    /// What they may begin with others.
    pub(super) egress: InstalledSection,
}

/// The rules of one direction, in force.
#[derive(Debug)]
pub(super) struct InstalledSection {
    /// Whether the subjects need a rule.
    pub(super) isolates: bool,
    /// In the order of the document.
    pub(super) rules: Vec<InstalledRule>,
}

/// A rule in force.
#[derive(Debug)]
pub(super) struct InstalledRule {
    /// Number of its meaning: no other rule, and no other form of this one, ever has it.
    pub(super) meaning: u32,
    /// What it does.
    pub(super) verdict: RuleVerdict,
    /// With whom.
    pub(super) peers: InstalledPeers,
    /// On which ports, apart from named ones.
    claims: Vec<Claim>,
    /// On which named ports, and what is said of them.
    named: Vec<NamedPort>,
    /// What is said of a named port.
    of_port: PortVerdict,
}

/// With whom a rule in force is about.
#[derive(Debug)]
pub(super) enum InstalledPeers {
    /// Everyone.
    Any,
    /// Identities that one of these fits.
    Of(Vec<MatcherId>),
}

#[derive(Debug)]
struct NamedPort {
    name: String,
    protocol: Option<u8>,
}

/// What documents are installed into.
pub(super) struct Ground<'a> {
    /// The matchers.
    pub(super) matchers: &'a mut Matchers,
    /// What they are asked of.
    pub(super) universe: &'a Universe,
    /// The meaning of the next rule.
    pub(super) meanings: &'a mut u32,
}

impl Installed {
    /// Puts a document in force, its rules numbered by `number`.
    pub(super) fn new(
        document: Document,
        ground: &mut Ground<'_>,
        number: impl Fn(&Rule) -> u32,
    ) -> Self {
        let specs = document.specs.iter();
        let specs = specs.map(|spec| InstalledSpec::new(spec, ground, &number));
        Self {
            specs: specs.collect(),
            document,
        }
    }

    /// Gives back its matchers.
    pub(super) fn release(&self, matchers: &mut Matchers) {
        for spec in &self.specs {
            for rule in spec.ingress.rules.iter().chain(&spec.egress.rules) {
                if let InstalledPeers::Of(ids) = &rule.peers {
                    for &id in ids {
                        matchers.release(id, Use::Peer(spec.subject));
                    }
                }
            }
            let nodes = spec.subject.nodes;
            matchers.release(spec.subject.matcher, Use::Subject { nodes });
        }
    }
}

impl InstalledSpec {
    fn new(spec: &Spec, ground: &mut Ground<'_>, number: &impl Fn(&Rule) -> u32) -> Self {
        let subject = subject(&spec.subject, ground.matchers, ground.universe);
        let mut section = |section: &Section| InstalledSection {
            isolates: section.isolates,
            rules: section
                .rules
                .iter()
                .map(|rule| InstalledRule::new(rule, number(rule), subject, ground))
                .collect(),
        };
        Self {
            subject,
            ingress: section(&spec.ingress),
            egress: section(&spec.egress),
        }
    }

    /// One direction of it.
    pub(super) fn section(&self, direction: Direction) -> &InstalledSection {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

impl InstalledRule {
    fn new(rule: &Rule, id: u32, subject: SubjectMatcher, ground: &mut Ground<'_>) -> Self {
        let peers = match &rule.peers {
            Peers::Any => InstalledPeers::Any,
            Peers::Of(peers) if peers.contains(&Peer::Entity(Entity::All)) => InstalledPeers::Any,
            Peers::Of(peers) => InstalledPeers::Of(
                peers
                    .iter()
                    .map(|peer| {
                        let used = Use::Peer(subject);
                        ground
                            .matchers
                            .acquire(&Matcher::of(peer), used, ground.universe)
                    })
                    .collect(),
            ),
        };
        let any_peer = matches!(peers, InstalledPeers::Any);
        let said = |named: Named| PortVerdict {
            rule_id: id,
            verdict: match rule.verdict {
                RuleVerdict::Allow => verdict::ALLOW,
                RuleVerdict::Deny => verdict::DENY,
            },
            matched: named.matched(any_peer),
            reserved: [0; 2],
        };
        let mut installed = Self {
            meaning: next(ground.meanings),
            verdict: rule.verdict,
            peers,
            claims: Vec::new(),
            named: Vec::new(),
            of_port: said(Named::Port),
        };
        match &rule.ports {
            Ports::Any => installed
                .claims
                .push(Claim::whole(None, said(Named::Nothing))),
            Ports::Of(ports) => {
                for port in ports {
                    installed.claim(port, said(Named::Protocol));
                }
            }
        }
        installed
    }

    /// A rule that no document has: a setting's, or that of a refused document.
    pub(super) fn of_setting(peers: InstalledPeers, meaning: u32, said: PortVerdict) -> Self {
        Self {
            meaning,
            verdict: if said.verdict == verdict::DENY {
                RuleVerdict::Deny
            } else {
                RuleVerdict::Allow
            },
            peers,
            claims: vec![Claim::whole(None, said)],
            named: Vec::new(),
            of_port: said,
        }
    }

    fn claim(&mut self, port: &PortRule, of_protocol: PortVerdict) {
        match port {
            PortRule::Icmp { family, kind } => {
                self.claim_ports(family.number(), u16::from(*kind), u16::from(*kind));
            }
            PortRule::Port { protocol, port } => {
                let of_one;
                let protocols: &[PortProtocol] = match protocol {
                    Some(protocol) => {
                        of_one = [*protocol];
                        &of_one
                    }
                    None => &PortProtocol::ALL,
                };
                match port {
                    PortValue::All => {
                        let all = protocols
                            .iter()
                            .map(|protocol| Claim::whole(Some(protocol.number()), of_protocol));
                        self.claims.extend(all);
                    }
                    PortValue::Range(ports) => {
                        for protocol in protocols {
                            self.claim_ports(protocol.number(), *ports.start(), *ports.end());
                        }
                    }
                    PortValue::Named(name) => self.named.push(NamedPort {
                        name: name.clone(),
                        protocol: protocol.map(PortProtocol::number),
                    }),
                }
            }
        }
    }

    fn claim_ports(&mut self, protocol: u8, first: u16, last: u16) {
        if first <= last {
            self.claims.push(Claim {
                protocol: Some(protocol),
                first,
                last,
                verdict: self.of_port,
            });
        }
    }

    /// Number of the rule.
    pub(super) fn id(&self) -> u32 {
        self.of_port.rule_id
    }

    /// Whether it names ports.
    pub(super) fn is_named(&self) -> bool {
        !self.named.is_empty()
    }

    /// The names of ports in it.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.named.iter().map(|named| named.name.as_str())
    }

    /// What it claims where the receiver has these named ports.
    pub(super) fn claims<'a>(&'a self, ports: &'a NamedPorts) -> impl Iterator<Item = Claim> + 'a {
        let named = self.named.iter().flat_map(|named| {
            let found = ports.get(&named.name).into_iter().flatten();
            found
                .filter(|(protocol, _)| named.protocol.is_none_or(|asked| asked == *protocol))
                .map(|&(protocol, port)| Claim {
                    protocol: Some(protocol),
                    first: port,
                    last: port,
                    verdict: self.of_port,
                })
        });
        self.claims.iter().copied().chain(named)
    }
}

/// What of ports a rule names.
#[derive(Clone, Copy)]
enum Named {
    Nothing,
    Protocol,
    Port,
}

impl Named {
    fn matched(self, any_peer: bool) -> u8 {
        match (any_peer, self) {
            (true, Self::Nothing) => matched::ALL,
            (true, Self::Protocol) => matched::PROTO_ONLY,
            (true, Self::Port) => matched::L4_ONLY,
            (false, Self::Nothing) => matched::L3_ONLY,
            (false, Self::Protocol) => matched::L3_PROTO,
            (false, Self::Port) => matched::L3_L4,
        }
    }
}

/// Uses the matcher of a subject.
pub(super) fn subject(
    subject: &Subject,
    matchers: &mut Matchers,
    universe: &Universe,
) -> SubjectMatcher {
    let (selector, nodes) = match subject {
        Subject::Endpoints(selector) => (selector, false),
        Subject::Nodes(selector) => (selector, true),
    };
    let labelled = Matcher::Labelled(selector.clone());
    SubjectMatcher {
        matcher: matchers.acquire(&labelled, Use::Subject { nodes }, universe),
        nodes,
    }
}

/// Takes the next number.
pub(super) fn next(numbers: &mut u32) -> u32 {
    let number = *numbers;
    *numbers = numbers.wrapping_add(1);
    number
}
