//! The client's side of an answer that comes line by line.

use std::io::BufRead;

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request,
    body::{Buf, Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::de::Error as _;
use tokio::{
    net::UnixStream,
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinHandle,
    time,
};

use super::client::{Client, refusal};
use crate::error::{Error, Result};

/// Lines of an answer as they come, to be read outside of asynchronous code.
#[derive(Debug)]
pub(super) struct Lines {
    client: Client,
    request: String,
    runtime: runtime::Runtime,
    body: Incoming,
    connection: JoinHandle<hyper::Result<()>>,
    /// What was received and not read yet.
    rest: Bytes,
    /// The beginning of a line whose end is in `rest`, or still to come.
    begun: Vec<u8>,
    stop: Option<[Signal; 2]>,
    interrupted: bool,
}

impl Lines {
    /// Asks for them.
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
            rest: Bytes::new(),
            begun: Vec::new(),
            stop: None,
            interrupted: false,
        })
    }

    /// Has them end when the process is asked to, by SIGINT or SIGTERM.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when there is no handler for signals to be had.
    pub(super) fn until_signal(mut self) -> Result<Self> {
        let failed = || Error::os("install a handler for", "SIGINT and SIGTERM");
        let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
        // Handlers belong to the runtime that they are made in.
        let [interrupt, terminate] = self.runtime.block_on(async { kinds.map(signal) });
        self.stop = Some([interrupt.map_err(failed())?, terminate.map_err(failed())?]);
        Ok(self)
    }

    /// Whether it was a signal that ended them.
    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupted
    }

    /// Has `read` see the next line, without its line feed; none at the end.
    ///
    /// # Errors
    ///
    /// [`Error::Conversation`], [`Error::Answer`] for a line that does not read as it should.
    pub(super) fn next<'a, T>(
        &'a mut self,
        read: impl FnOnce(&'a str) -> serde_json::Result<T>,
    ) -> Option<Result<T>> {
        // Of the last one, which was there until now.
        self.begun.clear();
        loop {
            let mut rest = self.rest.as_ref();
            // It is in memory.
            let taken = rest.read_until(b'\n', &mut self.begun).unwrap_or(0);
            self.rest.advance(taken);
            if self.begun.pop_if(|last| *last == b'\n').is_some() {
                break;
            }
            match self.receive() {
                Some(Ok(frame)) => self.rest = frame,
                Some(Err(error)) => return Some(Err(error)),
                None => return None,
            }
        }
        let request = &self.request;
        // Once for the line, and not for every word in it.
        let text = str::from_utf8(&self.begun).map_err(serde_json::Error::custom);
        Some(text.and_then(read).map_err(|source| Error::Answer {
            request: request.clone(),
            source,
        }))
    }

    /// Returns what comes next, of whatever length; none at the end.
    ///
    /// # Errors
    ///
    /// [`Error::Conversation`].
    pub(super) fn receive(&mut self) -> Option<Result<Bytes>> {
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
        let data = frame?.map(|frame| frame.into_data().unwrap_or_default());
        Some(data.map_err(|source| Error::Conversation {
            socket: self.client.socket().to_owned(),
            request: self.request.clone(),
            source: Box::new(source),
        }))
    }
}

impl Drop for Lines {
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
