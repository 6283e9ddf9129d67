//! One node's datapath.

mod policy;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use datapath_kern::abi;
use datapath_kern::abi::flow::End;
use datapath_tunnel::netlink::Monitor;
use ipnet::IpNet;

use crate::adoption::Adoption;
use crate::changes::Changes;
use crate::config::Config;
use crate::endpoint::{EndpointSpec, EndpointView};
use crate::error::Error;
use crate::events::{self, Events, Reader, UntoldView};
use crate::flows::{
    self, FlowFilter, FlowFollower, FlowList, FlowOrder, FlowView, FlushReport, Names, SweepReport,
    SweepSlice, Sweeper, Which,
};
use crate::maps::Maps;
use crate::masquerade::file::is_mapped;
use crate::metrics::{self, MetricView, PolicyCount};
use crate::naming;
use crate::node::Node;
use crate::peer::{PeerSpec, PeerView};
use crate::status::{MapUsage, Status};
use crate::tallies::{self, Swept, Tallies};
use crate::uplink;
use crate::watch::FileWatch;

/// One node's datapath: programs, maps and links in the kernel, the gateway pair, and the endpoints
/// and peers that it was told of.
///
/// Opened in the network namespace of the calling thread, and to be used from threads of that
/// namespace.
///
/// It ends in one of three ways:
///
/// - [`Datapath::close`] removes everything and returns what could not be undone. Dropping it does
///   the same, with a warning in the log for that.
/// - [`Datapath::leave`] lets go: packets go on, and the next [`Datapath::open`] takes over. A
///   process that is killed does the same, at whatever instruction, and so does a thread that
///   panics: a fault in user space costs no packet.
/// - [`cleanup`](crate::cleanup) removes what was left, without a configuration.
pub struct Datapath {
    /// `None` once closed.
    node: Arc<Mutex<Option<Node>>>,
    config: Config,
    /// Whether there is a reader of events.
    read: Arc<AtomicBool>,
    /// Evictions, as far as they were worked out.
    evicted: AtomicU64,
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Datapath {
    /// Loads the programs, attaches them to the uplinks and the gateway pair, and enters what the
    /// node knows of itself.
    ///
    /// Where an earlier process left its datapath in the directory, it is taken over: endpoints,
    /// peers and flows go on, its programs are replaced without a moment between, and what changed
    /// meanwhile is put right. [`Datapath::adopted`] says what was found. One that was half built is
    /// removed first.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for the configuration, [`Error::Capability`] and [`Error::Kernel`] for
    /// what is missing, [`Error::InUse`] where another process holds the directory, or what the
    /// kernel refused; then nothing is left of a new one. What is there and cannot be taken over
    /// runs on: [`Error::Owner`], [`Error::Foreign`], [`Error::AbiVersion`], [`Error::MapShape`],
    /// [`Error::Damaged`], [`Error::OtherNamespace`], [`Error::Changed`], [`Error::Occupied`].
    pub fn open(config: Config) -> Result<Self, Error> {
        config.validate()?;
        let node = Node::open(&config)?;
        Ok(Self {
            node: Arc::new(Mutex::new(Some(node))),
            config,
            read: Arc::default(),
            evicted: AtomicU64::default(),
        })
    }

    /// Removes everything: endpoints' interfaces, routes, the gateway pair, links, pins, and the
    /// directory where it was made for them.
    ///
    /// # Errors
    ///
    /// [`Error::Teardown`] with all that could not be undone; it goes on after an error.
    pub fn close(self) -> Result<(), Error> {
        let node = self.lock().take();
        node.map_or(Ok(()), |mut node| Error::collect(node.close()))
    }

    /// Lets go of it: everything stays as it is and runs on, until the next [`Datapath::open`] takes
    /// it over, or [`cleanup`](crate::cleanup) removes it.
    pub fn leave(self) {
        drop(self.lock().take());
    }

    /// What was taken over from an earlier process; none where this one built it.
    #[must_use]
    pub fn adopted(&self) -> Option<Adoption> {
        self.peek(|node| node.adoption.clone())
    }

    /// What it was opened with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Adds an endpoint: makes its interface inside its network namespace, with addresses, routes
    /// and the gateway as a neighbour. Its traffic flows when this returns.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], [`Error::Exists`], [`Error::AddressInUse`], [`Error::Full`], or what the
    /// kernel refused; then nothing is left of it.
    pub fn add_endpoint(&self, spec: &EndpointSpec) -> Result<EndpointView, Error> {
        spec.validate(&self.config)?;
        self.with(|node| node.add_endpoint(&self.config, spec))
    }

    /// Removes an endpoint: its interface, its flows, and all that is known of its addresses.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], or all that could not be undone.
    pub fn remove_endpoint(&self, id: &str) -> Result<(), Error> {
        self.with(|node| node.remove_endpoint(&self.config, id))
    }

    /// The endpoints, by id.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointView> {
        self.peek(|node| {
            node.endpoints
                .values()
                .map(|endpoint| endpoint.view.clone())
                .collect()
        })
    }

    /// Adds a peer, or changes it to what the specification says now. Flows are judged again only
    /// where something changed that they depend on.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], [`Error::AddressInUse`], [`Error::Full`], or what the kernel refused.
    pub fn upsert_peer(&self, spec: &PeerSpec) -> Result<PeerView, Error> {
        spec.validate()?;
        self.with(|node| node.upsert_peer(&self.config, spec))
    }

    /// Removes a peer with its pods and routes.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], or all that could not be undone.
    pub fn remove_peer(&self, name: &str) -> Result<(), Error> {
        self.with(|node| node.remove_peer(&self.config, name))
    }

    /// The peers, by name.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerView> {
        self.peek(|node| node.peers.values().map(|peer| peer.view.clone()).collect())
    }

    /// Has pods reach these prefixes outside under their own addresses from now on, besides those of
    /// [`Config::non_masquerade_file`], in the place of [`Config::non_masquerade`]. The next
    /// [`Datapath::open`] goes by its own configuration again.
    ///
    /// Each destination is treated as before until it is treated as the new list says, with nothing
    /// in between. Flows that there are go on as they began, as they do with ip-masq-agent and
    /// netfilter, while their way out of the node is the same; those to a peer's own address, which
    /// a tunnel carries instead, begin anew when they are judged again.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a prefix of IPv6 that stands for addresses of IPv4, [`Error::Map`].
    pub fn set_non_masquerade(&self, prefixes: &[IpNet]) -> Result<(), Error> {
        if let Some(prefix) = prefixes.iter().find(|prefix| is_mapped(**prefix)) {
            return Err(Error::Invalid {
                what: "prefix",
                value: prefix.to_string(),
                rule: "must be written as a prefix of IPv4 addresses, which it is",
            });
        }
        self.with(|node| node.set_outside(&self.config, prefixes))
    }

    /// All flows, each direction on its own, established ones first.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn flows(&self) -> Result<Vec<FlowView>, Error> {
        self.with(|node| {
            let now_s = flows::now_s();
            let mut views = Vec::new();
            for which in Which::ALL {
                for (key, flow) in flows::entries(&node.maps.tables, which)? {
                    views.push(FlowView::new(which.word(), &key, &flow, now_s, |end| {
                        node.name_of(end)
                    }));
                }
            }
            Ok(views)
        })
    }

    /// Lists the flows that fit, both directions of each as one.
    ///
    /// The tables are read as the listing is, by handles of its own: nothing waits for it.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchEnd`] for a filter that names who is not there, [`Error::Invalid`] for an
    /// order that is none, [`Error::Map`].
    pub fn list_flows(&self, filter: &FlowFilter, order: FlowOrder) -> Result<FlowList, Error> {
        let (maps, names) = self.flow_tables()?;
        FlowList::new(maps, names, filter.clone(), order)
    }

    /// Follows the flows that fit: [`FlowFollower::look`] tells what has changed since the last
    /// look, the first of which this is.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchEnd`], [`Error::Map`].
    pub fn follow_flows(&self, filter: &FlowFilter) -> Result<FlowFollower, Error> {
        FlowFollower::new(Arc::clone(&self.node), filter.clone())
    }

    /// Removes the flows that fit, both halves of each, and no other; the default filter fits all.
    ///
    /// The next packet of such a flow is judged as that of a new one: by the policy of now, and with
    /// a new port where it is masqueraded. Nothing waits for this, packets least of all; one that
    /// comes meanwhile may begin its flow again at once.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchEnd`], [`Error::Map`].
    pub fn flush(&self, filter: &FlowFilter) -> Result<FlushReport, Error> {
        let (maps, names) = self.flow_tables()?;
        // Tallies are written under the lock only: a sweep may be writing them, too.
        let mut record = |swept: Swept| self.with(|node| swept.record(&mut node.maps));
        flows::flush(maps, &names, filter, Some(&mut record))
    }

    /// Tells what [`Datapath::flush`] would do, and removes nothing.
    ///
    /// # Errors
    ///
    /// As [`Datapath::flush`].
    pub fn flush_dry(&self, filter: &FlowFilter) -> Result<FlushReport, Error> {
        let (maps, names) = self.flow_tables()?;
        flows::flush(maps, &names, filter, None)
    }

    /// Handles of the tables, and names for what is in them.
    fn flow_tables(&self) -> Result<(Maps, Names), Error> {
        let (directory, names) = self.with(|node| Ok((node.map_pins(), Names::of(node))))?;
        Ok((Maps::open(&directory)?, names))
    }

    /// Removes flows whose time is up: all that there are at once, though in slices of a few
    /// milliseconds, between which others get hold of the datapath.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn sweep(&self) -> Result<SweepReport, Error> {
        let mut sweeper = Sweeper::default();
        loop {
            let slice = self.with(|node| node.sweep_slice(&mut sweeper))?;
            if let Some(pass) = slice.pass {
                self.with(|node| {
                    node.sweeper.add(&sweeper);
                    node.reap_policy()?;
                    node.resize_on(&self.config)
                })?;
                return Ok(pass.report);
            }
        }
    }

    /// Removes flows whose time is up, as far as that goes in 3 ms of CPU time, and says when to go
    /// on. It is to be called in a loop:
    ///
    /// ```no_run
    /// # use datapath_user::{Config, Datapath};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let datapath = Datapath::open(Config::new("/run/datapath/bpffs", ["eth0"]))?;
    /// loop {
    ///     std::thread::sleep(datapath.sweep_slice()?.pause);
    /// }
    /// # }
    /// ```
    ///
    /// Between two slices that are 10 ms, and between two passes over all flows from one second to
    /// one minute: the shorter, the more of the flows were due and the fuller the tables are. Nobody
    /// has to call it for packets to be handled rightly: an entry whose time is up counts for
    /// nothing, but takes a place, and a port. Only a flow table whose size was changed is filled
    /// from the former one by this, and takes its memory until then; the slice after the last flow
    /// was moved is a long one, for the verifier looks at the programs once more.
    ///
    /// # Errors
    ///
    /// [`Error::Map`]; after a change of size also what [`Datapath::open`] fails with.
    pub fn sweep_slice(&self) -> Result<SweepSlice, Error> {
        self.with(|node| {
            let mut sweeper = std::mem::take(&mut node.sweeper);
            let slice = node.sweep_slice(&mut sweeper);
            node.sweeper = sweeper;
            let slice = slice?;
            if slice.pass.is_some() {
                node.reap_policy()?;
                node.resize_on(&self.config)?;
            }
            Ok(slice)
        })
    }

    /// All counters that are not zero.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn metrics(&self) -> Result<Vec<MetricView>, Error> {
        self.with(|node| metrics::read(&node.maps))
    }

    /// What has happened to flows and their entries, by reason.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn tallies(&self) -> Result<Tallies, Error> {
        self.with(|node| tallies::read(&node.maps, &self.evicted))
    }

    /// Returns a reader of the events. There is one at a time; what came while there was none is
    /// there for the next, as far as there was room.
    ///
    /// # Errors
    ///
    /// [`Error::EventsTaken`] while there is another, [`Error::Map`].
    pub fn events(&self) -> Result<Events, Error> {
        let only = Reader::take(&self.read)?;
        let directory = self.with(|node| Ok(node.map_pins()))?;
        Events::open(&directory, Arc::clone(&self.node), only)
    }

    /// How many flows policy has judged, by direction and verdict.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn policy_counts(&self) -> Result<Vec<PolicyCount>, Error> {
        self.with(|node| metrics::judged(&node.maps))
    }

    /// How full the maps are that can fill up.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn map_usage(&self) -> Result<Vec<MapUsage>, Error> {
        self.with(Node::map_usage)
    }

    /// Counts of events that were not told, by drop reason, where they are not zero.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn untold_events(&self) -> Result<Vec<UntoldView>, Error> {
        self.with(|node| events::untold(&node.maps))
    }

    /// The datapath at a glance.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn status(&self) -> Result<Status, Error> {
        let config = &self.config;
        self.with(|node| {
            let flows = node.table_use(Which::Flows, Which::FormerFlows)?;
            let pending = node.table_use(Which::Pending, Which::FormerPending)?;
            Ok(Status {
                tallies: tallies::read(&node.maps, &self.evicted)?,
                kernel: node.kernel.release.clone(),
                abi_version: abi::VERSION,
                tunnel: config.tunnel.name().to_owned(),
                tunnel_why: "as configured".to_owned(),
                udp_segmentation: node.watch.udp.name().to_owned(),
                udp_segmentation_why: node.watch.udp.why(),
                pod_device: node.pairs.pair.name().to_owned(),
                pod_device_why: node.pairs.why.to_owned(),
                uplinks: node.uplinks.clone(),
                non_masquerade: node.outside.view(),
                gateways: config.gateways.clone(),
                gateway_mac: naming::display_mac(node.gateway.mac),
                pod_cidrs: config.pod_cidrs.clone(),
                pod_mtu_bytes: uplink::mtu_bytes(node.mtu, true)?,
                flows,
                pending,
                sweeping: node.sweeper.view(),
                policy: node.policy.status(),
                endpoints: node.endpoints.len(),
                peers: node.peers.len(),
                refreshes: node.watch.refreshes,
                changes: node.watch.changes,
                bpffs: config.bpffs.clone(),
                adopted: node.adoption.clone(),
            })
        })
    }

    /// Looks at the network again and follows what changed: addresses, state, names, indices and
    /// MTUs of the uplinks, and this node's own addresses; and at
    /// [`Config::non_masquerade_file`]. Where nothing changed it does nothing.
    ///
    /// An uplink is followed by its index, under whatever name; one that is gone is found again by
    /// its name in the configuration. While it is gone its packets are dropped, with a reason.
    ///
    /// Flows stay where what they were decided on does: those that are masqueraded behind an
    /// address that is still there, all of an uplink that was down for a while. Those behind an
    /// address that has gone and that another one took the place of are removed, and begin again
    /// with the next packet. [`MasqueradeRule`](crate::MasqueradeRule) tells what is chosen.
    ///
    /// # Errors
    ///
    /// All that could not be done, after doing the rest.
    pub fn refresh(&self) -> Result<Changes, Error> {
        self.with(|node| node.refresh(&self.config))
    }

    /// Starts to listen for changes of the network, for [`Datapath::follow`].
    pub(crate) fn monitor(&self) -> Result<Monitor, Error> {
        self.with(|node| node.monitor())
    }

    /// Starts to listen for changes of the file of prefixes outside, for [`Datapath::follow`].
    pub(crate) fn watch_file(&self) -> Option<FileWatch> {
        FileWatch::new(self.config.non_masquerade_file.as_deref()?)
    }

    /// How often that file is to be looked at anyway; none: there is no such file.
    pub(crate) fn resync(&self) -> Option<Duration> {
        self.peek(|node| Some(node.outside.file.as_ref()?.good.resync))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Node>> {
        // What a panicking thread left is in the kernel; refusing to look would not mend it.
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(&self, act: impl FnOnce(&mut Node) -> Result<R, Error>) -> Result<R, Error> {
        locked(&self.node, act)
    }

    fn peek<R: Default>(&self, look: impl FnOnce(&Node) -> R) -> R {
        self.lock().as_ref().map(look).unwrap_or_default()
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        let node = self.lock().take();
        if std::thread::panicking() {
            if node.is_some() {
                tracing::warn!("left running by a panic");
            }
            return;
        }
        for error in node.map(|mut node| node.close()).unwrap_or_default() {
            tracing::warn!(error = &error as &dyn std::error::Error, "left behind");
        }
    }
}

/// Acts on a node, unless it is closed.
pub(crate) fn locked<R>(
    node: &Mutex<Option<Node>>,
    act: impl FnOnce(&mut Node) -> Result<R, Error>,
) -> Result<R, Error> {
    let mut node = node.lock().unwrap_or_else(PoisonError::into_inner);
    let closed = || Error::NotFound {
        what: "datapath",
        name: "closed".into(),
    };
    act(node.as_mut().ok_or_else(closed)?)
}

impl Node {
    /// The name of one end of a flow.
    pub(crate) fn name_of(&self, raw: u16) -> String {
        let end = End::from_raw(raw);
        let found = match (end.is_remote(), end.slot()) {
            (false, 0) => return "host".into(),
            (true, 0) => return "world".into(),
            (false, slot) => self
                .endpoints
                .values()
                .find(|e| u32::from(e.view.slot) == slot)
                .map(|e| &e.view.id),
            (true, index) => self
                .peers
                .values()
                .find(|p| u32::from(p.view.index) == index)
                .map(|p| &p.view.name),
        };
        found.cloned().unwrap_or_else(|| "gone".into())
    }
}

/// Things by name, each with a number of its own.
pub(crate) type ByName<T> = BTreeMap<String, T>;

/// The lowest number from 1 on that is not in use.
pub(crate) fn free_number(
    used: impl Iterator<Item = u16>,
    max: u32,
    what: &'static str,
) -> Result<u16, Error> {
    let used: BTreeSet<u16> = used.collect();
    (1..max)
        .filter_map(|number| u16::try_from(number).ok())
        .find(|number| !used.contains(number))
        .ok_or(Error::Full {
            what,
            max: max.saturating_sub(1),
        })
}

/// The addresses of a list in a family.
pub(crate) fn of_family(addresses: &[IpAddr], v4: bool) -> Option<IpAddr> {
    addresses
        .iter()
        .copied()
        .find(|address| address.is_ipv4() == v4)
}
