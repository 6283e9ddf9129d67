//! An open TCP connection, and its flow.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
};

use datapath_user::FlowView;

use super::{Namespace, PATIENCE};

/// An open TCP connection.
pub(crate) struct Stream {
    near: TcpStream,
    far: TcpStream,
}

impl Stream {
    pub(crate) fn open(from: &Namespace, to: &Namespace, address: IpAddr) -> Self {
        let server = to.run(|| TcpListener::bind((address, 0)).unwrap());
        let target = server.local_addr().unwrap();
        let near = from.run(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap());
        let (far, _) = server.accept().unwrap();
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        Self { near, far }
    }

    /// Sends something there and back.
    pub(crate) fn echo(&mut self) {
        let mut heard = [0; 5];
        self.near.write_all(b"there").unwrap();
        self.far.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"there");
        self.far.write_all(b"back!").unwrap();
        self.near.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"back!");
    }

    /// The number of its flow, which an entry made anew would not have.
    pub(crate) fn pair(&self, flows: &[FlowView]) -> u32 {
        let source = self.near.local_addr().unwrap();
        let target = self.near.peer_addr().unwrap();
        let its = |flow: &&FlowView| {
            SocketAddr::new(flow.source, flow.source_port) == source
                && SocketAddr::new(flow.destination, flow.destination_port) == target
        };
        let flow = flows.iter().find(its).unwrap();
        assert_eq!(flow.table, "established");
        flow.pair
    }
}
