//! What a datapath consists of in the kernel, and how it gets there and away again.

use std::net::IpAddr;

use aya::programs::TcAttachType;
use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::config::{Config as Settings, tunnel};
use datapath_kern::abi::endpoint::{Endpoint, MAX_ENDPOINTS, identity};
use datapath_kern::abi::flow::{End, Flow};
use datapath_kern::abi::ipcache::{self, IpEntry};
use datapath_kern::abi::nexthop::{self, NextHop, PEERS_BASE};
use datapath_kern::abi::tunnel::{MAX_PEERS, Peer};
use datapath_tunnel::mtu::PodMtu;
use datapath_tunnel::netlink::{Address, Netlink, Scope};
use ipnet::IpNet;

use crate::bpffs::Pins;
use crate::config::{Config, IdentityFrom, Tunnel};
use crate::datapath::{ByName, free_number, of_family};
use crate::endpoint::{self, EndpointSpec, EndpointView, Wire};
use crate::error::Error;
use crate::flows;
use crate::gateway::{self, Gateway};
use crate::maps::{Maps, gone};
use crate::naming;
use crate::peer::{PeerSpec, PeerView};
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

/// An endpoint and what was made for it.
pub(crate) struct Local {
    pub(crate) view: EndpointView,
    wire: Wire,
}

/// A peer and what was said of it.
pub(crate) struct Remote {
    pub(crate) view: PeerView,
    spec: PeerSpec,
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
        let settings = settings(config, &kernel, &gateway);
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
        for (prefix, entry) in own_prefixes(config, addresses) {
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

    // --- endpoints -----------------------------------------------------------------------------

    pub(crate) fn add_endpoint(
        &mut self,
        config: &Config,
        spec: &EndpointSpec,
    ) -> Result<EndpointView, Error> {
        if self.endpoints.contains_key(&spec.id) {
            return Err(Error::Exists {
                what: "endpoint",
                name: spec.id.clone(),
            });
        }
        for address in &spec.addresses {
            let holder = self
                .endpoints
                .values()
                .find(|e| e.view.addresses.contains(address));
            if let Some(holder) = holder {
                let owner = format!("endpoint {}", holder.view.id);
                return Err(Error::AddressInUse {
                    address: IpNet::from(*address),
                    owner,
                });
            }
        }
        endpoint::check_netns(&spec.netns)?;
        let used = self.endpoints.values().map(|endpoint| endpoint.view.slot);
        let slot = free_number(used, MAX_ENDPOINTS, "endpoint")?;
        let wire = endpoint::wire(
            &self.netlink,
            spec,
            self.gateway.mac,
            uplink::device_mtu_bytes(&self.uplinks),
        )?;
        let view = EndpointView {
            id: spec.id.clone(),
            slot,
            netns: spec.netns.clone(),
            interface: spec.interface.clone(),
            host_interface: wire.host_interface.clone(),
            host_index: wire.host_index,
            mac: naming::display_mac(wire.mac),
            addresses: spec.addresses.clone(),
            identity: spec.identity,
        };
        self.endpoints.insert(
            spec.id.clone(),
            Local {
                view: view.clone(),
                wire: wire.clone(),
            },
        );
        match self.install(config, spec, slot, &wire) {
            Ok(()) => Ok(view),
            Err(error) => {
                let undone = self.remove_endpoint(&spec.id).err();
                Err(with_more(error, undone.into_iter().collect()))
            }
        }
    }

    /// Tells the datapath of an endpoint, then lets its traffic in.
    fn install(
        &mut self,
        config: &Config,
        spec: &EndpointSpec,
        slot: u16,
        wire: &Wire,
    ) -> Result<(), Error> {
        let number = u32::from(slot);
        let entry = Endpoint {
            ipv4: address_or_none(of_family(&spec.addresses, true)),
            ipv6: address_or_none(of_family(&spec.addresses, false)),
            interface: wire.host_index,
            generation: self.next_generation(),
            identity: spec.identity,
            mac: wire.mac,
            ..Endpoint::default()
        };
        self.maps
            .endpoints
            .set(number, entry, 0)
            .map_err(Error::map("write to", "endpoints"))?;
        self.set_next_hop(
            number,
            NextHop {
                interface: wire.host_index,
                kind: nexthop::kind::POD,
                destination_mac: wire.mac,
                source_mac: self.gateway.mac,
                ..NextHop::default()
            },
        )?;
        self.maps
            .endpoint_slots
            .insert(wire.host_index, number, 0)
            .map_err(Error::map("insert into", "endpoint_slots"))?;
        for &address in &spec.addresses {
            let entry = IpEntry {
                identity: spec.identity,
                index: slot,
                kind: ipcache::kind::ENDPOINT,
                flags: 0,
            };
            self.maps.set_prefix(IpNet::from(address), entry)?;
        }
        self.programs
            .attach("from_pod", &wire.host_interface, TcAttachType::Ingress)?;
        self.programs
            .attach("to_pod", &wire.host_interface, TcAttachType::Egress)?;
        self.netlink
            .set_up(wire.host_index, true)
            .map_err(Error::network(&wire.host_interface))?;
        endpoint::furnish(spec, config, self.gateway.mac, |v4| {
            uplink::mtu_bytes(self.mtu, v4)
        })
    }

    pub(crate) fn remove_endpoint(&mut self, id: &str) -> Result<(), Error> {
        let not_found = || Error::NotFound {
            what: "endpoint",
            name: id.to_owned(),
        };
        let Local { view, wire } = self.endpoints.remove(id).ok_or_else(not_found)?;
        let slot = u32::from(view.slot);
        let mut errors = Vec::new();
        // First nothing more comes in, then nobody knows it, then it is gone.
        for program in ["from_pod", "to_pod"] {
            errors.extend(self.programs.detach(program, &wire.host_interface).err());
        }
        for &address in &view.addresses {
            errors.extend(self.maps.remove_prefix(IpNet::from(address)).err());
        }
        errors.extend(
            gone(self.maps.endpoint_slots.remove(&wire.host_index))
                .map_err(Error::map("remove from", "endpoint_slots"))
                .err(),
        );
        let vacated = Endpoint {
            generation: self.next_generation(),
            ..Endpoint::default()
        };
        errors.extend(
            self.maps
                .endpoints
                .set(slot, vacated, 0)
                .map_err(Error::map("write to", "endpoints"))
                .err(),
        );
        errors.extend(self.set_next_hop(slot, NextHop::default()).err());
        errors.extend(self.unwire(&wire).err());
        let end = End::endpoint(view.slot).raw();
        let its = |flow: &Flow, _| flow.from == end || flow.to == end;
        errors.extend(flows::sweep(&mut self.maps, its).err());
        Error::collect(errors)
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

    // --- peers ---------------------------------------------------------------------------------

    pub(crate) fn upsert_peer(
        &mut self,
        config: &Config,
        spec: &PeerSpec,
    ) -> Result<PeerView, Error> {
        let old = self
            .peers
            .get(&spec.name)
            .map(|peer| (peer.view.clone(), peer.spec.clone()));
        if let Some((view, old_spec)) = &old
            && old_spec == spec
        {
            return Ok(view.clone());
        }
        self.check_prefixes(config, spec)?;
        let uplink = self.uplink_of(spec)?;
        let v4 = spec.address.is_ipv4();
        let local = of_family(&config.underlay, v4).or_else(|| uplink.address(v4));
        let local = local.ok_or(Error::Invalid {
            what: "peer address",
            value: spec.address.to_string(),
            rule: "this node has no underlay address of its family",
        })?;
        let used = self.peers.values().map(|peer| peer.view.index);
        let index = match &old {
            Some((view, _)) => view.index,
            None => free_number(used, MAX_PEERS, "peer")?,
        };
        let view = PeerView {
            name: spec.name.clone(),
            index,
            address: spec.address,
            local,
            node_addresses: spec.node_addresses.clone(),
            pod_cidrs: spec.pod_cidrs.clone(),
            pods: spec.pods.len(),
            interface: uplink.name.clone(),
            generation: self.next_generation(),
        };
        if let Some((_, old_spec)) = &old {
            self.forget_prefixes(old_spec, spec, index)?;
            self.forget_routes(config, old_spec, spec)?;
        }
        let entry = Peer {
            address: spec.address.into(),
            local: local.into(),
            generation: view.generation,
            interface: uplink.index,
            mac: naming::mac("peer", &spec.address.to_string()),
            ..Peer::default()
        };
        let hop = NextHop {
            gateway: spec.address.into(),
            interface: uplink.index,
            kind: nexthop::kind::UNRESOLVED,
            ..NextHop::default()
        };
        self.peers.insert(
            spec.name.clone(),
            Remote {
                view: view.clone(),
                spec: spec.clone(),
            },
        );
        match self.install_peer(config, spec, index, entry, hop) {
            Ok(()) => Ok(view),
            Err(error) => {
                let undone = self.remove_peer(config, &spec.name).err();
                Err(with_more(error, undone.into_iter().collect()))
            }
        }
    }

    fn install_peer(
        &mut self,
        config: &Config,
        spec: &PeerSpec,
        index: u16,
        entry: Peer,
        hop: NextHop,
    ) -> Result<(), Error> {
        let number = u32::from(index);
        self.set_next_hop(PEERS_BASE + number, hop)?;
        // What flows are judged by comes before the generation that has them judged again.
        for (prefix, entry) in spec.prefixes(index) {
            self.maps.set_prefix(prefix, entry)?;
        }
        self.maps
            .peers
            .set(number, entry, 0)
            .map_err(Error::map("write to", "peers"))?;
        self.maps
            .peer_indices
            .insert(Addr::from(spec.address), number, 0)
            .map_err(Error::map("insert into", "peer_indices"))?;
        if config.tunnel == Tunnel::Direct {
            for &cidr in &spec.pod_cidrs {
                self.add_route(config, cidr)?;
            }
        }
        self.renew_world()
    }

    pub(crate) fn remove_peer(&mut self, config: &Config, name: &str) -> Result<(), Error> {
        let not_found = || Error::NotFound {
            what: "peer",
            name: name.to_owned(),
        };
        let Remote { view, spec } = self.peers.remove(name).ok_or_else(not_found)?;
        let number = u32::from(view.index);
        let mut errors = Vec::new();
        errors.extend(
            gone(self.maps.peer_indices.remove(&Addr::from(spec.address)))
                .map_err(Error::map("remove from", "peer_indices"))
                .err(),
        );
        if config.tunnel == Tunnel::Direct {
            for &cidr in &spec.pod_cidrs {
                errors.extend(self.delete_route(config, cidr).err());
            }
        }
        for (prefix, _) in spec.prefixes(view.index) {
            errors.extend(self.maps.remove_prefix(prefix).err());
        }
        let vacated = Peer {
            generation: self.next_generation(),
            ..Peer::default()
        };
        errors.extend(
            self.maps
                .peers
                .set(number, vacated, 0)
                .map_err(Error::map("write to", "peers"))
                .err(),
        );
        errors.extend(
            self.set_next_hop(PEERS_BASE + number, NextHop::default())
                .err(),
        );
        errors.extend(self.renew_world().err());
        let end = End::peer(view.index).raw();
        let its = |flow: &Flow, _| flow.from == end || flow.to == end;
        errors.extend(flows::sweep(&mut self.maps, its).err());
        Error::collect(errors)
    }

    fn delete_route(&self, config: &Config, pods: IpNet) -> Result<(), Error> {
        let v4 = pods.addr().is_ipv4();
        let mtu_bytes = uplink::mtu_bytes(self.mtu, v4)?;
        let route = self.gateway.route(pods, config.gateway(v4), mtu_bytes);
        self.netlink
            .delete_route(&route)
            .map(drop)
            .map_err(Error::network(gateway::HOST))
    }

    /// Takes out what a peer had and has no more.
    fn forget_prefixes(&mut self, old: &PeerSpec, new: &PeerSpec, index: u16) -> Result<(), Error> {
        let kept: Vec<_> = new
            .prefixes(index)
            .into_iter()
            .map(|(prefix, _)| prefix)
            .collect();
        for (prefix, _) in old.prefixes(index) {
            if !kept.contains(&prefix) {
                self.maps.remove_prefix(prefix)?;
            }
        }
        if old.address != new.address {
            gone(self.maps.peer_indices.remove(&Addr::from(old.address)))
                .map_err(Error::map("remove from", "peer_indices"))?;
        }
        Ok(())
    }

    /// Deletes the routes to ranges that a peer has no more.
    fn forget_routes(&self, config: &Config, old: &PeerSpec, new: &PeerSpec) -> Result<(), Error> {
        if config.tunnel == Tunnel::Direct {
            for &cidr in old
                .pod_cidrs
                .iter()
                .filter(|cidr| !new.pod_cidrs.contains(cidr))
            {
                self.delete_route(config, cidr)?;
            }
        }
        Ok(())
    }

    /// Whether all that a peer claims is free, or its own already.
    fn check_prefixes(&self, config: &Config, spec: &PeerSpec) -> Result<(), Error> {
        let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
        for cidr in &spec.pod_cidrs {
            if config.pod_cidrs.iter().any(|own| overlap(own, cidr)) {
                return Err(Error::AddressInUse {
                    address: *cidr,
                    owner: "this node".into(),
                });
            }
            for other in self
                .peers
                .values()
                .filter(|other| other.spec.name != spec.name)
            {
                if other
                    .spec
                    .pod_cidrs
                    .iter()
                    .any(|theirs| overlap(theirs, cidr))
                {
                    let owner = format!("peer {}", other.spec.name);
                    return Err(Error::AddressInUse {
                        address: *cidr,
                        owner,
                    });
                }
            }
        }
        self.check_node_addresses(config, spec)
    }

    /// Whether no address of a node, this one included, is another's or in a range of pods: the
    /// longer prefix would take it away from whoever has it.
    fn check_node_addresses(&self, config: &Config, spec: &PeerSpec) -> Result<(), Error> {
        let in_use = |address: IpNet, owner: String| Err(Error::AddressInUse { address, owner });
        let listed = self
            .netlink
            .addresses()
            .map_err(Error::network("this namespace"))?;
        let own: Vec<IpAddr> = listed
            .iter()
            .map(|address| address.net.addr())
            .chain(config.gateways.iter().copied())
            .collect();
        let covered =
            |cidrs: &[IpNet], address: &IpAddr| cidrs.iter().any(|cidr| cidr.contains(address));
        for address in node_addresses(spec) {
            if own.contains(&address) || covered(&config.pod_cidrs, &address) {
                return in_use(address.into(), "this node".into());
            }
        }
        // Its gateways lie among its pods, its end of the tunnel must not: packets to it would
        // have to go through the tunnel.
        if covered(&spec.pod_cidrs, &spec.address) {
            return in_use(
                spec.address.into(),
                format!("the pods of peer {}", spec.name),
            );
        }
        for &cidr in &spec.pod_cidrs {
            if own.iter().any(|address| cidr.contains(address)) {
                return in_use(cidr, "this node".into());
            }
        }
        for other in self
            .peers
            .values()
            .map(|peer| &peer.spec)
            .filter(|other| other.name != spec.name)
        {
            let owner = || format!("peer {}", other.name);
            for address in node_addresses(spec) {
                let theirs = node_addresses(other).any(|their| their == address);
                if theirs || covered(&other.pod_cidrs, &address) {
                    return in_use(address.into(), owner());
                }
            }
            for &cidr in &spec.pod_cidrs {
                if node_addresses(other).any(|address| cidr.contains(&address)) {
                    return in_use(cidr, owner());
                }
            }
        }
        Ok(())
    }

    fn uplink_of(&self, spec: &PeerSpec) -> Result<UplinkView, Error> {
        let found = match &spec.uplink {
            Some(name) => self.uplinks.iter().find(|uplink| uplink.name == *name),
            None => self.uplinks.first(),
        };
        let name = spec.uplink.clone().unwrap_or_default();
        found.cloned().ok_or(Error::NotFound {
            what: "uplink",
            name,
        })
    }
}

/// All addresses of a peer itself.
fn node_addresses(spec: &PeerSpec) -> impl Iterator<Item = IpAddr> {
    std::iter::once(spec.address).chain(spec.node_addresses.iter().copied())
}

/// What the ipcache says of this node before anyone else is known. Shorter prefixes give way to
/// longer ones: a pod's address to its range.
fn own_prefixes(config: &Config, addresses: &[Address]) -> Vec<(IpNet, IpEntry)> {
    let entry = |identity, kind, flags| IpEntry {
        identity,
        index: 0,
        kind,
        flags,
    };
    // Mapped addresses lie in `::/0`: without an entry of its own IPv4 would fall under that.
    let of_v4 = (
        IpNet::V4(ipnet::Ipv4Net::default()),
        entry(identity::WORLD, ipcache::kind::WORLD, 0),
    );
    let outside = config.non_masquerade.iter().map(|&prefix| {
        let flags = ipcache::flags::NO_MASQUERADE;
        (
            prefix.trunc(),
            entry(identity::WORLD, ipcache::kind::WORLD, flags),
        )
    });
    let vacant = config
        .pod_cidrs
        .iter()
        .map(|&cidr| (cidr, entry(identity::UNKNOWN, ipcache::kind::VACANT, 0)));
    let own = addresses
        .iter()
        .filter(|address| address.scope == Scope::Universe && !address.net.addr().is_loopback())
        .map(|address| address.net.addr())
        .chain(config.gateways.iter().copied())
        .map(|address| {
            (
                IpNet::from(address),
                entry(identity::HOST, ipcache::kind::HOST, 0),
            )
        });
    std::iter::once(of_v4)
        .chain(outside)
        .chain(vacant)
        .chain(own)
        .collect()
}

/// The settings of a load.
fn settings(config: &Config, kernel: &Kernel, gateway: &Gateway) -> Settings {
    Settings {
        host_interface: gateway.index,
        tunnel: match config.tunnel {
            Tunnel::Direct => tunnel::DIRECT,
            Tunnel::Native => tunnel::NATIVE,
        },
        identity_from_vni: u32::from(config.identity_from == IdentityFrom::Vni),
        nat_port_min: u32::from(config.nat_ports.first),
        nat_port_max: u32::from(config.nat_ports.last),
        tcp_established_s: config.timeouts.tcp_established_s,
        tcp_pending_s: config.timeouts.tcp_pending_s,
        tcp_closed_s: config.timeouts.tcp_closed_s,
        other_established_s: config.timeouts.other_established_s,
        other_pending_s: config.timeouts.other_pending_s,
        checksum_v6_flags: kernel.checksum_v6_flags(),
        seed: seed(),
        gateway_v4: address_or_none(config.gateway(true)),
        gateway_v6: address_or_none(config.gateway(false)),
        gateway_mac: gateway.mac,
        ..Settings::DEFAULT
    }
}

/// A number that nobody outside knows: the standard library seeds its hash maps with such.
#[allow(clippy::cast_possible_truncation, reason = "half of it is as good")]
fn seed() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one("datapath") as u32
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
