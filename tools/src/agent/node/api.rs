//! What the API asks of a node.

use std::{process, sync::atomic::Ordering};

use datapath_ipam::Owner;
use datapath_user::{
    Error as DatapathError,
    policy::{DocumentId, ExplainQuery, IdentityView, Judgement},
};

use super::{
    super::{cluster::Cluster, config::check_endpoint},
    LocalNode,
};
use crate::api::{
    Addresses, Agent, ApplyReport, ApplyRequest, AuditRequest, DeleteReport, DeleteRequest,
    EndpointSpec, EndpointView, ExplainRequest, Explained, Failure, Feed, FlowFilter, FlowOrder,
    FlowView, FlushReport, FlushRequest, IdentityEntry, Kind, MapUsage, MetricView, Node, PeerSpec,
    PeerView, PolicyCount, PolicyDetail, PolicyList, PolicySources, Source, Status, Tallies,
    UntoldView,
};

impl Node for LocalNode {
    fn status(&self) -> Result<Status, Failure> {
        let agent = Agent {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            state: self.ipam.path().to_owned(),
            policy: PolicySources {
                mode: self.datapath.config().policy.mode,
                audit: self.audit.load(Ordering::Relaxed),
                changed: self.policies.changed(),
                applied: self.policies.applied(),
                directory: self.policies.directory(),
                cluster: self.cluster.as_ref().map(Cluster::view),
            },
        };
        Ok(Status {
            agent,
            datapath: self.datapath.status()?,
        })
    }

    fn endpoints(&self) -> Result<Vec<EndpointView>, Failure> {
        Ok(self.datapath.endpoints())
    }

    fn add_endpoint(&self, endpoint: &EndpointSpec) -> Result<EndpointView, Failure> {
        let _exclusive = self.exclusive();
        if self.find(&endpoint.id).is_some() {
            let name = endpoint.id.clone();
            return Err(DatapathError::Exists {
                what: "endpoint",
                name,
            }
            .into());
        }
        // Before an address is leased, which would have to cool down.
        check_endpoint(endpoint, self.datapath.config())?;
        let owner = Owner::new(&endpoint.id, &endpoint.interface)?;
        let (lease, fresh) = self.lease(&owner, endpoint)?;
        let spec = EndpointSpec {
            addresses: lease.addresses,
            ..endpoint.clone()
        };
        match self.datapath.add_endpoint(&spec) {
            Ok(view) => {
                tracing::info!(id = %view.id, netns = %view.netns.display(), "endpoint added");
                Ok(view)
            }
            Err(error) => {
                if fresh && let Err(error) = self.ipam.release(&owner) {
                    tracing::warn!(%owner, %error, "lease of a failed endpoint stays");
                }
                Err(error.into())
            }
        }
    }

    fn remove_endpoint(&self, id: &str) -> Result<(), Failure> {
        let _exclusive = self.exclusive();
        let missing = || DatapathError::NotFound {
            what: "endpoint",
            name: id.to_owned(),
        };
        let endpoint = self.find(id).ok_or_else(missing)?;
        let removed = self.datapath.remove_endpoint(id);
        // Also after a removal that left something: the endpoint is forgotten, and so is its lease.
        if self.find(id).is_none() {
            self.ipam.release(&Owner::new(id, endpoint.interface)?)?;
            tracing::info!(id, "endpoint removed");
        }
        Ok(removed?)
    }

    fn set_endpoint_labels(
        &self,
        id: &str,
        labels: &EndpointSpec,
    ) -> Result<EndpointView, Failure> {
        let _exclusive = self.exclusive();
        let view = self.datapath.set_endpoint_labels(id, labels)?;
        tracing::info!(id, identity = view.identity, "endpoint labelled");
        Ok(view)
    }

    fn policies(&self) -> Result<PolicyList, Failure> {
        Ok(self.policies.list(&self.datapath))
    }

    fn policy(&self, id: &DocumentId) -> Result<PolicyDetail, Failure> {
        self.policies.get(&self.datapath, id)
    }

    fn apply_policies(&self, request: &ApplyRequest) -> Result<ApplyReport, Failure> {
        self.policies.apply(&self.datapath, request)
    }

    fn delete_policies(&self, request: &DeleteRequest) -> Result<DeleteReport, Failure> {
        self.policies.delete(&self.datapath, &request.documents)
    }

    fn explain(&self, request: &ExplainRequest) -> Result<Explained, Failure> {
        let explanation = self.datapath.explain(&ExplainQuery {
            from: self.datapath.find_end(&request.from)?,
            to: self.datapath.find_end(&request.to)?,
            protocol: request.protocol,
            port: request.port,
        })?;
        let passes = |judgement: &Judgement, end| judgement.allowed || self.is_audited(end);
        Ok(Explained {
            audited: !explanation.allowed
                && passes(&explanation.egress, &request.from)
                && passes(&explanation.ingress, &request.to),
            explanation,
        })
    }

    fn set_audit(&self, request: &AuditRequest) -> Result<(), Failure> {
        let AuditRequest { endpoint, on } = request;
        if let Some(id) = endpoint.as_ref().filter(|id| self.find(id).is_none()) {
            let error = format!("no endpoint {id:?}: `dpctl endpoint list` shows those there are");
            return Err(Failure::of(Kind::Missing, error));
        }
        self.datapath.set_audit(endpoint.as_deref(), *on)?;
        if endpoint.is_none() {
            self.audit.store(*on, Ordering::Relaxed);
        }
        tracing::info!(endpoint, on, "audit");
        Ok(())
    }

    fn identities(&self) -> Result<Vec<IdentityEntry>, Failure> {
        let endpoints = self.datapath.endpoints();
        let entry = |view: IdentityView| {
            let its = endpoints
                .iter()
                .filter(|endpoint| endpoint.identity == view.number);
            let endpoints: Vec<_> = its.map(|endpoint| endpoint.id.clone()).collect();
            IdentityEntry {
                number: view.number,
                labels: view.labels,
                prefix: view.prefix,
                remote: view.users.saturating_sub(endpoints.len()),
                endpoints,
            }
        };
        Ok(self.datapath.identities().into_iter().map(entry).collect())
    }

    fn list_flows(
        &self,
        filter: &FlowFilter,
        order: FlowOrder,
    ) -> Result<Box<dyn Source>, Failure> {
        Ok(Box::new(self.datapath.list_flows(filter, order)?))
    }

    fn count_flows(&self, filter: &FlowFilter) -> Result<usize, Failure> {
        let list = self.datapath.list_flows(filter, FlowOrder::default())?;
        Ok(list.count()?)
    }

    fn follow_flows(&self, filter: &FlowFilter) -> Result<Box<dyn Source>, Failure> {
        Ok(Box::new(self.datapath.follow_flows(filter)?))
    }

    fn flush_flows(&self, request: &FlushRequest) -> Result<FlushReport, Failure> {
        let FlushRequest {
            filter, dry_run, ..
        } = request;
        if *dry_run {
            return Ok(self.datapath.flush_dry(filter)?);
        }
        let report = self.datapath.flush(filter)?;
        let (flows, removed) = (report.flows, report.removed);
        tracing::info!(?filter, flows, entries = removed, "flows flushed");
        Ok(report)
    }

    fn flow_halves(&self) -> Result<Vec<FlowView>, Failure> {
        Ok(self.datapath.flows()?)
    }

    fn metrics(&self) -> Result<Vec<MetricView>, Failure> {
        Ok(self.datapath.metrics()?)
    }

    fn policy_counts(&self) -> Result<Vec<PolicyCount>, Failure> {
        Ok(self.datapath.policy_counts()?)
    }

    fn map_usage(&self) -> Result<Vec<MapUsage>, Failure> {
        Ok(self.datapath.map_usage()?)
    }

    fn feed(&self) -> &Feed {
        &self.feed
    }

    fn untold_events(&self) -> Result<Vec<UntoldView>, Failure> {
        Ok(self.datapath.untold_events()?)
    }

    fn tallies(&self) -> Result<Tallies, Failure> {
        Ok(self.datapath.tallies()?)
    }

    fn peers(&self) -> Result<Vec<PeerView>, Failure> {
        Ok(self.datapath.peers())
    }

    fn put_peer(&self, peer: &PeerSpec) -> Result<PeerView, Failure> {
        self.check_not_of_cluster(&peer.name)?;
        let view = self.datapath.upsert_peer(peer)?;
        tracing::info!(name = %view.name, pods = view.pods, "peer set");
        Ok(view)
    }

    fn remove_peer(&self, name: &str) -> Result<(), Failure> {
        self.check_not_of_cluster(name)?;
        self.datapath.remove_peer(name)?;
        tracing::info!(name, "peer removed");
        Ok(())
    }

    fn addresses(&self) -> Result<Addresses, Failure> {
        Ok(Addresses {
            usage: self.ipam.usage()?,
            leases: self.ipam.leases()?,
            reservations: self.ipam.reservations()?,
        })
    }
}
