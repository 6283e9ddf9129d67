//! A node that is nothing but memory, behind the real server.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

use datapath_ipam::{Families, Ipam, IpamError, Options, Owner, PoolSpec};
use datapath_tools::{
    api::{
        self, Addresses, Agent, ApplyReport, ApplyRequest, AuditRequest, Client, DeleteReport,
        DeleteRequest, DocumentId, EndpointSpec, EndpointView, ExplainRequest, Explained, Failure,
        Feed, FlowFilter, FlowOrder, FlowView, FlushReport, FlushRequest, IdentityEntry, Kind,
        MapUsage, MetricView, Node, PeerSpec, PeerView, PolicyCount, PolicyDetail, PolicyList,
        PolicySources, Socket, Source, Status, TableTally, TableUse, Tallies, UntoldView,
    },
    error::Result,
};
use tempfile::TempDir;
use tokio::{runtime, sync::oneshot};

use super::{flows::Flows, policy::Documents};

/// The pods' prefix of a [`Memory`].
pub(crate) const RANGE: &str = "10.244.1.0/24";

/// A node that connects nobody, but remembers who should be, with a real address store.
#[derive(Debug)]
pub(crate) struct Memory {
    endpoints: Mutex<BTreeMap<String, EndpointView>>,
    peers: Mutex<BTreeMap<String, PeerView>>,
    ipam: Ipam,
    feed: Feed,
    pub(crate) flows: Flows,
    documents: Documents,
}

impl Memory {
    fn open(directory: &Path) -> Self {
        let ranges = vec![RANGE.parse().unwrap()];
        let pools = vec![PoolSpec {
            name: "default".to_owned(),
            ranges,
        }];
        Self {
            feed: Feed::default(),
            flows: Flows::default(),
            documents: Documents::default(),
            endpoints: Mutex::default(),
            peers: Mutex::default(),
            ipam: Ipam::open(directory.join("ipam.redb"), Options::new(pools)).unwrap(),
        }
    }

    fn fail(error: &IpamError) -> Failure {
        Failure::new(Kind::Internal, error)
    }
}

impl Node for Memory {
    fn status(&self) -> Result<Status, Failure> {
        Ok(Status {
            agent: Agent {
                version: "0".to_owned(),
                pid: std::process::id(),
                uptime_s: 1,
                state: self.ipam.path().to_owned(),
                policy: PolicySources::default(),
            },
            datapath: datapath_user::Status {
                kernel: "memory".to_owned(),
                abi_version: 0,
                tunnel: "direct".to_owned(),
                tunnel_why: "there is none".to_owned(),
                udp_segmentation: "interface".to_owned(),
                udp_segmentation_why: "there is no tunnel".to_owned(),
                pod_device: "veth".to_owned(),
                pod_device_why: "there is no kernel".to_owned(),
                uplinks: Vec::new(),
                non_masquerade: datapath_user::NonMasqueradeView::default(),
                gateways: Vec::new(),
                gateway_mac: "02:00:00:00:00:00".to_owned(),
                pod_cidrs: vec![RANGE.parse().unwrap()],
                pod_mtu_bytes: 1450,
                flows: TableUse {
                    used: 2,
                    max: 8,
                    ..TableUse::default()
                },
                pending: TableUse {
                    used: 1,
                    max: 4,
                    ..TableUse::default()
                },
                tallies: Tallies::default(),
                sweeping: datapath_user::SweepView::default(),
                policy: datapath_user::PolicyStatus {
                    documents: 3,
                    refused: 1,
                    updates: 7,
                    last_update_us: 850,
                    max_update_us: 2400,
                    ..datapath_user::PolicyStatus::default()
                },
                endpoints: self.endpoints.lock().unwrap().len(),
                peers: self.peers.lock().unwrap().len(),
                refreshes: 0,
                changes: 0,
                bpffs: PathBuf::new(),
                adopted: None,
            },
        })
    }

    fn endpoints(&self) -> Result<Vec<EndpointView>, Failure> {
        Ok(self.endpoints.lock().unwrap().values().cloned().collect())
    }

    fn add_endpoint(&self, endpoint: &EndpointSpec) -> Result<EndpointView, Failure> {
        assert!(endpoint.id != "poison", "asked to panic");
        let mut endpoints = self.endpoints.lock().unwrap();
        if endpoints.contains_key(&endpoint.id) {
            let error = format!("endpoint {:?} exists already", endpoint.id);
            return Err(Failure::of(Kind::Conflict, error));
        }
        let owner = Owner::new(&endpoint.id, &endpoint.interface)
            .map_err(|error| Failure::new(Kind::Invalid, &error))?;
        let lease = self.ipam.allocate("default", &owner, Families::OfPool);
        let slot = u16::try_from(endpoints.len()).unwrap() + 1;
        let view = EndpointView {
            id: endpoint.id.clone(),
            slot,
            netns: endpoint.netns.clone(),
            interface: endpoint.interface.clone(),
            host_interface: format!("dp{slot}"),
            host_index: slot.into(),
            mac: "02:00:00:00:00:01".to_owned(),
            addresses: lease.map_err(|error| Self::fail(&error))?.addresses,
            identity: endpoint.identity.unwrap_or(3),
            identity_allocated: false,
            namespace: endpoint.namespace.clone(),
            name: endpoint.name.clone(),
            labels: endpoint.labels.clone(),
            namespace_labels: endpoint.namespace_labels.clone(),
            service_account: endpoint.service_account.clone(),
            ports: endpoint.ports.clone(),
            policy: datapath_user::EndpointPolicy::default(),
        };
        endpoints.insert(view.id.clone(), view.clone());
        Ok(view)
    }

    fn remove_endpoint(&self, id: &str) -> Result<(), Failure> {
        let removed = self.endpoints.lock().unwrap().remove(id);
        let missing = || Failure::of(Kind::Missing, format!("no endpoint {id:?}"));
        let endpoint = removed.ok_or_else(missing)?;
        let owner = Owner::new(id, endpoint.interface).unwrap();
        self.ipam
            .release(&owner)
            .map_err(|error| Self::fail(&error))?;
        Ok(())
    }

    fn set_endpoint_labels(
        &self,
        id: &str,
        labels: &EndpointSpec,
    ) -> Result<EndpointView, Failure> {
        let mut endpoints = self.endpoints.lock().unwrap();
        let missing = || Failure::of(Kind::Missing, format!("no endpoint {id:?}"));
        let view = endpoints.get_mut(id).ok_or_else(missing)?;
        view.labels.clone_from(&labels.labels);
        view.namespace.clone_from(&labels.namespace);
        view.name.clone_from(&labels.name);
        Ok(view.clone())
    }

    fn policies(&self) -> Result<PolicyList, Failure> {
        Ok(self.documents.list())
    }

    fn policy(&self, id: &DocumentId) -> Result<PolicyDetail, Failure> {
        self.documents.get(id)
    }

    fn apply_policies(&self, request: &ApplyRequest) -> Result<ApplyReport, Failure> {
        Ok(self.documents.apply(request))
    }

    fn delete_policies(&self, request: &DeleteRequest) -> Result<DeleteReport, Failure> {
        self.documents.delete(request)
    }

    fn explain(&self, request: &ExplainRequest) -> Result<Explained, Failure> {
        self.documents.explain(&self.endpoints()?, request)
    }

    fn set_audit(&self, request: &AuditRequest) -> Result<(), Failure> {
        let mut endpoints = self.endpoints.lock().unwrap();
        let wanted = |view: &&mut EndpointView| {
            let id = request.endpoint.as_ref();
            id.is_none_or(|id| view.id == *id)
        };
        let found: Vec<_> = endpoints.values_mut().filter(wanted).collect();
        if let (Some(id), true) = (&request.endpoint, found.is_empty()) {
            return Err(Failure::of(Kind::Missing, format!("no endpoint {id:?}")));
        }
        for view in found {
            view.policy.audit = request.on;
        }
        Ok(())
    }

    fn identities(&self) -> Result<Vec<IdentityEntry>, Failure> {
        let views = self.endpoints()?.into_iter();
        let entry = |view: EndpointView| IdentityEntry {
            number: view.identity,
            labels: view.identity_labels(),
            prefix: None,
            endpoints: vec![view.id],
            remote: 0,
        };
        Ok(views.map(entry).collect())
    }

    fn list_flows(
        &self,
        filter: &FlowFilter,
        order: FlowOrder,
    ) -> Result<Box<dyn Source>, Failure> {
        self.flows.list(filter, order)
    }

    fn count_flows(&self, filter: &FlowFilter) -> Result<usize, Failure> {
        Ok(self.flows.fitting(filter).len())
    }

    fn follow_flows(&self, filter: &FlowFilter) -> Result<Box<dyn Source>, Failure> {
        Ok(self.flows.follow(filter))
    }

    fn flush_flows(&self, request: &FlushRequest) -> Result<FlushReport, Failure> {
        Ok(self.flows.flush(request))
    }

    fn flow_halves(&self) -> Result<Vec<FlowView>, Failure> {
        Ok(Vec::new())
    }

    fn metrics(&self) -> Result<Vec<MetricView>, Failure> {
        let metric = |outcome: &str, dropped| MetricView {
            direction: "ingress".to_owned(),
            outcome: outcome.to_owned(),
            dropped,
            packets: 3,
            bytes: 180,
        };
        Ok(vec![
            metric("Policy \"denied\"", true),
            metric("to-endpoint", false),
        ])
    }

    fn policy_counts(&self) -> Result<Vec<PolicyCount>, Failure> {
        Ok(vec![PolicyCount {
            direction: "egress".to_owned(),
            verdict: "denied".to_owned(),
            flows: 17,
        }])
    }

    fn map_usage(&self) -> Result<Vec<MapUsage>, Failure> {
        Ok(vec![MapUsage {
            map: "ipcache".to_owned(),
            used: 128,
            max: 512,
        }])
    }

    fn feed(&self) -> &Feed {
        &self.feed
    }

    fn untold_events(&self) -> Result<Vec<UntoldView>, Failure> {
        Ok(vec![UntoldView {
            reason: "Multicast".to_owned(),
            suppressed: 12,
            lost: 3,
        }])
    }

    fn tallies(&self) -> Result<Tallies, Failure> {
        Ok(Tallies {
            pending: TableTally {
                inserted: 40,
                removed: 20,
                swept: 8,
                evicted: 10,
                refused_no_memory: 3,
                ..TableTally::default()
            },
            established: TableTally {
                inserted: 20,
                refused_full: 7,
                ..TableTally::default()
            },
            quota_pending: 5,
            quota_promotion: 6,
            reset_revoked: 1,
            ..Tallies::default()
        })
    }

    fn peers(&self) -> Result<Vec<PeerView>, Failure> {
        Ok(self.peers.lock().unwrap().values().cloned().collect())
    }

    fn put_peer(&self, peer: &PeerSpec) -> Result<PeerView, Failure> {
        let mut peers = self.peers.lock().unwrap();
        let generation = peers
            .get(&peer.name)
            .map_or(1, |former| former.generation + 1);
        let view = PeerView {
            name: peer.name.clone(),
            index: 1,
            address: peer.address,
            local: IpAddr::from([192, 0, 2, 11]),
            node_addresses: peer.node_addresses.clone(),
            pod_cidrs: peer.pod_cidrs.clone(),
            pods: peer.pods.len(),
            interface: "eth0".to_owned(),
            generation,
        };
        peers.insert(view.name.clone(), view.clone());
        Ok(view)
    }

    fn remove_peer(&self, name: &str) -> Result<(), Failure> {
        let missing = || Failure::of(Kind::Missing, format!("no peer {name:?}"));
        self.peers
            .lock()
            .unwrap()
            .remove(name)
            .map(|_| ())
            .ok_or_else(missing)
    }

    fn addresses(&self) -> Result<Addresses, Failure> {
        let all = || {
            Ok(Addresses {
                usage: self.ipam.usage()?,
                leases: self.ipam.leases()?,
                reservations: self.ipam.reservations()?,
            })
        };
        all().map_err(|error| Self::fail(&error))
    }
}

/// A server of a [`Memory`], on a socket of its own. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) directory: TempDir,
    pub(crate) node: Arc<Memory>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let node = Arc::new(Memory::open(directory.path()));
        let served: Arc<dyn Node> = Arc::<Memory>::clone(&node);
        let socket = Socket::listen(&directory.path().join("agent.sock")).unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let stopped = async { stopped.await.unwrap() };
                api::serve(socket.listener().unwrap(), served, stopped)
                    .await
                    .unwrap();
            });
        });
        Self {
            directory,
            node,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.socket())
    }

    pub(crate) fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).unwrap();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
