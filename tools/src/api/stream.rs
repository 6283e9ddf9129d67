//! The client's side of the stream of events.

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::UnixStream,
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinHandle,
    time,
};

use super::{
    Item,
    client::{Client, refusal},
};
use crate::error::{Error, Result};

/// A stream of events, to be iterated over outside of asynchronous code.
///
/// It ends where the agent ends it: after what was kept, or when the agent stops; and with SIGINT
/// or SIGTERM if [`EventStream::until_signal`] was asked for.
#[derive(Debug)]
pub struct EventStream {
    client: Client,
    request: String,
    runtime: runtime::Runtime,
    body: Incoming,
    connection: JoinHandle<hyper::Result<()>>,
    /// Bytes that are no whole line yet.
    rest: Vec<u8>,
    stop: Option<[Signal; 2]>,
    interrupted: bool,
}

impl EventStream {
    /// Asks for a stream.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub(super) fn open(client: &Client, path: &str) -> Result<Self> {
        let request = format!("{} {path}", Method::GET);
        let broken = |source| client.broken(&Method::GET, path, source);
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(broken)?;
        let asked =
            runtime.block_on(async { time::timeout(client.patience(), ask(client, path)).await });
        let (body, connection) = asked.unwrap_or_else(|_elapsed| {
            Err(Error::Silent {
                socket: client.socket().to_owned(),
                request: request.clone(),
                patience: client.patience(),
            })
        })?;
        Ok(Self {
            client: client.clone(),
            request,
            runtime,
            body,
            connection,
            rest: Vec::new(),
            stop: None,
            interrupted: false,
        })
    }

    /// Has the stream end when the process is asked to, by SIGINT or SIGTERM.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when there is no handler for signals to be had.
    pub fn until_signal(mut self) -> Result<Self> {
        let failed = || Error::os("install a handler for", "SIGINT and SIGTERM");
        let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
        // Handlers belong to the runtime that they are made in.
        let [interrupt, terminate] = self.runtime.block_on(async { kinds.map(signal) });
        self.stop = Some([interrupt.map_err(failed())?, terminate.map_err(failed())?]);
        Ok(self)
    }

    /// Whether it was a signal that ended the stream.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.interrupted
    }

    /// Takes the next whole line out of what was received.
    fn line(&mut self) -> Option<Result<Item>> {
        let end = self.rest.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.rest.drain(..=end).collect();
        Some(
            serde_json::from_slice(&line).map_err(|source| Error::Answer {
                request: self.request.clone(),
                source,
            }),
        )
    }
}

impl Iterator for EventStream {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(line) = self.line() {
                return Some(line);
            }
            let Self {
                runtime,
                body,
                stop,
                ..
            } = self;
            let frame = runtime.block_on(async {
                tokio::select! {
                    frame = body.frame() => Some(frame),
                    () = stopped(stop) => None,
                }
            });
            let Some(frame) = frame else {
                self.interrupted = true;
                return None;
            };
            match frame? {
                Ok(frame) => {
                    let data = frame.into_data().unwrap_or_default();
                    self.rest.extend_from_slice(&data);
                }
                Err(source) => {
                    return Some(Err(Error::Conversation {
                        socket: self.client.socket().to_owned(),
                        request: self.request.clone(),
                        source: Box::new(source),
                    }));
                }
            }
        }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Waits for a signal; without handlers, for ever.
async fn stopped(stop: &mut Option<[Signal; 2]>) {
    match stop {
        Some([interrupt, terminate]) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        None => std::future::pending().await,
    }
}

async fn ask(client: &Client, path: &str) -> Result<(Incoming, JoinHandle<hyper::Result<()>>)> {
    let stream = UnixStream::connect(client.socket())
        .await
        .map_err(|source| Error::Unreachable {
            socket: client.socket().to_owned(),
            source,
        })?;
    let request = Request::builder()
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::CONNECTION, "close")
        .body(Full::<Bytes>::default())
        .map_err(|source| client.broken(&Method::GET, path, source))?;
    let broken = |source| client.broken(&Method::GET, path, source);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    if !status.is_success() {
        let body = response.into_body().collect().await.map_err(broken)?;
        return Err(refusal(status, &body.to_bytes()).into());
    }
    Ok((response.into_body(), connection))
}
