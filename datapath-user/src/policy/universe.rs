//! What is known of identities: their labels, in the forms in which rules ask for them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use datapath_kern::abi::endpoint::identity;
use ipnet::IpNet;

use super::cidr;
use super::labels::{Labels, source};
use super::model::{Entity, PortProtocol};
use super::reserved::RESERVED;

/// Named ports: protocol numbers and ports by name.
pub(super) type NamedPorts = BTreeMap<String, Vec<(u8, u16)>>;

/// All identities that are known.
#[derive(Debug)]
pub(super) struct Universe {
    /// By number.
    known: BTreeMap<u32, Known>,
    /// Identities that have a label of a key and value, whatever its source.
    by_label: HashMap<(String, String), BTreeSet<u32>>,
    /// Prefixes of those that have one.
    by_prefix: BTreeSet<(IpNet, u32)>,
    /// Those that have a named port.
    by_port: HashMap<String, BTreeSet<u32>>,
    /// Sets of named ports by number, from one; zero is the empty one.
    variants: HashMap<NamedPorts, u32>,
    /// What an identity is that nobody told of.
    nobody: Known,
}

/// One identity.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Whether anybody told of it: only then can a rule that does not mean everyone mean it.
    pub(super) told: bool,
    /// Its labels.
    pub(super) labels: Labels,
    /// Its prefix, if it is one's or the world's.
    pub(super) prefix: Option<IpNet>,
    /// Its named ports.
    pub(super) ports: NamedPorts,
    /// Number of the set of its named ports.
    pub(super) variant: u32,
}

impl Universe {
    /// With the reserved identities only.
    pub(super) fn new() -> Self {
        let mut universe = Self {
            known: BTreeMap::new(),
            by_label: HashMap::new(),
            by_prefix: BTreeSet::new(),
            by_port: HashMap::new(),
            variants: HashMap::new(),
            nobody: Known::default(),
        };
        for (number, name) in RESERVED {
            if number != identity::UNKNOWN {
                universe.set(number, Labels::reserved(name));
            }
        }
        universe
    }

    /// What is known of an identity; nothing of an unknown one.
    pub(super) fn get(&self, number: u32) -> &Known {
        self.known.get(&number).unwrap_or(&self.nobody)
    }

    /// Whether it was told of.
    pub(super) fn knows(&self, number: u32) -> bool {
        self.known.contains_key(&number)
    }

    /// All that are known.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Known)> {
        self.known.iter().map(|(&number, known)| (number, known))
    }

    /// How many are known.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Identities with a label of a key and one of the values, whatever its source.
    pub(super) fn with_label(&self, key: &str, values: &[String]) -> BTreeSet<u32> {
        let sets = values
            .iter()
            .filter_map(|value| self.by_label.get(&(key.to_owned(), value.clone())));
        sets.flatten().copied().collect()
    }

    /// Identities of prefixes inside one.
    pub(super) fn inside(&self, prefix: IpNet) -> impl Iterator<Item = (IpNet, u32)> + '_ {
        self.by_prefix.range(cidr::range_inside(prefix)).copied()
    }

    /// Identities that have a port of a name.
    pub(super) fn with_port(&self, name: &str) -> impl Iterator<Item = u32> + '_ {
        self.by_port.get(name).into_iter().flatten().copied()
    }

    /// Learns an identity's labels, or changes them. Returns what it was.
    pub(super) fn set(&mut self, number: u32, labels: Labels) -> Option<Known> {
        let old = self.remove(number);
        let mut known = Known::new(labels);
        known.variant = self.variant(&known.ports);
        for label in known.labels.iter() {
            let holders = self.by_label.entry((label.key, label.value));
            holders.or_default().insert(number);
        }
        if let Some(prefix) = known.prefix {
            self.by_prefix.insert((prefix, number));
        }
        for name in known.ports.keys() {
            self.by_port.entry(name.clone()).or_default().insert(number);
        }
        self.known.insert(number, known);
        old
    }

    /// Forgets an identity. Returns what it was.
    pub(super) fn remove(&mut self, number: u32) -> Option<Known> {
        let old = self.known.remove(&number)?;
        for label in old.labels.iter() {
            drop_from(&mut self.by_label, &(label.key, label.value), number);
        }
        if let Some(prefix) = old.prefix {
            self.by_prefix.remove(&(prefix, number));
        }
        for name in old.ports.keys() {
            drop_from(&mut self.by_port, name, number);
        }
        Some(old)
    }

    fn variant(&mut self, ports: &NamedPorts) -> u32 {
        if ports.is_empty() {
            return 0;
        }
        if let Some(&variant) = self.variants.get(ports) {
            return variant;
        }
        let variant = u32::try_from(self.variants.len() + 1).unwrap_or(u32::MAX);
        self.variants.insert(ports.clone(), variant);
        variant
    }
}

impl Known {
    /// What labels tell of; the number of its named ports is the universe's to give.
    pub(super) fn new(labels: Labels) -> Self {
        Self {
            prefix: prefix(&labels),
            ports: named_ports(&labels),
            variant: 0,
            told: true,
            labels,
        }
    }

    /// Whether a word for peers fits it.
    pub(super) fn is(&self, entity: Entity) -> bool {
        is(&self.labels, entity)
    }
}

/// Whether a word for peers fits labels, all of them those of a known identity.
pub(super) fn is(labels: &Labels, entity: Entity) -> bool {
    let has = |name: &str| labels.get(source::RESERVED, name).is_some();
    match entity {
        Entity::All => true,
        Entity::World => has("world") || has("world-ipv4") || has("world-ipv6"),
        Entity::Cluster => !is(labels, Entity::World),
        Entity::WorldIpv4 => has("world-ipv4"),
        Entity::WorldIpv6 => has("world-ipv6"),
        Entity::Host => has("host"),
        Entity::RemoteNode => has("remote-node"),
        Entity::KubeApiserver => has("kube-apiserver"),
        Entity::Ingress => has("ingress"),
        Entity::Init => has("init"),
        Entity::Health => has("health"),
        Entity::Unmanaged => has("unmanaged"),
        Entity::None => false,
    }
}

/// Whether documents for endpoints may be for what has these labels: it is no node and not outside.
pub(super) fn is_endpoint(labels: &Labels) -> bool {
    let others = [Entity::World, Entity::Host, Entity::RemoteNode];
    !others.into_iter().any(|entity| is(labels, entity))
}

/// The prefix that labels are of; that of all addresses for the world in one family.
pub(super) fn prefix(labels: &Labels) -> Option<IpNet> {
    let named = labels.iter().find(|label| label.source == source::CIDR);
    if let Some(label) = named {
        return label.key.parse().ok();
    }
    if is(labels, Entity::WorldIpv4) {
        Some(cidr::ALL_IPV4)
    } else if is(labels, Entity::WorldIpv6) {
        Some(cidr::ALL_IPV6)
    } else {
        None
    }
}

/// The named ports that labels tell of: `port:<name>=<port>/<PROTOCOL>`, several with commas.
pub(super) fn named_ports(labels: &Labels) -> NamedPorts {
    let mut ports = NamedPorts::new();
    for label in labels.iter().filter(|label| label.source == source::PORT) {
        let numbers = label.value.split(',').filter_map(|text| {
            let (port, protocol) = text.split_once('/')?;
            let known = PortProtocol::ALL
                .into_iter()
                .find(|known| known.to_string() == protocol)?;
            Some((known.number(), port.parse().ok()?))
        });
        ports.insert(label.key, numbers.collect());
    }
    ports
}

fn drop_from<K: Eq + std::hash::Hash>(sets: &mut HashMap<K, BTreeSet<u32>>, key: &K, number: u32) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(&number);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}
