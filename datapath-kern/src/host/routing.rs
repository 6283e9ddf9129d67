//! A routing table and the neighbours behind it: what `bpf_fib_lookup` answers from.

use core::net::IpAddr;
use std::collections::HashMap;

use super::prefix::{Prefix, Prefixes};
use crate::abi::Mac;
use crate::abi::addr::Addr;
use crate::abi::nexthop::{NextHop, kind};
use crate::env::{Fib, FibQuery};

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Out of an interface: to the gateway, or to the destination itself where there is none.
    Out {
        /// The interface.
        interface: u32,
        /// The gateway.
        gateway: Option<IpAddr>,
    },
    /// Nowhere: a blackhole, unreachable or prohibiting route.
    Nowhere,
}

/// Routes, neighbours, and the Ethernet addresses of interfaces.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    v4: Prefixes<Way>,
    v6: Prefixes<Way>,
    neighbours: HashMap<Addr, Mac>,
    interfaces: HashMap<u32, Mac>,
    /// Where it is not [`MTU_BYTES`].
    mtus_bytes: HashMap<u32, u16>,
}

/// MTU of an interface that was given none.
const MTU_BYTES: u16 = 1500;

impl Routing {
    fn routes(&mut self, prefix: Prefix) -> &mut Prefixes<Way> {
        if prefix.is_v4() {
            &mut self.v4
        } else {
            &mut self.v6
        }
    }

    /// Enters a route.
    pub fn route(&mut self, prefix: Prefix, way: Way) {
        self.routes(prefix).set(prefix, way);
    }

    /// Takes a route out.
    pub fn remove_route(&mut self, prefix: Prefix) {
        self.routes(prefix).remove(prefix);
    }

    /// Enters what is known of a neighbour: none is one that the kernel has yet to resolve.
    pub fn neighbour(&mut self, address: IpAddr, mac: Option<Mac>) {
        match mac {
            Some(mac) => self.neighbours.insert(address.into(), mac),
            None => self.neighbours.remove(&address.into()),
        };
    }

    /// Gives an interface its Ethernet address.
    pub fn interface(&mut self, index: u32, mac: Mac) {
        self.interfaces.insert(index, mac);
    }

    /// Gives an interface its MTU; without, it is 1500 bytes.
    pub fn mtu(&mut self, index: u32, bytes: u16) {
        self.mtus_bytes.insert(index, bytes);
    }

    /// Answers as the kernel does, `hop` written also where there is no way: no route at all is
    /// the stack's to report, and so is [`Fib::Stack`].
    pub(super) fn look_up(&self, query: &FibQuery, ingress: u32, hop: &mut NextHop) -> Fib {
        hop.gateway = query.destination;
        hop.interface = ingress;
        hop.kind = kind::UNRESOLVED;
        hop.mtu_bytes = 0;
        let routes = if query.destination.is_v4() {
            &self.v4
        } else {
            &self.v6
        };
        let (interface, gateway) = match routes.find(&query.destination) {
            None => return Fib::Stack,
            Some(Way::Nowhere) => return Fib::Unreachable,
            Some(Way::Out { interface, gateway }) => (*interface, *gateway),
        };
        hop.gateway = gateway.map_or(query.destination, Addr::from);
        hop.interface = interface;
        let mtu_bytes = self.mtus_bytes.get(&interface).copied();
        hop.mtu_bytes = mtu_bytes.unwrap_or(MTU_BYTES);
        if let Some(mac) = self.neighbours.get(&hop.gateway) {
            hop.destination_mac = *mac;
            hop.source_mac = self.interfaces.get(&interface).copied().unwrap_or_default();
            hop.kind = kind::RESOLVED;
        }
        Fib::Found
    }
}
