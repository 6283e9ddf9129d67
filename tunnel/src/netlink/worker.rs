//! The thread that owns the netlink socket.
//!
//! Callers may sit inside a tokio runtime of their own, where `block_on` panics, or have none at
//! all. So the asynchronous side lives on a thread of its own, which also keeps the socket in one
//! namespace whatever its callers do; the caller waits on a plain channel.

use std::{
    fs::File,
    io,
    path::Path,
    sync::mpsc::{self as std_mpsc, SyncSender},
    thread::{self, JoinHandle},
};

use futures::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use nix::sched::{CloneFlags, setns};
use rtnetlink::{
    Handle, new_connection_with_strict_check,
    packet_core::{ErrorMessage, NLM_F_DUMP_INTR, NetlinkMessage, NetlinkPayload, NlasIterator},
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

use crate::error::{KernelError, NetlinkError};

/// Messages of the route family, with their netlink header.
pub(super) type Message = NetlinkMessage<RouteNetlinkMessage>;

/// Why an exchange with the kernel gave no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The kernel refused.
    Kernel(KernelError),
    /// The list changed while the kernel wrote it (`NLM_F_DUMP_INTR`).
    Interrupted,
    /// The socket or the thread is gone.
    Closed,
}

/// What an exchange gives: the messages before the acknowledgement.
type Answer = Result<Vec<RouteNetlinkMessage>, Failure>;

/// The running thread. Dropping it ends the thread and waits for it.
#[derive(Debug)]
pub(super) struct Worker {
    /// `None` only while it is being dropped.
    jobs: Option<UnboundedSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is asked to do.
enum Job {
    /// An exchange on its route socket.
    Exchange {
        request: Message,
        answer: SyncSender<Answer>,
    },
    /// Anything that has to be done in its namespace, and takes no longer than an exchange.
    Run(Box<dyn FnOnce() + Send>),
}

impl Worker {
    /// Starts the thread: in the calling thread's namespace, or in the one at `netns`.
    pub(super) fn start(netns: Option<&Path>) -> Result<Self, NetlinkError> {
        let namespace = match netns {
            Some(path) => {
                let file = File::open(path).map_err(|source| open_error(path, source))?;
                Some((path.to_owned(), file))
            }
            None => None,
        };
        let (jobs, queue) = unbounded_channel();
        let (started, start) = std_mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("netlink".to_owned())
            .spawn(move || {
                if let Some((path, file)) = namespace
                    && let Err(errno) = setns(&file, CloneFlags::CLONE_NEWNET)
                {
                    // The receiver waits for exactly this, it cannot be gone.
                    let _ = started.send(Err(open_error(&path, errno.into())));
                    return;
                }
                match Server::new() {
                    Ok(server) => {
                        let _ = started.send(Ok(()));
                        server.run(queue);
                    }
                    Err(source) => {
                        let _ = started.send(Err(NetlinkError::Thread { source }));
                    }
                }
            })
            .map_err(|source| NetlinkError::Thread { source })?;
        let worker = Self {
            jobs: Some(jobs),
            thread: Some(thread),
        };
        match start.recv() {
            Ok(outcome) => outcome.map(|()| worker),
            Err(_) => Err(NetlinkError::Thread {
                source: io::Error::other("it ended before it was ready"),
            }),
        }
    }

    /// Sends one request and waits for everything the kernel answers.
    pub(super) fn exchange(&self, request: Message) -> Answer {
        let (answer, outcome) = std_mpsc::sync_channel(1);
        self.send(Job::Exchange { request, answer })?;
        outcome.recv().map_err(|_| Failure::Closed)?
    }

    /// Runs something in the thread's namespace.
    pub(super) fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, Failure> {
        let (answer, outcome) = std_mpsc::sync_channel(1);
        self.send(Job::Run(Box::new(move || {
            // A caller that no longer waits has given up on the answer.
            let _ = answer.send(work());
        })))?;
        outcome.recv().map_err(|_| Failure::Closed)
    }

    fn send(&self, job: Job) -> Result<(), Failure> {
        let jobs = self.jobs.as_ref().ok_or(Failure::Closed)?;
        jobs.send(job).map_err(|_| Failure::Closed)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // Waiting makes the end visible: afterwards nothing holds the namespace any more.
            // A thread that panicked has said so on stderr, and there is nothing left to undo.
            let _ = thread.join();
        }
    }
}

/// The thread's side: runtime and socket, made before the first request is taken.
struct Server {
    runtime: Runtime,
    handle: Handle,
}

impl Server {
    fn new() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let handle = {
            let _inside = runtime.enter();
            let (mut connection, handle, _) = new_connection_with_strict_check()?;
            // Explicit ends tell a finished answer from one that was cut off.
            connection.set_forward_ack(true);
            connection.set_forward_done(true);
            let socket = connection.socket_mut();
            let socket: &mut rtnetlink::sys::Socket =
                rtnetlink::sys::AsyncSocket::socket_mut(socket);
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            runtime.spawn(connection);
            handle
        };
        Ok(Self { runtime, handle })
    }

    /// Serves until every sender is gone.
    ///
    /// One exchange at a time: the kernel refuses a second list on a socket that is listing.
    fn run(self, mut queue: UnboundedReceiver<Job>) {
        let Self { runtime, handle } = self;
        runtime.block_on(async move {
            while let Some(job) = queue.recv().await {
                match job {
                    Job::Exchange { request, answer } => {
                        // A caller that no longer waits has given up on the answer.
                        let _ = answer.send(exchange(&mut handle.clone(), request).await);
                    }
                    Job::Run(work) => work(),
                }
            }
        });
    }
}

async fn exchange(handle: &mut Handle, request: Message) -> Answer {
    let mut stream = handle.request(request).map_err(|_| Failure::Closed)?;
    let mut messages = Vec::new();
    let mut interrupted = false;
    while let Some(message) = stream.next().await {
        let (header, payload) = message.into_parts();
        interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
        let code = match payload {
            NetlinkPayload::InnerMessage(message) => {
                messages.push(message);
                continue;
            }
            NetlinkPayload::Error(error) if error.code.is_some() => {
                return Err(Failure::Kernel(refusal(header.flags, &error)));
            }
            NetlinkPayload::Error(_) => 0,
            NetlinkPayload::Done(done) => done.code,
            _ => continue,
        };
        return match (code, interrupted) {
            (0, false) => Ok(messages),
            (0, true) => Err(Failure::Interrupted),
            (code, _) => Err(Failure::Kernel(KernelError {
                errno: code.saturating_abs(),
                message: None,
            })),
        };
    }
    Err(Failure::Closed)
}

/// Reads the kernel's error message: number, and the sentence among the attributes.
///
/// Layout (include/uapi/linux/netlink.h, `struct nlmsgerr`): the header of the request (16 bytes),
/// its payload unless `NLM_F_CAPPED`, attributes if `NLM_F_ACK_TLVS`.
pub(super) fn refusal(flags: u16, error: &ErrorMessage) -> KernelError {
    const NLM_F_CAPPED: u16 = 0x100;
    const NLM_F_ACK_TLVS: u16 = 0x200;
    const HEADER_LEN: usize = 16;
    const NLMSGERR_ATTR_MSG: u16 = 1;

    let request = error.header.as_slice();
    let skipped = if flags & NLM_F_CAPPED != 0 {
        HEADER_LEN
    } else {
        let len = request
            .first_chunk()
            .map_or(0, |len| u32::from_ne_bytes(*len));
        usize::try_from(len).map_or(HEADER_LEN, |len| len.next_multiple_of(4))
    };
    let attributes = if flags & NLM_F_ACK_TLVS != 0 {
        request.get(skipped..).unwrap_or_default()
    } else {
        &[]
    };
    let message = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|attribute| {
            let text = attribute.value();
            let text = text.strip_suffix(&[0]).unwrap_or(text);
            String::from_utf8_lossy(text).into_owned()
        });
    KernelError {
        errno: error.raw_code().saturating_abs(),
        message,
    }
}

fn open_error(path: &Path, source: io::Error) -> NetlinkError {
    NetlinkError::OpenNamespace {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::{ErrorBuffer, Parseable};

    use super::*;

    const CAPPED: u16 = 0x100;
    const TLVS: u16 = 0x200;

    #[test]
    fn the_sentence_is_found_behind_the_request() {
        // NLMSGERR_ATTR_OFFS (2), then NLMSGERR_ATTR_MSG (1) with its terminator and padding.
        let attributes = b"\x08\0\x02\0\x10\0\0\0\x0b\0\x01\0No way\0\0";
        let capped = [&request(16)[..], attributes].concat();
        // A request of 17 bytes is padded to 20.
        let whole = [&request(17)[..], &[0; 4], attributes].concat();
        for (flags, bytes, message) in [
            (CAPPED | TLVS, &capped, Some("No way")),
            (TLVS, &whole, Some("No way")),
            (CAPPED, &capped, None),
            (0, &whole, None),
        ] {
            let refusal = refuse(flags, bytes);
            assert_eq!(refusal.errno, 22);
            assert_eq!(refusal.message.as_deref(), message, "{flags:#x}");
        }
    }

    #[test]
    fn a_broken_answer_still_gives_the_number() {
        for bytes in [
            &[][..],
            &[1],
            &request(u32::MAX),
            &request(16),
            &[request(16), request(0)].concat(),
        ] {
            let refusal = refuse(TLVS, bytes);
            assert_eq!((refusal.errno, refusal.message), (22, None));
        }
    }

    /// The header of a request that says it has this length.
    fn request(len: u32) -> [u8; 16] {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&len.to_ne_bytes());
        header
    }

    fn refuse(flags: u16, rest: &[u8]) -> KernelError {
        let bytes = [&(-22_i32).to_ne_bytes()[..], rest].concat();
        let error = ErrorMessage::parse(&ErrorBuffer::new_checked(&bytes).unwrap()).unwrap();
        refusal(flags, &error)
    }
}
