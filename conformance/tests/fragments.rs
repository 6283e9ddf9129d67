//! Datagrams larger than a packet arrive whole, wherever they go; and where the way through the
//! tunnel is narrower than a pod knows, what its sender lets be cut is cut.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

mod running;
mod util;

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use datapath_conformance::{
    Result,
    family::Family,
    frame::{Direction, FrameSocket},
    paths::pod_address,
    probe::UdpSession,
    topology::plan::UPLINK,
};
use nix::{libc, setsockopt_impl, sockopt_impl, sys::socket::setsockopt};
use running::{Lab, To};
use socket2::{Domain, Type};
use util::{OrPanic, at, both_families, patient};

sockopt_impl!(
    /// Whether packets may be fragmented on their way.
    MtuDiscover, SetOnly, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, i32
);

#[test]
fn large_datagrams_arrive_with_a_tunnel_over_ipv4() {
    large_datagrams(Family::Ipv4);
}

#[test]
fn large_datagrams_arrive_with_a_tunnel_over_ipv6() {
    large_datagrams(Family::Ipv6);
}

fn large_datagrams(tunnel: Family) {
    let lab = Lab::start("fragments", tunnel);
    both_families(|family| {
        for to in To::ALL {
            let mut session = UdpSession::open(lab.pod(1, 1), to.server(family), &patient())?;
            for size in [1600, 4000, 20_000, 60_000] {
                session.echo(size)?;
            }
        }
        // Two pods with one source port: the port of one of them changes, in the first fragment.
        let server = To::Outside.server(family);
        let sessions: Result<Vec<_>> = [1, 2]
            .map(|pod| {
                let source = at(pod_address(1, pod, family), 31_000);
                let options = patient().with_source(source);
                UdpSession::open(lab.pod(1, usize::from(pod)), server, &options)
            })
            .into_iter()
            .collect();
        for session in &mut sessions? {
            session.echo(5000)?;
        }
        Ok::<_, datapath_conformance::error::Error>(())
    });
    lab.datapaths.stop().or_panic();
}

/// The uplinks become narrower than what the pods were told.
#[test]
fn what_may_be_cut_is_cut_for_a_narrow_tunnel() {
    const MTU_BYTES: u32 = 1300;
    let lab = Lab::start("cut", Family::Ipv4);
    for node in [1, 2] {
        let node = lab.fabric.node(node).or_panic().namespace();
        let uplink = node.link(UPLINK).or_panic().index;
        let netlink = node.netlink().or_panic();
        netlink.set_mtu(uplink, MTU_BYTES).unwrap();
    }
    let router = lab.fabric.router();
    let port = router.link("n1").or_panic().index;
    let mut ear = FrameSocket::open(router, Some(port)).or_panic();

    let socket = lab.pod(1, 1).socket(Domain::IPV4, Type::DGRAM, None);
    let socket = socket.or_panic();
    setsockopt(&socket, MtuDiscover, &libc::IP_PMTUDISC_DONT).unwrap();
    let socket = UdpSocket::from(socket);
    socket.connect(To::Remote.server(Family::Ipv4)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    for size in [10, 1200, 1230, 1400, 1422] {
        let sent: Vec<u8> = (0..=255).cycle().take(size).collect();
        // The MTU is known once the neighbour is, and looked up again every second; and the answer
        // of the server, which wants it whole, is lost until it has been told.
        let tries = (0..20).take_while(|_| !echo(&socket, &sent)).count();
        assert!(tries < 20, "{size} bytes never came back");
    }
    // By now every packet is cut: to the longest multiple of eight that fits.
    while ear.next(Instant::now()).unwrap().is_some() {}
    assert!(echo(&socket, &[7; 1422]));
    let mut lengths = Vec::new();
    while let Some(frame) = ear.next(Instant::now()).unwrap() {
        if frame.direction == Direction::In && frame.bytes.len() > 100 {
            lengths.push(frame.bytes.len() - 14);
        }
    }
    assert_eq!(lengths, [50 + 20 + 1224, 50 + 20 + 206]);
    lab.datapaths.stop().or_panic();
}

/// Whether a datagram comes back.
fn echo(socket: &UdpSocket, sent: &[u8]) -> bool {
    let mut answer = vec![0; 2000];
    socket.send(sent).unwrap();
    match socket.recv(&mut answer) {
        Ok(length) => answer[..length] == *sent,
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            false
        }
    }
}
