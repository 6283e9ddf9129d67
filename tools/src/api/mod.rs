//! What the agent and its clients say to each other: HTTP and JSON over a unix socket.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`] |
//! | `GET /v1/endpoints` | | list of [`EndpointView`] |
//! | `POST /v1/endpoints` | [`EndpointSpec`] | 201, [`EndpointView`] |
//! | `DELETE /v1/endpoints/{id}` | | 204 |
//! | `PUT /v1/endpoints/{id}/labels` | [`EndpointSpec`], of which only names, labels, ports and identity count | [`EndpointView`] |
//! | `GET /v1/policies` | | [`PolicyList`] |
//! | `GET /v1/policies/{id}` | | [`PolicyDetail`]; the id as in a list, `/` written `%2F` |
//! | `POST /v1/policies/apply` | [`ApplyRequest`] | [`ApplyReport`] |
//! | `POST /v1/policies/delete` | [`DeleteRequest`] | [`DeleteReport`] |
//! | `POST /v1/policies/explain` | [`ExplainRequest`] | [`Explained`] |
//! | `PUT /v1/policies/audit` | [`AuditRequest`] | 204 |
//! | `GET /v1/identities` | | list of [`IdentityEntry`] |
//! | `GET /v1/flows` | | [`FlowPair`]s, a line each: see [`FlowFilter`] and [`FlowOrder`] for what follows `?` |
//! | `GET /v1/flows/count` | | [`FlowCount`], of those that fit a [`FlowFilter`] |
//! | `GET /v1/flows/changes` | | [`FlowChange`]s, a line each, as they come: [`FlowFilter`] and [`FlowPace`] |
//! | `POST /v1/flows/flush` | [`FlushRequest`] | [`FlushReport`] |
//! | `GET /v1/flows/halves` | | list of [`FlowView`], each direction on its own |
//! | `GET /v1/metrics` | | list of [`MetricView`] |
//! | `GET /v1/metrics/policy` | | list of [`PolicyCount`] |
//! | `GET /v1/maps` | | list of [`MapUsage`] |
//! | `GET /v1/events` | | [`Item`]s, a line each, as they come: see [`EventQuery`] for what follows `?` |
//! | `GET /v1/events/status` | | [`FeedStatus`] |
//! | `GET /v1/events/untold` | | list of [`UntoldView`] |
//! | `GET /v1/peers` | | list of [`PeerView`] |
//! | `PUT /v1/peers` | [`PeerSpec`] | [`PeerView`] |
//! | `DELETE /v1/peers/{name}` | | 204 |
//! | `GET /v1/ipam` | | [`Addresses`] |
//! | `GET /healthz` | | `ok` |
//! | `GET /metrics` | | `OpenMetrics` text |
//!
//! What cannot be done is answered with a [`Failure`] and the status code of its [`Kind`].

mod client;
mod failure;
mod feed;
mod filter;
mod flows;
mod lines;
mod openmetrics;
mod policy;
mod query;
#[cfg(test)]
pub(crate) mod sample;
mod selector;
mod server;
mod socket;
mod stream;
mod view;

pub use client::Client;
pub use failure::{Failure, Kind};
pub use feed::{Feed, FeedStatus, Item, KEPT, QUEUE, Subscription, Untold, Why};
pub use filter::{Condition, EventFilter, Field};
pub use flows::{FlowCount, FlowPace, FlushRequest, Source};
pub use policy::{
    AppliedDocument, ApplyReport, ApplyRequest, AuditRequest, Change, DeleteReport, DeleteRequest,
    ExplainRequest, Explained, Followed, IdentityEntry, PolicyDetail, PolicyEntry, PolicyList,
    PolicySource, PolicySources, PolicyState, PolicyText, parse_document_id,
};
pub use query::EventQuery;
pub use selector::LabelSelector;
pub use server::{router, serve};
pub use socket::{DEFAULT_SOCKET, Socket};
pub use stream::{ChangeStream, EventStream, FlowStream};
pub use view::{Addresses, Agent, Status};

pub use datapath_user::policy::DocumentId;
pub use datapath_user::{
    EndKind, EndpointSpec, EndpointView, EventEnd, EventKind, EventRule, EventVerdict, EventView,
    FlowChange, FlowFilter, FlowOrder, FlowPair, FlowView, FlushReport, IcmpView, MapUsage,
    MetricView, PeerSpec, PeerView, PolicyCount, PolicyDecision, PolicyMatch, RemotePod,
    TableTally, TableUse, Tallies, TunnelView, UntoldView,
};

/// What the API is about: a node with a datapath.
///
/// Its methods may block; they are called on threads of their own, several at once.
pub trait Node: Send + Sync + 'static {
    /// Returns what the agent and its datapath are and do.
    ///
    /// # Errors
    ///
    /// [`Kind::Internal`] when maps cannot be read.
    fn status(&self) -> Result<Status, Failure>;

    /// Returns the endpoints.
    ///
    /// # Errors
    ///
    /// None yet.
    fn endpoints(&self) -> Result<Vec<EndpointView>, Failure>;

    /// Connects a pod.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] for what cannot be, [`Kind::Conflict`] with what is there,
    /// [`Kind::Exhausted`] when there is no address left.
    fn add_endpoint(&self, endpoint: &EndpointSpec) -> Result<EndpointView, Failure>;

    /// Disconnects a pod and gives its addresses back.
    ///
    /// # Errors
    ///
    /// [`Kind::Missing`] if there is none of this name.
    fn remove_endpoint(&self, id: &str) -> Result<(), Failure>;

    /// Gives a pod other names, labels and ports; of the specification nothing else counts.
    ///
    /// # Errors
    ///
    /// [`Kind::Missing`] if there is none of this name, [`Kind::Invalid`] for what cannot be.
    fn set_endpoint_labels(&self, id: &str, labels: &EndpointSpec)
    -> Result<EndpointView, Failure>;

    /// Returns the policy documents, also those that cannot be used.
    ///
    /// # Errors
    ///
    /// None yet.
    fn policies(&self) -> Result<PolicyList, Failure>;

    /// Returns a policy document with its text.
    ///
    /// # Errors
    ///
    /// [`Kind::Missing`] if there is none of this name.
    fn policy(&self, id: &DocumentId) -> Result<PolicyDetail, Failure>;

    /// Puts policy documents in force, and keeps them over restarts. Where one of them cannot be
    /// used, none is put in force unless the request says so.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] for a request without a document, [`Kind::Internal`] when they do not fit
    /// into the maps; then nothing is changed.
    fn apply_policies(&self, request: &ApplyRequest) -> Result<ApplyReport, Failure>;

    /// Takes policy documents out of force that were applied.
    ///
    /// # Errors
    ///
    /// [`Kind::Missing`] for one that there is not, [`Kind::Conflict`] for one of a file that the
    /// agent follows; then nothing is changed.
    fn delete_policies(&self, request: &DeleteRequest) -> Result<DeleteReport, Failure>;

    /// Returns whether a flow would be let through, and why.
    ///
    /// # Errors
    ///
    /// [`Kind::Missing`] for an end that is not there, [`Kind::Invalid`] for one that cannot be read.
    fn explain(&self, request: &ExplainRequest) -> Result<Explained, Failure>;

    /// Has what would be denied let through and told, or not any more.
    ///
    /// # Errors
    ///
    /// [`Kind::Missing`] if there is no such endpoint.
    fn set_audit(&self, request: &AuditRequest) -> Result<(), Failure>;

    /// Returns the identities that pods and prefixes have, by number.
    ///
    /// # Errors
    ///
    /// None yet.
    fn identities(&self) -> Result<Vec<IdentityEntry>, Failure>;

    /// Begins to list the flows that fit: lines of [`FlowPair`].
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] for an order that is none, [`Kind::Missing`] where the filter names who is
    /// not there, [`Kind::Internal`] when maps cannot be read.
    fn list_flows(&self, filter: &FlowFilter, order: FlowOrder)
    -> Result<Box<dyn Source>, Failure>;

    /// Returns how many flows fit.
    ///
    /// # Errors
    ///
    /// As [`Node::list_flows`].
    fn count_flows(&self, filter: &FlowFilter) -> Result<usize, Failure>;

    /// Begins to follow the flows that fit: lines of [`FlowChange`], with each read those of the
    /// changes since the last. It has no last line.
    ///
    /// # Errors
    ///
    /// As [`Node::list_flows`].
    fn follow_flows(&self, filter: &FlowFilter) -> Result<Box<dyn Source>, Failure>;

    /// Removes flows, or counts those that it would remove. The request was
    /// [checked](FlushRequest::check).
    ///
    /// # Errors
    ///
    /// As [`Node::list_flows`].
    fn flush_flows(&self, request: &FlushRequest) -> Result<FlushReport, Failure>;

    /// Returns the entries of the flow tables as they are, each direction on its own.
    ///
    /// # Errors
    ///
    /// [`Kind::Internal`] when maps cannot be read.
    fn flow_halves(&self) -> Result<Vec<FlowView>, Failure>;

    /// Returns the counters that are not zero.
    ///
    /// # Errors
    ///
    /// [`Kind::Internal`] when maps cannot be read.
    fn metrics(&self) -> Result<Vec<MetricView>, Failure>;

    /// Returns how many flows policy has judged, by direction and verdict.
    ///
    /// # Errors
    ///
    /// [`Kind::Internal`] when maps cannot be read.
    fn policy_counts(&self) -> Result<Vec<PolicyCount>, Failure>;

    /// Returns how full the maps are.
    ///
    /// # Errors
    ///
    /// [`Kind::Internal`] when maps cannot be read.
    fn map_usage(&self) -> Result<Vec<MapUsage>, Failure>;

    /// Returns the stream of events.
    fn feed(&self) -> &Feed;

    /// Returns how many events were not told, by drop reason.
    ///
    /// # Errors
    ///
    /// [`Kind::Internal`] when maps cannot be read.
    fn untold_events(&self) -> Result<Vec<UntoldView>, Failure>;

    /// Returns what has happened to flows and their entries, by reason.
    ///
    /// # Errors
    ///
    /// [`Kind::Internal`] when maps cannot be read.
    fn tallies(&self) -> Result<Tallies, Failure>;

    /// Returns the peers.
    ///
    /// # Errors
    ///
    /// None yet.
    fn peers(&self) -> Result<Vec<PeerView>, Failure>;

    /// Adds a peer, or replaces the one of the same name.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] for what cannot be, or clashes with another peer.
    fn put_peer(&self, peer: &PeerSpec) -> Result<PeerView, Failure>;

    /// Forgets a peer.
    ///
    /// # Errors
    ///
    /// [`Kind::Missing`] if there is none of this name.
    fn remove_peer(&self, name: &str) -> Result<(), Failure>;

    /// Returns the address pools and who holds what.
    ///
    /// # Errors
    ///
    /// [`Kind::Internal`] when the store cannot be read.
    fn addresses(&self) -> Result<Addresses, Failure>;
}
