//! A node: a datapath, and the addresses of its pods.

mod api;

use std::{
    fs,
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use datapath_ipam::{Families, Ipam, IpamError, Lease, Options, Owner, PoolSpec};
use datapath_user::Datapath;

use super::{
    cluster::{Cluster, Own},
    config::Config,
    events::Reading,
    policies::Policies,
};
use crate::{
    api::{EndpointSpec, EndpointView, Failure, Feed, Kind, Node},
    error::{Error, Result},
};

/// Name of the one pool, that of the datapath's `pod_cidrs`.
const POOL: &str = "default";
/// What the gateways' addresses are set aside for.
const GATEWAY: &str = "gateway";

/// A node's datapath, with addresses from a durable store.
#[derive(Debug)]
pub struct LocalNode {
    datapath: Datapath,
    ipam: Ipam,
    /// Held while an endpoint comes or goes: leases and endpoints change together.
    changes: Mutex<()>,
    started: Instant,
    feed: Arc<Feed>,
    reading: Reading,
    policies: Policies,
    cluster: Option<Cluster>,
    /// Whether all endpoints are audited.
    audit: AtomicBool,
}

impl LocalNode {
    /// Opens the address store, then the datapath, in the calling thread's network namespace, and
    /// enters the peers and endpoints of the configuration.
    ///
    /// What an earlier agent left is taken over with all its endpoints and peers, also those that
    /// came by the API. Those of the configuration that are there as it says are left alone, others
    /// are changed. Leases of endpoints that are no more are released.
    ///
    /// # Errors
    ///
    /// [`Error::Ipam`], [`Error::Datapath`], [`Error::Refused`] for a peer or an endpoint; then
    /// nothing is left of a new datapath, and one that was taken over runs on.
    pub fn open(config: &Config) -> Result<Self> {
        let ipam = open_ipam(config)?;
        let policies = config.policy.directory.as_deref();
        let policies = Policies::open(policies, config.kept("policies.json"))?;
        let cluster = open_cluster(config)?;
        let mut wanted = config.datapath();
        if let Some(cluster) = &cluster {
            let labels = &mut wanted.policy.node_labels;
            let mut all = cluster.own_labels();
            all.append(labels);
            *labels = all;
        }
        let audit = AtomicBool::new(wanted.policy.audit);
        let datapath = Datapath::open(wanted)?;
        let feed = Arc::<Feed>::default();
        let reading = Reading::start(datapath.events()?, Arc::clone(&feed))?;
        let node = Self {
            datapath,
            ipam,
            feed,
            reading,
            policies,
            cluster,
            audit,
            changes: Mutex::new(()),
            started: Instant::now(),
        };
        match node.fill(config) {
            Ok(()) => Ok(node),
            // Pods that are connected do not pay for it.
            Err(error) if node.datapath.adopted().is_some() => {
                node.leave();
                Err(error)
            }
            Err(error) => {
                if let Err(left) = node.close() {
                    tracing::warn!(error = &left as &dyn std::error::Error, "left behind");
                }
                Err(error)
            }
        }
    }

    /// Removes the datapath. The leases stay in their file, for the endpoints that come back.
    ///
    /// # Errors
    ///
    /// [`Error::Datapath`] with what could not be removed.
    pub fn close(self) -> Result<()> {
        drop(self.reading);
        Ok(self.datapath.close()?)
    }

    /// Lets go of the datapath, which runs on for the agent that comes next.
    pub fn leave(self) {
        self.datapath.leave();
    }

    /// Removes flows whose time is up for a few milliseconds; returns when to go on.
    ///
    /// # Errors
    ///
    /// [`Error::Datapath`] when a map cannot be read.
    pub fn sweep(&self) -> Result<Duration> {
        let slice = self.datapath.sweep_slice()?;
        if let Some(pass) = slice.pass {
            tracing::debug!(
                examined = pass.report.examined,
                removed = pass.report.removed,
                put_back = pass.report.put_back,
                slices = pass.slices,
                cpu = ?pass.cpu,
                elapsed = ?pass.elapsed,
                next = ?slice.pause,
                "flows swept"
            );
        }
        Ok(slice.pause)
    }

    /// Follows changes of the network until `stop` is closed, see [`Datapath::follow`].
    ///
    /// # Errors
    ///
    /// [`Error::Datapath`] when it cannot listen.
    pub fn follow(&self, stop: impl AsFd) -> Result<()> {
        Ok(self.datapath.follow(stop)?)
    }

    /// Follows the directory of policies until `stop` is closed. Without one it returns at once.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when it cannot wait.
    pub fn follow_policies(&self, stop: impl AsFd) -> Result<()> {
        self.policies.follow(&self.datapath, stop)
    }

    /// Follows the cluster file until `stop` is closed. Without one it returns at once.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when it cannot wait.
    pub fn follow_cluster(&self, stop: impl AsFd) -> Result<()> {
        match &self.cluster {
            Some(cluster) => cluster.follow(&self.datapath, stop),
            None => Ok(()),
        }
    }

    fn fill(&self, config: &Config) -> Result<()> {
        if let Some(adoption) = self.datapath.adopted() {
            tracing::info!(
                endpoints = adoption.endpoints_kept,
                endpoints_removed = ?adoption.endpoints_removed,
                interfaces_removed = ?adoption.interfaces_removed,
                peers = adoption.peers_kept,
                peers_removed = ?adoption.peers_removed,
                links_replaced = adoption.links_replaced,
                links_attached = adoption.links_attached,
                links_removed = adoption.links_removed,
                prefixes_changed = adoption.prefixes_changed,
                routes_removed = adoption.routes_removed,
                flow_entries = adoption.flows_kept,
                flows_judged_again = adoption.flows_judged_again,
                "datapath taken over"
            );
        }
        for peer in &config.peers {
            self.put_peer(peer)?;
        }
        if let Some(cluster) = &self.cluster {
            cluster.look(&self.datapath);
        }
        // Before the endpoints: a pod is judged by them from its first packet on.
        self.policies.enforce(&self.datapath)?;
        for endpoint in self.datapath.endpoints() {
            self.lease_again(&endpoint)?;
        }
        for endpoint in &config.endpoints {
            match self.find(&endpoint.id) {
                Some(known) if is_as_wanted(&known, endpoint) => continue,
                // Its connections need not end for that.
                Some(known) if is_as_wanted(&known, &labelled_as(endpoint, &known.spec())) => {
                    self.datapath.set_endpoint_labels(&endpoint.id, endpoint)?;
                    continue;
                }
                // Its lease stays for the one that comes in its place.
                Some(_) => self.datapath.remove_endpoint(&endpoint.id)?,
                None => {}
            }
            self.add_endpoint(endpoint)?;
        }
        let endpoints = self.datapath.endpoints();
        let live = |lease: &Lease| {
            let owner = (lease.owner.container_id(), lease.owner.ifname());
            endpoints
                .iter()
                .any(|endpoint| (endpoint.id.as_str(), endpoint.interface.as_str()) == owner)
        };
        for lease in self.ipam.reconcile(live)? {
            tracing::info!(owner = %lease.owner, "lease of an endpoint that is no more released");
        }
        Ok(())
    }

    /// Makes sure that an endpoint that was taken over holds the leases of its addresses, also after
    /// the store was lost.
    fn lease_again(&self, endpoint: &EndpointView) -> Result<()> {
        let owner = Owner::new(&endpoint.id, &endpoint.interface)?;
        let (_, fresh) = self.lease(&owner, &endpoint.spec())?;
        if fresh {
            tracing::warn!(%owner, "endpoint was taken over without a lease, and has one now");
        }
        Ok(())
    }

    /// Leases addresses for an endpoint; tells whether it has them only now.
    fn lease(&self, owner: &Owner, wanted: &EndpointSpec) -> Result<(Lease, bool), IpamError> {
        let fits = |lease: &Lease| {
            wanted.addresses.is_empty()
                || (wanted.addresses.len() == lease.addresses.len()
                    && wanted
                        .addresses
                        .iter()
                        .all(|address| lease.addresses.contains(address)))
        };
        // One of an earlier life: the endpoint itself is not there.
        if let Some(lease) = self.ipam.lease(owner)? {
            if fits(&lease) {
                return Ok((lease, false));
            }
            self.ipam.release(owner)?;
        }
        let lease = if wanted.addresses.is_empty() {
            self.ipam.allocate(POOL, owner, Families::OfPool)
        } else {
            self.ipam.allocate_specific(POOL, owner, &wanted.addresses)
        };
        lease.map(|lease| (lease, true))
    }

    fn exclusive(&self) -> MutexGuard<'_, ()> {
        // It guards no data of its own.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses to change a peer that the cluster file has: the file would change it back.
    fn check_not_of_cluster(&self, name: &str) -> Result<(), Failure> {
        match &self.cluster {
            Some(cluster) if cluster.owns(name) => {
                let path = cluster.path().display();
                let error = format!("peer {name:?} comes from {path}: change it there");
                Err(Failure::of(Kind::Conflict, error))
            }
            _ => Ok(()),
        }
    }

    /// Whether an endpoint of this node is audited, by whatever it was found.
    fn is_audited(&self, end: &str) -> bool {
        let is_it = |view: &EndpointView| {
            let named = view.namespace.iter().zip(&view.name);
            let mut named = named.map(|(namespace, name)| format!("{namespace}/{name}"));
            view.id == end
                || named.any(|name| name == end)
                || view.identity.to_string() == end
                || view
                    .addresses
                    .iter()
                    .any(|address| address.to_string() == end)
        };
        let mut its = self.datapath.endpoints();
        its.retain(is_it);
        let all = self.audit.load(Ordering::Relaxed);
        !its.is_empty() && (all || its.iter().all(|view| view.policy.audit))
    }

    fn find(&self, id: &str) -> Option<EndpointView> {
        self.datapath
            .endpoints()
            .into_iter()
            .find(|endpoint| endpoint.id == id)
    }
}

/// Identity of pods of which nothing is said.
const UNMANAGED: u32 = 3;

/// Tells whether an endpoint is what a specification asks for, which may leave the addresses open.
fn is_as_wanted(known: &EndpointView, wanted: &EndpointSpec) -> bool {
    let addresses = wanted.addresses.is_empty()
        || (wanted.addresses.len() == known.addresses.len()
            && wanted
                .addresses
                .iter()
                .all(|address| known.addresses.contains(address)));
    let wanted = EndpointSpec {
        addresses: known.addresses.clone(),
        // Unmanaged is what a pod is of which nothing is said.
        identity: wanted.identity.filter(|number| *number != UNMANAGED),
        ..wanted.clone()
    };
    addresses && known.spec() == wanted
}

/// An endpoint with the names and labels of another specification.
fn labelled_as(wanted: &EndpointSpec, labels: &EndpointSpec) -> EndpointSpec {
    EndpointSpec {
        id: wanted.id.clone(),
        netns: wanted.netns.clone(),
        interface: wanted.interface.clone(),
        addresses: wanted.addresses.clone(),
        ..labels.clone()
    }
}

/// Begins to follow the cluster file, if there is one.
fn open_cluster(config: &Config) -> Result<Option<Cluster>> {
    let Some(path) = &config.policy.cluster else {
        return Ok(None);
    };
    let own = Own {
        pod_cidrs: config.datapath.pod_cidrs.clone(),
        addresses: Vec::new(),
    };
    let names = config.kept("cluster-nodes.json");
    Cluster::open(path, names, config.peer_names(), &own).map(Some)
}

/// Opens the store, and sets aside the gateways and no other addresses.
fn open_ipam(config: &Config) -> Result<Ipam> {
    if let Some(directory) = config.state.parent() {
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(directory);
        made.map_err(Error::os("make the directory", directory.display()))?;
    }
    let pool = PoolSpec {
        name: POOL.to_owned(),
        ranges: config.datapath.pod_cidrs.clone(),
    };
    let options = Options {
        cooldown: Duration::from_secs(config.address_cooldown_s.into()),
        ..Options::new(vec![pool])
    };
    let ipam = Ipam::open(&config.state, options)?;
    let gateways = &config.datapath.gateways;
    for former in ipam.reservations()? {
        if former.purpose == GATEWAY && !gateways.contains(&former.address) {
            ipam.unreserve(POOL, former.address)?;
        }
    }
    for gateway in gateways {
        ipam.reserve(POOL, *gateway, GATEWAY)?;
    }
    Ok(ipam)
}
