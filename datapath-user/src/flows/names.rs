//! Names of the ends of flows, looked up once for a whole listing.

use datapath_kern::abi::flow::End;

use crate::error::Error;
use crate::events::EndKind;
use crate::node::Node;

/// What the numbers of ends stand for, at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    /// By slot; empty where there is none.
    endpoints: Vec<String>,
    /// By index.
    peers: Vec<String>,
}

impl Names {
    /// Those that a node knows.
    pub(crate) fn of(node: &Node) -> Self {
        let endpoints = node.endpoints.values().map(|local| &local.view);
        let peers = node.peers.values().map(|remote| &remote.view);
        Self::new(
            endpoints.map(|view| (view.slot, view.id.as_str())),
            peers.map(|view| (view.index, view.name.as_str())),
        )
    }

    /// Those of endpoints and of peers, each with its number.
    pub(crate) fn new<'a>(
        endpoints: impl IntoIterator<Item = (u16, &'a str)>,
        peers: impl IntoIterator<Item = (u16, &'a str)>,
    ) -> Self {
        Self {
            endpoints: by_number(endpoints),
            peers: by_number(peers),
        }
    }

    /// The kind and name of an end.
    pub(crate) fn get(&self, raw: u16) -> (EndKind, &str) {
        let end = End::from_raw(raw);
        let (kind, names) = match (end.is_remote(), end.slot()) {
            (false, 0) => return (EndKind::Host, "host"),
            (true, 0) => return (EndKind::World, "world"),
            (false, _) => (EndKind::Endpoint, &self.endpoints),
            (true, _) => (EndKind::Peer, &self.peers),
        };
        let slot = usize::try_from(end.slot()).ok();
        let name = slot.and_then(|slot| names.get(slot)).map(String::as_str);
        (kind, name.filter(|name| !name.is_empty()).unwrap_or("gone"))
    }

    /// Makes sure that there is an endpoint of this name.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchEnd`].
    pub(crate) fn check_endpoint(&self, name: &str) -> Result<(), Error> {
        let found = !name.is_empty() && self.endpoints.iter().any(|known| known == name);
        found.then_some(()).ok_or_else(|| Error::NoSuchEnd {
            what: "endpoint",
            name: name.to_owned(),
            remedy: "`dpctl endpoint list` shows those there are",
        })
    }

    /// Makes sure that there is an endpoint or a peer of this name.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchEnd`].
    pub(crate) fn check_end(&self, name: &str) -> Result<(), Error> {
        let mut known = self.endpoints.iter().chain(&self.peers);
        let found = !name.is_empty() && known.any(|known| known == name);
        found.then_some(()).ok_or_else(|| Error::NoSuchEnd {
            what: "endpoint or peer",
            name: name.to_owned(),
            remedy: "`dpctl endpoint list` and `dpctl peers` show those there are; an end may also \
                     be host, world, an address or a prefix",
        })
    }
}

fn by_number<'a>(all: impl IntoIterator<Item = (u16, &'a str)>) -> Vec<String> {
    let mut names = Vec::new();
    for (number, name) in all {
        let number = usize::from(number);
        if names.len() <= number {
            names.resize(number + 1, String::new());
        }
        if let Some(slot) = names.get_mut(number) {
            name.clone_into(slot);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_a_name() {
        let names = Names::new([(3, "web-0")], [(1, "n2")]);
        let of = |end: End| names.get(end.raw());
        assert_eq!(of(End::HOST), (EndKind::Host, "host"));
        assert_eq!(of(End::WORLD), (EndKind::World, "world"));
        assert_eq!(of(End::endpoint(3)), (EndKind::Endpoint, "web-0"));
        assert_eq!(of(End::peer(1)), (EndKind::Peer, "n2"));
        for gone in [End::endpoint(2), End::endpoint(9), End::peer(2)] {
            assert_eq!(of(gone).1, "gone");
        }
    }

    #[test]
    fn who_is_not_there_is_named_with_where_to_look() {
        let names = Names::new([(3, "web-0")], [(1, "n2")]);
        assert!(names.check_endpoint("web-0").is_ok() && names.check_end("n2").is_ok());
        let said = names.check_endpoint("n2").unwrap_err().to_string();
        assert_eq!(
            said,
            "no endpoint \"n2\": `dpctl endpoint list` shows those there are"
        );
        assert!(names.check_end("").is_err(), "an unused number is no name");
    }
}
