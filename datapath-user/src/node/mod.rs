//! What a datapath consists of in the kernel, and how it gets there and away again.

mod adopt;
mod endpoints;
mod outside;
mod peers;
pub(crate) mod policy;
mod prefixes;
mod recover;
mod refresh;
mod renew;
pub(crate) mod resize;
mod settings;
mod tables;
mod usage;

use std::borrow::Cow;
use std::mem;
use std::net::IpAddr;
use std::path::PathBuf;

use aya::programs::TcAttachType;
use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::config::Config as Settings;
use datapath_kern::abi::endpoint::{Endpoint, identity};
use datapath_kern::abi::nexthop::NextHop;
use datapath_kern::abi::state::{flags, phase};
use datapath_kern::abi::tunnel::Peer;
use datapath_tunnel::mtu::PodMtu;
use datapath_tunnel::netlink::{Address, Netlink};
use ipnet::IpNet;

pub(crate) use self::endpoints::Local;
use self::outside::Outside;
pub(crate) use self::peers::Remote;
use self::policy::Policy;
use self::refresh::Watch;
use self::tables::HighWater;
use crate::adoption::Adoption;
use crate::bpffs::Pins;
use crate::config::Config;
use crate::datapath::ByName;
use crate::endpoint::Wire;
use crate::error::Error;
use crate::flows::Sweeper;
use crate::gateway::{self, Gateway};
use crate::inventory::{self, Found};
use crate::journal::Journal;
use crate::maps::Maps;
use crate::naming;
use crate::object;
use crate::pair::{self, Pair};
use crate::probe::Kernel;
use crate::programs::{self, Programs};
use crate::remains;
use crate::sizes::{Memory, Sizes};
use crate::uplink::{self, UplinkView};

/// A datapath in the kernel. Dropping it lets go of it: all that is pinned goes on.
pub(crate) struct Node {
    pub(crate) kernel: Kernel,
    pub(crate) maps: Maps,
    pub(crate) gateway: Gateway,
    pub(crate) uplinks: Vec<UplinkView>,
    pub(crate) mtu: PodMtu,
    pub(crate) pairs: pair::Choice,
    pub(crate) endpoints: ByName<Local>,
    pub(crate) peers: ByName<Remote>,
    pub(crate) policy: Policy,
    /// What was taken over, if anything was.
    pub(crate) adoption: Option<Adoption>,
    programs: Programs,
    journal: Journal,
    netlink: Netlink,
    pub(crate) watch: Watch,
    pub(crate) outside: Outside,
    pub(crate) sweeper: Sweeper,
    high_water: HighWater,
    /// Wanted; the tables may have others for a while.
    sizes: Sizes,
    /// The lock goes last.
    pins: Pins,
}

/// The machine as it is found.
struct Site {
    kernel: Kernel,
    netlink: Netlink,
    addresses: Vec<Address>,
    uplinks: Vec<UplinkView>,
    mtu: PodMtu,
    pairs: pair::Choice,
    object: Cow<'static, [u8]>,
    outside: Outside,
    policy: Policy,
    sizes: Sizes,
}

impl Site {
    fn look(config: &Config) -> Result<Self, Error> {
        let sizes = Sizes::of(config, Memory::look()?)?;
        let kernel = Kernel::probe()?.attaching(config.attach)?;
        let pairs = pair::Choice::of(config.pod_device, &kernel)?;
        let object = object::read(config.object.as_deref())?;
        let netlink = Netlink::open().map_err(Error::network("this namespace"))?;
        let addresses = netlink
            .addresses()
            .map_err(Error::network("this namespace"))?;
        let uplinks = uplink::find(&netlink, config, &addresses)?;
        let mtu = uplink::mtu(&uplinks, config)?;
        Ok(Self {
            kernel,
            netlink,
            addresses,
            uplinks,
            mtu,
            pairs,
            object,
            outside: Outside::of(config),
            policy: Policy::of(config)?,
            sizes,
        })
    }
}

impl Node {
    /// Takes over what an earlier process left, else builds it.
    ///
    /// A new one that fails leaves nothing. What was there stays as it was where it cannot be taken
    /// over, but for half-built remains, which are removed.
    pub(crate) fn open(config: &Config) -> Result<Self, Error> {
        let site = Site::look(config)?;
        let mut pins = Pins::take(&config.bpffs)?;
        match inventory::look(&mut pins, config, &site.object)? {
            Found::Whole(journal) => return Self::adopt(config, site, pins, *journal),
            Found::Partial => remains::clear(&pins, &site.netlink)?,
            Found::Nothing => {
                if let Err(error) = remains::unused_interfaces(&site.netlink) {
                    return Err(with_more(error, pins.release()));
                }
            }
        }
        Self::build(config, site, pins)
    }

    fn build(config: &Config, mut site: Site, mut pins: Pins) -> Result<Self, Error> {
        match Self::load(config, &mut site, &pins) {
            Ok((gateway, programs, maps, journal)) => {
                let addresses = mem::take(&mut site.addresses);
                let mut node = Self::assemble(site, pins, gateway, programs, maps, journal);
                match node.start(config, &addresses) {
                    Ok(()) => Ok(node),
                    Err(error) => Err(with_more(error, node.close())),
                }
            }
            Err(error) => {
                let undone = gateway::remove(&site.netlink).err();
                let left = undone.into_iter().chain(pins.release()).collect();
                Err(with_more(error, left))
            }
        }
    }

    /// Makes the pins, from the one that says whose they are to the maps, and the gateway pair.
    fn load(
        config: &Config,
        site: &mut Site,
        pins: &Pins,
    ) -> Result<(Gateway, Programs, Maps, Journal), Error> {
        pins.prepare()?;
        let made = if pins.made_unmounted() {
            flags::DIRECTORY_MADE
        } else {
            0
        };
        let mut journal = Journal::create(&pins.maps(), made, settings::seed())?;
        let mtu_bytes = uplink::device_mtu_bytes(&site.uplinks);
        let gateway = Gateway::create(&site.netlink, &config.gateways, mtu_bytes)?;
        let seed = journal.state().seed;
        let mut settings = settings::of(
            config,
            &site.kernel,
            &gateway,
            &site.uplinks,
            site.sizes,
            seed,
        );
        settings.netkit_pods = u32::from(site.pairs.pair == Pair::Netkit);
        let object = mem::take(&mut site.object);
        let mut programs = Programs::new(pins, site.kernel.tcx, object);
        let tables = programs::Tables {
            sizes: site.sizes,
            resizing: 0,
        };
        programs.load(config, tables, &settings, pins, &mut journal)?;
        let maps = Maps::open(&pins.maps())?;
        Ok((gateway, programs, maps, journal))
    }

    fn assemble(
        site: Site,
        pins: Pins,
        gateway: Gateway,
        programs: Programs,
        maps: Maps,
        journal: Journal,
    ) -> Self {
        Self {
            kernel: site.kernel,
            maps,
            gateway,
            uplinks: site.uplinks,
            mtu: site.mtu,
            pairs: site.pairs,
            endpoints: ByName::new(),
            peers: ByName::new(),
            policy: site.policy,
            adoption: None,
            watch: Watch::default(),
            outside: site.outside,
            sweeper: Sweeper::default(),
            high_water: HighWater::default(),
            sizes: site.sizes,
            programs,
            journal,
            netlink: site.netlink,
            pins,
        }
    }

    /// Fills the maps, then attaches the programs, then routes pods to them.
    fn start(&mut self, config: &Config, addresses: &[Address]) -> Result<(), Error> {
        self.begin_watch(config, addresses);
        let generation = self.next_generation()?;
        let host = self.host_entry(config, generation);
        self.maps
            .endpoints
            .set(0, host, 0)
            .map_err(Error::map("write to", "endpoints"))?;
        self.renew_world()?;
        for uplink in &self.uplinks {
            self.maps
                .uplinks
                .insert(uplink.index, uplink.entry(), 0)
                .map_err(Error::map("insert into", "uplinks"))?;
        }
        self.maps.exclude_ports(&config.nat_excluded_ports)?;
        let own = prefixes::own(config, addresses);
        for (prefix, entry) in own.into_iter().chain(self.enter_outside(config)) {
            self.maps.set_prefix(prefix, entry)?;
        }
        self.attach_node()?;
        for &cidr in &config.pod_cidrs {
            self.add_route(config, cidr)?;
        }
        let settings = self.settings_digest(config);
        self.journal.change(|state| {
            state.settings = settings;
            state.phase = phase::WHOLE;
        })
    }

    /// This node as an endpoint.
    fn host_entry(&self, config: &Config, generation: u32) -> Endpoint {
        Endpoint {
            ipv4: address_or_none(config.gateway(true)),
            ipv6: address_or_none(config.gateway(false)),
            interface: self.gateway.index,
            generation,
            identity: identity::HOST,
            mac: self.gateway.mac,
            policy: self.policy.word(0),
            ..Endpoint::default()
        }
    }

    /// Attaches the programs of the gateway pair and of the uplinks.
    fn attach_node(&mut self) -> Result<(), Error> {
        Gateway::attach(&mut self.programs)?;
        for uplink in &self.uplinks {
            self.programs
                .attach("from_uplink", &uplink.interface, TcAttachType::Ingress)?;
            self.programs
                .attach("to_uplink", &uplink.interface, TcAttachType::Egress)?;
        }
        Ok(())
    }

    /// Tells settings that flows were judged under from others.
    fn settings_digest(&self, config: &Config) -> u64 {
        let seed = self.journal.state().seed;
        let settings = Settings {
            // What an endpoint may begin decides nothing about what it has begun.
            endpoint_established: 0,
            endpoint_begun_per_s: 0,
            ..self.settings(config, seed)
        };
        naming::digest(format!("{settings:?}"))
    }

    /// The settings of a load, with the pods that there are.
    fn settings(&self, config: &Config, seed: u32) -> Settings {
        let mut pods = self.endpoints.values().map(|local| local.wire.pair);
        let netkit = self.pairs.pair == Pair::Netkit || pods.any(|pair| pair == Pair::Netkit);
        let settings = settings::of(
            config,
            &self.kernel,
            &self.gateway,
            &self.uplinks,
            self.sizes,
            seed,
        );
        Settings {
            netkit_pods: netkit.into(),
            ..settings
        }
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
        // From here on there is nothing to adopt, whenever this ends.
        errors.extend(
            self.journal
                .change(|state| state.phase = phase::PARTIAL)
                .err(),
        );
        for (_, local) in mem::take(&mut self.endpoints) {
            errors.extend(self.unwire(&local.wire).err());
        }
        self.peers.clear();
        errors.extend(self.programs.detach_all());
        errors.extend(self.gateway.delete(&self.netlink).err());
        errors.extend(self.pins.release());
        errors
    }

    fn unwire(&self, wire: &Wire) -> Result<(), Error> {
        if wire.host_index == 0 {
            // It was never made.
            return Ok(());
        }
        self.netlink
            .delete_link(wire.host_index)
            .map(drop)
            .map_err(Error::network(&wire.host_interface))
    }

    /// Where the maps are pinned.
    pub(crate) fn map_pins(&self) -> PathBuf {
        self.pins.maps()
    }

    fn next_generation(&mut self) -> Result<u32, Error> {
        self.journal.next_generation()
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
            generation: self.next_generation()?,
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
