//! A TCP connection between pods of two nodes.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use datapath_conformance::family::Family;
use socket2::{Domain, SockAddr, Type};

use crate::{
    error::{Error, Result},
    rig::{Rig, pod_address},
};

/// How long one end may wait for the other. What is stuck for as long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Both ends of a connection, from the first pod of node 1 to the first pod of node 2.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
}

impl Connection {
    /// Connects, sends one byte each way, and makes sure that the flow is established on both
    /// nodes.
    pub(super) fn open(rig: &Rig, family: Family) -> Result<Self> {
        let domain = match family {
            Family::Ipv4 => Domain::IPV4,
            Family::Ipv6 => Domain::IPV6,
        };
        let to = pod_address(2, 1, family);
        let listener = rig.pod(2, 1)?.socket(domain, Type::STREAM, None)?;
        let client = rig.pod(1, 1)?.socket(domain, Type::STREAM, None)?;
        let connect = || {
            listener.bind(&SockAddr::from(SocketAddr::new(to, 0)))?;
            listener.listen(1)?;
            let address = listener.local_addr()?;
            client.connect_timeout(&address, PATIENCE)?;
            let (server, _) = listener.accept()?;
            Ok((TcpStream::from(client), TcpStream::from(server)))
        };
        let (client, server) = connect().map_err(failed("connect to", to))?;
        let mut this = Self { client, server };
        this.begin().map_err(failed("talk to", to))?;
        this.check(rig)?;
        Ok(this)
    }

    /// Makes sure that the datapath forwards it as an established flow.
    pub(super) fn check(&self, rig: &Rig) -> Result<()> {
        let ends = self.client.local_addr().and_then(|client| {
            let server = self.client.peer_addr()?;
            Ok((client, server))
        });
        let (client, server) = ends.map_err(failed("ask for the ends of", "a connection"))?;
        for node in [1, 2] {
            let from = (client.ip(), std::iter::once(client.port()));
            rig.check_established(node, "tcp", from, server)?;
        }
        Ok(())
    }

    fn begin(&mut self) -> io::Result<()> {
        for end in [&self.client, &self.server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(PATIENCE))?;
            end.set_write_timeout(Some(PATIENCE))?;
        }
        let mut byte = [0];
        self.client.write_all(&byte)?;
        self.server.read_exact(&mut byte)?;
        self.server.write_all(&byte)?;
        self.client.read_exact(&mut byte)?;
        // The other node has the last acknowledgement when something follows it.
        self.client.write_all(&byte)?;
        self.server.read_exact(&mut byte)
    }
}

/// Makes the function that turns an I/O error of a connection into ours, for `map_err`.
pub(super) fn failed(
    operation: &'static str,
    object: impl ToString,
) -> impl FnOnce(io::Error) -> Error {
    Error::os(operation, object)
}
