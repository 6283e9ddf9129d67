//! The agent's side of the API.

use std::{future::Future, io, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        ConnectInfo, DefaultBodyLimit, Path, Query, Request, State,
        connect_info::Connected,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
    serve::IncomingStream,
};
use futures::stream;
use nix::unistd::Uid;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixListener, sync::watch, task, time};

use super::{
    ApplyRequest, AuditRequest, DeleteRequest, EndpointSpec, EventQuery, ExplainRequest, Failure,
    Kind, Node, PeerSpec, flows, openmetrics, parse_document_id,
};

/// Longest body that is read. A peer with all its pods takes some 70 bytes a pod.
const MAX_BODY_BYTES: usize = 16 << 20;

/// How long connections may take to end once the agent stops.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) type Shared = State<Arc<dyn Node>>;
pub(super) type Body = Result<Bytes, BytesRejection>;

/// Answers requests until `stop` is ready, then ends what is under way.
///
/// Only the superuser and the user that the agent runs as are answered.
///
/// # Errors
///
/// What the listener failed with.
pub async fn serve(
    listener: UnixListener,
    node: Arc<dyn Node>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (stopping, mut stopped) = watch::channel(false);
    let closing = Arc::clone(&node);
    let stop = async move {
        stop.await;
        // Or the streams would keep their connections open.
        closing.feed().close();
        stopping.send_replace(true);
    };
    let guarded = router(node).layer(middleware::from_fn(check_caller));
    let service = guarded.into_make_service_with_connect_info::<Caller>();
    let server = axum::serve(listener, service).with_graceful_shutdown(stop);
    let too_long = async move {
        // The channel ends with `stop`, at the latest.
        let _ended = stopped.wait_for(|stopped| *stopped).await;
        time::sleep(PATIENCE).await;
    };
    tokio::select! {
        outcome = server => outcome,
        () = too_long => {
            tracing::warn!("a client keeps its connection open, left behind");
            Ok(())
        }
    }
}

/// Returns the API of a node, without the check of who asks.
pub fn router(node: Arc<dyn Node>) -> Router {
    Router::new()
        .route("/v1/status", get(|node: Shared| answer(node, Node::status)))
        .route(
            "/v1/endpoints",
            get(|node: Shared| answer(node, Node::endpoints)).post(add_endpoint),
        )
        .route("/v1/endpoints/{id}", delete(remove_endpoint))
        .route("/v1/endpoints/{id}/labels", put(set_endpoint_labels))
        .route(
            "/v1/policies",
            get(|node: Shared| answer(node, Node::policies)),
        )
        .route("/v1/policies/{id}", get(policy))
        .route("/v1/policies/apply", post(apply_policies))
        .route("/v1/policies/delete", post(delete_policies))
        .route("/v1/policies/explain", post(explain))
        .route("/v1/policies/audit", put(set_audit))
        .route(
            "/v1/identities",
            get(|node: Shared| answer(node, Node::identities)),
        )
        .route("/v1/flows", get(flows::list))
        .route("/v1/flows/count", get(flows::count))
        .route("/v1/flows/changes", get(flows::follow))
        .route("/v1/flows/flush", post(flows::flush))
        .route("/v1/flows/halves", get(flows::halves))
        .route(
            "/v1/metrics",
            get(|node: Shared| answer(node, Node::metrics)),
        )
        .route(
            "/v1/metrics/policy",
            get(|node: Shared| answer(node, Node::policy_counts)),
        )
        .route(
            "/v1/maps",
            get(|node: Shared| answer(node, Node::map_usage)),
        )
        .route("/v1/events", get(events))
        .route(
            "/v1/events/status",
            get(|node: Shared| answer(node, |node| Ok(node.feed().status()))),
        )
        .route(
            "/v1/events/untold",
            get(|node: Shared| answer(node, Node::untold_events)),
        )
        .route(
            "/v1/peers",
            get(|node: Shared| answer(node, Node::peers)).put(put_peer),
        )
        .route("/v1/peers/{name}", delete(remove_peer))
        .route(
            "/v1/ipam",
            get(|node: Shared| answer(node, Node::addresses)),
        )
        .route("/healthz", get("ok\n"))
        .route("/metrics", get(metrics))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(node)
}

async fn add_endpoint(node: Shared, body: Body) -> Result<Response, Failure> {
    let endpoint: EndpointSpec = read("endpoint", body)?;
    let added = call(node, move |node| node.add_endpoint(&endpoint)).await?;
    Ok((StatusCode::CREATED, Json(added)).into_response())
}

async fn remove_endpoint(node: Shared, Path(id): Path<String>) -> Result<StatusCode, Failure> {
    call(node, move |node| node.remove_endpoint(&id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn set_endpoint_labels(
    node: Shared,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, Failure> {
    let labels: EndpointSpec = read("endpoint", body)?;
    answer(node, move |node| node.set_endpoint_labels(&id, &labels)).await
}

async fn policy(node: Shared, Path(id): Path<String>) -> Result<Response, Failure> {
    let id = parse_document_id(&id)?;
    answer(node, move |node| node.policy(&id)).await
}

async fn apply_policies(node: Shared, body: Body) -> Result<Response, Failure> {
    let request: ApplyRequest = read("request to apply policies", body)?;
    answer(node, move |node| node.apply_policies(&request)).await
}

async fn delete_policies(node: Shared, body: Body) -> Result<Response, Failure> {
    let request: DeleteRequest = read("request to delete policies", body)?;
    answer(node, move |node| node.delete_policies(&request)).await
}

async fn explain(node: Shared, body: Body) -> Result<Response, Failure> {
    let request: ExplainRequest = read("request to explain a flow", body)?;
    answer(node, move |node| node.explain(&request)).await
}

async fn set_audit(node: Shared, body: Body) -> Result<StatusCode, Failure> {
    let request: AuditRequest = read("request to audit", body)?;
    call(node, move |node| node.set_audit(&request)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn put_peer(node: Shared, body: Body) -> Result<Response, Failure> {
    let peer: PeerSpec = read("peer", body)?;
    answer(node, move |node| node.put_peer(&peer)).await
}

async fn remove_peer(node: Shared, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    call(node, move |node| node.remove_peer(&name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Streams events, a line of JSON each.
async fn events(
    State(node): Shared,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(pairs) =
        query.map_err(|rejection| Failure::of(Kind::Invalid, rejection.body_text()))?;
    let query = EventQuery::of_pairs(pairs).map_err(|wrong| {
        Failure::of(Kind::Invalid, format!("the query cannot be used: {wrong}"))
    })?;
    let lines = stream::unfold(node.feed().subscribe(query), |mut items| async {
        let item = items.next().await?;
        let line = serde_json::to_vec(&*item).map(|mut line| {
            line.push(b'\n');
            Bytes::from(line)
        });
        Some((line, items))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, axum::body::Body::from_stream(lines)).into_response())
}

async fn metrics(node: Shared) -> Result<Response, Failure> {
    let text = call(node, openmetrics::render).await?;
    Ok(([(header::CONTENT_TYPE, openmetrics::CONTENT_TYPE)], text).into_response())
}

async fn unknown(uri: Uri) -> Failure {
    let error = format!(
        "there is nothing at {}: see /v1/status, /v1/endpoints, /v1/flows, /v1/metrics, \
         /v1/maps, /v1/events, /v1/peers, /v1/policies, /v1/identities, /v1/ipam, /healthz and \
         /metrics",
        uri.path()
    );
    Failure::of(Kind::Missing, error)
}

async fn wrong_method(request: Request) -> Failure {
    let (method, path) = (request.method(), request.uri().path());
    Failure::of(Kind::Method, format!("{path} does not take {method}"))
}

pub(super) async fn answer<T: Serialize + Send + 'static>(
    node: Shared,
    work: impl FnOnce(&(dyn Node + 'static)) -> Result<T, Failure> + Send + 'static,
) -> Result<Response, Failure> {
    let value = call(node, work).await?;
    Ok(Json(value).into_response())
}

/// Runs what may block away from the thread that serves.
pub(super) async fn call<T: Send + 'static>(
    State(node): Shared,
    work: impl FnOnce(&(dyn Node + 'static)) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let outcome = task::spawn_blocking(move || work(&*node)).await;
    outcome.unwrap_or_else(|panic| {
        tracing::error!(%panic, "a request made the agent panic");
        Err(Failure::new(Kind::Internal, &panic))
    })
}

pub(super) fn read<T: DeserializeOwned>(what: &str, body: Body) -> Result<T, Failure> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let error = format!("the body is longer than {MAX_BODY_BYTES} bytes");
            Failure::of(Kind::TooLong, error)
        }
        _ => Failure::of(Kind::Invalid, rejection.body_text()),
    })?;
    serde_json::from_slice(&body).map_err(|error| Failure {
        causes: vec![error.to_string()],
        ..Failure::of(Kind::Invalid, format!("the body is no {what} in JSON"))
    })
}

/// The user at the other end of a connection, if the kernel tells.
#[derive(Clone, Copy, Debug)]
struct Caller(Option<Uid>);

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred();
        Self(
            credentials
                .ok()
                .map(|credentials| Uid::from_raw(credentials.uid())),
        )
    }
}

/// The socket's mode keeps others out already, but only from when it is set, and not from a
/// descriptor that was passed on.
async fn check_caller(
    ConnectInfo(Caller(uid)): ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    match uid {
        Some(uid) if uid.is_root() || uid == Uid::effective() => next.run(request).await,
        _ => {
            let who = uid.map_or_else(|| "someone".to_owned(), |uid| format!("user {uid}"));
            let error = format!("{who} may not ask this agent: ask as root");
            Failure::of(Kind::Forbidden, error).into_response()
        }
    }
}
