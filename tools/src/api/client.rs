//! The other side of the API, for programs that can wait.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, runtime, time};

use super::{
    Addresses, ApplyReport, ApplyRequest, AuditRequest, ChangeStream, DeleteReport, DeleteRequest,
    DocumentId, EndpointSpec, EndpointView, EventQuery, EventStream, ExplainRequest, Explained,
    Failure, FeedStatus, FlowCount, FlowFilter, FlowOrder, FlowPace, FlowStream, FlowView,
    FlushReport, FlushRequest, IdentityEntry, Kind, MapUsage, MetricView, PeerSpec, PeerView,
    PolicyCount, PolicyDetail, PolicyList, Status, UntoldView,
};
use crate::error::{Error, Result};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What stays as it is in one part of a path (RFC 3986 section 2.3, `unreserved`).
const PART: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Asks an agent, one connection for each request. Its methods wait for the answer, so call them
/// outside of asynchronous code.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

impl Client {
    /// Takes the agent's socket. Whether there is one shows with the first request.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            patience: PATIENCE,
        }
    }

    /// Sets how long an answer may take.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Returns the agent's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How long an answer may take.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Asks whether the agent is ready.
    ///
    /// # Errors
    ///
    /// As every method: [`Error::Unreachable`], [`Error::Silent`], [`Error::Conversation`],
    /// [`Error::Refused`] with what the agent says, [`Error::Answer`].
    pub fn health(&self) -> Result<()> {
        self.ask(&Method::GET, "/healthz", Bytes::new())
            .map(|_ok| ())
    }

    /// Returns what the agent and its datapath are and do.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn status(&self) -> Result<Status> {
        self.get("/v1/status")
    }

    /// Returns the endpoints.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn endpoints(&self) -> Result<Vec<EndpointView>> {
        self.get("/v1/endpoints")
    }

    /// Connects a pod.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn add_endpoint(&self, endpoint: &EndpointSpec) -> Result<EndpointView> {
        self.send(&Method::POST, "/v1/endpoints", endpoint)
    }

    /// Disconnects a pod.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn remove_endpoint(&self, id: &str) -> Result<()> {
        self.delete("/v1/endpoints", id)
    }

    /// Gives a pod other names, labels and ports; of the specification nothing else counts.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn set_endpoint_labels(&self, id: &str, labels: &EndpointSpec) -> Result<EndpointView> {
        let path = format!("/v1/endpoints/{}/labels", utf8_percent_encode(id, PART));
        self.send(&Method::PUT, &path, labels)
    }

    /// Returns the policy documents, also those that cannot be used.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn policies(&self) -> Result<PolicyList> {
        self.get("/v1/policies")
    }

    /// Returns a policy document with its text.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn policy(&self, id: &DocumentId) -> Result<PolicyDetail> {
        let id = id.to_string();
        self.get(&format!("/v1/policies/{}", utf8_percent_encode(&id, PART)))
    }

    /// Puts policy documents in force, and has the agent keep them.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn apply_policies(&self, request: &ApplyRequest) -> Result<ApplyReport> {
        self.send(&Method::POST, "/v1/policies/apply", request)
    }

    /// Takes policy documents out of force that were applied.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn delete_policies(&self, documents: Vec<DocumentId>) -> Result<DeleteReport> {
        let request = DeleteRequest { documents };
        self.send(&Method::POST, "/v1/policies/delete", &request)
    }

    /// Asks whether a flow would be let through, and why.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn explain(&self, request: &ExplainRequest) -> Result<Explained> {
        self.send(&Method::POST, "/v1/policies/explain", request)
    }

    /// Has what would be denied let through and told, or not any more: of one endpoint, or of all.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn set_audit(&self, endpoint: Option<&str>, on: bool) -> Result<()> {
        let endpoint = endpoint.map(ToOwned::to_owned);
        let request = AuditRequest { endpoint, on };
        self.tell(&Method::PUT, "/v1/policies/audit", &request)
            .map(|_empty| ())
    }

    /// Returns the identities that pods and prefixes have, by number.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn identities(&self) -> Result<Vec<IdentityEntry>> {
        self.get("/v1/identities")
    }

    /// Begins to list the flows that fit.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn flows(&self, filter: &FlowFilter, order: FlowOrder) -> Result<FlowStream> {
        let path = query("/v1/flows", &[&self.encode(filter)?, &self.encode(&order)?]);
        FlowStream::open(self, &path)
    }

    /// Returns how many flows fit.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn count_flows(&self, filter: &FlowFilter) -> Result<FlowCount> {
        self.get(&query("/v1/flows/count", &[&self.encode(filter)?]))
    }

    /// Follows the flows that fit. The agent looks at its tables once in this interval, in
    /// milliseconds; without one, once a second.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn follow_flows(
        &self,
        filter: &FlowFilter,
        interval_ms: Option<u64>,
    ) -> Result<ChangeStream> {
        let pace = FlowPace { interval_ms };
        let path = query(
            "/v1/flows/changes",
            &[&self.encode(filter)?, &self.encode(&pace)?],
        );
        ChangeStream::open(self, &path)
    }

    /// Removes flows, or counts those that it would remove.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn flush_flows(&self, request: &FlushRequest) -> Result<FlushReport> {
        self.send(&Method::POST, "/v1/flows/flush", request)
    }

    /// Returns the entries of the flow tables as they are, each direction of a flow on its own.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn flow_halves(&self) -> Result<Vec<FlowView>> {
        self.get("/v1/flows/halves")
    }

    /// Returns the counters that are not zero.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn metrics(&self) -> Result<Vec<MetricView>> {
        self.get("/v1/metrics")
    }

    /// Returns how many flows policy has judged, by direction and verdict.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn policy_counts(&self) -> Result<Vec<PolicyCount>> {
        self.get("/v1/metrics/policy")
    }

    /// Returns how full the maps are.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn map_usage(&self) -> Result<Vec<MapUsage>> {
        self.get("/v1/maps")
    }

    /// Begins a stream of events.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn events(&self, wanted: &EventQuery) -> Result<EventStream> {
        EventStream::open(
            self,
            &query("/v1/events", &[&self.encode(&wanted.pairs())?]),
        )
    }

    /// Returns how many events the agent keeps, and how fast they come.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn feed_status(&self) -> Result<FeedStatus> {
        self.get("/v1/events/status")
    }

    /// Returns how many events were not told, by drop reason.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn untold_events(&self) -> Result<Vec<UntoldView>> {
        self.get("/v1/events/untold")
    }

    /// Returns the peers.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn peers(&self) -> Result<Vec<PeerView>> {
        self.get("/v1/peers")
    }

    /// Adds a peer, or replaces the one of the same name.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn put_peer(&self, peer: &PeerSpec) -> Result<PeerView> {
        self.send(&Method::PUT, "/v1/peers", peer)
    }

    /// Forgets a peer.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn remove_peer(&self, name: &str) -> Result<()> {
        self.delete("/v1/peers", name)
    }

    /// Returns the address pools and who holds what.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn addresses(&self) -> Result<Addresses> {
        self.get("/v1/ipam")
    }

    /// Encodes parameters for behind the `?`.
    fn encode(&self, parameters: &impl Serialize) -> Result<String> {
        serde_urlencoded::to_string(parameters)
            .map_err(|source| self.broken(&Method::GET, "a query", source))
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let body = self.ask(&Method::GET, path, Bytes::new())?;
        read(&Method::GET, path, &body)
    }

    fn send<T: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let answer = self.tell(method, path, body)?;
        read(method, path, &answer)
    }

    fn tell(&self, method: &Method, path: &str, body: &impl Serialize) -> Result<Bytes> {
        let body = serde_json::to_vec(body).map_err(|source| self.broken(method, path, source))?;
        self.ask(method, path, body.into())
    }

    fn delete(&self, collection: &str, name: &str) -> Result<()> {
        let path = format!("{collection}/{}", utf8_percent_encode(name, PART));
        self.ask(&Method::DELETE, &path, Bytes::new())
            .map(|_empty| ())
    }

    /// Makes a request and returns the body of the answer.
    fn ask(&self, method: &Method, path: &str, body: Bytes) -> Result<Bytes> {
        let broken = |source| self.broken(method, path, source);
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(broken)?;
        let exchange = self.exchange(method, path, body);
        let outcome = runtime.block_on(async { time::timeout(self.patience, exchange).await });
        outcome.unwrap_or_else(|_elapsed| {
            Err(Error::Silent {
                socket: self.socket.clone(),
                request: format!("{method} {path}"),
                patience: self.patience,
            })
        })
    }

    async fn exchange(&self, method: &Method, path: &str, body: Bytes) -> Result<Bytes> {
        let stream =
            UnixStream::connect(&self.socket)
                .await
                .map_err(|source| Error::Unreachable {
                    socket: self.socket.clone(),
                    source,
                })?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close")
            .body(Full::new(body))
            .map_err(|source| self.broken(method, path, source))?;
        let broken = |source| self.broken(method, path, source);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // What breaks the connection breaks the request, which says so.
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(broken)?
            .to_bytes();
        connection.abort();
        if status.is_success() {
            Ok(body)
        } else {
            Err(refusal(status, &body).into())
        }
    }

    pub(super) fn broken<E>(&self, method: &Method, path: &str, source: E) -> Error
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        Error::Conversation {
            socket: self.socket.clone(),
            request: format!("{method} {path}"),
            source: Box::new(source),
        }
    }
}

/// A path with parameters, those that are there.
fn query(path: &str, parameters: &[&str]) -> String {
    let given: Vec<_> = parameters.iter().filter(|part| !part.is_empty()).collect();
    let mut whole = path.to_owned();
    for (index, part) in given.into_iter().enumerate() {
        whole.push(if index == 0 { '?' } else { '&' });
        whole.push_str(part);
    }
    whole
}

fn read<T: DeserializeOwned>(method: &Method, path: &str, body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|source| Error::Answer {
        request: format!("{method} {path}"),
        source,
    })
}

pub(super) fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let failure = serde_json::from_slice(body).unwrap_or_else(|_not_ours| {
        let text = String::from_utf8_lossy(body);
        Failure::of(Kind::default(), format!("{status}: {}", text.trim()))
    });
    Failure {
        kind: Kind::of_status(status),
        ..failure
    }
}
