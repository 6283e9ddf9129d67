//! What a datapath consists of in the kernel, and how it gets there and away again.

mod endpoints;
mod peers;
mod prefixes;
mod settings;

use std::net::IpAddr;

use aya::programs::TcAttachType;
use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::endpoint::{Endpoint, identity};
use datapath_kern::abi::nexthop::NextHop;
use datapath_kern::abi::tunnel::Peer;
use datapath_tunnel::mtu::PodMtu;
use datapath_tunnel::netlink::{Address, Netlink};
use ipnet::IpNet;

pub(crate) use self::endpoints::Local;
pub(crate) use self::peers::Remote;
use crate::bpffs::Pins;
use crate::config::Config;
use crate::datapath::ByName;
use crate::endpoint::Wire;
use crate::error::Error;
use crate::gateway::{self, Gateway};
use crate::maps::Maps;
use crate::probe::Kernel;
use crate::programs::Programs;
use crate::uplink::{self, UplinkView};

/// Generation that the host and the world begin with.
const FIRST_GENERATION: u32 = 1;

/// A datapath in the kernel.
pub(crate) struct Node {
    pub(crate) kernel: Kernel,
    pub(crate) maps: Maps,
    pub(crate) gateway: Gateway,
    pub(crate) uplinks: Vec<UplinkView>,
    pub(crate) mtu: PodMtu,
    pub(crate) endpoints: ByName<Local>,
    pub(crate) peers: ByName<Remote>,
    programs: Programs,
    pins: Pins,
    netlink: Netlink,
    /// Last generation given out; none is given twice.
    generation: u32,
}

impl Node {
    /// Builds it; leaves nothing where that fails.
    pub(crate) fn open(config: &Config) -> Result<Self, Error> {
        let kernel = Kernel::probe()?;
        let netlink = Netlink::open().map_err(Error::network("this namespace"))?;
        let addresses = netlink
            .addresses()
            .map_err(Error::network("this namespace"))?;
        let uplinks = uplink::find(&netlink, config, &addresses)?;
        let mtu = uplink::mtu(&uplinks, config)?;
        let mut pins = Pins::take(&config.bpffs)?;
        let gateway = match Gateway::create(
            &netlink,
            &config.gateways,
            uplink::device_mtu_bytes(&uplinks),
        ) {
            Ok(gateway) => gateway,
            Err(error) => return Err(with_more(error, pins.release())),
        };
        let settings = settings::of(config, &kernel, &gateway);
        let loaded = Programs::load(config, &settings, pins.links()).and_then(|mut programs| {
            Maps::take(programs.ebpf(), &pins.maps()).map(|maps| (programs, maps))
        });
        let (programs, maps) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                let undone = gateway.delete(&netlink).err();
                return Err(with_more(
                    error,
                    undone.into_iter().chain(pins.release()).collect(),
                ));
            }
        };
        let mut node = Self {
            kernel,
            maps,
            gateway,
            uplinks,
            mtu,
            endpoints: ByName::new(),
            peers: ByName::new(),
            programs,
            pins,
            netlink,
            generation: FIRST_GENERATION,
        };
        match node.start(config, &addresses) {
            Ok(()) => Ok(node),
            Err(error) => Err(with_more(error, node.close())),
        }
    }

    /// Fills the maps, then attaches the programs, then routes pods to them.
    fn start(&mut self, config: &Config, addresses: &[Address]) -> Result<(), Error> {
        let host = Endpoint {
            ipv4: address_or_none(config.gateway(true)),
            ipv6: address_or_none(config.gateway(false)),
            interface: self.gateway.index,
            generation: FIRST_GENERATION,
            identity: identity::HOST,
            mac: self.gateway.mac,
            ..Endpoint::default()
        };
        self.maps
            .endpoints
            .set(0, host, 0)
            .map_err(Error::map("write to", "endpoints"))?;
        let world = Peer {
            generation: FIRST_GENERATION,
            ..Peer::default()
        };
        self.maps
            .peers
            .set(0, world, 0)
            .map_err(Error::map("write to", "peers"))?;
        for uplink in &self.uplinks {
            self.maps
                .uplinks
                .insert(uplink.index, uplink.entry(), 0)
                .map_err(Error::map("insert into", "uplinks"))?;
        }
        for (prefix, entry) in prefixes::own(config, addresses) {
            self.maps.set_prefix(prefix, entry)?;
        }
        Gateway::attach(&mut self.programs)?;
        for uplink in &self.uplinks {
            self.programs
                .attach("from_uplink", &uplink.name, TcAttachType::Ingress)?;
            self.programs
                .attach("to_uplink", &uplink.name, TcAttachType::Egress)?;
        }
        for &cidr in &config.pod_cidrs {
            self.add_route(config, cidr)?;
        }
        Ok(())
    }

    fn add_route(&self, config: &Config, pods: IpNet) -> Result<(), Error> {
        let v4 = pods.addr().is_ipv4();
        let mtu_bytes = uplink::mtu_bytes(self.mtu, v4)?;
        let route = self.gateway.route(pods, config.gateway(v4), mtu_bytes);
        self.netlink
            .replace_route(&route)
            .map_err(Error::network(gateway::HOST))
    }

    /// Takes it down; goes on after an error.
    pub(crate) fn close(&mut self) -> Vec<Error> {
        let mut errors = Vec::new();
        for (_, local) in std::mem::take(&mut self.endpoints) {
            errors.extend(self.unwire(&local.wire).err());
        }
        self.peers.clear();
        errors.extend(self.programs.detach_all());
        errors.extend(self.gateway.delete(&self.netlink).err());
        errors.extend(self.pins.release());
        errors
    }

    fn unwire(&self, wire: &Wire) -> Result<(), Error> {
        self.netlink
            .delete_link(wire.host_index)
            .map(drop)
            .map_err(Error::network(&wire.host_interface))
    }

    fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }

    /// Writes a next hop; what pointed there has to look again.
    fn set_next_hop(&mut self, slot: u32, hop: NextHop) -> Result<(), Error> {
        let old = self
            .maps
            .next_hops
            .get(&slot, 0)
            .map_err(Error::map("read", "next_hops"))?;
        let hop = NextHop {
            tag: old.tag.wrapping_add(1),
            ..hop
        };
        self.maps
            .next_hops
            .set(slot, hop, 0)
            .map_err(Error::map("write to", "next_hops"))
    }

    /// Has flows with the world judged again: what was outside the cluster is inside now, or the
    /// other way round.
    fn renew_world(&mut self) -> Result<(), Error> {
        let world = Peer {
            generation: self.next_generation(),
            ..Peer::default()
        };
        self.maps
            .peers
            .set(0, world, 0)
            .map_err(Error::map("write to", "peers"))
    }
}

fn address_or_none(address: Option<IpAddr>) -> Addr {
    address.map_or(Addr::NONE, Addr::from)
}

/// An error, and what went wrong while undoing what it interrupted.
fn with_more(error: Error, more: Vec<Error>) -> Error {
    if more.is_empty() {
        return error;
    }
    Error::Teardown(std::iter::once(error).chain(more).collect())
}
