//! With whom a rule is: what Cilium calls layer 3.

use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as NotOne, StrDeserializer};

use super::super::cidr::{self, Except};
use super::super::node::Node;
use super::super::selector::{self, Keys};
use super::super::walk::{Fields, Walk};
use super::{Direction, Reader};
use crate::policy::{Entity, Peer};

/// Words for peers, as the schema has them: none for one family of the world.
const ENTITIES: [&str; 11] = [
    "all",
    "cluster",
    "health",
    "host",
    "ingress",
    "init",
    "kube-apiserver",
    "none",
    "remote-node",
    "unmanaged",
    "world",
];
/// What stands for one family of the world.
const WORLD: [(&str, &str); 2] = [("world-ipv4", "0.0.0.0/0"), ("world-ipv6", "::/0")];

impl Reader<'_, '_> {
    /// Reads the peers of a rule; none if it says nothing about them. Lists that are there and
    /// empty say that there are none.
    pub(super) fn peers(&self, fields: &Fields<'_>, direction: &Direction) -> Option<Vec<Peer>> {
        let walk = self.walk;
        let lists = [
            direction.endpoints,
            direction.cidr,
            direction.cidr_set,
            direction.entities,
            direction.nodes,
        ];
        let mut peers = None;
        let mut first = None;
        for name in lists {
            let Some(node) = fields.get(name) else {
                continue;
            };
            let peers: &mut Vec<Peer> = peers.get_or_insert_default();
            let Some(items) = walk.list(node, &format!("`{name}`")) else {
                continue;
            };
            if items.is_empty() {
                continue;
            }
            match first {
                None => first = Some(name),
                Some(first) => walk.wrong_so(
                    fields.place(name),
                    format!("`{name}` cannot be beside `{first}` in one rule"),
                    "make two rules of it: rules of a direction add up",
                ),
            }
            for item in items.iter().filter(|item| !item.is_null()) {
                peers.extend(self.peer(item, name, direction));
            }
        }
        peers
    }

    fn peer(&self, node: &Node, list: &str, direction: &Direction) -> Vec<Peer> {
        let walk = self.walk;
        let name = format!("an item of `{list}`");
        let labelled = || selector::read(walk, node, &name, Keys::Cilium);
        let one = |peer: Option<Peer>| peer.into_iter().collect();
        if list == direction.endpoints {
            let peer = labelled().map(|read| selector::peer_of_cilium(read, self.namespace));
            one(peer)
        } else if list == direction.nodes {
            let read = labelled();
            read.map_or_else(Vec::new, |read| selector::nodes(&read).into())
        } else if list == direction.entities {
            let world = WORLD.iter().find(|(word, _)| node.text() == Some(word));
            if let Some((word, prefix)) = world {
                let help = format!("write `{}: [\"{prefix}\"]`", direction.cidr);
                walk.wrong_so(node.at, format!("{name} cannot be `{word}`"), help);
                return Vec::new();
            }
            one(walk.word(node, &name, &ENTITIES).and_then(entity))
        } else if list == direction.cidr {
            let except = Vec::new();
            one(cidr::read(walk, node, &name).map(|cidr| Peer::Cidr { cidr, except }))
        } else {
            one(cidr_rule(walk, node, &name))
        }
    }
}

fn entity(word: &str) -> Option<Peer> {
    let word: StrDeserializer<'_, NotOne> = word.into_deserializer();
    Entity::deserialize(word).ok().map(Peer::Entity)
}

fn cidr_rule(walk: &Walk<'_>, node: &Node, name: &str) -> Option<Peer> {
    let known = ["cidr", "except", "cidrGroupRef", "cidrGroupSelector"];
    let fields = walk.map(node, name, &known)?;
    let mut by_group = false;
    for key in ["cidrGroupRef", "cidrGroupSelector"] {
        if fields.get(key).is_some() {
            by_group = true;
            let problem = format!("`{key}` cannot be enforced");
            let help = "groups of prefixes are not built yet: write the prefixes here as `cidr`";
            walk.wrong_so(fields.place(key), problem, help);
        }
    }
    let cidr = fields.get("cidr");
    if cidr.is_none() && !by_group {
        walk.wrong(node.at, format!("`cidr` is missing in {name}"));
    }
    let cidr = cidr.and_then(|node| cidr::read(walk, node, "`cidr`"));
    let except = fields.get("except");
    let except = except.map(|node| cidr::excepts(walk, node, cidr, Except::All));
    let except = except.unwrap_or_default();
    cidr.map(|cidr| Peer::Cidr { cidr, except })
}
